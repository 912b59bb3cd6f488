import assert from 'node:assert/strict';
import { once } from 'node:events';
import { copyFileSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { TestAuthority } from './support/certificates.ts';
import { cluster, http as httpFilter, listener, metric, serverTls, TestEngine, typed } from './support/engine.ts';
import { faultyProcess } from './support/faulty-process.ts';
import { GrpcClient, grpcServer } from './support/grpc.ts';
import { call, until } from './support/http.ts';
import { endSuccessor, statOf } from './support/successor.ts';

/** Requests of the load tests; fewer for a quick look. */
const wanted = Number(process.env['MIZZEN_LOAD_REQUESTS'] ?? 8_000);

/** Keeps sending requests on connections that are kept and, every so often, new, until stopped. What failed is kept with its reason. */
class Load {
  done: number;
  readonly failures: string[];
  #isStopped: boolean;
  readonly #running: Promise<void>[];

  constructor(clients: number, send: (agent: http.Agent, n: number) => Promise<{ readonly status: number }>, agentOf: () => http.Agent) {
    this.done = 0;
    this.failures = [];
    this.#isStopped = false;
    this.#running = Array.from({ length: clients }, () => this.#client(send, agentOf));
  }

  async #client(send: (agent: http.Agent, n: number) => Promise<{ readonly status: number }>, agentOf: () => http.Agent): Promise<void> {
    let agent = agentOf();
    for (let n = 0; !this.#isStopped; n++) {
      if (n % 50 === 49) {
        agent.destroy();
        agent = agentOf();
      }
      try {
        const { status } = await send(agent, n);
        if (status !== 200) this.failures.push(`status ${status}`);
      } catch (error) {
        this.failures.push(String(error));
      }
      this.done++;
    }
    agent.destroy();
  }

  async reach(count: number): Promise<void> {
    await until(
      `${count} requests`,
      async () => this.done,
      (done) => done >= count,
      200_000,
    );
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    await Promise.all(this.#running);
  }
}

describe('the life of a proxy', () => {
  const engine = new TestEngine();
  let authority: TestAuthority;
  let app: number;
  before(async () => {
    authority = new TestAuthority(engine.folder);
    const application = http.createServer((_request, response) => response.end('ok')).listen(0, '127.0.0.1');
    application.keepAliveTimeout = 60_000;
    await once(application, 'listening');
    app = (application.address() as AddressInfo).port;
    engine.onClose(() => {
      application.closeAllConnections();
      application.close();
    });
  });
  after(() => engine.close());

  const pidsBelow = (pid: number) =>
    readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .filter((name) => statOf(Number(name))?.parent === pid)
      .map(Number);

  it('serves with several workers, counts and limits them together, and survives the end of one', async () => {
    const [port, adminPort, limitedPort] = [await engine.ports.next(), await engine.ports.next(), await engine.ports.next()];
    const always = { default_value: { numerator: 100 } };
    const limited = typed('envoy.filters.http.local_ratelimit', 'extensions.filters.http.local_ratelimit.v3.LocalRateLimit', {
      ...{ stat_prefix: 'test', filter_enabled: always, filter_enforced: always },
      token_bucket: { max_tokens: 20, tokens_per_fill: 20, fill_interval: '3600s' },
    });
    const filters = [limited, typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router')];
    // The first message to each worker, which starts it, and the first of a worker, which tells that it is ready.
    const faults = faultyProcess({ 'worker.message': 1, 'worker.process': 1 });
    const child = await engine.spawn(
      {
        listeners: [listener('in', port, httpFilter('app')), listener('limited', limitedPort, httpFilter('app', { http_filters: filters }))],
        clusters: [cluster('app', [app])],
        adminPort,
      },
      ['--concurrency', '3'],
      faults,
    );
    const workers = pidsBelow(child.pid!);
    assert.equal(workers.length, 3);
    const send = () => call({ port, headers: { host: 'a' }, agent: new http.Agent() });
    for (let i = 0; i < 60; i++) assert.equal((await send()).status, 200);
    const text = await engine.metrics(adminPort);
    assert.equal(metric(text, 'istio_requests_total'), 60);
    assert.equal(metric(text, 'mizzen_workers'), 3);
    assert.equal(metric(text, 'mizzen_internal_errors_total', 'place="worker.message"'), 3);
    assert.equal(metric(text, 'mizzen_internal_errors_total', 'place="worker.process"'), 1);
    const { listeners } = JSON.parse((await call({ port: adminPort, path: '/listeners' })).body) as { listeners: unknown[] };
    assert.equal(listeners.length, 2);
    let allowed = 0;
    for (let i = 0; i < 120; i++) allowed += Number((await call({ port: limitedPort, headers: { host: 'a' }, agent: new http.Agent() })).status === 200);
    assert.ok(allowed >= 20 && allowed < 45, `${allowed} requests within a limit of 20; three workers that count for themselves let 60 pass`);
    process.kill(workers[1]!, 'SIGKILL');
    // Those that are left serve; what was in the dead one's hands is lost, and nothing else.
    let failed = 0;
    for (let i = 0; i < 60; i++)
      failed += await send().then(
        ({ status }) => Number(status !== 200),
        () => 1,
      );
    assert.ok(failed <= 1, `${failed} of 60 failed`);
    const after = await until(
      'the worker is replaced',
      () => engine.metrics(adminPort),
      (found) => metric(found, 'mizzen_workers') === 3 && metric(found, 'mizzen_worker_restarts_total') === 1,
    );
    assert.ok(metric(after, 'istio_requests_total') >= 60, 'counts do not go back');
    await engine.untilReady(adminPort);
    assert.equal(pidsBelow(child.pid!).length, 3);
  });

  for (const concurrency of ['1', '2'])
    it(`hands its sockets to a new process under load, with ${concurrency} event loop(s), and no request fails`, async () => {
      const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
      // Each worker meets an exception before it tells that it is prepared for the sockets.
      const child = await engine.spawn(
        { listeners: [listener('in', port, httpFilter('app'))], clusters: [cluster('app', [app])], adminPort },
        ['--concurrency', concurrency, '--drain-time', '5'],
        faultyProcess({ 'worker.message': 4 }),
      );
      const load = new Load(
        16,
        (agent) => call({ port, headers: { host: 'a' }, agent }),
        () => new http.Agent({ keepAlive: true, maxSockets: 1 }),
      );
      const share = concurrency === '1' ? wanted : wanted / 4;
      await load.reach(share / 2);
      const exited = once(child, 'exit');
      engine.onClose(() => endSuccessor(adminPort, child.pid!));
      process.kill(child.pid!, 'SIGUSR2');
      const [code] = (await exited) as [number | null];
      assert.equal(code, 0);
      await load.reach(load.done + share / 2);
      await load.stop();
      assert.deepEqual([...new Set(load.failures)], []);
      assert.ok(load.done >= share, `${load.done} requests`);
      await engine.untilReady(adminPort);
      assert.ok(metric(await engine.metrics(adminPort), 'istio_requests_total') > 0, 'the new process has served');
    });

  it('hands its sockets to a new process under gRPC load: no call fails, and a stream that is open ends in its time', async () => {
    const server = await grpcServer('app');
    engine.onClose(() => server.close());
    const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
    const child = await engine.spawn(
      { listeners: [listener('in', port, httpFilter('app'))], clusters: [cluster('app', [server.port], { http2_protocol_options: {} })], adminPort },
      ['--drain-time', '5'],
    );
    const clients = Array.from({ length: 8 }, () => new GrpcClient(port));
    const failures: string[] = [];
    let done = 0;
    let isOver = false;
    const running = clients.map(async (client) => {
      while (!isOver) {
        const { code, details } = await client.say('x');
        if (code !== 0) failures.push(`${code} after ${done} calls: ${details}`);
        done++;
      }
    });
    const calls = async (count: number) =>
      until(
        `${count} calls`,
        async () => done,
        (found) => found >= count,
        60_000,
      );
    await calls(1_000);
    const chat = clients[0]!.chat();
    const heard: string[] = [];
    chat.on('data', (message: Buffer) => heard.push(String(message)));
    chat.write(Buffer.from('before'));
    await until(
      'an answer on the stream',
      async () => heard.length,
      (count) => count === 1,
    );
    const exited = once(child, 'exit');
    engine.onClose(() => endSuccessor(adminPort, child.pid!));
    process.kill(child.pid!, 'SIGUSR2');
    await calls(done + 2_000);
    chat.write(Buffer.from('after'));
    chat.end();
    await once(chat, 'end');
    assert.deepEqual(heard, ['BEFORE', 'AFTER'], 'the stream stays with the old process until it ends');
    assert.deepEqual(await exited, [0, null]);
    await calls(done + 1_000);
    isOver = true;
    await Promise.all(running);
    for (const client of clients) client.close();
    assert.deepEqual(failures, []);
  });

  it('stays as the parent of its successor where a runner watches it, passes signals on, and ends with it', async () => {
    const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
    const child = await engine.spawn(
      { listeners: [listener('in', port, httpFilter('app'))], clusters: [cluster('app', [app])], adminPort },
      ['--drain-time', '1'],
      {
        MIZZEN_RUNNER_PID: String(process.pid),
      },
    );
    assert.equal((await call({ port, headers: { host: 'a' } })).status, 200);
    process.kill(child.pid!, 'SIGUSR2');
    const [successor] = await until(
      'the successor is there',
      async () => pidsBelow(child.pid!),
      (found) => found.length === 1,
    );
    // Its admin server has taken the port over: it has counted nothing yet.
    await until(
      'the successor serves',
      () => engine.metrics(adminPort),
      (text) => text.includes('mizzen_downstream_requests_total') && metric(text, 'mizzen_downstream_requests_total') === 0,
    );
    for (let i = 0; i < 20; i++) assert.equal((await call({ port, headers: { host: 'a' }, agent: new http.Agent() })).status, 200);
    assert.equal(child.exitCode, null);
    assert.deepEqual(pidsBelow(child.pid!), [successor]);
    const exited = once(child, 'exit');
    process.kill(child.pid!, 'SIGTERM');
    assert.deepEqual(await exited, [0, null]);
    assert.equal(statOf(successor!), undefined);
  });

  it('goes on when its successor cannot take over', async () => {
    const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
    const parts = { listeners: [listener('in', port, httpFilter('app'))], clusters: [cluster('app', [app])], adminPort };
    const child = await engine.spawn(parts);
    writeFileSync(join(engine.folder, `bootstrap-${adminPort}.json`), '{"static_resources":{"listeners":[{"name":"broken"}]}}');
    process.kill(child.pid!, 'SIGUSR2');
    await until(
      'the successor has failed',
      async () => pidsBelow(child.pid!).length,
      (count) => count === 1,
      60_000,
    );
    await until(
      'it is gone',
      async () => pidsBelow(child.pid!).length,
      (count) => count === 0,
      60_000,
    );
    assert.equal((await call({ port, headers: { host: 'a' } })).status, 200);
    assert.equal(child.exitCode, null);
  });

  it('changes its certificate again and again under load, and no request fails', async () => {
    const files = { cert: join(engine.folder, 'rotating.pem'), key: join(engine.folder, 'rotating.key') };
    const replace = (name: string) => {
      const next = authority.issue(name, ['DNS:server.test']);
      for (const part of ['cert', 'key'] as const) {
        copyFileSync(next[part], `${files[part]}.new`);
        renameSync(`${files[part]}.new`, files[part]);
      }
    };
    replace('first');
    const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
    await engine.spawn({
      listeners: [listener('in', port, httpFilter('app'), {}, serverTls(files.cert, files.key))],
      clusters: [cluster('app', [app])],
      adminPort,
    });
    const subjects = new Set<string>();
    const trust = { ca: authority.pem(authority.certificate), servername: 'server.test' };
    const load = new Load(
      16,
      (agent) => call({ port, headers: { host: 'a' }, agent, tls: trust }),
      () => new https.Agent({ keepAlive: true, maxSockets: 1, maxCachedSessions: 0 }),
    );
    const share = wanted;
    for (let i = 1; i <= 5; i++) {
      replace(`rotation-${i}`);
      await load.reach((share * i) / 5);
      const { certificates } = JSON.parse((await call({ port: adminPort, path: '/certs' })).body) as { certificates: { cert_chain: { subject: string }[] }[] };
      subjects.add(certificates[0]!.cert_chain[0]!.subject);
    }
    await load.stop();
    assert.deepEqual([...new Set(load.failures)], []);
    assert.ok(load.done >= share && subjects.size >= 4, `${load.done} requests, certificates ${[...subjects].join(', ')}`);
  });
});
