import { spawn } from 'node:child_process';
import { errorBoundary, MizzenError } from '@mizzen/common';
import { homeOf } from '../home.ts';
import { Lab, removeAllLeftovers, removeLeftovers } from '../lab/lab.ts';
import { type LabHost, mustReadLab, readHosts, readPartitions, writePartitions } from '../lab/lab-state.ts';
import { processesIn, signalAll } from '../lab/network-namespace.ts';
import { applyPartitions, controlName, isNamed } from '../lab/partitions.ts';
import { formatTable, print } from '../output.ts';
import { removeDeadNamespaces } from '../runner/own-namespace.ts';

const boundary = errorBoundary('command');

export interface LabOptions {
  readonly home?: string;
}

/** `mizzen lab list`. */
export async function list(options: LabOptions): Promise<void> {
  const home = homeOf(options.home);
  mustReadLab(home);
  const partitions = readPartitions(home);
  const rows = await Promise.all(
    readHosts(home).map(async (host) => [
      host.name,
      host.kind === 'outside' ? '(this machine)' : [host.address, host.addressIpv6].filter(Boolean).join(' '),
      host.namespace || '-',
      String((await processesIn(host.namespace)).length || '-'),
      partitions.flatMap(([a, b]) => [...(isNamed(host, a) ? [b] : []), ...(isNamed(host, b) ? [a] : [])]).join(', ') || '-',
    ]),
  );
  print(formatTable(['HOST', 'ADDRESS', 'NAMESPACE', 'PROCESSES', 'CUT OFF FROM'], rows));
}

/** `mizzen lab exec HOST -- CMD`: as if logged in there; what it sends is captured. */
export async function exec(name: string, command: readonly string[], options: LabOptions): Promise<void> {
  const home = homeOf(options.home);
  const lab = Lab.join(home, mustReadLab(home));
  const [host] = insideHosts(home, name);
  const [program, ...args] = lab.command(host!, command, 'application');
  const child = boundary.own(spawn(program!, args, { stdio: 'inherit' }));
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => signal !== 'SIGINT' && child.kill(signal));
  process.exitCode = await new Promise<number>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code, signal) => resolve(code ?? (signal === 'SIGINT' ? 130 : 143)));
  });
}

/** `mizzen lab partition A B`. */
export async function partition(a: string, b: string, options: LabOptions): Promise<void> {
  const home = homeOf(options.home);
  const network = mustReadLab(home);
  for (const name of [a, b]) if (name !== controlName) namedHosts(home, name);
  if (a === controlName || namedHosts(home, a).every((host) => host.kind === 'outside')) {
    if (b === controlName || namedHosts(home, b).every((host) => host.kind === 'outside'))
      throw new MizzenError('bad-option', `${a} and ${b} both live on this machine, not on hosts of the lab: nothing lies between them`);
  }
  writePartitions(home, [...readPartitions(home).filter((known) => !isSame(known, [a, b])), [a, b]]);
  await applyPartitions(home, network, readHosts(home));
  print(`${a} and ${b} no longer hear each other (mizzen lab heal ${a} ${b})`);
}

/** `mizzen lab heal [A B]`: without names, everything. */
export async function heal(a: string | undefined, b: string | undefined, options: LabOptions): Promise<void> {
  const home = homeOf(options.home);
  const network = mustReadLab(home);
  if (a !== undefined && b === undefined) throw new MizzenError('bad-option', 'name both sides, or neither to heal everything');
  const before = readPartitions(home);
  const after = a === undefined ? [] : before.filter((known) => !isSame(known, [a, b!]));
  if (a !== undefined && after.length === before.length) throw new MizzenError('no-partition', `nothing lies between ${a} and ${b}`);
  writePartitions(home, after);
  await applyPartitions(home, network, readHosts(home));
  print(a === undefined ? 'all hear each other again' : `${a} and ${b} hear each other again`);
}

/** `mizzen lab pause|resume|kill HOST`: all that runs there, sidecar and application. */
export async function signal(verb: 'pause' | 'resume' | 'kill', name: string, options: LabOptions): Promise<void> {
  const home = homeOf(options.home);
  mustReadLab(home);
  const [sent, text] = ({ pause: ['SIGSTOP', 'paused'], resume: ['SIGCONT', 'resumed'], kill: ['SIGKILL', 'killed'] } as const)[verb];
  const hosts = insideHosts(home, name);
  const counts = await Promise.all(hosts.map((host) => signalAll(host.namespace, sent)));
  const total = counts.reduce((sum, count) => sum + count, 0);
  print(`${text}: ${hosts.map((host) => host.name).join(', ')} (${total} ${total === 1 ? 'process' : 'processes'})`);
}

/** `mizzen lab clean`: what a killed run has left. */
export async function clean(options: LabOptions & { readonly all?: boolean }): Promise<void> {
  const count = options.all ? (await removeAllLeftovers()) + (await removeDeadNamespaces()) : await removeLeftovers(homeOf(options.home));
  print(
    count === 0 ? 'there was nothing left of a lab' : `removed ${count} ${count === 1 ? 'host' : 'hosts'} with all that ran on ${count === 1 ? 'it' : 'them'}`,
  );
}

function namedHosts(home: string, name: string): LabHost[] {
  const hosts = readHosts(home);
  const found = hosts.filter((host) => isNamed(host, name));
  if (found.length > 0) return found;
  throw new MizzenError('no-such-host', `there is no host ${name} in this lab. There are: ${hosts.map((host) => host.name).join(', ')}, and ${controlName}.`);
}

function insideHosts(home: string, name: string): LabHost[] {
  const found = namedHosts(home, name).filter((host) => host.kind === 'inside');
  if (found.length > 0) return found;
  throw new MizzenError('no-such-host', `${name} lives on this machine itself, not on a host of the lab`);
}

const isSame = (one: readonly [string, string], other: readonly [string, string]) => [...one].sort().join() === [...other].sort().join();
