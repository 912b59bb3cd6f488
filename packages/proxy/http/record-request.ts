import { writeAccessLogs } from '../telemetry/access-log.ts';
import { unknownPeer } from '../telemetry/peer-metadata.ts';
import type { RequestLabels, RequestMetrics } from '../telemetry/request-metrics.ts';
import type { Exchange } from './exchange.ts';

/** Counts a finished request in the standard metrics and writes its access log lines. */
export function recordRequest(exchange: Exchange): void {
  const { settings } = exchange;
  metricsOf(exchange).record(exchange.durationMs, exchange.bytesReceived, exchange.bytesSent);
  writeAccessLogs(settings.accessLogs, exchange);
}

/** Found with one look-up for a request like one before: by endpoint, response code, flags, and the peer's identity and name. */
function metricsOf(exchange: Exchange): RequestMetrics {
  const { endpoint, responseCode, responseFlags } = exchange;
  const isInbound = exchange.settings.direction === 'inbound';
  if (endpoint === undefined) return metricsWithoutEndpoint(exchange, isInbound);
  let key = responseFlags === '-' ? String(responseCode) : `${responseCode}/${responseFlags}`;
  if (exchange.isGrpc) key += `/grpc${grpcStatusOf(exchange)}`;
  if (isInbound) key += `/${exchange.peerUri}/${exchange.peerMetadata.workload}/${exchange.peerMetadata.version}`;
  const found = endpoint.metrics.get(key);
  if (found !== undefined) return found;
  const metrics = exchange.settings.context.metrics.get(labelsOf(exchange));
  if (endpoint.metrics.size >= 1_000) endpoint.metrics.clear();
  endpoint.metrics.set(key, metrics);
  return metrics;
}

/** Answers of the proxy's own: by all that their labels are made of. */
function metricsWithoutEndpoint(exchange: Exchange, isInbound: boolean): RequestMetrics {
  const { settings, responseCode, responseFlags, virtualHost, cluster, peerMetadata } = exchange;
  const { metrics } = settings.context;
  let key = `${settings.direction}/${settings.isTls}/${responseCode}/${responseFlags}/${virtualHost?.service?.host ?? ''}/${cluster?.name ?? ''}`;
  if (exchange.isGrpc) key += `/grpc${grpcStatusOf(exchange)}`;
  if (isInbound) key += `/${exchange.peerUri}/${peerMetadata.workload}/${peerMetadata.version}`;
  let found = metrics.withoutEndpoint.get(key);
  if (found === undefined) {
    found = metrics.get(labelsOf(exchange));
    if (metrics.withoutEndpoint.size >= 1_000) metrics.withoutEndpoint.clear();
    metrics.withoutEndpoint.set(key, found);
  }
  return found;
}

/** What peers invent is not made a label. */
function grpcStatusOf({ isGrpc, grpcStatus }: Exchange): string {
  return isGrpc && /^(?:\d|1[0-6])$/.test(grpcStatus) ? grpcStatus : '';
}

function labelsOf(exchange: Exchange): RequestLabels {
  const { settings, endpoint } = exchange;
  const { self } = settings.context;
  const common = { responseCode: exchange.responseCode, responseFlags: exchange.responseFlags, isGrpc: exchange.isGrpc, grpcStatus: grpcStatusOf(exchange) };
  if (settings.direction === 'inbound') {
    return {
      ...common,
      reporter: 'destination',
      source: exchange.peerMetadata,
      destination: self,
      sourcePrincipal: exchange.peerUri || 'unknown',
      destinationPrincipal: settings.isTls ? self.principal : 'unknown',
      service: exchange.virtualHost?.service,
      requestedHost: 'unknown',
      securityPolicy: settings.isTls ? 'mutual_tls' : 'none',
    };
  }
  const isMesh = endpoint?.transport.isMesh === true;
  return {
    ...common,
    reporter: 'source',
    source: self,
    destination: endpoint?.peer ?? unknownPeer,
    sourcePrincipal: isMesh ? self.principal : 'unknown',
    destinationPrincipal: isMesh ? endpoint.peer.principal : 'unknown',
    service: exchange.cluster?.service ?? exchange.virtualHost?.service,
    requestedHost: exchange.cluster === undefined ? 'unknown' : exchange.cluster.name,
    securityPolicy: isMesh ? 'mutual_tls' : endpoint === undefined ? 'unknown' : 'none',
  };
}
