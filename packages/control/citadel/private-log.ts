import { appendFileSync, existsSync, mkdirSync, renameSync, statSync, truncateSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Logger, messageOf, printableJson } from '@mizzen/common';

/** Entries that wait for a disk that takes none; the oldest are lost first. */
export const maxUnwrittenEntries = 10_000;

/**
 * A log that only its owner may read: a line of JSON for each entry. The files before are kept, as `PATH.1` (the newest), `PATH.2`, ..., when it has grown large. Entries that a full disk does not
 * take wait for the next `flush`.
 */
export class PrivateLog<Entry> {
  readonly #path: string;
  readonly #maxBytes: number;
  readonly #what: string;
  readonly #logger: Logger;
  readonly #unwritten: Entry[];
  #lost: number;
  readonly #maxFilesBefore: number;

  /** `what` is for the message where it cannot be written: `the audit log`. */
  constructor(path: string, maxBytes: number, what: string, logger: Logger, maxFilesBefore = 1) {
    this.#maxFilesBefore = maxFilesBefore;
    this.#path = path;
    this.#maxBytes = maxBytes;
    this.#what = what;
    this.#logger = logger;
    this.#unwritten = [];
    this.#lost = 0;
  }

  write(entry: Entry): void {
    this.#unwritten.push(entry);
    if (this.#unwritten.length === 1) return this.#flush(false);
    if (this.#unwritten.length <= maxUnwrittenEntries) return;
    this.#unwritten.shift();
    this.#lost++;
  }

  /** Writes what could not be written before. */
  flush(): void {
    if (this.#unwritten.length > 0) this.#flush(true);
  }

  /** What the file does not have yet. */
  unwritten(): readonly Entry[] {
    return this.#unwritten;
  }

  #flush(hasFailed: boolean): void {
    let size = 0;
    try {
      mkdirSync(dirname(this.#path), { recursive: true, mode: 0o700 });
      size = statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
      if (size > this.#maxBytes) {
        this.#rotate();
        size = 0;
      }
      appendFileSync(this.#path, this.#unwritten.map((entry) => `${printableJson(entry)}\n`).join(''), { mode: 0o600 });
      if (hasFailed) this.#logger.info(`${this.#what} can be written again`, { path: this.#path, entries: this.#unwritten.length, lost: this.#lost });
      this.#unwritten.length = 0;
      this.#lost = 0;
    } catch (error) {
      this.#cutTo(size);
      if (!hasFailed) this.#logger.error(`${this.#what} cannot be written; its entries wait in memory`, { path: this.#path, error: messageOf(error) });
    }
  }

  /** A full disk takes a part of a line. */
  #cutTo(size: number): void {
    try {
      if (existsSync(this.#path)) truncateSync(this.#path, size);
    } catch {
      // Readers skip a line that is cut off.
    }
  }

  #rotate(): void {
    const before = (i: number) => (i === 0 ? this.#path : `${this.#path}.${i}`);
    for (let i = this.#maxFilesBefore - 1; i >= 0; i--) if (existsSync(before(i))) renameSync(before(i), before(i + 1));
  }
}
