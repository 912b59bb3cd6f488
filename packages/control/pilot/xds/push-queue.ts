/** A queue that one side fills and the other side reads with `for await`; ends when it is closed. */
export class PushQueue<Item> implements AsyncIterable<Item> {
  readonly #items: Item[];
  #wake: (() => void) | undefined;
  #isClosed: boolean;

  constructor() {
    this.#items = [];
    this.#wake = undefined;
    this.#isClosed = false;
  }

  get length(): number {
    return this.#items.length;
  }

  push(item: Item): void {
    if (this.#isClosed) return;
    this.#items.push(item);
    this.#wake?.();
  }

  close(): void {
    this.#isClosed = true;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Item> {
    for (;;) {
      while (this.#items.length > 0) yield this.#items.shift()!;
      if (this.#isClosed) return;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
  }
}
