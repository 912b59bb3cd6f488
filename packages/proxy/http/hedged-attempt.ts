import type { Fields } from '../message/fields.ts';
import type { ResponseHead } from '../message/response-head.ts';
import type { Cluster } from '../upstream/cluster.ts';
import type { Endpoint } from '../upstream/endpoint.ts';
import type { ResponseReceiver, UpstreamFailure, UpstreamStream } from '../upstream/upstream-stream.ts';

/** Whom an attempt tells of what comes. */
export interface HedgingExchange extends ResponseReceiver {
  /** A parked attempt has an answer: whether it is taken. When it is, this attempt is the exchange's current one from now on. */
  takesAnswerOf(attempt: HedgedAttempt, head: ResponseHead): boolean;
  /** A parked attempt is over without an answer that was taken. */
  parkedEnded(attempt: HedgedAttempt): void;
}

/**
 * One of several tries of a request that may run beside each other (route_components.proto `HedgePolicy`). The current one is passed through to its exchange;
 * one that is parked, since it took too long, waits for its answer, and has it taken if it is the first good one.
 */
export class HedgedAttempt implements ResponseReceiver {
  readonly cluster: Cluster;
  readonly endpoint: Endpoint;
  readonly upstream: UpstreamStream;
  readonly #exchange: HedgingExchange;
  #state: 'current' | 'parked' | 'over';

  constructor(exchange: HedgingExchange, cluster: Cluster, endpoint: Endpoint, upstream: UpstreamStream) {
    this.#exchange = exchange;
    this.cluster = cluster;
    this.endpoint = endpoint;
    this.upstream = upstream;
    this.#state = 'current';
  }

  get isHeadRequest(): boolean {
    return this.#exchange.isHeadRequest;
  }
  get pendingResponseBytes(): number {
    return this.#state === 'current' ? this.#exchange.pendingResponseBytes : 0;
  }
  get isTunnelRequest(): 'no' | 'upgrade' | 'connect' {
    return this.#exchange.isTunnelRequest;
  }

  /** Another try runs beside it from now on. */
  park(): void {
    this.#state = 'parked';
  }

  /** Not wanted any more. */
  abandon(): void {
    if (this.#state !== 'parked') return;
    this.#end();
    this.upstream.abandon();
  }

  onInformational(head: ResponseHead): void {
    if (this.#state === 'current') this.#exchange.onInformational(head);
  }

  onResponseHead(head: ResponseHead, hasBody: boolean): void {
    if (this.#state === 'current') return this.#exchange.onResponseHead(head, hasBody);
    if (this.#state !== 'parked') return;
    if (this.#exchange.takesAnswerOf(this, head)) {
      this.#state = 'current';
      this.#exchange.onResponseHead(head, hasBody);
    } else {
      this.#end();
      this.upstream.abandon();
      this.#exchange.parkedEnded(this);
    }
  }

  onResponseData(slice: Buffer): void {
    if (this.#state === 'current') this.#exchange.onResponseData(slice);
  }
  onTunnel(head: ResponseHead | undefined): void {
    if (this.#state === 'current') this.#exchange.onTunnel(head);
  }
  onResponseEnd(trailers: Fields): void {
    if (this.#state === 'current') this.#exchange.onResponseEnd(trailers);
  }
  onResponseFlush(): void {
    if (this.#state === 'current') this.#exchange.onResponseFlush();
  }
  onUpstreamDrain(): void {
    if (this.#state === 'current') this.#exchange.onUpstreamDrain();
  }

  onUpstreamFailure(failure: UpstreamFailure): void {
    if (this.#state === 'current') return this.#exchange.onUpstreamFailure(failure);
    if (this.#state !== 'parked') return;
    this.#end();
    this.endpoint.outlier?.onLocalFailure(503);
    this.#exchange.parkedEnded(this);
  }

  #end(): void {
    this.#state = 'over';
    this.cluster.activeRequests--;
    this.endpoint.activeRequests--;
  }
}
