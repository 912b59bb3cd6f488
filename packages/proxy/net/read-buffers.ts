import { collectYoung } from '@mizzen/common';

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

/** Reads of at least this size are parts of long bodies. */
const largeReadBytes = 16 * 1024;
/** After this much has been read into buffers that Node made for each read, those that are done with are collected. */
const collectAfterBytes = 8 * 1024 * 1024;
let uncollectedBytes = 0;

/**
 * Accounts for a read of a socket that was accepted: Node gives each a buffer of its own. Left to itself, V8 would let a hundred megabytes
 * of them pile up before it looks.
 */
export function countAllocatedRead(bytes: number): void {
  if (bytes < largeReadBytes) return;
  uncollectedBytes += bytes;
  if (uncollectedBytes < collectAfterBytes) return;
  uncollectedBytes = 0;
  collectYoung();
}

/** The buffers of one connection. */
export class ReadBuffers {
  #own: Buffer | undefined;
  /** Buffers whose slices somebody still needs. */
  #kept: Buffer[] | undefined;

  constructor() {
    this.#own = undefined;
    this.#kept = undefined;
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
    this.#kept = undefined;
  }

  /** Slices of this buffer may be kept, by `keepReadBuffer`. */
  isOwn(buffer: Uint8Array): boolean {
    return this.#own === buffer;
  }

  get hasKept(): boolean {
    return this.#kept !== undefined && this.#kept.length > 0;
  }

  /** Nobody needs what was kept any more. */
  release(): void {
    for (const buffer of this.#kept?.splice(0) ?? []) if (pool.length < maxPooled) pool.push(buffer);
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
      (this.#kept ??= []).push(this.#own);
      this.#own = pool.pop() ?? Buffer.allocUnsafeSlow(readBufferBytes);
    }
    return this.#own;
  }
}
