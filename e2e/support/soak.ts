import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import type net from 'node:net';
import type { AddressInfo } from 'node:net';
import { TestAuthority } from './certificates.ts';
import { clientTls, cluster, http as httpFilter, listener, metric, RawClient, serverTls, TestEngine, tcp } from './engine.ts';
import { call, until } from './http.ts';
import { ask, connectHttp2, frame, frameTypes, http2Server, number, RawHttp2 } from './http2.ts';

export interface SoakResult {
  readonly requests: number;
  /** Resident memory in MiB, sampled every second. */
  readonly memory: readonly number[];
  /** Growth of the median of the last quarter over that of the second, in MiB. */
  readonly growthMib: number;
  /** What was there before the load and what is there after it: file descriptors, timers, sockets. */
  readonly before: Readonly<Record<string, number>>;
  readonly after: Readonly<Record<string, number>>;
}

const onceMs = 30_000;

function within<Value>(ms: number, work: Promise<Value>, problem: () => string): Promise<Value> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(problem())), ms);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

const memoryMib = (pid: number) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024;

/**
 * Puts all kinds of traffic on one proxy for a while: kept and short connections, TLS on both sides, bodies of many sizes, clients that go
 * away in the middle, servers that break off, attacks, tunnels, TCP sessions. Then it looks at what is left.
 */
export async function soak(seconds: number, say: (text: string) => void): Promise<SoakResult> {
  const engine = new TestEngine();
  try {
    const authority = new TestAuthority(engine.folder);
    const certificate = authority.issue('server', ['DNS:server.test']);
    const application = http.createServer((request, response) => {
      switch (request.url) {
        case '/break':
          response.writeHead(200, { 'content-length': '1000' });
          response.write('some');
          return void setImmediate(() => request.socket.destroy());
        case '/garbage':
          return void request.socket.end('HTTP/1.1 nonsense\r\n\r\n');
        case '/slow':
          return void setTimeout(() => response.end('slow'), 50);
        default:
          request.on('error', () => {});
          request.pipe(response);
      }
    });
    application.on('upgrade', (_request, socket) => {
      socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n');
      socket.on('error', () => {});
      socket.pipe(socket);
    });
    application.listen(0, '127.0.0.1');
    const secure = https
      .createServer({ cert: authority.pem(certificate.cert), key: authority.pem(certificate.key) }, (_request, response) => response.end('secure'))
      .listen(0, '127.0.0.1');
    await Promise.all([once(application, 'listening'), once(secure, 'listening')]);
    engine.onClose(() => {
      for (const server of [application, secure]) {
        server.closeAllConnections();
        server.close();
      }
    });
    const portOf = (server: net.Server) => (server.address() as AddressInfo).port;
    const overHttp2 = await http2Server(engine, (stream) => {
      stream.respond({ ':status': 200 }, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
      stream.pipe(stream);
    });
    const [plain, tls, raw, two, adminPort] = (await Promise.all(Array.from({ length: 5 }, () => engine.ports.next()))) as [
      number,
      number,
      number,
      number,
      number,
    ];
    const upgrades = { upgrade_configs: [{ upgrade_type: 'websocket' }] };
    const child = await engine.spawn({
      listeners: [
        listener('plain', plain, httpFilter('app', upgrades, { retry_policy: { retry_on: '5xx,reset', num_retries: 1 } })),
        listener('tls', tls, httpFilter('secure'), {}, serverTls(certificate.cert, certificate.key)),
        listener('tcp', raw, tcp('app')),
        listener('two', two, httpFilter('two', upgrades)),
      ],
      clusters: [
        cluster('app', [portOf(application)], { connect_timeout: '10s', common_http_protocol_options: { idle_timeout: '1s' } }),
        cluster('two', [overHttp2], { http2_protocol_options: {}, common_http_protocol_options: { idle_timeout: '1s' } }),
        cluster('secure', [portOf(secure)], {
          ...clientTls({ validation_context: { trusted_ca: { filename: authority.certificate } } }, { sni: 'server.test' }),
          common_http_protocol_options: { idle_timeout: '1s' },
        }),
      ],
      adminPort,
    });
    const look = async () => {
      const text = await engine.metrics(adminPort);
      return {
        descriptors: readdirSync(`/proc/${child.pid}/fd`).length,
        timers: metric(text, 'nodejs_active_resources', '"Timeout"'),
        sockets: metric(text, 'nodejs_active_resources', '"TCPSocketWrap"'),
        'downstream connections': metric(text, 'mizzen_downstream_connections_active'),
        'requests under way': metric(text, 'mizzen_downstream_requests_active') + metric(text, 'envoy_cluster_upstream_rq_active'),
        'requests that wait': metric(text, 'envoy_cluster_upstream_rq_pending_active'),
        'upstream connections': metric(text, 'envoy_cluster_upstream_cx_active'),
        'TCP sessions': metric(text, 'mizzen_tcp_sessions_active'),
      };
    };
    // Once everything, so that what is loaded or made once is not taken for growth.
    await call({ port: plain, headers: { host: 'a' } });
    await call({ port: tls, headers: { host: 'a' }, tls: { rejectUnauthorized: false } });
    const isQuiet = (found: Awaited<ReturnType<typeof look>>) =>
      found['upstream connections'] === 0 && found['downstream connections'] === 0 && found['requests under way'] === 0 && found['TCP sessions'] === 0;
    const before = await until('quiet before the load', look, isQuiet, 60_000);

    const end = Date.now() + seconds * 1_000;
    let requests = 0;
    const agents: http.Agent[] = [];
    /** Those that use their connections again. */
    const keeps = new Set<() => Promise<unknown>>();
    const kinds: readonly (() => Promise<unknown>)[] = [
      ...[0, 1_000, 20_000, 300_000].flatMap((size) => {
        const agent = new http.Agent({ keepAlive: true, maxSockets: 2 });
        agents.push(agent);
        const send = () => call({ port: plain, method: 'POST', headers: { host: 'a' }, body: Buffer.alloc(size), agent });
        keeps.add(send);
        return [send, send];
      }),
      () => call({ port: plain, path: '/slow', headers: { host: 'a' }, agent: new http.Agent() }),
      () => call({ port: plain, path: '/break', headers: { host: 'a' }, agent: new http.Agent() }).catch(() => {}),
      () => call({ port: plain, path: '/garbage', headers: { host: 'a' }, agent: new http.Agent() }),
      () => call({ port: tls, headers: { host: 'a' }, tls: { rejectUnauthorized: false, agent: new https.Agent() } }),
      () => new RawClient(plain).write('GET / HTTP/1.1\r\nbad header\r\n\r\n').closed(),
      // Over HTTP/2, to servers of both versions: many at once, with bodies and trailers; given up in the middle; attacks.
      ...[plain, two].flatMap((port) => [
        async () => {
          const session = connectHttp2(port);
          await Promise.all([0, 1_000, 100_000].map((size) => ask(session, { body: Buffer.alloc(size), trailers: { 'x-end': '1' } })));
          session.destroy();
        },
        async () => {
          const session = connectHttp2(port);
          const stream = session.request({ ':method': 'POST', ':path': '/slow' });
          stream.on('error', () => {});
          // Listened for from the start, and read, without which it does not end: on a busy machine the whole answer may be here first.
          stream.resume();
          const closed = new Promise((resolve) => stream.on('close', resolve));
          stream.write(Buffer.alloc(50_000));
          await once(session, 'remoteSettings');
          stream.close(8);
          await closed;
          session.destroy();
        },
        async () => {
          const client = new RawHttp2(port).send(frame(frameTypes.windowUpdate, 0, 0, number(0x7fff_ffff)));
          await client.closed();
        },
      ]),
      async () => {
        // Goes away while its answer is on the way.
        const client = new RawClient(plain).write('GET /slow HTTP/1.1\r\nhost: a\r\n\r\n');
        await once(client.socket, 'connect');
        await new Promise(setImmediate);
        client.destroy();
      },
      async () => {
        // Goes away in the middle of its request.
        const client = new RawClient(plain).write(`POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n${'x'.repeat(1000)}`);
        await once(client.socket, 'connect');
        await new Promise(setImmediate);
        client.destroy();
      },
      async () => {
        const client = new RawClient(plain).write('GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n');
        await client.until(/\r\n\r\n$/);
        client.write('ping');
        await client.until(/ping$/);
        client.socket.end();
        await client.closed();
      },
      async () => {
        const client = new RawClient(raw).write('GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
        await client.closed();
      },
    ];
    const memory: number[] = [];
    const sampler = setInterval(() => {
      memory.push(memoryMib(child.pid!));
      if (memory.length % 60 === 0) say(`${memory.length} s: ${requests} requests, ${memory.at(-1)!.toFixed(1)} MiB`);
    }, 1_000);
    await Promise.all(
      kinds.map(async (send) => {
        while (Date.now() < end) {
          await within(onceMs, send(), () => `no end of one of its kind within ${onceMs} ms: ${send}`);
          requests++;
          // Each closed connection keeps its port for a minute: faster, and the machine would run out of them before the proxy is tried.
          if (!keeps.has(send)) await new Promise((resolve) => setTimeout(resolve, 20));
        }
      }),
    );
    clearInterval(sampler);
    for (const agent of agents) agent.destroy();
    // What is closed goes a turn of the event loop later, which takes a moment on a busy machine; what has leaked never goes.
    const isAsBefore = (found: Awaited<ReturnType<typeof look>>) =>
      Object.entries(found).every(([name, count]) => count <= before[name as keyof typeof before] + 2);
    const after = await until(`as quiet as before the load: ${JSON.stringify(before)}`, look, (found) => isQuiet(found) && isAsBefore(found), 60_000);
    const median = (values: readonly number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
    const quarter = Math.floor(memory.length / 4);
    return { requests, memory, growthMib: median(memory.slice(-quarter)) - median(memory.slice(quarter, 2 * quarter)), before, after };
  } finally {
    await engine.close();
  }
}
