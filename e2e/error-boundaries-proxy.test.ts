import assert from 'node:assert/strict';
import { createHash, scryptSync } from 'node:crypto';
import dgram from 'node:dgram';
import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import type net from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it, mock } from 'node:test';
import { connect as connectTls, TLSSocket } from 'node:tls';
import { create, toBinary } from '@bufbuild/protobuf';
import { ErrorBoundary, errorBoundary, injectFault, internalErrors, logErrorsTo, silentLogger } from '@mizzen/common';
import { callHttps } from '@mizzen/common/https-call';
import { NameTableSchema } from '@mizzen/envoy-api/gen/istio/networking/nds/v1/nds_pb.js';
import { ConsumerListSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { compileBootstrap, startStaticProxy } from '@mizzen/proxy';
import { MemoryCounters } from '../packages/control/rate-limit/limit-counters.ts';
import { RedisCounters } from '../packages/control/rate-limit/redis-counters.ts';
import { DnsServer } from '../packages/proxy/dns/dns-server.ts';
import { NameTable } from '../packages/proxy/dns/name-table.ts';
import { Engine } from '../packages/proxy/engine.ts';
import { SealedCookies } from '../packages/proxy/filters/login/sealed-cookies.ts';
import { defaultOverloadSettings } from '../packages/proxy/overload/overload-manager.ts';
import { unknownPeer } from '../packages/proxy/telemetry/peer-metadata.ts';
import { ProxyCounters } from '../packages/proxy/telemetry/proxy-counters.ts';
import { DnsAddresses } from '../packages/proxy/upstream/dns-addresses.ts';
import type { Endpoint } from '../packages/proxy/upstream/endpoint.ts';
import { BrokerProcess } from './support/brokers.ts';
import { TestAuthority } from './support/certificates.ts';
import { bootstrap, clientTls, cluster, http as httpFilter, type Json, listener, RawClient, socketAddress, TestEngine, typed } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { proxyPlaces } from './support/injected-places.ts';
import { skipWithout } from './support/requirements.ts';

type Place = (typeof proxyPlaces)[number];
/** The other is entered after another failure only, and has a test of its own. */
type TrafficPlace = Exclude<Place, 'turn-end.close'>;
/** One round of what enters a place. It rejects when it was not served; that it waits for ever is the defect that is looked for. */
type Traffic = () => Promise<unknown>;

const maxTrafficMs = 12_000;
const maxRounds = 10;
/** How often one round of traffic enters a place; each entry throws once. */
const entriesOf: Partial<Record<Place, number>> = {
  ...{ 'access-log': 4, 'dns.forward': 12, 'dns.query': 6, 'dns.refresh': 2, 'health-check': 6, 'https.call': 4, 'listener.inspection': 2, 'listener.open': 2 },
  ...{ 'own-request': 3, 'rate-limit.sweep': 2, 'request.timer': 2, 'tls.client': 4, 'tls.renew': 2, 'udp.datagram': 3 },
};
/** Places whose own traffic is served in spite of the exception: what it ended is tried again. */
const recovering: readonly Place[] = ['access-log', 'dns.refresh', 'listener.open', 'login', 'rate-limit.sweep', 'tls.renew', 'tracing.export'];
/** Places that the traffic of each other enters. */
const shared: readonly (readonly TrafficPlace[])[] = [
  ['own-request', 'request.filter', 'tracing.export', 'authentication.password'],
  ['https.call', 'login'],
  ['listener.open', 'access-log'],
  ['tls.client', 'request.onUpstreamFailure'],
];
const secretOfCookies = 'of the cookies, which has 32 bytes or more';
const router = typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router');
const own = (name: string, type: string, more: Json = {}) => ({
  name: `mizzen.filters.http.${name}`,
  typed_config: { '@type': `type.googleapis.com/mizzen.http.v1.${type}`, ...more },
});
const perRoute = (name: string, type: string, more: Json) => ({
  typed_per_filter_config: { [`mizzen.filters.http.${name}`]: { '@type': `type.googleapis.com/mizzen.http.v1.${type}`, ...more } },
});

describe('an exception at a boundary of the proxy', () => {
  const folder = new TestEngine();
  const escaped: unknown[] = [];
  const notice = (error: unknown) => void escaped.push(error);
  const holds: http.ServerResponse[] = [];
  const seen = new Set<string>();
  const tables: DnsServer[] = [];
  const extra = new Map<string, Json>();
  let checks = 0;
  let connections = 0;
  let exports = 0;
  let refreshes = 0;
  let names = 0;
  let questions = 0;
  let engine: Engine;
  let redis: BrokerProcess | undefined;
  let authority: TestAuthority;
  let certificates: readonly { readonly cert: string; readonly key: string }[];
  let certificate = 0;
  let appPorts: [number, number];
  let busyPort: number;
  let tlsPort: number;
  let tcpPort: number;
  let gonePort: number;
  let udpServerPort: number;
  let dnsPort: number;
  let providerPort: number;
  const ports = { main: 0, authorized: 0, own: 0, inspected: 0, renewed: 0, traced: 0, udp: 0 };

  const count = (place: Place) => internalErrors().get(place) ?? 0;
  const status = async (port: number, path: string, headers: Readonly<Record<string, string>> = {}) =>
    (await call({ port, path, headers: { connection: 'close', ...headers } })).status;
  const expect = async (expected: number, port: number, path: string, headers?: Readonly<Record<string, string>>) =>
    assert.equal(await status(port, path, headers), expected, path);

  before(async () => {
    logErrorsTo(silentLogger);
    process.on('uncaughtException', notice);
    process.on('unhandledRejection', notice);
    for (const place of ['access-log', 'listener.open', 'login', 'tls.renew', 'tracing.export'] as const) hasten(place);
    redis = skipWithout('redis-server') === false ? await BrokerProcess.redis() : undefined;
    appPorts = [await listening(http.createServer(app).on('upgrade', upgraded)), await listening(http.createServer(app))];
    [busyPort] = appPorts;
    authority = new TestAuthority(folder.folder);
    certificates = [0, 1].map((i) => authority.issue(`server-${i}`, ['DNS:server.test', 'IP:127.0.0.1']));
    const { cert, key } = certificates[0]!;
    tlsPort = await listening(https.createServer({ cert: readFileSync(cert), key: readFileSync(key) }, app));
    tcpPort = await folder.server((socket) => {
      connections++;
      socket.resume();
    });
    gonePort = await folder.ports.next();
    providerPort = await listening(http.createServer(provider));
    const echo = dgram.createSocket('udp4');
    echo.on('message', (data, from) => echo.send(data, from.port, from.address)).bind(0, '127.0.0.1');
    await once(echo, 'listening');
    folder.onClose(() => echo.close());
    udpServerPort = echo.address().port;
    dnsPort = await nameServers();
    for (const name of ['main', 'authorized', 'own', 'inspected', 'renewed', 'traced', 'udp'] as const) ports[name] = await folder.ports.next();
    engine = new Engine({
      ...{ self: unknownPeer, selfId: 'sidecar~127.0.0.1~test~', overload: defaultOverloadSettings, opensListeners: true, reusesPort: false },
      ...{ expectsSockets: false, drainMs: 200, logger: silentLogger },
    });
    for (const type of ['secret', 'cluster', 'listener'] as const) accept(type);
    await engine.ready;
  });
  after(async () => {
    mock.restoreAll();
    for (const response of holds) response.end();
    await engine.close(0, 0);
    await Promise.all(tables.map((server) => server.close()));
    await folder.close();
    await redis?.close();
    process.off('uncaughtException', notice);
    process.off('unhandledRejection', notice);
    assert.deepEqual(escaped, [], 'nothing went past the boundaries');
  });

  async function listening(server: http.Server | https.Server): Promise<number> {
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    folder.onClose(() => {
      server.closeAllConnections();
      server.close();
    });
    return (server.address() as AddressInfo).port;
  }

  function app(request: http.IncomingMessage, response: http.ServerResponse): void {
    const { url = '', headers } = request;
    if (url === '/health') checks++;
    if (url === '/v1/traces') exports++;
    if (url === '/silent') return;
    if (headers['x-hold'] !== undefined) return void holds.push(response);
    if (url === '/hints') response.writeEarlyHints({ link: '</style.css>; rel=preload' });
    if (request.socket instanceof TLSSocket) response.setHeader('connection', 'close');
    // The first try of each call fails.
    const id = String(headers['x-call']);
    const isFirst = url === '/flaky' && !seen.has(id);
    seen.add(id);
    request.resume().on('end', () => response.writeHead(isFirst ? 503 : 200).end('ok'));
  }

  function upgraded(_request: http.IncomingMessage, socket: net.Socket): void {
    socket.on('error', () => {});
    socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n');
    socket.pipe(socket);
  }

  /** Enough of an OpenID provider for the refresh of a session. */
  function provider(request: http.IncomingMessage, response: http.ServerResponse): void {
    const issuer = `http://127.0.0.1:${providerPort}`;
    if (request.url === '/token') refreshes++;
    const answer =
      request.url === '/token'
        ? { access_token: 'access', token_type: 'Bearer', expires_in: 3_600 }
        : { issuer, authorization_endpoint: `${issuer}/authorize`, token_endpoint: `${issuer}/token`, jwks_uri: `${issuer}/jwks` };
    request.resume().on('end', () => response.setHeader('content-type', 'application/json').end(JSON.stringify(answer)));
  }

  /** A DNS proxy that knows `own.test`, before one that knows the rest; names that begin with `large` do not fit into a datagram. */
  async function nameServers(): Promise<number> {
    const [front, behind] = [await folder.ports.next(), await folder.ports.next()];
    const ips = (many: boolean) => Array.from({ length: many ? 60 : 1 }, (_, i) => `192.0.2.${i + 1}`);
    const outside = Array.from({ length: 200 }, (_, i) => [
      [`large${i}.test`, { ips: ips(true) }] as const,
      [`n${i}.test`, { ips: ips(false) }] as const,
    ]).flat();
    for (const [port, table, upstream] of [
      [front, { 'own.test': { ips: ips(false) } }, behind],
      [behind, Object.fromEntries(outside), front],
    ] as const) {
      const server = new DnsServer({
        ...{ port, addresses: ['127.0.0.1'], upstreamServers: () => [`127.0.0.1:${upstream}`], upstreamTimeoutMs: 50 },
        ...{ counters: new ProxyCounters(), logger: silentLogger },
      });
      server.use(new NameTable(create(NameTableSchema, { table }), 'default', []));
      await server.listen();
      tables.push(server);
    }
    return front;
  }

  function resources(): Parameters<typeof bootstrap>[0] {
    const [app] = appPorts;
    const tls = (more: Json) => ({
      ...clientTls({ validation_context: { trusted_ca: { filename: authority.certificate } } }, { sni: 'server.test', ...more }),
    });
    const checked = (check: Json) => ({ health_checks: [{ interval: '0.02s', timeout: '0.3s', unhealthy_threshold: 1, healthy_threshold: 1, ...check }] });
    const salt = Buffer.alloc(16);
    const consumers = toBinary(
      ConsumerListSchema,
      create(ConsumerListSchema, {
        consumers: [
          {
            name: 'test/alice',
            credentials: [
              {
                name: 'test/alice',
                kind: {
                  case: 'basic',
                  value: {
                    username: 'alice',
                    passwordHash: `scrypt$1024$8$1$${salt.toString('base64')}$${scryptSync('right', salt, 32, { N: 1024 }).toString('base64')}`,
                  },
                },
              },
            ],
          },
        ],
      }),
    );
    const secret = (name: string, bytes: Uint8Array) => ({ name, generic_secret: { secret: { inline_bytes: Buffer.from(bytes).toString('base64') } } });
    const route = (path: string, to: string, more: Json = {}, other: Json = {}) => ({
      ...{ match: { prefix: path }, route: { cluster: to, timeout: '0s', ...more }, ...other },
    });
    return {
      secrets: [
        { name: 'served', tls_certificate: { certificate_chain: { filename: certificates[0]!.cert }, private_key: { filename: certificates[0]!.key } } },
        secret('consumers', consumers),
        secret('cookies', Buffer.from(secretOfCookies)),
      ],
      clusters: [
        cluster('app', [app]),
        cluster('gone', [gonePort]),
        cluster('busy', [busyPort], { circuit_breakers: { thresholds: [{ max_connections: 1 }] } }),
        cluster('full', [tlsPort], tls({ max_session_keys: 0 })),
        cluster('resumed', [tlsPort], tls({})),
        cluster('checked', [app], checked({ http_health_check: { path: '/health' } })),
        cluster('checked-tcp', [tcpPort], checked({ tcp_health_check: {} })),
        cluster('udp', [udpServerPort]),
      ],
      listeners: [
        listener(
          'main',
          ports.main,
          httpFilter('app', { upgrade_configs: [{ upgrade_type: 'websocket' }] }, {}, [
            route('/flaky', 'app', { retry_policy: { retry_on: '5xx', num_retries: 2, retry_back_off: { base_interval: '0.005s' } } }),
            route('/silent', 'app', { timeout: '0.03s' }),
            route('/gone', 'gone'),
            route('/busy', 'busy'),
            route('/full', 'full'),
            route('/resumed', 'resumed'),
            route('/checked', 'checked'),
          ]),
        ),
        listener(
          'authorized',
          ports.authorized,
          httpFilter('app', {
            http_filters: [
              typed('envoy.filters.http.ext_authz', 'extensions.filters.http.ext_authz.v3.ExtAuthz', {
                transport_api_version: 'V3',
                http_service: { server_uri: { uri: 'http://authz', cluster: 'app', timeout: '1s' } },
              }),
              router,
            ],
          }),
        ),
        listener(
          'own',
          ports.own,
          httpFilter('app', { http_filters: [own('login', 'LoginPerRoute'), own('authentication', 'Authentication'), router] }, {}, [
            route('/password', 'app', {}, perRoute('authentication', 'AuthenticationPerRoute', { basic: {}, consumers: [{ name: 'consumers' }] })),
            route(
              '/login',
              'app',
              {},
              perRoute('login', 'LoginPerRoute', {
                ...{ name: 'test/login', issuer: `http://127.0.0.1:${providerPort}`, client_id: 'test', scopes: ['openid'] },
                ...{
                  callback_path: '/callback',
                  logout_path: '/logout',
                  session_seconds: 3_600,
                  cookie_secret: { name: 'cookies' },
                  allowed_fetch_hosts: ['127.0.0.1'],
                },
              }),
            ),
          ]),
        ),
        listener('inspected', ports.inspected, httpFilter('app'), {
          listener_filters: [typed('envoy.filters.listener.http_inspector', 'extensions.filters.listener.http_inspector.v3.HttpInspector')],
          listener_filters_timeout: '0.03s',
        }),
        listener(
          'traced',
          ports.traced,
          httpFilter('app', {
            tracing: {
              provider: typed('envoy.tracers.opentelemetry', 'config.trace.v3.OpenTelemetryConfig', {
                http_service: { http_uri: { uri: 'http://collector/v1/traces', cluster: 'app', timeout: '1s' } },
              }),
            },
          }),
        ),
        listener(
          'renewed',
          ports.renewed,
          httpFilter('app'),
          {},
          {
            transport_socket: typed('envoy.transport_sockets.tls', 'extensions.transport_sockets.tls.v3.DownstreamTlsContext', {
              common_tls_context: { tls_certificate_sds_secret_configs: [{ name: 'served' }] },
            }),
          },
        ),
        udpListener('udp', ports.udp),
        ...extra.values(),
      ],
    };
  }

  const udpListener = (name: string, port: number): Json => ({
    ...{ name, address: socketAddress(port, '127.0.0.1', 'UDP') },
    listener_filters: [
      typed('envoy.filters.udp_listener.udp_proxy', 'extensions.filters.udp.udp_proxy.v3.UdpProxyConfig', { stat_prefix: name, cluster: 'udp' }),
    ],
  });

  function accept(type: 'secret' | 'cluster' | 'listener'): void {
    engine.accept(type, compileBootstrap(bootstrap(resources()), 'test').resources.find(([of]) => of === type)![1]);
  }

  async function datagram(port: number): Promise<void> {
    const client = dgram.createSocket('udp4').on('error', () => {});
    try {
      client.send('ping', port, '127.0.0.1');
      await once(client, 'message', { signal: AbortSignal.timeout(100) });
    } finally {
      client.close();
    }
  }

  async function overTcp(name: string): Promise<void> {
    const question = Buffer.concat([
      ...[Buffer.from([0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]), ...name.split('.').map((label) => Buffer.from([label.length, ...Buffer.from(label)]))],
      Buffer.from([0, 0, 1, 0, 1]),
    ]);
    const client = new RawClient(dnsPort).write(Buffer.concat([Buffer.from([0, question.length]), question]));
    await client.until(/\xc0\x00\x02\x01$/, 200).finally(() => client.destroy());
  }

  async function resolve(name: string): Promise<void> {
    const resolver = new Resolver({ timeout: 200, tries: 1 });
    resolver.setServers([`127.0.0.1:${dnsPort}`]);
    await resolver.resolve4(name);
  }

  const traffic: Readonly<Record<TrafficPlace, Traffic>> = {
    'access-log': async () => {
      const [name, port] = [`logged-${++names}`, await folder.ports.next()];
      const file = join(folder.folder, name);
      const log = typed('envoy.access_loggers.file', 'extensions.access_loggers.file.v3.FileAccessLog', { path: file });
      extra.set(name, listener(name, port, httpFilter('app', { access_log: [log] })));
      accept('listener');
      for (const path of ['/first', '/second']) {
        await until(
          path,
          () => status(port, path),
          (found) => found === 200,
        );
        await until(
          'the line',
          async () => existsSync(file) && readFileSync(file, 'utf8'),
          (text) => text !== false && text.includes(path),
          5_000,
        );
      }
    },
    'authentication.password': async () => {
      await expect(401, ports.own, '/password', { authorization: `Basic ${Buffer.from('alice:wrong').toString('base64')}` });
      await expect(200, ports.own, '/password', { authorization: `Basic ${Buffer.from('alice:right').toString('base64')}` });
    },
    'dns.forward': async () => {
      // A question that was not answered is asked again.
      await resolve(`large${questions}.test`);
      await resolve(`n${questions}.test`);
      questions++;
    },
    'dns.query': async () => {
      await resolve('own.test');
      await overTcp('own.test');
    },
    'dns.refresh': async () => {
      let lookups = 0;
      const found: string[] = [];
      const lookup = async () => [{ address: `192.0.2.${++lookups}`, family: 4 }];
      const addresses = new DnsAddresses(['db.test'], { refreshMs: 5, respectsTtl: false, family: 'v4' }, (all) => found.push(...all.get('db.test')!), lookup);
      await until(
        'three refreshes',
        async () => found.length,
        (length) => length >= 3,
      ).finally(() => addresses.close());
    },
    'health-check': async () => {
      const [overHttp, overTcp] = [checks + 2, connections + 2];
      const sweeper = setInterval(() => engine.state.sweep(performance.now()), 5);
      await until('the next checks', async () => checks >= overHttp && connections >= overTcp, Boolean, 2_000).finally(() => clearInterval(sweeper));
      await expect(200, ports.main, '/checked');
    },
    'https.call': async () => {
      const ca = authority.pem(authority.certificate);
      const signal = AbortSignal.timeout(1_000);
      const answer = await callHttps(`https://127.0.0.1:${tlsPort}/`, { ca, policy: undefined, signal, maxBytes: 100 });
      assert.equal(answer.text, 'ok');
    },
    'listener.inspection': async () => {
      await expect(200, ports.inspected, '/');
      await new RawClient(ports.inspected).closed(1_000);
    },
    'listener.open': async () => {
      const [name, port] = [`opened-${++names}`, await folder.ports.next()];
      extra.set(name, udpListener(name, port));
      accept('listener');
      await until('the port to open', () => datagram(port).then(() => true), Boolean, 5_000);
      extra.delete(name);
      accept('listener');
      await until('the port to close', () => bound(port), Boolean, 5_000);
    },
    login: async () => {
      const issuer = `http://127.0.0.1:${providerPort}`;
      const session = { id: `session-${++names}`, claims: { sub: 'alice' }, endsAt: Date.now() + 3_600_000, refreshAt: 1, refreshToken: `token-${names}` };
      const sealed = new SealedCookies(secretOfCookies, JSON.stringify([issuer, 'test', 'test/login'])).seal('session', session);
      const cookie = `mizzen-session-${createHash('sha256').update('test/login').digest('hex').slice(0, 8)}=${sealed}`;
      const before = refreshes;
      await expect(200, ports.own, '/login', { cookie });
      // What the provider responded is forgotten after its time, and it is asked again.
      await until('another refresh', async () => (await status(ports.own, '/login', { cookie })) === 200 && refreshes >= before + 2, Boolean, 5_000);
    },
    'own-request': () => expect(200, ports.authorized, '/'),
    proxy: async () => {
      const proxy = await startStaticProxy({ ...compileBootstrap(bootstrap({ listeners: [], clusters: [] }), 'test'), drainMs: 0 }, silentLogger);
      await proxy.ready;
      await new Promise((resolve) => setImmediate(resolve));
      await proxy.close();
    },
    'rate-limit.redis': async () => {
      if (redis === undefined) return;
      const counters = new RedisCounters(`127.0.0.1:${redis.port}`, silentLogger);
      const key = `key-${++names}`;
      const add = () => counters.add([{ key, hits: 1, seconds: 60 }]);
      await until('a count', add, ([found]) => found! >= 2, 1_000).finally(() => counters.close());
    },
    'rate-limit.sweep': async () => {
      const boundary = errorBoundary('rate-limit.sweep');
      const every = mock.method(boundary, 'every', (_ms: number, work: () => void) => ErrorBoundary.prototype.every.call(boundary, 5, work));
      let sweeps = 0;
      const counters = new MemoryCounters(() => ++sweeps);
      every.mock.restore();
      await until(
        'three sweeps',
        async () => sweeps,
        (found) => found >= 3,
      ).finally(() => counters.close());
    },
    'request.filter': () => expect(200, ports.authorized, '/'),
    'request.onEndpointRemoved': async () => {
      const held = holds.length;
      const first = status(ports.main, '/busy', { 'x-hold': 'yes' }).catch(() => 0);
      try {
        await until(
          'the connection',
          async () => holds.length,
          (found) => found > held,
          5_000,
        );
        const queued = status(ports.main, '/busy');
        await until(
          'the queue',
          async () => engine.findCluster('busy')!.pendingRequests,
          (found) => found === 1,
          5_000,
        );
        busyPort = busyPort === appPorts[0] ? appPorts[1] : appPorts[0];
        accept('cluster');
        assert.equal(await queued, 200);
      } finally {
        for (const response of holds) response.end();
        await first;
      }
      assert.equal(engine.findCluster('busy')!.pendingRequests, 0);
    },
    'request.onInformational': async () => {
      const request = http.get({ port: ports.main, path: '/hints', agent: false });
      const hints = once(request, 'information', { signal: AbortSignal.timeout(500) });
      hints.catch(() => {});
      const [response] = (await once(request, 'response')) as [http.IncomingMessage];
      response.resume().on('error', () => {});
      assert.equal(response.statusCode, 200);
      await hints;
    },
    'request.onTunnel': async () => {
      const client = new RawClient(ports.main).write('GET /socket HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n');
      await client.until(/101 .*\r\n\r\n/s, 1_000);
      await client.write('echo').until(/echo$/, 1_000);
      client.destroy();
    },
    'request.onUpstreamFailure': () => expect(503, ports.main, '/gone'),
    'request.timer': async () => {
      await expect(200, ports.main, '/flaky', { 'x-call': String(++names) });
      await expect(504, ports.main, '/silent');
    },
    'tls.client': async () => {
      await expect(200, ports.main, '/full');
      await expect(200, ports.main, '/resumed');
    },
    'tls.renew': async () => {
      certificate = certificate === 0 ? 1 : 0;
      const { cert, key } = certificates[certificate]!;
      engine.secrets.setKeyPair('served', { cert: authority.pem(cert), key: authority.pem(key) });
      const ca = authority.pem(authority.certificate);
      const servedName = () =>
        new Promise<string>((resolve, reject) => {
          const socket = connectTls({ port: ports.renewed, host: '127.0.0.1', ca, checkServerIdentity: () => undefined }, () => {
            resolve(socket.getPeerCertificate().subject.CN as string);
            socket.destroy();
          }).on('error', reject);
        });
      await until('the renewed certificate', servedName, (found) => found === `server-${certificate}`, 5_000);
    },
    'tracing.export': async () => {
      const before = exports;
      await expect(200, ports.traced, '/');
      await until(
        'the spans',
        async () => exports,
        (found) => found > before,
        5_000,
      );
    },
    'udp.datagram': () => datagram(ports.udp),
  };

  describe('while other traffic flows', { concurrency: true }, () => {
    for (const group of groups())
      describe(group.join(', '), () => {
        for (const place of group) {
          const enter = traffic[place];
          const skip = place === 'rate-limit.redis' && skipWithout('redis-server');
          it(`is counted as ${place}, at each entry, and the same traffic is served again`, { skip }, async () => {
            for (let entry = 1; entry <= (entriesOf[place] ?? 1); entry++) {
              const before = count(place);
              injectFault(place, entry);
              const rounds: (readonly [boolean, number])[] = [];
              while (count(place) === before && rounds.length < maxRounds) rounds.push(await Promise.all([isServed(enter), status(ports.main, '/')]));
              assert.ok(
                rounds.every(([, others]) => others === 200),
                `others are served beside a fault at entry ${entry}`,
              );
              if (recovering.includes(place))
                assert.ok(
                  rounds.every(([isServed]) => isServed),
                  `it is served in spite of a fault at entry ${entry}`,
                );
              assert.equal(count(place), before + 1);
              await until(`its traffic after a fault at entry ${entry}`, () => isServed(enter), Boolean, 2 * maxTrafficMs);
            }
          });
        }
      });
  });

  it('is counted as turn-end.close, and the connection that could not be flushed is closed', async () => {
    const before = count('turn-end.close');
    injectFault('turn-end', 1);
    injectFault('turn-end.close', 1);
    const outcomes = await within(Promise.all([1, 2, 3].map(() => status(ports.main, '/').catch(() => 'closed'))));
    assert.equal(count('turn-end.close'), before + 1);
    assert.ok(outcomes.filter((outcome) => outcome === 200).length >= 2, String(outcomes));
    await expect(200, ports.main, '/');
  });

  it('gives back the places of passwords', async () => {
    const authorization = `Basic ${Buffer.from('alice:wrong').toString('base64')}`;
    for (let i = 0; i < 40; i++) {
      injectFault('authentication.password', 1);
      await expect(500, ports.own, '/password', { authorization });
    }
    await expect(401, ports.own, '/password', { authorization });
  });

  for (const place of ['request.onConnection', 'request.onResponseEnd'])
    it(`gives back the connection of a request that fails at ${place}`, async () => {
      for (let i = 0; i < 3; i++) {
        injectFault(place, 1);
        await status(ports.main, '/busy').catch(() => 0);
        await expect(200, ports.main, '/busy');
      }
      const [{ connections, idle }] = engine.findCluster('busy')!.endpoints as [Endpoint];
      assert.deepEqual([connections, idle.length], [1, 1]);
    });
});

/** Places by what must not run at the same time. */
function groups(): readonly (readonly TrafficPlace[])[] {
  const others = proxyPlaces.filter((place) => place !== 'turn-end.close').filter((place) => !shared.some((group) => group.includes(place)));
  return [...shared, ...others.map((place) => [place])];
}

/** Timers of a place expire at once, so that no test waits for them. */
function hasten(place: Place): void {
  const boundary = errorBoundary(place);
  mock.method(boundary, 'after', (_ms: number, work: () => void, failed?: () => void) => ErrorBoundary.prototype.after.call(boundary, 5, work, failed));
}

async function within<Value>(work: Promise<Value>): Promise<Value> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no end within ${maxTrafficMs} ms`)), maxTrafficMs);
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

const isServed = (enter: Traffic) =>
  within(enter()).then(
    () => true,
    () => false,
  );

/** Whether a UDP port is free. */
async function bound(port: number): Promise<boolean> {
  const socket = dgram.createSocket('udp4');
  socket.bind({ port, address: '127.0.0.1', exclusive: true });
  return once(socket, 'listening').then(
    () => {
      socket.close();
      return true;
    },
    () => false,
  );
}
