/**
 * A queue that one side fills and the other side reads with `for await`; ends when it is closed, or throws when it has failed, after what is in it.
 * With `slotOf`, an item replaces the waiting one of the same slot, and slots are read in ascending order: a reader that is slow or stopped costs one
 * item for each slot, and reads the newest.
 */
export class PushQueue<Item> implements AsyncIterable<Item> {
  readonly #items: Item[];
  /** Something has been pushed. */
  hasStarted: boolean;
  #wake: (() => void) | undefined;
  #isClosed: boolean;
  #error: Error | undefined;
  readonly #slotOf: ((item: Item) => number) | undefined;

  constructor(slotOf?: (item: Item) => number) {
    this.#slotOf = slotOf;
    this.#items = [];
    this.hasStarted = false;
    this.#wake = undefined;
    this.#isClosed = false;
    this.#error = undefined;
  }

  get length(): number {
    return this.#items.length;
  }

  push(item: Item): void {
    if (this.#isClosed) return;
    this.hasStarted = true;
    this.#insert(item);
    this.#wake?.();
  }

  #insert(item: Item): void {
    const slotOf = this.#slotOf;
    if (slotOf === undefined) {
      this.#items.push(item);
      return;
    }
    const slot = slotOf(item);
    const at = this.#items.findIndex((waiting) => slotOf(waiting) >= slot);
    const next = at < 0 ? undefined : this.#items[at];
    if (next === undefined) this.#items.push(item);
    else this.#items.splice(at, slotOf(next) === slot ? 1 : 0, item);
  }

  close(): void {
    this.#isClosed = true;
    this.#wake?.();
  }

  fail(error: Error): void {
    this.#error ??= error;
    this.close();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Item> {
    for (;;) {
      while (this.#items.length > 0) yield this.#items.shift()!;
      if (this.#error !== undefined) throw this.#error;
      if (this.#isClosed) return;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
  }
}
