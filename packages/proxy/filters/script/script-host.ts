import { type FSWatcher, watch } from 'node:fs';
import { basename, dirname } from 'node:path';
import { Backoff, errorBoundary, type Logger } from '@mizzen/common';
import type { ProxyCounters } from '../../telemetry/proxy-counters.ts';
import { ScriptChild } from './script-child.ts';
import { type FromProcess, heartbeatMs, type ScriptCall, type ScriptResult } from './script-messages.ts';

const boundary = errorBoundary('script-process');

const reloadDelayMs = 50;
const maxPending = 1_000;
/** How often a call may have been under way when the process ended. */
const maxAttempts = 3;
const loadTimeoutMs = 10_000;
const restartBaseMs = 50;
const maxRestartDelayMs = 1_000;
/** A process that has run this long is restarted without delay. */
const healthyAfterMs = 10_000;
/** Without a heartbeat for this long, the code of a filter does not return to its event loop. */
const maxSilenceMs = 2.5 * heartbeatMs;
const strayLogEveryMs = 10_000;

interface Pending {
  readonly call: Omit<ScriptCall, 'id'>;
  readonly timeoutMs: number;
  readonly done: (result: ScriptResult) => void;
  attempts: number;
  timer: NodeJS.Timeout | undefined;
}

interface Process {
  readonly child: ScriptChild;
  readonly pending: Map<number, Pending>;
  readonly startedAt: number;
  /** The call whose synchronous code runs; 0: none. */
  running: number;
  lastBeatAt: number;
  isLoaded: boolean;
  hasRequest: boolean;
  hasResponse: boolean;
  loadTimer: NodeJS.Timeout | undefined;
}

/**
 * Runs the filter of one file in a process of its own, restarts it with back-off, and loads it again when the file changes. A version that
 * cannot be loaded leaves the previous one in effect. When the process ends, the call that ended it fails: the one whose code ran, or, when
 * that is unknown (after an await), the one that ends it again. Calls under way at that time are `suspects` and are repeated one at a time.
 */
export class ScriptHost {
  readonly file: string;
  readonly #counters: ProxyCounters;
  readonly #logger: Logger;
  readonly #label: string;
  readonly #waiting: (() => void)[];
  readonly #backoff: Backoff;
  #suspects: Pending[];
  #suspect: Pending | undefined;
  #process: Process | undefined;
  #problem: string | undefined;
  #watcher: FSWatcher | undefined;
  #reloadTimer: NodeJS.Timeout | undefined;
  #restartTimer: NodeJS.Timeout | undefined;
  #strayLoggedAt: number;
  #nextId: number;
  #isClosed: boolean;

  constructor(file: string, counters: ProxyCounters, logger: Logger) {
    this.file = file;
    this.#counters = counters;
    this.#logger = logger;
    this.#label = `{file="${basename(file).replace(/[^\w.-]/g, '_')}"}`;
    this.#waiting = [];
    this.#backoff = new Backoff(restartBaseMs, maxRestartDelayMs);
    this.#suspects = [];
    this.#suspect = undefined;
    this.#process = undefined;
    this.#problem = undefined;
    this.#watcher = undefined;
    this.#reloadTimer = undefined;
    this.#restartTimer = undefined;
    this.#strayLoggedAt = Number.NEGATIVE_INFINITY;
    this.#nextId = 1;
    this.#isClosed = false;
    this.#load();
    try {
      // Editors replace files: the folder is what stays.
      this.#watcher = boundary.own(
        watch(dirname(file), { persistent: false }, (_event, name) => (name === null || name === basename(file)) && this.#reloadAfter(reloadDelayMs)),
        () => this.#reloadAfter(reloadDelayMs),
      );
    } catch {
      // The folder does not exist: the load fails too, and logs it.
    }
  }

  /** Whether the filter handles requests, or responses; true while that is unknown. */
  takes(phase: ScriptCall['phase']): boolean {
    const current = this.#process;
    return current === undefined || !current.isLoaded || (phase === 'request' ? current.hasRequest : current.hasResponse);
  }

  /** Calls the filter. `done` is called later, once, whatever the outcome. */
  call(call: Omit<ScriptCall, 'id'>, timeoutMs: number, done: (result: ScriptResult) => void): void {
    const current = this.#process;
    if (current?.isLoaded) {
      if (current.pending.size >= maxPending) return done({ kind: 'error', message: `${maxPending} requests wait for it already` });
      this.#send(current, { call, timeoutMs, done, attempts: 0, timer: undefined });
      return;
    }
    if (this.#problem !== undefined) return done({ kind: 'error', message: this.#problem });
    if (this.#isClosed || this.#waiting.length >= maxPending) return done({ kind: 'error', message: 'it is not loaded' });
    this.#waiting.push(() => this.call(call, timeoutMs, done));
  }

  close(): void {
    this.#isClosed = true;
    this.#watcher?.close();
    clearTimeout(this.#reloadTimer);
    clearTimeout(this.#restartTimer);
    if (this.#process !== undefined) this.#retire(this.#process);
  }

  #send(current: Process, pending: Pending): void {
    const id = (this.#nextId++ & 0x3fffffff) + 1;
    current.pending.set(id, pending);
    pending.timer = boundary.after(
      pending.timeoutMs,
      () => this.#timedOut(current, id),
      () => this.#settle(current, id, { kind: 'error', message: 'internal error' }),
    );
    current.child.send({ ...pending.call, id });
  }

  #settle(current: Process, id: number, result: ScriptResult): void {
    const pending = current.pending.get(id);
    if (pending === undefined) return;
    current.pending.delete(id);
    clearTimeout(pending.timer);
    if (pending === this.#suspect) {
      this.#suspect = undefined;
      this.#sendSuspect();
    }
    pending.done(result);
  }

  #sendSuspect(): void {
    if (this.#process?.isLoaded !== true || this.#suspect !== undefined) return;
    this.#suspect = this.#suspects.shift();
    if (this.#suspect !== undefined) this.#send(this.#process, this.#suspect);
  }

  #timedOut(current: Process, id: number): void {
    // What the process has sent is read first: this proxy itself may have been late.
    const late = () => {
      const pending = current.pending.get(id);
      if (pending === undefined) return;
      this.#counters.count(`script_timeouts_total${this.#label}`);
      // Code that waits lets other calls run. Code that does not return ends with its process.
      if (current.running !== 0 || performance.now() - current.lastBeatAt > maxSilenceMs) return current.child.kill('it does not end');
      this.#settle(current, id, { kind: 'error', message: `it has not answered within ${pending.timeoutMs} ms` });
      const beatAt = current.lastBeatAt;
      setTimeout(() => {
        if (current.lastBeatAt === beatAt) current.child.kill('it does not end');
      }, 3 * heartbeatMs).unref();
    };
    boundary.soon(late, () => this.#settle(current, id, { kind: 'error', message: 'internal error' }));
  }

  #load(): void {
    if (this.#isClosed) return;
    clearTimeout(this.#restartTimer);
    const child = new ScriptChild(this.file, { onMessage: (message) => this.#received(started, message), onEnd: (reason) => this.#ended(started, reason) });
    const started: Process = {
      child,
      pending: new Map(),
      startedAt: performance.now(),
      running: 0,
      lastBeatAt: performance.now(),
      isLoaded: false,
      hasRequest: true,
      hasResponse: true,
      loadTimer: setTimeout(() => child.kill(`it has not loaded within ${loadTimeoutMs} ms`), loadTimeoutMs),
    };
    started.loadTimer?.unref();
  }

  #received(from: Process, message: FromProcess): void {
    from.lastBeatAt = performance.now();
    if (message.kind === 'running') from.running = message.id;
    else if (message.kind === 'result') this.#settle(from, message.id, message.result);
    else if (message.kind === 'failed') from.child.kill(message.message);
    else if (message.kind === 'stray') this.#stray(message.message);
    else if (message.kind === 'loaded' && !from.isLoaded) this.#loaded(from, message.hasRequest, message.hasResponse);
  }

  #stray(message: string): void {
    this.#counters.count(`script_failures_total${this.#label}`);
    const now = performance.now();
    if (now - this.#strayLoggedAt < strayLogEveryMs) return;
    this.#strayLoggedAt = now;
    this.#logger.warn(`a filter has thrown outside of a call: ${message}`, { file: this.file });
  }

  #loaded(started: Process, hasRequest: boolean, hasResponse: boolean): void {
    clearTimeout(started.loadTimer);
    started.isLoaded = true;
    started.hasRequest = hasRequest;
    started.hasResponse = hasResponse;
    const before = this.#process;
    this.#process = started;
    this.#problem = undefined;
    if (this.#isClosed) return this.#retire(started);
    if (before !== undefined) {
      this.#retire(before);
      this.#logger.info('a filter was loaded again', { file: this.file });
    }
    this.#sendSuspect();
    this.#release();
  }

  #ended(ended: Process, reason: string): void {
    clearTimeout(ended.loadTimer);
    if (!ended.isLoaded) return this.#failedToLoad(reason);
    if (this.#process === ended) this.#process = undefined;
    const others = [...ended.pending];
    ended.pending.clear();
    for (const [, pending] of others) clearTimeout(pending.timer);
    const culprit = this.#culprit(ended, others);
    this.#suspect = undefined;
    const isCurrent = this.#process === undefined && !this.#isClosed;
    for (const [, pending] of others) {
      if (pending === culprit) continue;
      if (this.#isClosed || pending.attempts++ >= maxAttempts) pending.done({ kind: 'error', message: 'its process has ended again and again' });
      else this.#suspects.push(pending);
    }
    culprit?.done({ kind: 'error', message: reason });
    if (!isCurrent) return this.#sendSuspect();
    this.#counters.count(`script_restarts_total${this.#label}`);
    this.#logger.warn(`the process of a filter has ended: ${reason}`, { file: this.file });
    const lived = performance.now() - ended.startedAt;
    if (lived >= healthyAfterMs) this.#backoff.reset();
    this.#loadAfter(lived >= healthyAfterMs ? 0 : this.#backoff.nextMs());
  }

  /** The call that ended a process; undefined: not known yet. */
  #culprit(ended: Process, under: readonly (readonly [number, Pending])[]): Pending | undefined {
    const running = under.find(([id]) => id === ended.running)?.[1];
    if (running !== undefined) return running;
    if (under.length === 1) return under[0]![1];
    return under.find(([, pending]) => pending === this.#suspect)?.[1];
  }

  #failedToLoad(reason: string): void {
    if (this.#isClosed) return this.#release();
    this.#counters.count(`script_load_failures_total${this.#label}`);
    const keeps = this.#process === undefined ? '' : ' The previous version stays in effect.';
    this.#logger.error(`the filter ${this.file} cannot be loaded: ${reason}.${keeps}`);
    if (this.#process !== undefined) return;
    this.#problem = `it cannot be loaded: ${reason}`;
    for (const pending of this.#suspects.splice(0)) pending.done({ kind: 'error', message: this.#problem });
    this.#release();
    this.#loadAfter(this.#backoff.nextMs());
  }

  #loadAfter(delayMs: number): void {
    clearTimeout(this.#restartTimer);
    this.#restartTimer = boundary.after(
      delayMs,
      () => this.#load(),
      () => this.#loadAfter(maxRestartDelayMs),
    );
    this.#restartTimer.unref();
  }

  #reloadAfter(delayMs: number): void {
    if (this.#isClosed) return;
    clearTimeout(this.#reloadTimer);
    this.#reloadTimer = boundary.after(
      delayMs,
      () => this.#load(),
      () => this.#reloadAfter(maxRestartDelayMs),
    );
    this.#reloadTimer.unref();
  }

  #release(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** Lets calls under way end, within their time. */
  #retire(old: Process): void {
    const end = () => old.child.kill('it was replaced');
    if (old.pending.size === 0) return end();
    const last = Math.max(...[...old.pending.values()].map(({ timeoutMs }) => timeoutMs));
    boundary.after(last + 50, end).unref();
  }
}
