import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { MizzenError } from '@mizzen/common';
import { writeDurably } from '@mizzen/common/durable-file';

/** What a lab is made of, kept in files below the mesh's home so that other commands find it: the network, its hosts, its partitions. */
export interface LabNetwork {
  /** Begins the names of everything that it makes in the kernel. */
  readonly id: string;
  readonly bridge: string;
  /** `10.209.33` and `fd6d:697a:2109::`: what stands before the number of a host. */
  readonly prefix: string;
  readonly prefixIpv6: string | undefined;
  /** The machine itself, seen from the hosts. */
  readonly gatewayAddress: string;
  readonly xdsPort: number;
  readonly latencyMs: number;
  readonly lossPercent: number;
}

export interface LabHost {
  readonly name: string;
  readonly workload: string;
  readonly namespace: string;
  readonly number: number;
  readonly address: string;
  readonly addressIpv6: string | undefined;
  /** The process that made it and will remove it. */
  readonly owner: number;
  /** `outside`: on the machine itself, not in a namespace of its own (gateways). */
  readonly kind: 'inside' | 'outside';
}

/** How a replica is called as a host: by its name, and outside of the namespace "default" by that too. */
export function hostNameOf(name: string, namespace: string): string {
  return namespace === 'default' ? name : `${name}.${namespace}`;
}

/** Two names, or names of workloads, that do not hear each other. */
export type Partition = readonly [string, string];

const paths = (home: string) => ({ network: join(home, 'lab/network.json'), hosts: join(home, 'lab/hosts'), partitions: join(home, 'lab/partitions.json') });

export function readLab(home: string): LabNetwork | undefined {
  return readJson<LabNetwork>(paths(home).network);
}

/** Throws `no-lab` where there is none. */
export function mustReadLab(home: string): LabNetwork {
  const network = readLab(home);
  if (network) return network;
  throw new MizzenError('no-lab', 'the mesh here is no lab: its workloads share the network of this machine. Start one with `mizzen up --isolate DIR`.', home);
}

export function writeLab(home: string, network: LabNetwork): void {
  mkdirSync(paths(home).hosts, { recursive: true, mode: 0o700 });
  writeDurably(paths(home).network, JSON.stringify(network));
}

export function removeLab(home: string): void {
  rmSync(join(home, 'lab'), { recursive: true, force: true });
}

export function readHosts(home: string): LabHost[] {
  let files: string[];
  try {
    files = readdirSync(paths(home).hosts);
  } catch {
    return []; // no lab, no hosts
  }
  return files
    .filter((file) => file.endsWith('.json'))
    .map((file) => readJson<LabHost>(join(paths(home).hosts, file)))
    .filter((host) => host !== undefined)
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

export function writeHost(home: string, host: LabHost): void {
  writeDurably(join(paths(home).hosts, `${host.name}.json`), JSON.stringify(host));
}

export function removeHost(home: string, name: string): void {
  rmSync(join(paths(home).hosts, `${name}.json`), { force: true });
}

export function readPartitions(home: string): Partition[] {
  return readJson<Partition[]>(paths(home).partitions) ?? [];
}

export function writePartitions(home: string, partitions: readonly Partition[]): void {
  writeDurably(paths(home).partitions, JSON.stringify(partitions));
}

function readJson<Content>(path: string): Content | undefined {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Content;
  } catch {
    return undefined; // not there, or cut short by a crash: both mean that nothing is known
  }
}
