import type { Http2Stream } from './stream.ts';

/**
 * The open streams of a connection, by identifier: open addressing over one array. A Map would do, but for this: when a Map grows or is
 * rehashed, its old store points to the new one. With streams that come and go all the time, one such store that has become old keeps
 * alive, until the next full collection, every stream that ever was in those after it.
 */
export class StreamTable {
  #slots: (Http2Stream | undefined)[];
  #mask: number;
  #size: number;

  constructor() {
    this.#slots = new Array<Http2Stream | undefined>(8).fill(undefined);
    this.#mask = 7;
    this.#size = 0;
  }

  get size(): number {
    return this.#size;
  }

  get(id: number): Http2Stream | undefined {
    const slots = this.#slots;
    const mask = this.#mask;
    for (let at = (id >>> 1) & mask; ; at = (at + 1) & mask) {
      const stream = slots[at];
      if (stream === undefined || stream.id === id) return stream;
    }
  }

  has(id: number): boolean {
    return this.get(id) !== undefined;
  }

  /** The stream must not be in the table yet. */
  add(stream: Http2Stream): void {
    if (++this.#size * 2 > this.#slots.length) this.#grow();
    this.#place(stream);
  }

  delete(id: number): void {
    const slots = this.#slots;
    const mask = this.#mask;
    let at = (id >>> 1) & mask;
    while (slots[at]?.id !== id) {
      if (slots[at] === undefined) return;
      at = (at + 1) & mask;
    }
    slots[at] = undefined;
    this.#size--;
    // Those behind it that had to give way to it move up.
    for (let next = (at + 1) & mask; slots[next] !== undefined; next = (next + 1) & mask) {
      const stream = slots[next]!;
      slots[next] = undefined;
      this.#place(stream);
    }
  }

  /** Streams may be taken out, but not added, while it is gone through. */
  *[Symbol.iterator](): Iterator<Http2Stream> {
    for (const stream of this.#slots.filter((slot) => slot !== undefined)) yield stream;
  }

  #place(stream: Http2Stream): void {
    const slots = this.#slots;
    const mask = this.#mask;
    let at = (stream.id >>> 1) & mask;
    while (slots[at] !== undefined) at = (at + 1) & mask;
    slots[at] = stream;
  }

  #grow(): void {
    const before = this.#slots;
    this.#slots = new Array<Http2Stream | undefined>(before.length * 2).fill(undefined);
    this.#mask = this.#slots.length - 1;
    for (const stream of before) if (stream !== undefined) this.#place(stream);
  }
}
