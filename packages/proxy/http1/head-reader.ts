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

  constructor(limits: HeadLimits) {
    this.text = '';
    this.bodyStart = 0;
    this.#limits = limits;
    this.#pending = undefined;
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
    const before = this.#pending.length;
    const joined = Buffer.concat([this.#pending, start === 0 ? chunk : chunk.subarray(start)]);
    const end = joined.indexOf(emptyLine, Math.max(0, before - 3));
    if (end < 0) return this.#keep(joined);
    if (end > this.#limits.maxHeadBytes) return violations.headTooLarge;
    this.#pending = undefined;
    this.text = joined.toString('latin1', 0, end + 2);
    this.bodyStart = start + (end + 4 - before);
    return true;
  }

  #keep(bytes: Buffer): boolean | Violation {
    if (bytes.length > this.#limits.maxHeadBytes) return violations.headTooLarge;
    // A line break that is not CRLF will never become a head: say so now rather than wait for a timeout.
    if (/(?:^|[^\r])\n/.test(bytes.toString('latin1', 0, Math.min(bytes.length, 4096)))) return violations.bareLineBreak;
    this.#pending = Buffer.from(bytes); // the buffer itself will be read into again
    return false;
  }
}
