// Length-prefixed messages of gRPC (`Compressed-Flag Message-Length Message`, PROTOCOL-HTTP2.md), put together before the library beneath reads
// them: it copies what it has at each piece of a message, so a message in DATA frames of a byte each costs the square of its length.

const prefixBytes = 5;

export class GrpcEnvelopes {
  readonly #maxMessageBytes: number;
  /** Grows by doubling: what is copied is linear in what arrives, and what is held is at most twice what has arrived. */
  #held: Buffer;
  #length: number;
  #isTooLong: boolean;

  constructor(maxMessageBytes: number) {
    this.#maxMessageBytes = maxMessageBytes;
    this.#held = Buffer.alloc(0);
    this.#length = 0;
    this.#isTooLong = false;
  }

  /** Takes a piece of the body and returns what can be read now: whole messages, or everything once a message is longer than the limit. */
  push(chunk: Buffer): Buffer | undefined {
    if (this.#isTooLong) return chunk;
    if (this.#length === 0) return this.#take(chunk);
    this.#append(chunk);
    if (this.#length < this.#wanted()) return undefined;
    const whole = this.#held.subarray(0, this.#length);
    this.#held = Buffer.alloc(0);
    this.#length = 0;
    return this.#take(whole);
  }

  /** What is left at the end of the body: an incomplete message, or nothing. */
  end(): Buffer | undefined {
    const rest = this.#length === 0 ? undefined : this.#held.subarray(0, this.#length);
    this.#held = Buffer.alloc(0);
    this.#length = 0;
    return rest;
  }

  /** `bytes` begin with a message. */
  #take(bytes: Buffer): Buffer | undefined {
    let end = 0;
    while (bytes.length - end >= prefixBytes) {
      const length = bytes.readUInt32BE(end + 1);
      this.#isTooLong = length > this.#maxMessageBytes;
      if (this.#isTooLong) return bytes;
      if (bytes.length - end < prefixBytes + length) break;
      end += prefixBytes + length;
    }
    if (end < bytes.length) this.#append(bytes.subarray(end));
    return end === 0 ? undefined : bytes.subarray(0, end);
  }

  /** How many bytes must be held before anything can be done: the prefix, then the message. */
  #wanted(): number {
    if (this.#length < prefixBytes) return prefixBytes;
    return prefixBytes + Math.min(this.#held.readUInt32BE(1), this.#maxMessageBytes);
  }

  #append(chunk: Buffer): void {
    const length = this.#length + chunk.length;
    if (length > this.#held.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(length, 2 * this.#held.length));
      this.#held.copy(larger, 0, 0, this.#length);
      this.#held = larger;
    }
    chunk.copy(this.#held, this.#length);
    this.#length = length;
  }
}
