import assert from 'node:assert/strict';
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { createSecureServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { decodeYaml, findKind, groupOf } from '@mizzen/api';
import { type ControlPlane, homeFiles } from '@mizzen/control';
import type { ProxyConfig } from '@mizzen/proxy';
import { ApiClient, collectionPath } from '../packages/cli/api-client.ts';
import { controlAccess } from '../packages/cli/home.ts';
import { CertificateAuthority } from '../packages/control/citadel/certificate-authority.ts';
import { FaultyWire, wireFaults } from './support/faulty-wire.ts';
import { call, until } from './support/http.ts';
import { mizzen } from './support/lab.ts';
import { service } from './support/mesh.ts';
import { testPorts } from './support/ports.ts';

type ProxyStatus = ReturnType<ControlPlane['pilot']['proxies']>[number];

/** With MIZZEN_DRILL_LONG the limits are the defaults, and the control plane hangs for longer than they allow. */
const isLong = process.env['MIZZEN_DRILL_LONG'] !== undefined;
const liveness = isLong ? undefined : { tickMs: 50, pingAfterMs: 400, silentAfterMs: 400 };
const silenceMs = isLong ? 20_000 : 800;
/** How long the control plane hangs then. */
const stoppedMs = 60_000;
const patienceMs = isLong ? 60_000 : 15_000;

/** One sidecar with its wire to the control plane and a client that sends through it without a pause. */
class Caller {
  readonly name: string;
  readonly wire: FaultyWire;
  readonly config: ProxyConfig;
  process!: ChildProcess;
  readonly port: number;
  log: string;
  sent: number;
  readonly failures: string[];
  /** What the newest response had in the header that the test configures. */
  version: string | undefined;
  /** It was killed, and its port has not opened since: that connections fail is expected. */
  isDown: boolean;
  /** How often it was killed: what was sent before says nothing about the process after. */
  deaths: number;
  isPaused: boolean;
  #isBusy: boolean;
  #isStopped: boolean;
  #running: Promise<void> | undefined;

  constructor(config: ProxyConfig, wire: FaultyWire, port: number) {
    this.name = config.name;
    this.config = config;
    this.wire = wire;
    this.port = port;
    this.isDown = false;
    this.deaths = 0;
    this.isPaused = false;
    this.#isBusy = false;
    this.log = '';
    this.sent = 0;
    this.failures = [];
    this.version = undefined;
    this.#isStopped = false;
    this.#running = undefined;
  }

  use(child: ChildProcess): void {
    this.process = child;
    for (const stream of [child.stdout, child.stderr]) stream?.setEncoding('utf8').on('data', (text: string) => (this.log += text));
  }

  async admin(path: string): Promise<string> {
    return (await fetch(`http://127.0.0.1:${this.config.adminPort}${path}`)).text();
  }

  start(): void {
    this.#running = this.#send();
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#running;
  }

  /** Resolves when no request is under way, and none begins until `isPaused` is false. */
  async pause(): Promise<void> {
    this.isPaused = true;
    await until(
      `${this.name} is idle`,
      async () => this.#isBusy,
      (isBusy) => !isBusy,
    );
  }

  async #send(): Promise<void> {
    const agent = new http.Agent({ keepAlive: true });
    while (!this.#isStopped) {
      if (this.isPaused) {
        await new Promise((resolve) => setTimeout(resolve, 25));
        continue;
      }
      this.sent++;
      this.#isBusy = true;
      const { deaths } = this;
      try {
        const { status, headers, body } = await call({
          port: this.port,
          headers: { host: 'web:9080' },
          agent: this.sent % 10 === 0 ? new http.Agent() : agent,
        });
        if (deaths === this.deaths) this.isDown = false;
        if (status !== 200) this.failures.push(`${new Date().toISOString()} status ${status}: ${body}`);
        this.version = headers['x-version']?.toString();
      } catch (error) {
        if (!this.isDown && deaths === this.deaths) this.failures.push(String(error));
      }
      this.#isBusy = false;
      await new Promise((resolve) => setTimeout(resolve, 25)); // leaves the cores to the processes under test
    }
    agent.destroy();
  }
}

describe('a mesh under load whose control plane fails', () => {
  const home = mkdtempSync(join(tmpdir(), 'mizzen-drills-'));
  const clock = join(home, 'clock');
  const ports = testPorts;
  const children: ChildProcess[] = [];
  const callers: Caller[] = [];
  let controlProcess: ChildProcess;
  let controlPorts: readonly string[];
  let application: http.Server;
  let api: ApiClient;
  let server: Caller;
  let version = 0;

  const startControl = async () => {
    rmSync(homeFiles(home).endpoints, { force: true });
    const [program, ...args] = mizzen(['control', '--home', home, '--log-level', 'warn', ...controlPorts]) as [string, ...string[]];
    const env = { ...process.env, MIZZEN_TEST_CLOCK: clock, NODE_OPTIONS: `--import=${join(import.meta.dirname, 'support/shifted-clock.ts')}` };
    controlProcess = spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'], env });
    children.push(controlProcess);
    await until(
      'the control plane is up',
      async () => controlAccess(home),
      () => true,
      60_000,
    );
    api?.close();
    api = new ApiClient(controlAccess(home));
  };
  const apply = async (yaml: string) => {
    for (const { resource, origin } of decodeYaml(yaml, 'drill.yaml').resources) {
      const kind = findKind(groupOf(resource.apiVersion), resource.kind)!;
      await api.call('PATCH', `${collectionPath(kind, resource.metadata.namespace)}/${resource.metadata.name}?fieldManager=test&force=true`, {
        ...{ body: resource, contentType: 'application/apply-patch+yaml', origin },
      });
    }
  };
  const stopControl = async () => {
    const exited = once(controlProcess, 'exit');
    controlProcess.kill('SIGKILL');
    await exited;
  };
  const startSidecar = async (name: string, more: Partial<ProxyConfig> = {}): Promise<Caller> => {
    const caller = await prepareSidecar(name, more);
    caller.use(forkSidecar(caller.config));
    await readyMs(caller);
    return caller;
  };
  /** Has all that it needs to start, and has not started. */
  const prepareSidecar = async (name: string, more: Partial<ProxyConfig> = {}, tokenSeconds = 3600): Promise<Caller> => {
    const account = `${collectionPath(findKind('', 'ServiceAccount')!, 'default')}`;
    await apply(`apiVersion: v1\nkind: ServiceAccount\nmetadata: { name: ${name}, namespace: default }
---
apiVersion: mizzen.dev/v1alpha1
kind: Workload
metadata: { name: ${name}, namespace: default, labels: { app: ${name} } }
spec: { serviceAccount: ${name}, command: ['true'] }`);
    const { body } = await api.call('POST', `${account}/${name}/token`, {
      body: { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { audiences: ['istio-ca'], expirationSeconds: tokenSeconds } },
    });
    mkdirSync(join(home, 'tokens'), { recursive: true });
    const tokenFile = join(home, 'tokens', name);
    writeFileSync(tokenFile, (body as { status: { token: string } }).status.token);
    const wire = await FaultyWire.to(Number(controlPorts[3]));
    const port = await ports.next();
    const config: ProxyConfig = {
      ...{ type: 'sidecar', name, namespace: 'default', workload: name, serviceAccount: name, labels: { app: name }, trustDomain: 'cluster.local' },
      ...{ address: '127.0.0.1', control: `127.0.0.1:${wire.port}`, rootCertificateFile: homeFiles(home).rootCertificate, tokenFile },
      ...{
        adminPort: await ports.next(),
        stateFolder: join(home, `${name}.state`),
        outbound: `127.0.0.1:${port}`,
        accessLogFile: join(home, `${name}.access.log`),
      },
      ...more,
    };
    return new Caller(config, wire, port);
  };
  const forkSidecar = (config: ProxyConfig): ChildProcess => {
    const script = join(import.meta.dirname, 'support/drill-sidecar.ts');
    const child = fork(script, [JSON.stringify(config), ...(liveness === undefined ? [] : [JSON.stringify(liveness)])], { silent: true });
    children.push(child);
    return child;
  };
  /** How long the proxy needed, without the time in which others had the CPU: from the start of its process, and after its modules were loaded. */
  const readyMs = async (caller: Caller): Promise<{ readonly afterMs: number; readonly servingMs: number }> => {
    const [message] = (await Promise.race([once(caller.process, 'message'), once(caller.process, 'exit')])) as [
      { kind: string; afterMs: number; servingMs: number },
    ];
    assert.equal(message?.kind, 'ready', caller.log);
    return message;
  };
  const killAndRestart = async (caller: Caller): ReturnType<typeof readyMs> => {
    const exited = once(caller.process, 'exit');
    caller.isDown = true;
    caller.deaths++;
    caller.process.kill('SIGKILL');
    await exited;
    caller.use(forkSidecar(caller.config));
    return readyMs(caller);
  };

  /** Changes the configuration, and waits until the responses to every caller show it. */
  const assertChangeArrives = async () => {
    const wanted = `v${++version}`;
    await apply(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: web, namespace: default }
spec: { hosts: [web], http: [{ headers: { response: { set: { x-version: ${wanted} } } }, route: [{ destination: { host: web } }] }] }`);
    await until(
      `${wanted} at all callers`,
      async () => callers.map((caller) => `${caller.name}=${caller.version}`),
      () => callers.every((caller) => caller.version === wanted),
      patienceMs,
    );
    await until(
      'all proxies synced',
      async () => {
        const { proxies } = (await api.call('GET', '/mizzen/v1/proxies')).body as { proxies: ProxyStatus[] };
        return [...callers, server].map(({ name }) => `${name} ${proxies.find((proxy) => proxy.name === name)?.state}`);
      },
      (states) => states.every((state) => state.endsWith(' synced')),
      patienceMs,
    );
  };
  const assertNothingFailed = () => {
    for (const { name, failures, log, process: child } of [...callers, server]) {
      assert.deepEqual(failures, [], `${name}\n${log}`);
      assert.deepEqual([child.exitCode, child.signalCode], [null, null], `${name}\n${log}`);
      assert.doesNotMatch(log, /unhandled|uncaught|internal error/i, name);
    }
  };
  /** Waits until that many more requests have been served through every sidecar. */
  const served = async (more: number) => {
    const from = callers.map(({ sent }) => sent);
    await until(
      `${more} more requests`,
      async () => callers.map(({ sent }) => sent),
      (sent) => sent.every((count, i) => count >= from[i]! + more),
      patienceMs,
    );
  };

  before(async () => {
    writeFileSync(clock, '0');
    controlPorts = ['--api-port', String(await ports.next()), '--xds-port', String(await ports.next())];
    application = http.createServer((_request, response) => response.end('ok')).listen(0, '127.0.0.1');
    application.keepAliveTimeout = 60_000;
    await once(application, 'listening');
    await startControl();
    await apply(service('web'));
    server = await startSidecar('web', {
      registers: true,
      inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${await ports.next()}`, app: `127.0.0.1:${(application.address() as AddressInfo).port}` }],
    });
    callers.push(...(await Promise.all(Object.keys(wireFaults).map((fault) => startSidecar(`to-${fault.toLowerCase().replace(' ', '-')}`)))));
    for (const caller of callers) {
      await until(
        `${caller.name} reaches the server`,
        () => call({ port: caller.port, headers: { host: 'web:9080' }, agent: new http.Agent() }),
        ({ status }) => status === 200,
      );
      caller.start();
    }
    await assertChangeArrives();
  });
  after(async () => {
    await Promise.all(callers.map((caller) => caller.stop()));
    api?.close();
    for (const child of children) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    for (const { wire } of [...callers, ...(server === undefined ? [] : [server])]) wire.close();
    application.closeAllConnections();
    application.close();
    rmSync(home, { recursive: true, force: true });
  });

  it('serves every request while connections to it are reset, answered with garbage, half-open, alerted or slow, and takes changes after', async () => {
    Object.values(wireFaults).forEach((fault, i) => callers[i]!.wire.break(fault));
    // A change that no caller can receive yet, so that slow bytes have something to be slow with.
    await apply(service('other'));
    const broken = async () => callers.map(({ name, wire }) => `${name}=${wire.accepted}`);
    await until('every sidecar tries again, and meets its fault again', broken, () => callers.every(({ wire }) => wire.accepted >= 2), patienceMs);
    await served(20);
    for (const { wire } of callers) wire.mend();
    await assertChangeArrives();
    assertNothingFailed();
  });

  it('serves every request while it sends messages of 200 MB, and takes changes after', async (test) => {
    const authority = await CertificateAuthority.open(homeFiles(home).certificates, 'cluster.local');
    const { cert, key } = await authority.issueServer({ dns: ['mizzen-control'], ip: ['127.0.0.1'] }, 3_600);
    let messages = 0;
    let sentBytes = 0;
    const endless = createSecureServer({ cert, key, requestCert: true, rejectUnauthorized: false });
    endless.on('stream', (stream) => {
      messages++;
      stream.on('error', () => {});
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
      const head = Buffer.alloc(5);
      head.writeUInt32BE(200 * 1024 * 1024, 1);
      stream.write(head);
      const block = Buffer.alloc(64 * 1024);
      const write = () => {
        while (!stream.destroyed && stream.write(block)) sentBytes += block.length;
      };
      stream.on('drain', write);
      write();
    });
    endless.listen(0, '127.0.0.1');
    await once(endless, 'listening');
    const { port } = endless.address() as AddressInfo;
    for (const { wire } of callers) wire.break({ disturb: (client) => client.resetAndDestroy(), insteadPort: port });
    await until(
      'every sidecar refuses a message twice',
      async () => callers.map(({ name, log }) => `${name}=${log.split('a message of more than maxMessageBytes').length - 1}`),
      (counts) => counts.every((count) => Number(count.split('=')[1]) >= 2),
      patienceMs,
    );
    await served(20);
    for (const { wire } of callers) wire.break(wireFaults.reset);
    for (const { wire } of callers) wire.mend();
    endless.close();
    await assertChangeArrives();
    test.diagnostic(`${messages} messages of 200 MB, of which ${Math.round(sentBytes / 1024 / 1024)} MB were sent`);
    assertNothingFailed();
  });

  it('serves every request while it hangs for longer than the liveness limits, and takes changes when it goes on', async () => {
    for (const { wire } of callers) wire.mend();
    controlProcess.kill('SIGSTOP');
    await until(
      'every sidecar gives it up',
      async () => callers.map(({ wire }) => wire.accepted),
      (accepted) => accepted.every((count) => count >= 1),
      silenceMs + patienceMs,
    );
    await served(20);
    if (isLong) await new Promise((resolve) => setTimeout(resolve, stoppedMs));
    controlProcess.kill('SIGCONT');
    await assertChangeArrives();
    assertNothingFailed();
  });

  it('serves every request while it is killed and starts again, and takes changes from the new process', async () => {
    for (const { wire } of callers) wire.mend();
    await stopControl();
    await until(
      'every sidecar tries again',
      async () => callers.map(({ wire }) => wire.accepted),
      (accepted) => accepted.every((count) => count >= 1),
      patienceMs,
    );
    await startControl();
    await assertChangeArrives();
    await served(20);
    assertNothingFailed();
  });

  it('serves the configuration kept on disk within a second of a restart while the control plane is away, until it is back', async (test) => {
    for (const { wire } of callers) wire.mend();
    const since = Date.now();
    await assertChangeArrives();
    const isKept = ({ config }: Caller, after: number) => {
      const stat = statSync(join(config.stateFolder!, 'configuration'), { throwIfNoEntry: false });
      return stat !== undefined && stat.mtimeMs >= after;
    };
    await until(
      'the change is on every disk',
      async () => callers.filter((caller) => !isKept(caller, since)).map(({ name }) => name),
      (missing) => missing.length === 0 && isKept(server, 0),
      patienceMs,
    );
    await stopControl();
    const restarted = isLong ? callers : callers.slice(0, 2);
    const took = await Promise.all(restarted.map(killAndRestart));
    await served(20);
    await Promise.all(callers.map((caller) => caller.pause()));
    took.push(await killAndRestart(server));
    for (const caller of callers) caller.isPaused = false;
    await served(20);
    assertNothingFailed();
    const times = took.map(({ afterMs, servingMs }) => `${Math.round(afterMs)} (${Math.round(servingMs)})`).join(', ');
    test.diagnostic(`ready after ${times} ms; ${callers.reduce((sum, { sent }) => sum + sent, 0)} requests so far, 0 failed`);
    for (const caller of [...restarted, server]) {
      assert.match(
        await caller.admin('/ready'),
        /^LIVE\nserving the configuration kept on disk at .*control plane at 127\.0\.0\.1:\d+ has sent none since the start\n$/,
      );
      assert.match(await caller.admin('/stats/prometheus'), /^mizzen_kept_configuration_in_use 1$/m);
      assert.match(caller.log, /serving the configuration kept on disk/);
    }
    assert.deepEqual(
      callers.map((caller) => caller.version),
      callers.map(() => `v${version}`),
    );
    await startControl();
    await assertChangeArrives();
    await served(20);
    assertNothingFailed();
    for (const caller of [...restarted, server]) {
      assert.equal(await caller.admin('/ready'), 'LIVE\n');
      assert.match(await caller.admin('/stats/prometheus'), /^mizzen_kept_configuration_in_use 0$/m);
    }
    assert.ok(
      took.every(({ servingMs }) => servingMs < 1_000),
      `ready after ${times} ms`,
    );
  });

  const hourMs = 3_600_000;
  const clocks = isLong
    ? [hourMs, -hourMs].flatMap((shiftMs) => [true, false].map((restarts) => ({ shiftMs, restarts })))
    : [
        { shiftMs: hourMs, restarts: false },
        { shiftMs: -hourMs, restarts: true },
      ];
  for (const { shiftMs, restarts } of clocks)
    it(`serves every request while its clock is an hour ${shiftMs > 0 ? 'ahead' : 'behind'}${restarts ? ' from its start' : ''}, starts sidecars with new tokens, refuses older tokens by naming the clock, and accepts them when the clock is right`, async (test) => {
      const setClock = (ms: number) => writeFileSync(clock, String(ms));
      const name = `${shiftMs > 0 ? 'ahead' : 'behind'}${restarts ? '-restarted' : ''}`;
      const older = await prepareSidecar(`older-${name}`, {}, 600);
      if (restarts) await stopControl();
      setClock(shiftMs);
      if (restarts) await startControl();
      await assertChangeArrives();
      older.use(forkSidecar(older.config));
      const [newer] = await Promise.all([
        startSidecar(`newer-${name}`),
        until(
          'the older token is refused',
          async () => older.log,
          (log) =>
            (shiftMs > 0
              ? /the token has expired \(.*the clock of the control plane says .* later\)/
              : /the token of .* is not valid before .* earlier\. Set the clock/
            ).test(log),
          patienceMs,
        ),
      ]);
      const reaches = (caller: Caller) =>
        until(
          `${caller.name} reaches the server`,
          () => call({ port: caller.port, headers: { host: 'web:9080' }, agent: new http.Agent() }),
          ({ status }) => status === 200,
          patienceMs,
        );
      await reaches(newer);
      const ready = readyMs(older);
      setClock(0);
      await ready;
      await reaches(older);
      await assertChangeArrives();
      await served(20);
      assertNothingFailed();
      test.diagnostic(`${callers.reduce((sum, { sent }) => sum + sent, 0)} requests so far, 0 failed`);
      for (const { process: child, wire } of [older, newer]) {
        child.kill('SIGKILL');
        wire.close();
      }
    });
});
