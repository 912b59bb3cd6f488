/** A queue that one side fills and the other side reads with `for await`; ends when it is closed, or throws when it has failed, after what is in it. */
export class PushQueue<Item> implements AsyncIterable<Item> {
  readonly #items: Item[];
  /** Something has been pushed. */
  hasStarted: boolean;
  #wake: (() => void) | undefined;
  #isClosed: boolean;
  #error: Error | undefined;

  constructor() {
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
    this.#items.push(item);
    this.#wake?.();
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
