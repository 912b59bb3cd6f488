import type net from 'node:net';
import { coarseNow, errorBoundary } from '@mizzen/common';
import { type ConnectionOwner, Http2ClientConnection, type ResponseHandler } from '../http2/client-connection.ts';
import { errorCodes, type Http2Violation } from '../http2/error-codes.ts';
import type { ByteWriter } from '../http2/frame-writer.ts';
import type { Http2Stream, StreamReset } from '../http2/stream.ts';
import { type Fields, noFields } from '../message/fields.ts';
import { pushSlice } from '../message/kept-slices.ts';
import type { RequestHead } from '../message/request-head.ts';
import type { ResponseHead } from '../message/response-head.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import { ReadBuffers } from '../net/read-buffers.ts';
import type { Cluster } from './cluster.ts';
import type { Endpoint } from './endpoint.ts';
import type { Introduction, ResponseReceiver, UpstreamFailure, UpstreamStream } from './upstream-stream.ts';

/** Requests wait in their streams when so much waits for the server to be verified. */
const heldLimitBytes = 64 * 1024;

const boundary = errorBoundary('http2.upstream');

/** One HTTP/2 connection to an endpoint, which serves many requests at once. */
export class Http2Upstream implements ByteWriter, ConnectionOwner {
  readonly endpoint: Endpoint;
  readonly cluster: Cluster;
  readonly http2: Http2ClientConnection;
  /** In the milliseconds of performance.now(), to a tenth of a second. */
  readonly openedAt: number;
  /** When its last stream ended, likewise. */
  idleSince: number;
  readonly #socket: net.Socket;
  #requests: number;
  #isReady: boolean;
  #connectTimer: NodeJS.Timeout | undefined;
  /** What was written before a TLS peer was verified. It must not leave before. */
  #held: Buffer[] | undefined;
  #heldBytes: number;
  /** Requests that have to know first whether the server takes extended CONNECT. */
  #waitingForSettings: Http2UpstreamStream[];
  #failure: UpstreamFailure['kind'];
  /** Which certificate is out of its time, where the connection has failed for that. */
  certificateProblem: string | undefined;

  constructor(cluster: Cluster, endpoint: Endpoint, client: ConnectionInfo | undefined) {
    const { connectTimeoutMs, http2 } = cluster.settings;
    this.endpoint = endpoint;
    this.cluster = cluster;
    this.openedAt = coarseNow();
    this.idleSince = this.openedAt;
    this.#requests = 0;
    this.#isReady = false;
    this.#held = endpoint.transport.isTls ? [] : undefined;
    this.#heldBytes = 0;
    this.#waitingForSettings = [];
    this.#failure = 'connect';
    this.certificateProblem = undefined;
    endpoint.connections++;
    const buffers = new ReadBuffers();
    // What streams hand on is copied by whoever needs it for longer: all connections may read into the same memory.
    this.#socket = endpoint.transport.connect(endpoint, 'http2', client, {
      buffer: () => buffers.next(),
      callback: (bytes, buffer) => {
        try {
          boundary.enter();
          buffers.begin();
          this.http2.read((buffer as Buffer).subarray(0, bytes));
          if (this.#waitingForSettings.length > 0 && this.http2.hasSettings) for (const stream of this.#waitingForSettings.splice(0)) stream.onSettled();
          return true;
        } catch (error) {
          boundary.caught(error);
          this.#socket.destroy();
          return true;
        }
      },
    });
    this.http2 = new Http2ClientConnection(http2, this, this);
    const fail = () => this.#socket.destroy();
    const late = () => {
      this.#failure = 'connectTimeout';
      this.http2.closed(`no connection within ${connectTimeoutMs} ms`);
    };
    this.#connectTimer = boundary.after(connectTimeoutMs, late, fail);
    const explain = (error: Error | undefined) => {
      if (!this.http2.hasSettings && !this.http2.isClosed) this.certificateProblem = endpoint.transport.certificateProblem(error, this.#socket);
    };
    const failed = (error: Error) => {
      explain(error);
      this.http2.closed(error.message || ((error as NodeJS.ErrnoException).code ?? 'failed'));
    };
    const closed = () => {
      explain(undefined);
      this.http2.closed('the connection was closed');
    };
    const ended = () => {
      explain(undefined);
      this.http2.closed('the peer closed the connection');
    };
    this.#socket.once(
      endpoint.transport.readyEvent,
      boundary.guard(() => this.#ready(), fail),
    );
    this.#socket.on(
      'drain',
      boundary.guard(() => this.http2.onWritable(), fail),
    );
    this.#socket.on('end', boundary.guard(ended, fail));
    this.#socket.on('error', boundary.guard(failed, fail));
    this.#socket.on('close', boundary.guard(closed, closed));
  }

  /** How many more requests it may be given now. */
  get freeStreams(): number {
    const { maxRequestsPerConnection } = this.cluster.settings;
    const free = this.http2.freeStreams;
    return maxRequestsPerConnection === 0 ? free : Math.min(free, maxRequestsPerConnection - this.#requests);
  }

  get streamCount(): number {
    return this.http2.streamCount;
  }

  /** The kind of failure that the end of the connection is to its streams. */
  get failureKind(): UpstreamFailure['kind'] {
    return this.#failure;
  }

  get hasServedOthers(): boolean {
    return this.#requests > 1;
  }

  /** A place on it for a request, which begins on it at once. */
  stream(): Http2UpstreamStream {
    this.#requests++;
    const { maxRequestsPerConnection } = this.cluster.settings;
    const isLast = this.endpoint.transport.isPerClient || (maxRequestsPerConnection > 0 && this.#requests >= maxRequestsPerConnection);
    return new Http2UpstreamStream(this, isLast);
  }

  /** Tells the stream when the server has said what it takes, or that it will not any more. */
  awaitSettings(stream: Http2UpstreamStream): void {
    if (this.http2.hasSettings) stream.onSettled();
    else this.#waitingForSettings.push(stream);
  }

  /** No more requests: it ends with those under way. */
  drain(): void {
    this.http2.drain();
  }

  sweep(now: number): void {
    this.http2.sweep(now);
  }

  // ---- where its bytes go ----

  get pendingBytes(): number {
    return this.#held === undefined ? this.#socket.writableLength : this.#heldBytes + 1;
  }

  get isFull(): boolean {
    return this.#held === undefined ? this.#socket.writableNeedDrain : this.#heldBytes > heldLimitBytes;
  }

  write(bytes: Buffer): void {
    if (this.#held === undefined) this.#socket.write(bytes);
    else {
      pushSlice(this.#held, bytes);
      this.#heldBytes += bytes.length;
    }
  }

  end(): void {
    this.#socket.end();
  }

  // ---- what becomes of it ----

  onViolation({ reason, streamId }: Http2Violation): void {
    if (streamId === 0) this.#failure = 'protocol';
    this.cluster.countViolation(reason);
  }

  onChange(): void {
    if (this.http2.streamCount === 0) this.idleSince = coarseNow();
    this.cluster.streamsFreed(this);
  }

  onEnd(reason: string): void {
    clearTimeout(this.#connectTimer);
    for (const stream of this.#waitingForSettings.splice(0)) stream.onStreamReset({ code: errorCodes.CANCEL, by: 'connection', reason });
    const { endpoint } = this;
    endpoint.connections--;
    const at = endpoint.http2.indexOf(this);
    if (at >= 0) endpoint.http2.splice(at, 1);
    // What was said last (GOAWAY) still goes out.
    if (this.#isReady) this.#socket.destroySoon();
    else this.#socket.destroy();
    this.cluster.connectionClosed(endpoint);
  }

  #ready(): void {
    clearTimeout(this.#connectTimer);
    this.#isReady = true;
    this.#failure = 'reset';
    const held = this.#held;
    if (held === undefined) return;
    this.#held = undefined;
    this.#socket.cork();
    for (const bytes of held) this.#socket.write(bytes);
    this.#socket.uncork();
    if (!this.#socket.writableNeedDrain) this.http2.onWritable();
  }
}

/** One request on an HTTP/2 connection. */
class Http2UpstreamStream implements UpstreamStream, ResponseHandler {
  readonly #upstream: Http2Upstream;
  /** The connection takes no request after this one. */
  readonly #isLast: boolean;
  #stream: Http2Stream | undefined;
  /** A request for a tunnel, until it is known whether the server takes it. */
  #waiting: { readonly head: RequestHead; readonly more: Fields } | undefined;
  #receiver: ResponseReceiver | undefined;
  #isPaused: boolean;
  #uncredited: number;
  #sawHead: boolean;
  #isTunnel: boolean;
  /** The end of the request, where it came before the stream could begin. */
  #isEnded: boolean;
  #remoteHasEnded: boolean;

  constructor(upstream: Http2Upstream, isLast: boolean) {
    this.#upstream = upstream;
    this.#isLast = isLast;
    this.#stream = undefined;
    this.#waiting = undefined;
    this.#receiver = undefined;
    this.#isPaused = false;
    this.#uncredited = 0;
    this.#sawHead = false;
    this.#isTunnel = false;
    this.#isEnded = false;
    this.#remoteHasEnded = false;
  }

  get isWritable(): boolean {
    return this.#stream?.isWritable ?? true;
  }

  get isHeadRequest(): boolean {
    return this.#receiver?.isHeadRequest === true;
  }

  begin(receiver: ResponseReceiver, head: RequestHead, introduction: Introduction | undefined): void {
    this.#receiver = receiver;
    const more = introduction?.fields ?? noFields;
    if (head.upgrade === '') return this.#open(head, more, !head.hasBody && receiver.isTunnelRequest === 'no');
    this.#waiting = { head, more };
    this.#upstream.awaitSettings(this);
  }

  /** The server has said whether it takes extended CONNECT. */
  onSettled(): void {
    const { head, more } = this.#waiting!;
    if (this.#receiver === undefined) return;
    if (this.#upstream.http2.takesExtendedConnect) return this.#open(head, more, false);
    this.#fail('protocol', `the server takes no ${head.upgrade} over HTTP/2 (RFC 8441)`);
  }

  #open(head: RequestHead, more: Fields, endsStream: boolean): void {
    const { transport } = this.#upstream.endpoint;
    this.#stream = this.#upstream.http2.request(head, transport.isTls && !transport.isMesh ? 'https' : 'http', more, endsStream, this);
    if (this.#isLast) this.#upstream.drain();
  }

  data(slice: Buffer): void {
    this.#stream?.data(slice);
  }

  end(trailers: Fields): void {
    // The end of the head of a request for a tunnel is not the end of what goes through it.
    if (this.#receiver?.isTunnelRequest === 'no') this.#stream?.end(trailers);
  }

  flushSoon(): void {}

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    const bytes = this.#uncredited;
    this.#uncredited = 0;
    this.#stream?.consumed(bytes);
  }

  abandon(): void {
    this.#receiver = undefined;
    const stream = this.#stream;
    // The last place of a connection, which no request has taken.
    if (stream === undefined && this.#isLast) this.#upstream.drain();
    // What we have said to the end still goes out where the peer has nothing more to say.
    if (stream !== undefined && !(this.#remoteHasEnded && this.#isEnded)) stream.reset(errorCodes.CANCEL);
  }

  endTunnel(): void {
    this.#isEnded = true;
    this.#stream?.end(noFields);
    if (this.#remoteHasEnded) this.#receiver?.onResponseEnd(noFields);
  }

  // ---- the answer ----

  onStreamInformational(head: ResponseHead): void {
    this.#receiver?.onInformational(head);
  }

  onStreamHead(head: ResponseHead, endsStream: boolean): void {
    const receiver = this.#receiver;
    if (receiver === undefined) return;
    this.#sawHead = true;
    this.#remoteHasEnded = endsStream;
    if (receiver.isTunnelRequest !== 'no' && head.status < 300) {
      this.#isTunnel = true;
      receiver.onTunnel(head);
    } else receiver.onResponseHead(head, !endsStream);
    if (endsStream) this.#finish(noFields);
    else this.#receiver?.onResponseFlush();
  }

  onStreamData(slice: Buffer): void {
    const receiver = this.#receiver;
    if (receiver === undefined) return void this.#stream!.consumed(slice.length);
    receiver.onResponseData(slice);
    receiver.onResponseFlush();
    if (this.#isPaused) this.#uncredited += slice.length;
    else this.#stream!.consumed(slice.length);
  }

  onStreamEnd(trailers: Fields): void {
    this.#remoteHasEnded = true;
    this.#finish(trailers);
  }

  onStreamDrain(): void {
    this.#receiver?.onUpstreamDrain();
  }

  onStreamReset({ code, by, reason }: StreamReset): void {
    if (by === 'connection') return this.#fail(this.#upstream.failureKind, reason);
    if (by === 'violation') return this.#fail('protocol', reason);
    if (code === errorCodes.REFUSED_STREAM) return this.#fail('refused', reason);
    this.#fail('reset', `the server reset the stream with code ${code}`);
  }

  #finish(trailers: Fields): void {
    const receiver = this.#receiver;
    if (receiver === undefined) return;
    if (this.#isTunnel) {
      receiver.onResponseEnd(noFields);
      return;
    }
    this.#receiver = undefined;
    const stream = this.#stream!;
    // Answered before the request was complete: nobody wants the rest.
    if (!stream.isLocalClosed) stream.reset(errorCodes.NO_ERROR);
    receiver.onResponseEnd(trailers);
    receiver.onResponseFlush();
  }

  #fail(kind: UpstreamFailure['kind'], detail: string): void {
    const receiver = this.#receiver;
    this.#receiver = undefined;
    const isOfConnection = kind === 'reset' && this.#upstream.http2.isClosed;
    const { certificateProblem } = this.#upstream;
    receiver?.onUpstreamFailure({
      ...{ kind, detail: certificateProblem ?? detail, certificateProblem },
      ...{ wasReused: isOfConnection && this.#upstream.hasServedOthers, beforeResponse: !this.#sawHead },
    });
  }
}
