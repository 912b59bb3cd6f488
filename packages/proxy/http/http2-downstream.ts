import type net from 'node:net';
import { coarseNow, errorBoundary } from '@mizzen/common';
import { errorCodes, type Http2Violation } from '../http2/error-codes.ts';
import type { ByteWriter } from '../http2/frame-writer.ts';
import { Http2ServerConnection, type StreamServer } from '../http2/server-connection.ts';
import type { Http2Stream, StreamHandler, StreamReset } from '../http2/stream.ts';
import { type Fields, noFields } from '../message/fields.ts';
import { pushSlice } from '../message/kept-slices.ts';
import type { RequestHead } from '../message/request-head.ts';
import { ResponseHead } from '../message/response-head.ts';
import { countAllocatedRead } from '../net/read-buffers.ts';
import type { ConnectionSettings } from './connection-settings.ts';
import type { Client, Downstream } from './downstream.ts';
import { Exchange } from './exchange.ts';
import type { HeldVisitor, SpokenHttp } from './http-connection.ts';

const boundary = errorBoundary('http2.downstream');

/** One HTTP/2 connection of a client: each of its streams is an exchange. */
export class Http2Downstream implements SpokenHttp, StreamServer, ByteWriter {
  readonly client: Client;
  readonly http2: Http2ServerConnection;
  readonly #socket: net.Socket;
  readonly #settings: () => ConnectionSettings;
  readonly #openedAt: number;
  #requests: number;
  /** When there was last a stream, to a quarter of a second. */
  #idleSince: number;
  /** Nothing is read any more; what was written still goes out. */
  #isClosing: boolean;
  /** When all of that had gone out; 0: not yet. */
  #flushedAt: number;
  #lastWriteAt: number;

  constructor(socket: net.Socket, client: Client, settings: () => ConnectionSettings) {
    this.client = client;
    this.#socket = socket;
    this.#settings = settings;
    this.#openedAt = coarseNow();
    this.#requests = 0;
    this.#idleSince = this.#openedAt;
    this.#isClosing = false;
    this.#flushedAt = 0;
    this.#lastWriteAt = this.#openedAt;
    this.http2 = new Http2ServerConnection(settings().http2, this, this);
    settings().context.counters.values.downstream_http2_connections_total++;
    socket.on('data', (chunk: Buffer) => this.onData(chunk));
    const fail = () => socket.destroy();
    const drained = () => {
      this.#lastWriteAt = coarseNow();
      this.http2.onWritable();
    };
    socket.on('drain', boundary.guard(drained, fail));
    // A client that closes its side has gone, whatever it has asked.
    socket.on('end', () => socket.destroy());
    socket.on(
      'close',
      boundary.guard(() => this.http2.closed('downstream_remote_disconnect'), fail),
    );
  }

  onData(chunk: Buffer): void {
    if (this.#isClosing) return;
    try {
      boundary.enter();
      countAllocatedRead(chunk.length);
      this.http2.read(chunk);
    } catch (error) {
      boundary.caught(error);
      this.#socket.destroy();
    }
  }

  /** The request with which a connection of HTTP/1.1 was upgraded. `payload`: six bytes for each setting. */
  adoptUpgrade(head: RequestHead, payload: Buffer): void {
    if (payload.length % 6 !== 0 || payload.length > 600) return void this.#socket.destroy();
    if (this.http2.adoptUpgrade(head, payload) !== undefined) this.#socket.destroy();
  }

  drain(): void {
    this.http2.drain();
  }

  sweep(now: number): void {
    const settings = this.#settings();
    if (this.#isClosing) {
      const isOver = this.#flushedAt > 0 ? now - this.#flushedAt > settings.delayedCloseTimeoutMs : now - this.#lastWriteAt > settings.streamIdleTimeoutMs;
      if (isOver) this.#socket.destroy();
      return;
    }
    this.http2.sweep(now);
    const { idleTimeoutMs, requestHeadersTimeoutMs, maxConnectionDurationMs } = settings;
    // Neither the beginning of a connection nor a header block is waited for longer than a head of HTTP/1.1.
    const waitsSince = this.http2.hasSettings ? this.http2.partialSince : this.#openedAt;
    if (requestHeadersTimeoutMs > 0 && waitsSince > 0 && now - waitsSince > requestHeadersTimeoutMs) {
      settings.context.counters.values.timeouts_total++;
      return void this.#socket.destroy();
    }
    if (this.http2.streamCount > 0) {
      this.#idleSince = now;
      for (const stream of this.http2.openStreams()) (stream.handler as Http2Request | undefined)?.sweep(now, settings);
    } else if (idleTimeoutMs > 0 && now - this.#idleSince > idleTimeoutMs) this.http2.drain();
    if (maxConnectionDurationMs > 0 && now - this.#openedAt > maxConnectionDurationMs) this.http2.drain();
  }

  held(visit: HeldVisitor): void {
    for (const stream of this.http2.openStreams()) {
      const request = stream.handler as Http2Request | undefined;
      visit(stream.pendingBytes + (request?.heldRequestBytes ?? 0), () => {
        request?.overloaded();
        this.http2.drain();
      });
    }
    visit(this.#socket.writableLength, () => this.#socket.destroy());
  }

  // ---- where its bytes go ----

  get pendingBytes(): number {
    return this.#socket.writableLength;
  }

  get isFull(): boolean {
    return this.#socket.writableNeedDrain;
  }

  write(bytes: Buffer): void {
    this.#lastWriteAt = coarseNow();
    this.#socket.write(bytes);
  }

  /** Ends the connection when its peer has had the chance to read what was written (see Http1Downstream). */
  end(): void {
    this.#isClosing = true;
    if (this.#settings().delayedCloseTimeoutMs === 0) return void this.#socket.destroySoon();
    this.#socket.end(() => {
      this.#flushedAt = coarseNow();
    });
    this.#socket.resume();
  }

  // ---- its streams ----

  onRequest(stream: Http2Stream, head: RequestHead): StreamHandler {
    const settings = this.#settings();
    const { maxRequestsPerConnection, context } = settings;
    this.#requests++;
    if ((maxRequestsPerConnection > 0 && this.#requests >= maxRequestsPerConnection) || context.overload.disablesKeepAlive) this.http2.drain();
    return new Http2Request(this, stream, settings, head);
  }

  onViolation({ reason }: Http2Violation): void {
    this.#settings().context.counters.countViolation(reason);
  }

  onEnd(): void {}
}

/** One stream of a client, as an exchange sees it. */
class Http2Request implements Downstream, StreamHandler {
  readonly client: Client;
  readonly lastReadAt: number;
  readonly saidConnected = false;
  readonly heldBytes = 0;
  readonly #connection: Http2ServerConnection;
  readonly #stream: Http2Stream;
  readonly #exchange: Exchange;
  readonly #isTunnelRequest: boolean;
  #isPaused: boolean;
  /** Bytes that the exchange was given while it had asked for no more. */
  #uncredited: number;
  /** What came before a tunnel was agreed to. */
  #early: Buffer[] | undefined;
  #hasEnded: boolean;

  constructor(connection: Http2Downstream, stream: Http2Stream, settings: ConnectionSettings, head: RequestHead) {
    this.client = connection.client;
    this.#connection = connection.http2;
    this.lastReadAt = connection.http2.lastReadAt;
    this.#stream = stream;
    this.#isTunnelRequest = head.upgrade !== '' || head.method === 'CONNECT';
    this.#isPaused = false;
    this.#uncredited = 0;
    this.#early = undefined;
    this.#hasEnded = false;
    this.#exchange = new Exchange(this, settings, head);
    this.#exchange.start();
  }

  sweep(now: number, settings: ConnectionSettings): void {
    const { streamIdleTimeoutMs, requestTimeoutMs, maxStreamDurationMs } = settings;
    const exchange = this.#exchange;
    if (streamIdleTimeoutMs > 0 && now - this.#stream.lastActivity > streamIdleTimeoutMs) exchange.onStreamIdle();
    else if (exchange.isTunnel) return;
    else if (requestTimeoutMs > 0 && !exchange.isRequestComplete && now - exchange.beganAt > requestTimeoutMs) exchange.onRequestTimeout();
    else if (maxStreamDurationMs > 0 && now - exchange.beganAt > maxStreamDurationMs) exchange.onMaxDuration();
  }

  get heldRequestBytes(): number {
    return this.#exchange.heldRequestBytes;
  }

  overloaded(): void {
    this.#exchange.onOverload();
  }

  // ---- the answer ----

  get isWritable(): boolean {
    return this.#stream.isWritable;
  }

  informational(head: ResponseHead): void {
    this.#connection.respond(this.#stream, head, -1, false);
  }

  respond(head: ResponseHead, hasBody: boolean, serviceTimeMs: number): void {
    this.#connection.respond(this.#stream, head, serviceTimeMs, !hasBody);
  }

  data(slice: Buffer): void {
    this.#stream.data(slice);
  }

  end(trailers: Fields): void {
    this.#stream.end(trailers);
  }

  flushSoon(): void {}

  pauseRequest(): void {
    this.#isPaused = true;
  }

  resumeRequest(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    const bytes = this.#uncredited;
    this.#uncredited = 0;
    this.#stream.consumed(bytes);
  }

  makeLast(): void {}

  openTunnel(_request: RequestHead, head: ResponseHead | undefined): void {
    this.#connection.respond(this.#stream, tunnelAnswer(head), -1, false);
    const early = this.#early;
    this.#early = undefined;
    for (const slice of early ?? []) this.#giveData(slice);
    if (this.#hasEnded) this.#exchange.onTunnelEnd();
  }

  endTunnel(): void {
    this.#stream.end(noFields);
  }

  ended(): void {
    const stream = this.#stream;
    stream.handler = undefined;
    if (stream.isLocalClosed && !stream.isRemoteClosed) stream.reset(errorCodes.NO_ERROR);
  }

  abort(): void {
    this.#stream.handler = undefined;
    this.#stream.reset(errorCodes.INTERNAL_ERROR);
  }

  // ---- the request ----

  onStreamData(slice: Buffer): void {
    if (this.#isTunnelRequest && !this.#exchange.isTunnel) pushSlice((this.#early ??= []), Buffer.from(slice));
    else this.#giveData(slice);
  }

  #giveData(slice: Buffer): void {
    const exchange = this.#exchange;
    exchange.onRequestData(slice);
    exchange.onRequestFlush();
    if (this.#isPaused) this.#uncredited += slice.length;
    else this.#stream.consumed(slice.length);
  }

  onStreamEnd(trailers: Fields): void {
    this.#hasEnded = true;
    if (!this.#isTunnelRequest) this.#exchange.onRequestEnd(trailers);
    else if (this.#exchange.isTunnel) this.#exchange.onTunnelEnd();
  }

  onStreamDrain(): void {
    this.#exchange.onDownstreamDrain();
  }

  onStreamReset({ by, reason }: StreamReset): void {
    this.#exchange.onDownstreamClosed(by === 'connection' ? reason : by === 'peer' ? 'http2.remote_reset' : reason);
  }
}

/** An extended CONNECT is agreed to with 200, where HTTP/1.1 says 101 and proves that it has read the key (RFC 8441 section 5). */
function tunnelAnswer(head: ResponseHead | undefined): ResponseHead {
  const answer = new ResponseHead();
  answer.status = 200;
  if (head === undefined) return answer;
  const { names } = head.headers;
  for (const [i, name] of names.entries()) if (name !== 'sec-websocket-accept' && name !== 'content-length') answer.headers.add(name, head.headers.valueAt(i));
  return answer;
}
