import { isIP } from 'node:net';
import type { Logger } from '@mizzen/common';

/** Why callers were refused by the control plane's gRPC server, for its log and `mizzen status`. What callers claim is bounded and never taken for true. */
export interface Refusal {
  /** What the caller claims to be, or its address. */
  readonly caller: string;
  readonly reason: string;
  readonly atMs: number;
}

/** Older ones are forgotten first. */
const maxRefusals = 100;
const maxReasonLength = 500;
/** A refusal that does not happen again is not shown for longer. */
const shownForMs = 300_000;
/** Of the log, in a minute: anyone can be refused. */
const maxLinesPerMinute = 20;

export class RecentRefusals {
  readonly #logger: Logger;
  readonly #now: () => number;
  readonly #byCaller: Map<string, Refusal>;
  #minute: number;
  #lines: number;

  constructor(logger: Logger, now: () => number = Date.now) {
    this.#logger = logger;
    this.#now = now;
    this.#byCaller = new Map();
    this.#minute = 0;
    this.#lines = 0;
  }

  add(claimed: string | undefined, address: string, reason: string): void {
    const atMs = this.#now();
    const caller = (claimed ?? hostOf(address)).slice(0, 300);
    const refusal = { caller, reason: reason.slice(0, maxReasonLength), atMs };
    const before = this.#byCaller.get(caller);
    this.#byCaller.delete(caller);
    this.#byCaller.set(caller, refusal);
    for (const oldest of this.#byCaller.keys()) {
      if (this.#byCaller.size <= maxRefusals) break;
      this.#byCaller.delete(oldest);
    }
    // A caller tries again every few seconds: once a minute for the same reason is enough.
    if (before?.reason === refusal.reason && Math.floor(before.atMs / 60_000) === Math.floor(atMs / 60_000)) return;
    const minute = Math.floor(atMs / 60_000);
    if (minute !== this.#minute) [this.#minute, this.#lines] = [minute, 0];
    if (this.#lines++ < maxLinesPerMinute) this.#logger.warn(`refused a caller: ${refusal.reason}`, { caller, from: address });
  }

  /** The newest first. */
  list(): Refusal[] {
    const since = this.#now() - shownForMs;
    return [...this.#byCaller.values()].filter(({ atMs }) => atMs > since).reverse();
  }
}

const hostOf = (address: string) => {
  const host = address.slice(0, Math.max(0, address.lastIndexOf(':')));
  return isIP(host) ? host : address;
};
