import type net from 'node:net';
import type { TLSSocket } from 'node:tls';
import { coarseNow } from '@mizzen/common';
import { BodyReader, type BodySink } from '../http1/body-reader.ts';
import { HeadReader } from '../http1/head-reader.ts';
import { OutputBatch } from '../http1/output-batch.ts';
import { RequestHead, readRequestHead } from '../http1/request-head.ts';
import { type Violation, violations } from '../http1/violation.ts';
import type { PeerIdentity } from '../tls/peer-identity.ts';
import type { ConnectionSettings } from './connection-settings.ts';
import { Exchange } from './exchange.ts';
import { statusLine } from './reason-phrases.ts';

/**
 * One HTTP/1.1 connection of a client. It reads requests one after another; pipelined ones wait, unread, until the one before has been
 * answered.
 */
export class DownstreamConnection implements BodySink {
  readonly socket: net.Socket;
  /** The verified identity of the peer; undefined on plain connections and where no client certificate is asked for. */
  readonly peer: PeerIdentity | undefined;
  readonly remoteAddress: string;
  readonly serverName: string;
  readonly output: OutputBatch;
  /** When bytes last went in either direction (to a tenth of a second); the sweep ends connections on which nothing moves. */
  lastActivity: number;
  /** performance.now() of the last bytes that were read: when the request that they begin has started. */
  lastReadAt: number;
  /** The element of x-forwarded-client-cert that speaks for this peer; made at the first request. */
  forwardedCert: string | undefined;
  readonly #settings: () => ConnectionSettings;
  readonly #heads: HeadReader;
  readonly #body: BodyReader;
  #exchange: Exchange | undefined;
  /** Bytes of requests that have to wait for the one before. */
  #waiting: Buffer | undefined;
  #headStartedAt: number;
  #isClosed: boolean;
  #isDraining: boolean;
  readonly #onClose: (connection: DownstreamConnection) => void;

  constructor(socket: net.Socket, peer: PeerIdentity | undefined, settings: () => ConnectionSettings, onClose: (connection: DownstreamConnection) => void) {
    this.socket = socket;
    this.peer = peer;
    this.remoteAddress = socket.remoteAddress ?? '';
    this.serverName = typeof (socket as TLSSocket).servername === 'string' ? ((socket as TLSSocket).servername as string) : '';
    this.lastActivity = coarseNow();
    this.lastReadAt = this.lastActivity;
    this.forwardedCert = undefined;
    this.output = new OutputBatch(this);
    this.#settings = settings;
    this.#heads = new HeadReader(settings().headLimits);
    this.#body = new BodyReader();
    this.#exchange = undefined;
    this.#waiting = undefined;
    this.#headStartedAt = 0;
    this.#isClosed = false;
    this.#isDraining = false;
    this.#onClose = onClose;
    const { values } = settings().context.counters;
    values.downstream_connections_total++;
    values.downstream_connections_active++;
    socket.on('data', (chunk: Buffer) => this.onData(chunk));
    socket.on('drain', () => this.#exchange?.onDownstreamDrain());
    socket.on('end', () => this.#onEnd());
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#closed());
  }

  get isIdle(): boolean {
    return this.#exchange === undefined && !this.#heads.hasPartialHead;
  }

  /** The request's body has been read to its end. */
  get isBodyRead(): boolean {
    return this.#body.isDone;
  }

  get bodyTrailers(): string {
    return this.#body.trailers;
  }

  /** No more requests after the one under way. */
  drain(): void {
    this.#isDraining = true;
    if (!this.isIdle) return;
    // The last answer may still wait for the end of this turn.
    this.output.flush();
    this.socket.destroySoon();
  }

  get isDraining(): boolean {
    return this.#isDraining;
  }

  close(): void {
    this.socket.destroy();
  }

  write(data: string | Buffer): boolean {
    this.lastActivity = coarseNow();
    return typeof data === 'string' ? this.socket.write(data, 'latin1') : this.socket.write(data);
  }

  /** Called by the exchange when the last byte of its response has been handed to the socket. */
  exchangeEnded(keepsConnection: boolean): void {
    this.#exchange = undefined;
    if (this.#isClosed) return;
    if (!keepsConnection || this.#isDraining || !this.#body.isDone) {
      this.output.flush();
      // Half-closing first lets the client read the answer before a reset for what it still sends could destroy it.
      this.socket.end();
      this.socket.resume();
      return;
    }
    const waiting = this.#waiting;
    if (waiting !== undefined) {
      // Not from within the end of the request before: a long pipeline would deepen the stack with each. Until then nothing more is read.
      setImmediate(() => {
        this.#waiting = undefined;
        if (this.#isClosed) return;
        if (this.socket.isPaused()) this.socket.resume();
        this.onData(waiting);
      });
    } else if (this.socket.isPaused()) this.socket.resume();
  }

  onBodyData(slice: Buffer): void {
    this.#exchange?.onRequestData(slice);
  }

  /** `now` in the milliseconds of performance.now(). */
  sweep(now: number): void {
    const settings = this.#settings();
    if (this.#exchange !== undefined) {
      if (settings.streamIdleTimeoutMs > 0 && now - this.lastActivity > settings.streamIdleTimeoutMs) this.#exchange.onStreamIdle();
    } else if (this.#heads.hasPartialHead) {
      if (settings.requestHeadersTimeoutMs > 0 && now - this.#headStartedAt > settings.requestHeadersTimeoutMs) {
        settings.context.counters.values.timeouts_total++;
        this.#refuse({ reason: 'request_headers_timeout', status: 408 });
      }
    } else if (settings.idleTimeoutMs > 0 && now - this.lastActivity > settings.idleTimeoutMs) this.close();
  }

  onData(chunk: Buffer): void {
    this.lastReadAt = performance.now();
    this.lastActivity = this.lastReadAt;
    let at = 0;
    while (at < chunk.length) {
      if (this.#isClosed || this.socket.writableEnded) return;
      const exchange = this.#exchange;
      if (exchange !== undefined) {
        if (this.#body.isDone) return this.#wait(at === 0 ? chunk : chunk.subarray(at));
        const next = this.#body.read(chunk, at, this);
        if (typeof next !== 'number') return exchange.onRequestViolation(next);
        at = next;
        if (this.#body.isDone && this.#exchange === exchange) exchange.onRequestEnd();
        continue;
      }
      if (!this.#heads.hasPartialHead) {
        // RFC 9112 section 2.2: an empty line or two before a request is overlooked.
        while (at < chunk.length && (chunk[at] === 0x0d || chunk[at] === 0x0a)) at++;
        if (at === chunk.length) return;
        this.#headStartedAt = this.lastActivity;
      }
      const settings = this.#settings();
      const found = this.#heads.read(chunk, at);
      if (found === false) return;
      if (found !== true) return this.#refuse(found);
      at = this.#heads.bodyStart;
      const head = readRequestHead(this.#heads.text, settings.headLimits);
      if (!(head instanceof RequestHead)) return this.#refuse(head);
      if (head.method === 'CONNECT') {
        if (settings.direction !== 'outbound') return this.#refuse(violations.methodNotSupported);
        // Some HTTP clients tunnel plain HTTP through their proxy too. The tunnel ends right here: what comes through it are requests to
        // the same host, and they are routed like any others.
        this.output.text('HTTP/1.1 200 Connection established\r\n\r\n');
        this.output.flush();
        continue;
      }
      if (head.isChunked) this.#body.startChunked();
      else if (head.contentLength > 0) this.#body.startLength(head.contentLength);
      else this.#body.startNone();
      const next = new Exchange(this, settings, head);
      this.#exchange = next;
      next.start();
    }
    this.#exchange?.onRequestFlush();
  }

  #wait(bytes: Buffer): void {
    this.#waiting = this.#waiting === undefined ? bytes : Buffer.concat([this.#waiting, bytes]);
    this.socket.pause();
  }

  /** Answers what is no request, and ends the connection: after a violation nothing on it can be trusted. */
  #refuse(violation: Violation): void {
    const { counters } = this.#settings().context;
    counters.countViolation(violation.reason);
    const body = `${violation.reason.replace(/^http1\./, '').replaceAll('_', ' ')}\n`;
    this.output.flush();
    if (this.socket.writable)
      this.socket.end(
        `${statusLine(violation.status)}content-type: text/plain\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
        'latin1',
      );
    this.#isClosed = true;
    this.socket.resume();
    this.socket.setTimeout(1_000, () => this.socket.destroy());
  }

  /** A client that closes its side has gone, as far as HTTP/1.1 proxies are concerned (Envoy and nginx read it so too). */
  #onEnd(): void {
    this.socket.destroy();
  }

  #closed(): void {
    this.#isClosed = true;
    this.#settings().context.counters.values.downstream_connections_active--;
    this.#exchange?.onDownstreamClosed();
    this.#exchange = undefined;
    this.#onClose(this);
  }
}
