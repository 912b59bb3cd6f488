import type { ServerResponse } from 'node:http';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('api.unread');

/** What responses may hold in memory while their clients do not read them. */
export interface UnreadLimits {
  /** Of all responses together. One more byte ends the response that holds most. */
  readonly maxUnreadBytes: number;
  /** A response of which nothing is read for so long ends. */
  readonly maxStalledMs: number;
}

export const defaultUnreadLimits: UnreadLimits = { maxUnreadBytes: 256 * 1024 * 1024, maxStalledMs: 60_000 };

interface Entry {
  readonly response: ServerResponse;
  /** As it was measured last. */
  bytes: number;
  /** For the time limit: what it held when something was last read of it, and when that was. */
  seen: number;
  since: number;
}

/**
 * The responses of one server that clients have not read. A list of the configuration is as large as the configuration, and each client that does not read holds one: the
 * largest ends when all hold too much, and each that makes no progress.
 */
export class UnreadResponses {
  readonly #limits: UnreadLimits;
  readonly #now: () => number;
  readonly #entries: Map<ServerResponse, Entry>;
  readonly #sweeper: NodeJS.Timeout;
  #bytes: number;
  /** Responses that a limit has ended. */
  ended: number;

  constructor(limits: Partial<UnreadLimits> = {}, now: () => number = Date.now) {
    this.#limits = { ...defaultUnreadLimits, ...limits };
    this.#now = now;
    this.#entries = new Map();
    this.#bytes = 0;
    this.ended = 0;
    this.#sweeper = boundary.every(this.#limits.maxStalledMs / 4, () => this.sweep()).unref();
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Called after each write to a response. */
  wrote(response: ServerResponse): void {
    let entry = this.#entries.get(response);
    if (entry === undefined) {
      if (response.destroyed) return;
      entry = { response, bytes: 0, seen: 0, since: this.#now() };
      this.#entries.set(response, entry);
      const { socket } = response;
      const drained = boundary.wrap(() => this.#measure(response));
      socket?.on('drain', drained);
      boundary.own(response).once('close', () => {
        socket?.off('drain', drained);
        this.#forget(response);
      });
    }
    this.#measure(response);
    while (this.#bytes > this.#limits.maxUnreadBytes && this.#endLargest());
  }

  /** Ends what makes no progress. */
  sweep(): void {
    const now = this.#now();
    for (const entry of [...this.#entries.values()]) {
      this.#measure(entry.response);
      if (entry.bytes === 0 || entry.bytes < entry.seen) entry.since = now;
      entry.seen = entry.bytes;
      if (now - entry.since >= this.#limits.maxStalledMs) this.#end(entry);
    }
  }

  close(): void {
    clearInterval(this.#sweeper);
  }

  #measure(response: ServerResponse): void {
    const entry = this.#entries.get(response);
    if (entry === undefined) return;
    const bytes = response.writableLength;
    this.#bytes += bytes - entry.bytes;
    entry.bytes = bytes;
  }

  #endLargest(): boolean {
    let largest: Entry | undefined;
    for (const entry of this.#entries.values()) {
      this.#measure(entry.response);
      if (entry.bytes > (largest?.bytes ?? 0)) largest = entry;
    }
    if (largest === undefined || this.#bytes <= this.#limits.maxUnreadBytes) return false;
    this.#end(largest);
    return true;
  }

  #end(entry: Entry): void {
    this.ended++;
    this.#forget(entry.response);
    entry.response.destroy();
  }

  #forget(response: ServerResponse): void {
    const entry = this.#entries.get(response);
    if (entry === undefined) return;
    this.#entries.delete(response);
    this.#bytes -= entry.bytes;
  }
}
