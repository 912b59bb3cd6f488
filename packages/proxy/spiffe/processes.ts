import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import type { Socket } from 'node:net';
import { text } from 'node:stream/consumers';

const timeoutMs = 5_000;

/** What the kernel says of a process. */
export interface ProcessFacts {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  readonly path: string;
  /** In clock ticks since boot: with the pid, no other process has it. */
  readonly startedAt: string;
}

/** undefined: it is gone, or not to be seen by this user. */
export function factsOf(pid: number): ProcessFacts | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const effective = (field: string) => Number(new RegExp(`^${field}:\\t\\d+\\t(\\d+)\\t`, 'm').exec(status)![1]);
    const path = readlinkSync(`/proc/${pid}/exe`);
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // proc(5): field 22, counted behind the name, which may hold anything.
    const startedAt = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]!;
    return { pid, uid: effective('Uid'), gid: effective('Gid'), path, startedAt };
  } catch {
    return undefined;
  }
}

/** SHA-256 of the program that a process runs, hex; also where its file has been replaced since. */
export async function programHash(pid: number): Promise<string | undefined> {
  const hash = createHash('sha256');
  try {
    for await (const chunk of createReadStream(`/proc/${pid}/exe`)) hash.update(chunk as Buffer);
  } catch {
    return undefined;
  }
  return hash.digest('hex');
}

/** The sockets that a process has open, by inode. */
export function socketsOf(pid: number): ReadonlySet<number> {
  const sockets = new Set<number>();
  try {
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      try {
        const match = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`));
        if (match) sockets.add(Number(match[1]));
      } catch {
        // Closed meanwhile.
      }
    }
  } catch {
    // Gone meanwhile, or another user's.
  }
  return sockets;
}

/** The processes that have a socket open, of those that this user may look into. */
export function holdersOf(inode: number): ProcessFacts[] {
  const pids = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
  return pids.filter((pid) => socketsOf(pid).has(inode)).flatMap((pid) => factsOf(pid) ?? []);
}

const script = 'readlink /proc/self/fd/3 && exec ss -xHn state established';

/**
 * The inode of the other end of a connection over a Unix socket; undefined: it is gone. Node.js does not tell which socket of the kernel a connection is, but hands it to a child, which
 * sees. The kernel tells the other end by sock_diag(7) alone, which `ss` (iproute2) asks.
 */
export async function socketPeer(socket: Socket): Promise<number | undefined> {
  const child = spawn('/bin/sh', ['-c', script], { stdio: ['ignore', 'pipe', 'pipe', socket], timeout: timeoutMs, killSignal: 'SIGKILL' });
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
