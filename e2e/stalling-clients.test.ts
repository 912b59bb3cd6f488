import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import http2, { type ClientHttp2Session } from 'node:http2';
import net, { type Socket } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { Dapr } from '@mizzen/envoy-api/gen/dapr/proto/runtime/v1/dapr_pb.js';
import { call } from './support/http.ts';
import { workloadApi } from './support/identities.ts';
import { type RunningProxy, TestMesh } from './support/mesh.ts';

const clients = 210;
const tlsOptions = { host: '127.0.0.1', rejectUnauthorized: false };
/** The longest that a request of another client may take meanwhile. */
const maxWaitMs = 10_000;

/** Clients without any credentials connect, send part of something, and wait. Others, from the same address, must be served as ever. */
describe('clients that stall before they are authenticated', () => {
  let mesh: TestMesh;
  let sidecar: RunningProxy;
  let socketPath: string;
  const grpcPort = { dapr: 0 };
  const open: (Socket | ClientHttp2Session)[] = [];
  before(async () => {
    mesh = await TestMesh.start();
    socketPath = join(mesh.home, 'spiffe', 'api.sock');
    const [httpPort, daprPort] = [await mesh.ports.next(), await mesh.ports.next()];
    grpcPort.dapr = daprPort;
    sidecar = await mesh.proxy('first', { workloadApiSocket: socketPath, messaging: { appId: 'first', httpPort, grpcPort: daprPort } });
    await sidecar.proxy.ready;
  });
  after(async () => {
    for (const one of open) one.destroy();
    await mesh.close();
  });
  const stall = async (to: net.NetConnectOpts, first: string | Buffer = '') => {
    const sockets = await Promise.all(
      Array.from({ length: clients }, async () => {
        const socket = net.connect(to);
        socket.on('error', () => {}).resume();
        open.push(socket);
        await once(socket, 'connect');
        if (first !== '') socket.write(first);
        return socket;
      }),
    );
    return sockets;
  };
  const stallTls = (port: number, first: string, count = 20) =>
    Promise.all(
      Array.from({ length: count }, async () => {
        const socket = tls.connect({ ...tlsOptions, port });
        socket.on('error', () => {}).resume();
        open.push(socket);
        await Promise.race([once(socket, 'secureConnect'), once(socket, 'close')]);
        if (first !== '' && socket.writable) socket.write(first);
      }),
    );
  /** Half-sent messages, many on each of a few sessions. */
  const stallStreams = async (session: ClientHttp2Session, path: string, count: number, bytes: number) => {
    session.on('error', () => {});
    open.push(session);
    await once(session, 'connect');
    const head = Buffer.alloc(5);
    head.writeUInt32BE(4_000_000, 1);
    for (let i = 0; i < count; i++) {
      const stream = session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' });
      stream.on('error', () => {}).resume();
      stream.write(Buffer.concat([head, Buffer.alloc(bytes)]));
    }
  };
  const inTime = async <Value>(what: string, work: Promise<Value>): Promise<Value> => {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`${what}: not within ${maxWaitMs} ms`)), maxWaitMs);
    });
    try {
      return await Promise.race([work, late]);
    } finally {
      clearTimeout(timer);
    }
  };
  const token = () => readFileSync(join(mesh.home, 'admin-token'), 'utf8').trim();
  const api = (path: string) => call({ port: mesh.plane.apiPort, path, headers: { authorization: `Bearer ${token()}` }, tls: tlsOptions });
  const halfHead = 'GET /ready HTTP/1.1\r\nHost: localhost\r\nX-Slow: ';

  it('do not keep a sidecar from its certificate and its configuration', async () => {
    const port = mesh.plane.xdsPort;
    await stall({ port, host: '127.0.0.1' });
    await stallTls(port, 'PRI * HTTP/2.0');
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 2; i++) {
      const session = http2.connect(`https://127.0.0.1:${port}`, { rejectUnauthorized: false });
      await stallStreams(session, '/istio.v1.auth.IstioCertificateService/CreateCertificate', 240, 30_000);
    }
    const session = http2.connect(`https://127.0.0.1:${port}`, { rejectUnauthorized: false });
    await stallStreams(session, '/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources', 20, 3_900_000);
    const second = await inTime('a new sidecar', mesh.proxy('second'));
    await inTime('its configuration', second.proxy.ready);
    // What clients hold in this same process counts too.
    assert.ok(process.memoryUsage().rss - before < 500_000_000, `${process.memoryUsage().rss - before} bytes`);
  });

  it('do not keep others from the API', async () => {
    const port = mesh.plane.apiPort;
    await stall({ port, host: '127.0.0.1' });
    await stallTls(port, halfHead);
    assert.equal((await inTime('the API', api('/api/v1/namespaces'))).status, 200);
    const large = await inTime(
      'a large body',
      call({ port, path: '/api/v1/namespaces', method: 'POST', headers: { 'content-length': '1000000000' }, tls: tlsOptions, body: 'x' }),
    ).catch(() => ({ status: 401 }));
    assert.equal(large.status, 401, 'a body is not read before its sender is known');
    const head = await call({ port, path: '/version', headers: { 'x-large': 'x'.repeat(20_000) }, tls: tlsOptions }).catch(() => ({ status: 431 }));
    assert.equal(head.status, 431);
  });

  it('do not keep others from the admin server of a proxy', async () => {
    await stall({ port: sidecar.adminPort, host: '127.0.0.1' }, halfHead);
    assert.equal((await inTime('the admin server', call({ port: sidecar.adminPort, path: '/ready' }))).status, 200);
  });

  it('do not keep an application from its identity', async () => {
    await stall({ path: socketPath });
    await stall({ path: socketPath }, 'PRI * HTTP/2.0\r\n');
    const found = inTime(
      'the Workload API',
      (async () => {
        for await (const { svids } of workloadApi(socketPath).fetchX509SVID({}, { headers: { 'workload.spiffe.io': 'true' } })) return svids.length;
        return 0;
      })(),
    );
    assert.equal(await found, 1);
  });

  it("do not keep an application from Dapr's API", async () => {
    await stall({ port: grpcPort.dapr, host: '127.0.0.1' });
    const session = http2.connect(`http://127.0.0.1:${grpcPort.dapr}`);
    await stallStreams(session, '/dapr.proto.runtime.v1.Dapr/PublishEvent', 18, 3_900_000);
    const dapr = createClient(Dapr, createGrpcTransport({ baseUrl: `http://127.0.0.1:${grpcPort.dapr}` }));
    const error = await inTime(
      'the Dapr API',
      dapr.publishEvent({ pubsubName: 'none', topic: 'a' }).catch((one: unknown) => one),
    );
    assert.match(String(error), /none/);
  });
});
