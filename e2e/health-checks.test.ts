import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { after, describe, it } from 'node:test';
import { cluster, http as httpManager, type Json, listener, metric, TestEngine } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { ask, connectHttp2, http2Server } from './support/http2.ts';

describe('active health checks', () => {
  const engine = new TestEngine();
  after(() => engine.close());
  const common = { interval: '0.1s', timeout: '0.5s', unhealthy_threshold: 2, healthy_threshold: 2 };

  /** An application of HTTP/1.1 whose health can be changed. */
  async function application(name: string): Promise<{ readonly port: number; status: number; readonly asked: string[] }> {
    const state = { port: 0, status: 200, asked: [] as string[] };
    const server = http.createServer((request, response) => {
      if (request.url !== '/health') return void response.end(name);
      state.asked.push(`${request.method} ${request.headers.host}`);
      if (state.status > 0) response.writeHead(state.status).end();
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    engine.onClose(() => {
      server.closeAllConnections();
      server.close();
    });
    return Object.assign(state, { port: (server.address() as AddressInfo).port });
  }

  async function start(ports: readonly number[], check: Json, more: Json = {}) {
    const port = await engine.ports.next();
    const proxy = await engine.start({
      listeners: [listener('in', port, httpManager('out'))],
      clusters: [cluster('out', ports, { common_lb_config: { healthy_panic_threshold: { value: 0 } }, health_checks: [{ ...common, ...check }], ...more })],
    });
    const healthy = (count: number) =>
      until(
        `${count} healthy endpoints`,
        () => engine.metrics(proxy.adminPort!),
        (text) => metric(text, 'envoy_cluster_membership_healthy') === count,
      );
    return { port, admin: proxy.adminPort!, healthy };
  }

  it('HTTP: an endpoint that answers wrongly gets no requests, and some again when it is well', async () => {
    const [one, two] = [await application('one'), await application('two')];
    const { port, admin, healthy } = await start([one.port, two.port], {
      http_health_check: { path: '/health', host: 'check.example', expected_statuses: [{ start: 200, end: 300 }] },
    });
    const seen = async () => new Set(await Promise.all(Array.from({ length: 10 }, async () => (await call({ port })).body)));
    await until(
      'a check',
      async () => one.asked.length + two.asked.length,
      (count) => count >= 2,
    );
    assert.equal(one.asked[0], 'GET check.example');
    assert.deepEqual(await seen(), new Set(['one', 'two']));
    two.status = 503;
    await healthy(1);
    assert.deepEqual(await seen(), new Set(['one']));
    const { clusters } = JSON.parse((await call({ port: admin, path: '/clusters' })).body);
    assert.match(clusters[0].endpoints[1].health_check, /GET \/health was answered with 503/);
    one.status = 500;
    await healthy(0);
    assert.equal((await call({ port })).status, 503);
    two.status = 204;
    await healthy(1);
    assert.deepEqual(await seen(), new Set(['two']));
    // One that does not answer at all has failed too.
    one.status = 200;
    await healthy(2);
    two.status = 0;
    await healthy(1);
    assert.ok(metric(await engine.metrics(admin), 'envoy_cluster_health_check_failure') >= 3);
  });

  it('gRPC: by grpc.health.v1, beside the calls on the same connection', async () => {
    let answer = [0x08, 1];
    const services: string[] = [];
    const origin = await http2Server(engine, (stream, headers) => {
      const chunks: Buffer[] = [];
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('end', () => {
        if (headers[':path'] !== '/grpc.health.v1.Health/Check') return stream.respond({ ':status': 200 }, { endStream: true });
        services.push(Buffer.concat(chunks).toString('latin1', 7));
        stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
        stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
        stream.end(Buffer.from([0, 0, 0, 0, answer.length, ...answer]));
      });
    });
    const { port, admin, healthy } = await start([origin], { grpc_health_check: { service_name: 'shop' } }, { http2_protocol_options: {} });
    const session = connectHttp2(port);
    await until(
      'a check',
      async () => services[0],
      (service) => service === 'shop',
    );
    assert.equal((await ask(session)).status, 200);
    assert.equal(metric(await engine.metrics(admin), 'envoy_cluster_upstream_cx_total'), 1);
    answer = [0x08, 2];
    await healthy(0);
    assert.equal((await ask(session)).status, 503);
    answer = [0x08, 1];
    await healthy(1);
    assert.equal((await ask(session)).status, 200);
    session.close();
  });

  it('TCP: who takes no connection is not well', async () => {
    const one = await application('one');
    const gone = net.createServer();
    gone.listen(0, '127.0.0.1');
    await once(gone, 'listening');
    const { port } = gone.address() as AddressInfo;
    gone.close();
    await once(gone, 'close');
    const proxy = await start([one.port, port], { tcp_health_check: {} });
    await proxy.healthy(1);
    assert.equal((await call({ port: proxy.port })).body, 'one');
  });

  it('refuses a check that cannot be made', async () => {
    for (const [check, problem] of [
      [{}, /one of http_health_check, tcp_health_check and grpc_health_check is needed/],
      [{ http_health_check: { path: 'health' } }, /path must begin with \//],
      [{ tcp_health_check: { send: { text: '00' } } }, /send/],
      [{ tcp_health_check: {}, interval: '0s' }, /must be given and above 0/],
    ] as const)
      await assert.rejects(start([1], check), problem);
  });
});
