import type net from 'node:net';
import { errorBoundary } from '@mizzen/common';
import { type Fields, noFields } from '../message/fields.ts';
import { RequestHead } from '../message/request-head.ts';
import type { ResponseHead } from '../message/response-head.ts';
import type { Cluster } from './cluster.ts';
import type { Endpoint } from './endpoint.ts';
import { healthRequest, servingStatus } from './grpc-health-messages.ts';
import type { ResponseReceiver, UpstreamFailure, UpstreamStream } from './upstream-stream.ts';

const boundary = errorBoundary('health-check');

/** One active health check (core health_check.proto `HealthCheck`). */
export interface HealthCheck {
  readonly intervalMs: number;
  readonly timeoutMs: number;
  /** Failures in a row that make an endpoint unhealthy; a wrong answer of HTTP does so at once, as in Envoy. */
  readonly unhealthyThreshold: number;
  /** Successes in a row that make it healthy again. */
  readonly healthyThreshold: number;
  readonly kind:
    | { readonly name: 'tcp' }
    | { readonly name: 'http'; readonly host: string; readonly path: string; readonly method: string; readonly expects: (status: number) => boolean }
    | { readonly name: 'grpc'; readonly authority: string; readonly service: string };
}

/** What is known of one endpoint. */
interface Checked {
  nextAt: number;
  underWay: Check | undefined;
  failures: number;
  successes: number;
}

/** Sweeps come every quarter of a second, unless the event loop is late. */
const lateSweepMs = 500;

/**
 * Asks the endpoints of a cluster whether they are well, by the connections that requests go by. It has no timers: the sweep of the engine
 * drives it. An endpoint takes requests until a check has failed (Envoy: not before one has succeeded).
 */
export class HealthChecker {
  readonly #cluster: Cluster;
  readonly #check: HealthCheck;
  readonly #random: () => number;
  readonly #endpoints: Map<Endpoint, Checked>;
  #sweptAt: number;

  constructor(cluster: Cluster, check: HealthCheck, random: () => number) {
    this.#cluster = cluster;
    this.#check = check;
    this.#random = random;
    this.#endpoints = new Map();
    this.#sweptAt = Number.POSITIVE_INFINITY;
  }

  /** `now` in the milliseconds of performance.now(). */
  sweep(now: number): void {
    const { endpoints } = this.#cluster;
    // While the event loop was late no response could be read.
    const lateMs = now - this.#sweptAt;
    this.#sweptAt = now;
    if (lateMs > lateSweepMs) for (const { underWay } of this.#endpoints.values()) if (underWay !== undefined) underWay.startedAt += lateMs;
    for (const endpoint of endpoints) {
      let checked = this.#endpoints.get(endpoint);
      if (checked === undefined) {
        checked = { nextAt: now, underWay: undefined, failures: 0, successes: 0 };
        this.#endpoints.set(endpoint, checked);
      }
      if (checked.underWay !== undefined) {
        if (now - checked.underWay.startedAt > this.#check.timeoutMs) checked.underWay.end(`no answer within ${this.#check.timeoutMs} ms`);
      } else if (now >= checked.nextAt) this.#start(endpoint, checked, now);
    }
    if (this.#endpoints.size > endpoints.length)
      for (const [endpoint, checked] of this.#endpoints)
        if (!endpoints.includes(endpoint)) {
          checked.underWay?.end('the endpoint is gone');
          this.#endpoints.delete(endpoint);
        }
  }

  close(): void {
    for (const { underWay } of this.#endpoints.values()) underWay?.end('the cluster is gone');
    this.#endpoints.clear();
  }

  #start(endpoint: Endpoint, checked: Checked, now: number): void {
    // A tenth earlier or later, so that many proxies do not ask at once.
    checked.nextAt = now + this.#check.intervalMs * (0.9 + 0.2 * this.#random());
    const check = new Check(now, this.#check, (result) => {
      checked.underWay = undefined;
      if (result !== 'cancelled') this.#record(endpoint, checked, result.problem, result.isDecisive);
    });
    checked.underWay = check;
    if (!boundary.run(() => check.start(this.#cluster, endpoint))) check.cancel();
  }

  #record(endpoint: Endpoint, checked: Checked, problem: string | undefined, isDecisive: boolean): void {
    const { counters } = this.#cluster;
    if (problem === undefined) {
      counters.healthCheckSuccess++;
      checked.failures = 0;
      checked.successes++;
      if (endpoint.checkProblem === undefined || checked.successes < this.#check.healthyThreshold) return;
      endpoint.checkProblem = undefined;
    } else {
      counters.healthCheckFailure++;
      checked.successes = 0;
      checked.failures++;
      if (endpoint.checkProblem !== undefined || (!isDecisive && checked.failures < this.#check.unhealthyThreshold)) return;
      endpoint.checkProblem = problem;
    }
    this.#cluster.healthChanged();
  }
}

/**
 * `problem` undefined: the endpoint is well. `isDecisive`: it has responded, and the response is wrong; no threshold has to be reached.
 * `cancelled`: a failure of this proxy, not of the endpoint, which stays what it was. The next check is due in an interval.
 */
type Result = { readonly problem: string | undefined; readonly isDecisive: boolean } | 'cancelled';
type Done = (result: Result) => void;

/** One question to one endpoint. */
class Check implements ResponseReceiver {
  startedAt: number;
  readonly isHeadRequest: boolean;
  readonly isTunnelRequest = 'no';
  readonly pendingResponseBytes = 0;
  readonly #check: HealthCheck;
  readonly #done: Done;
  #upstream: UpstreamStream | undefined;
  #socket: net.Socket | undefined;
  #status: number;
  #grpcStatus: string | undefined;
  #content: Buffer;
  #isDone: boolean;

  constructor(now: number, check: HealthCheck, done: Done) {
    this.startedAt = now;
    this.isHeadRequest = check.kind.name === 'http' && check.kind.method === 'HEAD';
    this.#check = check;
    this.#done = done;
    this.#upstream = undefined;
    this.#socket = undefined;
    this.#status = 0;
    this.#grpcStatus = undefined;
    this.#content = Buffer.alloc(0);
    this.#isDone = false;
  }

  start(cluster: Cluster, endpoint: Endpoint): void {
    const { kind } = this.#check;
    const { transport } = endpoint;
    if (transport.notReadyReason !== undefined) return this.end(transport.notReadyReason);
    if (kind.name === 'tcp') {
      const socket = boundary.own(transport.connect(endpoint, 'bytes'), () => this.cancel());
      this.#socket = socket;
      socket.once(transport.readyEvent, () => this.end(undefined));
      socket.on('error', (error) => this.end(error.message));
      return;
    }
    const upstream = cluster.connectAside(endpoint, undefined, kind.name === 'grpc');
    if (upstream === undefined) return this.end('the limit of connections is reached');
    this.#upstream = upstream;
    upstream.begin(this, kind.name === 'grpc' ? grpcHead(kind.authority || cluster.name) : httpHead(kind, cluster.name), undefined);
    if (kind.name === 'grpc') upstream.data(healthRequest(kind.service));
    upstream.end(noFields);
  }

  /** After an internal error. */
  cancel(): void {
    if (this.#isDone) return;
    this.#isDone = true;
    boundary.run(() => this.#socket?.destroy());
    boundary.run(() => this.#upstream?.abandon());
    this.#upstream = undefined;
    this.#done('cancelled');
  }

  /** `problem` undefined: it is well. */
  end(problem: string | undefined, isDecisive = false): void {
    if (this.#isDone) return;
    this.#isDone = true;
    this.#socket?.destroy();
    this.#upstream?.abandon();
    this.#upstream = undefined;
    this.#done({ problem, isDecisive });
  }

  onInformational(): void {}
  onTunnel(): void {}
  onResponseFlush(): void {}
  onUpstreamDrain(): void {}

  onResponseHead(head: ResponseHead): void {
    this.#status = head.status;
    this.#grpcStatus = head.headers.get('grpc-status');
  }

  onResponseData(slice: Buffer): void {
    if (this.#content.length < maxContentBytes) this.#content = Buffer.concat([this.#content, slice]);
  }

  onResponseEnd(trailers: Fields): void {
    boundary.run(() => this.#judge(trailers)) || this.cancel();
  }

  #judge(trailers: Fields): void {
    this.#upstream = undefined;
    const { kind } = this.#check;
    if (kind.name === 'http') return this.end(kind.expects(this.#status) ? undefined : `${kind.method} ${kind.path} was answered with ${this.#status}`, true);
    const status = trailers.find(([name]) => name === 'grpc-status')?.[1] ?? this.#grpcStatus;
    if (this.#status !== 200 || status !== '0') return this.end(`its health check ended with HTTP ${this.#status}, grpc-status ${status ?? 'none'}`, true);
    const serving = servingStatus(this.#content);
    this.end(serving === 'SERVING' ? undefined : `its health check says ${serving}`, true);
  }

  onUpstreamFailure({ detail }: UpstreamFailure): void {
    this.#upstream = undefined;
    boundary.run(() => this.end(detail)) || this.cancel();
  }
}

const maxContentBytes = 64;

function httpHead(kind: { readonly host: string; readonly path: string; readonly method: string }, cluster: string): RequestHead {
  const head = new RequestHead();
  head.method = kind.method;
  head.target = kind.path;
  head.authority = kind.host || cluster;
  head.headers.add('host', head.authority);
  head.headers.add('user-agent', 'mizzen/health-check');
  return head;
}

function grpcHead(authority: string): RequestHead {
  const head = new RequestHead();
  head.isHttp2 = true;
  head.isChunked = true;
  head.method = 'POST';
  head.target = '/grpc.health.v1.Health/Check';
  head.authority = authority;
  head.headers.add('host', authority);
  head.headers.add('content-type', 'application/grpc');
  head.headers.add('te', 'trailers');
  head.headers.add('user-agent', 'mizzen/health-check');
  return head;
}
