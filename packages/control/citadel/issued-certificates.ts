import { appendFileSync, existsSync, mkdirSync, readFileSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { isPlainObject } from '@mizzen/api';
import { MizzenError, messageOf } from '@mizzen/common';
import { writePrivateFile } from './private-file.ts';

/** What has to be known of a certificate to revoke it. */
export interface CertificateRecord {
  /** Hex, small letters. */
  readonly serial: string;
  readonly identity: string;
  readonly generation: string;
  /** ISO 8601. */
  readonly notAfter: string;
}

/** Certificates that wait for a disk that takes none. */
const maxUnwritten = 10_000;
/** The file is rewritten without what has expired when it has at least this size, and twice the size that it had after the last time. */
const minCompactBytes = 1024 * 1024;

/**
 * The certificates that may still be valid, a line each. The log of what was issued is for people and forgets its oldest lines; a flood of requests must not make the
 * authority forget a certificate that is to be revoked.
 */
export class IssuedCertificates {
  readonly #path: string;
  readonly #now: () => number;
  /** What a full disk has not taken. */
  readonly #unwritten: CertificateRecord[];
  #compactAtBytes: number;

  constructor(path: string, now: () => number) {
    this.#path = path;
    this.#now = now;
    this.#unwritten = [];
    this.#compactAtBytes = minCompactBytes;
  }

  /** Keeps a certificate: in memory until the file takes it. Throws when too many wait for that: a certificate that could not be revoked must not be issued. */
  add({ serial, identity, generation, notAfter }: CertificateRecord): void {
    this.#unwritten.push({ serial, identity, generation, notAfter });
    try {
      mkdirSync(dirname(this.#path), { recursive: true, mode: 0o700 });
      // A line that was cut off ends before the next.
      appendFileSync(this.#path, `\n${linesOf(this.#unwritten)}`, { mode: 0o600 });
      this.#unwritten.length = 0;
      if (statSync(this.#path).size >= this.#compactAtBytes) this.#compact();
    } catch (error) {
      if (this.#unwritten.length <= maxUnwritten) return;
      this.#unwritten.pop();
      throw new MizzenError('issuer-failed', `the list of valid certificates cannot be written: ${messageOf(error)}`, this.#path);
    }
  }

  read(): CertificateRecord[] {
    const written = existsSync(this.#path) ? readFileSync(this.#path, 'utf8').split('\n') : [];
    return [...written.flatMap((line) => recordIn(line) ?? []), ...this.#unwritten];
  }

  #compact(): void {
    const text = linesOf(this.read().filter((record) => Date.parse(record.notAfter) > this.#now()));
    writePrivateFile(this.#path, text);
    this.#compactAtBytes = Math.max(minCompactBytes, 2 * text.length);
  }
}

const linesOf = (records: readonly CertificateRecord[]) => records.map((record) => `${JSON.stringify(record)}\n`).join('');

/** The certificate in a line; undefined: none, also in a line that was cut off. */
export function recordIn(line: string): CertificateRecord | undefined {
  try {
    const entry: unknown = JSON.parse(line);
    if (!isPlainObject(entry) || (entry['outcome'] ?? 'issued') !== 'issued') return undefined;
    const { serial, identity, generation, notAfter } = entry;
    if (typeof serial !== 'string' || typeof identity !== 'string' || typeof generation !== 'string' || typeof notAfter !== 'string') return undefined;
    return { serial, identity, generation, notAfter };
  } catch {
    return undefined;
  }
}
