import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { proxyCommand } from '../packages/cli/runner/program.ts';
import { commandOptions } from '../scripts/options.ts';
import { type Measurement, measure, measureLatency, rssMb, rssWithIdleConnections } from './measure.ts';
import { startMesh } from './mesh.ts';
import { edge, pair, writeBootstrap, writeHaproxy, writeNginx, writeOrigin } from './peers.ts';
import { inPath, makeCertificates, Processes, workersOf } from './processes.ts';
import { Report } from './report.ts';

/**
 * `npm run bench [-- --json] [-- --seconds N] [-- --rounds N]`: our proxy beside its peers, in one run: the proxy pinned to CPU 0, load
 * generator and origin to CPU 1, keep-alive, medians of the rounds. CPU microseconds per request are the figure to trust. Envoy and
 * `mizzen` are given the same file; `mizzen sidecar` is one of a mesh, with Istio's metrics.
 */
const root = join(import.meta.dirname, '..');
/** `--case http1-1k` and `--proxies nginx,envoy` narrow a run while working on one thing. */
const options = commandOptions({
  numbers: { seconds: 5, rounds: 5 },
  lists: {
    case: ['http1-1k', 'tls13-1k', 'mtls-pair-1k', 'http1-1m', 'tcp-1m', 'latency', 'memory', 'start'],
    proxies: ['nginx', 'haproxy', 'envoy', 'node:http', 'mizzen'],
  },
  switches: ['json'],
});
const { seconds, rounds } = options;
const proxyCpu = 0;
const loadCpu = cpus().length > 1 ? 1 : 0;
const folder = mkdtempSync(join(tmpdir(), 'mizzen-bench-'));
// nginx reads the files as another user.
chmodSync(folder, 0o755);
const processes = new Processes();
const report = new Report(options.json);
const say = (text: string) => process.stderr.write(`${text}\n`);

const ports = {
  origin: 21_001,
  nginx: { plain: 21_002, tls: 21_003 },
  haproxy: { plain: 21_004, tcp: 21_005 },
  envoy: { plain: 21_006, tls: 21_007, tcp: 21_008, client: 21_009, server: 21_010 },
  mizzen: { plain: 21_011, tls: 21_012, tcp: 21_013, client: 21_014, server: 21_015, admin: 21_016, started: 21_017 },
  mesh: { plain: 21_020, client: 21_021, inbound: 21_022 },
  node: 21_030,
};

interface Candidate {
  readonly name: string;
  readonly pids: readonly number[];
  readonly url: string;
  readonly host: string;
}

interface Case {
  readonly name: string;
  readonly path: string;
  readonly connections: number;
  readonly candidates: readonly Candidate[];
  /** At most this many times the CPU per request of the peer. */
  readonly aims: Readonly<Record<string, number>>;
}

async function main(): Promise<void> {
  for (const program of ['wrk', 'nginx', 'taskset', 'openssl'])
    if (!inPath(program)) throw new Error(`the bench needs ${program} (Debian: apt-get install wrk nginx-light haproxy nghttp2-client openssl util-linux)`);
  const envoy = [join(root, '.tools/envoy/bin/envoy'), 'envoy'].find((program) => existsSync(program) || (!program.includes('/') && inPath(program)));
  if (!envoy) say('envoy is not installed: its rows are left out (.ci/run installs it from PyPI)');
  const certificates = makeCertificates(folder);
  await processes.start(loadCpu, ['nginx', '-c', writeOrigin(folder, ports.origin)], ports.origin);

  const pids = new Map<string, number[]>();
  const { origin } = ports;
  pids.set(
    'nginx',
    workersOf(await processes.start(proxyCpu, ['nginx', '-c', writeNginx(folder, { ...ports.nginx, origin }, certificates)], ports.nginx.plain)),
  );
  if (inPath('haproxy'))
    pids.set('haproxy', [await processes.start(proxyCpu, ['haproxy', '-db', '-f', writeHaproxy(folder, { ...ports.haproxy, origin })], ports.haproxy.plain)]);
  const envoyCommand = (file: string, id: number) => [envoy!, '-c', file, '--concurrency', '1', '--log-level', 'off', '--base-id', String(id)];
  const mizzenCommand = (file: string) => [...proxyCommand, '--config', file, '--log-level', 'error'];
  for (const [name, command] of [
    ['envoy', envoyCommand],
    ['mizzen', mizzenCommand],
  ] as const) {
    if (name === 'envoy' && !envoy) continue;
    const at = ports[name];
    const alone = edge(folder, name, { ...at, origin }, certificates);
    const two = pair(folder, name, { ...at, origin }, certificates);
    const start = (
      part: string,
      config: { listeners: Parameters<typeof writeBootstrap>[2]; clusters: Parameters<typeof writeBootstrap>[3] },
      id: number,
      port: number,
    ) => processes.start(proxyCpu, command(writeBootstrap(folder, `${name}-${part}`, config.listeners, config.clusters), id), port);
    pids.set(name, [await start('edge', alone, 21, at.plain)]);
    pids.set(`${name} pair`, [await start('client', two.client, 22, at.client), await start('server', two.server, 23, at.server)]);
  }
  pids.set('node:http', [
    await processes.start(proxyCpu, [process.execPath, join(root, 'bench/node-http-proxy.mjs'), String(ports.node), String(origin)], ports.node),
  ]);
  const mesh = await startMesh(processes, folder, proxyCpu, { origin, ...ports.mesh });
  pids.set('mizzen sidecar', [mesh.plain]);
  pids.set('mizzen sidecars', [...mesh.pair]);

  const candidate = (name: string, process: string, port: number, host = 'plain.bench', scheme = 'http'): Candidate[] =>
    pids.has(process) && (process.startsWith('mizzen') || options.proxies.has(process.split(' ')[0]!))
      ? [{ name, pids: pids.get(process)!, url: `${scheme}://127.0.0.1:${port}`, host }]
      : [];
  const plain = [
    ...candidate('nginx', 'nginx', ports.nginx.plain),
    ...candidate('haproxy', 'haproxy', ports.haproxy.plain),
    ...candidate('envoy', 'envoy', ports.envoy.plain),
    ...candidate('node:http', 'node:http', ports.node),
    ...candidate('mizzen sidecar', 'mizzen sidecar', ports.mesh.plain),
    ...candidate('mizzen', 'mizzen', ports.mizzen.plain),
  ];
  const tls = (['nginx', 'envoy', 'mizzen'] as const).flatMap((name) => candidate(name, name, ports[name].tls, 'plain.bench', 'https'));
  const pairs = [
    ...candidate('envoy', 'envoy pair', ports.envoy.client),
    ...candidate('mizzen sidecar', 'mizzen sidecars', ports.mesh.client, 'web'),
    ...candidate('mizzen', 'mizzen pair', ports.mizzen.client),
  ];
  const tcp = (['haproxy', 'envoy', 'mizzen'] as const).flatMap((name) => candidate(name, name, ports[name].tcp));
  const cases: Case[] = [
    { name: 'http1-1k', path: '/1k', connections: 32, candidates: plain, aims: { envoy: 0.9, nginx: 1.2 } },
    { name: 'tls13-1k', path: '/1k', connections: 32, candidates: tls, aims: { nginx: 1.3 } },
    { name: 'mtls-pair-1k', path: '/1k', connections: 32, candidates: pairs, aims: { envoy: 1.0 } },
    { name: 'http1-1m', path: '/1m', connections: 8, candidates: plain, aims: { nginx: 1.0 } },
    // GB per CPU second at least 0.6 times haproxy's is CPU per byte at most 1.67 times.
    { name: 'tcp-1m', path: '/1m', connections: 8, candidates: tcp, aims: { haproxy: 1 / 0.6 } },
  ];
  for (const { name, path, connections, candidates, aims } of cases) {
    if (!options.case.has(name)) continue;
    const results = new Map<string, Measurement[]>();
    // Rounds go around all candidates, so that a slow minute of the machine touches all of them.
    for (let round = 0; round < rounds; round++)
      for (const each of candidates) {
        const measured = await measure(each.pids, { url: `${each.url}${path}`, host: each.host, connections, seconds }, loadCpu);
        results.set(each.name, [...(results.get(each.name) ?? []), measured]);
        say(
          `${name} round ${round + 1} ${each.name.padEnd(16)} ${measured.cpuUsPerRequest.toFixed(1).padStart(8)} us/request ${measured.requestsPerSecond.toFixed(0).padStart(8)} requests/s${measured.errors ? `  ${measured.errors} ERRORS` : ''}`,
        );
      }
    report.loads(name, results, aims);
  }
  if (options.case.has('latency')) await latency(plain);
  // As it is published: plain JavaScript in few files.
  const published = (file: string) => [
    process.execPath,
    '--single-threaded-gc',
    join(root, 'dist/mizzen.js'),
    'proxy',
    '--config',
    file,
    '--log-level',
    'error',
  ];
  if (options.case.has('memory')) await memory(published, certificates);
  if (options.case.has('start')) await startTime(published, certificates);
  await mesh.close();
}

/** Added latency at half of what Envoy can do at most, both at the same rate; the origin's own is taken off. */
async function latency(plain: readonly Candidate[]): Promise<void> {
  if (!inPath('h2load')) return void say('h2load is not installed: latency is left out (Debian: nghttp2-client)');
  const contenders = plain.filter(({ name }) => name === 'envoy' || name === 'mizzen');
  const envoy = contenders.find(({ name }) => name === 'envoy');
  if (!envoy) return;
  const load = { host: 'plain.bench', connections: 32, seconds };
  const most = await measure(envoy.pids, { ...load, url: `${envoy.url}/1k` }, loadCpu);
  const rate = most.requestsPerSecond / 2;
  const results = new Map<string, Measurement[]>();
  const direct = { name: 'origin', pids: [], url: `http://127.0.0.1:${ports.origin}`, host: '' };
  for (let round = 0; round < rounds; round++)
    for (const each of [direct, ...contenders]) {
      const measured = await measureLatency(each.pids, { ...load, host: each.host, url: `${each.url}/1k` }, rate, folder, loadCpu);
      results.set(each.name, [...(results.get(each.name) ?? []), measured]);
      say(
        `latency round ${round + 1} ${each.name.padEnd(8)} at ${measured.requestsPerSecond.toFixed(0)} requests/s: p50 ${measured.p50Ms.toFixed(3)} ms, p99 ${measured.p99Ms.toFixed(3)} ms`,
      );
    }
  report.latency(results);
}

async function memory(command: (file: string) => string[], certificates: ReturnType<typeof makeCertificates>): Promise<void> {
  const at = { plain: ports.mizzen.started, tls: ports.mizzen.started + 100, tcp: ports.mizzen.started + 200, origin: ports.origin };
  const config = edge(folder, 'memory', at, certificates);
  const file = writeBootstrap(folder, 'memory', config.listeners, config.clusters);
  for (const [connections, aim] of [
    [0, 70],
    [1_000, 90],
    [10_000, 250],
  ] as const) {
    const measured: number[] = [];
    for (let round = 0; round < Math.min(rounds, 3); round++) {
      const pid = await processes.start(proxyCpu, command(file), at.plain);
      await new Promise((resolve) => setTimeout(resolve, 1_500));
      measured.push(connections === 0 ? rssMb(pid) : await rssWithIdleConnections(pid, at.plain, connections));
      await processes.end(pid);
    }
    report.value(connections === 0 ? 'RSS idle, MB' : `RSS with ${connections} idle connections, MB`, measured, aim);
  }
}

async function startTime(command: (file: string) => string[], certificates: ReturnType<typeof makeCertificates>): Promise<void> {
  const at = { plain: ports.mizzen.started, tls: ports.mizzen.started + 100, tcp: ports.mizzen.started + 200, origin: ports.origin };
  const config = edge(folder, 'start', at, certificates);
  const file = writeBootstrap(folder, 'start', config.listeners, config.clusters);
  const measured: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const before = performance.now();
    const pid = await processes.start(proxyCpu, command(file), at.plain);
    measured.push(performance.now() - before);
    await processes.end(pid);
  }
  report.value('start to ready, ms', measured, 400);
}

try {
  await main();
  report.print();
} finally {
  await processes.close();
  rmSync(folder, { recursive: true, force: true });
}
