import { X509Certificate } from 'node:crypto';
import { type DerElement, derElement, derElements, MizzenError, messageOf, pemCertificates } from '@mizzen/common';
import type { TypedExtensionConfig } from '@mizzen/envoy-api/gen/envoy/config/core/v3/extension_pb.js';
import { SPIFFECertValidatorConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config_pb.js';
import { unpackConfig } from '../filters/unpack-config.ts';
import { readDataSource } from './data-source.ts';

/** Roots by trust domain, PEM: a root of one says nothing about identities of another. */
export type RootsByDomain = ReadonlyMap<string, string>;

const validatorName = 'envoy.tls.cert_validator.spiffe';

/** Reads tls_spiffe_validator_config.proto `SPIFFECertValidatorConfig`. Throws MizzenError with the place. */
export function readTrustDomains(config: TypedExtensionConfig, place: string): RootsByDomain {
  if (config.name !== validatorName)
    throw new MizzenError('unsupported-tls', `${place}: custom_validator_config: ${config.name} is not supported; ${validatorName} is`);
  const { trustDomains } = unpackConfig(SPIFFECertValidatorConfigSchema, config.typedConfig, place);
  const domains = new Map<string, string>();
  for (const { name, trustBundle } of trustDomains) {
    const pem = readDataSource(trustBundle, place);
    if (name === '' || domains.has(name) || certificatesIn(pem).length === 0)
      throw new MizzenError('invalid-secret', `${place}: trust domain ${JSON.stringify(name)}: each is named once, with the certificates of its roots`);
    domains.set(name, pem);
  }
  if (domains.size === 0) throw new MizzenError('invalid-secret', `${place}: it names no trust domains`);
  return domains;
}

/**
 * All roots, PEM, each with a name constraint for the trust domains that it is for (RFC 5280 section 4.2.1.10: of a URI, its host). So it is OpenSSL that holds each root to
 * its own. A root is trusted by being here, so its own signature is not verified. A root that cannot be used is left out with a call of `onUnusable`, so that one trust
 * domain cannot take the roots of the others away. Throws MizzenError when no root is left.
 */
export function constrainedRoots(domains: RootsByDomain, place: string, onUnusable: (problem: MizzenError) => void = () => {}): string {
  // By key: a root that several trust domains share must be good for all of them.
  const roots = new Map<string, { readonly certificates: Map<string, X509Certificate>; readonly domains: Set<string> }>();
  for (const [domain, pem] of domains)
    for (const certificate of certificatesIn(pem)) {
      const key = certificate.publicKey.export({ format: 'der', type: 'spki' }).toString('base64');
      let root = roots.get(key);
      if (root === undefined) roots.set(key, (root = { certificates: new Map(), domains: new Set() }));
      root.certificates.set(certificate.fingerprint256, certificate);
      root.domains.add(domain);
    }
  const usable: string[] = [];
  let problem: unknown;
  for (const { certificates, domains: names } of roots.values())
    for (const certificate of certificates.values())
      try {
        usable.push(constrainedRoot(certificate, [...names], place));
      } catch (error) {
        problem = error;
        if (error instanceof MizzenError) onUnusable(error);
      }
  if (usable.length === 0) throw problem;
  return usable.join('\n');
}

const nameConstraintsId = Buffer.from('0603551d1e', 'hex');
const tags = { sequence: 0x30, octets: 0x04, extensions: 0xa3, permitted: 0xa0, excluded: 0xa1, uri: 0x86 } as const;

/** A certificate for the same name and key that is good for identities of these trust domains only. */
function constrainedRoot(certificate: X509Certificate, domains: readonly string[], place: string): string {
  try {
    const [whole] = derElements(certificate.raw);
    const [body, ...signature] = derElements(whole!.content);
    const fields = derElements(body!.content);
    const extensions = fields.find(({ tag }) => tag === tags.extensions);
    if (extensions === undefined || !certificate.ca) throw new Error('it is not the certificate of an authority');
    const list = derElements(derElements(extensions.content)[0]!.content);
    const others = list.filter((extension) => !isNameConstraints(extension));
    const constraints = nameConstraints(domains, list.find(isNameConstraints));
    const changed = derElement(tags.extensions, derElement(tags.sequence, ...others.map(({ bytes }) => bytes), constraints));
    const newBody = derElement(tags.sequence, ...fields.map((field) => (field === extensions ? changed : field.bytes)));
    const bytes = derElement(tags.sequence, newBody, ...signature.map((element) => element.bytes));
    return new X509Certificate(bytes).toString();
  } catch (error) {
    throw new MizzenError('invalid-secret', `${place}: the root ${certificate.subject.replaceAll('\n', ', ')} cannot be used: ${messageOf(error)}`);
  }
}

const isNameConstraints = ({ content }: DerElement) => content.subarray(0, nameConstraintsId.length).equals(nameConstraintsId);

/** What the root itself is constrained to stays so. */
function nameConstraints(domains: readonly string[], given: DerElement | undefined): Buffer {
  const value = given && derElements(given.content).find(({ tag }) => tag === tags.octets);
  const subtrees = value === undefined ? [] : derElements(derElements(value.content)[0]!.content);
  const permitted = subtrees.filter(({ tag }) => tag === tags.permitted).flatMap(({ content }) => derElements(content));
  const uriOf = ({ content }: DerElement) =>
    derElements(content)
      .find(({ tag }) => tag === tags.uri)
      ?.content.toString('latin1');
  const uris = permitted.map(uriOf).filter((uri) => uri !== undefined);
  const allowed = uris.length === 0 ? domains : domains.filter((domain) => uris.some((uri) => (uri.startsWith('.') ? domain.endsWith(uri) : domain === uri)));
  if (allowed.length === 0) throw new Error(`its own name constraints rule out ${domains.join(' and ')}`);
  const kept = permitted.filter((subtree) => uriOf(subtree) === undefined).map(({ bytes }) => bytes);
  const named = allowed.map((domain) => derElement(tags.sequence, derElement(tags.uri, Buffer.from(domain, 'latin1'))));
  const excluded = subtrees.filter(({ tag }) => tag === tags.excluded).map(({ bytes }) => bytes);
  const constraints = derElement(tags.sequence, derElement(tags.permitted, ...kept, ...named), ...excluded);
  const critical = Buffer.from('0101ff', 'hex');
  return derElement(tags.sequence, nameConstraintsId, critical, derElement(tags.octets, constraints));
}

function certificatesIn(pem: string): X509Certificate[] {
  return pemCertificates(pem).map((one) => new X509Certificate(one));
}
