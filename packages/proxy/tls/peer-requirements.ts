import { createHash, type X509Certificate } from 'node:crypto';
import { MizzenError } from '@mizzen/common';
import {
  type CertificateValidationContext,
  CertificateValidationContextSchema,
  SubjectAltNameMatcher_SanType,
} from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { StringMatcher } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/string_pb.js';
import { compileStringMatcher, type TextTest } from '../route/matchers.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import { alternativeNames } from './peer-identity.ts';

const supportedOfValidation = supportedFields(CertificateValidationContextSchema, [
  ...['trustedCa', 'crl', 'watchedDirectory', 'verifyCertificateSpki', 'verifyCertificateHash', 'matchTypedSubjectAltNames', 'trustChainVerification'],
  ...['customValidatorConfig', 'onlyVerifyLeafCertCrl'],
]);

interface NameMatcher {
  readonly type: 'uri' | 'dns' | 'ip';
  readonly test: TextTest;
  readonly text: string;
  /** The only trust domain whose identities match; undefined: it may match those of several. */
  readonly trustDomain: string | undefined;
}

/** What is asked of a peer's certificate beyond a chain to a root (common.proto `CertificateValidationContext`). */
export class PeerRequirements {
  readonly #names: readonly NameMatcher[];
  /** SHA-256 of the certificate, lower-case hex without colons. */
  readonly #hashes: readonly string[];
  /** SHA-256 of the public key (SubjectPublicKeyInfo), base64. */
  readonly #keys: readonly string[];

  constructor(context: CertificateValidationContext | undefined, place: string) {
    refuseUnsupported(CertificateValidationContextSchema, context, supportedOfValidation, place);
    this.#names = (context?.matchTypedSubjectAltNames ?? []).map(({ sanType, matcher }) => {
      if (!matcher) throw new MizzenError('invalid-tls', `${place}: a subject alternative name matcher is empty`);
      const type = typeNames[sanType];
      if (type === undefined) throw new MizzenError('unsupported-tls', `${place}: alternative names can be matched by URI, DNS and IP_ADDRESS`);
      return { type, test: compileStringMatcher(matcher), text: String(matcher.matchPattern.value), trustDomain: trustDomainOf(matcher) };
    });
    this.#hashes = (context?.verifyCertificateHash ?? []).map((hash) => hash.replaceAll(':', '').toLowerCase());
    this.#keys = context?.verifyCertificateSpki ?? [];
  }

  get hasNames(): boolean {
    return this.#names.length > 0;
  }

  get isEmpty(): boolean {
    return this.#names.length === 0 && this.#hashes.length === 0 && this.#keys.length === 0;
  }

  /** The trust domains that the names are of; undefined: they may be of any. */
  trustDomains(): ReadonlySet<string> | undefined {
    const found = new Set<string>();
    for (const { type, trustDomain } of this.#names)
      if (type !== 'uri' || trustDomain === undefined) return undefined;
      else found.add(trustDomain);
    return found.size === 0 ? undefined : found;
  }

  /** Why a certificate is not good enough, or undefined. `who` begins the sentence: `the server`. */
  problemOf(certificate: X509Certificate, who: string): string | undefined {
    if (this.#hashes.length > 0 || this.#keys.length > 0) {
      const hash = certificate.fingerprint256.replaceAll(':', '').toLowerCase();
      const key = createHash('sha256')
        .update(certificate.publicKey.export({ type: 'spki', format: 'der' }))
        .digest('base64');
      if (!this.#hashes.includes(hash) && !this.#keys.includes(key)) return `${who}'s certificate is none of those that are pinned`;
    }
    if (this.#names.length === 0) return undefined;
    const found = alternativeNames(certificate);
    if ('problem' in found) return found.problem;
    const given = { uri: found.uris, dns: found.dns, ip: found.ips };
    for (const matcher of this.#names) if (given[matcher.type].some((name) => nameMatches(matcher, name))) return undefined;
    return `${who} is ${[...found.uris, ...found.dns].join(', ') || 'nameless'}, but ${this.#names.map((name) => name.text).join(' or ')} was expected`;
  }
}

/** Exact names, and prefixes with the whole trust domain in them. */
function trustDomainOf({ matchPattern, ignoreCase }: StringMatcher): string | undefined {
  if (ignoreCase || (matchPattern.case !== 'exact' && matchPattern.case !== 'prefix')) return undefined;
  return /^spiffe:\/\/([^/]+)\//.exec(matchPattern.value)?.[1];
}

const typeNames: Readonly<Record<number, NameMatcher['type']>> = {
  [SubjectAltNameMatcher_SanType.URI]: 'uri',
  [SubjectAltNameMatcher_SanType.DNS]: 'dns',
  [SubjectAltNameMatcher_SanType.IP_ADDRESS]: 'ip',
};

/** A wildcard in a certificate stands for exactly one label (RFC 6125 section 6.4.3). */
function nameMatches({ type, test, text }: NameMatcher, name: string): boolean {
  if (test(name)) return true;
  const dot = text.indexOf('.');
  return type === 'dns' && name.startsWith('*.') && dot > 0 && text.slice(dot).toLowerCase() === name.slice(1).toLowerCase();
}
