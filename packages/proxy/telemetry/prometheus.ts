import type { Cluster } from '../upstream/cluster.ts';
import type { Histogram } from './histogram.ts';
import type { ProxyCounters } from './proxy-counters.ts';
import { escapeLabel, type RequestMetrics, type RequestMetricsTable } from './request-metrics.ts';

/** Everything this proxy counts, in Prometheus' text format (version 0.0.4). */
export function renderPrometheus(requests: RequestMetricsTable, counters: ProxyCounters, clusters: Iterable<Cluster>): string {
  const lines: string[] = [];
  const series = [...requests];
  lines.push('# TYPE istio_requests_total counter');
  for (const metrics of series) lines.push(`istio_requests_total{${metrics.labels}} ${metrics.requests}`);
  histogram(lines, 'istio_request_duration_milliseconds', series, (metrics) => metrics.durationMs);
  histogram(lines, 'istio_request_bytes', series, (metrics) => metrics.requestBytes);
  histogram(lines, 'istio_response_bytes', series, (metrics) => metrics.responseBytes);

  for (const [name, value] of Object.entries(counters.values))
    lines.push(`# TYPE mizzen_${name} ${name.endsWith('_total') ? 'counter' : 'gauge'}`, `mizzen_${name} ${value}`);
  lines.push('# TYPE mizzen_http_violations_total counter');
  for (const [reason, count] of counters.violations) lines.push(`mizzen_http_violations_total{reason="${escapeLabel(reason)}"} ${count}`);

  const all = [...clusters];
  const perCluster = (name: string, type: 'counter' | 'gauge', read: (cluster: Cluster) => number) => {
    lines.push(`# TYPE ${name} ${type}`);
    for (const cluster of all) lines.push(`${name}{cluster_name="${escapeLabel(cluster.name)}"} ${read(cluster)}`);
  };
  perCluster('envoy_cluster_upstream_rq_total', 'counter', (cluster) => cluster.counters.upstreamRqTotal);
  perCluster('envoy_cluster_upstream_rq_retry', 'counter', (cluster) => cluster.counters.upstreamRqRetry);
  perCluster('envoy_cluster_upstream_rq_timeout', 'counter', (cluster) => cluster.counters.upstreamRqTimeout);
  perCluster('envoy_cluster_upstream_rq_pending_overflow', 'counter', (cluster) => cluster.counters.upstreamRqPendingOverflow);
  perCluster('envoy_cluster_upstream_cx_total', 'counter', (cluster) => cluster.counters.upstreamCxTotal);
  perCluster('envoy_cluster_upstream_cx_connect_fail', 'counter', (cluster) => cluster.counters.upstreamCxConnectFail);
  perCluster('envoy_cluster_upstream_rq_active', 'gauge', (cluster) => cluster.activeRequests);
  perCluster('envoy_cluster_membership_total', 'gauge', (cluster) => cluster.endpoints.length);
  perCluster('envoy_cluster_membership_healthy', 'gauge', (cluster) => cluster.healthyCount);
  const memory = process.memoryUsage();
  lines.push('# TYPE process_resident_memory_bytes gauge', `process_resident_memory_bytes ${memory.rss}`);
  const cpu = process.cpuUsage();
  lines.push('# TYPE process_cpu_seconds_total counter', `process_cpu_seconds_total ${(cpu.user + cpu.system) / 1e6}`);
  return `${lines.join('\n')}\n`;
}

function histogram(lines: string[], name: string, series: readonly RequestMetrics[], read: (metrics: RequestMetrics) => Histogram): void {
  lines.push(`# TYPE ${name} histogram`);
  for (const metrics of series) {
    const values = read(metrics);
    let cumulative = 0;
    for (const [i, bound] of values.bounds.entries()) {
      cumulative += values.counts[i]!;
      lines.push(`${name}_bucket{${metrics.labels},le="${bound}"} ${cumulative}`);
    }
    lines.push(
      `${name}_bucket{${metrics.labels},le="+Inf"} ${values.count}`,
      `${name}_sum{${metrics.labels}} ${values.sum}`,
      `${name}_count{${metrics.labels}} ${values.count}`,
    );
  }
}
