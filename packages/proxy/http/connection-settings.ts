import type { Logger } from '@mizzen/common';
import type { HttpFilter } from '../filters/filter.ts';
import type { Http2Settings } from '../http2/settings.ts';
import type { HeadLimits } from '../message/head-limits.ts';
import type { HeaderCase } from '../message/header-case.ts';
import type { OwnedHeaderRules } from '../message/owned-headers.ts';
import type { OverloadState } from '../overload/overload-state.ts';
import type { PathSettings } from '../route/normalize-path.ts';
import type { RouteTable } from '../route/route-table.ts';
import type { AccessLog } from '../telemetry/access-log.ts';
import type { PeerMetadata, PeerMetadataReader } from '../telemetry/peer-metadata.ts';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import type { RequestMetricsTable } from '../telemetry/request-metrics.ts';
import type { TcpMetricsTable } from '../telemetry/tcp-metrics.ts';
import type { Tracer } from '../telemetry/tracing/tracer.ts';
import type { Cluster } from '../upstream/cluster.ts';
import type { Introduction } from '../upstream/upstream-stream.ts';

/** What the HTTP connections of all listeners share. One per proxy. */
export interface ProxyContext {
  readonly self: PeerMetadata;
  /** How it tells the next sidecar who it is. */
  readonly introduction: Introduction;
  readonly peers: PeerMetadataReader;
  readonly metrics: RequestMetricsTable;
  readonly tcpMetrics: TcpMetricsTable;
  readonly overload: OverloadState;
  readonly counters: ProxyCounters;
  readonly random: () => number;
  readonly logger: Logger;
  /** What filters keep beyond an update of their configuration (buckets of rate limits, say), by their names. What has a `close` is closed at the end. */
  readonly filterStates: Map<string, object>;
  /** A secret that SDS has brought; the same object until it changes. undefined: it has not arrived. */
  readonly genericSecret: (name: string) => Buffer | undefined;
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
  /** Requests come from the proxy's own application: what only the mesh may say is removed from them. */
  readonly isFromApplication: boolean;
  readonly isTls: boolean;
  /** Now, whatever table is in effect; undefined while none has arrived. */
  readonly routeTable: () => RouteTable | undefined;
  readonly filters: readonly HttpFilter[];
  /** Those of them that look at answers, in the order in which they do. */
  readonly responseFilters: readonly HttpFilter[];
  readonly accessLogs: readonly AccessLog[];
  /** undefined: requests leave no trace. */
  readonly tracer: Tracer | undefined;
  /** undefined: the configuration does not say which callers of the mesh may send what the mesh owns; then none may say who a consumer is. */
  readonly ownedHeaders: OwnedHeaderRules | undefined;
  readonly forwardClientCert: 'sanitize' | 'sanitizeSet' | 'appendForward' | 'forwardOnly';
  readonly usesRemoteAddress: boolean;
  readonly preservesRequestId: boolean;
  readonly setsRequestIdInResponse: boolean;
  /** What connections speak: told by their first bytes, or always the same (`codec_type`). */
  readonly codec: 'auto' | 'http1' | 'http2';
  readonly http2: Http2Settings;
  readonly headLimits: HeadLimits;
  /** undefined: paths are normalised, and nothing else is done to them. */
  readonly paths: PathSettings | undefined;
  /** How the names of response headers are written. */
  readonly headerCase: HeaderCase;
  /** Protocols that a request may switch to, in lower case; `connect` for CONNECT (`upgrade_configs`). */
  readonly upgrades: ReadonlySet<string>;
  /** `Expect: 100-continue` goes to the server instead of being answered here (`proxy_100_continue`). */
  readonly passesContinue: boolean;
  /** Requests that a connection may carry (`max_requests_per_connection`); 0: no limit. */
  readonly maxRequestsPerConnection: number;

  // Times, by the names and with the defaults of envoy http_connection_manager.proto unless it says otherwise; 0: no limit. They are
  // looked at four times a second.

  /** A request's head must have arrived by then, counted from its first byte (60 s; Envoy has no limit here). */
  readonly requestHeadersTimeoutMs: number;
  /** The whole request must have arrived by then (none). */
  readonly requestTimeoutMs: number;
  /** A connection without a request ends then (1 h). */
  readonly idleTimeoutMs: number;
  /** A request or tunnel on which nothing moves ends then (5 min). */
  readonly streamIdleTimeoutMs: number;
  /** A request with its answer has to end by then (none). */
  readonly maxStreamDurationMs: number;
  /** A connection takes no request after this age (none). */
  readonly maxConnectionDurationMs: number;
  /** How long a connection that is ending still takes bytes, so that its peer can read the last answer (1 s). */
  readonly delayedCloseTimeoutMs: number;
}
