import { appendFileSync, existsSync, mkdirSync, renameSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Logger, messageOf, printableJson } from '@mizzen/common';

/** A log that only its owner may read: a line of JSON for each entry. The file before is kept, as `PATH.1`, when it has grown large. */
export class PrivateLog<Entry> {
  readonly #path: string;
  readonly #maxBytes: number;
  readonly #what: string;
  readonly #logger: Logger;

  /** `what` is for the message where it cannot be written: `the audit log`. */
  constructor(path: string, maxBytes: number, what: string, logger: Logger) {
    this.#path = path;
    this.#maxBytes = maxBytes;
    this.#what = what;
    this.#logger = logger;
  }

  write(entry: Entry): void {
    try {
      mkdirSync(dirname(this.#path), { recursive: true, mode: 0o700 });
      if (existsSync(this.#path) && statSync(this.#path).size > this.#maxBytes) renameSync(this.#path, `${this.#path}.1`);
      appendFileSync(this.#path, `${printableJson(entry)}\n`, { mode: 0o600 });
    } catch (error) {
      this.#logger.error(`${this.#what} cannot be written`, { path: this.#path, error: messageOf(error) });
    }
  }
}
