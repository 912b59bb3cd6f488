import type net from 'node:net';
import { coarseNow, errorBoundary } from '@mizzen/common';
import { connectionPreface } from '../http2/frames.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import type { PeerIdentity } from '../tls/peer-identity.ts';
import type { ConnectionSettings } from './connection-settings.ts';
import { Client } from './downstream.ts';
import { Http1Downstream } from './http1-downstream.ts';
import { Http2Downstream } from './http2-downstream.ts';

const boundary = errorBoundary('http.connection');

/** What a connection does once it is known what it speaks. */
export interface SpokenHttp {
  onData(chunk: Buffer): void;
  drain(gently: boolean): void;
  sweep(now: number): void;
  held(visit: HeldVisitor): void;
}

/** Is given the bytes that wait for a slow reader, and how to end what they belong to. */
export type HeldVisitor = (bytes: number, reset: () => void) => void;

/** `p` of `preface`: how many of its bytes tell HTTP/2 from a request of HTTP/1.1 whose method is PRI, which there is none. */
const tellingBytes = 4;

/** A connection that is draining and has not said anything has this long to do so. */
const drainIdleMs = 500;

/** One connection of a client. What it speaks is told by its first bytes, unless ALPN or the configuration says so (`codec_type`). */
export class HttpConnection {
  readonly socket: net.Socket;
  readonly client: Client;
  readonly #settings: () => ConnectionSettings;
  readonly #openedAt: number;
  readonly #onClose: (connection: HttpConnection) => void;
  #spoken: SpokenHttp | undefined;
  /** The beginning of what may become the preface of HTTP/2. */
  #first: Buffer | undefined;
  #isDraining: boolean;

  constructor(
    socket: net.Socket,
    info: ConnectionInfo,
    peer: PeerIdentity | undefined,
    settings: () => ConnectionSettings,
    onClose: (connection: HttpConnection) => void,
  ) {
    this.socket = socket;
    this.client = new Client(info, peer);
    this.#settings = settings;
    this.#openedAt = coarseNow();
    this.#onClose = onClose;
    this.#spoken = undefined;
    this.#first = undefined;
    this.#isDraining = false;
    const { context, codec } = settings();
    context.counters.values.downstream_connections_total++;
    context.counters.values.downstream_connections_active++;
    socket.on('error', () => socket.destroy());
    socket.on(
      'close',
      boundary.wrap(() => this.#closed()),
    );
    socket.once('end', () => {
      if (this.#spoken === undefined) socket.destroy();
    });
    const alpn = (socket as { alpnProtocol?: string | false }).alpnProtocol;
    if (codec === 'http1') this.#begin(new Http1Downstream(socket, this.client, settings, (next) => this.#begin(next)));
    else if (codec === 'http2' || alpn === 'h2') this.#begin(new Http2Downstream(socket, this.client, settings));
    else socket.once('data', this.#onFirst);
  }

  /** Bytes that were read before the connection came here. */
  onData(chunk: Buffer): void {
    if (this.#spoken !== undefined) return this.#spoken.onData(chunk);
    this.socket.off('data', this.#onFirst);
    this.#onFirst(chunk);
  }

  drain(gently: boolean): void {
    this.#isDraining = true;
    if (this.#spoken !== undefined) this.#spoken.drain(gently);
    else if (!gently) this.socket.destroy();
  }

  close(): void {
    this.socket.destroy();
  }

  held(visit: HeldVisitor): void {
    this.#spoken?.held(visit);
  }

  /** `now` in the milliseconds of performance.now(). */
  sweep(now: number): void {
    if (this.#spoken !== undefined) return this.#spoken.sweep(now);
    const { idleTimeoutMs, requestHeadersTimeoutMs } = this.#settings();
    const age = now - this.#openedAt;
    const limit = this.#first !== undefined ? requestHeadersTimeoutMs : idleTimeoutMs;
    if ((limit > 0 && age > limit) || (this.#isDraining && age > drainIdleMs)) this.close();
  }

  readonly #onFirst = boundary.wrap(
    (chunk: Buffer) => this.#detect(chunk),
    () => this.socket.destroy(),
  );

  #detect(chunk: Buffer): void {
    const first = this.#first === undefined ? chunk : Buffer.concat([this.#first, chunk]);
    const compared = Math.min(first.length, tellingBytes);
    const mayBeHttp2 = connectionPreface.compare(first, 0, compared, 0, compared) === 0;
    if (mayBeHttp2 && compared < tellingBytes) {
      this.#first = first;
      this.socket.once('data', this.#onFirst);
      return;
    }
    this.#first = undefined;
    const { socket, client } = this;
    this.#begin(
      mayBeHttp2 ? new Http2Downstream(socket, client, this.#settings) : new Http1Downstream(socket, client, this.#settings, (next) => this.#begin(next)),
    );
    this.#spoken!.onData(first);
  }

  /** Once, and again when HTTP/1.1 goes over into HTTP/2 (an Upgrade to h2c, or a CONNECT). */
  #begin(spoken: SpokenHttp): void {
    this.#spoken = spoken;
    if (this.#isDraining) spoken.drain(true);
  }

  #closed(): void {
    this.#settings().context.counters.values.downstream_connections_active--;
    this.#onClose(this);
  }
}
