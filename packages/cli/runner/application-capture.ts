import { MizzenError } from '@mizzen/common';
import { applyCapture, removeCapture } from '../capture/apply-capture.ts';
import { commandInside, endCgroup, makeCgroup, removeDeadCgroups } from '../capture/capture-cgroup.ts';
import type { CaptureSettings, CaptureSubject } from '../capture/capture-settings.ts';
import { runProgram } from '../capture/run-program.ts';
import { isAlive } from '../process-alive.ts';
import { isInPath } from './program.ts';

/**
 * The kernel's rules for one application of `mizzen run --capture`. They recognize it by a cgroup where the kernel can match one, which is tried, else by a group. Rules and
 * cgroup are removed at the end; those of a run that was killed are removed by the next one.
 */
export interface ApplicationCapture {
  readonly subject: CaptureSubject;
  /** The command that runs `command` captured. */
  command(command: readonly string[]): readonly string[];
  /** Ends the processes that the application has left running. */
  end(): Promise<void>;
  remove(): Promise<void>;
}

export const captureKinds = ['cgroup', 'group'] as const;
export type CaptureKind = (typeof captureKinds)[number];

export const runTablePrefix = 'mizzen_run_';
const engine = { engine: 'nftables' } as const;
/** Groups that are not in use: above what distributions, containers and user namespaces hand out by default. */
const firstGid = 1_900_000_000;
/** One datagram to a port that is not in use here; the rule that recognizes the sender counts it. */
const probe = "require('node:dgram').createSocket('udp4').send('', 9, '127.0.0.1', () => process.exit())";

/** Throws `no-cgroup` where `kind` demands a cgroup and the kernel cannot match it, and what applyCapture throws. */
export async function captureApplication(settings: CaptureSettings, kind: CaptureKind | undefined): Promise<ApplicationCapture> {
  let reason = '';
  if (kind !== 'group') {
    try {
      return await captureByCgroup(settings);
    } catch (error) {
      if (!(error instanceof MizzenError) || !['no-cgroup', 'capture-failed'].includes(error.code)) throw error;
      if (kind === 'cgroup') throw new MizzenError('no-cgroup', `--capture-by cgroup is not possible here: ${error.message}`);
      reason = error.message;
    }
  }
  const subject = { kind: 'group', gid: firstGid + process.pid } as const;
  await applyCapture({ ...settings, only: subject }, engine);
  if (reason !== '')
    process.stderr.write(
      `mizzen: WARNING: the program is captured by its group, since its cgroup cannot be matched: ${reason}. ` +
        'What it runs as another group bypasses the sidecar. Use --isolate for such programs, or --capture-by cgroup to refuse this.\n',
    );
  return {
    subject,
    command: (command) => command,
    end: async () => {},
    remove: () => removeCapture(settings.table, engine),
  };
}

async function captureByCgroup(settings: CaptureSettings): Promise<ApplicationCapture> {
  const cgroup = makeCgroup();
  let left: readonly number[] = [];
  const end = async () => {
    left = await endCgroup(cgroup);
  };
  try {
    await applyCapture({ ...settings, only: { kind: 'cgroup', cgroup } }, engine);
    const tried = await runProgram(commandInside(cgroup, [process.execPath, '-e', probe]));
    if (tried.code !== 0) throw new MizzenError('no-cgroup', `a process cannot be started in a cgroup: ${tried.error.trim()}`);
    const { output } = await runProgram(['nft', 'list', 'chain', 'inet', settings.table, 'output']);
    if (!/counter packets [1-9]/.test(output)) throw new MizzenError('no-cgroup', 'this kernel does not match the cgroup of a socket');
  } catch (error) {
    await end();
    await removeCapture(settings.table, engine).catch(() => {});
    throw error;
  }
  return {
    subject: { kind: 'cgroup', cgroup },
    // A program that is missing is reported by its name, not by the shell that enters the cgroup.
    command: (command) => (command[0]!.includes('/') || isInPath(command[0]!) ? commandInside(cgroup, command) : command),
    end,
    async remove() {
      if (left.length === 0) return removeCapture(settings.table, engine);
      process.stderr.write(`mizzen: WARNING: processes of the application cannot be ended, and their traffic is refused (pid=${left.join(',')})\n`);
    },
  };
}

/**
 * Rules and cgroups of runs that were killed before they could remove them. Rules whose processes still run stay: without a sidecar their traffic is refused, without rules it would
 * leave in clear text.
 */
export async function removeDeadCaptures(): Promise<void> {
  const inUse = removeDeadCgroups();
  for (const [pid, left] of inUse)
    process.stderr.write(
      `mizzen: WARNING: a run was killed and its application still runs: its traffic is refused until it ends (run=${pid} pid=${left.join(',')})\n`,
    );
  const { output } = await runProgram(['nft', 'list', 'tables']);
  for (const [, table, pid] of output.matchAll(/^table inet (mizzen_run_(\d+))$/gm))
    if (!isAlive(Number(pid)) && !inUse.has(Number(pid))) await removeCapture(table!, engine);
}
