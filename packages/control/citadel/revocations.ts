import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { MizzenError, messageOf } from '@mizzen/common';
import type { Issuance } from './issuance-log.ts';
import { type CertificateRecord, IssuedCertificates, recordIn } from './issued-certificates.ts';
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
  readonly #issued: IssuedCertificates;
  #list: readonly Revocation[];

  constructor(options: RevocationsOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#issued = new IssuedCertificates(join(dirname(options.logPath), 'valid-certificates.log'), this.#now);
    try {
      this.#list = JSON.parse(readPrivateFile(options.path) ?? '[]') as Revocation[];
    } catch (error) {
      throw new MizzenError('unreadable-file', `which certificates are revoked cannot be read (${messageOf(error)}). Restore the file.`, options.path);
    }
  }

  list(): readonly Revocation[] {
    return this.#list.filter(({ notAfter }) => Date.parse(notAfter) > this.#now());
  }

  /** A certificate was issued, which may have to be revoked. Throws when that cannot be kept. */
  issued(record: CertificateRecord): void {
    this.#issued.add(record);
  }

  /** `serial`: hex, in small or capital letters. */
  isRevoked(serial: string): boolean {
    return this.#list.some((one) => one.serial === serial.toLowerCase());
  }

  /** Revokes one certificate by its serial number, or all that an identity has. Returns those that were good until now. Throws MizzenError. */
  revoke(which: { readonly serial: string } | { readonly identity: string }): readonly Revocation[] {
    const fits = (one: CertificateRecord) =>
      'serial' in which ? one.serial === which.serial.toLowerCase().replace(/^0x|:/g, '') : one.identity === which.identity;
    const found = [...this.#issued.read(), ...this.#logged()].filter(fits);
    if (found.length === 0)
      throw new MizzenError(
        'unknown-certificate',
        `no certificate ${'serial' in which ? `with the serial number ${which.serial}` : `for ${which.identity}`} has been issued here (see ca/issued.log)`,
      );
    const seen = new Set<string>();
    const isFirst = (serial: string) => seen.size < seen.add(serial).size;
    const revokedAt = new Date(this.#now()).toISOString();
    const fresh = found
      .filter(({ serial, notAfter }) => Date.parse(notAfter) > this.#now() && !this.isRevoked(serial) && isFirst(serial))
      .map(({ serial, identity, generation, notAfter }) => ({ serial, identity, generation, revokedAt, notAfter }));
    if (fresh.length > 0) {
      this.#list = [...this.list(), ...fresh];
      writePrivateFile(this.#options.path, `${JSON.stringify(this.#list, null, 1)}\n`);
    }
    return fresh;
  }

  /** Those that were issued before there was a list of its own, as far as the log still has them. */
  #logged(): CertificateRecord[] {
    const written = [`${this.#options.logPath}.1`, this.#options.logPath].flatMap((path) =>
      existsSync(path)
        ? readFileSync(path, 'utf8')
            .split('\n')
            .flatMap((line) => recordIn(line) ?? [])
        : [],
    );
    return [...written, ...(this.#options.unwritten?.() ?? []).flatMap((entry) => recordIn(JSON.stringify(entry)) ?? [])];
  }
}
