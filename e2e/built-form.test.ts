import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { homeFiles } from '@mizzen/control';
import { metric } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { bindWorkload, service, TestMesh } from './support/mesh.ts';

const root = join(import.meta.dirname, '..');
const clients = 6;

/** `npm run build`: what is published. */
describe('the built form', () => {
  const folder = join(root, `node_modules/.mizzen-built-${process.pid}`);
  let mesh: TestMesh;
  before(async () => {
    execFileSync(process.execPath, [join(root, 'scripts/build.mjs'), folder], { stdio: 'ignore' });
    mesh = await TestMesh.start();
  });
  after(async () => {
    await mesh.close();
    rmSync(folder, { recursive: true, force: true });
  });

  const start = (file: string, args: readonly string[]) => {
    const child = spawn(process.execPath, [join(folder, 'mizzen.js'), 'proxy', '--config', file, '--log-level', 'error', '--drain-time', '0', ...args], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    mesh.onClose(async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, 'exit');
      child.kill();
      await exited;
    });
    return child;
  };

  it('reads a bootstrap in YAML, within the limits for YAML', async () => {
    const adminPort = await mesh.ports.next();
    const file = join(mesh.home, 'bootstrap.yaml');
    writeFileSync(
      file,
      `admin:\n  address: { socket_address: { address: 127.0.0.1, port_value: ${adminPort} } }\nstatic_resources: { listeners: [], clusters: [] }\n`,
    );
    start(file, []);
    await until(
      'the proxy is ready',
      () => call({ port: adminPort, path: '/ready' }),
      ({ status }) => status === 200,
      60_000,
    );
    writeFileSync(file, `a: ${'['.repeat(200)}${']'.repeat(200)}\n`);
    const [code] = (await once(start(file, []), 'exit')) as [number];
    assert.equal(code, 1);
  });

  it('replaces workers that are killed one after another under load, and only requests in flight on them fail', { timeout: 90_000 }, async () => {
    const app = await mesh.application('worn');
    await mesh.apply(service('worn'));
    const [listen, adminPort] = [await mesh.ports.next(), await mesh.ports.next()];
    const tokenFile = join(mesh.home, 'worn.token');
    writeFileSync(tokenFile, (await mesh.plane.tokens.issue('default', 'worn', [], 3600)).token);
    await bindWorkload(mesh.plane, { name: 'worn' });
    const file = join(mesh.home, 'worn.json');
    writeFileSync(
      file,
      JSON.stringify({
        ...{ type: 'sidecar', name: 'worn', namespace: 'default', workload: 'worn', serviceAccount: 'worn', labels: { app: 'worn' } },
        ...{ trustDomain: 'cluster.local', address: '127.0.0.1', control: `127.0.0.1:${mesh.plane.xdsPort}`, tokenFile, registers: true, adminPort },
        ...{ rootCertificateFile: homeFiles(mesh.home).rootCertificate, accessLogFile: join(mesh.home, 'worn.access.log') },
        inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${listen}`, app: `127.0.0.1:${app}` }],
      }),
    );
    const child = start(file, ['--concurrency', '2']);
    const ready = async () => (await call({ port: adminPort, path: '/ready' })).status;
    await until('the proxy is ready', ready, (status) => status === 200, 30_000);
    const workers = () =>
      readdirSync('/proc')
        .filter((name) => /^\d+$/.test(name) && parentOf(name) === child.pid)
        .map(Number);
    const failures: { readonly beganAt: number; readonly reason: string }[] = [];
    let done = 0;
    let isOver = false;
    const load = Array.from({ length: clients }, async () => {
      while (!isOver) {
        const beganAt = performance.now();
        const reason = await call({ port: listen, agent: new http.Agent() }).then(({ status }) => (status === 200 ? undefined : `status ${status}`), String);
        if (reason !== undefined) failures.push({ beganAt, reason });
        done++;
      }
    });
    const first = workers();
    assert.equal(first.length, 2);
    try {
      for (const pid of first) {
        const before = failures.length;
        process.kill(pid, 'SIGKILL');
        await until(
          'the worker is gone',
          async () => parentOf(String(pid)),
          (parent) => parent === undefined,
        );
        const goneAt = performance.now();
        await until(
          'the replacement listens',
          async () => ((await ready()) === 200 ? workers() : []),
          (pids) => pids.length === 2 && !pids.includes(pid),
          60_000,
        );
        const sent = done;
        await until(
          'requests after the replacement',
          async () => done,
          (count) => count > sent + 100,
          60_000,
        );
        const failed = failures.slice(before);
        assert.deepEqual(
          failed.filter(({ beganAt }) => beganAt > goneAt),
          [],
        );
        assert.ok(failed.length <= clients, `${failed.length} requests of ${clients} clients failed: ${failed[0]?.reason}`);
      }
    } finally {
      isOver = true;
      await Promise.all(load);
    }
    const metrics = (await call({ port: adminPort, path: '/stats/prometheus' })).body;
    assert.equal(metric(metrics, 'mizzen_workers'), 2);
    assert.equal(metric(metrics, 'mizzen_worker_restarts_total'), 2);
    assert.equal(mesh.plane.pilot.proxies().find(({ name }) => name === 'worn')?.state, 'synced');
  });
});

function parentOf(pid: string): number | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[1]);
  } catch {
    return undefined; // it has ended in the meantime
  }
}
