import { randomBytes } from 'node:crypto';
import type net from 'node:net';
import { coarseNow, errorBoundary } from '@mizzen/common';
import { BodyReader, type BodySink } from '../http1/body-reader.ts';
import { HeadReader } from '../http1/head-reader.ts';
import { OutputBatch } from '../http1/output-batch.ts';
import { readResponseHead } from '../http1/read-response-head.ts';
import type { Violation } from '../http1/violation.ts';
import { type Fields, noFields } from '../message/fields.ts';
import type { HeadLimits } from '../message/head-limits.ts';
import { verifiedTarget } from '../message/header-bytes.ts';
import type { RequestHead } from '../message/request-head.ts';
import { ResponseHead } from '../message/response-head.ts';
import { fieldsOfLines, trailerLines } from '../message/trailer-lines.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import { ReadBuffers } from '../net/read-buffers.ts';
import type { Cluster } from './cluster.ts';
import type { Endpoint } from './endpoint.ts';
import type { Content } from './transport.ts';
import type { Introduction, ResponseReceiver, UpstreamFailure, UpstreamStream } from './upstream-stream.ts';

const heldLimitBytes = 64 * 1024;
/** Bodies of at least this length are read into a buffer of the connection's own; smaller ones travel as text. */
const longBodyBytes = 16 * 1024;

const boundary = errorBoundary('http1.upstream');

type State = 'idle' | 'head' | 'body' | 'tunnel' | 'closed';

/** One HTTP/1.1 connection to an endpoint: one request at a time, reused while both sides keep to the rules. */
export class Http1Upstream implements BodySink, UpstreamStream {
  readonly endpoint: Endpoint;
  readonly socket: net.Socket;
  readonly #output: OutputBatch;
  /** In the milliseconds of performance.now(), to a tenth of a second. */
  readonly openedAt: number;
  /** When it was last used, likewise. */
  idleSince: number;
  readonly #cluster: Cluster;
  #state: State;
  #receiver: ResponseReceiver | undefined;
  #requests: number;
  #isReady: boolean;
  #isPersistent: boolean;
  #requestIsComplete: boolean;
  #sawBytes: boolean;
  #announcesTunnel: boolean;
  #sendsChunks: boolean;
  readonly #limits: HeadLimits;
  readonly #heads: HeadReader;
  readonly #body: BodyReader;
  readonly #buffers: ReadBuffers;
  #connectTimer: NodeJS.Timeout | undefined;
  /** What was written before a TLS peer was verified. It must not leave before. */
  #held: (string | Buffer)[] | undefined;
  #heldBytes: number;

  constructor(cluster: Cluster, endpoint: Endpoint, content: Content, client: ConnectionInfo | undefined) {
    const { settings } = cluster;
    this.endpoint = endpoint;
    this.openedAt = coarseNow();
    this.idleSince = this.openedAt;
    this.#cluster = cluster;
    this.#state = 'idle';
    this.#receiver = undefined;
    this.#requests = 0;
    this.#isReady = false;
    this.#isPersistent = !endpoint.transport.isPerClient;
    this.#requestIsComplete = false;
    this.#sawBytes = false;
    this.#announcesTunnel = false;
    this.#limits = { maxHeadBytes: settings.maxResponseHeadBytes, maxHeaderCount: settings.maxHeaderCount, maxTargetBytes: 0, underscores: 'allow' };
    this.#heads = new HeadReader(this.#limits);
    this.#body = new BodyReader('response');
    this.#buffers = new ReadBuffers();
    this.#output = new OutputBatch(this);
    this.#sendsChunks = false;
    this.#held = endpoint.transport.isTls ? [] : undefined;
    this.#heldBytes = 0;
    endpoint.connections++;
    this.socket = endpoint.transport.connect(endpoint, content, client, {
      buffer: () => this.#buffers.next(),
      callback: (bytes, buffer) => {
        try {
          boundary.enter();
          return this.#onRead(bytes, buffer as Buffer);
        } catch (error) {
          boundary.caught(error);
          this.socket.destroy();
          return true;
        }
      },
    });
    const timeoutMs = settings.connectTimeoutMs;
    const fail = () => this.socket.destroy();
    this.#connectTimer = boundary.after(timeoutMs, () => this.#fail('connectTimeout', `no connection within ${timeoutMs} ms`), fail);
    const ready = () => {
      this.#isReady = true;
      clearTimeout(this.#connectTimer);
      this.#connectTimer = undefined;
      if (this.#announcesTunnel) this.#receiver?.onTunnel(undefined);
      this.#release();
    };
    const failed = (error: Error) =>
      this.#fail(this.#isReady ? 'reset' : 'connect', error.message || ((error as NodeJS.ErrnoException).code ?? 'failed'), error);
    // The last event of a socket: were it lost, its request would wait for ever.
    const closed = () => this.#fail(this.#isReady ? 'reset' : 'connect', 'the connection was closed');
    this.socket.once(endpoint.transport.readyEvent, boundary.guard(ready, fail));
    this.socket.on(
      'drain',
      boundary.guard(() => this.#drained(), fail),
    );
    this.socket.on(
      'end',
      boundary.guard(() => this.#onEnd(), fail),
    );
    this.socket.on('error', boundary.guard(failed, fail));
    this.socket.on('close', boundary.guard(closed, closed));
  }

  /** Bytes that were written and that the kernel has not taken yet. */
  get pendingBytes(): number {
    return this.#held === undefined ? this.socket.writableLength : this.#heldBytes + 1;
  }

  get isWritable(): boolean {
    return this.#output.isWritable;
  }

  begin(receiver: ResponseReceiver, head: RequestHead, introduction: Introduction | undefined): void {
    this.#receiver = receiver;
    this.#state = 'head';
    this.#requests++;
    this.#requestIsComplete = false;
    this.#sawBytes = false;
    this.#sendsChunks = head.isChunked;
    const output = this.#output;
    output.isWritable = true;
    output.text(head.line !== '' ? head.line : `${head.method} ${verifiedTarget(head.method === 'CONNECT' ? head.authority : head.target)} HTTP/1.1\r\n`);
    output.text(head.headers.serialize(this.#cluster.settings.headerCase));
    if (receiver.isTunnelRequest === 'upgrade') output.text(upgradeLines(head));
    if (introduction !== undefined) output.text(introduction.text);
    output.text(head.isChunked ? 'transfer-encoding: chunked\r\n\r\n' : '\r\n');
  }

  /** Gives the connection to a tunnel: no message is sent or expected; the receiver is told when bytes can go through. */
  beginTunnel(receiver: ResponseReceiver): void {
    this.#receiver = receiver;
    this.#state = 'tunnel';
    this.#isPersistent = false;
    this.#buffers.beginLongBody();
    this.#sendsChunks = false;
    this.#output.isWritable = true;
    this.#announcesTunnel = true;
  }

  /** Writes a latin1 text or a buffer. Returns false when the writer should wait for `onUpstreamDrain`. */
  write(data: string | Buffer): boolean {
    if (this.#held !== undefined) {
      this.#held.push(data);
      this.#heldBytes += data.length;
      return this.#heldBytes < heldLimitBytes;
    }
    return typeof data === 'string' ? this.socket.write(data, 'latin1') : this.socket.write(data);
  }

  writeFailed(): void {
    this.socket.destroy();
  }

  data(slice: Buffer): void {
    if (this.#sendsChunks) this.#output.chunk(slice);
    else this.#output.bytes(slice);
  }

  /** The whole request has been written. A connection whose response ended before its request cannot be used again. */
  end(trailers: Fields): void {
    if (this.#sendsChunks) this.#output.text(`0\r\n${trailerLines(trailers)}\r\n`);
    this.#requestIsComplete = true;
    this.#output.flushSoon();
  }

  flushSoon(): void {
    this.#output.flushSoon();
  }

  pause(): void {
    this.socket.pause();
  }

  resume(): void {
    this.socket.resume();
  }

  endTunnel(): void {
    this.#output.flush();
    this.socket.end();
  }

  /** The request is given up: nothing more is handed to its receiver, and the connection ends. */
  abandon(): void {
    this.#receiver = undefined;
    this.close();
  }

  close(): void {
    if (this.#state === 'closed') return;
    this.#leave();
    this.socket.destroy();
  }

  onBodyData(slice: Buffer): void {
    this.#receiver?.onResponseData(slice);
  }

  #drained(): void {
    this.#output.isWritable = true;
    this.#receiver?.onUpstreamDrain();
  }

  #release(): void {
    const held = this.#held;
    if (held === undefined) return;
    this.#held = undefined;
    this.socket.cork();
    for (const data of held) this.write(data);
    this.socket.uncork();
    if (this.#heldBytes >= heldLimitBytes && !this.socket.writableNeedDrain) this.#drained();
  }

  #onRead(bytes: number, buffer: Buffer): boolean {
    if (this.#buffers.hasKept && this.#receiver?.pendingResponseBytes === 0) this.#buffers.release();
    this.#buffers.begin();
    this.#onData(bytes === buffer.length ? buffer : buffer.subarray(0, bytes), this.#buffers.isOwn(buffer));
    return true;
  }

  /** `mayBeKept`: whoever needs a slice of the chunk for longer may keep it, instead of copying. */
  #onData(chunk: Buffer, mayBeKept: boolean): void {
    let at = 0;
    const receiver = this.#receiver;
    while (at < chunk.length) {
      if (this.#state === 'idle' || this.#state === 'closed') return this.close(); // bytes that nobody asked for
      this.#sawBytes = true;
      if (this.#state === 'head') {
        const found = this.#heads.read(chunk, at);
        if (found === false) return;
        if (found !== true) return this.#violate(found);
        at = this.#heads.bodyStart;
        const head = readResponseHead(this.#heads.text, this.#limits);
        if (!(head instanceof ResponseHead)) return this.#violate(head);
        if (this.#switchesProtocol(head, receiver!)) {
          if (this.#receiver !== receiver) return;
          continue;
        }
        if (head.status < 200) {
          if (head.status === 101 || head.status < 100) return this.#violate({ reason: 'http1.unexpected_switch', status: 502 });
          receiver!.onInformational(head);
          continue;
        }
        this.#startBody(head, receiver!);
        // The receiver may have given up on this response (a retry, a client that is gone).
        if (this.#receiver !== receiver) return;
      } else if (this.#state === 'tunnel') {
        receiver!.onResponseData(borrowed(chunk.subarray(at), mayBeKept));
        at = chunk.length;
      } else {
        // A long slice would be kept by a slow peer's socket; what cannot be kept is copied.
        const next = this.#body.read(mayBeKept || chunk.length - at < longBodyBytes ? chunk : Buffer.from(chunk), at, this);
        if (this.#receiver !== receiver) return;
        if (typeof next !== 'number') return this.#violate(next);
        at = next;
      }
      if (this.#state === 'body' && this.#body.isDone) this.#finish(at < chunk.length);
    }
    receiver?.onResponseFlush();
  }

  /** An answer that agrees to a tunnel (RFC 9110 sections 7.8 and 9.3.6). */
  #switchesProtocol(head: ResponseHead, receiver: ResponseReceiver): boolean {
    const wanted = receiver.isTunnelRequest;
    if (wanted === 'no') return false;
    if (wanted === 'upgrade' ? head.status !== 101 : head.status < 200 || head.status > 299) return false;
    this.#state = 'tunnel';
    this.#isPersistent = false;
    this.#sendsChunks = false;
    this.#buffers.beginLongBody();
    receiver.onTunnel(head);
    return true;
  }

  #startBody(head: ResponseHead, receiver: ResponseReceiver): void {
    this.#state = 'body';
    const { status } = head;
    if (receiver.isHeadRequest || status === 204 || status === 304) {
      this.#body.startNone();
      if (status === 204) head.headers.remove('content-length');
    } else if (head.isChunked) this.#body.startChunked();
    else if (head.contentLength >= 0) this.#body.startLength(head.contentLength);
    else {
      this.#body.startUntilClose();
      head.keepAlive = false;
    }
    if (!this.#body.isDone && (head.contentLength < 0 || head.contentLength >= longBodyBytes)) this.#buffers.beginLongBody();
    if (!head.isPersistent) this.#isPersistent = false;
    receiver.onResponseHead(head, !this.#body.isDone);
  }

  /** `hasMoreBytes`: the peer has sent something that nobody has asked for. */
  #finish(hasMoreBytes: boolean): void {
    const receiver = this.#receiver!;
    const trailers = fieldsOfLines(this.#body.trailers);
    const { maxRequestsPerConnection } = this.#cluster.settings;
    this.#receiver = undefined;
    this.#buffers.endLongBody();
    const isReusable =
      this.#isPersistent &&
      this.#requestIsComplete &&
      !hasMoreBytes &&
      !this.endpoint.isRemoved &&
      (maxRequestsPerConnection === 0 || this.#requests < maxRequestsPerConnection) &&
      !this.socket.destroyed;
    if (isReusable) {
      this.#state = 'idle';
      this.idleSince = coarseNow();
      if (this.socket.isPaused()) this.socket.resume();
      receiver.onResponseEnd(trailers);
      // A receiver that failed at the end has closed the connection.
      if (this.#state === 'idle') this.#cluster.release(this);
    } else {
      receiver.onResponseEnd(trailers);
      this.close();
    }
  }

  /** The peer has closed its side: the end of a body that lasts until then, or of a tunnel's one direction; otherwise a failure. */
  #onEnd(): void {
    if (this.#state === 'tunnel') return this.#receiver?.onResponseEnd(noFields);
    if (this.#state === 'body' && this.#body.end()) {
      const receiver = this.#receiver;
      this.#finish(false);
      receiver?.onResponseFlush();
    } else this.#fail('reset', 'the peer closed the connection');
  }

  #violate(violation: Violation): void {
    this.#cluster.countViolation(violation.reason);
    this.#fail('protocol', violation.reason);
  }

  #fail(kind: UpstreamFailure['kind'], detail: string, error?: Error): void {
    if (this.#state === 'closed') return;
    const receiver = this.#receiver;
    const isNew = this.#requests <= 1 && !this.#sawBytes && (kind === 'connect' || kind === 'reset');
    const certificateProblem = isNew && receiver !== undefined ? this.endpoint.transport.certificateProblem(error, this.socket) : undefined;
    this.#receiver = undefined;
    this.#leave();
    this.socket.destroy();
    receiver?.onUpstreamFailure({
      ...{ kind, detail: certificateProblem ?? detail, certificateProblem },
      ...{ wasReused: this.#requests > 1, beforeResponse: !this.#sawBytes },
    });
  }

  #leave(): void {
    this.#state = 'closed';
    clearTimeout(this.#connectTimer);
    this.#buffers.endLongBody();
    this.endpoint.connections--;
    const at = this.endpoint.idle.indexOf(this);
    if (at >= 0) this.endpoint.idle.splice(at, 1);
    this.#cluster.connectionClosed(this.endpoint);
  }
}

/** RFC 8441 leaves the key of RFC 6455 out; a server of HTTP/1.1 wants one. */
function upgradeLines(head: RequestHead): string {
  const lines = `connection: upgrade\r\nupgrade: ${head.upgrade}\r\n`;
  if (!head.isHttp2 || head.upgrade.toLowerCase() !== 'websocket' || head.headers.has('sec-websocket-key')) return lines;
  return `${lines}sec-websocket-key: ${randomBytes(16).toString('base64')}\r\n`;
}

function borrowed(slice: Buffer, mayBeKept: boolean): Buffer {
  return mayBeKept ? slice : Buffer.from(slice);
}
