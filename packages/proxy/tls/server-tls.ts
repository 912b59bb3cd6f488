import type net from 'node:net';
import tls, { type TLSSocket } from 'node:tls';
import type { DownstreamTlsContext } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import type { SecretStore } from './secret-store.ts';
import { TlsSources } from './tls-sources.ts';
import { protocolVersions } from './tls-versions.ts';

/**
 * TLS termination for one filter chain. Sockets are handed in by the listener; each comes out as a TLSSocket when its handshake is done.
 * A changed certificate is used from the next handshake on.
 */
export class ServerTls {
  readonly requiresClient: boolean;
  /** Peers are mesh workloads: their identity must be a SPIFFE URI. */
  readonly isMesh: boolean;
  readonly #sources: TlsSources;
  readonly #options: tls.TlsOptions;
  readonly #stopListening: () => void;
  readonly #handlers: ServerTlsHandlers;
  #server: tls.Server | undefined;

  constructor(config: DownstreamTlsContext, secrets: SecretStore, handlers: ServerTlsHandlers, place: string) {
    this.#sources = new TlsSources(config.commonTlsContext, secrets, place);
    const common = config.commonTlsContext!;
    this.#handlers = handlers;
    this.requiresClient = config.requireClientCertificate ?? false;
    this.isMesh = this.requiresClient && common.alpnProtocols.includes('istio');
    const ciphers = common.tlsParams?.cipherSuites ?? [];
    this.#options = {
      ...protocolVersions(common.tlsParams),
      ...(common.alpnProtocols.length > 0
        ? { ALPNCallback: ({ protocols }) => common.alpnProtocols.find((name) => protocols.includes(name)) ?? 'http/1.1' }
        : {}),
      ...(ciphers.length > 0 ? { ciphers: ciphers.join(':') } : {}),
      requestCert: this.requiresClient || this.#sources.hasRoots,
      rejectUnauthorized: this.requiresClient,
      handshakeTimeout: handlers.handshakeTimeoutMs,
    };
    this.#server = undefined;
    this.#stopListening = this.#sources.onChange(() => this.#renew());
    this.#renew();
  }

  get isReady(): boolean {
    return this.#server !== undefined;
  }

  /** The secrets that it takes from SDS. */
  secretNames(): string[] {
    return this.#sources.names();
  }

  /** The names of the secrets that have not arrived. */
  missingSecrets(): string[] {
    return this.#sources.missing();
  }

  /** Starts the handshake on a socket whose first bytes may already be in its read buffer. */
  accept(socket: net.Socket): void {
    if (this.#server) this.#server.emit('connection', socket);
    else socket.destroy();
  }

  close(): void {
    this.#stopListening();
  }

  #renew(): void {
    if (this.missingSecrets().length > 0) return;
    const pair = this.#sources.keyPair();
    const roots = this.#sources.roots();
    if (!pair) return;
    const context = { cert: pair.cert, key: pair.key, ...(roots ? { ca: roots } : {}) };
    if (this.#server) return this.#server.setSecureContext({ ...this.#options, ...context });
    const server = tls.createServer({ ...this.#options, ...context });
    server.on('secureConnection', (socket) => this.#handlers.onSecure(socket));
    server.on('tlsClientError', (error, socket) => {
      this.#handlers.onError(error, socket);
      socket.destroy();
    });
    this.#server = server;
    this.#handlers.onReady();
  }
}

export interface ServerTlsHandlers {
  readonly handshakeTimeoutMs: number;
  readonly onSecure: (socket: TLSSocket) => void;
  readonly onError: (error: Error, socket: TLSSocket) => void;
  readonly onReady: () => void;
}
