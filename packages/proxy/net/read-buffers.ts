/**
 * Memory that sockets read into. A read that is used up before it returns (a head that becomes a string, a body slice that the kernel
 * took at once) needs no buffer of its own: all connections share one. What somebody keeps beyond the read takes its buffer with it,
 * and the connection gets another. Without this each read would leave 64 KiB for the collector.
 *
 * A socket tells the kernel where to read to when the read before has ended, so the shared buffer may never be kept: those who would
 * keep a part of it must copy. Only a connection's own buffer, which it has while it reads a long body, may be kept.
 */
export const readBufferBytes = 64 * 1024;

const shared = Buffer.allocUnsafeSlow(readBufferBytes);
/** Buffers that were kept and are free again. */
const pool: Buffer[] = [];
const maxPooled = 64;

/** Set by a writer that a slice of the buffer in use has gone to and that still needs it. */
let isKept = false;

export function keepReadBuffer(): void {
  isKept = true;
}

/** The buffers of one connection. */
export class ReadBuffers {
  #own: Buffer | undefined;

  constructor() {
    this.#own = undefined;
  }

  /** A long body begins: its slices may be kept. */
  beginLongBody(): void {
    this.#own ??= pool.pop() ?? Buffer.allocUnsafeSlow(readBufferBytes);
  }

  /** Nothing is read that anybody may keep. */
  endLongBody(): void {
    if (this.#own === undefined) return;
    if (!isKept && pool.length < maxPooled) pool.push(this.#own);
    this.#own = undefined;
  }

  /** Slices of this buffer may be kept, by `keepReadBuffer`. */
  isOwn(buffer: Uint8Array): boolean {
    return this.#own === buffer;
  }

  /** A read begins to be handled. */
  begin(): void {
    isKept = false;
  }

  /** A read has been handled: where the next one goes to. */
  next(): Buffer {
    if (this.#own === undefined) return shared;
    if (isKept) {
      isKept = false;
      this.#own = pool.pop() ?? Buffer.allocUnsafeSlow(readBufferBytes);
    }
    return this.#own;
  }
}
