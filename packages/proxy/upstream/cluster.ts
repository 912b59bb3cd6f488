import type { ServiceName } from '../route/route-table.ts';
import type { Endpoint } from './endpoint.ts';
import type { Picker } from './load-balancer.ts';
import { UpstreamConnection } from './upstream-connection.ts';

/** A compiled cluster: its endpoints, how one is chosen, and how much may be under way. Built by ./compile-cluster.ts. */
export interface ClusterSettings {
  readonly name: string;
  readonly connectTimeoutMs: number;
  readonly picker: Picker;
  readonly maxConnections: number;
  readonly maxRequests: number;
  readonly maxPendingRequests: number;
  readonly maxRetries: number;
  readonly maxRequestsPerConnection: number;
  readonly service: ServiceName | undefined;
  /** Makes an endpoint of the host that a request names (Envoy's ORIGINAL_DST, for a caller that names its target). */
  readonly endpointForAuthority: ((authority: string) => Endpoint | undefined) | undefined;
}

export class Cluster {
  readonly settings: ClusterSettings;
  readonly name: string;
  readonly service: ServiceName | undefined;
  endpoints: readonly Endpoint[];
  activeRequests: number;
  activeRetries: number;
  /** Counters, by Envoy's names. */
  readonly counters: {
    upstreamRqTotal: number;
    upstreamRqRetry: number;
    upstreamCxTotal: number;
    upstreamCxConnectFail: number;
    upstreamRqPendingOverflow: number;
    upstreamRqTimeout: number;
  };
  #healthy: readonly Endpoint[];

  constructor(settings: ClusterSettings) {
    this.settings = settings;
    this.name = settings.name;
    this.service = settings.service;
    this.endpoints = [];
    this.#healthy = [];
    this.activeRequests = 0;
    this.activeRetries = 0;
    this.counters = {
      upstreamRqTotal: 0,
      upstreamRqRetry: 0,
      upstreamCxTotal: 0,
      upstreamCxConnectFail: 0,
      upstreamRqPendingOverflow: 0,
      upstreamRqTimeout: 0,
    };
  }

  get healthyCount(): number {
    return this.#healthy.length;
  }

  setEndpoints(endpoints: readonly Endpoint[]): void {
    const kept = new Set(endpoints);
    for (const endpoint of this.endpoints) if (!kept.has(endpoint)) endpoint.remove();
    this.endpoints = endpoints;
    this.#healthy = endpoints.filter((endpoint) => endpoint.isHealthy);
  }

  /** An endpoint for the next request; `avoid` are those that have just failed it, taken only when there is no other. */
  pick(avoid: readonly Endpoint[] | undefined): Endpoint | undefined {
    const healthy = this.#healthy;
    if (healthy.length === 0) return undefined;
    if (healthy.length === 1) return healthy[0];
    if (avoid !== undefined && avoid.length > 0) {
      const others = healthy.filter((endpoint) => !avoid.includes(endpoint));
      if (others.length > 0) return this.settings.picker(others);
    }
    return this.settings.picker(healthy);
  }

  /** An idle connection or a new one; undefined when the cluster may open no more. */
  connect(endpoint: Endpoint): UpstreamConnection | undefined {
    const idle = endpoint.idle.pop();
    if (idle !== undefined) return idle;
    if (this.settings.maxConnections < unlimited && this.#connections() >= this.settings.maxConnections) {
      this.counters.upstreamRqPendingOverflow++;
      return undefined;
    }
    this.counters.upstreamCxTotal++;
    return new UpstreamConnection(endpoint, this.settings.connectTimeoutMs, this.settings.maxRequestsPerConnection);
  }

  /** Closes connections that nobody has used for `idleTimeoutMs`. */
  sweep(now: number, idleTimeoutMs: number): void {
    for (const endpoint of this.endpoints) {
      const expired = endpoint.idle.filter((connection) => now - connection.idleSince > idleTimeoutMs);
      for (const connection of expired) connection.close();
    }
  }

  close(): void {
    for (const endpoint of this.endpoints) endpoint.remove();
  }

  #connections(): number {
    let sum = 0;
    for (const endpoint of this.endpoints) sum += endpoint.connections;
    return sum;
  }
}

export const unlimited = 4_294_967_295;
