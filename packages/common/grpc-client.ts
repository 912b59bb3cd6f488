import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2, constants, type OutgoingHttpHeaders } from 'node:http2';
import { isIP } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { Code, ConnectError, type Transport } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { usableRoots, verifyServerCertificate, vetServer } from './certificate-rules.ts';
import { errorBoundary } from './error-boundary.ts';

const boundary = errorBoundary('grpc.client');

type SessionManager = NonNullable<Parameters<typeof createGrpcTransport>[0]['sessionManager']>;

/**
 * The one way in which this program is a gRPC client over TLS. A `GrpcConnection` owns its socket and its HTTP/2 session from the first byte
 * to the last event: whatever a peer does (hang, reset, garbage, an alert, GOAWAY) fails the calls under way and nothing else. The session
 * manager of Connect takes its listeners off before the last event, which then ends the process.
 */
export interface GrpcConnectionOptions {
  /** `host:port`. */
  readonly address: string;
  readonly tls: { readonly ca: string; readonly cert?: string | undefined; readonly key?: string | undefined };
  /** The name that the server's certificate must have; undefined: the host of the address. */
  readonly serverName: string | undefined;
  /** For calls that set no timeout of their own; undefined: none. */
  readonly callTimeoutMs: number | undefined;
  /** A connection without calls is closed after this time. */
  readonly idleTimeoutMs: number;
  /** Larger messages of the server fail their call; the default is `maxMessageBytes`. */
  readonly maxMessageBytes?: number | undefined;
  readonly liveness?: LivenessOptions | undefined;
}

/** In time during which the event loop was free to read: a process that is late itself has not waited for its peer. */
export interface LivenessOptions {
  readonly tickMs: number;
  /** A peer that has sent nothing for this long receives a PING. */
  readonly pingAfterMs: number;
  /** A peer that has sent nothing for this long after it is given up; so is one that has not finished its handshakes. */
  readonly silentAfterMs: number;
}

/** A message of this size holds the configuration of some 100,000 services. */
export const maxMessageBytes = 128 * 1024 * 1024;
export const defaultLiveness: LivenessOptions = { tickMs: 500, pingAfterMs: 10_000, silentAfterMs: 10_000 };

export class GrpcConnection implements SessionManager {
  readonly authority: string;
  readonly transport: Transport;
  readonly #options: GrpcConnectionOptions;
  /** The one that takes new calls. */
  #current: OwnedSession | undefined;
  /** All that are open: one that was told to go away finishes its calls. */
  readonly #sessions: Set<OwnedSession>;

  constructor(options: GrpcConnectionOptions) {
    this.#options = options;
    this.#current = undefined;
    this.#sessions = new Set();
    const baseUrl = `https://${options.address}`;
    this.authority = new URL(baseUrl).origin;
    this.transport = createGrpcTransport({
      baseUrl,
      sessionManager: this,
      readMaxBytes: options.maxMessageBytes ?? maxMessageBytes,
      ...(options.callTimeoutMs === undefined ? {} : { defaultTimeoutMs: options.callTimeoutMs }),
    });
  }

  async request(method: string, path: string, headers: OutgoingHttpHeaders): Promise<ClientHttp2Stream> {
    if (this.#current?.takesCalls !== true) {
      const session = new OwnedSession(new URL(this.authority), this.#options, () => this.#sessions.delete(session));
      this.#sessions.add(session);
      this.#current = session;
    }
    return this.#current.request({ ...headers, ':method': method, ':path': path });
  }

  /** Liveness is measured by what the socket reads. */
  notifyResponseByteRead(): void {}

  /** Fails all calls and closes all connections; a later call opens another. Idempotent. */
  close(): void {
    this.#current = undefined;
    for (const session of this.#sessions) session.end(new ConnectError('the connection was closed', Code.Canceled));
  }
}

class OwnedSession {
  readonly #options: GrpcConnectionOptions;
  readonly #socket: TLSSocket;
  readonly #session: ClientHttp2Session;
  readonly #connected: Promise<void>;
  readonly #timer: NodeJS.Timeout;
  #isConnected: boolean;
  #isGoingAway: boolean;
  #error: Error | undefined;
  #streams: number;
  #idleSince: number;
  /** What the socket had read at the last tick, and the time of free event loop since it read more. */
  #bytesRead: number;
  #silentMs: number;
  #hasPinged: boolean;

  constructor(url: URL, options: GrpcConnectionOptions, onClosed: () => void) {
    const { tickMs } = options.liveness ?? defaultLiveness;
    this.#options = options;
    this.#isConnected = false;
    this.#isGoingAway = false;
    this.#error = undefined;
    this.#streams = 0;
    this.#idleSince = performance.now();
    this.#bytesRead = 0;
    this.#silentMs = 0;
    this.#hasPinged = false;
    const host = url.hostname.replace(/^\[|\]$/g, '');
    const serverName = options.serverName ?? (isIP(host) ? undefined : host);
    const { ca, cert, key } = options.tls;
    const socket = boundary.own(
      vetServer(
        connectTls({
          host,
          port: Number(url.port || 443),
          ALPNProtocols: ['h2'],
          ca: usableRoots(ca).roots,
          checkServerIdentity: verifyServerCertificate,
          ...(serverName === undefined ? {} : { servername: serverName }),
          ...(cert === undefined || key === undefined ? {} : { cert, key }),
        }),
      ),
    );
    this.#socket = socket;
    this.#session = boundary.own(connectHttp2(url.origin, { createConnection: () => socket }));
    const fail = (error: Error) => this.end(error);
    socket.on('error', fail);
    this.#session.on('error', fail);
    this.#session.on('frameError', (_type, code) => this.end(new ConnectError(`a frame could not be sent (code ${code})`, Code.Unavailable)));
    this.#session.on('goaway', () => (this.#isGoingAway = true));
    this.#connected = new Promise((resolve, reject) => {
      this.#session.once('connect', () => {
        this.#isConnected = true;
        this.#silentMs = 0;
        resolve();
      });
      this.#session.once('close', () => {
        clearInterval(this.#timer);
        this.#isGoingAway = true;
        onClosed();
        reject(ConnectError.from(this.#error ?? new Error('the peer closed the connection'), Code.Unavailable));
      });
    });
    // Every call waits for it and receives the error; without a call there is no reader.
    this.#connected.catch(() => {});
    this.#timer = boundary.every(tickMs, () => this.#tick()).unref();
  }

  get takesCalls(): boolean {
    return !this.#isGoingAway && this.#error === undefined && !this.#session.closed && !this.#session.destroyed;
  }

  async request(headers: OutgoingHttpHeaders): Promise<ClientHttp2Stream> {
    if (this.#streams++ === 0) this.#session.ref();
    try {
      await this.#connected;
      const stream = boundary.own(this.#session.request(headers));
      stream.once('close', () => this.#streamClosed());
      return stream;
    } catch (error) {
      this.#streamClosed();
      throw ConnectError.from(error, Code.Unavailable);
    }
  }

  #streamClosed(): void {
    if (--this.#streams > 0) return;
    this.#idleSince = performance.now();
    if (!this.#session.destroyed) this.#session.unref();
  }

  /** Ends the session and its calls with an error. Idempotent. */
  end(error: Error): void {
    if (this.#error === undefined) this.#error = error;
    if (!this.#session.destroyed) this.#session.destroy(error, constants.NGHTTP2_CANCEL);
    this.#socket.destroy();
  }

  /** Between two ticks the event loop has polled its sockets at least once: a tick counts as its own length, however late it comes. */
  #tick(): void {
    const { tickMs, pingAfterMs, silentAfterMs } = this.#options.liveness ?? defaultLiveness;
    if (this.#streams === 0 && this.#isConnected && performance.now() - this.#idleSince > this.#options.idleTimeoutMs) return this.#session.close();
    if (this.#socket.bytesRead !== this.#bytesRead) {
      this.#bytesRead = this.#socket.bytesRead;
      this.#silentMs = 0;
      this.#hasPinged = false;
      if (this.#isConnected) return;
    }
    this.#silentMs += tickMs;
    if (!this.#isConnected) {
      if (this.#silentMs >= silentAfterMs) this.end(new ConnectError(`no connection within ${silentAfterMs / 1000} s`, Code.Unavailable));
    } else if (this.#silentMs >= pingAfterMs + silentAfterMs) {
      this.end(new ConnectError(`the peer has sent nothing for ${(pingAfterMs + silentAfterMs) / 1000} s, not even the response to a PING`, Code.Unavailable));
    } else if (this.#silentMs >= pingAfterMs && !this.#hasPinged) {
      this.#hasPinged = true;
      if (!this.#session.destroyed) this.#session.ping(() => {});
    }
  }
}
