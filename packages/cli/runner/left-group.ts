import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('capture.group');

/**
 * The rules of `mizzen run --capture` select packets by the group of the process that sends them. A program can change its group (nginx, postgres, `su`, `setpriv`), and then its
 * traffic bypasses the sidecar in clear text. This looks for such processes among the descendants of the application and has each one reported.
 */
export interface LeftProcess {
  readonly pid: number;
  readonly name: string;
  readonly gid: number;
}

const lookMs = 1_000;
/** Reported by name; a program that starts processes without end must not fill the terminal. */
const maxReported = 10;

/** The descendants of a process (itself included) whose sockets belong to another group than `gid`. */
export function leftGroup(root: number, gid: number, procFolder = '/proc'): LeftProcess[] {
  const children = new Map<number, number[]>();
  const found = new Map<number, LeftProcess>();
  for (const entry of readdirSync(procFolder)) {
    if (!/^\d+$/.test(entry)) continue;
    let status: string;
    try {
      status = readFileSync(join(procFolder, entry, 'status'), 'utf8');
    } catch {
      continue; // It has ended.
    }
    const pid = Number(entry);
    const parent = Number(/^PPid:\s*(\d+)/m.exec(status)?.[1]);
    // Real, effective, saved and filesystem group: a socket gets the last.
    const group = Number(/^Gid:\s*\d+\s+\d+\s+\d+\s+(\d+)/m.exec(status)?.[1]);
    children.set(parent, [...(children.get(parent) ?? []), pid]);
    if (!Number.isNaN(group) && group !== gid) found.set(pid, { pid, name: /^Name:\s*(.*)/m.exec(status)?.[1] ?? '', gid: group });
  }
  const left: LeftProcess[] = [];
  const seen = new Set<number>();
  for (const waiting = [root]; waiting.length > 0; ) {
    const pid = waiting.pop()!;
    if (seen.has(pid)) continue;
    seen.add(pid);
    const one = found.get(pid);
    if (one !== undefined) left.push(one);
    waiting.push(...(children.get(pid) ?? []));
  }
  return left;
}

/** Reports each process once. Returns the function that ends it. */
export function watchGroup(root: number, gid: number, report: (text: string) => void): () => void {
  const reported = new Set<string>();
  const timer = boundary.every(lookMs, () => {
    for (const { pid, name, gid: group } of leftGroup(root, gid)) {
      const key = `${name}/${group}`;
      if (reported.has(key) || reported.size >= maxReported) continue;
      reported.add(key);
      report(
        `WARNING: a process has left the captured group: its traffic bypasses the sidecar, without TLS and policies (program=${name} pid=${pid} gid=${group}). ` +
          'Start it so that it keeps its group, or use --isolate.',
      );
    }
  });
  timer.unref();
  return () => clearInterval(timer);
}
