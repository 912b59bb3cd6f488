import type { HttpFilter } from '../filters/filter.ts';
import type { HeadLimits } from '../http1/head-limits.ts';
import type { RouteTable } from '../route/route-table.ts';
import type { AccessLogFile, LoggedRequest } from '../telemetry/access-log.ts';
import type { PeerMetadata, PeerMetadataReader } from '../telemetry/peer-metadata.ts';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import type { RequestMetricsTable } from '../telemetry/request-metrics.ts';
import type { Cluster } from '../upstream/cluster.ts';

/** What the HTTP connections of all listeners share. One per proxy. */
export interface ProxyContext {
  readonly self: PeerMetadata;
  readonly selfHeader: string;
  readonly selfId: string;
  readonly peers: PeerMetadataReader;
  readonly metrics: RequestMetricsTable;
  readonly counters: ProxyCounters;
  readonly random: () => number;
  findCluster(name: string): Cluster | undefined;
}

/**
 * One compiled HTTP connection manager. An update makes a new one; connections that exist look it up through their filter chain at
 * their next request, so that no connection has to end for a change.
 */
export interface ConnectionSettings {
  readonly context: ProxyContext;
  /** inbound: this proxy answers for its workload. outbound: its workload's own requests. gateway: requests from outside the mesh. */
  readonly direction: 'inbound' | 'outbound' | 'gateway';
  readonly isTls: boolean;
  /** Now, whatever table is in effect; undefined while none has arrived. */
  readonly routeTable: () => RouteTable | undefined;
  readonly filters: readonly HttpFilter[];
  readonly accessLogs: readonly { readonly file: AccessLogFile; readonly format: (request: LoggedRequest) => string }[];
  readonly forwardClientCert: 'sanitize' | 'sanitizeSet' | 'appendForward' | 'forwardOnly';
  readonly usesRemoteAddress: boolean;
  readonly preservesRequestId: boolean;
  readonly setsRequestIdInResponse: boolean;
  readonly headLimits: HeadLimits;
  /** A request's head must have arrived by then, counted from its first byte; 0: no limit. */
  readonly requestHeadersTimeoutMs: number;
  /** A connection without a request ends then. */
  readonly idleTimeoutMs: number;
  /** A request on which nothing moves ends then. */
  readonly streamIdleTimeoutMs: number;
}
