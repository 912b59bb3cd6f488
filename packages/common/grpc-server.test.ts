import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type ClientHttp2Stream, connect, createServer, type IncomingHttpHeaders } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { it } from 'node:test';
import type { ConnectRouter } from '@connectrpc/connect';
import { RateLimitService } from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import { grpcHandler } from './grpc-server.ts';
import { ServerConnections } from './server-connections.ts';

it('a gRPC server takes any authority that HTTP/2 lets through, whether or not it makes a URL', async () => {
  const server = createServer(grpcHandler({ routes: (router) => void router.service(RateLimitService, { shouldRateLimit: async () => ({}) }) }));
  const connections = new ServerConnections(server);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  for (const authority of ['localhost', 'run%2Fapi.sock', '[::', 'a:b:c', '%', 'x:99999']) {
    const path = '/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit';
    const stream = client.request({ ':method': 'POST', ':path': path, ':authority': authority, 'content-type': 'application/grpc' });
    const response = once(stream, 'response') as Promise<[IncomingHttpHeaders]>;
    const trailers = once(stream, 'trailers') as Promise<[IncomingHttpHeaders]>;
    stream.resume().end(Buffer.alloc(5));
    assert.equal((await response)[0][':status'], 200, authority);
    assert.equal((await trailers)[0]['grpc-status'], '0', authority);
  }
  client.close();
  await connections.close();
});

it('a gRPC server holds no more of a message than its limit, of all messages together than theirs, and waits no longer than it is configured to', async () => {
  let calls = 0;
  const routes = (router: ConnectRouter) =>
    void router.service(RateLimitService, {
      shouldRateLimit: async () => {
        calls++;
        return {};
      },
    });
  const server = createServer(grpcHandler({ routes }, { maxMessageBytes: 100_000, maxPendingBytes: 400_000, maxResponseDelayMs: 300 }));
  const connections = new ServerConnections(server);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  const open = () => {
    const stream = client.request({
      ...{ ':method': 'POST', ':path': '/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit', 'content-type': 'application/grpc' },
    });
    stream.on('error', () => {});
    return stream.resume();
  };
  const gone = (stream: ClientHttp2Stream) => new Promise<void>((resolve) => stream.once('close', resolve));
  const envelope = (length: number) => {
    const head = Buffer.alloc(5);
    head.writeUInt32BE(length, 1);
    return head;
  };
  // Declares 200 MB and sends them as fast as it may.
  const large = open();
  let sent = 0;
  large.write(envelope(200_000_000));
  const pour = () => {
    while (!large.destroyed && sent < 200_000_000 && large.write(Buffer.alloc(16_384))) sent += 16_384;
  };
  large.on('drain', pour);
  pour();
  await gone(large);
  assert.ok(sent < 5_000_000, `${sent} bytes were taken`);
  // Many that never end.
  const slow = Array.from({ length: 8 }, () => {
    const stream = open();
    stream.write(Buffer.concat([envelope(99_000), Buffer.alloc(90_000)]));
    return stream;
  });
  await Promise.all(slow.map(gone));
  assert.equal(calls, 0);
  const ok = open();
  const trailers = once(ok, 'trailers') as Promise<[IncomingHttpHeaders]>;
  ok.end(Buffer.alloc(5));
  assert.equal((await trailers)[0]['grpc-status'], '0');
  assert.equal(calls, 1);
  client.close();
  await connections.close();
});
