/** Smaller slices are joined. A Buffer costs 130 bytes of heap, so content in pieces of a byte would cost a hundred times its length. */
const maxJoinedBytes = 4 * 1024;

/** Slices of content that is kept. Memory follows their length, not their number. */
export class KeptSlices {
  readonly slices: Buffer[];
  /** What the last slice is the beginning of, where small ones are joined in it. */
  #block: Buffer | undefined;

  constructor(first?: Buffer) {
    this.slices = first === undefined || first.length === 0 ? [] : [first];
    this.#block = undefined;
  }

  /** `slice` is kept as it is, or copied. */
  push(slice: Buffer): void {
    const { slices } = this;
    const last = slices[slices.length - 1];
    if (last === undefined || slice.length >= maxJoinedBytes || last.length >= maxJoinedBytes) {
      this.#block = undefined;
      slices.push(slice);
      return;
    }
    const length = last.length + slice.length;
    if (this.#block === undefined || this.#block.length < length) {
      // Slow: not a part of a pool, which would be kept with it.
      this.#block = Buffer.allocUnsafeSlow(Math.max(256, 2 * length));
      last.copy(this.#block);
    }
    slice.copy(this.#block, last.length);
    slices[slices.length - 1] = this.#block.subarray(0, length);
  }
}

/** The same for a list whose slices others take away: small ones are joined by copying. */
export function pushSlice(slices: Buffer[], slice: Buffer): void {
  const last = slices[slices.length - 1];
  if (last !== undefined && last.length + slice.length <= maxCopiedBytes) slices[slices.length - 1] = Buffer.concat([last, slice]);
  else slices.push(slice);
}

const maxCopiedBytes = 1024;
