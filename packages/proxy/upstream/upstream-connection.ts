import type net from 'node:net';
import { coarseNow } from '@mizzen/common';
import { BodyReader, type BodySink } from '../http1/body-reader.ts';
import { defaultHeadLimits, type HeadLimits } from '../http1/head-limits.ts';
import { HeadReader } from '../http1/head-reader.ts';
import { OutputBatch } from '../http1/output-batch.ts';
import { ResponseHead, readResponseHead } from '../http1/response-head.ts';
import type { Violation } from '../http1/violation.ts';
import type { Endpoint } from './endpoint.ts';

/** Who sent a request on an upstream connection and receives what comes back. */
export interface ResponseReceiver {
  /** HEAD: the answer has no body whatever its head says. */
  readonly isHeadRequest: boolean;
  onInformational(head: ResponseHead): void;
  onResponseHead(head: ResponseHead, hasBody: boolean): void;
  onResponseData(slice: Buffer): void;
  /** `trailers` are field lines with their CRLFs, usually ''. The connection may already serve somebody else when this returns. */
  onResponseEnd(trailers: string): void;
  /** Everything that one read of the socket brought has been handed over. */
  onResponseFlush(): void;
  onUpstreamDrain(): void;
  onUpstreamFailure(failure: UpstreamFailure): void;
}

export interface UpstreamFailure {
  readonly kind: 'connect' | 'connectTimeout' | 'reset' | 'protocol';
  readonly detail: string;
  /** The connection had served a request before: the peer may have closed it before it saw this one. */
  readonly wasReused: boolean;
  /** The peer has answered nothing of this request yet. */
  readonly beforeResponse: boolean;
}

const heldLimitBytes = 64 * 1024;

type State = 'idle' | 'head' | 'body' | 'closed';

/** One HTTP/1.1 connection to an endpoint: one request at a time, reused while both sides keep to the rules. */
export class UpstreamConnection implements BodySink {
  readonly endpoint: Endpoint;
  readonly socket: net.Socket;
  readonly output: OutputBatch;
  /** When it was last used, in the milliseconds of performance.now(), to a tenth of a second. */
  idleSince: number;
  #state: State;
  #receiver: ResponseReceiver | undefined;
  #requests: number;
  #isReady: boolean;
  #isPersistent: boolean;
  #requestIsComplete: boolean;
  #sawBytes: boolean;
  readonly #maxRequests: number;
  readonly #limits: HeadLimits;
  readonly #heads: HeadReader;
  readonly #body: BodyReader;
  #connectTimer: NodeJS.Timeout | undefined;
  /** What was written before a TLS peer was verified. It must not leave before. */
  #held: (string | Buffer)[] | undefined;
  #heldBytes: number;

  constructor(endpoint: Endpoint, connectTimeoutMs: number, maxRequests: number, limits: HeadLimits = defaultHeadLimits) {
    this.endpoint = endpoint;
    this.idleSince = 0;
    this.#state = 'idle';
    this.#receiver = undefined;
    this.#requests = 0;
    this.#isReady = false;
    this.#isPersistent = true;
    this.#requestIsComplete = false;
    this.#sawBytes = false;
    this.#maxRequests = maxRequests;
    this.#limits = limits;
    this.#heads = new HeadReader(limits);
    this.#body = new BodyReader();
    this.output = new OutputBatch(this);
    this.#held = endpoint.transport.isTls ? [] : undefined;
    this.#heldBytes = 0;
    endpoint.connections++;
    this.socket = endpoint.transport.connect(endpoint.address, endpoint.port);
    this.#connectTimer = setTimeout(() => this.#fail('connectTimeout', `no connection within ${connectTimeoutMs} ms`), connectTimeoutMs);
    this.socket.once(endpoint.transport.readyEvent, () => {
      this.#isReady = true;
      clearTimeout(this.#connectTimer);
      this.#connectTimer = undefined;
      this.#release();
    });
    this.socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    this.socket.on('drain', () => this.#receiver?.onUpstreamDrain());
    this.socket.on('end', () => this.#onEnd());
    this.socket.on('error', (error) => this.#fail(this.#isReady ? 'reset' : 'connect', error.message || ((error as NodeJS.ErrnoException).code ?? 'failed')));
    this.socket.on('close', () => this.#fail(this.#isReady ? 'reset' : 'connect', 'the connection was closed'));
  }

  /** Gives the connection to a request. Its bytes are then written to `socket`; nothing waits for the connection to be ready. */
  begin(receiver: ResponseReceiver): void {
    this.#receiver = receiver;
    this.#state = 'head';
    this.#requests++;
    this.#requestIsComplete = false;
    this.#sawBytes = false;
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

  /** The whole request has been written. A connection whose response ended before its request cannot be used again. */
  requestComplete(): void {
    this.#requestIsComplete = true;
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

  #release(): void {
    const held = this.#held;
    if (held === undefined) return;
    this.#held = undefined;
    this.socket.cork();
    for (const data of held) this.write(data);
    this.socket.uncork();
    if (this.#heldBytes >= heldLimitBytes && !this.socket.writableNeedDrain) this.#receiver?.onUpstreamDrain();
  }

  #onData(chunk: Buffer): void {
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
        if (head.status < 200) {
          if (head.status === 101 || head.status < 100) return this.#violate({ reason: 'http1.unexpected_switch', status: 502 });
          receiver!.onInformational(head);
          continue;
        }
        this.#startBody(head, receiver!);
        // The receiver may have given up on this response (a retry, a client that is gone).
        if (this.#receiver !== receiver) return;
      } else {
        const next = this.#body.read(chunk, at, this);
        if (this.#receiver !== receiver) return;
        if (typeof next !== 'number') return this.#violate(next);
        at = next;
      }
      if (this.#state === 'body' && this.#body.isDone) this.#finish();
    }
    receiver?.onResponseFlush();
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
    if (!head.isPersistent) this.#isPersistent = false;
    receiver.onResponseHead(head, !this.#body.isDone);
  }

  #finish(): void {
    const receiver = this.#receiver!;
    const { trailers } = this.#body;
    this.#receiver = undefined;
    const isReusable =
      this.#isPersistent &&
      this.#requestIsComplete &&
      !this.endpoint.isRemoved &&
      (this.#maxRequests === 0 || this.#requests < this.#maxRequests) &&
      !this.socket.destroyed;
    if (isReusable) {
      this.#state = 'idle';
      this.idleSince = coarseNow();
      if (this.socket.isPaused()) this.socket.resume();
      this.endpoint.idle.push(this);
      receiver.onResponseEnd(trailers);
    } else {
      receiver.onResponseEnd(trailers);
      this.close();
    }
  }

  /** The peer has closed its side: the end of a body that lasts until then, otherwise a failure. */
  #onEnd(): void {
    if (this.#state === 'body' && this.#body.end()) {
      const receiver = this.#receiver;
      this.#finish();
      receiver?.onResponseFlush();
    } else this.#fail('reset', 'the peer closed the connection');
  }

  #violate(violation: Violation): void {
    this.#fail('protocol', violation.reason);
  }

  #fail(kind: UpstreamFailure['kind'], detail: string): void {
    if (this.#state === 'closed') return;
    const receiver = this.#receiver;
    this.#receiver = undefined;
    this.#leave();
    this.socket.destroy();
    receiver?.onUpstreamFailure({ kind, detail, wasReused: this.#requests > 1, beforeResponse: !this.#sawBytes });
  }

  #leave(): void {
    this.#state = 'closed';
    clearTimeout(this.#connectTimer);
    this.endpoint.connections--;
    const at = this.endpoint.idle.indexOf(this);
    if (at >= 0) this.endpoint.idle.splice(at, 1);
  }
}
