import { X509Certificate } from 'node:crypto';
import { authorityProblem, type DerElement, derElements, parseSpiffeId, pemCertificates } from '@mizzen/common';
import { alternativeNames } from './peer-identity.ts';
import type { RootsByDomain } from './trust-domains.ts';

/** Certificates of a client between its own and a root. */
const maxIntermediates = 6;
/** Signatures that one handshake may cost here. */
const maxSignatures = 24;
const minRsaBits = 2048;

/**
 * Verifies a client certificate by the roots of its own trust domain alone (RFC 5280 section 6.1, the part that certificates of workloads need). OpenSSL chooses issuers by name
 * and key id without looking at signatures, so a root of one trust domain with the name of another's root or intermediate hides it. `ServerTls` asks here
 * after OpenSSL has refused a client, and only where several trust domains are trusted. Everything that is not understood is refused. Returns the problem, or undefined.
 */
export function domainChainProblem(leaf: X509Certificate, domains: RootsByDomain, nowMs: number): string | undefined {
  const names = alternativeNames(leaf);
  const id = 'problem' in names || names.uris.length !== 1 ? undefined : parseSpiffeId(names.uris[0]!);
  const pem = id && domains.get(id.trustDomain);
  if (id === undefined || pem === undefined) return 'its certificate is not trusted (it is of no trusted domain)';
  const search: Search = {
    roots: pemCertificates(pem).map((one) => new X509Certificate(one)),
    pool: presentedWith(leaf),
    nowMs,
    signaturesLeft: maxSignatures,
  };
  try {
    if (!isLeaf(leaf) || !isUsable(leaf, nowMs)) return `its certificate is not trusted (it is not valid for a client of ${id.trustDomain} now)`;
    return leadsToRoot(leaf, 0, search) ? undefined : `its certificate is not trusted (no root of ${id.trustDomain} has signed it)`;
  } catch {
    return 'its certificate is not trusted (a certificate of its chain cannot be read)';
  }
}

interface Search {
  readonly roots: readonly X509Certificate[];
  readonly pool: readonly X509Certificate[];
  readonly nowMs: number;
  signaturesLeft: number;
}

/** `below`: how many intermediates lie between this certificate and the leaf, itself included. */
function leadsToRoot(certificate: X509Certificate, below: number, search: Search): boolean {
  if (search.roots.some((root) => isIssuer(root, certificate, below, search))) return true;
  if (below >= maxIntermediates) return false;
  return search.pool.some((one) => isIssuer(one, certificate, below, search) && leadsToRoot(one, below + 1, search));
}

function isIssuer(issuer: X509Certificate, certificate: X509Certificate, below: number, search: Search): boolean {
  if (
    !certificate.checkIssued(issuer) ||
    !isUsable(issuer, search.nowMs) ||
    !isAuthority(issuer, below) ||
    authorityProblem(issuer) !== undefined ||
    search.signaturesLeft-- <= 0
  )
    return false;
  return certificate.verify(issuer.publicKey);
}

const oids = {
  keyUsage: '551d0f',
  subjectAltName: '551d11',
  basicConstraints: '551d13',
  nameConstraints: '551d1e',
  extendedKeyUsage: '551d25',
} as const;
const understood: ReadonlySet<string> = new Set(Object.values(oids));
const clientAuth = '06082b06010505070302';
const anyExtendedKeyUsage = '0604551d2500';

/** ECDSA and RSA (PKCS #1 and PSS) with SHA-256, SHA-384 or SHA-512, and Ed25519. */
const signatureAlgorithms: ReadonlySet<string> = new Set([
  ...['2a8648ce3d040302', '2a8648ce3d040303', '2a8648ce3d040304'],
  ...['2a864886f70d01010b', '2a864886f70d01010c', '2a864886f70d01010d', '2a864886f70d01010a'],
  '2b6570',
]);

interface Extension {
  readonly isCritical: boolean;
  readonly value: Buffer;
}

const tags = { boolean: 0x01, integer: 0x02, octets: 0x04, extensions: 0xa3 } as const;

interface Parsed {
  readonly signatureAlgorithm: string;
  readonly extensions: ReadonlyMap<string, Extension>;
}

function parse(certificate: X509Certificate): Parsed {
  const [whole] = derElements(certificate.raw);
  const [body, algorithm] = derElements(required(whole).content);
  const field = derElements(required(body).content).find(({ tag }) => tag === tags.extensions);
  const extensions = new Map<string, Extension>();
  for (const { content } of field === undefined ? [] : derElements(required(derElements(field.content)[0]).content)) {
    const [id, ...rest] = derElements(content);
    const name = required(id).content.toString('hex');
    const isCritical = rest.some(({ tag, content: flag }) => tag === tags.boolean && flag[0] !== 0);
    if (extensions.has(name)) throw new Error('an extension is there twice');
    extensions.set(name, { isCritical, value: required(rest.find(({ tag }) => tag === tags.octets)).content });
  }
  return { signatureAlgorithm: required(derElements(required(algorithm).content)[0]).content.toString('hex'), extensions };
}

function required(element: DerElement | undefined): DerElement {
  if (element === undefined) throw new Error('it is not a certificate');
  return element;
}

/** Within its time, with a strong key and signature, and without critical extensions that are not understood. */
function isUsable(certificate: X509Certificate, nowMs: number): boolean {
  if (!(Date.parse(certificate.validFrom) <= nowMs && nowMs <= Date.parse(certificate.validTo))) return false;
  const { signatureAlgorithm, extensions } = parse(certificate);
  for (const [name, { isCritical }] of extensions) if (isCritical && !understood.has(name)) return false;
  const { asymmetricKeyType: type, asymmetricKeyDetails: details } = certificate.publicKey;
  if (type === 'rsa' || type === 'rsa-pss') return (details?.modulusLength ?? 0) >= minRsaBits && signatureAlgorithms.has(signatureAlgorithm);
  return (type === 'ec' || type === 'ed25519') && signatureAlgorithms.has(signatureAlgorithm);
}

/** Bit 0 is the first (X.509 `KeyUsage`). Without the extension every use is allowed. */
function hasKeyUsage(extensions: ReadonlyMap<string, Extension>, bit: number): boolean {
  const usage = extensions.get(oids.keyUsage);
  if (usage === undefined) return true;
  const bits = required(derElements(usage.value)[0]).content;
  return ((bits[1] ?? 0) & (0x80 >> bit)) !== 0;
}

const digitalSignature = 0;
const keyCertSign = 5;

function allowsClients(extensions: ReadonlyMap<string, Extension>): boolean {
  const purposes = extensions.get(oids.extendedKeyUsage);
  if (purposes === undefined) return true;
  return derElements(required(derElements(purposes.value)[0]).content).some(({ bytes }) => [clientAuth, anyExtendedKeyUsage].includes(bytes.toString('hex')));
}

function isLeaf(certificate: X509Certificate): boolean {
  const { extensions } = parse(certificate);
  return !certificate.ca && !extensions.has(oids.nameConstraints) && hasKeyUsage(extensions, digitalSignature) && allowsClients(extensions);
}

function isAuthority(certificate: X509Certificate, below: number): boolean {
  const { extensions } = parse(certificate);
  // Name constraints of an authority are left to OpenSSL.
  if (!certificate.ca || extensions.has(oids.nameConstraints) || !hasKeyUsage(extensions, keyCertSign) || !allowsClients(extensions)) return false;
  const constraints = extensions.get(oids.basicConstraints);
  const length = constraints && derElements(required(derElements(constraints.value)[0]).content).find(({ tag }) => tag === tags.integer);
  return length === undefined || (length.content.length <= 4 && length.content.readUIntBE(0, length.content.length) >= below);
}

/** What the client has sent beside its certificate, in any order. */
function presentedWith(leaf: X509Certificate): X509Certificate[] {
  const found: X509Certificate[] = [];
  for (let one = leaf.issuerCertificate; one !== undefined && found.length < maxIntermediates; one = one.issuerCertificate) found.push(one);
  return found;
}
