/** Where a batch goes: a socket, or an upstream connection that may not be ready yet. */
export interface Writable {
  write(data: string | Buffer): boolean;
}

/** Bodies up to this size travel in one write with what stands before them. */
const joinBytes = 16 * 1024;

/**
 * Collects what one wake-up produces for one peer and writes it at once: head and small body as one latin1 string, large slices as they
 * are, without copying.
 */
export class OutputBatch {
  #target: Writable | undefined;
  #text: string;
  /** The peer took everything without asking the writer to wait. */
  isWritable: boolean;

  constructor() {
    this.#target = undefined;
    this.#text = '';
    this.isWritable = true;
  }

  /** Sends to another peer from now on; what has been collected for the one before is dropped. */
  attach(target: Writable | undefined): void {
    this.#target = target;
    this.#text = '';
    this.isWritable = true;
  }

  text(text: string): void {
    this.#text += text;
  }

  bytes(slice: Buffer): void {
    if (this.#text.length + slice.length <= joinBytes) {
      this.#text += slice.toString('latin1');
      return;
    }
    this.flush();
    if (this.#target !== undefined && !this.#target.write(slice)) this.isWritable = false;
  }

  /** A body slice in chunked coding (RFC 9112 section 7.1). */
  chunk(slice: Buffer): void {
    if (slice.length === 0) return;
    this.#text += `${slice.length.toString(16)}\r\n`;
    this.bytes(slice);
    this.#text += '\r\n';
  }

  flush(): void {
    if (this.#text === '' || this.#target === undefined) return;
    const text = this.#text;
    this.#text = '';
    if (!this.#target.write(text)) this.isWritable = false;
  }
}
