import assert from 'node:assert/strict';
import { once } from 'node:events';
import http2 from 'node:http2';
import type net from 'node:net';
import { after, describe, it } from 'node:test';
import { cluster, http, listener, metric, RawClient, TestEngine } from './support/engine.ts';
import { call, until } from './support/http.ts';

const heapMib = 64;
const downloads = 300;
const maxSessions = 3_000;
const atOnce = 100;
const block = Buffer.alloc(64 * 1024, 'b');

describe('a proxy with a heap of 64 MB', () => {
  const engine = new TestEngine();
  after(() => engine.close());

  /** A response that never ends. */
  const pour = async (socket: net.Socket) => {
    socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${1024 ** 4}\r\n\r\n`);
    while (!socket.destroyed) if (!socket.write(block)) await once(socket, 'drain').catch(() => {});
  };

  it('refuses work when clients do not read their downloads, keeps running, and recovers', { timeout: 180_000 }, async () => {
    const origin = await engine.server(
      (socket) =>
        void socket.once('data', (head) =>
          String(head).startsWith('GET /ok') ? socket.end('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok') : void pour(socket),
        ),
    );
    const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
    const open = { circuit_breakers: { thresholds: [{ max_connections: 10_000, max_requests: 10_000, max_pending_requests: 10_000 }] } };
    const child = await engine.spawn({ adminPort, listeners: [listener('in', port, http('origin'))], clusters: [cluster('origin', [origin], open)] }, [], {
      NODE_OPTIONS: `--max-old-space-size=${heapMib}`,
    });
    const overloaded = async () => {
      const text = await engine.metrics(adminPort);
      return metric(text, 'mizzen_downstream_connections_overload_rejected_total') + metric(text, 'mizzen_downstream_requests_overload_rejected_total');
    };
    const clients = Array.from({ length: downloads }, () => new RawClient(port));
    const sessions: http2.ClientHttp2Session[] = [];
    engine.onClose(() => {
      for (const client of clients) client.destroy();
      for (const session of sessions) session.destroy();
    });
    for (const client of clients) {
      client.socket.pause();
      client.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n');
    }
    while (sessions.length < maxSessions && (await overloaded()) === 0) {
      const opened = Array.from({ length: atOnce }, () => {
        const session = http2.connect(`http://127.0.0.1:${port}`);
        sessions.push(session);
        session.on('error', () => {});
        const stream = session.request({ ':path': '/' });
        stream.pause();
        return new Promise<void>((resolve) => {
          for (const event of ['response', 'error', 'close']) stream.once(event, () => resolve());
          stream.on('error', () => {});
        });
      });
      await Promise.all(opened);
      assert.equal(child.exitCode ?? child.signalCode, null);
    }
    assert.ok((await overloaded()) > 0, 'the proxy has refused work');
    for (const client of clients) client.destroy();
    for (const session of sessions) session.destroy();
    await until(
      'the proxy takes requests again',
      () => call({ port, path: '/ok', headers: { host: 'a' } }).then(({ status }) => status, String),
      (status) => status === 200,
      60_000,
    );
    assert.equal(child.exitCode ?? child.signalCode, null);
  });
});
