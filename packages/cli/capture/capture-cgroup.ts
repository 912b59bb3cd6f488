import { mkdirSync, readdirSync, readFileSync, rmdirSync, statSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { MizzenError, messageOf } from '@mizzen/common';
import { isAlive } from '../process-alive.ts';

/**
 * A cgroup (version 2) by which the kernel's rules recognize what one application sends. A socket belongs to the cgroup of the process that
 * opened it, children inherit it, and a process cannot change it by changing its user or group. It is made below the cgroup of this process,
 * so that limits on memory and CPU still apply to the application (cgroups(7), nft(8) `socket cgroupv2`).
 */
export interface Cgroup {
  /** Its folder in the mounted hierarchy. */
  readonly folder: string;
  /** From the root of the hierarchy, or of this process's cgroup namespace, as the kernel resolves it. */
  readonly path: string;
  /** How many cgroups deep it lies. */
  readonly level: number;
}

const namePrefix = 'mizzen-run-';
/** nft resolves the path of a cgroup from here, wherever cgroup2 is mounted. */
const folderOfNft = '/sys/fs/cgroup';
/** A machine has some hundreds. */
const maxVisitedCgroups = 20_000;
const terminateMs = 5_000;
const killMs = 2_000;
const pollMs = 10;

export interface CgroupSources {
  readonly mountInfo: string;
  /** /proc/self/cgroup. */
  readonly ownCgroups: string;
  /** The user that owns a folder. */
  ownerOf(folder: string): number;
}

/** Makes the cgroup of this process's application. Throws `no-cgroup` with the reason. */
export function makeCgroup(sources: CgroupSources = systemSources()): Cgroup {
  const cgroup = placeOf(sources);
  try {
    // One of this number was left by another process that had it: its name is reused, its processes are not.
    removeFolders(cgroup.folder);
    mkdirSync(cgroup.folder);
  } catch (error) {
    throw new MizzenError('no-cgroup', `a cgroup cannot be made: ${messageOf(error)}`);
  }
  return cgroup;
}

/** Where it belongs: below the deepest cgroup of this process whose owner and whose ancestors' owner is root. The owner of a cgroup could move processes out of it. */
export function placeOf({ mountInfo, ownCgroups, ownerOf }: CgroupSources): Cgroup {
  const mount = cgroupMount(mountInfo);
  if (mount === undefined) throw new MizzenError('no-cgroup', 'cgroup2 is not mounted');
  const own = /^0::(\/.*)$/m.exec(ownCgroups)?.[1];
  if (own === undefined || own.startsWith('/..') || own.endsWith(' (deleted)'))
    throw new MizzenError('no-cgroup', 'this process is not in a cgroup that is mounted here');
  const root = mount.root === '/' ? '' : mount.root;
  if (own !== root && !own.startsWith(`${root}/`)) throw new MizzenError('no-cgroup', 'the cgroup of this process is not mounted here');
  const prefixes = [''];
  for (const part of own.slice(root.length).split('/').filter(Boolean)) prefixes.push(`${prefixes[prefixes.length - 1]}/${part}`);
  let parent = '';
  for (const prefix of prefixes) {
    if (ownerOf(`${mount.folder}${prefix}`) !== 0) break;
    parent = prefix;
  }
  const path = `${root}${parent}/${namePrefix}${process.pid}`;
  return { folder: `${mount.folder}${parent}/${namePrefix}${process.pid}`, path, level: path.split('/').length - 1 };
}

/** The mounted cgroup2 hierarchy (proc_pid_mountinfo(5)); where it is mounted in several places, the one that shows most of it. */
export function cgroupMount(mountInfo: string): { readonly folder: string; readonly root: string } | undefined {
  let best: { readonly folder: string; readonly root: string } | undefined;
  for (const line of mountInfo.split('\n')) {
    const [before, after] = line.split(' - ');
    if (before === undefined || !after?.startsWith('cgroup2 ')) continue;
    const [, , , root, folder] = before
      .split(' ')
      .map((field) => field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8))));
    if (root === undefined || folder === undefined || root.startsWith('/..')) continue;
    if (best === undefined || root.length < best.root.length) best = { folder: folder === '/' ? '' : folder, root };
  }
  return best;
}

/** As nft's rules name it. */
export function nftPath(cgroup: Cgroup): string {
  return relative(folderOfNft, cgroup.folder);
}

/** The command that runs `command` inside. Process number, terminal and signals stay the same. */
export function commandInside(cgroup: Cgroup, command: readonly string[]): readonly string[] {
  return ['sh', '-c', 'echo "$$" > "$0" || exit 126; exec "$@"', join(cgroup.folder, 'cgroup.procs'), ...command];
}

export function moveInside(cgroup: Cgroup, pid: number): void {
  writeFileSync(join(cgroup.folder, 'cgroup.procs'), String(pid));
}

/** Whether a process is in this cgroup or below; `text` is its /proc/PID/cgroup. */
export function isInside(cgroup: Cgroup, text: string): boolean {
  const path = /^0::(\/.*)$/m.exec(text)?.[1];
  return path === cgroup.path || path?.startsWith(`${cgroup.path}/`) === true;
}

/** The processes inside, those of cgroups below included. */
export function processesInside(folder: string): number[] {
  return [folder, ...foldersBelow(folder)].flatMap((each) => {
    try {
      return readFileSync(join(each, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number);
    } catch {
      return []; // It has been removed.
    }
  });
}

/**
 * Ends what still runs inside, first by SIGTERM, and removes the cgroup. Resolves with the processes that could not be ended: while there are
 * any, the rules must stay, or their traffic would no longer be captured.
 */
export async function endCgroup(cgroup: Cgroup): Promise<number[]> {
  if (processesInside(cgroup.folder).length > 0) {
    signalAll(cgroup.folder, 'SIGTERM');
    if (!(await isEmptyWithin(cgroup.folder, terminateMs))) {
      signalAll(cgroup.folder, 'SIGKILL');
      await isEmptyWithin(cgroup.folder, killMs);
    }
  }
  const left = processesInside(cgroup.folder);
  if (left.length === 0) removeFolders(cgroup.folder);
  return left;
}

/** Removes the cgroups of runs that were killed. Returns those that have processes still, by the number of the run. */
export function removeDeadCgroups(sources: CgroupSources = systemSources()): Map<number, readonly number[]> {
  const inUse = new Map<number, readonly number[]>();
  const mount = cgroupMount(sources.mountInfo);
  if (mount === undefined) return inUse;
  for (const folder of foldersBelow(mount.folder)) {
    const [, pid] = /\/mizzen-run-(\d+)$/.exec(folder) ?? [];
    if (pid === undefined || isAlive(Number(pid))) continue;
    const left = processesInside(folder);
    if (left.length > 0) inUse.set(Number(pid), left);
    else removeFolders(folder);
  }
  return inUse;
}

function signalAll(folder: string, signal: NodeJS.Signals): void {
  if (signal === 'SIGKILL') {
    try {
      // Linux 5.14: all of them at once, also those that fork meanwhile.
      return writeFileSync(join(folder, 'cgroup.kill'), '1');
    } catch {
      // An older kernel: one after the other.
    }
  }
  for (const pid of processesInside(folder)) {
    try {
      process.kill(pid, signal);
    } catch {
      // It has ended.
    }
  }
}

async function isEmptyWithin(folder: string, limitMs: number): Promise<boolean> {
  for (const endMs = Date.now() + limitMs; Date.now() < endMs; await delay(pollMs)) if (processesInside(folder).length === 0) return true;
  return false;
}

/** Deepest last. */
function foldersBelow(folder: string): string[] {
  const found: string[] = [];
  for (const waiting = [folder]; waiting.length > 0 && found.length < maxVisitedCgroups; ) {
    const current = waiting.pop()!;
    try {
      for (const entry of readdirSync(current, { withFileTypes: true })) {
        if (!entry.isDirectory()) continue;
        found.push(join(current, entry.name));
        waiting.push(join(current, entry.name));
      }
    } catch {
      // It has been removed.
    }
  }
  return found;
}

/** cgroups are folders that can be removed when no cgroup is left in them; their files go by themselves. */
function removeFolders(folder: string): void {
  for (const each of [folder, ...foldersBelow(folder)].sort((a, b) => b.length - a.length)) {
    try {
      rmdirSync(each);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
}

function systemSources(): CgroupSources {
  return {
    mountInfo: readOr('/proc/self/mountinfo'),
    ownCgroups: readOr('/proc/self/cgroup'),
    ownerOf: (folder) => statSync(folder).uid,
  };
}

function readOr(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}
