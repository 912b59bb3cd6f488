import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { errorBoundary } from '@mizzen/common';
import type { CaptureSubject } from '../capture/capture-settings.ts';
import { watchCapture } from './left-capture.ts';

const boundary = errorBoundary('application.process');

/** Runs one application in this one's place: with its terminal, its signals, and its exit code. */
export interface ApplicationOptions {
  readonly env: Readonly<Record<string, string>>;
  /** How the kernel's rules recognize it; undefined: nothing is captured, or all that its network namespace sends. */
  readonly subject?: CaptureSubject | undefined;
  /** Awaited before the application is asked to end: it must no longer be called then. */
  readonly beforeStop: () => Promise<void>;
  /** How long it may take to end when asked, in milliseconds. */
  readonly stopMs?: number;
}

/** Passed on as they come. A terminal sends SIGINT and SIGQUIT to the application itself. */
const passedOn = ['SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGQUIT', 'SIGCONT', 'SIGWINCH'] as const;
const defaultStopMs = 30_000;

/** Resolves with the exit code as a shell would have it: 127 when the program is not there, 128 and the signal's number when it was killed. */
export async function runApplication(command: readonly string[], options: ApplicationOptions): Promise<number> {
  const [program, ...args] = command;
  const { subject } = options;
  const child = boundary.own(spawn(program!, args, { stdio: 'inherit', env: { ...options.env }, ...(subject?.kind === 'group' ? { gid: subject.gid } : {}) }));
  const endWatch =
    subject === undefined || child.pid === undefined ? undefined : watchCapture(child.pid, subject, (text) => process.stderr.write(`mizzen: ${text}\n`));
  const isInTerminal = process.stdin.isTTY === true;
  const listeners = new Map<NodeJS.Signals, () => void>();
  const listen = (signal: NodeJS.Signals, listener: () => void) => {
    // An exception: the application receives the signal itself.
    const guarded = boundary.wrap(listener, () => isInTerminal || child.kill(signal));
    process.on(signal, guarded);
    listeners.set(signal, guarded);
  };
  let killTimer: NodeJS.Timeout | undefined;
  let isStopping = false;
  const stop = (signal: NodeJS.Signals) => {
    // Whoever asks twice wants it now.
    if (isStopping) return void child.kill(signal);
    isStopping = true;
    const end = () => {
      child.kill(signal);
      killTimer = setTimeout(() => child.kill('SIGKILL'), options.stopMs ?? defaultStopMs);
    };
    boundary.start(() => options.beforeStop().then(end), end);
  };
  for (const signal of passedOn) listen(signal, () => (signal === 'SIGQUIT' && isInTerminal ? undefined : void child.kill(signal)));
  listen('SIGTERM', () => stop('SIGTERM'));
  // In a terminal the application has got it too and decides what it means: to psql, say, the end of a query only.
  listen('SIGINT', () => (isInTerminal ? undefined : stop('SIGINT')));
  try {
    return await new Promise<number>((resolve) => {
      child.once('error', (error: NodeJS.ErrnoException) => {
        const isMissing = error.code === 'ENOENT';
        process.stderr.write(
          `mizzen: ${isMissing ? `the program ${JSON.stringify(program)} was not found in PATH` : error.code === 'EACCES' ? `${JSON.stringify(program)} is no program that may be run` : error.message}\n`,
        );
        resolve(isMissing ? 127 : 126);
      });
      child.once('exit', (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : (constants.signals[signal] ?? 0))));
    });
  } finally {
    clearTimeout(killTimer);
    endWatch?.();
    for (const [signal, listener] of listeners) process.off(signal, listener);
  }
}
