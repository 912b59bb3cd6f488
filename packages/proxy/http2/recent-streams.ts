/** How many streams that have ended are remembered, to tell what is late from what never was. */
const remembered = 128;

/** The last streams of which something is to be known. */
export class RecentStreams {
  readonly #ids: Int32Array;
  #next: number;

  constructor() {
    this.#ids = new Int32Array(remembered);
    this.#next = 0;
  }

  add(streamId: number): void {
    this.#ids[this.#next] = streamId;
    this.#next = (this.#next + 1) % remembered;
  }

  has(streamId: number): boolean {
    return this.#ids.includes(streamId);
  }
}
