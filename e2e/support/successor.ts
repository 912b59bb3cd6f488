import { readdirSync, readFileSync } from 'node:fs';
import { until } from './http.ts';

/** Parent and state of a process. */
export function statOf(pid: number): { readonly pid: number; readonly parent: number; readonly state: string } | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const [state, parent] = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return { pid, parent: Number(parent), state: state! };
  } catch {
    return undefined; // it has ended in the meantime
  }
}

export function processesWith(argument: string): { readonly pid: number; readonly parent: number; readonly state: string }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        return readFileSync(`/proc/${name}/cmdline`, 'utf8').includes(argument) ? [statOf(Number(name))] : [];
      } catch {
        return [];
      }
    })
    .filter((found) => found !== undefined);
}

/** Ends the process that has taken over from the one with this pid, and waits until nothing of it is left. */
export async function endSuccessor(adminPort: number, predecessor: number): Promise<void> {
  const running = () => processesWith(`bootstrap-${adminPort}.json`).filter(({ pid, state }) => pid !== predecessor && state !== 'Z');
  const found = running();
  for (const { pid, parent } of found) if (!found.some((other) => other.pid === parent)) process.kill(pid, 'SIGTERM');
  await until(
    'the new process has ended',
    async () => running().length,
    (count) => count === 0,
    60_000,
  );
}
