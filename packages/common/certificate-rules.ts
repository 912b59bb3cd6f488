import { type KeyObject, X509Certificate } from 'node:crypto';
import { Agent, type AgentOptions } from 'node:https';
import type { Duplex } from 'node:stream';
import { checkServerIdentity, type PeerCertificate, TLSSocket } from 'node:tls';
import { type DerElement, derElements } from './der.ts';
import { errorBoundary } from './error-boundary.ts';
import { messageOf } from './mizzen-error.ts';
import { pemCertificates } from './pem-blocks.ts';

/**
 * What every TLS server and client of the mesh requires of certificates beyond what OpenSSL verifies: keys and signatures of the Baseline Requirements of the CA/Browser Forum
 * (6.1.5, 7.1.3), and name constraints that OpenSSL evaluates as they are meant (RFC 5280 section 4.2.1.10). OpenSSL itself refuses RSA keys below 2,048 bits and signatures with
 * SHA-1 or MD5 anywhere in a chain. Node.js shows a server the certificate of its client but not the authorities between it and a root, so roots are verified when they are loaded.
 */

/** What is read of a certificate here. */
export interface RuledCertificate {
  readonly fingerprint256: string;
  readonly publicKey: KeyObject;
  readonly raw: Buffer;
}

const boundary = errorBoundary('vetted.agent');
const minRsaBits = 2_048;
const curves: ReadonlySet<string> = new Set(['prime256v1', 'secp384r1', 'secp521r1']);

const tags = { sequence: 0x30, octets: 0x04, oid: 0x06, boolean: 0x01, extensions: 0xa3, permitted: 0xa0, excluded: 0xa1 } as const;
const nameTags = { email: 0x81, dns: 0x82, uri: 0x86, ip: 0x87, directory: 0xa4 } as const;
const nameConstraintsId = '551d1e';

/** The content of their object identifiers, in hex. */
const rsaPss = '2a864886f70d01010a';
const signatureAlgorithms: ReadonlySet<string> = new Set([
  ...['2a864886f70d01010b', '2a864886f70d01010c', '2a864886f70d01010d'], // sha256, sha384 and sha512 WithRSAEncryption
  ...['2a8648ce3d040302', '2a8648ce3d040303', '2a8648ce3d040304'], // ecdsa-with-SHA256, SHA384 and SHA512
  '2b6570', // Ed25519
]);
const digests: ReadonlySet<string> = new Set(['608648016503040201', '608648016503040202', '608648016503040203']);

/** Verdicts by fingerprint: the same few certificates are shown at every handshake. */
const maxVerdicts = 2_000;

class Verdicts {
  readonly #known: Map<string, string | undefined>;

  constructor() {
    this.#known = new Map();
  }

  of(certificate: RuledCertificate, judge: (certificate: RuledCertificate) => string | undefined): string | undefined {
    const key = certificate.fingerprint256;
    const known = this.#known.get(key);
    if (known !== undefined || this.#known.has(key)) return known;
    const verdict = judge(certificate);
    if (this.#known.size >= maxVerdicts) this.#known.clear();
    this.#known.set(key, verdict);
    return verdict;
  }
}

const ofAuthorities = new Verdicts();
const ofPeers = new Verdicts();
const ofIntermediates = new Verdicts();

/** Why a certificate must not be a root, or undefined. Its own signature proves nothing, so any algorithm will do. */
export function authorityProblem(certificate: RuledCertificate): string | undefined {
  return ofAuthorities.of(certificate, (one) => keyProblem(one) ?? constraintsProblem(one.raw));
}

/** Why an authority between a peer and a root must not be accepted, or undefined. */
export function intermediateProblem(certificate: RuledCertificate): string | undefined {
  return authorityProblem(certificate) ?? ofIntermediates.of(certificate, ({ raw }) => signatureProblem(raw));
}

/** Why the certificate that a peer has shown must not be accepted, or undefined. */
export function peerProblem(certificate: RuledCertificate): string | undefined {
  return ofPeers.of(certificate, (one) => keyProblem(one) ?? signatureProblem(one.raw));
}

/** What was found of the chains of servers, by the objects that stand for them in `checkServerIdentity`. */
const chainVerdicts = new WeakMap<object, string>();

/**
 * Verifies the chain of a server before Node.js reads it. Call it for each TLS socket of a client when it is made; `serverChainProblem` then knows what was found. It also keeps
 * a peer from ending the process: Node.js 24 crashes when it describes a certificate whose key is on a curve that is not NIST's.
 */
export function vetServer<T extends TLSSocket>(socket: T): T {
  const read = socket.getPeerX509Certificate.bind(socket);
  // Node.js hands out the chain once.
  let certificate: X509Certificate | undefined;
  const leaf = () => (certificate ??= read());
  socket.getPeerX509Certificate = leaf;
  socket.getPeerCertificate = (() => vettedPeer(leaf)) as TLSSocket['getPeerCertificate'];
  // Read before Node.js verifies it: a socket that was refused has none, and the certificate is to be named.
  socket.prependOnceListener('secure', boundary.wrap(leaf));
  return socket;
}

let vetsLibraries = false;

/**
 * The same for clients that make their sockets themselves, as those of Redis, NATS and RabbitMQ do: every TLS client of this process has its server vetted from now on. A chain that
 * is refused has no names, so that the default `checkServerIdentity` refuses it too.
 */
export function vetLibraryClients(): void {
  if (vetsLibraries) return;
  vetsLibraries = true;
  const describe = TLSSocket.prototype.getPeerCertificate;
  TLSSocket.prototype.getPeerCertificate = function (this: TLSSocket, detailed?: boolean) {
    if ((this as { _tlsOptions?: { isServer?: boolean } })._tlsOptions?.isServer !== false) return describe.call(this, detailed);
    return vetServer(this).getPeerCertificate(detailed);
  } as TLSSocket['getPeerCertificate'];
}

/** Called by the runtime: what it threw would reach the process. */
function vettedPeer(leaf: () => X509Certificate | undefined): PeerCertificate {
  let raw: Buffer | undefined;
  let problem: string | undefined;
  try {
    const certificate = leaf();
    if (certificate === undefined) return {} as PeerCertificate;
    raw = certificate.raw;
    problem = chainProblem(certificate);
    if (problem === undefined) return certificate.toLegacyObject();
  } catch (error) {
    problem = `its certificate cannot be verified: ${messageOf(error)}`;
  }
  const peer = { raw } as PeerCertificate;
  chainVerdicts.set(peer, problem);
  return peer;
}

function chainProblem(leaf: X509Certificate): string | undefined {
  const problem = peerProblem(leaf);
  if (problem !== undefined) return `its certificate ${problem}`;
  let authority = leaf.issuerCertificate;
  for (let depth = 1; authority !== undefined; depth++) {
    if (depth >= maxChainLength) return `its chain has more than ${maxChainLength} certificates`;
    const isRoot = authority.issuer === authority.subject;
    const found = isRoot ? authorityProblem(authority) : intermediateProblem(authority);
    if (found !== undefined) return `the certificate of its authority ${found}`;
    if (isRoot) return undefined;
    authority = authority.issuerCertificate;
  }
  return undefined;
}

/** Why the chain that a server has shown must not be accepted; undefined: it may. For sockets that `vetServer` has seen. */
export function serverChainProblem(peer: PeerCertificate): string | undefined {
  return chainVerdicts.get(peer);
}

/** The names of a server, and the rules of this page: what a client gives as `checkServerIdentity`. */
export function verifyServerCertificate(host: string, peer: PeerCertificate): Error | undefined {
  return serverChainError(peer) ?? checkServerIdentity(host, peer);
}

/** The same for clients that verify names in another way. */
export function serverChainError(peer: PeerCertificate): Error | undefined {
  const problem = serverChainProblem(peer);
  return problem === undefined ? undefined : new Error(`the server is not accepted: ${problem}`);
}

/** For clients of HTTPS: connections whose server is vetted. */
export class VettedAgent extends Agent {
  override createConnection(options: AgentOptions, callback?: (error: Error | null, stream: Duplex) => void): Duplex | null | undefined {
    return vetServer(boundary.own(super.createConnection(options, callback) as TLSSocket));
  }
}

export interface UsableRoots {
  /** PEM, one each. Empty: no peer can be verified by them (an empty list is not Node's default roots). */
  readonly roots: string[];
  /** Those that must not be used, with the reason. */
  readonly leftOut: readonly string[];
}

const readTexts = new Map<string, UsableRoots>();
const maxReadTexts = 20;

/** The roots in a text (PEM) that may be used. Throws Error when a certificate in it cannot be read. */
export function usableRoots(pem: string): UsableRoots {
  const known = readTexts.get(pem);
  if (known !== undefined) return known;
  const roots: string[] = [];
  const leftOut: string[] = [];
  for (const text of pemCertificates(pem)) {
    const certificate = new X509Certificate(text);
    const problem = authorityProblem(certificate);
    if (problem === undefined) roots.push(text);
    else leftOut.push(`${certificate.subject.replaceAll('\n', ', ')} ${problem}`);
  }
  const found: UsableRoots = { roots, leftOut };
  if (readTexts.size >= maxReadTexts) readTexts.clear();
  readTexts.set(pem, found);
  return found;
}

const maxChainLength = 10;

function keyProblem(certificate: RuledCertificate): string | undefined {
  let key: KeyObject;
  try {
    key = certificate.publicKey;
  } catch {
    return 'has a key of an unknown type: use RSA, P-256, P-384, P-521 or Ed25519';
  }
  const { modulusLength = 0, namedCurve } = key.asymmetricKeyDetails ?? {};
  switch (key.asymmetricKeyType) {
    case 'ed25519':
      return undefined;
    case 'ec':
      return namedCurve !== undefined && curves.has(namedCurve) ? undefined : `has a key on the curve ${namedCurve ?? '(unnamed)'}: use P-256, P-384 or P-521`;
    case 'rsa':
    case 'rsa-pss':
      return modulusLength >= minRsaBits ? undefined : `has an RSA key of ${modulusLength} bits: use ${minRsaBits} or more`;
    default:
      return `has a key of type ${key.asymmetricKeyType}: use RSA, P-256, P-384, P-521 or Ed25519`;
  }
}

const unreadable = 'cannot be read';

/** The first element of some. Throws Error where there is none. */
function firstOf(content: Buffer): DerElement {
  const [first] = derElements(content);
  if (first === undefined) throw new Error('an element is missing');
  return first;
}

function signatureProblem(raw: Buffer): string | undefined {
  try {
    const [, algorithm] = derElements(firstOf(raw).content);
    if (algorithm === undefined) return unreadable;
    const [id, parameters] = derElements(algorithm.content);
    if (id === undefined) return unreadable;
    const name = id.content.toString('hex');
    if (signatureAlgorithms.has(name) || (name === rsaPss && hasGoodDigest(parameters))) return undefined;
    return 'is signed with a weak or unknown algorithm: use SHA-256, SHA-384 or SHA-512 with RSA or ECDSA, or Ed25519';
  } catch {
    return unreadable;
  }
}

/** RSASSA-PSS (RFC 4055 section 3.1) names its digest in field 0; without one it is SHA-1. */
function hasGoodDigest(parameters: DerElement | undefined): boolean {
  const digest = parameters && derElements(parameters.content).find(({ tag }) => tag === tags.permitted);
  if (digest === undefined) return false;
  const [id] = derElements(firstOf(digest.content).content);
  return id !== undefined && digests.has(id.content.toString('hex'));
}

function constraintsProblem(raw: Buffer): string | undefined {
  try {
    const fields = derElements(firstOf(firstOf(raw).content).content);
    const extensions = fields.find(({ tag }) => tag === tags.extensions);
    if (extensions === undefined) return undefined;
    for (const extension of derElements(firstOf(extensions.content).content)) {
      if (firstOf(extension.content).content.toString('hex') !== nameConstraintsId) continue;
      const value = derElements(extension.content).find(({ tag }) => tag === tags.octets);
      if (value === undefined) return unreadable;
      const subtrees = derElements(firstOf(value.content).content);
      if (subtrees.length === 0) return 'has empty name constraints';
      for (const { content } of subtrees)
        for (const subtree of derElements(content)) {
          const [base, ...range] = derElements(subtree.content);
          if (base === undefined) return unreadable;
          if (range.length > 0) return 'has a name constraint with a minimum or maximum';
          const problem = constraintProblem(base);
          if (problem !== undefined) return problem;
        }
    }
    return undefined;
  } catch {
    return unreadable;
  }
}

/** A host, or with a dot before it all hosts below. An asterisk has no meaning in a constraint, and OpenSSL compares it as a character. */
const host = /^\.?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/i;
const mailbox = /^[a-z0-9.!#$%&'+/=?^_`{|}~-]+$/i;

function constraintProblem({ tag, content }: DerElement): string | undefined {
  const text = content.toString('latin1');
  const wrong = (form: string) => `has the ${form} name constraint ${JSON.stringify(text)}, which is malformed`;
  switch (tag) {
    case nameTags.dns:
      return text === '' || host.test(text) ? undefined : wrong('DNS');
    case nameTags.uri:
      return host.test(text) ? undefined : wrong('URI');
    case nameTags.email: {
      const [domain = '', local, ...more] = text.split('@').reverse();
      const isGood =
        more.length === 0 && (local === undefined ? text === '' || host.test(domain) : mailbox.test(local) && host.test(domain) && !domain.startsWith('.'));
      return isGood ? undefined : wrong('email');
    }
    case nameTags.ip:
      return (content.length === 8 || content.length === 32) && isMask(content.subarray(content.length / 2)) ? undefined : 'has a malformed IP name constraint';
    case nameTags.directory:
      return undefined;
    default:
      return 'has a name constraint of a form that is not supported: use DNS, IP, URI, email and directory names';
  }
}

/** Ones, and then zeros (RFC 4632). */
function isMask(bytes: Buffer): boolean {
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  return !bits.includes('01');
}
