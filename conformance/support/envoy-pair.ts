import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { bootstrap, type Json, listener, type TestEngine } from '../../e2e/support/engine.ts';
import { until } from '../../e2e/support/http.ts';

/** A request as both proxies are sent it. */
export interface Probe {
  readonly method?: string;
  readonly path: string;
  readonly headers?: Readonly<Record<string, string | readonly string[]>>;
}

/** What came of a request: the client's view, and what upstreams saw of it. */
export interface Outcome {
  readonly status: number;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly body: string;
  /** Each try: the server's number, and the request as it arrived there. */
  readonly seen: readonly { readonly server: number; readonly method: string; readonly path: string; readonly headers: Readonly<Record<string, unknown>> }[];
}

/**
 * The differences that are allowed, and why:
 * `date`, `x-request-id`, `x-envoy-upstream-service-time`: of the moment. `server`: who we are. `connection`, `keep-alive`, `transfer-encoding`: of one hop.
 * `vary`: ours says `Origin` where CORS is configured, so that no cache serves one origin's response to another (Fetch standard, section 3.2.5).
 * `content-length` of 0: whether a message without content says so is of one hop, too.
 * `x-envoy-*` on requests: what Envoy tells other Envoys of its own retries and timeouts; nothing in the mesh reads it.
 * `x-forwarded-for`, `x-forwarded-proto`: compared in e2e, where both are told to set them alike.
 */
const ofAnswers = new Set(['date', 'server', 'connection', 'keep-alive', 'transfer-encoding', 'vary', 'x-envoy-upstream-service-time', 'x-request-id']);
const ofRequests = new Set(['x-request-id', 'connection', 'keep-alive', 'transfer-encoding', 'x-forwarded-for', 'x-forwarded-proto', 'x-probe']);

/** Nothing that a probe asks for takes nearly as long. */
const probeTimeoutMs = 5_000;

/** How long an answer takes that is late. */
const lateMs = 250;

/** Our proxy and a stock Envoy with the same resources in front of the same servers. */
export class EnvoyPair {
  readonly engine: TestEngine;
  readonly ours: number;
  readonly theirs: number;
  readonly #seen: Map<string, Outcome['seen'][number][]>;
  #probes: number;

  private constructor(engine: TestEngine, ours: number, theirs: number, seen: Map<string, Outcome['seen'][number][]>) {
    this.engine = engine;
    this.ours = ours;
    this.theirs = theirs;
    this.#seen = seen;
    this.#probes = 0;
  }

  /** Servers that answer as `x-answer` says (a status, `reset`, `ratelimited`, `late` or `hang`; several by commas are for one try after the other), and count who asked. */
  static async servers(engine: TestEngine, count: number): Promise<{ readonly ports: number[]; readonly seen: Map<string, Outcome['seen'][number][]> }> {
    const seen = new Map<string, Outcome['seen'][number][]>();
    const ports: number[] = [];
    for (let server = 0; server < count; server++) {
      const made = http.createServer((request, response) => {
        const probe = String(request.headers['x-probe'] ?? '');
        const tries = seen.get(probe) ?? [];
        seen.set(probe, tries);
        tries.push({ server, method: request.method!, path: request.url!, headers: pick(request.headers, ofRequests, /^x-envoy-/) });
        const answers = String(request.headers['x-answer'] ?? '200').split(',');
        const answer = answers[Math.min(tries.length, answers.length) - 1]!;
        request.resume();
        if (answer === 'reset') return void request.socket.destroy();
        if (answer === 'hang') return;
        if (answer === 'late') return void setTimeout(() => response.writeHead(200, { 'x-server': 'test' }).end('late\n'), lateMs);
        if (answer === 'ratelimited') return void response.writeHead(429, { 'x-envoy-ratelimited': 'true' }).end();
        response.writeHead(Number(answer), { 'x-server': 'test', 'x-remove-me': '1', 'content-type': 'text/plain' });
        response.end(`${answer}\n`);
      });
      made.keepAliveTimeout = 60_000;
      made.listen(0, '127.0.0.1');
      await once(made, 'listening');
      ports.push((made.address() as AddressInfo).port);
      engine.onClose(() => {
        made.closeAllConnections();
        made.close();
      });
    }
    return { ports, seen };
  }

  /** `filter`: the network filter that serves HTTP. */
  static async start(engine: TestEngine, filter: Json, clusters: readonly Json[], seen: Map<string, Outcome['seen'][number][]>): Promise<EnvoyPair> {
    const [ours, theirs, admin] = [await engine.ports.next(), await engine.ports.next(), await engine.ports.next()];
    await engine.start({ listeners: [listener('in', ours, filter)], clusters });
    const file = join(engine.folder, `envoy-${theirs}.json`);
    writeFileSync(file, JSON.stringify(bootstrap({ listeners: [listener('in', theirs, filter)], clusters, adminPort: admin })));
    const envoy: ChildProcess = spawn('envoy', ['-c', file, '--log-level', 'error', '--disable-hot-restart', '--concurrency', '1'], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let log = '';
    envoy.stderr!.on('data', (chunk: Buffer) => (log += chunk));
    engine.onClose(async () => {
      if (envoy.exitCode !== null || envoy.signalCode !== null) return;
      const exited = once(envoy, 'exit');
      envoy.kill('SIGTERM');
      await exited;
    });
    await until(
      'Envoy listens',
      async () => {
        if (envoy.exitCode !== null) throw new Error(`Envoy has refused the resources:\n${log.slice(-2_000)}`);
        return new Promise<boolean>((resolve) => {
          http
            .get({ port: admin, host: '127.0.0.1', path: '/ready' }, (response) => {
              response.resume();
              resolve(response.statusCode === 200);
            })
            .on('error', () => resolve(false));
        });
      },
      (isReady) => isReady,
      20_000,
    );
    return new EnvoyPair(engine, ours, theirs, seen);
  }

  /** Sends it to both; `tries`: waits until servers have seen so many, those of mirrors among them. */
  async both(probe: Probe, tries = 0): Promise<{ readonly ours: Outcome; readonly theirs: Outcome }> {
    const [ours, theirs] = await Promise.all([this.#send(this.ours, probe, tries), this.#send(this.theirs, probe, tries)]);
    return { ours, theirs };
  }

  async #send(port: number, probe: Probe, tries: number): Promise<Outcome> {
    const id = `${port}-${this.#probes++}`;
    const answer = await new Promise<{ status: number; headers: http.IncomingHttpHeaders; body: string }>((resolve, reject) => {
      const request = http.request(
        {
          port,
          host: '127.0.0.1',
          method: probe.method ?? 'GET',
          path: probe.path,
          headers: { host: 'test.example', ...(probe.headers as http.OutgoingHttpHeaders), 'x-probe': id },
          agent: this.#agent,
        },
        (response) => {
          const chunks: Buffer[] = [];
          response.on('data', (chunk: Buffer) => chunks.push(chunk));
          response.on('end', () => resolve({ status: response.statusCode!, headers: response.headers, body: Buffer.concat(chunks).toString() }));
          response.on('error', reject);
        },
      );
      request.setTimeout(probeTimeoutMs, () => request.destroy(new Error(`no answer within ${probeTimeoutMs} ms to ${JSON.stringify(probe)}`)));
      request.on('error', reject);
      request.end();
    });
    if (tries > 0)
      await until(
        `${tries} requests have been seen`,
        async () => this.#seen.get(id)?.length ?? 0,
        (count) => count >= tries,
      );
    const seen = this.#seen.get(id) ?? [];
    this.#seen.delete(id);
    return { status: answer.status, headers: pick(answer.headers, ofAnswers), body: answer.body, seen };
  }

  readonly #agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
}

function pick(headers: http.IncomingHttpHeaders, without: ReadonlySet<string>, unlike?: RegExp): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(headers)
      .filter(([name, value]) => !without.has(name) && !unlike?.test(name) && !(name === 'content-length' && value === '0'))
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}
