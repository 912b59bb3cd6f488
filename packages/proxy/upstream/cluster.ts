import { coarseNow } from '@mizzen/common';
import type { Http2Settings } from '../http2/settings.ts';
import type { HeaderCase } from '../message/header-case.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import type { ServiceName } from '../route/route-table.ts';
import type { BalancingSettings, EarlierTries, LocalityEndpoints } from './balancing/host-set.ts';
import { HostSet } from './balancing/host-set.ts';
import type { ConnectionWaiter, Endpoint } from './endpoint.ts';
import { type HealthCheck, HealthChecker } from './health-checker.ts';
import { Http1Upstream } from './http1-upstream.ts';
import { Http2Upstream } from './http2-upstream.ts';
import type { OriginalDestinations } from './original-destinations.ts';
import { OutlierDetector, type OutlierSettings } from './outlier-detector.ts';
import type { Content } from './transport.ts';
import type { UpstreamStream } from './upstream-stream.ts';

/** A compiled cluster: its endpoints, how one is chosen, and how much may be under way. Built by ./compile-cluster.ts. */
export interface ClusterSettings {
  readonly name: string;
  readonly connectTimeoutMs: number;
  readonly balancing: BalancingSettings;
  /** undefined: endpoints are not judged by their answers. */
  readonly outliers: OutlierSettings | undefined;
  /** Circuit breakers (envoy circuit_breaker.proto `Thresholds`). */
  readonly maxConnections: number;
  readonly maxRequests: number;
  readonly maxPendingRequests: number;
  readonly maxRetries: number;
  /** Retries under way may be so many percent of the requests under way, instead of `maxRetries` (`retry_budget`). */
  readonly retryBudget: { readonly percent: number; readonly minimum: number } | undefined;
  /** 0: no limit. */
  readonly maxRequestsPerConnection: number;
  /** Connections that nobody has used for this long end (protocol.proto `idle_timeout`); 0: never. */
  readonly idleTimeoutMs: number;
  /** A connection takes no request after this age (`max_connection_duration`); 0: no limit. */
  readonly maxConnectionDurationMs: number;
  /** Connections per request under way that are kept open (`per_upstream_preconnect_ratio`); 1: none ahead of need. */
  readonly preconnectRatio: number;
  /** What is spoken to its endpoints; `downstream`: what the client speaks (`use_downstream_protocol_config`). */
  readonly protocol: 'http1' | 'http2' | 'downstream';
  readonly http2: Http2Settings;
  readonly maxResponseHeadBytes: number;
  readonly maxHeaderCount: number;
  /** How the names of request headers are written. */
  readonly headerCase: HeaderCase;
  readonly service: ServiceName | undefined;
  /** It has no endpoints of its own: a call goes where its client was going (ORIGINAL_DST). */
  readonly originalDestinations: OriginalDestinations | undefined;
  /** Why nothing may be reached through it, for the log: it stands for what the mesh does not let out. */
  readonly blockReason: string | undefined;
}

/** A place for a request, a place in the queue for one, or the reason why there is neither. */
export type Acquired = UpstreamStream | 'queued' | 'overflow';

export class Cluster {
  readonly settings: ClusterSettings;
  readonly name: string;
  readonly service: ServiceName | undefined;
  endpoints: readonly Endpoint[];
  activeRequests: number;
  activeRetries: number;
  /** Requests that wait for a connection. */
  pendingRequests: number;
  /** Connections of TCP sessions and tunnels, which are not pooled. */
  tcpConnections: number;
  /** Counters, by Envoy's names. */
  readonly counters: {
    upstreamRqTotal: number;
    upstreamRqRetry: number;
    upstreamCxTotal: number;
    upstreamCxConnectFail: number;
    upstreamCxOverflow: number;
    upstreamRqPendingTotal: number;
    upstreamRqPendingOverflow: number;
    upstreamRqTimeout: number;
    healthCheckSuccess: number;
    healthCheckFailure: number;
    outlierEjections: number;
    outlierEjectionsOverflow: number;
  };
  /** What endpoints did that HTTP/2 does not allow, by reason. */
  readonly violations: Map<string, number>;
  readonly #hosts: HostSet;
  readonly #outliers: OutlierDetector | undefined;
  #checkers: readonly HealthChecker[];
  readonly #parts: { close(): void }[];

  constructor(settings: ClusterSettings, random: () => number) {
    this.settings = settings;
    this.name = settings.name;
    this.service = settings.service;
    this.endpoints = [];
    this.violations = new Map();
    this.#hosts = new HostSet(settings.balancing, random);
    this.#outliers = settings.outliers === undefined ? undefined : new OutlierDetector(this, settings.outliers, random);
    this.#checkers = [];
    this.#parts = [];
    this.activeRequests = 0;
    this.activeRetries = 0;
    this.pendingRequests = 0;
    this.tcpConnections = 0;
    this.counters = {
      upstreamRqTotal: 0,
      upstreamRqRetry: 0,
      upstreamCxTotal: 0,
      upstreamCxConnectFail: 0,
      upstreamCxOverflow: 0,
      upstreamRqPendingTotal: 0,
      upstreamRqPendingOverflow: 0,
      upstreamRqTimeout: 0,
      healthCheckSuccess: 0,
      healthCheckFailure: 0,
      outlierEjections: 0,
      outlierEjectionsOverflow: 0,
    };
  }

  /** Endpoints that may be chosen because they are well. */
  get healthyCount(): number {
    return this.#hosts.availableCount;
  }

  /** Of those, how many outlier detection has taken out for a while. */
  get ejectedCount(): number {
    return this.#outliers?.ejectedCount ?? 0;
  }

  /** `overprovisioning`: percent. */
  setEndpoints(localities: readonly LocalityEndpoints[], overprovisioning?: number): void {
    const endpoints = localities.length === 1 ? localities[0]!.endpoints : localities.flatMap((locality) => locality.endpoints);
    const kept = new Set(endpoints);
    const gone = this.endpoints.filter((endpoint) => !kept.has(endpoint));
    this.endpoints = endpoints;
    this.#outliers?.watch(endpoints);
    this.#hosts.set(localities, overprovisioning);
    // Only now: those who wait for an endpoint that is gone choose again among the new ones.
    for (const endpoint of gone) endpoint.remove();
  }

  /** Looks anew at which endpoints may be chosen. */
  healthChanged(): void {
    this.#hosts.refresh();
  }

  /** How many more retries there may be. */
  get hasRetriesLeft(): boolean {
    const { maxRetries, retryBudget } = this.settings;
    if (retryBudget === undefined) return this.activeRetries < maxRetries;
    return this.activeRetries < Math.max(retryBudget.minimum, Math.floor((retryBudget.percent / 100) * (this.activeRequests + this.pendingRequests)));
  }

  /** Has the endpoints asked whether they are well. */
  checkHealth(checks: readonly HealthCheck[], random: () => number): void {
    this.#checkers = checks.map((check) => new HealthChecker(this, check, random));
  }

  /** An endpoint for the next request. */
  pick(hash?: bigint): Endpoint | undefined {
    return this.#hosts.pick(hash, undefined);
  }

  /** An endpoint for a call of this client: `authority` is what an HTTP request names, `hash` what the route makes of it. */
  endpointFor(client: ConnectionInfo, authority: string | undefined, tries: EarlierTries | undefined, hash?: bigint): Endpoint | undefined {
    const { originalDestinations } = this.settings;
    return originalDestinations === undefined ? this.#hosts.pick(hash, tries) : originalDestinations.endpointFor(client, authority);
  }

  /**
   * An idle connection, a new one, or a place in the endpoint's queue (`waiter` is called later). `fresh`: no connection of HTTP/1.1 that
   * has served somebody before, since such a one has just failed.
   */
  acquire(endpoint: Endpoint, waiter: ConnectionWaiter, client: ConnectionInfo, isHttp2: boolean, fresh: boolean): Acquired {
    const { settings } = this;
    if (this.#speaksHttp2(isHttp2)) return this.#acquireStream(endpoint, waiter, client);
    if (!endpoint.transport.isPerClient && !fresh) {
      for (let idle = endpoint.idle.pop(); idle !== undefined; idle = endpoint.idle.pop()) {
        if (settings.maxConnectionDurationMs === 0 || coarseNow() - idle.openedAt < settings.maxConnectionDurationMs) {
          if (settings.preconnectRatio > 1) this.#preconnect(endpoint);
          return idle;
        }
        idle.close();
      }
    }
    if (this.#mayConnect(endpoint)) {
      const connection = this.#open(endpoint, client);
      if (settings.preconnectRatio > 1) this.#preconnect(endpoint);
      return connection;
    }
    this.counters.upstreamCxOverflow++;
    return this.#queue(endpoint.waiting, waiter);
  }

  #speaksHttp2(isHttp2: boolean): boolean {
    const { protocol } = this.settings;
    return protocol === 'http2' || (protocol === 'downstream' && isHttp2);
  }

  #acquireStream(endpoint: Endpoint, waiter: ConnectionWaiter, client: ConnectionInfo): Acquired {
    const { transport } = endpoint;
    if (!transport.isPerClient) {
      const maxAgeMs = this.settings.maxConnectionDurationMs;
      for (const connection of endpoint.http2) {
        if (maxAgeMs > 0 && coarseNow() - connection.openedAt > maxAgeMs) {
          connection.drain();
          return this.#acquireStream(endpoint, waiter, client);
        }
        if (connection.freeStreams > 0) return connection.stream();
      }
    }
    if (this.#mayConnect(endpoint)) return this.#openHttp2(endpoint, client).stream();
    this.counters.upstreamCxOverflow++;
    return this.#queue(endpoint.waitingForStream, waiter);
  }

  #queue(queue: ConnectionWaiter[], waiter: ConnectionWaiter): Acquired {
    if (this.pendingRequests >= this.settings.maxPendingRequests) {
      this.counters.upstreamRqPendingOverflow++;
      return 'overflow';
    }
    this.counters.upstreamRqPendingTotal++;
    this.pendingRequests++;
    queue.push(waiter);
    return 'queued';
  }

  /** A connection of HTTP/2 may have room for somebody who waits. */
  streamsFreed(connection: Http2Upstream): void {
    const { waitingForStream } = connection.endpoint;
    while (waitingForStream.length > 0 && connection.freeStreams > 0) {
      this.pendingRequests--;
      waitingForStream.shift()!.onConnection(connection.stream());
    }
  }

  countViolation(reason: string): void {
    this.violations.set(reason, (this.violations.get(reason) ?? 0) + 1);
  }

  /** For a request that nobody waits for (a mirror, a health check): a connection if one is free or may be opened, never a place in the queue. */
  connectAside(endpoint: Endpoint, client: ConnectionInfo | undefined, isHttp2: boolean): UpstreamStream | undefined {
    if (this.#speaksHttp2(isHttp2)) {
      const free = endpoint.transport.isPerClient ? undefined : endpoint.http2.find((connection) => connection.freeStreams > 0);
      return (free ?? (this.#mayConnect(endpoint) ? this.#openHttp2(endpoint, client) : undefined))?.stream();
    }
    return (endpoint.transport.isPerClient ? undefined : endpoint.idle.pop()) ?? this.#openIfAllowed(endpoint, 'http', client);
  }

  /** A connection for bytes that are no messages; undefined when the limit is reached. */
  openTunnel(endpoint: Endpoint, client: ConnectionInfo): Http1Upstream | undefined {
    return this.#openIfAllowed(endpoint, 'bytes', client);
  }

  /** Takes a waiter out of the queue. */
  stopWaiting(endpoint: Endpoint, waiter: ConnectionWaiter): void {
    for (const queue of [endpoint.waiting, endpoint.waitingForStream]) {
      const at = queue.indexOf(waiter);
      if (at >= 0) queue.splice(at, 1);
    }
    this.pendingRequests--;
  }

  /** A connection has become free: it goes to whoever waits, or to the idle ones. */
  release(connection: Http1Upstream): void {
    const { endpoint } = connection;
    const waiter = endpoint.waiting.shift();
    if (waiter === undefined) return void endpoint.idle.push(connection);
    this.pendingRequests--;
    waiter.onConnection(connection);
  }

  /** A connection has ended: its place may let somebody else connect. */
  connectionClosed(endpoint: Endpoint): void {
    if (endpoint.waiting.length + endpoint.waitingForStream.length === 0 || !this.#mayConnect(endpoint)) return;
    const waiter = endpoint.waiting.shift();
    if (waiter === undefined) return this.streamsFreed(this.#openHttp2(endpoint, undefined));
    this.pendingRequests--;
    waiter.onConnection(this.#open(endpoint, undefined));
  }

  /** Closes connections that nobody has used for the idle timeout. */
  sweep(now: number): void {
    for (const checker of this.#checkers) checker.sweep(now);
    this.#outliers?.sweep(now);
    const { idleTimeoutMs, maxConnectionDurationMs } = this.settings;
    for (const endpoint of this.settings.originalDestinations?.values() ?? this.endpoints) {
      if (endpoint.http2.length > 0) sweepHttp2(endpoint, now, idleTimeoutMs, maxConnectionDurationMs);
      if (endpoint.idle.length === 0) continue;
      const expired = endpoint.idle.filter(
        (connection) =>
          (idleTimeoutMs > 0 && now - connection.idleSince > idleTimeoutMs) ||
          (maxConnectionDurationMs > 0 && now - connection.openedAt > maxConnectionDurationMs),
      );
      for (const connection of expired) connection.close();
    }
  }

  /** Has something end with this cluster. */
  closeWith(part: { close(): void }): void {
    this.#parts.push(part);
  }

  close(): void {
    for (const part of this.#parts) part.close();
    for (const checker of this.#checkers) checker.close();
    for (const endpoint of this.endpoints) endpoint.remove();
    this.settings.originalDestinations?.close();
  }

  /** The limit is the cluster's, but no endpoint is without any connection because of the others (as in Envoy). */
  #mayConnect(endpoint: Endpoint): boolean {
    return this.settings.maxConnections >= unlimited || endpoint.connections === 0 || this.#connections() < this.settings.maxConnections;
  }

  #openIfAllowed(endpoint: Endpoint, content: Content, client: ConnectionInfo | undefined): Http1Upstream | undefined {
    if (this.#mayConnect(endpoint)) return this.#open(endpoint, client, content);
    this.counters.upstreamCxOverflow++;
    return undefined;
  }

  #open(endpoint: Endpoint, client: ConnectionInfo | undefined, content: Content = 'http'): Http1Upstream {
    this.counters.upstreamCxTotal++;
    return new Http1Upstream(this, endpoint, content, client);
  }

  #openHttp2(endpoint: Endpoint, client: ConnectionInfo | undefined): Http2Upstream {
    this.counters.upstreamCxTotal++;
    const connection = new Http2Upstream(this, endpoint, client);
    endpoint.http2.push(connection);
    return connection;
  }

  #preconnect(endpoint: Endpoint): void {
    if (endpoint.transport.isPerClient) return;
    const wanted = Math.ceil((endpoint.activeRequests + 1) * this.settings.preconnectRatio);
    while (endpoint.connections < wanted && this.#mayConnect(endpoint)) endpoint.idle.unshift(this.#open(endpoint, undefined));
  }

  #connections(): number {
    let sum = this.tcpConnections;
    for (const endpoint of this.settings.originalDestinations?.values() ?? this.endpoints) sum += endpoint.connections;
    return sum;
  }
}

function sweepHttp2(endpoint: Endpoint, now: number, idleTimeoutMs: number, maxConnectionDurationMs: number): void {
  for (const connection of [...endpoint.http2]) {
    const isIdle = connection.streamCount === 0;
    if (isIdle && idleTimeoutMs > 0 && now - connection.idleSince > idleTimeoutMs) connection.drain();
    else if (maxConnectionDurationMs > 0 && now - connection.openedAt > maxConnectionDurationMs) connection.drain();
    else connection.sweep(now);
  }
}

export const unlimited = 4_294_967_295;
