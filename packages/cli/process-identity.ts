import { readFileSync } from 'node:fs';
import { isAlive } from './process-alive.ts';

/** `PID:START`: a process that cannot be mistaken for a later one of the same number. START is empty where the system has no /proc. */
export function processIdentity(pid: number): string {
  return `${pid}:${statOf(pid)?.start ?? ''}`;
}

export function pidOf(identity: string): number {
  return Number(identity.split(':')[0]);
}

/** Whether this very process runs; one that has ended and waits for its parent does not. */
export function isRunning(identity: string): boolean {
  const [pid, start] = identity.split(':');
  if (start === '') return isAlive(Number(pid));
  const found = statOf(Number(pid));
  return found !== undefined && found.start === start && found.state !== 'Z';
}

/** Fields 3 and 22 of proc_pid_stat(5); the name before them may contain anything. */
function statOf(pid: number): { readonly state: string; readonly start: string } | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return { state: fields[0] ?? '', start: fields[19] ?? '' };
  } catch {
    return undefined;
  }
}
