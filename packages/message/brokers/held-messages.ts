import { errorBoundary, maxTimerMs } from '@mizzen/common';

const boundary = errorBoundary('driver.held-message');
/** Before a message whose step has thrown is tried again. */
export const failedPauseMs = 1_000;

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
    if (!(ms > 0)) return then();
    const due = () => {
      this.#timers.delete(timer);
      // A timer waits for 24.8 days at most.
      if (ms > maxTimerMs) this.hold(ms - maxTimerMs, then);
      else then();
    };
    const again = () => {
      this.#timers.delete(timer);
      this.hold(failedPauseMs, then);
    };
    const timer = boundary.after(ms, due, again);
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
