import { existsSync } from 'node:fs';
import { MizzenError } from '@mizzen/common';
import { type ProgramResult, runProgram } from '../capture/run-program.ts';

/** The kernel's side of a lab, by way of ip(8) of iproute2 and nft(8): bridges, network namespaces, and the processes in them. */

/** Runs commands of ip(8), in one process and in order; the first that fails ends it. `namespace`: as if inside. */
export async function ipCommands(commands: readonly string[], namespace?: string): Promise<void> {
  const result = await runProgram(['ip', ...(namespace === undefined ? [] : ['-n', namespace]), '-batch', '-'], `${commands.join('\n')}\n`);
  if (result.code !== 0) throw failure('ip', result);
}

/** Runs a program inside a namespace. Throws when it fails. */
export async function inNamespace(namespace: string, command: readonly string[], input?: string): Promise<string> {
  const result = await runProgram(['ip', 'netns', 'exec', namespace, ...command], input);
  if (result.code !== 0) throw failure(command[0]!, result);
  return result.output;
}

export function namespaceExists(namespace: string): boolean {
  return existsSync(`/run/netns/${namespace}`);
}

export async function processesIn(namespace: string): Promise<number[]> {
  if (!namespaceExists(namespace)) return [];
  const { output } = await runProgram(['ip', 'netns', 'pids', namespace]);
  return output.split('\n').filter(Boolean).map(Number);
}

/** Signals every process of a namespace. Returns how many there were. */
export async function signalAll(namespace: string, signal: NodeJS.Signals): Promise<number> {
  const pids = await processesIn(namespace);
  for (const pid of pids) {
    try {
      process.kill(pid, signal);
    } catch {
      // It has ended between the look and the signal.
    }
  }
  return pids.length;
}

/** Removes one end of a cable, and the other with it. None there is none to remove. */
export async function removeLink(name: string): Promise<void> {
  await runProgram(['ip', 'link', 'delete', name]);
}

/**
 * Ends what runs in a namespace and removes it. `cable` is the outer end of its cable: the kernel takes it away with the namespace, but
 * later, when it finds the time.
 */
export async function removeNamespace(namespace: string, cable?: string): Promise<void> {
  if (!namespaceExists(namespace)) return;
  for (let attempt = 0; attempt < 50 && (await signalAll(namespace, 'SIGKILL')) > 0; attempt++) await new Promise((resolve) => setTimeout(resolve, 10));
  if (cable !== undefined) await removeLink(cable);
  const result = await runProgram(['ip', 'netns', 'delete', namespace]);
  if (result.code !== 0 && namespaceExists(namespace)) throw failure('ip', result);
}

export async function namespacesWithPrefix(prefix: string): Promise<string[]> {
  const { output } = await runProgram(['ip', 'netns', 'list']);
  return output
    .split('\n')
    .map((line) => line.split(' ')[0]!)
    .filter((name) => name.startsWith(prefix));
}

function failure(program: string, result: ProgramResult): MizzenError {
  if (result.code === undefined)
    return new MizzenError(
      'no-iproute2',
      `the program ${program} was not found. A lab needs iproute2 and nftables (Debian: apt-get install iproute2 nftables).`,
    );
  const text = result.error.trim();
  if (/Operation not permitted|Permission denied|must be root/i.test(text))
    return new MizzenError(
      'no-privileges',
      'a lab makes network namespaces, which needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN). `mizzen up` without --isolate needs neither.',
    );
  return new MizzenError('lab-failed', `${program} says: ${text.split('\n').slice(0, 3).join('; ')}`);
}
