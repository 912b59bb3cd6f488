import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import type { Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { setImmediate } from 'node:timers/promises';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('spiffe.process');

const timeoutMs = 5_000;

/** What the kernel says of a process. */
export interface ProcessFacts {
  readonly pid: number;
  /** Effective user and group. */
  readonly uid: number;
  readonly gid: number;
  /** The real, effective, saved and filesystem ids are equal, of user and of group: no setuid program, no half-dropped privileges. */
  readonly hasOneUser: boolean;
  readonly path: string;
  /** Device and inode of the program's file. */
  readonly program: string;
  /** The path names the program's file for this agent too: same mount and user namespace, and the same file at the path. */
  readonly isPathProven: boolean;
  /** In clock ticks since boot: with the pid, no other process has it. */
  readonly startedAt: string;
}

/** undefined: it is gone, or not to be seen by this user. */
export function factsOf(pid: number): ProcessFacts | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    // proc(5): real, effective, saved, filesystem.
    const ids = (field: string) => new RegExp(`^${field}:\\t(\\d+)\\t(\\d+)\\t(\\d+)\\t(\\d+)$`, 'm').exec(status)!.slice(1).map(Number);
    const uids = ids('Uid');
    const gids = ids('Gid');
    const path = readlinkSync(`/proc/${pid}/exe`);
    const program = fileAt(`/proc/${pid}/exe`);
    if (program === undefined) return undefined;
    const isPathProven = isInNamespacesOfAgent(pid) && fileAt(path) === program;
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // proc(5): field 22, counted behind the name, which may hold anything.
    const startedAt = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]!;
    const hasOneUser = new Set(uids).size === 1 && new Set(gids).size === 1;
    return { pid, uid: uids[1]!, gid: gids[1]!, hasOneUser, path, program, isPathProven, startedAt };
  } catch {
    return undefined;
  }
}

/** Device and inode. undefined: there is no file, or this user may not see it. */
function fileAt(path: string): string | undefined {
  try {
    const { dev, ino } = statSync(path, { bigint: true });
    return `${dev}:${ino}`;
  } catch {
    return undefined;
  }
}

function isInNamespacesOfAgent(pid: number): boolean {
  return ['mnt', 'user'].every((type) => readlinkSync(`/proc/${pid}/ns/${type}`) === readlinkSync(`/proc/self/ns/${type}`));
}

/** SHA-256 of the program that a process runs, hex; also where its file has been replaced since. */
export async function programHash(pid: number): Promise<string | undefined> {
  const hash = createHash('sha256');
  try {
    for await (const chunk of boundary.own(createReadStream(`/proc/${pid}/exe`))) hash.update(chunk as Buffer);
  } catch {
    return undefined;
  }
  return hash.digest('hex');
}

/** The sockets that a process has open: inodes by descriptor. */
export function socketsOf(pid: number): ReadonlyMap<string, number> {
  const sockets = new Map<string, number>();
  try {
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      try {
        const match = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`));
        if (match) sockets.set(fd, Number(match[1]));
      } catch {
        // Closed meanwhile.
      }
    }
  } catch {
    // Gone meanwhile, or of another user.
  }
  return sockets;
}

/** A process that has a socket open. */
export interface SocketHolder {
  readonly facts: ProcessFacts;
  /** The process that created the socket had the holder's user and group. */
  readonly isOfCreator: boolean;
  /** All its descriptors of the socket are close-on-exec: the program that runs now did not inherit them. */
  readonly closesOnExec: boolean;
}

/** A Unix socket with descriptors in its queue that no process has received yet (SCM_RIGHTS). */
export interface DescriptorsInFlight {
  readonly pid: number;
  /** Of the process that has the socket open, and of the socket's creator. */
  readonly uids: readonly number[];
}

export interface SocketHolders {
  readonly holders: readonly SocketHolder[];
  /** A process that holds the socket could not be read: it is ending, or of another user. */
  readonly hasUnreadHolder: boolean;
  /** On the whole machine. A descriptor in flight is always below a socket that a process holds: otherwise the kernel collects it. */
  readonly inFlight: readonly DescriptorsInFlight[];
}

interface ProcessTable {
  /** By inode: pid and descriptor. */
  readonly sockets: ReadonlyMap<number, readonly (readonly [number, string])[]>;
  readonly inFlight: readonly DescriptorsInFlight[];
}

/** Processes that are read before the event loop has its turn. */
const maxProcessesAtOnce = 32;

async function readTable(): Promise<ProcessTable> {
  const sockets = new Map<number, [number, string][]>();
  const inFlight: DescriptorsInFlight[] = [];
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  for (const [i, name] of pids.entries()) {
    if (i % maxProcessesAtOnce === maxProcessesAtOnce - 1) await setImmediate();
    const pid = Number(name);
    for (const [fd, inode] of socketsOf(pid)) {
      const known = sockets.get(inode);
      if (known === undefined) sockets.set(inode, [[pid, fd]]);
      else known.push([pid, fd]);
      const waiting = descriptorsInFlight(pid, fd);
      if (waiting !== undefined) inFlight.push(waiting);
    }
  }
  return { sockets, inFlight };
}

function descriptorsInFlight(pid: number, fd: string): DescriptorsInFlight | undefined {
  try {
    // Of a listening socket, the kernel counts what waits in connections that were not accepted.
    if (!/^scm_fds: [1-9]/m.test(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8'))) return undefined;
    return { pid, uids: [statSync(`/proc/${pid}`).uid, statSync(`/proc/${pid}/fd/${fd}`).uid] };
  } catch {
    return undefined;
  }
}

let reading: Promise<ProcessTable> | undefined;
let next: Promise<ProcessTable> | undefined;

/** A table whose reading begins after the call. Calls that wait at the same time share one, so that requests cannot multiply the work. */
function freshTable(): Promise<ProcessTable> {
  next ??= (reading ?? Promise.resolve())
    .catch(() => {})
    .then(() => {
      reading = next;
      next = undefined;
      return readTable();
    });
  return next;
}

/** The processes that have a socket open, of those that this user may look into, and the descriptors that no process has. */
export async function holdersOf(inode: number): Promise<SocketHolders> {
  const { sockets, inFlight } = await freshTable();
  const byPid = Map.groupBy(sockets.get(inode) ?? [], ([pid]) => pid);
  const holders = [...byPid].flatMap(([pid, descriptors]) => readHolder(pid, descriptors) ?? []);
  return { holders, hasUnreadHolder: holders.length < byPid.size, inFlight };
}

function readHolder(pid: number, descriptors: readonly (readonly [number, string])[]): SocketHolder | undefined {
  const facts = factsOf(pid);
  if (facts === undefined) return undefined;
  try {
    const owners = descriptors.map(([, fd]) => statSync(`/proc/${pid}/fd/${fd}`));
    const isOfCreator = owners.every(({ uid, gid }) => uid === facts.uid && gid === facts.gid);
    const closesOnExec = descriptors.every(([, fd]) => hasCloseOnExec(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8')));
    return { facts, isOfCreator, closesOnExec };
  } catch {
    return undefined;
  }
}

/** O_CLOEXEC of proc_pid_fdinfo(5), which prints flags in octal. */
function hasCloseOnExec(fdinfo: string): boolean {
  const flags = /^flags:\t(\d+)$/m.exec(fdinfo)?.[1];
  return flags !== undefined && (Number.parseInt(flags, 8) & 0o2000000) !== 0;
}

const script = 'readlink /proc/self/fd/3 && exec ss -xHn state established';

/**
 * The inode of the other end of a connection over a Unix socket; undefined: it is gone. Node.js does not tell which socket of the kernel a connection is, but hands it to a child, which
 * sees. The kernel tells the other end by sock_diag(7) alone, which `ss` (iproute2) asks.
 */
export async function socketPeer(socket: Socket): Promise<number | undefined> {
  const child: ChildProcess = boundary.own(
    spawn('/bin/sh', ['-c', script], { stdio: ['ignore', 'pipe', 'pipe', socket], timeout: timeoutMs, killSignal: 'SIGKILL' }),
    // Output that met an exception is incomplete: the connection is refused.
    () => child.kill('SIGKILL'),
  );
  const [output, errors, [code]] = await Promise.all([text(child.stdout!), text(child.stderr!), once(child, 'close') as Promise<[number | null]>]);
  if (code !== 0)
    throw new Error(`who is at the other end of a socket cannot be found out (${errors.trim() || `ss ended with ${code}`}): ss, of iproute2, is needed`);
  const [first = '', ...lines] = output.split('\n');
  const inode = Number(/^socket:\[(\d+)\]$/.exec(first)?.[1]);
  return readPeers(lines).get(inode);
}

/** Names of sockets are anybody's to make up, lines and all: that adds lines, but takes none away. An inode that occurs twice is left out. */
export function readPeers(lines: readonly string[]): ReadonlyMap<number, number> {
  const peers = new Map<number, number>();
  const twice = new Set<number>();
  for (const line of lines) {
    const match = /^u_str\s+\d+\s+\d+\s+.*?\s+(\d+)\s+\S+\s+(\d+)\s*$/.exec(line);
    if (match === null) continue;
    const inode = Number(match[1]);
    if (peers.has(inode)) twice.add(inode);
    peers.set(inode, Number(match[2]));
  }
  for (const inode of twice) peers.delete(inode);
  return peers;
}
