import { internalErrors, lostLogLines, unattributedErrors } from '@mizzen/common';
import type { Cluster } from '../upstream/cluster.ts';
import type { Histogram } from './histogram.ts';
import type { ProxyCounters } from './proxy-counters.ts';
import type { RequestMetricsTable } from './request-metrics.ts';
import type { TcpMetricsTable } from './tcp-metrics.ts';

/** Everything that one event loop has counted, as plain data: it travels from workers to their main process, and is added up there. */
export interface StatsSnapshot {
  readonly counters: Readonly<Record<string, number>>;
  readonly violations: Readonly<Record<string, number>>;
  /** Counters with labels, by their whole name. */
  readonly series: Readonly<Record<string, number>>;
  readonly requests: readonly RequestSeries[];
  readonly tcp: readonly TcpSeries[];
  readonly clusters: readonly ClusterStats[];
  readonly listeners: readonly ListenerStats[];
  readonly residentBytes: number;
  readonly cpuSeconds: number;
  /** What keeps the event loop busy, by Node's names (`Timeout`, `TCPSocketWrap`): a leak shows here first. */
  readonly activeResources: Readonly<Record<string, number>>;
  /** Event loops that this speaks for. */
  readonly workers: number;
}

export interface RequestSeries {
  readonly labels: string;
  readonly requests: number;
  readonly durationMs: HistogramValues;
  readonly requestBytes: HistogramValues;
  readonly responseBytes: HistogramValues;
}

export interface HistogramValues {
  readonly bounds: readonly number[];
  readonly counts: readonly number[];
  readonly sum: number;
  readonly count: number;
}

export interface TcpSeries {
  readonly labels: string;
  readonly opened: number;
  readonly closed: number;
  readonly receivedBytes: number;
  readonly sentBytes: number;
}

export interface ClusterStats {
  readonly name: string;
  readonly counters: Readonly<Record<string, number>>;
  readonly activeRequests: number;
  readonly pendingRequests: number;
  readonly healthy: number;
  /** Endpoints that outlier detection has out, each counted once for each event loop that has. */
  readonly ejected: number;
  /** What endpoints did that their protocol does not allow, by reason. */
  readonly violations: Readonly<Record<string, number>>;
  readonly endpoints: readonly EndpointStats[];
}

export interface EndpointStats {
  readonly address: string;
  readonly healthy: boolean;
  /** What active health checks found; ''. */
  readonly checkProblem: string;
  /** Outlier detection of an event loop has it out. */
  readonly ejected: boolean;
  readonly weight: number;
  readonly workload: string;
  readonly version: string;
  readonly mutualTls: boolean;
  readonly connections: number;
  /** How many of the connections speak HTTP/2, and the round trip by the last PING on one of them; -1: none was measured. */
  readonly http2Connections: number;
  readonly rttMs: number;
  readonly activeRequests: number;
}

export interface ListenerStats {
  readonly name: string;
  readonly address: string;
  readonly protocol: 'tcp' | 'udp';
  readonly listening: boolean;
  readonly connections: number;
  readonly filterChains: readonly { readonly name: string; readonly transportProtocol: string; readonly serverNames: readonly string[] }[];
}

/** Exceptions of this process by the place of their boundary, and those that met none. */
function errorSeries(): Record<string, number> {
  const series: Record<string, number> = { 'unattributed_errors_total{}': unattributedErrors(), 'log_lines_waiting_lost{}': lostLogLines() };
  for (const [place, count] of internalErrors()) series[`internal_errors_total{place="${place}"}`] = count;
  return series;
}

const copyHistogram = ({ bounds, counts, sum, count }: Histogram): HistogramValues => ({ bounds, counts: [...counts], sum, count });

export function takeSnapshot(from: {
  readonly counters: ProxyCounters;
  readonly requests: RequestMetricsTable;
  readonly tcp: TcpMetricsTable;
  readonly clusters: Iterable<Cluster>;
  readonly listeners: readonly ListenerStats[];
}): StatsSnapshot {
  const cpu = process.cpuUsage();
  return {
    counters: { ...from.counters.values },
    violations: Object.fromEntries(from.counters.violations),
    series: { ...Object.fromEntries(from.counters.series), ...errorSeries() },
    requests: [...from.requests].map((series) => ({
      labels: series.labels,
      requests: series.requests,
      durationMs: copyHistogram(series.durationMs),
      requestBytes: copyHistogram(series.requestBytes),
      responseBytes: copyHistogram(series.responseBytes),
    })),
    tcp: [...from.tcp].map(({ labels, opened, closed, receivedBytes, sentBytes }) => ({ labels, opened, closed, receivedBytes, sentBytes })),
    clusters: [...from.clusters].map((cluster) => ({
      name: cluster.name,
      counters: { ...cluster.counters },
      activeRequests: cluster.activeRequests,
      pendingRequests: cluster.pendingRequests,
      healthy: cluster.healthyCount,
      ejected: cluster.ejectedCount,
      violations: Object.fromEntries(cluster.violations),
      endpoints: cluster.endpoints.map((endpoint) => ({
        address: endpoint.text,
        healthy: endpoint.isHealthy && endpoint.checkProblem === undefined,
        checkProblem: endpoint.checkProblem ?? '',
        ejected: endpoint.outlier?.isEjected ?? false,
        weight: endpoint.weight,
        workload: endpoint.peer.workload,
        version: endpoint.peer.version,
        mutualTls: endpoint.transport.isMesh,
        connections: endpoint.connections,
        http2Connections: endpoint.http2.length,
        rttMs: Math.max(-1, ...endpoint.http2.map(({ http2 }) => http2.rttMs)),
        activeRequests: endpoint.activeRequests,
      })),
    })),
    listeners: from.listeners,
    residentBytes: process.memoryUsage.rss(),
    cpuSeconds: (cpu.user + cpu.system) / 1e6,
    activeResources: countBy(process.getActiveResourcesInfo()),
    workers: 1,
  };
}

function countBy(names: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of names) counts[name] = (counts[name] ?? 0) + 1;
  return counts;
}

/** Adds up what several event loops have counted. */
export function mergeSnapshots(snapshots: readonly StatsSnapshot[]): StatsSnapshot {
  return {
    counters: addNumbers(snapshots.map((snapshot) => snapshot.counters)),
    violations: addNumbers(snapshots.map((snapshot) => snapshot.violations)),
    series: addNumbers(snapshots.map((snapshot) => snapshot.series)),
    requests: mergeBy(
      snapshots.flatMap((snapshot) => snapshot.requests),
      (series) => series.labels,
      (a, b) => ({
        labels: a.labels,
        requests: a.requests + b.requests,
        durationMs: addHistograms(a.durationMs, b.durationMs),
        requestBytes: addHistograms(a.requestBytes, b.requestBytes),
        responseBytes: addHistograms(a.responseBytes, b.responseBytes),
      }),
    ),
    tcp: mergeBy(
      snapshots.flatMap((snapshot) => snapshot.tcp),
      (series) => series.labels,
      (a, b) => ({
        labels: a.labels,
        opened: a.opened + b.opened,
        closed: a.closed + b.closed,
        receivedBytes: a.receivedBytes + b.receivedBytes,
        sentBytes: a.sentBytes + b.sentBytes,
      }),
    ),
    clusters: mergeBy(
      snapshots.flatMap((snapshot) => snapshot.clusters),
      (cluster) => cluster.name,
      (a, b) => ({
        ...a,
        counters: addNumbers([a.counters, b.counters]),
        activeRequests: a.activeRequests + b.activeRequests,
        pendingRequests: a.pendingRequests + b.pendingRequests,
        ejected: a.ejected + b.ejected,
        violations: addNumbers([a.violations, b.violations]),
        endpoints: mergeBy(
          [...a.endpoints, ...b.endpoints],
          (endpoint) => endpoint.address,
          (x, y) => ({
            ...x,
            ejected: x.ejected || y.ejected,
            connections: x.connections + y.connections,
            http2Connections: x.http2Connections + y.http2Connections,
            rttMs: Math.max(x.rttMs, y.rttMs),
            activeRequests: x.activeRequests + y.activeRequests,
          }),
        ),
      }),
    ),
    listeners: mergeBy(
      snapshots.flatMap((snapshot) => snapshot.listeners),
      (listener) => listener.name,
      (a, b) => ({ ...a, listening: a.listening && b.listening, connections: a.connections + b.connections }),
    ),
    residentBytes: sum(snapshots.map((snapshot) => snapshot.residentBytes)),
    cpuSeconds: sum(snapshots.map((snapshot) => snapshot.cpuSeconds)),
    activeResources: addNumbers(snapshots.map((snapshot) => snapshot.activeResources)),
    workers: sum(snapshots.map((snapshot) => snapshot.workers)),
  };
}

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

function addNumbers(records: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const total: Record<string, number> = {};
  for (const record of records) for (const [name, value] of Object.entries(record)) total[name] = (total[name] ?? 0) + value;
  return total;
}

function addHistograms(a: HistogramValues, b: HistogramValues): HistogramValues {
  return { bounds: a.bounds, counts: a.counts.map((count, i) => count + (b.counts[i] ?? 0)), sum: a.sum + b.sum, count: a.count + b.count };
}

function mergeBy<Item>(items: readonly Item[], keyOf: (item: Item) => string, merge: (a: Item, b: Item) => Item): Item[] {
  const merged = new Map<string, Item>();
  for (const item of items) {
    const key = keyOf(item);
    const known = merged.get(key);
    merged.set(key, known === undefined ? item : merge(known, item));
  }
  return [...merged.values()];
}
