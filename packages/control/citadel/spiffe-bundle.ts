import { createHash, X509Certificate } from 'node:crypto';
import { isPlainObject } from '@mizzen/api';
import { pemCertificates } from '@mizzen/common';
import { readPrivateFile, writePrivateFile } from './private-file.ts';

/** What a trust domain is known by. */
export interface SpiffeBundle {
  /** Roots, PEM. */
  readonly pem: string;
  /** A JWK set: the keys of JWT-SVIDs. */
  readonly jwks: string;
  /** When the next one should be asked for. */
  readonly refreshSeconds: number;
}

/** A bundle that another trust domain has published. */
export interface FetchedBundle extends SpiffeBundle {
  /** `spiffe_sequence`, which grows with every change; undefined: its publisher does not count. */
  readonly sequence: number | undefined;
}

export const defaultRefreshSeconds = 300;
const maxCertificates = 100;

export function certificatesIn(pem: string): X509Certificate[] {
  return pemCertificates(pem).map((one) => new X509Certificate(one));
}

/** A bundle as others read it (SPIFFE Trust Domain and Bundle, section 4): a JWK set. */
export function bundleDocument({ pem, jwks, refreshSeconds }: SpiffeBundle, sequence: number): string {
  const keys = certificatesIn(pem).map((certificate) => {
    return { use: 'x509-svid', ...certificate.publicKey.export({ format: 'jwk' }), x5c: [certificate.raw.toString('base64')] };
  });
  const tokens = (JSON.parse(jwks) as { readonly keys: readonly object[] }).keys.map((key) => ({ ...key, use: 'jwt-svid' }));
  return JSON.stringify({ keys: [...keys, ...tokens], spiffe_sequence: sequence, spiffe_refresh_hint: refreshSeconds }, null, 2);
}

/**
 * What is published of a bundle that may change: its sequence number grows with every change, and over restarts. With a `path` the number is kept
 * there, so that it also grows when the clock was set back: others refuse a bundle with a smaller number.
 */
export class PublishedBundle {
  readonly #read: () => Promise<SpiffeBundle>;
  readonly #path: string | undefined;
  /** SHA-256 of what was published last. */
  #digest: string | undefined;
  #sequence: number;

  constructor(read: () => Promise<SpiffeBundle>, path?: string) {
    this.#read = read;
    this.#path = path;
    this.#digest = undefined;
    this.#sequence = 0;
    try {
      const kept: unknown = JSON.parse((path === undefined ? undefined : readPrivateFile(path)) ?? '{}');
      if (!isPlainObject(kept) || !Number.isSafeInteger(kept['sequence'])) return;
      this.#sequence = Number(kept['sequence']);
      this.#digest = String(kept['digest']);
    } catch {
      // The clock decides, as without a file.
    }
  }

  async document(): Promise<string> {
    const bundle = await this.#read();
    const digest = createHash('sha256').update(JSON.stringify(bundle)).digest('hex');
    if (digest !== this.#digest) {
      this.#sequence = Math.max(this.#sequence + 1, Math.floor(Date.now() / 1000));
      this.#digest = digest;
      this.#keep();
    }
    return bundleDocument(bundle, this.#sequence);
  }

  #keep(): void {
    if (this.#path === undefined) return;
    try {
      writePrivateFile(this.#path, JSON.stringify({ sequence: this.#sequence, digest: this.#digest }));
    } catch {
      // A disk that is full must not keep the bundle from others; the clock decides after the next start.
    }
  }
}

/** Reads one. Throws Error with the reason; keys of an unknown use are passed over, as the specification wants it. */
export function readBundleDocument(text: string): FetchedBundle {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // What the error quotes may be the content of something else.
    throw new Error('it is not JSON');
  }
  if (!isPlainObject(value) || !Array.isArray(value['keys'])) throw new Error('it is no SPIFFE bundle: a JWK set is needed');
  const certificates: string[] = [];
  const tokens: Record<string, unknown>[] = [];
  for (const key of value['keys'] as unknown[]) {
    if (!isPlainObject(key)) throw new Error('it is no SPIFFE bundle: a key in it is no object');
    if (key['use'] === 'jwt-svid' && typeof key['kid'] === 'string') tokens.push(key);
    if (key['use'] !== 'x509-svid') continue;
    const chain: unknown = key['x5c'];
    const [first] = Array.isArray(chain) ? (chain as unknown[]) : [];
    if (typeof first !== 'string') throw new Error('it is no SPIFFE bundle: a root in it has no x5c');
    const certificate = new X509Certificate(Buffer.from(first, 'base64'));
    if (!certificate.ca) throw new Error(`a certificate in it is no authority's: ${certificate.subject.replaceAll('\n', ', ')}`);
    certificates.push(certificate.toString());
  }
  if (certificates.length === 0) throw new Error('there is no root in it');
  if (certificates.length > maxCertificates) throw new Error(`there are more than ${maxCertificates} roots in it`);
  const sequence = value['spiffe_sequence'] ?? undefined;
  if (sequence !== undefined && !(typeof sequence === 'number' && Number.isSafeInteger(sequence) && sequence >= 0))
    throw new Error('its spiffe_sequence is not a whole number');
  const hint = Number(value['spiffe_refresh_hint'] ?? defaultRefreshSeconds);
  return {
    pem: certificates.join(''),
    jwks: JSON.stringify({ keys: tokens.map(({ use: _use, ...key }) => key) }),
    refreshSeconds: Number.isFinite(hint) && hint > 0 ? hint : defaultRefreshSeconds,
    sequence,
  };
}
