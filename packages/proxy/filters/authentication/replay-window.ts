/** Full, it takes everything for seen: who sends so much within the window must wait, not get through twice. */
const maxKeys = 1_000_000;

/** Remembers what has been seen within a time, at the price of at most twice as long: two generations, of which the older is dropped whole. */
export class ReplayWindow {
  readonly #windowMs: number;
  #current: Set<string>;
  #previous: Set<string>;
  #since: number;

  constructor(windowMs: number) {
    this.#windowMs = windowMs;
    this.#current = new Set();
    this.#previous = new Set();
    this.#since = 0;
  }

  isNew(key: string, nowMs: number): boolean {
    if (nowMs - this.#since > this.#windowMs) {
      this.#previous = nowMs - this.#since > 2 * this.#windowMs ? new Set() : this.#current;
      this.#current = new Set();
      this.#since = nowMs;
    }
    if (this.#current.has(key) || this.#previous.has(key) || this.#current.size >= maxKeys) return false;
    this.#current.add(key);
    return true;
  }
}
