import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { status } from '@grpc/grpc-js';
import { envoyBootstrap } from '../e2e/support/envoy.ts';
import { GrpcClient, type GrpcServer, grpcServer } from '../e2e/support/grpc.ts';
import { call, until } from '../e2e/support/http.ts';
import { service, TestMesh } from '../e2e/support/mesh.ts';
import { skipWithout } from '../e2e/support/requirements.ts';

/** Stock Envoy in the place of a sidecar: it must take what pilot serves, and route as our own proxy does. */
describe('stock Envoy as a client of pilot', { skip: skipWithout('envoy') }, () => {
  let mesh: TestMesh;
  let envoy: ChildProcess;
  let outboundPort: number;
  let echo: GrpcServer;
  let log = '';
  before(async () => {
    mesh = await TestMesh.start();
    const app = await mesh.application('plain');
    echo = await grpcServer('echo');
    mesh.onClose(() => echo.close());
    outboundPort = await mesh.ports.next();
    await mesh.apply(`${service('web')}
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: web-v1 }
spec: { address: 127.0.0.1, ports: { http: ${app} }, labels: { app: web, version: v1 } }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: web }
spec:
  host: web
  trafficPolicy: { loadBalancer: { simple: ROUND_ROBIN }, connectionPool: { tcp: { maxConnections: 100, connectTimeout: 2s } } }
  subsets: [{ name: v1, labels: { version: v1 } }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: web }
spec:
  hosts: [web]
  http:
  - match: [{ uri: { prefix: /admin }, headers: { x-role: { exact: user } }, queryParams: { a: { exact: b } } }]
    directResponse: { status: 403, body: { string: no } }
  - match: [{ uri: { prefix: /shared } }]
    corsPolicy:
      allowOrigins: [{ exact: "https://shop.example" }, { regex: "https://.*[.]shop[.]example" }]
      allowMethods: [GET, POST]
      allowHeaders: [content-type, x-grpc-web]
      exposeHeaders: [grpc-status]
      maxAge: 24h
      allowCredentials: true
    route: [{ destination: { host: web } }]
  - match: [{ uri: { prefix: /own } }]
    corsPolicy: { allowOrigin: ["https://a.example"], unmatchedPreflights: IGNORE }
    route: [{ destination: { host: web } }]
  - match: [{ uri: { exact: /moved } }]
    redirect: { uri: /there, redirectCode: 302 }
  - match: [{ uri: { prefix: /fault } }]
    fault: { abort: { httpStatus: 418, percentage: { value: 100 } }, delay: { fixedDelay: 10ms, percentage: { value: 0.1 } } }
    route: [{ destination: { host: web, subset: v1 } }]
  - match: [{ uri: { prefix: /old/ } }]
    rewrite: { uri: /new/ }
    timeout: 3s
    retries: { attempts: 2, perTryTimeout: 1s, retryOn: "5xx,reset,503" }
    mirror: { host: web }
    headers: { request: { set: { x-a: b }, add: { x-c: d }, remove: [x-e] }, response: { remove: [x-f] } }
    route: [{ destination: { host: web, subset: v1 }, weight: 90 }, { destination: { host: web }, weight: 10, headers: { request: { set: { x-g: h } } } }]
  - route: [{ destination: { host: web } }]
---
apiVersion: v1
kind: Service
metadata: { name: echo }
spec:
  selector: { app: echo }
  ports:
  - { name: grpc, port: 9000 }
  - { name: undeclared, port: 9001, targetPort: 9000 }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: echo-v1 }
spec: { address: 127.0.0.1, ports: { grpc: ${echo.port}, undeclared: ${echo.port} }, labels: { app: echo } }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: echo }
spec:
  host: echo
  trafficPolicy: { connectionPool: { http: { maxConcurrentStreams: 50, http2MaxRequests: 200 } } }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: echo }
spec:
  hosts: [echo]
  http:
  - match: [{ uri: { exact: /test.Echo/Say }, headers: { refuse: { exact: "yes" } } }]
    fault: { abort: { grpcStatus: RESOURCE_EXHAUSTED, percentage: { value: 100 } } }
    route: [{ destination: { host: echo } }]
  - match: [{ uri: { prefix: /test.Echo/ } }]
    timeout: 0.5s
    retries: { attempts: 2, retryOn: "unavailable,cancelled" }
    route: [{ destination: { host: echo } }]
`);
    const metadata = {
      NAME: 'envoy',
      NAMESPACE: 'default',
      MIZZEN_OUTBOUND: `127.0.0.1:${outboundPort}`,
      MIZZEN_INBOUND: [{ name: 'http', port: 9080, listen: `127.0.0.1:${await mesh.ports.next()}`, app: `127.0.0.1:${app}` }],
    };
    const bootstrap = envoyBootstrap('127.0.0.1', metadata, { address: '127.0.0.1', port: mesh.plane.xdsPlainPort! });
    const file = join(mesh.home, 'envoy.json');
    writeFileSync(file, JSON.stringify(bootstrap));
    envoy = spawn('envoy', ['-c', file, '--log-level', 'warning', '--disable-hot-restart', '--concurrency', '1'], { stdio: ['ignore', 'ignore', 'pipe'] });
    envoy.stderr!.on('data', (chunk: Buffer) => (log += chunk));
  });
  after(async () => {
    const exited = once(envoy, 'exit');
    envoy.kill('SIGTERM');
    await exited;
    await mesh.close();
  });

  it('acknowledges clusters, endpoints, listeners and routes, and refuses none', async () => {
    const status = await until(
      'Envoy to be in step',
      async () => mesh.plane.pilot.proxies()[0],
      (proxy) => ['cluster', 'endpoint', 'listener', 'route'].every((type) => proxy?.types[type]?.state === 'synced'),
      60_000,
    ).catch((error: Error) => assert.fail(`${error.message}\n${log.slice(-3000)}`));
    for (const [type, state] of Object.entries(status!.types)) assert.notEqual(state.state, 'nacked', `${type}: ${state.error}`);
  });

  it('routes, answers, redirects, rewrites and aborts as our own sidecar does', async () => {
    // Envoy starts to listen when all secrets are there. A workload's key never leaves the workload, so without an agent of its own this
    // one has none; without mutual TLS it needs none.
    await mesh.apply(
      'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: default, namespace: istio-system }\nspec: { mtls: { mode: DISABLE } }\n',
    );
    const ours = await mesh.proxy('ours', { serviceAccount: 'ours' });
    await ours.proxy.ready;
    const calls: readonly { readonly path: string; readonly headers?: Record<string, string> }[] = [
      { path: '/' },
      { path: '/admin?a=b', headers: { 'x-role': 'user' } },
      { path: '/admin?a=c', headers: { 'x-role': 'user' } },
      { path: '/moved' },
      { path: '/fault' },
      { path: '/old/page?x=1', headers: { 'x-e': 'gone' } },
    ];
    const ask = async (port: number, path: string, headers: Record<string, string> = {}) => {
      const answer = await call({ port, path, headers: { host: 'web:9080', ...headers } });
      const echo = answer.body.startsWith('{') ? (JSON.parse(answer.body) as { url: string; headers: Record<string, string> }) : undefined;
      return {
        status: answer.status,
        location: answer.headers['location'],
        url: echo?.url,
        set: echo?.headers['x-a'],
        added: echo?.headers['x-c'],
        removed: echo?.headers['x-e'],
        body: echo ? undefined : answer.body,
      };
    };
    await until(
      'Envoy to listen',
      () => ask(outboundPort, '/'),
      (answer) => answer.status === 200,
      60_000,
    );
    for (const { path, headers } of calls) assert.deepEqual(await ask(ours.outboundPort, path, headers), await ask(outboundPort, path, headers), path);
    // Browsers of other origins: preflights and calls, of origins that may and that may not.
    const cors = async (port: number) => {
      const answers = [];
      for (const path of ['/shared/x', '/own/x', '/'])
        for (const origin of ['https://shop.example', 'https://eu.shop.example', 'https://evil.example', 'https://a.example', ''])
          for (const preflight of [{}, { 'access-control-request-method': 'POST' }] as Record<string, string>[]) {
            const method = 'access-control-request-method' in preflight ? 'OPTIONS' : 'GET';
            const answer = await call({ port, path, method, headers: { host: 'web:9080', ...(origin ? { origin } : {}), ...preflight } });
            const found = Object.entries(answer.headers).filter(([name]) => name.startsWith('access-control-'));
            answers.push([path, origin, method, answer.status, found.sort(), answer.body.startsWith('{')]);
          }
      return answers;
    };
    const shared = await cors(ours.outboundPort);
    assert.deepEqual(shared[1], [
      '/shared/x',
      'https://shop.example',
      'OPTIONS',
      200,
      [
        ['access-control-allow-credentials', 'true'],
        ['access-control-allow-headers', 'content-type,x-grpc-web'],
        ['access-control-allow-methods', 'GET,POST'],
        ['access-control-allow-origin', 'https://shop.example'],
        ['access-control-expose-headers', 'grpc-status'],
        ['access-control-max-age', '86400'],
      ],
      false,
    ]);
    assert.deepEqual(shared, await cors(outboundPort));
    // gRPC: what comes back, a fault with a status of gRPC, a retry, and a deadline that the route bounds.
    const said = async (port: number, authority: string) => {
      const client = new GrpcClient(port, authority);
      const answers = [];
      for (const metadata of [{}, { refuse: 'yes' }, { fail: '5' }, { fail: '14', 'fail-first': '1' }, { never: '1' }] as Record<string, string>[]) {
        echo.calls = 0;
        const { code, text } = await client.say('x', metadata, 5_000);
        answers.push([code, text, echo.calls]);
      }
      answers.push(await client.count(20), await client.collect([Buffer.alloc(1_000), Buffer.alloc(2_000)]));
      client.close();
      return answers;
    };
    const answers = await said(ours.outboundPort, 'echo:9000');
    assert.deepEqual(
      answers.slice(0, 5).map(([code]) => code),
      [status.OK, status.RESOURCE_EXHAUSTED, status.NOT_FOUND, status.OK, status.DEADLINE_EXCEEDED],
    );
    for (const authority of ['echo:9000', 'echo:9001'])
      assert.deepEqual(await said(outboundPort, authority), await said(ours.outboundPort, authority), authority);
    const [mine, theirs] = await Promise.all([ours.outboundPort, outboundPort].map((port) => call({ port, headers: { host: 'nowhere' } })));
    assert.deepEqual([mine!.status, mine!.body], [theirs!.status, theirs!.body]);
  });
});
