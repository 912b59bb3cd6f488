import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { errorBoundary } from '@mizzen/common';
import { isInside, moveInside } from '../capture/capture-cgroup.ts';
import type { CaptureSubject } from '../capture/capture-settings.ts';

const boundary = errorBoundary('capture.group');

/**
 * Descendants of a captured application that the kernel's rules no longer recognize. A process with root's rights can move itself, or be moved (by pam_systemd), to another cgroup;
 * where groups are matched instead, any program that changes its group is lost (nginx, postgres, `su`, `setpriv`). Such a process is reported, and moved back where that is possible.
 */
export interface LeftProcess {
  readonly pid: number;
  readonly name: string;
  /** Where it is instead: its cgroup or its group. */
  readonly place: string;
}

const lookMs = 1_000;
/** Reported by name; a program that starts processes without end must not fill the terminal. */
const maxReported = 10;

/** The descendants of a process (itself included) whose new sockets are not captured. */
export function leftCapture(root: number, subject: CaptureSubject, procFolder = '/proc'): LeftProcess[] {
  const children = new Map<number, number[]>();
  const found = new Map<number, LeftProcess>();
  for (const entry of readdirSync(procFolder)) {
    if (!/^\d+$/.test(entry)) continue;
    const pid = Number(entry);
    try {
      const status = readFileSync(join(procFolder, entry, 'status'), 'utf8');
      const parent = Number(/^PPid:\s*(\d+)/m.exec(status)?.[1]);
      children.set(parent, [...(children.get(parent) ?? []), pid]);
      const place = placeElsewhere(subject, status, () => readFileSync(join(procFolder, entry, 'cgroup'), 'utf8'));
      if (place !== undefined) found.set(pid, { pid, name: /^Name:\s*(.*)/m.exec(status)?.[1] ?? '', place });
    } catch {
      // It has ended.
    }
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

function placeElsewhere(subject: CaptureSubject, status: string, cgroupText: () => string): string | undefined {
  // One that has ended and waits for its parent is in no place.
  if (/^State:\s*[ZX]/m.test(status)) return undefined;
  if (subject.kind === 'cgroup') {
    const text = cgroupText();
    return isInside(subject.cgroup, text) ? undefined : `cgroup=${/^0::(.*)$/m.exec(text)?.[1] ?? ''}`;
  }
  // Real, effective, saved and filesystem group: a socket gets the last.
  const group = /^Gid:\s*\d+\s+\d+\s+\d+\s+(\d+)/m.exec(status)?.[1];
  return group === undefined || Number(group) === subject.gid ? undefined : `gid=${group}`;
}

/** Reports each process once. Returns the function that ends it. */
export function watchCapture(root: number, subject: CaptureSubject, report: (text: string) => void): () => void {
  const reported = new Set<string>();
  // The first process enters the cgroup by itself, within its first milliseconds.
  const timer = boundary.every(lookMs, () => {
    for (const { pid, name, place } of leftCapture(root, subject)) {
      const isBack = subject.kind === 'cgroup' && movedBack(subject, pid);
      const key = `${name}/${place}`;
      if (reported.has(key) || reported.size >= maxReported) continue;
      reported.add(key);
      report(
        `WARNING: a process has left capture: its traffic bypasses the sidecar, without TLS and policies (program=${name} pid=${pid} ${place}). ` +
          (isBack ? 'It was moved back; connections that it has opened meanwhile are not captured. ' : '') +
          (subject.kind === 'cgroup' ? 'Start it so that it stays in its cgroup, or use --isolate.' : 'Start it so that it keeps its group, or use --isolate.'),
      );
    }
  });
  timer.unref();
  return () => clearInterval(timer);
}

function movedBack(subject: CaptureSubject & { readonly kind: 'cgroup' }, pid: number): boolean {
  try {
    moveInside(subject.cgroup, pid);
    return true;
  } catch {
    return false; // It has ended, or may not be moved.
  }
}
