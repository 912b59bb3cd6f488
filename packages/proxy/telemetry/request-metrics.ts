import type { ServiceName } from '../route/route-table.ts';
import { durationBoundsMs, Histogram, sizeBoundsBytes } from './histogram.ts';
import type { PeerMetadata } from './peer-metadata.ts';

/** The four standard metrics of one label set: Istio's istio_requests_total and its three histograms. */
export class RequestMetrics {
  readonly labels: string;
  requests: number;
  readonly durationMs: Histogram;
  readonly requestBytes: Histogram;
  readonly responseBytes: Histogram;

  constructor(labels: string) {
    this.labels = labels;
    this.requests = 0;
    this.durationMs = new Histogram(durationBoundsMs);
    this.requestBytes = new Histogram(sizeBoundsBytes);
    this.responseBytes = new Histogram(sizeBoundsBytes);
  }

  record(durationMs: number, requestBytes: number, responseBytes: number): void {
    this.requests++;
    this.durationMs.record(durationMs);
    this.requestBytes.record(requestBytes);
    this.responseBytes.record(responseBytes);
  }
}

export type ServiceLabel = ServiceName;

/** What the metrics of requests and of TCP connections have in common. */
export interface CommonLabels {
  readonly reporter: 'source' | 'destination';
  readonly source: PeerMetadata;
  readonly destination: PeerMetadata;
  readonly sourcePrincipal: string;
  readonly destinationPrincipal: string;
  readonly service: ServiceName | undefined;
  /** The host that was asked for, when no service is known. */
  readonly requestedHost: string;
  readonly securityPolicy: 'mutual_tls' | 'none' | 'unknown';
}

export interface RequestLabels extends CommonLabels {
  readonly responseCode: number;
  readonly responseFlags: string;
  readonly isGrpc: boolean;
  /** `grpc-status` of the answer; '' without one. */
  readonly grpcStatus: string;
}

/** More label sets than this are counted together, so that a peer's inventions cannot fill memory. */
const maxSeries = 10_000;

/** All request metrics of this proxy, by label set. */
export class RequestMetricsTable {
  readonly #series: Map<string, RequestMetrics>;
  readonly #overflow: RequestMetrics;
  /** Series of requests that reached no endpoint, by what their labels are made of: finding one costs no label text. */
  readonly withoutEndpoint: Map<string, RequestMetrics>;

  constructor() {
    this.#series = new Map();
    this.withoutEndpoint = new Map();
    this.#overflow = new RequestMetrics('mizzen_overflow="true"');
  }

  get(labels: RequestLabels): RequestMetrics {
    const text = labelText(
      labels,
      [
        ['request_protocol', labels.isGrpc ? 'grpc' : 'http'],
        ['response_code', String(labels.responseCode)],
        ['grpc_response_status', labels.grpcStatus],
      ],
      [['response_flags', labels.responseFlags]],
    );
    const found = this.#series.get(text);
    if (found !== undefined) return found;
    if (this.#series.size >= maxSeries) return this.#overflow;
    const made = new RequestMetrics(text);
    this.#series.set(text, made);
    return made;
  }

  *[Symbol.iterator](): Iterator<RequestMetrics> {
    yield* this.#series.values();
    if (this.#overflow.requests > 0) yield this.#overflow;
  }
}

type Pair = readonly [string, string];

/** Istio's labels in Istio's order (istio.io "Istio Standard Metrics"). */
export function labelText(labels: CommonLabels, protocol: readonly Pair[], flags: readonly Pair[]): string {
  const { source, destination, service } = labels;
  const pairs: readonly Pair[] = [
    ['reporter', labels.reporter],
    ['source_workload', source.workload],
    ['source_canonical_service', source.canonicalService],
    ['source_canonical_revision', source.canonicalRevision],
    ['source_workload_namespace', source.namespace],
    ['source_principal', labels.sourcePrincipal],
    ['source_app', source.app],
    ['source_version', source.version],
    ['source_cluster', source.cluster],
    ['destination_workload', destination.workload],
    ['destination_workload_namespace', destination.namespace],
    ['destination_principal', labels.destinationPrincipal],
    ['destination_app', destination.app],
    ['destination_version', destination.version],
    ['destination_service', service?.host ?? labels.requestedHost],
    ['destination_canonical_service', destination.canonicalService],
    ['destination_canonical_revision', destination.canonicalRevision],
    ['destination_service_name', service?.name ?? labels.requestedHost],
    ['destination_service_namespace', service?.namespace ?? 'unknown'],
    ['destination_cluster', destination.cluster],
    ...protocol,
    ...flags,
    ['connection_security_policy', labels.securityPolicy],
  ];
  return pairs.map(([name, value]) => `${name}="${escapeLabel(value)}"`).join(',');
}

export function escapeLabel(value: string): string {
  return /["\\\n]/.test(value) ? value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n') : value;
}
