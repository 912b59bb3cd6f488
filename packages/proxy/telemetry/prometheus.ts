import { escapeLabel } from './request-metrics.ts';
import type { ClusterStats, HistogramValues, RequestSeries, StatsSnapshot, TcpSeries } from './stats-snapshot.ts';

/** Everything that a proxy counts, in Prometheus' text format (version 0.0.4). */
export function renderPrometheus(stats: StatsSnapshot): string {
  const lines: string[] = [];
  lines.push('# TYPE istio_requests_total counter');
  for (const series of stats.requests) lines.push(`istio_requests_total{${series.labels}} ${series.requests}`);
  histogram(lines, 'istio_request_duration_milliseconds', stats.requests, (series) => series.durationMs);
  histogram(lines, 'istio_request_bytes', stats.requests, (series) => series.requestBytes);
  histogram(lines, 'istio_response_bytes', stats.requests, (series) => series.responseBytes);
  const tcp = (name: string, read: (series: TcpSeries) => number) => {
    lines.push(`# TYPE ${name} counter`);
    for (const series of stats.tcp) lines.push(`${name}{${series.labels}} ${read(series)}`);
  };
  tcp('istio_tcp_connections_opened_total', (series) => series.opened);
  tcp('istio_tcp_connections_closed_total', (series) => series.closed);
  tcp('istio_tcp_received_bytes_total', (series) => series.receivedBytes);
  tcp('istio_tcp_sent_bytes_total', (series) => series.sentBytes);

  for (const [name, value] of Object.entries(stats.counters))
    lines.push(`# TYPE mizzen_${name} ${name.endsWith('_total') ? 'counter' : 'gauge'}`, `mizzen_${name} ${value}`);
  lines.push('# TYPE mizzen_http_violations_total counter');
  for (const [reason, count] of Object.entries(stats.violations)) lines.push(`mizzen_http_violations_total{reason="${escapeLabel(reason)}"} ${count}`);

  let last = '';
  for (const [name, value] of Object.entries(stats.series).sort(([a], [b]) => (a < b ? -1 : 1))) {
    const family = name.slice(0, name.indexOf('{'));
    if (family !== last) lines.push(`# TYPE mizzen_${family} ${family.endsWith('_total') ? 'counter' : 'gauge'}`);
    last = family;
    lines.push(`mizzen_${name} ${value}`);
  }

  const perCluster = (name: string, type: 'counter' | 'gauge', read: (cluster: ClusterStats) => number) => {
    lines.push(`# TYPE ${name} ${type}`);
    for (const cluster of stats.clusters) lines.push(`${name}{cluster_name="${escapeLabel(cluster.name)}"} ${read(cluster)}`);
  };
  for (const [field, name] of Object.entries(clusterCounters)) perCluster(`envoy_cluster_${name}`, 'counter', (cluster) => cluster.counters[field] ?? 0);
  perCluster('envoy_cluster_upstream_rq_active', 'gauge', (cluster) => cluster.activeRequests);
  perCluster('envoy_cluster_upstream_rq_pending_active', 'gauge', (cluster) => cluster.pendingRequests);
  perCluster('envoy_cluster_upstream_cx_active', 'gauge', (cluster) => cluster.endpoints.reduce((total, endpoint) => total + endpoint.connections, 0));
  perCluster('envoy_cluster_membership_total', 'gauge', (cluster) => cluster.endpoints.length);
  perCluster('envoy_cluster_outlier_detection_ejections_active', 'gauge', (cluster) => cluster.ejected);
  perCluster('envoy_cluster_membership_healthy', 'gauge', (cluster) => cluster.healthy);
  lines.push('# TYPE mizzen_upstream_http_violations_total counter');
  for (const { name, violations } of stats.clusters)
    for (const [reason, count] of Object.entries(violations))
      lines.push(`mizzen_upstream_http_violations_total{cluster_name="${escapeLabel(name)}",reason="${escapeLabel(reason)}"} ${count}`);
  lines.push('# TYPE mizzen_workers gauge', `mizzen_workers ${stats.workers}`);
  lines.push('# TYPE nodejs_active_resources gauge');
  for (const [type, count] of Object.entries(stats.activeResources)) lines.push(`nodejs_active_resources{type="${escapeLabel(type)}"} ${count}`);
  lines.push('# TYPE process_resident_memory_bytes gauge', `process_resident_memory_bytes ${stats.residentBytes}`);
  lines.push('# TYPE process_cpu_seconds_total counter', `process_cpu_seconds_total ${stats.cpuSeconds}`);
  return `${lines.join('\n')}\n`;
}

const clusterCounters = {
  upstreamRqTotal: 'upstream_rq_total',
  upstreamRqRetry: 'upstream_rq_retry',
  upstreamRqTimeout: 'upstream_rq_timeout',
  upstreamRqPendingTotal: 'upstream_rq_pending_total',
  upstreamRqPendingOverflow: 'upstream_rq_pending_overflow',
  upstreamCxTotal: 'upstream_cx_total',
  upstreamCxOverflow: 'upstream_cx_overflow',
  upstreamCxConnectFail: 'upstream_cx_connect_fail',
  healthCheckSuccess: 'health_check_success',
  healthCheckFailure: 'health_check_failure',
  outlierEjections: 'outlier_detection_ejections_enforced_total',
  outlierEjectionsOverflow: 'outlier_detection_ejections_overflow',
} as const;

function histogram(lines: string[], name: string, all: readonly RequestSeries[], read: (series: RequestSeries) => HistogramValues): void {
  lines.push(`# TYPE ${name} histogram`);
  for (const series of all) {
    const values = read(series);
    let cumulative = 0;
    for (const [i, bound] of values.bounds.entries()) {
      cumulative += values.counts[i]!;
      lines.push(`${name}_bucket{${series.labels},le="${bound}"} ${cumulative}`);
    }
    lines.push(
      `${name}_bucket{${series.labels},le="+Inf"} ${values.count}`,
      `${name}_sum{${series.labels}} ${values.sum}`,
      `${name}_count{${series.labels}} ${values.count}`,
    );
  }
}
