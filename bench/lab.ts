import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { findKind } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { homeFiles, startControlPlane } from '@mizzen/control';
import { bindWorkload } from '../e2e/support/mesh.ts';
import { applyCapture } from '../packages/cli/capture/apply-capture.ts';
import { defaultCapture } from '../packages/cli/capture/capture-settings.ts';
import { runProgram } from '../packages/cli/capture/run-program.ts';
import { proxyCommand } from '../packages/cli/runner/program.ts';
import { captureOnHost, hostUrls } from '../packages/cli/runner/replica.ts';
import { untilReady } from '../packages/cli/runner/sidecar-process.ts';
import { commandOptions } from '../scripts/options.ts';
import { capture, cpuTicks, ticksPerSecond } from './measure.ts';
import { writeOrigin } from './peers.ts';
import { inPath, Processes } from './processes.ts';

/**
 * `npm run bench:lab [-- --seconds N] [-- --rounds N]`, as root: what capture costs, what the DNS proxy can do, and how long a lab takes to
 * start. One sidecar in a network namespace of its own, on CPU 0, is called by wrk (CPU 1) in two ways in turn: by its explicit listener,
 * and captured by the kernel. Both lead to the same origin.
 */
const { seconds, rounds } = commandOptions({ numbers: { seconds: 4, rounds: 5 } });
const root = join(import.meta.dirname, '..');
const proxyCpu = 0;
const loadCpu = cpus().length > 1 ? 1 : 0;
const namespace = `mzb-${process.pid}`;
const [outsideAddress, insideAddress] = ['10.198.7.1', '10.198.7.2'];
const originPort = 21_301;
const explicitPort = 15_002;
const say = (text: string): void => void process.stdout.write(`${text}\n`);
const median = (values: readonly number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!;
const within = (command: readonly string[]) => ['ip', 'netns', 'exec', namespace, ...command];

async function main(): Promise<void> {
  if (process.getuid?.() !== 0) throw new Error('a network namespace is made here, which needs root');
  for (const program of ['wrk', 'nginx', 'taskset', 'ip', 'nft'])
    if (!inPath(program)) throw new Error(`this bench needs ${program} (Debian: apt-get install wrk nginx-light util-linux iproute2 nftables dnsperf)`);
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-bench-lab-'));
  const processes = new Processes();
  const device = `mzb${process.pid}`.slice(0, 15);
  try {
    await run(['ip', 'netns', 'add', namespace]);
    await run(['ip', 'link', 'add', device, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace]);
    await run(['ip', 'addr', 'add', `${outsideAddress}/24`, 'dev', device]);
    await run(['ip', 'link', 'set', device, 'up']);
    for (const command of ['link set lo up', `addr add ${insideAddress}/24 dev eth0`, 'link set eth0 up', `route add default via ${outsideAddress}`])
      await run(['ip', '-n', namespace, ...command.split(' ')]);
    await applyCapture(defaultCapture, { engine: 'nftables', namespace });
    await run(['chmod', '755', folder]);
    await processes.start(loadCpu, ['nginx', '-c', writeOrigin(folder, originPort, outsideAddress)], originPort);
    const plane = await startControlPlane({ home: join(folder, 'home'), apiPort: 0, xdsPort: 0, xdsHost: outsideAddress, logger: silentLogger });
    await plane.registry.create(
      findKind('networking.istio.io', 'ServiceEntry')!,
      'default',
      {
        apiVersion: 'networking.istio.io/v1',
        kind: 'ServiceEntry',
        metadata: { name: 'web' },
        spec: {
          hosts: ['web.bench'],
          resolution: 'STATIC',
          ports: [{ number: 80, name: 'http', protocol: 'HTTP' }],
          endpoints: [{ address: outsideAddress, ports: { http: originPort } }],
        },
      },
      { manager: 'bench', origin: { source: 'api', name: 'bench' } },
    );
    await bindWorkload(plane, { name: 'bench', serviceAccount: 'default' });
    const sidecar = await startSidecar(folder, plane.xdsPort, (await plane.tokens.issue('default', 'default', [], 3600)).token);
    try {
      await untilReady(hostUrls(insideAddress).ready, AbortSignal.timeout(20_000));
      await captured(sidecar.pid!);
      await names(folder, sidecar.pid!);
    } finally {
      sidecar.kill('SIGKILL');
      await plane.close();
    }
  } finally {
    await processes.close();
    await runProgram(['ip', 'netns', 'delete', namespace]);
    await runProgram(['ip', 'link', 'delete', device]);
    rmSync(folder, { recursive: true, force: true });
  }
  await startTime();
}

async function startSidecar(folder: string, xdsPort: number, token: string) {
  const tokenFile = join(folder, 'token');
  writeFileSync(tokenFile, token);
  const config = {
    type: 'sidecar',
    name: 'bench',
    namespace: 'default',
    workload: 'bench',
    serviceAccount: 'default',
    labels: { app: 'bench' },
    trustDomain: 'cluster.local',
    address: insideAddress,
    control: `${outsideAddress}:${xdsPort}`,
    rootCertificateFile: homeFiles(join(folder, 'home')).rootCertificate,
    tokenFile,
    accessLogFile: join(folder, 'access.log'),
    outbound: `127.0.0.1:${explicitPort}`,
    ...captureOnHost(false),
  };
  const file = join(folder, 'sidecar.json');
  writeFileSync(file, JSON.stringify(config));
  // Of the sidecar's group, by which its own calls are left alone.
  const asSidecar = ['setpriv', '--regid', '1337', '--clear-groups', '--'];
  const [program, ...args] = within([...asSidecar, 'taskset', '-c', String(proxyCpu), ...proxyCommand, '--config', file, '--log-level', 'error']);
  return spawn(program!, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

/** The same requests by both ways, in turn. */
async function captured(pid: number): Promise<void> {
  const ways = { explicit: `http://127.0.0.1:${explicitPort}/1k`, captured: 'http://web.bench/1k' };
  const address = (await capture('ip', within(['dig', '+short', 'web.bench']).slice(1))).trim();
  say(`web.bench is ${address} there\n`);
  ways.captured = `http://${address}/1k`;
  const results = { explicit: [] as number[], captured: [] as number[] };
  for (let round = 0; round < rounds; round++)
    for (const way of ['explicit', 'captured'] as const) {
      const load = (duration: number) =>
        capture('ip', within(['taskset', '-c', String(loadCpu), 'wrk', '-t1', '-c32', `-d${duration}s`, '-H', 'Host: web.bench', ways[way]]).slice(1));
      await load(2);
      const before = cpuTicks(pid);
      const output = await load(seconds);
      const requests = Number(/(\d+) requests in/.exec(output)?.[1]);
      if (/Non-2xx|Socket errors/.test(output)) throw new Error(`${way}: ${output}`);
      const us = (((cpuTicks(pid) - before) / ticksPerSecond) * 1e6) / requests;
      results[way].push(us);
      say(
        `round ${round + 1} ${way.padEnd(8)} ${us.toFixed(1).padStart(6)} us of the sidecar's CPU per request, ${(requests / seconds).toFixed(0)} requests/s`,
      );
    }
  const ratio = median(results.captured.map((us, round) => us / results.explicit[round]!));
  say(`\ncaptured against explicit: ${ratio.toFixed(3)} times the CPU per request (aim: at most 1.05)${ratio > 1.05 ? ' MISSED' : ''}\n`);
}

/** Names that the table knows, asked by dnsperf at its own pace, and at a fixed rate for the latency. */
async function names(folder: string, pid: number): Promise<void> {
  if (!inPath('dnsperf')) return void say('dnsperf is not installed: names are left out (Debian: dnsperf)');
  const file = join(folder, 'names');
  writeFileSync(file, 'web.bench A\nweb.bench AAAA\n');
  const ask = (...options: string[]) =>
    capture('ip', within(['taskset', '-c', String(loadCpu), 'dnsperf', '-s', '127.0.0.1', '-p', '15053', '-d', file, '-c', '8', ...options]).slice(1));
  const perCore: number[] = [];
  for (let round = 0; round < rounds; round++) {
    await ask('-l', '1');
    const before = cpuTicks(pid);
    const output = await ask('-l', String(seconds));
    const answers = Number(/Queries completed:\s+(\d+)/.exec(output)?.[1]);
    const cpuSeconds = (cpuTicks(pid) - before) / ticksPerSecond;
    perCore.push(answers / cpuSeconds);
    say(
      `round ${round + 1} names    ${(answers / cpuSeconds).toFixed(0)} answers per CPU second, ${(answers / seconds).toFixed(0)} per second, ${/Queries lost:\s+(\S+)/.exec(output)?.[1]} lost`,
    );
  }
  const rate = median(perCore);
  say(`\nDNS answers from the table: ${rate.toFixed(0)} per second and core (aim: at least 20000)${rate < 20_000 ? ' MISSED' : ''}`);
  // Its report of each answer goes to a file: to read it meanwhile would take the CPU that is measured.
  const log = join(folder, 'latencies');
  const settings = ['-s', '127.0.0.1', '-p', '15053', '-d', file, '-c', '8', '-l', String(seconds), '-Q', '20000', '-v'];
  await capture('ip', within(['taskset', '-c', String(loadCpu), 'sh', '-c', 'exec dnsperf "$@" > "$0"', log, ...settings]).slice(1));
  const latencies = [...readFileSync(log, 'utf8').matchAll(/^> NOERROR \S+ \S+ ([\d.]+)/gm)].map(([, time]) => Number(time) * 1000).sort((a, b) => a - b);
  const p99 = latencies[Math.floor(latencies.length * 0.99)] ?? Number.NaN;
  say(
    `at ${(latencies.length / seconds).toFixed(0)} per second: p50 ${latencies[Math.floor(latencies.length / 2)]?.toFixed(3)} ms, p99 ${p99.toFixed(3)} ms (aim: under 2)${p99 >= 2 ? ' MISSED' : ''}\n`,
  );
}

/** `mizzen up --isolate` of bookinfo as it is published, from a warm install: what is built has been built once. */
async function startTime(): Promise<void> {
  const times: number[] = [];
  for (let round = 0; round < Math.min(rounds, 3) + 1; round++) {
    const home = mkdtempSync(join(tmpdir(), 'mizzen-bench-up-'));
    const startedAt = performance.now();
    const child = spawn(
      process.execPath,
      [join(root, 'dist/mizzen.js'), 'up', '--isolate', '--quiet', '--home', home, '--api-port', '0', '--xds-port', '0', join(root, 'examples/bookinfo')],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    await new Promise<void>((resolve, reject) => {
      child.stdout.on('data', (text: Buffer) => text.includes('The mesh is up') && resolve());
      child.once('exit', () => reject(new Error('mizzen up ended')));
    });
    const time = (performance.now() - startedAt) / 1000;
    if (round > 0) times.push(time);
    child.kill('SIGTERM');
    await new Promise((resolve) => child.once('exit', resolve));
    rmSync(home, { recursive: true, force: true });
  }
  const time = median(times);
  say(`mizzen up --isolate of bookinfo: ${time.toFixed(1)} s until all is ready (aim: under 6)${time >= 6 ? ' MISSED' : ''}`);
}

async function run(command: readonly string[]): Promise<void> {
  const result = await runProgram(command);
  if (result.code !== 0) throw new Error(`${command.join(' ')}: ${result.error}`);
}

await main();
