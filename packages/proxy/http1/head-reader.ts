import type { HeadLimits } from '../message/head-limits.ts';
import { type Violation, violations } from './violation.ts';

const emptyLine = Buffer.from('\r\n\r\n');

/**
 * Finds the end of a message head in a stream of buffers. It keeps at most `maxHeadBytes` of a head that has not ended yet, and searches
 * only what is new. What the head says is ./request-head.ts's and ./response-head.ts's to read.
 */
export class HeadReader {
  /** The text of the head that was found: all lines with their CRLFs, without the empty line at its end. */
  text: string;
  /** Where in the buffer given to `read` the head ended; the body starts there. */
  bodyStart: number;
  readonly #limits: HeadLimits;
  #pending: Buffer | undefined;
  #pendingBytes: number;

  constructor(limits: HeadLimits) {
    this.text = '';
    this.bodyStart = 0;
    this.#limits = limits;
    this.#pending = undefined;
    this.#pendingBytes = 0;
  }

  get hasPartialHead(): boolean {
    return this.#pending !== undefined;
  }

  /** `true`: a head has ended, see `text` and `bodyStart`; `false`: more is needed; otherwise the peer's violation. */
  read(chunk: Buffer, start: number): boolean | Violation {
    if (this.#pending === undefined) {
      const end = chunk.indexOf(emptyLine, start);
      if (end >= 0) {
        if (end - start > this.#limits.maxHeadBytes) return violations.headTooLarge;
        this.text = chunk.toString('latin1', start, end + 2);
        this.bodyStart = end + 4;
        return true;
      }
      return this.#keep(start === 0 ? chunk : chunk.subarray(start));
    }
    // The empty line may lie across the border of two buffers: search again from three bytes before it.
    const before = this.#pendingBytes;
    const joined = this.#append(chunk, start);
    const end = joined.indexOf(emptyLine, Math.max(0, before - 3));
    if (end < 0) return this.#refuseEarly(joined) ?? false;
    if (end > this.#limits.maxHeadBytes) return violations.headTooLarge;
    this.#pending = undefined;
    this.text = joined.toString('latin1', 0, end + 2);
    this.bodyStart = start + (end + 4 - before);
    return true;
  }

  #keep(bytes: Buffer): boolean | Violation {
    const refused = this.#refuseEarly(bytes);
    if (refused !== undefined) return refused;
    this.#pending = Buffer.from(bytes); // the buffer itself will be read into again
    this.#pendingBytes = bytes.length;
    return false;
  }

  /** Grows by doubling: a head in many small pieces costs in proportion to its length. */
  #append(chunk: Buffer, start: number): Buffer {
    const length = this.#pendingBytes + chunk.length - start;
    let pending = this.#pending ?? Buffer.alloc(0);
    if (length > pending.length) {
      const larger = Buffer.allocUnsafe(Math.max(length, 2 * pending.length));
      pending.copy(larger, 0, 0, this.#pendingBytes);
      this.#pending = pending = larger;
    }
    chunk.copy(pending, this.#pendingBytes, start);
    this.#pendingBytes = length;
    return pending.subarray(0, length);
  }

  /** What will never become a head is refused now rather than after a timeout. */
  #refuseEarly(bytes: Buffer): Violation | undefined {
    if (bytes.length > this.#limits.maxHeadBytes) return violations.headTooLarge;
    // A line break that is not CRLF.
    if (/(?:^|[^\r])\n/.test(bytes.toString('latin1', 0, Math.min(bytes.length, 4096)))) return violations.bareLineBreak;
    return undefined;
  }
}
