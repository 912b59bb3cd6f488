/**
 * Cuts a stream of bytes into lines at LF alone. `node:readline` also cuts at U+2028 and U+2029, which JSON allows within strings: a header
 * value with one of them would end a message in its middle.
 */
export class LineSplitter {
  #pieces: Buffer[];
  #bytes: number;

  constructor() {
    this.#pieces = [];
    this.#bytes = 0;
  }

  /** Bytes of the line that has not ended yet. */
  get pendingBytes(): number {
    return this.#bytes;
  }

  read(piece: Buffer, onLine: (line: string) => void): void {
    let from = 0;
    for (let to = piece.indexOf(0x0a); to >= 0; to = piece.indexOf(0x0a, from)) {
      this.#pieces.push(piece.subarray(from, to));
      const line = (this.#pieces.length === 1 ? this.#pieces[0]! : Buffer.concat(this.#pieces)).toString('utf8');
      this.clear();
      from = to + 1;
      onLine(line);
    }
    if (from === piece.length) return;
    this.#bytes += piece.length - from;
    this.#pieces.push(piece.subarray(from));
  }

  /** Forgets the line that has not ended yet. */
  clear(): void {
    this.#pieces = [];
    this.#bytes = 0;
  }
}
