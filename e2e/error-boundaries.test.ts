import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import net, { type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import { createClient } from '@connectrpc/connect';
import { createGrpcTransport, Http2SessionManager } from '@connectrpc/connect-node';
import { clearFaults, errorPlaces, injectFault, internalErrors, logErrorsTo, silentLogger } from '@mizzen/common';
import { homeFiles } from '@mizzen/control';
import { Dapr } from '@mizzen/envoy-api/gen/dapr/proto/runtime/v1/dapr_pb.js';
import { cluster, http as httpFilter, listener, TestEngine, tcp } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { controlPlaces, embeddedPlaces, messagePlaces, proxyPlaces } from './support/injected-places.ts';
import { service, TestMesh } from './support/mesh.ts';
import { MessageMesh, type TestApp } from './support/messaging.ts';

/** Places that traffic of this test enters; the others belong to processes or protocols that it does not run. */
const isEntered = (place: string) => /^(request|http|http1|http2|tcp|listener|turn-end|connection|timer)\b/.test(place);
/** What reaches the process without a boundary. */
class UnattributedErrors {
  readonly errors: unknown[] = [];
  readonly #notice = (error: unknown) => void this.errors.push(error);

  start(): void {
    process.on('uncaughtException', this.#notice);
    process.on('unhandledRejection', this.#notice);
  }

  stop(): void {
    process.off('uncaughtException', this.#notice);
    process.off('unhandledRejection', this.#notice);
  }
}

describe('an exception at any error boundary', () => {
  const engine = new TestEngine();
  const upstream = http.createServer((request, response) => request.resume().on('end', () => response.end('ok')));
  const raw = net.createServer((socket) => {
    socket.on('error', () => {});
    socket.pipe(socket);
  });
  let port: number;
  let tcpPort: number;
  let h2Port: number;
  let adminPort: number;
  const unattributed = new UnattributedErrors();

  before(async () => {
    logErrorsTo(silentLogger);
    unattributed.start();
    for (const server of [upstream, raw]) {
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
    }
    [port, tcpPort, h2Port] = [await engine.ports.next(), await engine.ports.next(), await engine.ports.next()];
    const started = await engine.start({
      listeners: [listener('http', port, httpFilter('app')), listener('h2', h2Port, httpFilter('mesh')), listener('tcp', tcpPort, tcp('raw'))],
      clusters: [
        cluster('app', [(upstream.address() as AddressInfo).port]),
        cluster('mesh', [port], {
          typed_extension_protocol_options: {
            'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
              '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
              explicit_http_config: { http2_protocol_options: {} },
            },
          },
        }),
        cluster('raw', [(raw.address() as AddressInfo).port]),
      ],
    });
    adminPort = started.adminPort!;
  });
  afterEach(clearFaults);
  after(async () => {
    await engine.close();
    upstream.closeAllConnections();
    upstream.close();
    raw.close();
    unattributed.stop();
  });

  /** What one round of traffic came to: statuses, or 'closed'. */
  async function round(): Promise<string[]> {
    const overHttp1 = call({ port, method: 'POST', path: '/', body: 'content' }).then(
      ({ status }) => String(status),
      () => 'closed',
    );
    return Promise.all([overHttp1, overHttp2(h2Port), overTcp(tcpPort)]);
  }

  it('leaves the process, the next requests and the count of its place intact', async () => {
    assert.deepEqual(await round(), ['200', '200', 'echoed']);
    for (const place of errorPlaces().filter((name) => isEntered(name) && !injectedElsewhere.has(name))) {
      const before = internalErrors().get(place) ?? 0;
      injectFault(place, 1);
      for (let attempt = 0; (internalErrors().get(place) ?? 0) === before && attempt < 20; attempt++) {
        await round();
        if (place.includes('sweep') || place.startsWith('timer')) await new Promise((resolve) => setTimeout(resolve, 100));
      }
      assert.equal(internalErrors().get(place), before + 1, `${place} was not entered`);
      clearFaults();
      assert.deepEqual(await round(), ['200', '200', 'echoed'], `after a fault at ${place}`);
    }
    assert.deepEqual(unattributed.errors, []);
    const metrics = await engine.metrics(adminPort);
    assert.match(metrics, /mizzen_internal_errors_total\{place="request\.start"\} 1/);
  });
});

/** Entered by the traffic of a small mesh: a control plane, two sidecars with mutual TLS, probes, the API and its watches. */
const meshPlaces = [
  ...[
    'ads.resources',
    'ads.stream',
    'admin.request',
    'api.request',
    'api.unread',
    'api.watch',
    'gateway-api.status',
    'grpc.client',
    'grpc.connection',
    'grpc.request',
  ],
  ...['pilot.push', 'probe', 'public.request', 'server.connection', 'store.check', 'store.watcher', 'tls.handshake', 'tls.server'],
  ...['timer.overload', 'xds.stream', 'xds.turns'],
];

/** By tests of their own. */
const injectedElsewhere: ReadonlySet<string> = new Set([...controlPlaces, ...proxyPlaces, ...messagePlaces]);

describe('an exception at the boundaries of a mesh', () => {
  let mesh: TestMesh;
  let healthPort: number;
  let adminPort: number;
  let outboundPort: number;
  let objects = 0;
  const unattributed = new UnattributedErrors();

  before(async () => {
    logErrorsTo(silentLogger);
    unattributed.start();
    mesh = await TestMesh.start({ storeCheckMs: 50 });
    healthPort = await mesh.ports.next();
    await mesh.apply(service('server'));
    const probed = await mesh.application('probed');
    const server = await mesh.workload('server', { fields: { healthPort, probe: { port: probed, path: '/', periodMs: 20 } } });
    adminPort = server.adminPort;
    outboundPort = (await mesh.workload('client')).outboundPort;
  });
  afterEach(clearFaults);
  after(async () => {
    await mesh.close();
    unattributed.stop();
  });

  const api = (path: string, method = 'GET', body?: unknown) =>
    new Promise<number>((resolve) => {
      const headers = { 'content-type': 'application/json', connection: 'close' };
      const request = http.request({ socketPath: homeFiles(mesh.home).apiSocket, method, path, headers, agent: false }, (response) => {
        response.resume().on('error', () => {});
        resolve(response.statusCode ?? 0);
        if (path.includes('watch')) setTimeout(() => request.destroy(), 100);
      });
      request.on('error', () => resolve(0));
      request.end(body === undefined ? undefined : JSON.stringify(body));
    });

  /** One of everything that the mesh serves; true: all of it worked. */
  async function round(): Promise<boolean> {
    const path = '/api/v1/namespaces/default/configmaps';
    const watching = api(`${path}?watch=true&timeoutSeconds=1`);
    const name = `object-${++objects}`;
    const statuses = await Promise.all([
      call({ port: outboundPort, headers: { host: 'server:9080', connection: 'close' } }).then(
        ({ status }) => status,
        () => 0,
      ),
      call({ port: adminPort, path: '/stats/prometheus', headers: { host: '127.0.0.1' } }).then(
        ({ status }) => status,
        () => 0,
      ),
      call({ port: healthPort, path: '/healthz/ready' }).then(
        ({ status }) => status,
        () => 0,
      ),
      api(path, 'POST', { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name } }),
      api('/apis/networking.istio.io/v1/namespaces/default/serviceentries', 'POST', {
        ...{ apiVersion: 'networking.istio.io/v1', kind: 'ServiceEntry', metadata: { name } },
        spec: { hosts: [`${name}.example`], ports: [{ number: 80, name: 'http', protocol: 'HTTP' }], resolution: 'DNS' },
      }),
      watching,
    ]);
    return statuses.every((status) => status >= 200 && status < 300);
  }

  for (const place of meshPlaces)
    it(`is counted as ${place}, and the mesh serves again`, async () => {
      const before = internalErrors().get(place) ?? 0;
      injectFault(place, 1);
      const deadline = Date.now() + 20_000;
      while ((internalErrors().get(place) ?? 0) === before && Date.now() < deadline) {
        await round();
        if (['ads.stream', 'grpc.client', 'grpc.request', 'grpc.connection', 'tls.handshake', 'tls.server'].includes(place))
          mesh.plane.pilot.connections()[0]?.responses.close();
      }
      clearFaults();
      assert.equal(internalErrors().get(place), before + 1, `${place} was not entered`);
      let isServing = false;
      while (!(isServing = await round()) && Date.now() < deadline) await mesh.plane.pilot.refresh();
      assert.ok(isServing, `after a fault at ${place}`);
      assert.deepEqual(unattributed.errors, []);
    });

  it('is injected at every boundary of the code', () => {
    const isSource = (name: string) => name.endsWith('.ts') && !name.endsWith('.test.ts') && !name.includes('node_modules') && !name.includes('/gen/');
    const root = join(import.meta.dirname, '../packages');
    const sources = readdirSync(root, { recursive: true, encoding: 'utf8' }).filter(isSource);
    const found = new Set(
      sources.flatMap((name) => [...readFileSync(join(root, name), 'utf8').matchAll(/errorBoundary\('([^']+)'\)/g)].map((match) => match[1]!)),
    );
    assert.ok(found.size > 80);
    const isTested = (place: string) => meshPlaces.includes(place) || injectedElsewhere.has(place) || isEntered(place);
    assert.deepEqual(
      [...found].filter((place) => !isTested(place)),
      [],
      'each boundary has a test that injects a fault there',
    );
    assert.deepEqual(
      [...meshPlaces, ...injectedElsewhere].filter((place) => !found.has(place)),
      [],
      'each place of a list is a boundary',
    );
  });
});

/** What the application of the test does with the messages of each topic. */
const topics = ['orders', 'many', 'retried', 'doomed'] as const;

describe('an exception at the boundaries of the message mesh', () => {
  let mesh: MessageMesh;
  let app: TestApp;
  const acknowledged: string[] = [];
  const delivered = new Set<string>();
  const unattributed = new UnattributedErrors();

  before(async () => {
    logErrorsTo(silentLogger);
    unattributed.start();
    mesh = await MessageMesh.start({ retentionEveryMs: 20 });
    await mesh.mesh.apply(`${mesh.component('bus')}${service('shop')}`);
    const attempts = new Map<string, number>();
    app = await mesh.app('shop', {
      subscriptions: [
        { pubsubname: 'bus', topic: 'orders', route: '/orders' },
        { pubsubname: 'bus', topic: 'many', route: '/many', bulkSubscribe: { enabled: true, maxMessagesCount: 10, maxAwaitDurationMs: 5 } },
        { pubsubname: 'bus', topic: 'retried', route: '/retried' },
        { pubsubname: 'bus', topic: 'doomed', route: '/doomed', deadLetterTopic: 'dead' },
        { pubsubname: 'bus', topic: 'dead', route: '/dead' },
      ],
      answer({ path, event }, response) {
        const nameOf = (of: Record<string, unknown>) => (of['data'] as { name: string }).name;
        if (path === '/many') {
          const entries = event['entries'] as { entryId: string; event: Record<string, unknown> }[];
          for (const entry of entries) delivered.add(nameOf(entry.event));
          return void response.end(JSON.stringify({ statuses: entries.map(({ entryId }) => ({ entryId, status: 'SUCCESS' })) }));
        }
        const attempt = (attempts.get(nameOf(event)) ?? 0) + 1;
        attempts.set(nameOf(event), attempt);
        if (path === '/doomed' || (path === '/retried' && attempt === 1)) return void response.writeHead(500).end();
        delivered.add(nameOf(event));
        response.end();
      },
    });
  });
  afterEach(clearFaults);
  after(async () => {
    await mesh.mesh.close();
    unattributed.stop();
  });

  /** Publishes a message to every topic, by HTTP and by gRPC, and remembers those that the mesh has accepted. */
  async function publish(): Promise<void> {
    const baseUrl = `http://127.0.0.1:${app.sidecar.grpcPort}`;
    const sessionManager = new Http2SessionManager(baseUrl);
    const client = createClient(Dapr, createGrpcTransport({ baseUrl, sessionManager }));
    const over = {
      http: (topic: string, body: string) => app.publish('bus', topic, body).then(({ status }) => status < 300),
      grpc: (topic: string, body: string) =>
        client.publishEvent({ pubsubName: 'bus', topic, data: Buffer.from(body), dataContentType: 'application/json' }, { timeoutMs: 2_000 }).then(() => true),
    };
    await Promise.all(
      topics.flatMap((topic) =>
        (['http', 'grpc'] as const).map(async (protocol) => {
          const name = `${topic}-${Math.random()}`;
          if (await over[protocol](topic, JSON.stringify({ name })).catch(() => false)) acknowledged.push(name);
        }),
      ),
    );
    sessionManager.abort();
  }

  for (const place of embeddedPlaces)
    it(`is counted as ${place}, and no message that was accepted is lost`, async () => {
      const before = internalErrors().get(place) ?? 0;
      injectFault(place, 1);
      await until(
        `a fault at ${place}`,
        async () => {
          await publish();
          return internalErrors().get(place) ?? 0;
        },
        (count) => count === before + 1,
      );
      clearFaults();
      const count = acknowledged.length;
      await until(
        'messages to be accepted again',
        async () => {
          await publish();
          return acknowledged.length;
        },
        (found) => found >= count + 2 * topics.length,
      );
      await until(
        'every accepted message',
        async () => acknowledged.filter((name) => !delivered.has(name)),
        (missing) => missing.length === 0,
      );
      assert.equal(internalErrors().get(place), before + 1);
      assert.deepEqual(unattributed.errors, []);
    });
});

async function overHttp2(port: number): Promise<string> {
  const session = http2.connect(`http://127.0.0.1:${port}`);
  try {
    return await new Promise<string>((resolve) => {
      session.on('error', () => resolve('closed'));
      session.on('close', () => resolve('closed'));
      const stream = session.request({ ':path': '/' });
      let status = 'closed';
      stream.on('response', (headers) => {
        status = String(headers[':status']);
      });
      stream.on('error', () => resolve('closed'));
      stream.on('close', () => resolve(status));
      stream.resume().end();
    });
  } finally {
    session.destroy();
  }
}

async function overTcp(port: number): Promise<string> {
  const socket = net.connect(port, '127.0.0.1');
  try {
    return await new Promise<string>((resolve) => {
      socket.on('error', () => resolve('closed'));
      socket.on('close', () => resolve('closed'));
      socket.on('data', () => resolve('echoed'));
      socket.write('ping');
    });
  } finally {
    socket.destroy();
  }
}
