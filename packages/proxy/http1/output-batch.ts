import { keepReadBuffer } from '../net/read-buffers.ts';
import { flushAtTurnEnd } from '../net/turn-end.ts';

/** Where a batch goes: a socket, or an upstream connection that may not be ready yet. */
export interface Writable {
  write(data: string | Buffer): boolean;
  /** What was written and is still needed, since the kernel has not taken it yet. */
  readonly pendingBytes: number;
  /** Writing has thrown: the connection closes. */
  writeFailed(): void;
}

/** Bodies up to this size travel in one write with what stands before them. */
const joinBytes = 16 * 1024;

/**
 * Collects what one turn produces for one connection and writes it at once: head and small body as one latin1 string, large slices as
 * they are, without copying. One belongs to each connection, so that what is written to it cannot change places.
 */
export class OutputBatch {
  readonly #target: Writable;
  #text: string;
  #isWaiting: boolean;
  /** The peer took everything without asking the writer to wait. */
  isWritable: boolean;

  constructor(target: Writable) {
    this.#target = target;
    this.#text = '';
    this.#isWaiting = false;
    this.isWritable = true;
  }

  text(text: string): void {
    this.#text += text;
  }

  bytes(slice: Buffer): void {
    if (this.#text.length + slice.length > joinBytes) this.flush();
    if (slice.length <= joinBytes) {
      this.#text += slice.toString('latin1');
      return;
    }
    if (!this.#target.write(slice)) this.isWritable = false;
    if (this.#target.pendingBytes > 0) keepReadBuffer();
  }

  /** A body slice in chunked coding (RFC 9112 section 7.1). */
  chunk(slice: Buffer): void {
    if (slice.length === 0) return;
    this.#text += `${slice.length.toString(16)}\r\n`;
    this.bytes(slice);
    this.#text += '\r\n';
  }

  /** Writes at the end of this turn of the event loop. */
  flushSoon(): void {
    if (this.#isWaiting || this.#text === '') return;
    this.#isWaiting = true;
    flushAtTurnEnd(this);
  }

  flushFailed(): void {
    this.#target.writeFailed();
  }

  /** Writes now. */
  flush(): void {
    this.#isWaiting = false;
    if (this.#text === '') return;
    const text = this.#text;
    this.#text = '';
    if (!this.#target.write(text)) this.isWritable = false;
  }
}
