import { X509Certificate } from 'node:crypto';
import { isPlainObject } from '@mizzen/api';
import { pemCertificates } from '@mizzen/common';

/** What a trust domain is known by. */
export interface SpiffeBundle {
  /** Roots, PEM. */
  readonly pem: string;
  /** A JWK set: the keys of JWT-SVIDs. */
  readonly jwks: string;
  /** When the next one should be asked for. */
  readonly refreshSeconds: number;
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

/** What is published of a bundle that may change: its sequence number grows with every change, and over restarts. */
export class PublishedBundle {
  readonly #read: () => Promise<SpiffeBundle>;
  #last: string | undefined;
  #sequence: number;

  constructor(read: () => Promise<SpiffeBundle>) {
    this.#read = read;
    this.#last = undefined;
    this.#sequence = 0;
  }

  async document(): Promise<string> {
    const bundle = await this.#read();
    const text = JSON.stringify(bundle);
    if (text !== this.#last) this.#sequence = Math.max(this.#sequence + 1, Math.floor(Date.now() / 1000));
    this.#last = text;
    return bundleDocument(bundle, this.#sequence);
  }
}

/** Reads one. Throws Error with the reason; keys of an unknown use are passed over, as the specification wants it. */
export function readBundleDocument(text: string): SpiffeBundle {
  const value: unknown = JSON.parse(text);
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
  const hint = Number(value['spiffe_refresh_hint'] ?? defaultRefreshSeconds);
  return {
    pem: certificates.join(''),
    jwks: JSON.stringify({ keys: tokens.map(({ use: _use, ...key }) => key) }),
    refreshSeconds: Number.isFinite(hint) && hint > 0 ? hint : defaultRefreshSeconds,
  };
}
