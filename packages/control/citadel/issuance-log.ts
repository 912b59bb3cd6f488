import { appendFileSync, existsSync, mkdirSync, renameSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Logger, messageOf } from '@mizzen/common';

/** One certificate or token that was issued, or a request for one that was refused. */
export interface Issuance {
  readonly time: string;
  readonly outcome: 'issued' | 'refused';
  readonly identity: string;
  /** How the caller has proved who it is. */
  readonly by: 'certificate' | 'token';
  /** Who asked for it, for another. */
  readonly forwarder?: string;
  readonly peer: string;
  /** Of a token. */
  readonly audiences?: readonly string[];
  readonly serial?: string;
  readonly notAfter?: string;
  readonly generation?: string;
  readonly reason?: string;
}

const maxBytes = 10 * 1024 * 1024;

/** The audit log of the authority: a line of JSON for each certificate. The file before is kept when it has grown large. */
export class IssuanceLog {
  readonly #path: string;
  readonly #logger: Logger;

  constructor(path: string, logger: Logger) {
    this.#path = path;
    this.#logger = logger;
  }

  write(entry: Issuance): void {
    try {
      mkdirSync(dirname(this.#path), { recursive: true, mode: 0o700 });
      if (existsSync(this.#path) && statSync(this.#path).size > maxBytes) renameSync(this.#path, `${this.#path}.1`);
      appendFileSync(this.#path, `${JSON.stringify(entry)}\n`, { mode: 0o600 });
    } catch (error) {
      this.#logger.error('the log of issued certificates cannot be written', { path: this.#path, error: messageOf(error) });
    }
  }
}
