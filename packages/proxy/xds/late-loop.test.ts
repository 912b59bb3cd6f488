import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, it } from 'node:test';
import { Worker } from 'node:worker_threads';
import { errorBoundary, patientTimeout } from '@mizzen/common';
import { HealthProber } from './health-prober.ts';

/** An application in a thread of its own: it answers while this thread is busy. */
const application = `
const http = require('node:http');
const { parentPort } = require('node:worker_threads');
const server = http.createServer((_request, response) => response.end()).listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port));
`;

function block(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

describe('an event loop that is late', () => {
  it('does not make a healthy application unhealthy', async () => {
    const worker = new Worker(application, { eval: true });
    try {
      const [port] = (await once(worker, 'message')) as [number];
      for (const path of ['/', undefined]) {
        const reports: (string | undefined)[] = [];
        const prober = new HealthProber(
          { port, periodMs: 1, timeoutMs: 50, failureThreshold: 1, ...(path === undefined ? {} : { path }) },
          () => undefined,
          (reason) => reports.push(reason),
        );
        prober.start();
        while (reports.length === 0) await new Promise((resolve) => setImmediate(resolve));
        for (let i = 0; i < 5; i++) {
          await new Promise((resolve) => setTimeout(resolve, 3 + i));
          block(200);
        }
        await new Promise((resolve) => setTimeout(resolve, 20));
        prober.close();
        assert.deepEqual(reports, [undefined]);
      }
    } finally {
      await worker.terminate();
    }
  });

  it('gives a peer the time by which it was late, and no more', async () => {
    let hasExpired = false;
    const startedAt = performance.now();
    await new Promise<void>((resolve) => {
      patientTimeout(errorBoundary('test'), 40, () => {
        hasExpired = true;
        resolve();
      });
      block(250);
      setTimeout(() => assert.equal(hasExpired, false), 10);
    });
    assert.ok(performance.now() - startedAt >= 280);
    const stop = patientTimeout(errorBoundary('test'), 1, () => assert.fail('it was stopped'));
    stop();
  });
});
