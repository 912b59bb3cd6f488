import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('driver.held-message');
const failedPauseMs = 5_000;
/** Timers of messages that wait on this side of a broker, which all end with their subscription. */
export class HeldMessages {
  readonly #timers: Set<NodeJS.Timeout>;
  #isClosed: boolean;

  constructor() {
    this.#timers = new Set();
    this.#isClosed = false;
  }

  /** Calls `then` after so long, unless this is closed first. */
  hold(ms: number, then: () => void): void {
    if (this.#isClosed) return;
    if (ms <= 0) return then();
    const due = () => {
      this.#timers.delete(timer);
      then();
    };
    // A message whose step has failed is not forgotten.
    const timer = boundary.after(Math.min(ms, 2_147_483_647), due, () => this.hold(failedPauseMs, then));
    this.#timers.add(timer);
  }

  close(): void {
    this.#isClosed = true;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }
}

export const deliverAtHeader = 'x-mizzen-deliver-at';
export const keyHeader = 'x-mizzen-key';
export const publishedAtHeader = 'x-mizzen-published-at';
