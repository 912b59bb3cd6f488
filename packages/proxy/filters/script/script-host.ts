import { type FSWatcher, watch } from 'node:fs';
import { basename, dirname, extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import type { Logger } from '@mizzen/common';
import type { ProxyCounters } from '../../telemetry/proxy-counters.ts';
import { type FromThread, heartbeatMs, type ScriptCall, type ScriptResult } from './script-messages.ts';

const threadFile = fileURLToPath(new URL(`./script-thread${extname(import.meta.url)}`, import.meta.url));
/** A filter that holds on to everything ends its thread, not the proxy. */
const memoryLimitMb = 128;
const reloadDelayMs = 50;
const maxPending = 1_000;
/** How often a call may have been under way when a thread ended that another call had made hang. */
const maxAttempts = 3;
const loadTimeoutMs = 10_000;

interface Pending {
  readonly call: Omit<ScriptCall, 'id'>;
  readonly timeoutMs: number;
  readonly done: (result: ScriptResult) => void;
  attempts: number;
  timer: NodeJS.Timeout | undefined;
}

interface Thread {
  readonly worker: Worker;
  readonly running: Int32Array;
  readonly pending: Map<number, Pending>;
  isLoaded: boolean;
  hasRequest: boolean;
  hasResponse: boolean;
}

/** Runs the filter of one file: in a thread, watched over, and loaded again when the file changes. One that cannot be loaded leaves the one before. */
export class ScriptHost {
  readonly file: string;
  readonly #counters: ProxyCounters;
  readonly #logger: Logger;
  readonly #waiting: (() => void)[];
  #thread: Thread | undefined;
  #problem: string | undefined;
  #watcher: FSWatcher | undefined;
  #reloadTimer: NodeJS.Timeout | undefined;
  #nextId: number;
  #isClosed: boolean;

  constructor(file: string, counters: ProxyCounters, logger: Logger) {
    this.file = file;
    this.#counters = counters;
    this.#logger = logger;
    this.#waiting = [];
    this.#thread = undefined;
    this.#problem = undefined;
    this.#watcher = undefined;
    this.#reloadTimer = undefined;
    this.#nextId = 1;
    this.#isClosed = false;
    this.#load();
    try {
      // Editors replace files: the folder is what stays.
      this.#watcher = watch(dirname(file), { persistent: false }, (_event, name) => {
        if (name !== null && name !== basename(file)) return;
        clearTimeout(this.#reloadTimer);
        this.#reloadTimer = setTimeout(() => this.#load(), reloadDelayMs);
        this.#reloadTimer.unref();
      });
      this.#watcher.on('error', () => {});
    } catch {
      // The folder is not there: the load has failed too, and has said so.
    }
  }

  /** Whether the filter looks at requests, at answers; true while nobody knows. */
  takes(phase: ScriptCall['phase']): boolean {
    const thread = this.#thread;
    return thread === undefined || !thread.isLoaded || (phase === 'request' ? thread.hasRequest : thread.hasResponse);
  }

  /** Calls the filter. `done` is called later, once, whatever becomes of it. */
  call(call: Omit<ScriptCall, 'id'>, timeoutMs: number, done: (result: ScriptResult) => void): void {
    const thread = this.#thread;
    if (thread?.isLoaded) {
      if (thread.pending.size >= maxPending) return done({ kind: 'error', message: `${maxPending} requests wait for it already` });
      return this.#send(thread, { call, timeoutMs, done, attempts: 0, timer: undefined });
    }
    if (thread === undefined) return done({ kind: 'error', message: this.#problem ?? 'it is not loaded' });
    if (this.#waiting.length >= maxPending) return done({ kind: 'error', message: 'it is still being loaded' });
    this.#waiting.push(() => this.call(call, timeoutMs, done));
  }

  close(): void {
    this.#isClosed = true;
    this.#watcher?.close();
    clearTimeout(this.#reloadTimer);
    if (this.#thread !== undefined) this.#retire(this.#thread);
  }

  #send(thread: Thread, pending: Pending): void {
    const id = this.#nextId++ & 0x7fffffff;
    thread.pending.set(id, pending);
    pending.timer = setTimeout(() => this.#timedOut(thread, id), pending.timeoutMs);
    thread.worker.postMessage({ ...pending.call, id } satisfies ScriptCall);
  }

  #settle(thread: Thread, id: number, result: ScriptResult): void {
    const pending = thread.pending.get(id);
    if (pending === undefined) return;
    thread.pending.delete(id);
    clearTimeout(pending.timer);
    pending.done(result);
  }

  #timedOut(thread: Thread, id: number): void {
    const pending = thread.pending.get(id);
    const culprit = Atomics.load(thread.running, 0);
    this.#counters.count(`script_timeouts_total{file="${basename(this.file)}"}`);
    // Code that waits for something lets others run. Code that runs does not: its thread is ended, and the others are asked anew.
    if (culprit !== 0) {
      this.#settle(thread, culprit, { kind: 'error', message: 'it does not end' });
      return this.#endHanging(thread);
    }
    this.#settle(thread, id, { kind: 'error', message: `it has not answered within ${pending?.timeoutMs} ms` });
    // It may hang in what came after an await: then its heart does not beat.
    const beat = Atomics.load(thread.running, 1);
    setTimeout(() => {
      if (this.#thread === thread && Atomics.load(thread.running, 1) === beat) this.#endHanging(thread);
    }, 3 * heartbeatMs).unref();
  }

  #endHanging(thread: Thread): void {
    this.#logger.warn('a filter does not end: its thread is started again', { file: this.file });
    this.#restart(thread);
  }

  #restart(thread: Thread): void {
    const others = [...thread.pending.values()];
    thread.pending.clear();
    for (const { timer } of others) clearTimeout(timer);
    void thread.worker.terminate();
    if (this.#thread === thread) this.#thread = undefined;
    if (this.#isClosed) return;
    this.#counters.count(`script_restarts_total{file="${basename(this.file)}"}`);
    this.#load();
    for (const pending of others) {
      if (pending.attempts++ >= maxAttempts) pending.done({ kind: 'error', message: 'its thread has ended again and again' });
      else
        this.#waiting.push(() =>
          this.#thread?.isLoaded ? this.#send(this.#thread, pending) : pending.done({ kind: 'error', message: this.#problem ?? 'it is gone' }),
        );
    }
  }

  #load(): void {
    const running = new SharedArrayBuffer(8);
    const worker = new Worker(threadFile, { workerData: { file: this.file, running }, resourceLimits: { maxOldGenerationSizeMb: memoryLimitMb }, env: {} });
    // A proxy does not stay for its filters.
    worker.unref();
    const thread: Thread = { worker, running: new Int32Array(running), pending: new Map(), isLoaded: false, hasRequest: true, hasResponse: true };
    const before = this.#thread;
    if (before === undefined) this.#thread = thread;
    const timer = setTimeout(() => fail(`it has not loaded within ${loadTimeoutMs} ms`), loadTimeoutMs);
    timer.unref();
    const fail = (message: string) => {
      clearTimeout(timer);
      void worker.terminate();
      this.#counters.count(`script_load_failures_total{file="${basename(this.file)}"}`);
      const keeps = before === undefined ? '' : ' The version before it stays in effect.';
      this.#logger.error(`the filter ${this.file} cannot be loaded: ${message}.${keeps}`);
      if (this.#thread !== thread) return;
      this.#problem = `it cannot be loaded: ${message}`;
      this.#thread = undefined;
      this.#release();
    };
    worker.on('message', (message: FromThread) => {
      if (message.kind === 'result') return this.#settle(thread, message.id, message.result);
      if (message.kind === 'failed') return fail(message.message);
      clearTimeout(timer);
      thread.isLoaded = true;
      thread.hasRequest = message.hasRequest;
      thread.hasResponse = message.hasResponse;
      if (this.#thread !== thread) {
        if (this.#thread !== undefined) this.#retire(this.#thread);
        this.#thread = thread;
        this.#logger.info('a filter was loaded again', { file: this.file });
      }
      this.#release();
    });
    worker.on('error', (error) => {
      if (!thread.isLoaded) return fail(error.message);
      this.#logger.warn(`the thread of a filter has ended: ${error.message}`, { file: this.file });
      const culprit = Atomics.load(thread.running, 0);
      if (culprit !== 0) this.#settle(thread, culprit, { kind: 'error', message: error.message });
      if (this.#thread === thread) this.#restart(thread);
    });
  }

  #release(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** Lets calls under way end, within their time. */
  #retire(thread: Thread): void {
    const end = () => void thread.worker.terminate();
    if (thread.pending.size === 0) return end();
    const last = Math.max(...[...thread.pending.values()].map(({ timeoutMs }) => timeoutMs));
    setTimeout(end, last + 50).unref();
  }
}
