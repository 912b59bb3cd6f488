import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('rate-limit.sweep');
/** Counts of requests in windows of time, somewhere that all who ask share. */
export interface LimitCounters {
  /** Adds `hits` to each window and gives what each of them then holds. `resetSeconds` is when the window ends, from now. */
  add(windows: readonly Window[], caller: string): Promise<readonly number[]>;
  close(): Promise<void>;
}

export interface Window {
  readonly key: string;
  readonly hits: number;
  readonly seconds: number;
}

const maxWindows = 1_000_000;
/** Windows that one caller has opened. Its further ones are not counted: it cannot switch off the limits of others. */
const maxWindowsPerCaller = 200_000;
const sweepMs = 10_000;

/** In this process: for one control plane. */
export class MemoryCounters implements LimitCounters {
  readonly #counts: Map<string, { count: number; readonly endsAt: number; readonly caller: string }>;
  readonly #callers: Map<string, number>;
  readonly #now: () => number;
  readonly #sweeper: NodeJS.Timeout;

  constructor(now: () => number = Date.now) {
    this.#counts = new Map();
    this.#callers = new Map();
    this.#now = now;
    this.#sweeper = boundary.every(sweepMs, () => this.#sweep()).unref();
  }

  async add(windows: readonly Window[], caller: string): Promise<number[]> {
    const now = this.#now();
    return windows.map(({ key, hits, seconds }) => {
      const known = this.#counts.get(key);
      if (known !== undefined && known.endsAt > now) return (known.count += hits);
      if (this.#counts.size >= maxWindows) this.#sweep();
      // Full of windows that have not ended: who cannot be counted is let through rather than all being refused.
      if (this.#counts.size >= maxWindows) return hits;
      const opened = this.#callers.get(caller) ?? 0;
      if (opened >= maxWindowsPerCaller) return hits;
      this.#forget(key);
      this.#callers.set(caller, opened + 1);
      this.#counts.set(key, { count: hits, endsAt: now + seconds * 1000, caller });
      return hits;
    });
  }

  async close(): Promise<void> {
    clearInterval(this.#sweeper);
  }

  #sweep(): void {
    const now = this.#now();
    for (const [key, { endsAt }] of this.#counts) if (endsAt <= now) this.#forget(key);
  }

  #forget(key: string): void {
    const known = this.#counts.get(key);
    if (known === undefined) return;
    this.#counts.delete(key);
    const left = (this.#callers.get(known.caller) ?? 1) - 1;
    if (left > 0) this.#callers.set(known.caller, left);
    else this.#callers.delete(known.caller);
  }
}
