import { X509Certificate } from 'node:crypto';
import type net from 'node:net';
import { isIP } from 'node:net';
import { type ConnectionOptions, createSecureContext, type PeerCertificate, type SecureContext, type TLSSocket } from 'node:tls';
import { errorBoundary, MizzenError, parseSpiffeId, serverChainProblem } from '@mizzen/common';
import type { UpstreamTlsContext } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import type { Content } from '../upstream/transport.ts';
import { certificateTimeProblem } from './explain-tls-error.ts';
import { isRevoked, leafCrls } from './leaf-crl.ts';
import { alternativeNames } from './peer-identity.ts';
import { PeerRequirements } from './peer-requirements.ts';
import type { KeyPair, SecretStore, TrustedRoots } from './secret-store.ts';
import { contextOptions } from './secure-context.ts';
import { TlsSources, validationOf } from './tls-sources.ts';
import { constrainedRoots } from './trust-domains.ts';

const boundary = errorBoundary('tls.client');

const isHttp1Name = (name: string) => name.startsWith('istio-http/') || name.startsWith('http/1');
const isHttp2Name = (name: string) => name === 'h2' || name === 'istio-h2';

const revoked = "the server's certificate is revoked";
/** Sessions kept for resumption, one per address. */
const maxSessions = 1024;

/** What a connection may go on with, and the certificate (DER) that the server has shown at its beginning. */
interface Session {
  readonly session: Buffer;
  readonly certificate: Buffer | undefined;
}

/**
 * The client side of a cluster's TLS. The secure context is made when a secret arrives or changes; a connection uses the newest. A
 * server is taken only if the roots verify it and one of the expected names is in its certificate. A session that was verified so may be
 * resumed for as long as neither secrets nor expectations change.
 */
export class ClientTls {
  readonly isMesh: boolean;
  readonly #sources: TlsSources;
  readonly #requirements: PeerRequirements;
  readonly #alpn: string[];
  /** What of that is said, by what the connection is for. */
  readonly #alpnOf: Readonly<Record<Content, string[]>>;
  readonly #sni: string;
  readonly #config: UpstreamTlsContext;
  readonly #resumes: boolean;
  readonly #sessions: Map<string, Session>;
  /** The newest secure context, and what it was made of. */
  #context: SecureContext | undefined;
  #contextPairs: readonly KeyPair[];
  #contextRoots: TrustedRoots | undefined;

  constructor(config: UpstreamTlsContext, secrets: SecretStore, place: string) {
    this.#sources = new TlsSources(config.commonTlsContext, secrets, place);
    const common = config.commonTlsContext!;
    this.#config = config;
    this.#requirements = new PeerRequirements(validationOf(common).context, place);
    this.#alpn = [...common.alpnProtocols];
    this.#alpnOf = {
      http: this.#alpn.filter((name) => !isHttp2Name(name)),
      http2: this.#alpn.filter((name) => !isHttp1Name(name)),
      bytes: this.#alpn.filter((name) => !isHttp2Name(name) && !name.startsWith('istio-http/')),
    };
    this.#sni = config.sni;
    this.isMesh = this.#sources.hasSdsKeyPair && common.alpnProtocols.includes('istio');
    // upstream tls.proto `max_session_keys`: 1 unless it says otherwise, 0 switches resumption off.
    this.#resumes = (config.maxSessionKeys ?? 1) > 0;
    this.#sessions = new Map();
    this.#context = undefined;
    this.#contextPairs = [];
    this.#contextRoots = undefined;
  }

  /** The secrets that come from the control plane. */
  get secretNames(): readonly string[] {
    return this.#sources.names();
  }

  get notReadyReason(): string | undefined {
    const [missing] = this.#sources.missing();
    return missing === undefined ? undefined : `the secret ${missing} has not arrived`;
  }

  connectOptions(host: string, port: number, content: Content): ConnectionOptions {
    const alpn = this.#alpnOf[content];
    const secureContext = this.#secureContext();
    const session = this.#sessions.get(`${host}|${port}`)?.session;
    return {
      host,
      port,
      secureContext,
      ...(session === undefined ? {} : { session }),
      ...(this.#sni !== '' && isIP(this.#sni) === 0 ? { servername: this.#sni } : {}),
      ...(alpn.length > 0 ? { ALPNProtocols: alpn } : {}),
      rejectUnauthorized: this.#sources.hasRoots,
      checkServerIdentity: (_host: string, certificate: PeerCertificate) => {
        // Called by the runtime: what it threw would reach the process.
        let problem: string | undefined = 'its certificate could not be verified';
        boundary.run(() => {
          problem = this.#verifyPeer(certificate);
        });
        return problem === undefined ? undefined : new MizzenError('wrong-server', problem, `${host}:${port}`);
      },
    };
  }

  /** What follows for a connection that has begun: it lasts as long as the server's certificate is good, and the sessions that the server offers are kept, once it has been verified. */
  follow(socket: TLSSocket, host: string, port: number): void {
    const key = `${host}|${port}`;
    const before = this.#sessions.get(key)?.certificate;
    let certificate: Buffer | undefined;
    // In a session that is resumed the server shows none; of one that is not, Node.js knows it no longer once a ticket for the next has come.
    const certificateOf = () => {
      certificate ??= socket.isSessionReused() ? before : socket.getPeerX509Certificate()?.raw;
      return certificate;
    };
    const verifiedBy = this.#contextRoots;
    const secured = () => {
      const roots = this.#sources.roots();
      // Lists may have come while hands were shaken; those that were there have been looked at.
      const crl = roots === verifiedBy ? undefined : roots?.leafCrl;
      const shown = certificateOf();
      if (shown !== undefined && crl !== undefined && isRevoked(shown, leafCrls(crl)))
        socket.destroy(new MizzenError('wrong-server', revoked, `${host}:${port}`));
      else this.#sources.followPeer(socket, certificateOf);
    };
    socket.once(
      'secureConnect',
      boundary.wrap(secured, () => socket.destroy()),
    );
    if (!this.#resumes) return;
    const context = this.#context;
    const remember = (session: Buffer) => {
      if (context !== this.#context || (this.#sources.hasRoots && !socket.authorized)) return;
      this.#sessions.delete(key);
      if (this.#sessions.size >= maxSessions) this.#sessions.delete(this.#sessions.keys().next().value!);
      this.#sessions.set(key, { session, certificate: certificateOf() });
    };
    socket.on('session', boundary.wrap(remember));
    socket.once('error', () => this.#sessions.delete(key));
  }

  /** Why a new connection has failed, where a certificate out of its time is the reason: the server's, or the one of this side, which a server refuses by closing. */
  certificateProblem(error: Error | undefined, socket: net.Socket): string | undefined {
    const { code } = (error ?? {}) as NodeJS.ErrnoException;
    if (code === 'CERT_HAS_EXPIRED' || code === 'CERT_NOT_YET_VALID') {
      const shown = (socket as TLSSocket).getPeerX509Certificate();
      const problem = shown && certificateTimeProblem(shown);
      return problem ?? `a certificate of the server's chain ${code === 'CERT_HAS_EXPIRED' ? 'has expired' : 'is not valid yet'}`;
    }
    const [own] = this.#sources.hasSdsKeyPair ? this.#sources.keyPairs() : [];
    return own && certificateTimeProblem(new X509Certificate(own.cert));
  }

  /** Whether the server, whose chain the roots have verified, is one of those expected. Returns the problem, or undefined. */
  #verifyPeer(peer: PeerCertificate): string | undefined {
    if (this.isMesh && !this.#requirements.hasNames) return 'no identity is expected of this cluster, so none can be verified';
    const weakness = this.#sources.hasRoots ? serverChainProblem(peer) : undefined;
    if (weakness !== undefined) return `the server is not accepted: ${weakness}`;
    const crl = this.#contextRoots?.leafCrl;
    if (this.#requirements.isEmpty && crl === undefined) return undefined;
    if (!peer.raw) return 'the server sent no certificate';
    if (crl !== undefined && isRevoked(peer.raw, leafCrls(crl))) return revoked;
    const certificate = new X509Certificate(peer.raw);
    if (this.isMesh) {
      const found = alternativeNames(certificate);
      if ('problem' in found) return found.problem;
      const [uri] = found.uris;
      if (uri === undefined || found.uris.length !== 1) return "the server's certificate does not name exactly one identity";
      if (parseSpiffeId(uri) === undefined) return "the server's certificate does not name a SPIFFE ID";
    }
    return this.#requirements.problemOf(certificate, 'the server');
  }

  /** The roots of the trust domains that the expected names are of. So no root of a third trust domain can hide theirs, whatever it is called. */
  #expectedRoots(roots: TrustedRoots | undefined): TrustedRoots | undefined {
    const expected = this.#requirements.trustDomains();
    if (roots?.domains === undefined || expected === undefined) return roots;
    const domains = new Map([...roots.domains].filter(([domain]) => expected.has(domain)));
    return domains.size === 0 ? roots : { ...roots, pem: constrainedRoots(domains, 'roots'), domains };
  }

  #secureContext(): SecureContext {
    const pairs = this.#sources.keyPairs();
    const roots = this.#sources.roots();
    const isCurrent = this.#contextRoots === roots && pairs.length === this.#contextPairs.length && pairs.every((pair, i) => pair === this.#contextPairs[i]);
    if (this.#context === undefined || !isCurrent) {
      this.#context = createSecureContext(contextOptions(pairs, this.#expectedRoots(roots), this.#config.commonTlsContext?.tlsParams));
      this.#contextPairs = pairs;
      this.#contextRoots = roots;
      this.#sessions.clear();
    }
    return this.#context;
  }
}
