import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('rate-limit.sweep');
/** Counts of requests in windows of time, somewhere that all who ask share. */
export interface LimitCounters {
  /** Adds `hits` to each window and gives what each of them then holds. `resetSeconds` is when the window ends, from now. */
  add(windows: readonly Window[]): Promise<readonly number[]>;
  close(): Promise<void>;
}

export interface Window {
  readonly key: string;
  readonly hits: number;
  readonly seconds: number;
}

const maxWindows = 1_000_000;
const sweepMs = 10_000;

/** In this process: for one control plane. */
export class MemoryCounters implements LimitCounters {
  readonly #counts: Map<string, { count: number; readonly endsAt: number }>;
  readonly #now: () => number;
  readonly #sweeper: NodeJS.Timeout;

  constructor(now: () => number = Date.now) {
    this.#counts = new Map();
    this.#now = now;
    this.#sweeper = boundary.every(sweepMs, () => this.#sweep()).unref();
  }

  async add(windows: readonly Window[]): Promise<number[]> {
    const now = this.#now();
    return windows.map(({ key, hits, seconds }) => {
      const known = this.#counts.get(key);
      if (known !== undefined && known.endsAt > now) return (known.count += hits);
      if (this.#counts.size >= maxWindows) this.#sweep();
      // Full of windows that have not ended: who cannot be counted is let through rather than all being refused.
      if (this.#counts.size >= maxWindows) return hits;
      this.#counts.set(key, { count: hits, endsAt: now + seconds * 1000 });
      return hits;
    });
  }

  async close(): Promise<void> {
    clearInterval(this.#sweeper);
  }

  #sweep(): void {
    const now = this.#now();
    for (const [key, { endsAt }] of this.#counts) if (endsAt <= now) this.#counts.delete(key);
  }
}
