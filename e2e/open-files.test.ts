import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { WebSocket, WebSocketServer } from 'ws';
import { cluster, http, listener, TestEngine } from './support/engine.ts';
import { call, until } from './support/http.ts';

const maxOpenFiles = 256;
const attempts = 400;
const handshakeMs = 5_000;

describe('a proxy without descriptors for its connections', () => {
  const engine = new TestEngine();
  const app = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  app.on('connection', (socket) => {
    socket.on('error', () => {});
    socket.on('message', (message) => socket.send(String(message)));
  });
  const sockets: WebSocket[] = [];
  before(() => once(app, 'listening'));
  after(async () => {
    for (const socket of [...sockets, ...app.clients]) socket.terminate();
    await engine.close();
    app.close();
  });

  it('refuses new WebSockets, keeps those that are open, and recovers when they close', { timeout: 60_000 }, async () => {
    const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
    const manager = { upgrade_configs: [{ upgrade_type: 'websocket' }] };
    const child = await engine.spawn(
      { adminPort, listeners: [listener('in', port, http('app', manager))], clusters: [cluster('app', [(app.address() as AddressInfo).port])] },
      [],
      {},
      ['sh', '-c', `ulimit -n ${maxOpenFiles}; exec "$0" "$@"`],
    );
    const connect = async (): Promise<WebSocket | undefined> => {
      const socket = new WebSocket(`ws://127.0.0.1:${port}/`, { handshakeTimeout: handshakeMs });
      sockets.push(socket);
      return new Promise((resolve) => {
        socket.on('open', () => resolve(socket));
        socket.on('error', () => resolve(undefined));
      });
    };
    const connectAll = async (count: number) => (await Promise.all(Array.from({ length: count }, connect))).filter((socket) => socket !== undefined);
    const first = await connectAll(attempts / 8);
    assert.equal(first.length, attempts / 8);
    const opened = [...first, ...(await connectAll(attempts - first.length))];
    assert.ok(opened.length < attempts, `${opened.length} WebSockets with ${maxOpenFiles} descriptors`);
    assert.equal(child.exitCode, null);
    for (const socket of opened) {
      socket.send('still here');
      assert.equal(String((await once(socket, 'message'))[0]), 'still here');
    }
    for (const socket of sockets) socket.terminate();
    await until('a WebSocket opens again', connect, (socket) => socket !== undefined, 20_000);
    const metrics = await call({ port: adminPort, path: '/stats/prometheus' });
    assert.match(metrics.body, /mizzen_unattributed_errors_total(\{\})? 0/);
    assert.equal(child.exitCode, null);
  });
});
