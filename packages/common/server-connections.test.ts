import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import http2 from 'node:http2';
import net, { type AddressInfo } from 'node:net';
import { describe, it } from 'node:test';
import tls from 'node:tls';
import { ServerConnections } from './server-connections.ts';

async function listen(server: net.Server): Promise<{ readonly port: number; readonly connections: ServerConnections }> {
  const connections = new ServerConnections(server);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, connections };
}

async function client(server: net.Server, port: number): Promise<net.Socket> {
  const accepted = once(server, 'connection');
  const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true }).on('error', () => {});
  await accepted;
  return socket;
}

describe('ServerConnections', () => {
  it('closes a server whose peers neither read, write nor close', { timeout: 10_000 }, async () => {
    for (const server of [net.createServer(), tls.createServer(), http.createServer(), http2.createServer(), http2.createSecureServer()]) {
      const { port, connections } = await listen(server);
      const sockets = [await client(server, port), await client(server, port)];
      await connections.close();
      assert.equal(server.listening, false);
      for (const socket of sockets) socket.destroy();
    }
  });

  it('closes an HTTP/2 server whose session waits for a peer that does not close', { timeout: 10_000 }, async () => {
    const server = http2.createServer();
    const { port, connections } = await listen(server);
    const session = once(server, 'session');
    const socket = await client(server, port);
    socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0');
    const [opened] = (await session) as [http2.ServerHttp2Session];
    // A session that has been closed gracefully only ends its socket when it is destroyed, and this peer does not end its side.
    opened.close();
    const startedAt = performance.now();
    await connections.close(100);
    assert.ok(performance.now() - startedAt < 5_000);
    socket.destroy();
  });

  it('is closed twice, or before it listens, without harm', async () => {
    const server = net.createServer();
    const connections = new ServerConnections(server);
    await connections.close();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    await Promise.all([connections.close(), connections.close()]);
  });
});
