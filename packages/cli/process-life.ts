import { errorBoundary } from '@mizzen/common';
import { isRunning } from './process-identity.ts';

const boundary = errorBoundary('process');

/** Runs `close` on SIGINT or SIGTERM, once, and then ends the process. */
export function onStopSignal(close: () => Promise<void>): void {
  let isClosing = false;
  const stop = () => {
    if (isClosing) return;
    isClosing = true;
    closeAndExit(close);
  };
  // A signal is not sent again: after an exception it is handled again. A stop that has begun cannot be repeated.
  const guarded = boundary.wrap(stop, () => (!isClosing && boundary.run(stop)) || process.exit(1));
  process.on('SIGINT', guarded);
  process.on('SIGTERM', guarded);
}

/** Closes, and ends the process whatever comes of it. */
export function closeAndExit(close: () => Promise<unknown>): void {
  close()
    .then(() => process.exit(0))
    .catch((error: unknown) => {
      process.stderr.write(`while stopping: ${error instanceof Error ? error.message : String(error)}\n`);
      process.exit(1);
    });
}

const parentCheckMs = 1_000;

/** A part that the runner has started does not outlive it, even when the runner is killed. Does nothing for one started by hand. */
export function exitWithParent(close: () => void): void {
  if (process.env['MIZZEN_RUNNER_PID'] === undefined) return;
  const runner = Number(process.env['MIZZEN_RUNNER_PID']);
  // A process that was started by a hot restart ends with the first process of its proxy, which ends with the runner.
  const first = process.env['MIZZEN_HOT_RESTART_FIRST'];
  const timer = boundary.every(parentCheckMs, () => {
    if (first === undefined ? process.ppid === runner : isRunning(first)) return;
    clearInterval(timer);
    close();
  });
  timer.unref();
}

/** A supervisor knows this very process: the runner, or, for the first process of a container, the runtime. */
export function isSupervised(): boolean {
  return process.pid === 1 || process.env['MIZZEN_RUNNER_PID'] !== undefined;
}

/** What a proxy that has a channel to its runner is asked, and what it says. */
export type ToProxy = { readonly kind: 'drain' };
export type FromProxy = { readonly kind: 'drained' };

/** The runner may ask for a drain before it stops the application, and only then this proxy. */
export function onDrainRequest(drain: () => Promise<void>): void {
  if (process.send === undefined) return;
  const received = (message: ToProxy | undefined) => {
    if (message?.kind !== 'drain') return;
    const said: FromProxy = { kind: 'drained' };
    const tell = () => process.send?.(said, undefined, undefined, () => {});
    boundary.start(() => drain().then(tell), tell);
  };
  process.on('message', (message: ToProxy | undefined) => {
    boundary.run(() => received(message)) || boundary.run(() => received(message));
  });
  // A channel is no reason to live.
  process.channel?.unref();
}
