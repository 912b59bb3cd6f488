import { errorBoundary, patientTimeout } from '@mizzen/common';
import { type Fields, noFields } from '../message/fields.ts';
import { KeptSlices } from '../message/kept-slices.ts';
import { RequestHead } from '../message/request-head.ts';
import type { ResponseHead } from '../message/response-head.ts';
import type { Cluster } from './cluster.ts';
import type { ResponseReceiver, UpstreamFailure, UpstreamStream } from './upstream-stream.ts';

const boundary = errorBoundary('own-request');

/** A request of the proxy's own, to a service that it needs itself. */
export interface OwnRequest {
  readonly method: string;
  readonly path: string;
  readonly authority: string;
  /** Names in lower case; neither host nor content-length. */
  readonly fields: Fields;
  readonly body: Buffer;
  readonly timeoutMs: number;
  readonly maxAnswerBytes: number;
}

export interface OwnAnswer {
  readonly head: ResponseHead;
  readonly body: Buffer;
  readonly trailers: Fields;
}

/** Why there is no answer, for people and for metrics. */
export interface NoAnswer {
  readonly reason: 'no_endpoint' | 'not_ready' | 'overflow' | 'timeout' | 'connect' | 'reset' | 'protocol' | 'too_large';
  readonly detail: string;
}

/**
 * Sends a request over a cluster's pool and gives its whole answer to `done`, once. A connection that its peer had closed before it could see
 * the request is not the peer's answer: the request is sent again on a new one. Returns how to give it up.
 */
export function sendOwnRequest(cluster: Cluster, request: OwnRequest, done: (answer: OwnAnswer | NoAnswer) => void): () => void {
  const exchange = new OwnExchange(cluster, request, done);
  exchange.start();
  return () => exchange.cancel();
}

class OwnExchange implements ResponseReceiver {
  readonly isHeadRequest: boolean;
  readonly isTunnelRequest = 'no';
  readonly pendingResponseBytes = 0;
  readonly #cluster: Cluster;
  readonly #request: OwnRequest;
  readonly #done: (answer: OwnAnswer | NoAnswer) => void;
  #upstream: UpstreamStream | undefined;
  #head: ResponseHead | undefined;
  #slices: KeptSlices;
  #bytes: number;
  #stopWaiting: (() => void) | undefined;
  #isOver: boolean;
  #retries: number;
  #activeOn: { activeRequests: number } | undefined;

  constructor(cluster: Cluster, request: OwnRequest, done: (answer: OwnAnswer | NoAnswer) => void) {
    this.isHeadRequest = request.method === 'HEAD';
    this.#cluster = cluster;
    this.#request = request;
    this.#done = done;
    this.#upstream = undefined;
    this.#head = undefined;
    this.#slices = new KeptSlices();
    this.#bytes = 0;
    this.#stopWaiting = undefined;
    this.#isOver = false;
    this.#retries = 0;
    this.#activeOn = undefined;
  }

  start(): void {
    const { timeoutMs } = this.#request;
    if (timeoutMs > 0) this.#stopWaiting = patientTimeout(boundary, timeoutMs, () => this.#fail('timeout', `no answer within ${timeoutMs} ms`), this.#broken);
    this.#guarded(() => this.#attempt());
  }

  cancel(): void {
    this.#end();
  }

  /** A step of this exchange. Its exception ends this exchange alone, although the connection may be shared, and its caller gets an answer. */
  #guarded(step: () => void): void {
    if (!boundary.run(step)) this.#broken();
  }

  readonly #broken = (): void => {
    boundary.run(() => this.#fail('reset', 'internal error'));
  };

  #attempt(): void {
    const cluster = this.#cluster;
    const endpoint = cluster.pick();
    if (endpoint === undefined) return this.#fail('no_endpoint', 'no healthy endpoint');
    const { notReadyReason } = endpoint.transport;
    if (notReadyReason !== undefined) return this.#fail('not_ready', notReadyReason);
    const upstream = cluster.connectAside(endpoint, undefined, false);
    if (upstream === undefined) return this.#fail('overflow', 'the limit of connections is reached');
    this.#upstream = upstream;
    cluster.counters.upstreamRqTotal++;
    cluster.activeRequests++;
    endpoint.activeRequests++;
    this.#activeOn = endpoint;
    const { body } = this.#request;
    upstream.begin(this, headOf(this.#request), undefined);
    if (body.length > 0) upstream.data(body);
    upstream.end(noFields);
    upstream.flushSoon();
  }

  onInformational(): void {}
  onTunnel(): void {}
  onResponseFlush(): void {}
  onUpstreamDrain(): void {}

  onResponseHead(head: ResponseHead): void {
    this.#head = head;
  }

  onResponseData(slice: Buffer): void {
    this.#guarded(() => this.#received(slice));
  }

  #received(slice: Buffer): void {
    if (this.#isOver) return;
    this.#bytes += slice.length;
    if (this.#bytes > this.#request.maxAnswerBytes) return this.#fail('too_large', `the answer is larger than ${this.#request.maxAnswerBytes} bytes`);
    this.#slices.push(Buffer.from(slice));
  }

  onResponseEnd(trailers: Fields): void {
    this.#guarded(() => this.#answered(trailers));
  }

  #answered(trailers: Fields): void {
    this.#leave();
    this.#upstream = undefined;
    if (this.#isOver) return;
    const head = this.#head!;
    const body = this.#slices.slices.length === 1 ? this.#slices.slices[0]! : Buffer.concat(this.#slices.slices);
    this.#end();
    this.#done({ head, body, trailers });
  }

  onUpstreamFailure(failure: UpstreamFailure): void {
    this.#guarded(() => this.#failed(failure));
  }

  #failed(failure: UpstreamFailure): void {
    this.#leave();
    this.#upstream = undefined;
    if (this.#isOver) return;
    if (failure.beforeResponse && (failure.kind === 'refused' || (failure.wasReused && failure.kind === 'reset')) && this.#retries++ < 3) {
      this.#slices = new KeptSlices();
      this.#bytes = 0;
      return this.#attempt();
    }
    this.#fail(
      failure.kind === 'connect' || failure.kind === 'connectTimeout' ? 'connect' : failure.kind === 'protocol' ? 'protocol' : 'reset',
      failure.detail,
    );
  }

  #fail(reason: NoAnswer['reason'], detail: string): void {
    if (this.#isOver) return;
    this.#end();
    this.#done({ reason, detail });
  }

  #leave(): void {
    if (this.#activeOn === undefined) return;
    this.#cluster.activeRequests--;
    this.#activeOn.activeRequests--;
    this.#activeOn = undefined;
  }

  #end(): void {
    this.#isOver = true;
    this.#stopWaiting?.();
    const upstream = this.#upstream;
    this.#upstream = undefined;
    if (upstream !== undefined) {
      this.#leave();
      upstream.abandon();
    }
  }
}

function headOf(request: OwnRequest): RequestHead {
  const head = new RequestHead();
  head.method = request.method;
  head.target = request.path;
  head.authority = request.authority;
  head.headers.add('host', request.authority);
  for (const [name, value] of request.fields) head.headers.add(name, value);
  if (request.body.length > 0 || request.method === 'POST' || request.method === 'PUT') {
    head.contentLength = request.body.length;
    head.headers.add('content-length', String(request.body.length));
  }
  return head;
}
