import { createHash } from 'node:crypto';
import type net from 'node:net';
import { coarseNow, errorBoundary } from '@mizzen/common';
import { BodyReader, type BodySink } from '../http1/body-reader.ts';
import { HeadReader } from '../http1/head-reader.ts';
import { OutputBatch } from '../http1/output-batch.ts';
import { readRequestHead } from '../http1/read-request-head.ts';
import { type Violation, violations } from '../http1/violation.ts';
import { connectionPreface } from '../http2/frames.ts';
import type { Fields } from '../message/fields.ts';
import type { HeaderCase } from '../message/header-case.ts';
import { RequestHead } from '../message/request-head.ts';
import type { ResponseHead } from '../message/response-head.ts';
import { fieldsOfLines, trailerLines } from '../message/trailer-lines.ts';
import { countAllocatedRead } from '../net/read-buffers.ts';
import type { ConnectionSettings } from './connection-settings.ts';
import type { Client, Downstream } from './downstream.ts';
import { Exchange } from './exchange.ts';
import type { HeldVisitor, SpokenHttp } from './http-connection.ts';
import { httpDate } from './http-date.ts';
import { Http2Downstream } from './http2-downstream.ts';
import { statusLine } from './reason-phrases.ts';

const boundary = errorBoundary('http1.downstream');

/** First byte of a TLS record that holds a handshake (RFC 8446 section 5.1). */
const tlsHandshake = 0x16;
/** How HTTP/2 begins (RFC 9113 section 3.4), as far as it takes to tell it from a method. */
const prefaceStart = connectionPreface.subarray(0, 4);
/** A connection without a request for this long has no request on its way. */
const drainIdleMs = 500;

/**
 * One HTTP/1.1 connection of a client. It reads requests one after another; pipelined ones wait, unread, until the one before has been
 * answered.
 */
export class Http1Downstream implements BodySink, Downstream, SpokenHttp {
  readonly socket: net.Socket;
  readonly client: Client;
  readonly #output: OutputBatch;
  /** When bytes last went in either direction (to a tenth of a second); the sweep ends connections on which nothing moves. */
  lastActivity: number;
  /** performance.now() of the last bytes that were read: when the request that they begin has started. */
  lastReadAt: number;
  /** A CONNECT has been answered before it was known what would come through it. */
  saidConnected: boolean;
  readonly #settings: () => ConnectionSettings;
  readonly #heads: HeadReader;
  readonly #body: BodyReader;
  readonly #openedAt: number;
  #requests: number;
  #exchange: Exchange | undefined;
  /** The head of the request under way. */
  #request: RequestHead | undefined;
  #sendsChunks: boolean;
  #keepsConnection: boolean;
  /** Bytes of requests that have to wait for the one before. */
  #waiting: Buffer | undefined;
  /** A CONNECT whose content has not been seen yet. */
  #connectHead: RequestHead | undefined;
  /** The beginning of what may become the preface of HTTP/2 inside a CONNECT. */
  #heldFirst: Buffer | undefined;
  #headStartedAt: number;
  /** Nothing is read any more; what was written still goes out. */
  #isClosing: boolean;
  /** When all of that had gone out; 0: not yet. */
  #flushedAt: number;
  #isTunnel: boolean;
  #isClosed: boolean;
  #isDraining: boolean;
  readonly #switchTo: (next: SpokenHttp) => void;

  constructor(socket: net.Socket, client: Client, settings: () => ConnectionSettings, switchTo: (next: SpokenHttp) => void) {
    this.socket = socket;
    this.client = client;
    this.lastActivity = coarseNow();
    this.lastReadAt = this.lastActivity;
    this.saidConnected = false;
    this.#output = new OutputBatch(this);
    this.#settings = settings;
    this.#heads = new HeadReader(settings().headLimits);
    this.#body = new BodyReader();
    this.#openedAt = this.lastActivity;
    this.#requests = 0;
    this.#exchange = undefined;
    this.#request = undefined;
    this.#sendsChunks = false;
    this.#keepsConnection = true;
    this.#waiting = undefined;
    this.#connectHead = undefined;
    this.#heldFirst = undefined;
    this.#headStartedAt = 0;
    this.#isClosing = false;
    this.#flushedAt = 0;
    this.#isTunnel = false;
    this.#isClosed = false;
    this.#isDraining = false;
    this.#switchTo = switchTo;
    socket.on('data', this.#onChunk);
    socket.on('drain', () => {
      try {
        boundary.enter();
        this.lastActivity = coarseNow();
        this.#output.isWritable = true;
        this.#exchange?.onDownstreamDrain();
      } catch (error) {
        this.#failed(error);
      }
    });
    const fail = () => socket.destroy();
    socket.on(
      'end',
      boundary.guard(() => this.#onEnd(), fail),
    );
    socket.on(
      'close',
      boundary.guard(() => this.#closed(), fail),
    );
  }

  readonly #onChunk = (chunk: Buffer): void => this.onData(chunk);

  /** An exception outside any exchange: nothing on this connection can be trusted. */
  #failed(error: unknown): void {
    boundary.caught(error);
    this.socket.destroy();
  }

  get isIdle(): boolean {
    return this.#exchange === undefined && !this.#heads.hasPartialHead && this.#waiting === undefined;
  }

  get pendingBytes(): number {
    return this.socket.writableLength;
  }

  get heldBytes(): number {
    return this.socket.writableLength;
  }

  get isWritable(): boolean {
    return this.#output.isWritable;
  }

  // ---- the answer ----

  informational(head: ResponseHead): void {
    if (this.#request!.isHttp10) return;
    this.#output.text(`${head.line !== '' ? head.line : statusLine(head.status, head.reason)}${head.headers.serialize(this.#settings().headerCase)}\r\n`);
    // Whoever asked whether to go on has stopped until it hears.
    if (head.status === 100) this.#output.flush();
  }

  respond(head: ResponseHead, hasBody: boolean, serviceTimeMs: number): void {
    const { isHttp10, method } = this.#request!;
    const { headers } = head;
    const hasLength = head.contentLength >= 0 && !head.isChunked;
    this.#sendsChunks = hasBody && !hasLength && !isHttp10;
    if (hasBody && !hasLength && isHttp10) this.#keepsConnection = false;
    if (!this.#body.isDone) this.#keepsConnection = false; // answered before the request was complete
    let text = (head.line !== '' ? head.line : statusLine(head.status, head.reason)) + headers.serialize(this.#settings().headerCase);
    if (serviceTimeMs >= 0) text += serviceTimeLine(serviceTimeMs);
    if (!headers.has('server')) text += 'server: mizzen\r\n';
    if (this.#sendsChunks || (head.isChunked && method === 'HEAD' && !isHttp10)) text += 'transfer-encoding: chunked\r\n';
    // HTTP/2 says by a flag that there is no content; here it has to be said, or the client would wait for the connection's end.
    else if (!hasBody && !hasLength && method !== 'HEAD' && head.status !== 204 && head.status !== 304) text += 'content-length: 0\r\n';
    this.#output.text(text + this.#connectionText());
  }

  data(slice: Buffer): void {
    if (this.#sendsChunks) this.#output.chunk(slice);
    else this.#output.bytes(slice);
  }

  end(trailers: Fields): void {
    if (this.#sendsChunks) this.#output.text(`0\r\n${trailerLines(trailers)}\r\n`);
    this.#output.flushSoon();
  }

  flushSoon(): void {
    this.#output.flushSoon();
  }

  pauseRequest(): void {
    this.socket.pause();
  }

  resumeRequest(): void {
    if (this.socket.isPaused()) this.socket.resume();
  }

  makeLast(): void {
    this.#keepsConnection = false;
  }

  openTunnel(request: RequestHead, head: ResponseHead | undefined): void {
    this.#sendsChunks = false;
    this.#keepsConnection = false;
    if (request.upgrade !== '') this.#output.text(switchingText(request, head!, this.#settings().headerCase));
    else if (!this.saidConnected) this.#output.text('HTTP/1.1 200 OK\r\n\r\n');
    this.#output.flushSoon();
    this.#beginTunnel();
  }

  endTunnel(): void {
    this.#output.flush();
    this.socket.end();
  }

  abort(): void {
    this.#output.flush();
    this.close();
  }

  /** The end of a response head: what becomes of the connection. */
  #connectionText(): string {
    if (this.#isDraining) this.#keepsConnection = false;
    if (!this.#keepsConnection) return 'connection: close\r\n\r\n';
    return this.#request!.isHttp10 ? 'connection: keep-alive\r\n\r\n' : '\r\n';
  }

  /**
   * No more requests after the one under way. An idle connection ends now; or `gently`, with the next request, or when none has come for
   * a moment: a client that is just sending one does not know yet.
   */
  drain(gently: boolean): void {
    this.#isDraining = true;
    if (gently || !this.isIdle || this.#isClosing) return;
    // The last answer may still wait for the end of this turn.
    this.#closeAfterOutput();
  }

  /** Whether the request that has just been read is the connection's last. */
  get #isLastRequest(): boolean {
    if (this.#isDraining) return true;
    const { maxRequestsPerConnection, maxConnectionDurationMs } = this.#settings();
    return (
      (maxRequestsPerConnection > 0 && this.#requests >= maxRequestsPerConnection) ||
      (maxConnectionDurationMs > 0 && this.lastActivity - this.#openedAt > maxConnectionDurationMs)
    );
  }

  close(): void {
    this.socket.destroy();
  }

  writeFailed(): void {
    this.close();
  }

  write(data: string | Buffer): boolean {
    this.lastActivity = coarseNow();
    return typeof data === 'string' ? this.socket.write(data, 'latin1') : this.socket.write(data);
  }

  /** What comes from now on is no message: it goes to the exchange as it is, until one side ends. */
  #beginTunnel(): void {
    this.#isTunnel = true;
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting !== undefined) {
      this.#exchange?.onRequestData(waiting);
      this.#exchange?.onRequestFlush();
    }
    if (this.socket.isPaused()) this.socket.resume();
  }

  ended(): void {
    this.#exchange = undefined;
    if (this.#isClosed) return;
    if (!this.#keepsConnection || this.#isDraining || !this.#body.isDone) return this.#closeAfterOutput();
    const waiting = this.#waiting;
    if (waiting !== undefined) {
      // Not from within the end of the request before: a long pipeline would deepen the stack with each. Until then nothing more is read.
      const next = () => {
        this.#waiting = undefined;
        if (this.#isClosed) return;
        if (this.socket.isPaused()) this.socket.resume();
        this.onData(waiting);
      };
      boundary.soon(next, () => this.socket.destroy());
    } else if (this.socket.isPaused()) this.socket.resume();
  }

  onBodyData(slice: Buffer): void {
    this.#exchange?.onRequestData(slice);
  }

  /** `now` in the milliseconds of performance.now(). */
  sweep(now: number): void {
    const settings = this.#settings();
    const exchange = this.#exchange;
    if (this.#isClosing) {
      // A slow reader has as long as any other stream to take the rest, and then the time of the delayed close to say goodbye.
      const isOver = this.#flushedAt > 0 ? now - this.#flushedAt > settings.delayedCloseTimeoutMs : now - this.lastActivity > settings.streamIdleTimeoutMs;
      if (isOver) this.close();
    } else if (exchange !== undefined) {
      const { streamIdleTimeoutMs, requestTimeoutMs, maxStreamDurationMs } = settings;
      if (streamIdleTimeoutMs > 0 && now - this.lastActivity > streamIdleTimeoutMs) exchange.onStreamIdle();
      else if (exchange.isTunnel) return;
      else if (requestTimeoutMs > 0 && !exchange.isRequestComplete && now - exchange.beganAt > requestTimeoutMs) exchange.onRequestTimeout();
      else if (maxStreamDurationMs > 0 && now - exchange.beganAt > maxStreamDurationMs) exchange.onMaxDuration();
    } else if (this.#heads.hasPartialHead) {
      const { requestHeadersTimeoutMs, requestTimeoutMs } = settings;
      const limit =
        requestHeadersTimeoutMs === 0
          ? requestTimeoutMs
          : requestTimeoutMs === 0
            ? requestHeadersTimeoutMs
            : Math.min(requestHeadersTimeoutMs, requestTimeoutMs);
      if (limit > 0 && now - this.#headStartedAt > limit) {
        settings.context.counters.values.timeouts_total++;
        this.#refuse({ reason: 'request_headers_timeout', status: 408 });
      }
    } else if (this.#isDraining && now - this.lastActivity > drainIdleMs) this.#closeAfterOutput();
    else if (settings.idleTimeoutMs > 0 && now - this.lastActivity > settings.idleTimeoutMs) this.close();
    else if (settings.maxConnectionDurationMs > 0 && now - this.#openedAt > settings.maxConnectionDurationMs) this.drain(false);
  }

  held(visit: HeldVisitor): void {
    visit(this.socket.writableLength + (this.#exchange?.heldRequestBytes ?? 0), () => {
      this.#exchange?.onOverload();
      // What the client has not taken yet goes with the connection.
      this.close();
    });
  }

  onData(received: Buffer): void {
    try {
      boundary.enter();
      this.#read(received);
    } catch (error) {
      this.#failed(error);
    }
  }

  #read(received: Buffer): void {
    countAllocatedRead(received.length);
    const chunk = this.#heldFirst === undefined ? received : Buffer.concat([this.#heldFirst, received]);
    this.#heldFirst = undefined;
    this.lastReadAt = performance.now();
    this.lastActivity = this.lastReadAt;
    let at = 0;
    while (at < chunk.length) {
      if (this.#isClosed || this.#isClosing) return;
      const exchange = this.#exchange;
      if (exchange !== undefined) {
        if (this.#isTunnel) {
          exchange.onRequestData(at === 0 ? chunk : chunk.subarray(at));
          return exchange.onRequestFlush();
        }
        if (this.#body.isDone) return this.#wait(at === 0 ? chunk : chunk.subarray(at));
        const next = this.#body.read(chunk, at, this);
        if (typeof next !== 'number') return exchange.onRequestViolation(next);
        at = next;
        if (this.#body.isDone && this.#exchange === exchange) exchange.onRequestEnd(fieldsOfLines(this.#body.trailers));
        continue;
      }
      if (this.#connectHead !== undefined && chunk[at] === prefaceStart[0]) {
        // Clients of gRPC tunnel HTTP/2 through a proxy. Its preface is told from a method by its first bytes.
        const end = Math.min(chunk.length, at + prefaceStart.length);
        const mayBeHttp2 = prefaceStart.compare(chunk, at, end, 0, end - at) === 0;
        if (mayBeHttp2 && end - at === prefaceStart.length) return this.#becomeHttp2().onData(chunk.subarray(at));
        if (mayBeHttp2) {
          this.#heldFirst = chunk.subarray(at);
          return;
        }
      }
      if (this.#connectHead !== undefined && chunk[at] === tlsHandshake) {
        const head = this.#connectHead;
        this.#connectHead = undefined;
        this.#begin(head);
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
      this.#connectHead = undefined;
      if (head.upgrade !== '') {
        if (this.#switchesToHttp2(head, settings)) return this.#beginHttp2(head, chunk.subarray(at));
        head.headers.remove('http2-settings');
      }
      if (head.method === 'CONNECT' && !settings.upgrades.has('connect') && !hasConnectRoute(settings, head)) {
        if (settings.direction !== 'outbound') return this.#refuse(violations.methodNotSupported);
        // An application that uses its sidecar as an HTTP proxy. Some clients tunnel plain HTTP through a proxy too: what comes through
        // the tunnel decides. Requests, of either version, are routed like any others, a TLS handshake makes it a tunnel to the service that was named.
        this.#output.text('HTTP/1.1 200 Connection established\r\n\r\n');
        this.#output.flush();
        head.target = '/';
        this.#connectHead = head;
        this.saidConnected = true;
        continue;
      }
      this.#begin(head);
    }
    this.#exchange?.onRequestFlush();
  }

  #begin(head: RequestHead): void {
    if (head.isChunked) this.#body.startChunked();
    else if (head.contentLength > 0) this.#body.startLength(head.contentLength);
    else this.#body.startNone();
    this.#requests++;
    const settings = this.#settings();
    this.#request = head;
    this.#sendsChunks = false;
    this.#output.isWritable = true;
    this.#keepsConnection = head.isPersistent && !this.#isLastRequest && !settings.context.overload.disablesKeepAlive;
    const next = new Exchange(this, settings, head);
    this.#exchange = next;
    next.start();
  }

  /** RFC 7540 section 3.2, which RFC 9113 has taken back: only where an upgrade_config of `h2c` asks for it. */
  #switchesToHttp2(head: RequestHead, settings: ConnectionSettings): boolean {
    return (
      settings.upgrades.has('h2c') &&
      head.upgrade.toLowerCase() === 'h2c' &&
      !settings.isTls &&
      !head.hasBody &&
      !head.isHttp10 &&
      head.headers.has('http2-settings') &&
      this.#requests === 0
    );
  }

  /** The request becomes stream 1 of an HTTP/2 connection, whose preface comes next. */
  #beginHttp2(head: RequestHead, rest: Buffer): void {
    this.#output.text('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n');
    this.#output.flush();
    const payload = Buffer.from(head.headers.get('http2-settings')!, 'base64url');
    head.headers.remove('http2-settings');
    head.upgrade = '';
    head.line = '';
    head.isHttp2 = true;
    const next = this.#becomeHttp2();
    next.adoptUpgrade(head, payload);
    if (rest.length > 0) next.onData(rest);
  }

  /** The connection goes on as one of HTTP/2, and this object has nothing more to do with it. */
  #becomeHttp2(): Http2Downstream {
    this.#isClosed = true;
    this.socket.off('data', this.#onChunk);
    const next = new Http2Downstream(this.socket, this.client, this.#settings);
    this.#switchTo(next);
    return next;
  }

  #wait(bytes: Buffer): void {
    this.#waiting = this.#waiting === undefined ? bytes : Buffer.concat([this.#waiting, bytes]);
    this.socket.pause();
  }

  /**
   * Ends the connection when its peer has had the chance to read what was written: half-closing first, since a reset, as an answer to
   * what the peer still sends, could destroy the last answer on its way (Envoy's delayed close; RFC 9112 section 9.6).
   */
  #closeAfterOutput(): void {
    this.#output.flush();
    if (this.#settings().delayedCloseTimeoutMs === 0) return this.socket.destroySoon();
    this.#isClosing = true;
    this.socket.end(() => {
      this.#flushedAt = coarseNow();
    });
    this.socket.resume();
  }

  /** Answers what is no request, and ends the connection: after a violation nothing on it can be trusted. */
  #refuse(violation: Violation): void {
    const { counters } = this.#settings().context;
    counters.countViolation(violation.reason);
    const body = `${violation.reason.replace(/^http1\./, '').replaceAll('_', ' ')}\n`;
    this.#output.text(
      `${statusLine(violation.status)}date: ${httpDate()}\r\ncontent-type: text/plain\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
    );
    this.#closeAfterOutput();
  }

  /**
   * A client that closes its side has gone, as far as HTTP/1.1 proxies are concerned (Envoy and nginx read it so too); in a tunnel it
   * has said all that it had to say.
   */
  #onEnd(): void {
    if (this.#isTunnel && this.#exchange !== undefined) this.#exchange.onTunnelEnd();
    else this.socket.destroy();
  }

  #closed(): void {
    this.#isClosed = true;
    this.#exchange?.onDownstreamClosed();
    this.#exchange = undefined;
  }
}

/** A route says where CONNECT requests for this host go: nothing has to be guessed from what comes through them. */
function hasConnectRoute(settings: ConnectionSettings, head: RequestHead): boolean {
  return settings.routeTable()?.findHost(head.authority)?.find(head) !== undefined;
}

/** The answer that agrees to an Upgrade; an upstream that speaks HTTP/2 has agreed with 200 and without a key (RFC 8441 section 5). */
function switchingText(request: RequestHead, head: ResponseHead, headerCase: HeaderCase): string {
  const { headers } = head;
  const key = request.headers.get('sec-websocket-key');
  if (head.status !== 101 && key !== undefined) headers.set('sec-websocket-accept', webSocketAccept(key));
  const line = head.status === 101 && head.line !== '' ? head.line : statusLine(101);
  return `${line}${headers.serialize(headerCase)}connection: upgrade\r\nupgrade: ${head.upgrade || request.upgrade}\r\n\r\n`;
}

/** RFC 6455 section 4.2.2. */
function webSocketAccept(key: string): string {
  return createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
}

const serviceTimeLines = Array.from({ length: 256 }, (_, ms) => `x-envoy-upstream-service-time: ${ms}\r\n`);

function serviceTimeLine(ms: number): string {
  return serviceTimeLines[ms] ?? `x-envoy-upstream-service-time: ${ms}\r\n`;
}
