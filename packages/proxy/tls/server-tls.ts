import { constants, createHash, X509Certificate } from 'node:crypto';
import type net from 'node:net';
import tls, { type TLSSocket } from 'node:tls';
import { errorBoundary, MizzenError, peerProblem, tlsDefaults } from '@mizzen/common';
import { CertificateValidationContext_TrustChainVerification as TrustChainVerification } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { DownstreamTlsContext } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import type { ConnectionInfo } from '../net/connection-info.ts';
import { readDataSource } from './data-source.ts';
import { domainChainProblem } from './domain-chain.ts';
import { isRevoked, leafCrls } from './leaf-crl.ts';
import { PeerRequirements } from './peer-requirements.ts';
import type { SecretStore, TrustedRoots } from './secret-store.ts';
import { contextOptions } from './secure-context.ts';
import { TlsSources, validationOf } from './tls-sources.ts';

const boundary = errorBoundary('tls.handshake');

/**
 * TLS termination for one filter chain. Sockets are handed in by the listener; each comes out as a TLSSocket when its handshake is done.
 * A changed certificate is used from the next handshake on.
 */
export class ServerTls {
  readonly requiresClient: boolean;
  /** Peers are mesh workloads: their identity must be a SPIFFE URI. */
  readonly isMesh: boolean;
  readonly #sources: TlsSources;
  readonly #config: DownstreamTlsContext;
  readonly #options: tls.TlsOptions;
  readonly #requirements: PeerRequirements;
  readonly #stopListening: () => void;
  readonly #handlers: ServerTlsHandlers;
  /** What is known of sockets in their handshake, by their peer's address and port. */
  readonly #handshakes: Map<string, ConnectionInfo>;
  readonly #acceptsUntrusted: boolean;
  #server: tls.Server | undefined;
  /** Whether the server was made for roots of several trust domains. */
  #isFederated: boolean;

  constructor(config: DownstreamTlsContext, secrets: SecretStore, handlers: ServerTlsHandlers, place: string) {
    this.#sources = new TlsSources(config.commonTlsContext, secrets, place);
    const common = config.commonTlsContext!;
    const { context } = validationOf(common);
    this.#config = config;
    this.#handlers = handlers;
    this.#handshakes = new Map();
    this.#requirements = new PeerRequirements(context, place);
    this.requiresClient = config.requireClientCertificate ?? false;
    this.isMesh = this.requiresClient && common.alpnProtocols.includes('istio');
    if (this.requiresClient && !this.#sources.hasRoots && this.#requirements.isEmpty)
      throw new MizzenError('invalid-tls', `${place}: client certificates are required, but nothing says which are trusted (validation_context)`);
    this.#acceptsUntrusted = context?.trustChainVerification === TrustChainVerification.ACCEPT_UNTRUSTED || !this.#sources.hasRoots;
    this.#options = {
      ...(common.alpnProtocols.length > 0 ? { ALPNCallback: ({ protocols }) => common.alpnProtocols.find((name) => protocols.includes(name)) } : {}),
      requestCert: this.requiresClient || this.#sources.hasRoots,
      // A certificate that is given must be good, also where none has to be.
      rejectUnauthorized: this.requiresClient && !this.#acceptsUntrusted,
      handshakeTimeout: handlers.handshakeTimeoutMs,
      ticketKeys: ticketKeysOf(config, place) ?? handlers.sessionTicketKeys,
      ...(config.sessionTimeout ? { sessionTimeout: Number(config.sessionTimeout.seconds) } : {}),
      ...(config.sessionTicketKeysType.case === 'disableStatelessSessionResumption' && config.sessionTicketKeysType.value
        ? { secureOptions: constants.SSL_OP_NO_TICKET | tlsDefaults.secureOptions }
        : {}),
    };
    this.#server = undefined;
    this.#isFederated = false;
    this.#stopListening = this.#sources.onChange(() => this.#renew());
    this.#renew();
  }

  get isReady(): boolean {
    return this.#server !== undefined;
  }

  /** The secrets that it takes from SDS. */
  secretNames(): readonly string[] {
    return this.#sources.names();
  }

  /** The names of the secrets that have not arrived. */
  missingSecrets(): string[] {
    return this.#sources.missing();
  }

  /** Starts the handshake on a socket of which `first` may have been read already. */
  accept(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void {
    if (!this.#server) return void socket.destroy();
    const key = keyOf(socket);
    this.#handshakes.set(key, info);
    socket.once('close', () => this.#handshakes.delete(key));
    if (first !== undefined) socket.unshift(first);
    this.#server.emit('connection', socket);
  }

  /** What is wrong with the certificate of a client whose handshake has succeeded, or undefined. */
  verifyPeer(socket: TLSSocket): string | undefined {
    const certificate = socket.getPeerX509Certificate();
    if (certificate === undefined) return this.requiresClient ? 'it sent no certificate' : undefined;
    const roots = this.#sources.roots();
    // Without `rejectUnauthorized` OpenSSL only notes that a chain leads nowhere.
    if (this.#sources.hasRoots && !socket.authorized && !(this.requiresClient && this.#acceptsUntrusted)) {
      // Lists of whole chains are left to OpenSSL.
      const domains = roots?.crl === undefined ? roots?.domains : undefined;
      if (domains === undefined) return `its certificate is not trusted (${socket.authorizationError})`;
      const problem = domainChainProblem(certificate, domains, Date.now());
      if (problem !== undefined) return problem;
    }
    if (this.#sources.hasRoots) {
      const weakness = peerProblem(certificate);
      if (weakness !== undefined) return `its certificate ${weakness}`;
    }
    const crl = roots?.leafCrl;
    if (crl !== undefined && isRevoked(certificate.raw, leafCrls(crl))) return 'its certificate is revoked';
    return this.#requirements.isEmpty ? undefined : this.#requirements.problemOf(certificate, 'it');
  }

  close(): void {
    this.#stopListening();
  }

  #renew(): void {
    if (this.missingSecrets().length > 0) {
      // Withdrawn: there is no handshake until they are back.
      this.#server = undefined;
      return;
    }
    const pairs = this.#sources.keyPairs();
    if (pairs.length === 0) return;
    const roots = this.#sources.roots();
    const isFederated = roots?.domains !== undefined;
    const options: tls.TlsOptions = {
      ...contextOptions(pairs, roots, this.#config.commonTlsContext?.tlsParams),
      ...this.#options,
      // With several trust domains `verifyPeer` has the last word. A session that is resumed would not show it the client's chain.
      ...(isFederated ? { rejectUnauthorized: false, secureOptions: constants.SSL_OP_NO_TICKET | tlsDefaults.secureOptions } : {}),
      // A session is only resumed by a listener that would have asked the same of its client.
      sessionIdContext: sessionContext(this.#config, roots),
    };
    if (this.#server && this.#isFederated === isFederated) {
      this.#server.setSecureContext(options);
      return;
    }
    const server = tls.createServer(options);
    const secured = (socket: TLSSocket) => {
      const key = keyOf(socket);
      const info = this.#handshakes.get(key);
      this.#handshakes.delete(key);
      // The handshake has taken a moment; the client may be gone.
      if (info === undefined) return void socket.destroy();
      socket.setNoDelay(true);
      this.#handlers.onSecure(socket, info);
      if (!socket.destroyed) this.#sources.followPeer(socket, () => socket.getPeerX509Certificate()?.raw);
    };
    server.on('secureConnection', (socket) => boundary.run(() => secured(socket)) || socket.destroy());
    server.on('tlsClientError', (error, socket) => {
      boundary.run(() => this.#handlers.onError(error, socket));
      socket.destroy();
    });
    server.on('error', (error) => boundary.caught(error));
    const staple = (certificate: Buffer, _issuer: Buffer, callback: (error: Error | null, response: Buffer | null) => void) => {
      let response: Buffer | null = null;
      boundary.run(() => {
        response = this.#stapleFor(certificate);
      });
      callback(null, response);
    };
    if (pairs.some((pair) => pair.ocspStaple !== undefined)) server.on('OCSPRequest', boundary.wrap(staple));
    const wasReady = this.#server !== undefined;
    this.#server = server;
    this.#isFederated = isFederated;
    if (!wasReady) this.#handlers.onReady();
  }

  /** The response that belongs to the certificate which the handshake has chosen, DER. */
  #stapleFor(certificate: Buffer): Buffer | null {
    return this.#sources.keyPairs().find((pair) => pair.ocspStaple !== undefined && new X509Certificate(pair.cert).raw.equals(certificate))?.ocspStaple ?? null;
  }
}

export interface ServerTlsHandlers {
  readonly handshakeTimeoutMs: number;
  readonly sessionTicketKeys: Buffer;
  readonly onSecure: (socket: TLSSocket, info: ConnectionInfo) => void;
  readonly onError: (error: Error, socket: TLSSocket) => void;
  readonly onReady: () => void;
}

function keyOf(socket: net.Socket): string {
  return `${socket.remoteAddress}|${socket.remotePort}`;
}

function sessionContext(config: DownstreamTlsContext, roots: TrustedRoots | undefined): string {
  const { context } = config.commonTlsContext ? validationOf(config.commonTlsContext) : { context: undefined };
  const names = (context?.matchTypedSubjectAltNames ?? []).map(({ matcher }) => `${matcher?.matchPattern.case} ${matcher?.matchPattern.value}`);
  return createHash('sha256')
    .update(
      JSON.stringify([
        config.requireClientCertificate,
        roots?.pem,
        roots?.crl,
        roots?.leafCrl,
        names,
        context?.verifyCertificateHash,
        context?.verifyCertificateSpki,
      ]),
    )
    .digest('hex')
    .slice(0, 32);
}

/** Keys of any length become the 48 bytes that OpenSSL needs; the first key is the one that signs. */
function ticketKeysOf(config: DownstreamTlsContext, place: string): Buffer | undefined {
  const { sessionTicketKeysType: type } = config;
  if (type.case === 'sessionTicketKeysSdsSecretConfig') throw new MizzenError('unsupported-tls', `${place}: session ticket keys by SDS are not supported`);
  const [first] = type.case === 'sessionTicketKeys' ? type.value.keys : [];
  return first && createHash('sha384').update(readDataSource(first, place)).digest();
}
