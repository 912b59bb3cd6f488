import { X509Certificate } from 'node:crypto';
import { createSecureContext, type TLSSocket } from 'node:tls';
import { errorBoundary, type Logger, MizzenError, messageOf, silentLogger, usableRoots } from '@mizzen/common';
import type { DataSource } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import type { CertificateValidationContext, TlsCertificate } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { GenericSecret, Secret } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { readBytes, readDataSource } from './data-source.ts';
import { leafCrls, readLeafCrls } from './leaf-crl.ts';
import { type CertificateOf, LivePeers } from './live-peers.ts';
import { rootSecretName, workloadSecretName } from './secret-names.ts';
import { constrainedRoots, type RootsByDomain, readTrustDomains } from './trust-domains.ts';
import { WatchedFiles } from './watched-files.ts';

const boundary = errorBoundary('tls.revocation');
const renewing = errorBoundary('tls.renew');
/** After an exception of this proxy's own. */
const retryMs = 1_000;

/** A certificate chain with its key, PEM. Never printed: admin shows only what ./describe-certificates.ts makes of it. */
export interface KeyPair {
  readonly cert: string;
  readonly key: string;
  readonly passphrase?: string;
  /** An OCSP response to staple (RFC 6066 section 8), DER. */
  readonly ocspStaple?: Buffer;
}

/** Roots to trust and certificates that were revoked; PEM. */
export interface TrustedRoots {
  /** All of them. */
  readonly pem: string;
  readonly crl?: string;
  /** Revocation lists that are for the peer's own certificate alone, not for what lies between it and a root; PEM. */
  readonly leafCrl?: string;
  /** Where they are not good for all trust domains: which are for which, as they were given. */
  readonly domains?: RootsByDomain;
}

/** The part of them that says what was revoked. */
export type RevocationLists = Pick<TrustedRoots, 'crl' | 'leafCrl'>;

/** Of roots that are left out, in one message. */
const maxReasons = 5;

/** The roots by which those of one trust domain are known. */
export function rootsOfDomain(roots: TrustedRoots | undefined, trustDomain: string): string | undefined {
  return roots?.domains === undefined ? roots?.pem : roots.domains.get(trustDomain);
}

/**
 * The secrets of this proxy by name: key pairs, roots and generic secrets, from SDS, from files, and its own identity. Those who use one are told when it changes, and take
 * it for new connections; connections that exist are not touched, but for those whose peer's certificate is revoked.
 */
export class SecretStore {
  readonly #keyPairs: Map<string, KeyPair>;
  readonly #roots: Map<string, TrustedRoots>;
  readonly #generic: Map<string, Buffer>;
  readonly #lists: Map<string, RevocationLists>;
  readonly #listeners: Set<(name: string) => void>;
  readonly #files: WatchedFiles;
  readonly #livePeers: LivePeers;
  readonly #logger: Logger;

  constructor(logger: Logger = silentLogger) {
    this.#keyPairs = new Map();
    this.#roots = new Map();
    this.#generic = new Map();
    this.#lists = new Map();
    this.#listeners = new Set();
    this.#files = new WatchedFiles();
    this.#livePeers = new LivePeers(logger);
    this.#logger = logger;
  }

  keyPair(name: string): KeyPair | undefined {
    return this.#keyPairs.get(name);
  }

  roots(name: string): TrustedRoots | undefined {
    return this.#roots.get(name);
  }

  /** Revocation lists that a configuration holds beside roots of SDS; the same object until they change. */
  revocationLists(name: string): RevocationLists | undefined {
    return this.#lists.get(name);
  }

  /** A secret that a filter uses (secret.proto `GenericSecret`); the same object until it changes. */
  generic(name: string): Buffer | undefined {
    return this.#generic.get(name);
  }

  has(name: string): boolean {
    return this.#keyPairs.has(name) || this.#roots.has(name) || this.#generic.has(name) || this.#lists.has(name);
  }

  names(): { readonly keyPairs: string[]; readonly roots: string[]; readonly generic: string[] } {
    return { keyPairs: [...this.#keyPairs.keys()], roots: [...this.#roots.keys()], generic: [...this.#generic.keys()] };
  }

  setKeyPair(name: string, pair: KeyPair): void {
    const current = this.#keyPairs.get(name);
    if (current?.cert === pair.cert && current.key === pair.key && sameBytes(current.ocspStaple, pair.ocspStaple)) return;
    this.#keyPairs.set(name, pair);
    this.#changed(name);
  }

  setRoots(name: string, roots: TrustedRoots): void {
    const current = this.#roots.get(name);
    if (current?.pem === roots.pem && current.crl === roots.crl && current.leafCrl === roots.leafCrl && sameDomains(current.domains, roots.domains)) return;
    this.#roots.set(name, roots);
    this.#changed(name);
    if (roots.leafCrl !== undefined && roots.leafCrl !== current?.leafCrl) {
      this.#endRevoked(name, roots.leafCrl);
    }
  }

  /** Closes the connections of revoked peers, and after an exception tries again while the list is in effect. */
  #endRevoked(name: string, leafCrl: string): void {
    if (this.#roots.get(name)?.leafCrl !== leafCrl) return;
    const again = (): void => void boundary.after(retryMs, () => this.#endRevoked(name, leafCrl), again).unref();
    boundary.start(() => this.#livePeers.endRevoked(name, leafCrls(leafCrl)), again);
  }

  setGeneric(name: string, value: Buffer): void {
    if (this.#generic.get(name)?.equals(value)) return;
    this.#generic.set(name, value);
    this.#changed(name);
  }

  /** Drops a secret. Those who use it refuse from now on what needs it; connections that exist are not touched. */
  remove(name: string): void {
    const isDropped = [this.#keyPairs, this.#roots, this.#generic].map((secrets) => secrets.delete(name)).includes(true);
    if (isDropped) this.#changed(name);
  }

  /** Takes a secret from SDS; without content it is withdrawn. Throws MizzenError when it cannot be used; the one before then stays. */
  accept(secret: Secret): void {
    const place = `secret ${secret.name}`;
    switch (secret.type.case) {
      case 'tlsCertificate':
        return this.useKeyPair(secret.name, secret.type.value, place);
      case 'validationContext':
        return this.useRoots(secret.name, secret.type.value, place);
      case 'genericSecret':
        return this.useGeneric(secret.name, secret.type.value, place);
      case undefined:
        if (isOwn(secret.name)) throw new MizzenError('invalid-secret', `${place}: it has no content`);
        return this.remove(secret.name);
      default:
        throw new MizzenError('invalid-secret', `${place}: type ${secret.type.case} is not supported`);
    }
  }

  /** Keeps a key pair under a name, and follows the files that it comes from. Throws MizzenError when it cannot be used now. */
  useKeyPair(name: string, certificate: TlsCertificate, place: string): void {
    if (certificate.pkcs12 || certificate.privateKeyProvider)
      throw new MizzenError('unsupported-certificate', `${place}: pkcs12 and private_key_provider are not supported; give certificate_chain and private_key`);
    const { certificateChain, privateKey, password, ocspStaple } = certificate;
    const read = (): KeyPair => {
      const pair = {
        cert: readDataSource(certificateChain, place),
        key: readDataSource(privateKey, place),
        ...(password ? { passphrase: readDataSource(password, place) } : {}),
        ...(ocspStaple ? { ocspStaple: readBytes(ocspStaple, place) } : {}),
      };
      checkKeyPair(pair, place);
      return pair;
    };
    this.setKeyPair(name, read());
    this.#follow([certificateChain, privateKey, ocspStaple], certificate.watchedDirectory?.path, place, () => this.setKeyPair(name, read()));
  }

  /** The same for roots. */
  useRoots(name: string, context: CertificateValidationContext, place: string): void {
    const { trustedCa, crl, customValidatorConfig: validator } = context;
    const read = (): TrustedRoots => {
      if (validator !== undefined) {
        const domains = readTrustDomains(validator, place);
        const skipped = (problem: MizzenError) => this.#logger.error(`a root is not used: ${problem.message}`, { of: place });
        return { pem: this.#usable(constrainedRoots(domains, place, skipped), place), domains, ...readLists(context, place) };
      }
      const pem = readDataSource(trustedCa, place);
      if (!/-----BEGIN CERTIFICATE-----/.test(pem)) throw new MizzenError('invalid-secret', `${place}: trusted_ca holds no certificate`);
      return { pem: this.#usable(pem, place), ...readLists(context, place) };
    };
    this.setRoots(name, read());
    this.#follow([trustedCa, crl], context.watchedDirectory?.path, place, () => this.setRoots(name, read()));
  }

  /** The same for revocation lists alone. */
  useRevocationLists(name: string, context: CertificateValidationContext, place: string): void {
    const keep = () => {
      this.#lists.set(name, readLists(context, place));
      this.#changed(name);
    };
    keep();
    this.#follow([context.crl], context.watchedDirectory?.path, place, keep);
  }

  /** The same for a generic secret. */
  useGeneric(name: string, { secret }: GenericSecret, place: string): void {
    const read = () => readBytes(secret, place);
    this.setGeneric(name, read());
    this.#follow([secret], undefined, place, () => this.setGeneric(name, read()));
  }

  /** Calls `changed` when a file that holds SDS secrets has changed; what it throws is logged, and the last good secret stays. */
  followFile(path: string, directory: string | undefined, changed: () => void): void {
    this.#files.watch([path], directory, () => this.#try(path, changed));
  }

  /** A connection whose peer has been verified by these roots, for as long as it lasts. */
  followPeer(roots: string, socket: TLSSocket, certificateOf: CertificateOf): void {
    this.#livePeers.add(roots, socket, certificateOf);
  }

  onChange(listener: (name: string) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close(): void {
    this.#files.close();
  }

  /** The roots that may be used (common/certificate-rules.ts). Throws MizzenError when there is none. */
  #usable(pem: string, place: string): string {
    let found: ReturnType<typeof usableRoots>;
    try {
      found = usableRoots(pem);
    } catch (error) {
      throw new MizzenError('invalid-secret', `${place}: a root cannot be read: ${messageOf(error)}`);
    }
    const { roots, leftOut } = found;
    if (leftOut.length === 0) return pem;
    const reasons = leftOut.slice(0, maxReasons).join('; ');
    if (roots.length === 0) throw new MizzenError('invalid-secret', `${place}: no root may be used: ${reasons}`);
    this.#logger.warn('roots are left out', { of: place, count: leftOut.length, reasons });
    return `${roots.join('\n')}\n`;
  }

  #follow(sources: readonly (DataSource | undefined)[], directory: string | undefined, place: string, renew: () => void): void {
    const paths = sources.flatMap((source) => (source?.specifier.case === 'filename' && source.specifier.value !== 'system' ? [source.specifier.value] : []));
    if (paths.length > 0) this.#files.watch(paths, directory || undefined, () => this.#try(place, renew));
  }

  #try(place: string, renew: () => void): void {
    try {
      renew();
      this.#logger.info('has read changed secrets', { of: place });
    } catch (error) {
      this.#logger.error(`a changed secret cannot be used; the one before stays in effect: ${messageOf(error)}`, { of: place });
    }
  }

  #changed(name: string): void {
    for (const listener of [...this.#listeners]) this.#notify(listener, name);
  }

  /** One that fails neither keeps the others from the new secret nor stays with the old one. */
  #notify(listener: (name: string) => void, name: string): void {
    if (!this.#listeners.has(listener) || renewing.run(() => listener(name))) return;
    const again = () => this.#notify(listener, name);
    renewing.after(retryMs, again, again).unref();
  }
}

function readLists({ crl, onlyVerifyLeafCertCrl }: CertificateValidationContext, place: string): RevocationLists {
  if (crl === undefined) return {};
  const lists = readDataSource(crl, place);
  if (!onlyVerifyLeafCertCrl) return { crl: lists };
  readLeafCrls(lists, place);
  return { leafCrl: lists };
}

/** Without its own identity and the mesh's roots a proxy could not be told of anything else. */
const isOwn = (name: string) => name === workloadSecretName || name === rootSecretName;

function sameBytes(a: Buffer | undefined, b: Buffer | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && a.equals(b));
}

function sameDomains(a: RootsByDomain | undefined, b: RootsByDomain | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && a.size === b.size && [...a].every(([name, pem]) => b.get(name) === pem));
}

function checkKeyPair(pair: KeyPair, place: string): void {
  try {
    const certificate = new X509Certificate(pair.cert);
    if (Date.parse(certificate.validTo) < Date.now()) throw new Error(`the certificate expired on ${certificate.validTo}`);
    // OpenSSL says here whether the key is one, and whether it belongs to the certificate.
    createSecureContext({ cert: pair.cert, key: pair.key, ...(pair.passphrase === undefined ? {} : { passphrase: pair.passphrase }) });
  } catch (error) {
    throw new MizzenError(
      'invalid-secret',
      `${place}: ${/key values mismatch/i.test(messageOf(error)) ? 'the key does not belong to the certificate' : messageOf(error)}`,
    );
  }
}
