import { existsSync, rmSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { errorBoundary, keepServingAfterErrors, Logger, MizzenError, parseDurationMs } from '@mizzen/common';
import { homeFiles } from '@mizzen/control';
import { homeOf } from '../home.ts';
import { formatTable, paint, printLive as print } from '../output.ts';
import { closeAndExit } from '../process-life.ts';
import { MeshRunner } from '../runner/mesh-runner.ts';

const boundary = errorBoundary('process');

export interface UpOptions {
  readonly home?: string;
  readonly fresh?: boolean;
  readonly quiet?: boolean;
  readonly isolate?: boolean;
  readonly latency?: string;
  readonly loss?: string;
  readonly apiPort: string;
  readonly xdsPort: string;
}

/** `--isolate`, and how good the network between hosts is. */
function isolation({ isolate, latency, loss }: UpOptions): { readonly latencyMs: number; readonly lossPercent: number } | undefined {
  if (!isolate) {
    if (latency !== undefined || loss !== undefined)
      throw new MizzenError('bad-option', '--latency and --loss are of the network between hosts: they need --isolate');
    return undefined;
  }
  const latencyMs = latency === undefined ? 0 : parseDurationMs(latency);
  if (latencyMs === undefined || latencyMs > 60_000)
    throw new MizzenError('bad-option', `--latency ${latency} is not understood: write a duration such as 20ms, up to 60s`);
  const lossPercent = loss === undefined ? 0 : Number(/^(\d+(?:\.\d{1,2})?)%?$/.exec(loss)?.[1] ?? Number.NaN);
  if (!(lossPercent >= 0 && lossPercent <= 100)) throw new MizzenError('bad-option', `--loss ${loss} is not understood: write a percentage such as 1% or 0.5%`);
  return { latencyMs, lossPercent };
}

const colours = ['cyan', 'magenta', 'yellow', 'green', 'blue'] as const;

/** `mizzen up DIR`: a whole mesh on this machine until Ctrl-C. */
export async function up(directory: string, options: UpOptions): Promise<void> {
  const folder = resolve(directory);
  if (!existsSync(folder)) throw new MizzenError('no-such-folder', 'this folder does not exist', folder);
  const home = homeOf(options.home);
  if (options.fresh) for (const suffix of ['', '-wal', '-shm']) rmSync(`${homeFiles(home).store}${suffix}`, { force: true });
  const startedAt = Date.now();
  const nameColours = new Map<string, (typeof colours)[number]>();
  const prefix = (name: string) => {
    if (!nameColours.has(name)) nameColours.set(name, colours[nameColours.size % colours.length]!);
    return paint(`${name.padEnd(18)} |`, nameColours.get(name)!);
  };
  const runner = new MeshRunner({
    directory: folder,
    home,
    apiPort: Number(options.apiPort),
    xdsPort: Number(options.xdsPort),
    isolate: isolation(options),
    logger: new Logger('mizzen'),
    onLine: (name, line) => {
      if (!options.quiet || name === 'control') print(`${prefix(name)} ${line}`);
    },
    onNotice: (name, text) => print(`${prefix(name)} ${paint(text, 'yellow')}`),
    onProgress: (text) => print(paint(`  ${((Date.now() - startedAt) / 1000).toFixed(1).padStart(5)} s  ${text}`, 'dim')),
  });
  let stopping: Promise<void> | undefined;
  const stop = (signal: NodeJS.Signals) => {
    if (stopping) return;
    print(`\n${paint('stopping', 'bold')} (${signal}): workloads, sidecars, gateway, control plane...`);
    stopping = runner.stop().then(() => print('stopped'));
    closeAndExit(async () => stopping);
  };
  const guarded = boundary.wrap(stop, () => (stopping === undefined && boundary.run(() => stop('SIGTERM'))) || process.exit(1));
  process.on('SIGINT', guarded);
  process.on('SIGTERM', guarded);
  print(paint(`Starting the mesh of ${basename(folder)} (state in ${home})`, 'bold'));
  try {
    await runner.start();
  } catch (error) {
    await runner.stop();
    throw error;
  }
  keepServingAfterErrors(new Logger('mizzen'), 'runner');
  if (stopping) return;
  print(`\n${paint('The mesh is up', 'bold')} after ${((Date.now() - startedAt) / 1000).toFixed(1)} s. What runs where:\n`);
  const rows = runner
    .addresses()
    .map((address) => [
      address.name,
      address.kind,
      String(address.pid ?? '-'),
      address.ports.map((port) => `${port.port} -> ${port.listen}`).join(', ') || '-',
      address.address ?? address.outbound ?? '-',
      address.adminPort === undefined ? '-' : `${address.address === undefined ? '' : `${address.name} `}127.0.0.1:${address.adminPort}`,
    ]);
  print(formatTable(['NAME', 'KIND', 'PID', 'SERVICE PORT -> SIDECAR', options.isolate ? 'ADDRESS' : 'OUTBOUND', 'ADMIN'], rows));
  for (const { name, problem } of runner.problems()) print(paint(`\n${name} does not run: ${problem}`, 'red'));
  const hint = join(folder, 'TRY.md');
  if (existsSync(hint)) {
    const { readFileSync } = await import('node:fs');
    print(`\n${readFileSync(hint, 'utf8').trimEnd()}\n`);
  }
  const inside = runner.addresses().find((address) => address.address !== undefined);
  if (inside !== undefined)
    print(
      `\nEach workload is a host of its own, and its traffic is captured:\n   ./mizzen lab list\n   ./mizzen lab exec ${inside.workload} -- curl -s http://SERVICE:PORT/\n   ./mizzen lab partition ${inside.workload} control    (then: ./mizzen lab heal)`,
    );
  print(paint('Ctrl-C stops everything.', 'dim'));
}
