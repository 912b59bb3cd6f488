import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import { status } from '@grpc/grpc-js';
import { cluster, http as httpManager, type Json, listener, metric, TestEngine, typed } from './support/engine.ts';
import { GrpcClient, type GrpcServer, grpcServer } from './support/grpc.ts';
import { call, until } from './support/http.ts';
import { ask, connectHttp2 } from './support/http2.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const overHttp2 = { http2_protocol_options: {} };
const fault = typed('envoy.filters.http.fault', 'extensions.filters.http.fault.v3.HTTPFault');
const router = typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router');

/** One message of gRPC, framed. */
function framed(text: string): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(text.length, 1);
  return Buffer.concat([head, Buffer.from(text)]);
}

describe('gRPC through one proxy', () => {
  const engine = new TestEngine();
  const servers: GrpcServer[] = [];
  let admin = 0;
  let port = 0;
  let client: GrpcClient;
  const asks = { 'content-type': 'application/grpc', te: 'trailers' };

  before(async () => {
    servers.push(await grpcServer('one'), await grpcServer('two'));
    for (const server of servers) engine.onClose(() => server.close());
    port = await engine.ports.next();
    const route = (path: Json, action: Json, more: Json = {}): Json => ({ match: path, route: { timeout: '0s', ...action }, ...more });
    const proxy = await engine.start({
      listeners: [
        listener(
          'in',
          port,
          httpManager(
            'both',
            {
              http_filters: [
                typed('envoy.filters.http.grpc_web', 'extensions.filters.http.grpc_web.v3.GrpcWeb'),
                typed('envoy.filters.http.grpc_http1_bridge', 'extensions.filters.http.grpc_http1_bridge.v3.Config', { upgrade_protobuf_to_grpc: true }),
                fault,
                router,
              ],
            },
            { max_stream_duration: { grpc_timeout_header_max: '2s' } },
            [
              route({ path: '/test.Echo/Say', headers: [{ name: 'to', string_match: { exact: 'two' } }] }, { cluster: 'two' }),
              route(
                { path: '/test.Echo/Say', headers: [{ name: 'retry', present_match: true }] },
                { cluster: 'one', retry_policy: { retry_on: 'unavailable', num_retries: 3 } },
              ),
              route({ path: '/test.Echo/Say', headers: [{ name: 'nowhere', present_match: true }] }, { cluster: 'empty' }),
              route(
                { prefix: '/test.Faulty/' },
                { cluster: 'one' },
                {
                  typed_per_filter_config: {
                    'envoy.filters.http.fault': {
                      '@type': 'type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault',
                      abort: { grpc_status: status.RESOURCE_EXHAUSTED, percentage: { numerator: 100 } },
                    },
                  },
                },
              ),
              { match: { prefix: '/test.Forbidden/' }, direct_response: { status: 403, body: { inline_string: 'not for you' } } },
            ],
          ),
        ),
      ],
      clusters: [
        cluster(
          'both',
          servers.map((server) => server.port),
          overHttp2,
        ),
        cluster('one', [servers[0]!.port], overHttp2),
        cluster('two', [servers[1]!.port], overHttp2),
        cluster('empty', [], overHttp2),
      ],
    });
    admin = proxy.adminPort!;
    client = new GrpcClient(port);
  });
  after(async () => {
    client.close();
    await engine.close();
  });

  it('carries all four kinds of calls, with metadata and trailers', async () => {
    const answer = await client.say('hello', { to: 'two' });
    assert.deepEqual([answer.code, answer.text, answer.trailers.get('x-served-by')], [status.OK, 'two: hello', ['two']]);
    assert.deepEqual(
      await client.count(500),
      Array.from({ length: 500 }, (_, i) => String(i)),
    );
    assert.equal(await client.collect(Array.from({ length: 50 }, () => Buffer.alloc(100_000))), String(50 * 100_000));
    const chat = client.chat();
    for (const word of ['one', 'two', 'three']) {
      chat.write(Buffer.from(word));
      const [heard] = (await once(chat, 'data')) as [Buffer];
      assert.equal(heard.toString(), word.toUpperCase(), 'each answer comes before the next question');
    }
    chat.end();
    await once(chat, 'end');
  });

  it('balances calls, not connections', async () => {
    const answers = await Promise.all(Array.from({ length: 40 }, () => client.say('x')));
    const byName = answers.map(({ text }) => text.slice(0, 3));
    assert.ok(byName.filter((name) => name === 'one').length >= 10 && byName.filter((name) => name === 'two').length >= 10, byName.join(' '));
  });

  it('answers in the form of gRPC whatever is wrong: no route, no server, forbidden, faults', async () => {
    const session = connectHttp2(port);
    const status_ = async (path: string, headers: Record<string, string> = {}) => {
      const { status: http, headers: found } = await ask(session, { path, headers: { ...asks, ...headers }, body: framed('x') });
      return [http, found['content-type'], found['grpc-status'], found['grpc-message']];
    };
    assert.deepEqual((await status_('/test.Echo/Say', { nowhere: '1' })).slice(0, 3), [200, 'application/grpc', String(status.UNAVAILABLE)]);
    assert.deepEqual(await status_('/test.Forbidden/X'), [200, 'application/grpc', String(status.PERMISSION_DENIED), 'not for you']);
    assert.deepEqual(await status_('/test.Faulty/X'), [200, 'application/grpc', String(status.RESOURCE_EXHAUSTED), 'fault filter abort']);
    const plain = await ask(session, { path: '/test.Faulty/X' });
    assert.deepEqual([plain.status, plain.headers['grpc-status']], [200, undefined], 'to who speaks no gRPC nothing but the text, as Envoy has it');
    session.close();
    assert.deepEqual((({ code, details }) => [code, details])(await client.say('x', { fail: '5' })), [5, 'as asked: 5'], 'what the server says is passed on');
  });

  it('ends a call when the time that its caller gave it is over', async () => {
    const session = connectHttp2(port);
    const answer = await ask(session, { path: '/test.Echo/Say', headers: { ...asks, never: '1', 'grpc-timeout': '150m' }, body: framed('x') });
    assert.deepEqual([answer.status, answer.headers['grpc-status']], [200, String(status.DEADLINE_EXCEEDED)]);
    session.close();
  });

  it('tries again when the server says in its head that it is unavailable', async () => {
    servers[0]!.calls = 0;
    const answer = await client.say('x', { retry: '1', fail: String(status.UNAVAILABLE), 'fail-first': '2' });
    assert.deepEqual([answer.code, servers[0]!.calls], [status.OK, 3]);
    servers[0]!.calls = 0;
    const other = await client.say('x', { retry: '1', fail: String(status.INTERNAL) });
    assert.deepEqual([other.code, servers[0]!.calls], [status.INTERNAL, 1], 'other statuses are not tried again');
  });

  it('counts by protocol and status', async () => {
    await client.say('x', { fail: '7' });
    const text = await engine.metrics(admin);
    assert.ok(metric(text, 'istio_requests_total', 'request_protocol="grpc",response_code="200",grpc_response_status="7"') >= 1);
    assert.ok(metric(text, 'istio_requests_total', 'request_protocol="grpc",response_code="200",grpc_response_status="0"') >= 1);
  });

  it('gRPC-Web: browsers call it over HTTP/1.1, in both forms', async () => {
    const binary = await call({
      port,
      path: '/test.Echo/Say',
      method: 'POST',
      headers: { 'content-type': 'application/grpc-web+proto', to: 'two' },
      body: framed('web'),
    });
    assert.deepEqual([binary.status, binary.headers['content-type']], [200, 'application/grpc-web+proto']);
    const body = Buffer.from(binary.body, 'latin1');
    const message = body.subarray(5, 5 + body.readUInt32BE(1));
    assert.equal(message.toString(), 'two: web');
    const trailer = body.subarray(5 + message.length);
    assert.equal(trailer[0], 0x80, 'the last frame holds the trailers');
    assert.match(trailer.toString('latin1', 5), /grpc-status: 0\r\n/);
    assert.match(trailer.toString('latin1', 5), /x-served-by: two\r\n/);

    const text = await call({
      port,
      path: '/test.Echo/Say',
      method: 'POST',
      headers: { 'content-type': 'application/grpc-web-text', to: 'two' },
      body: framed('text').toString('base64'),
    });
    assert.equal(text.headers['content-type'], 'application/grpc-web-text');
    assert.match(Buffer.from(text.body.replaceAll(/=+(?=[^=])/g, '').slice(0, 20), 'base64').toString('latin1'), /two: text/);
    const nonsense = await call({ port, path: '/test.Echo/Say', method: 'POST', headers: { 'content-type': 'application/grpc-web-text' }, body: '!!!!' });
    assert.equal(nonsense.headers['grpc-status'], String(status.INTERNAL));
  });

  it('the bridge: clients of HTTP/1.1 make unary calls and see their status in the head', async () => {
    const good = await call({
      port,
      path: '/test.Echo/Say',
      method: 'POST',
      headers: { 'content-type': 'application/grpc', to: 'two' },
      body: framed('bridge'),
    });
    assert.deepEqual([good.status, good.headers['grpc-status'], good.body.slice(5)], [200, '0', 'two: bridge']);
    const bad = await call({
      port,
      path: '/test.Echo/Say',
      method: 'POST',
      headers: { 'content-type': 'application/grpc', fail: '9', to: 'two' },
      body: framed('x'),
    });
    assert.deepEqual([bad.status, bad.headers['grpc-status'], bad.headers['grpc-message']], [503, '9', 'as%20asked:%209']);
    const bare = await call({ port, path: '/test.Echo/Say', method: 'POST', headers: { 'content-type': 'application/x-protobuf', to: 'two' }, body: 'bare' });
    assert.deepEqual([bare.status, bare.headers['content-type'], bare.body], [200, 'application/x-protobuf', 'two: bare']);
  });
});

describe('gRPC in a mesh', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  const servers: GrpcServer[] = [];

  const grpcApp = async (name: string) => {
    const server = await grpcServer(name);
    servers.push(server);
    mesh.onClose(() => server.close());
    return server.port;
  };

  before(async () => {
    mesh = await TestMesh.start();
    client = await mesh.proxy('client');
    await client.proxy.ready;
  });
  after(() => mesh.close());

  it('a declared gRPC service: mutual TLS over HTTP/2 between the sidecars, per-call balancing, metrics on both sides', async () => {
    const one = await mesh.sidecar('echo', await grpcApp('one'), { name: 'grpc', port: 9000 }, { version: 'v1' });
    await mesh.sidecar('echo', await grpcApp('two'), { name: 'grpc', port: 9000 }, { version: 'v2' });
    await mesh.apply(service('echo', 'grpc', 9000));
    const caller = new GrpcClient(client.outboundPort, 'echo:9000');
    const answers = await until(
      'both answer',
      () => Promise.all(Array.from({ length: 20 }, () => caller.say('x'))),
      (all) => new Set(all.map(({ text }) => text)).size === 2,
    );
    assert.ok(answers.every(({ code }) => code === status.OK));
    caller.close();
    const own = (await call({ port: client.adminPort, path: '/stats/prometheus' })).body;
    const theirs = (await call({ port: one.adminPort, path: '/stats/prometheus' })).body;
    for (const text of [own, theirs]) {
      const lines = text
        .split('\n')
        .filter((line) => line.startsWith('istio_requests_total') && line.includes('request_protocol="grpc"') && line.includes('grpc_response_status="0"'));
      assert.ok(lines.length > 0 && lines.every((line) => line.includes('connection_security_policy="mutual_tls"')), text.slice(0, 500));
      assert.ok(lines.every((line) => line.includes('source_workload="client"')));
    }
    assert.ok(metric(theirs, 'mizzen_downstream_http2_connections_total') >= 1);
  });

  it('a VirtualService routes by service and method, injects faults and bounds deadlines', async () => {
    await mesh.apply(`apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: echo }
spec:
  host: echo
  subsets:
  - { name: v1, labels: { version: v1 } }
  - { name: v2, labels: { version: v2 } }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: echo }
spec:
  hosts: [echo]
  http:
  - match: [{ uri: { exact: /test.Echo/Say }, headers: { refuse: { exact: "yes" } } }]
    fault: { abort: { grpcStatus: FAILED_PRECONDITION, percentage: { value: 100 } } }
    route: [{ destination: { host: echo, subset: v1 } }]
  - match: [{ uri: { exact: /test.Echo/Say } }]
    timeout: 0.3s
    route: [{ destination: { host: echo, subset: v2 } }]
  - match: [{ uri: { prefix: /test.Echo/ } }]
    route: [{ destination: { host: echo, subset: v1 } }]
`);
    const caller = new GrpcClient(client.outboundPort, 'echo:9000');
    const texts = await Promise.all(Array.from({ length: 10 }, async () => (await caller.say('x')).text));
    assert.deepEqual(new Set(texts), new Set(['two: x']));
    assert.equal((await caller.say('x', { refuse: 'yes' })).code, status.FAILED_PRECONDITION);
    assert.equal((await caller.say('x', { never: '1' })).code, status.DEADLINE_EXCEEDED, "the route's timeout, since the caller would wait longer");
    assert.deepEqual(await caller.count(3), ['0', '1', '2']);
    caller.close();
  });

  it('a port that nobody declared: gRPC and HTTP/1.1 beside each other', async () => {
    await mesh.sidecar('either', await grpcApp('either'), { port: 9100 });
    await mesh.apply(service('either', '', 9100));
    const caller = new GrpcClient(client.outboundPort, 'either:9100');
    assert.deepEqual((({ code, text }) => [code, text])(await caller.say('x')), [status.OK, 'either: x']);
    caller.close();
  });

  it('h2UpgradePolicy: calls of applications that speak HTTP/1.1 share one connection between the sidecars', async () => {
    const web = await mesh.workload('web');
    await mesh.apply(`${service('web')}apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: web }
spec:
  host: web
  trafficPolicy: { connectionPool: { http: { h2UpgradePolicy: UPGRADE } } }
`);
    const answers = await Promise.all(
      Array.from({ length: 30 }, (_, i) =>
        call({ port: client.outboundPort, path: `/${i}`, headers: { host: 'web:9080' }, method: 'POST', body: 'x'.repeat(i) }),
      ),
    );
    for (const [i, { status: code, body }] of answers.entries()) {
      const seen = JSON.parse(body);
      assert.deepEqual([code, seen.url, seen.body.length, seen.headers.host], [200, `/${i}`, i, 'web:9080']);
    }
    const text = (await call({ port: web.adminPort, path: '/stats/prometheus' })).body;
    assert.equal(metric(text, 'mizzen_downstream_connections_total'), 1);
    assert.equal(metric(text, 'mizzen_downstream_http2_connections_total'), 1);
  });
});
