/** Bytes that may wait for a reader of standard output or standard error. Lines beyond are dropped and counted: a blocked reader must not cost memory. */
export const maxWaitingOutputBytes = 1024 * 1024;

/**
 * Lines for a standard stream of a process that keeps running. A line that the stream does not take (a full disk, a closed pipe, a blocked reader)
 * is lost; it ends nothing. The next one that is taken says how many were.
 */
export class BoundedOutput {
  readonly #stream: () => NodeJS.WriteStream;
  readonly #notice: (lost: number) => string;
  #isGuarded: boolean;
  #lost: number;

  /** `stream` is opened by the first line; `notice` is a line about lines that were lost. */
  constructor(stream: () => NodeJS.WriteStream, notice: (lost: number) => string) {
    this.#stream = stream;
    this.#notice = notice;
    this.#isGuarded = false;
    this.#lost = 0;
  }

  /** Lines that were lost and that the stream has not mentioned yet. */
  get lost(): number {
    return this.#lost;
  }

  /** Never throws. */
  write(line: string): void {
    try {
      const stream = this.#stream();
      if (!this.#isGuarded) {
        this.#isGuarded = true;
        stream.on('error', () => {});
      }
      if (stream.destroyed || stream.writableLength + line.length > maxWaitingOutputBytes) {
        this.#lost++;
        return;
      }
      const lost = this.#lost;
      const text = lost === 0 ? line : this.#notice(lost) + line;
      this.#lost = 0;
      stream.write(text, (error) => {
        if (error) this.#lost += lost + 1;
      });
    } catch {
      this.#lost++;
    }
  }
}
