import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type IncomingHttpHeaders } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { it } from 'node:test';
import { RateLimitService } from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import { grpcHandler, sessionsOf } from './grpc-server.ts';

it('a gRPC server takes any authority that HTTP/2 lets through, whether or not it makes a URL', async () => {
  const server = createServer(grpcHandler({ routes: (router) => void router.service(RateLimitService, { shouldRateLimit: async () => ({}) }) }));
  const sessions = sessionsOf(server);
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
  assert.equal(sessions.size, 1);
  client.close();
  const closed = once(server, 'close');
  server.close();
  for (const session of sessions) session.destroy();
  await closed;
});
