import net from 'node:net';
import { createInterface } from 'node:readline';
import { emitAgain, errorBoundary, type Logger, messageOf } from '@mizzen/common';
import { hotRestartEpoch, type StartedProxy } from '@mizzen/proxy';
import { pidOf, processIdentity, isRunning as runs } from './process-identity.ts';
import { closeAndExit, isSupervised } from './process-life.ts';

const boundary = errorBoundary('process');

/**
 * The processes of one proxy while it is restarted again and again. SIGUSR2 starts a successor; the process before it keeps the streams that
 * are open, and ends with the last of them. One process serves; older ones drain.
 *
 * - SIGUSR2 and SIGTERM to the first process or to the one that serves concern the proxy: restart it, or end all its processes. The
 *   process that serves ends last, after all older ones; a supervised first process ends after that one.
 * - SIGHUP to a draining process, or SIGTERM to one that is not the first, ends that one within the drain time.
 * - When more than `maxDraining` processes drain, the oldest end within the drain time.
 *
 * The first process and the one that serves have a pipe between them (descriptor 4), which the latter gives to its successor. Its end tells each that
 * the other is gone. Older processes are known by pid and start time.
 */
export interface GenerationsOptions {
  readonly maxDraining: number;
  readonly drainMs: number;
}

const olderVariable = 'MIZZEN_HOT_RESTART_OLDER';
const firstVariable = 'MIZZEN_HOT_RESTART_FIRST';
const lineDescriptor = 4;
const checkMs = 50;
/** After an exception of this process's own. */
const retryMs = 1_000;
/** An older process that has not ended this long after its drain time is killed. */
const overdueMs = 5_000;

type Role = 'serving' | 'restarting' | 'draining';

export class Generations {
  readonly #running: StartedProxy;
  readonly #options: GenerationsOptions;
  readonly #logger: Logger;
  /** Others know the proxy by this process. After an unsupervised first process has ended, it is the one that serves. */
  #isFirst: boolean;
  /** The processes that may still drain, the oldest first. */
  readonly #older: readonly string[];
  #line: net.Socket | undefined;
  /** Of the first process: the one that serves in its place. */
  #serving: string | undefined;
  #role: Role;
  /** Settles when the successor serves or has failed. */
  #restarting: Promise<void> | undefined;
  #isStopping: boolean;
  /** The process that served has said that it ends in order. */
  #hasStopped: boolean;
  #onDrained: (() => void) | undefined;

  constructor(running: StartedProxy, options: GenerationsOptions, logger: Logger) {
    this.#running = running;
    this.#options = options;
    this.#logger = logger;
    this.#isFirst = hotRestartEpoch() === 0;
    this.#older = (process.env[olderVariable] ?? '').split(',').filter((identity) => identity !== '');
    this.#line = undefined;
    this.#serving = undefined;
    this.#role = 'serving';
    this.#restarting = undefined;
    this.#isStopping = false;
    this.#hasStopped = false;
    this.#onDrained = undefined;
    // A signal is not sent again: after an exception it is handled again.
    const restart = () => this.#restartRequested();
    process.on('SIGUSR2', boundary.wrap(restart, restart));
    const stop = boundary.wrap(
      () => this.#stopRequested(),
      () => this.#stopAgain(),
    );
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, stop);
    if (!this.#isFirst) this.#openLine();
    const takenOver = () => boundary.run(() => this.#takenOver()) || boundary.run(() => this.#takenOver());
    running.ready.then(takenOver).catch(() => {});
  }

  /** The workload is no longer called, whichever process represents it. */
  async drain(): Promise<void> {
    if (this.#role !== 'draining') return this.#running.drain();
    await new Promise<void>((resolve) => {
      this.#onDrained = resolve;
      this.#tell('drain');
    });
  }

  /** The same for callers that do not wait. */
  stopSoon(): void {
    boundary.start(
      () => this.stop(),
      () => this.#stopAgain(),
    );
  }

  /** After an exception. A stop that has begun cannot be repeated. */
  #stopAgain(): void {
    if (this.#isStopping) process.exit(1);
    boundary.start(
      () => this.#stopRequested(),
      () => process.exit(1),
    );
  }

  #closeSoon(): void {
    boundary.start(() => this.#running.close());
  }

  /** Ends all processes in order: the older ones, then this one. */
  async stop(): Promise<void> {
    if (this.#isStopping) return;
    this.#isStopping = true;
    // A successor that is just taking over is asked to end when it has.
    if (this.#role === 'restarting') await Promise.race([this.#restarting, new Promise((resolve) => setTimeout(resolve, overdueMs))]);
    if (this.#role === 'draining') return this.#endDraining();
    const older = this.#older.filter(runs);
    for (const identity of older) signal(identity, 'SIGHUP');
    // A supervised first process ends when this one has.
    const first = process.env[firstVariable];
    await Promise.all([this.#running.close(), this.#untilGone(older.filter((identity) => identity !== first))]).catch((error: unknown) =>
      this.#logger.error(`while stopping: ${messageOf(error)}`),
    );
    const line = this.#isFirst ? undefined : this.#line;
    if (line?.writable) await new Promise<void>((resolve) => line.end('stopped\n', () => resolve()));
    process.exit(0);
  }

  #restartRequested(): void {
    if (this.#role === 'draining') return this.#serving === undefined ? undefined : signal(this.#serving, 'SIGUSR2');
    if (this.#role === 'restarting' || this.#isStopping) return;
    this.#role = 'restarting';
    this.#restarting = this.#restart().catch((error: unknown) => {
      this.#role = 'serving';
      this.#logger.error(messageOf(error));
    });
  }

  async #restart(): Promise<void> {
    const own = processIdentity(process.pid);
    const { line, pid, exited, drained } = await this.#running.hotRestart({
      env: {
        [olderVariable]: [...this.#older.filter(runs), own].join(','),
        ...(this.#isFirst && isSupervised() ? { [firstVariable]: own } : {}),
      },
      line: this.#isFirst ? 'pipe' : lineDescriptor,
    });
    this.#role = 'draining';
    process.on(
      'SIGHUP',
      boundary.wrap(() => this.#closeSoon()),
    );
    if (line === undefined) this.#line?.destroy();
    else this.#follow(line, processIdentity(pid), exited);
    this.#endWhen(drained);
  }

  #endWhen(drained: Promise<unknown>): void {
    const again = (): void => void boundary.after(retryMs, () => this.#endWhen(drained), again);
    boundary.start(() => drained.then(() => this.#drained()), again);
  }

  #drained(): void {
    if (!this.#isFirst || !isSupervised()) process.exit(0);
    if (this.#line?.destroyed !== false) this.#servingIsGone();
  }

  #stopRequested(): void {
    if (this.#role !== 'draining') return this.stopSoon();
    this.#isStopping = true;
    this.#endDraining();
  }

  #endDraining(): void {
    this.#closeSoon();
    if (this.#serving !== undefined) signal(this.#serving, 'SIGTERM');
  }

  // ---- the pipe ----

  /** The first process hears who serves, and that it has ended. */
  #follow(line: net.Socket, serving: string, exited: Promise<unknown>): void {
    this.#serving = serving;
    this.#line = line;
    this.#read((text) => {
      if (text.startsWith('serving ')) this.#serving = text.slice('serving '.length);
      else if (text === 'stopped') this.#hasStopped = true;
      else if (text === 'drained') this.#onDrained?.();
    });
    const closed = () => {
      this.#onDrained?.();
      if (!isSupervised()) return;
      // Its own child has ended for the system, too, before this process does.
      if (this.#serving === serving) boundary.start(() => exited.then(() => this.#servingIsGone()));
      else this.#servingIsGone();
    };
    line.on('close', boundary.wrap(closed, closed));
  }

  /** Its supervisor has to know: what serves can only be started again by it. */
  #servingIsGone(): void {
    if (!this.#hasStopped && !this.#isStopping) {
      this.#logger.error('the process that has taken over has ended unexpectedly');
      process.exit(1);
    }
    closeAndExit(() => this.#running.close());
  }

  /** A later process is asked to drain by the first, and ends when a supervised first process has gone. */
  #openLine(): void {
    try {
      this.#line = boundary.own(new net.Socket({ fd: lineDescriptor }), emitAgain);
    } catch (error) {
      this.#logger.warn('no pipe to the first process of this proxy', { error: messageOf(error) });
      return;
    }
    this.#read((text) => {
      if (text === 'drain') boundary.start(() => this.#running.drain().finally(() => this.#tell('drained')));
    });
    this.#line.on('close', () => {
      if (this.#role === 'draining') return;
      if (process.env[firstVariable] !== undefined) return this.stopSoon();
      this.#isFirst = true;
      this.#line = undefined;
    });
    this.#line.unref();
  }

  #read(receive: (text: string) => void): void {
    const line = this.#line;
    if (line === undefined) return;
    // What met an exception is read again: a lost line, or a lost end, would leave processes that do not know of each other.
    boundary.own(createInterface({ input: boundary.own(line, emitAgain) }), emitAgain).on('line', receive);
    line.on('end', () => line.destroy());
  }

  #tell(text: string): void {
    if (this.#line?.writable) this.#line.write(`${text}\n`);
    else this.#onDrained?.();
  }

  // ---- older processes ----

  #takenOver(): void {
    if (this.#isFirst) return;
    this.#tell(`serving ${processIdentity(process.pid)}`);
    const older = this.#older.filter(runs);
    const tooMany = older.slice(0, Math.max(0, older.length - this.#options.maxDraining));
    if (tooMany.length === 0) return;
    this.#logger.warn('hot restart: too many processes drain; the oldest end their streams', {
      draining: older.length,
      maxDrainingProcesses: this.#options.maxDraining,
      ending: tooMany.map(pidOf).join(' '),
    });
    for (const identity of tooMany) signal(identity, 'SIGHUP');
  }

  async #untilGone(older: readonly string[]): Promise<void> {
    const killAt = performance.now() + this.#options.drainMs + overdueMs;
    while (older.some(runs)) {
      if (performance.now() > killAt) for (const identity of older) signal(identity, 'SIGKILL');
      await new Promise((resolve) => setTimeout(resolve, checkMs));
    }
  }
}

function signal(identity: string, name: NodeJS.Signals): void {
  if (!runs(identity)) return;
  try {
    process.kill(pidOf(identity), name);
  } catch {
    // It has just ended.
  }
}
