import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { rootCertificates } from 'node:tls';
import { MizzenError, messageOf } from '@mizzen/common';
import type { DataSource } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import type { Secret } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';

/** A certificate chain with its key, or roots to trust; PEM. Never printed: admin shows only what ./describe-certificates.ts makes of it. */
export interface KeyPair {
  readonly cert: string;
  readonly key: string;
}

/**
 * The secrets of this proxy by name, from SDS and from its own identity. Those who use one are told when it changes, and take it for
 * new connections; connections that exist are not touched.
 */
export class SecretStore {
  readonly #keyPairs: Map<string, KeyPair>;
  readonly #roots: Map<string, string>;
  readonly #listeners: Set<(name: string) => void>;

  constructor() {
    this.#keyPairs = new Map();
    this.#roots = new Map();
    this.#listeners = new Set();
  }

  keyPair(name: string): KeyPair | undefined {
    return this.#keyPairs.get(name);
  }

  roots(name: string): string | undefined {
    return this.#roots.get(name);
  }

  names(): { readonly keyPairs: string[]; readonly roots: string[] } {
    return { keyPairs: [...this.#keyPairs.keys()], roots: [...this.#roots.keys()] };
  }

  setKeyPair(name: string, pair: KeyPair): void {
    const current = this.#keyPairs.get(name);
    if (current?.cert === pair.cert && current.key === pair.key) return;
    this.#keyPairs.set(name, pair);
    for (const listener of [...this.#listeners]) listener(name);
  }

  setRoots(name: string, pem: string): void {
    if (this.#roots.get(name) === pem) return;
    this.#roots.set(name, pem);
    for (const listener of [...this.#listeners]) listener(name);
  }

  /** Takes a secret from SDS. Throws MizzenError when it cannot be used; the one before then stays. */
  accept(secret: Secret): void {
    switch (secret.type.case) {
      case 'tlsCertificate': {
        const { certificateChain, privateKey } = secret.type.value;
        const pair = { cert: readDataSource(certificateChain, `secret ${secret.name}`), key: readDataSource(privateKey, `secret ${secret.name}`) };
        checkKeyPair(pair, secret.name);
        return this.setKeyPair(secret.name, pair);
      }
      case 'validationContext': {
        const pem = readDataSource(secret.type.value.trustedCa, `secret ${secret.name}`);
        if (!/-----BEGIN CERTIFICATE-----/.test(pem)) throw new MizzenError('invalid-secret', `secret ${secret.name}: trusted_ca holds no certificate`);
        return this.setRoots(secret.name, pem);
      }
      default:
        throw new MizzenError('invalid-secret', `secret ${secret.name}: type ${secret.type.case ?? '(none)'} is not supported`);
    }
  }

  onChange(listener: (name: string) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

function checkKeyPair(pair: KeyPair, name: string): void {
  try {
    const certificate = new X509Certificate(pair.cert);
    if (Date.parse(certificate.validTo) < Date.now()) throw new Error(`the certificate expired on ${certificate.validTo}`);
  } catch (error) {
    throw new MizzenError('invalid-secret', `secret ${name}: ${messageOf(error)}`);
  }
}

export function readDataSource(source: DataSource | undefined, place: string): string {
  switch (source?.specifier.case) {
    case 'inlineBytes':
      return Buffer.from(source.specifier.value).toString('utf8');
    case 'inlineString':
      return source.specifier.value;
    case 'filename':
      if (source.specifier.value === 'system') return rootCertificates.join('\n');
      try {
        return readFileSync(source.specifier.value, 'utf8');
      } catch (error) {
        throw new MizzenError('unreadable-file', `${place}: ${messageOf(error)}`, source.specifier.value);
      }
    default:
      throw new MizzenError('unsupported-data-source', `${place}: a data source of type ${source?.specifier.case ?? '(none)'} is not supported`);
  }
}
