import { existsSync, readFileSync } from 'node:fs';
import { MizzenError, messageOf } from '@mizzen/common';
import type { Issuance } from './issuance-log.ts';
import { readPrivateFile, writePrivateFile } from './private-file.ts';

/** A certificate that is no longer good, until it would have ended anyway. */
export interface Revocation {
  /** Hex, small letters. */
  readonly serial: string;
  readonly identity: string;
  /** Whose authority has signed it. */
  readonly generation: string;
  /** ISO 8601. */
  readonly revokedAt: string;
  readonly notAfter: string;
}

export interface RevocationsOptions {
  /** Where they are kept. */
  readonly path: string;
  /** The log of what has been issued. */
  readonly logPath: string;
  /** Entries that the log could not be given yet. */
  readonly unwritten?: (() => readonly Issuance[]) | undefined;
  readonly now?: () => number;
}

/** Which of the certificates that this authority has issued are revoked. */
export class Revocations {
  readonly #options: RevocationsOptions;
  readonly #now: () => number;
  #list: readonly Revocation[];

  constructor(options: RevocationsOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
    try {
      this.#list = JSON.parse(readPrivateFile(options.path) ?? '[]') as Revocation[];
    } catch (error) {
      throw new MizzenError('unreadable-file', `which certificates are revoked cannot be read (${messageOf(error)}). Restore the file.`, options.path);
    }
  }

  list(): readonly Revocation[] {
    return this.#list.filter(({ notAfter }) => Date.parse(notAfter) > this.#now());
  }

  /** `serial`: hex, in small or capital letters. */
  isRevoked(serial: string): boolean {
    return this.#list.some((one) => one.serial === serial.toLowerCase());
  }

  /** Revokes one certificate by its serial number, or all that an identity has. Returns those that were good until now. Throws MizzenError. */
  revoke(which: { readonly serial: string } | { readonly identity: string }): readonly Revocation[] {
    const fits = (one: Issuance) => ('serial' in which ? one.serial === which.serial.toLowerCase().replace(/^0x|:/g, '') : one.identity === which.identity);
    const found = this.#issued().filter((one) => one.outcome === 'issued' && one.serial !== undefined && one.generation !== undefined && fits(one));
    if (found.length === 0)
      throw new MizzenError(
        'unknown-certificate',
        `no certificate ${'serial' in which ? `with the serial number ${which.serial}` : `for ${which.identity}`} has been issued here (see ca/issued.log)`,
      );
    const revokedAt = new Date(this.#now()).toISOString();
    const fresh = found
      .filter(({ serial, notAfter }) => Date.parse(notAfter!) > this.#now() && !this.isRevoked(serial!))
      .map(({ serial, identity, generation, notAfter }) => ({ serial: serial!, identity, generation: generation!, revokedAt, notAfter: notAfter! }));
    if (fresh.length > 0) {
      this.#list = [...this.list(), ...fresh];
      writePrivateFile(this.#options.path, `${JSON.stringify(this.#list, null, 1)}\n`);
    }
    return fresh;
  }

  #issued(): Issuance[] {
    const written = [`${this.#options.logPath}.1`, this.#options.logPath].flatMap((path) =>
      existsSync(path)
        ? readFileSync(path, 'utf8')
            .split('\n')
            .flatMap((line) => {
              try {
                return [JSON.parse(line) as Issuance];
              } catch {
                // The last line of one that was cut off.
                return [];
              }
            })
        : [],
    );
    return [...written, ...(this.#options.unwritten?.() ?? [])];
  }
}
