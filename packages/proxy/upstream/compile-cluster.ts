import { isIP } from 'node:net';
import { isUnixPath, MizzenError } from '@mizzen/common';
import { durationToMs, durationToTimerMs, unpackAny } from '@mizzen/envoy-api';
import { CircuitBreakers_ThresholdsSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/circuit_breaker_pb.js';
import {
  Cluster_DiscoveryType,
  type Cluster as ClusterMessage,
  ClusterSchema,
  Cluster_DnsLookupFamily as DnsFamily,
  type UpstreamConnectionOptions,
  UpstreamConnectionOptionsSchema,
} from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { type BindConfig, BindConfigSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/address_pb.js';
import type { Metadata, TransportSocket } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { HealthStatus } from '@mizzen/envoy-api/gen/envoy/config/core/v3/health_check_pb.js';
import { ProxyProtocolConfig_Version } from '@mizzen/envoy-api/gen/envoy/config/core/v3/proxy_protocol_pb.js';
import type { LbEndpoint } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_components_pb.js';
import type { ClusterLoadAssignment } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_pb.js';
import { ProxyProtocolUpstreamTransportSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol_pb.js';
import { UpstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { HttpProtocolOptionsSchema } from '@mizzen/envoy-api/gen/envoy/extensions/upstreams/http/v3/http_protocol_options_pb.js';
import { defaultHeadLimits } from '../message/head-limits.ts';
import type { HeaderCase } from '../message/header-case.ts';
import { compileHeaderCase } from '../net/compile-connection-manager.ts';
import { compileHttp2Options } from '../net/compile-http2-options.ts';
import { checkUnixPath, type UnixSocketPolicy } from '../net/unix-socket.ts';
import { serviceNameOf } from '../route/compile-routes.ts';
import { type PeerMetadata, unknownPeer } from '../telemetry/peer-metadata.ts';
import { ClientTls } from '../tls/client-tls.ts';
import type { SecretStore } from '../tls/secret-store.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import type { LocalityEndpoints } from './balancing/host-set.ts';
import { Cluster, type ClusterSettings } from './cluster.ts';
import { compileBalancing } from './compile-balancing.ts';
import { compileHealthCheck } from './compile-health-check.ts';
import { compileOutliers } from './compile-outliers.ts';
import { DnsAddresses, type DnsSettings, minDnsRefreshMs } from './dns-addresses.ts';
import { Endpoint } from './endpoint.ts';
import { OriginalDestinations } from './original-destinations.ts';
import { plainTransport, proxyProtocolTransport, type SocketSettings, type Transport, tlsTransport } from './transport.ts';

/** A cluster as compiled from xDS, with what is needed to turn its endpoints' messages into endpoints. */
export interface CompiledCluster {
  readonly cluster: Cluster;
  readonly message: ClusterMessage;
  /** The EDS resource that its endpoints come from; undefined when it holds them itself. */
  readonly edsName: string | undefined;
  /** The secrets of its transports that come from the control plane. */
  readonly secretNames: readonly string[];
  applyAssignment(assignment: ClusterLoadAssignment): void;
  /** What it needs before it can take traffic: endpoints by EDS, secrets. */
  missing(): string[];
}

const supportedOfCluster = supportedFields(ClusterSchema, [
  ...['name', 'altStatName', 'metadata', 'type', 'edsClusterConfig', 'loadAssignment', 'connectTimeout', 'lbPolicy', 'circuitBreakers', 'preconnectPolicy'],
  ...['ringHashLbConfig', 'maglevLbConfig', 'leastRequestLbConfig', 'roundRobinLbConfig', 'originalDstLbConfig', 'commonLbConfig', 'outlierDetection'],
  ...[
    'maxRequestsPerConnection',
    'commonHttpProtocolOptions',
    'httpProtocolOptions',
    'http2ProtocolOptions',
    'typedExtensionProtocolOptions',
    'transportSocket',
  ],
  ...['transportSocketMatches', 'healthChecks', 'perConnectionBufferLimitBytes', 'dnsLookupFamily', 'dnsRefreshRate', 'respectDnsTtl', 'upstreamBindConfig'],
  'upstreamConnectionOptions',
]);
const supportedOfThresholds = supportedFields(CircuitBreakers_ThresholdsSchema, [
  'priority',
  'maxConnections',
  'maxPendingRequests',
  'maxRequests',
  'maxRetries',
  'retryBudget',
  'trackRemaining',
]);

export function compileCluster(message: ClusterMessage, secrets: SecretStore, random: () => number, unixSockets: UnixSocketPolicy): CompiledCluster {
  const place = `cluster ${message.name}`;
  refuseUnsupported(ClusterSchema, message, supportedOfCluster, place);
  for (const limits of message.circuitBreakers?.thresholds ?? []) refuseUnsupported(CircuitBreakers_ThresholdsSchema, limits, supportedOfThresholds, place);
  const type = message.clusterDiscoveryType.case === 'type' ? message.clusterDiscoveryType.value : undefined;
  if (type === undefined) throw new MizzenError('unsupported-cluster', `${place}: custom cluster types are not supported`);
  const socket: SocketSettings = {
    sourceAddress: compileSourceAddress(message.upstreamBindConfig, place),
    keepaliveAfterMs: compileKeepalive(message.upstreamConnectionOptions, place),
  };
  const base = compileTransport(message.transportSocket, secrets, socket, place);
  const matches = message.transportSocketMatches.map((match) => ({
    match: Object.entries(match.match ?? {}),
    transport: compileTransport(match.transportSocket, secrets, socket, `${place}, transport_socket_match ${match.name}`),
  }));
  const transportFor = (metadata: Metadata | undefined): Transport => {
    if (matches.length === 0) return base;
    const given = metadata?.filterMetadata['envoy.transport_socket_match'] ?? {};
    return matches.find(({ match }) => match.every(([key, value]) => given[key] === value))?.transport ?? base;
  };
  const thresholds = message.circuitBreakers?.thresholds.find((threshold) => threshold.priority === 0);
  const defaultPort = Number(message.name.split('|')[1]) || 80;
  const cluster = new Cluster(
    {
      name: message.name,
      connectTimeoutMs: durationToTimerMs(message.connectTimeout) ?? 5_000,
      balancing: compileBalancing(message, random, place),
      outliers: compileOutliers(message.outlierDetection, place),
      maxConnections: thresholds?.maxConnections ?? 1024,
      maxPendingRequests: thresholds?.maxPendingRequests ?? 1024,
      maxRequests: thresholds?.maxRequests ?? 1024,
      maxRetries: thresholds?.maxRetries ?? 3,
      retryBudget: thresholds?.retryBudget && {
        percent: thresholds.retryBudget.budgetPercent?.value ?? 20,
        minimum: thresholds.retryBudget.minRetryConcurrency ?? 3,
      },
      ...compileHttpOptions(message, place),
      preconnectRatio: message.preconnectPolicy?.perUpstreamPreconnectRatio ?? 1,
      service: serviceNameOf(message.metadata),
      originalDestinations:
        type === Cluster_DiscoveryType.ORIGINAL_DST ? new OriginalDestinations(base, defaultPort, namesDestination(message, place)) : undefined,
      blockReason: blockReasonOf(message.metadata),
    },
    random,
  );
  cluster.checkHealth(
    message.healthChecks.map((check) => compileHealthCheck(check, place)),
    random,
  );
  const applyAssignment = (assignment: ClusterLoadAssignment, addresses?: ReadonlyMap<string, readonly string[]>) => {
    const before = new Map(cluster.endpoints.map((endpoint) => [endpoint.text, endpoint]));
    const localities = assignment.endpoints.map(
      (group): LocalityEndpoints => ({
        priority: group.priority,
        weight: group.loadBalancingWeight ?? 0,
        endpoints: withAddresses(group.lbEndpoints, addresses).map(({ entry, address }) => {
          const made = compileEndpoint(entry, address, transportFor, place, unixSockets);
          // The same endpoint keeps its connections and counts.
          const kept = before.get(made.text);
          if (kept === undefined || kept.transport !== made.transport || !isSamePeer(kept.peer, made.peer)) return made;
          kept.weight = made.weight;
          kept.isHealthy = made.isHealthy;
          return kept;
        }),
      }),
    );
    cluster.setEndpoints(localities, assignment.policy?.overprovisioningFactor);
  };
  const { loadAssignment } = message;
  if (loadAssignment) applyAssignment(loadAssignment);
  if (loadAssignment && type === Cluster_DiscoveryType.STRICT_DNS) {
    // Until they are resolved, names are left to each connection.
    const names = [
      ...new Set(loadAssignment.endpoints.flatMap(({ lbEndpoints }) => lbEndpoints.map(hostOf)).filter((name) => name !== '' && isIP(name) === 0)),
    ];
    if (names.length > 0) cluster.closeWith(new DnsAddresses(names, compileDns(message), (addresses) => applyAssignment(loadAssignment, addresses)));
  }
  const edsName = type === Cluster_DiscoveryType.EDS ? message.edsClusterConfig?.serviceName || message.name : undefined;
  let hasEndpoints = edsName === undefined;
  const transports = [base, ...matches.map(({ transport }) => transport)];
  return {
    cluster,
    message,
    edsName,
    secretNames: transports.flatMap(({ secretNames }) => secretNames),
    applyAssignment(assignment) {
      applyAssignment(assignment);
      hasEndpoints = true;
    },
    missing: () => [
      ...(hasEndpoints ? [] : ['its endpoints']),
      ...transports.map((transport) => transport.notReadyReason).filter((reason) => reason !== undefined),
    ],
  };
}

function isSamePeer(a: PeerMetadata, b: PeerMetadata): boolean {
  return (
    a === b ||
    (a.workload === b.workload &&
      a.namespace === b.namespace &&
      a.canonicalService === b.canonicalService &&
      a.canonicalRevision === b.canonicalRevision &&
      a.cluster === b.cluster &&
      a.app === b.app &&
      a.version === b.version &&
      a.principal === b.principal)
  );
}

/** Whether calls go where their Host says, whatever the address was that they were for (`original_dst_lb_config`). */
function namesDestination({ lbConfig }: ClusterMessage, place: string): boolean {
  if (lbConfig.case !== 'originalDstLbConfig' || !lbConfig.value.useHttpHeader) return false;
  if (lbConfig.value.httpHeaderName !== ':authority')
    throw new MizzenError('unsupported-cluster', `${place}: of headers, only :authority may say where a call goes`);
  return true;
}

/** A name with several addresses stands for as many endpoints. */
function withAddresses(entries: readonly LbEndpoint[], addresses: ReadonlyMap<string, readonly string[]> | undefined) {
  return entries.flatMap((entry) => (addresses?.get(hostOf(entry)) ?? [undefined]).map((address) => ({ entry, address })));
}

/** '' of a Unix socket, which is not resolved. */
function hostOf({ hostIdentifier }: LbEndpoint): string {
  const address = hostIdentifier.case === 'endpoint' ? hostIdentifier.value.address?.address : undefined;
  return address?.case === 'socketAddress' ? address.value.address : '';
}

/** cluster.proto `dns_refresh_rate`. */
const defaultDnsRefreshMs = 5_000;

function compileDns(message: ClusterMessage): DnsSettings {
  const families = {
    [DnsFamily.V4_ONLY]: 'v4',
    [DnsFamily.V6_ONLY]: 'v6',
    [DnsFamily.ALL]: 'all',
    [DnsFamily.AUTO]: 'preferV4',
    [DnsFamily.V4_PREFERRED]: 'preferV4',
  } as const;
  return {
    refreshMs: Math.max(minDnsRefreshMs, durationToTimerMs(message.dnsRefreshRate) ?? defaultDnsRefreshMs),
    respectsTtl: message.respectDnsTtl,
    family: families[message.dnsLookupFamily] ?? 'preferV4',
  };
}

function compileEndpoint(
  entry: LbEndpoint,
  resolved: string | undefined,
  transportFor: (metadata: Metadata | undefined) => Transport,
  place: string,
  unixSockets: UnixSocketPolicy,
): Endpoint {
  const address = entry.hostIdentifier.case === 'endpoint' ? entry.hostIdentifier.value.address?.address : undefined;
  const isPort = address?.case === 'socketAddress' && address.value.portSpecifier.case === 'portValue';
  if (!isPort && address?.case !== 'pipe') throw new MizzenError('unsupported-endpoint', `${place}: an endpoint needs a socket address with a port, or a pipe`);
  const transport = transportFor(entry.metadata);
  if (address.case === 'pipe') checkUnixPath(address.value.path, unixSockets, place);
  else if (isUnixPath(address.value.address)) throw new MizzenError('unsupported-endpoint', `${place}: an address must not be a path: a Unix socket is a pipe`);
  if (address.case === 'pipe' && (transport.isTls || transport.isPerClient))
    throw new MizzenError('unsupported-endpoint', `${place}: TLS and the PROXY protocol are not supported to a Unix socket`, address.value.path);
  return new Endpoint({
    unixPath: address.case === 'pipe' ? address.value.path : undefined,
    address: address.case === 'pipe' ? address.value.path : (resolved ?? address.value.address),
    port: address.case === 'socketAddress' && address.value.portSpecifier.case === 'portValue' ? address.value.portSpecifier.value : 0,
    weight: entry.loadBalancingWeight || 1,
    isHealthy: entry.healthStatus === HealthStatus.UNKNOWN || entry.healthStatus === HealthStatus.HEALTHY || entry.healthStatus === HealthStatus.DEGRADED,
    transport,
    peer: peerOf(entry.metadata),
  });
}

/** `filter_metadata.istio.workload` is `workload;namespace;canonical name;canonical revision;cluster`. */
function peerOf(metadata: Metadata | undefined): PeerMetadata {
  const text = metadata?.filterMetadata['istio']?.['workload'];
  if (typeof text !== 'string') return unknownPeer;
  const [workload = 'unknown', namespace = 'unknown', canonicalService = 'unknown', canonicalRevision = 'latest', cluster = 'unknown'] = text.split(';');
  const own = metadata?.filterMetadata['mizzen.endpoint'] ?? {};
  const principal = own['principal'];
  return {
    workload,
    namespace,
    canonicalService,
    canonicalRevision,
    cluster,
    app: String(own['app'] || canonicalService),
    version: String(own['version'] || canonicalRevision),
    principal: typeof principal === 'string' ? principal : 'unknown',
  };
}

/** Idle upstream connections end before most servers would end them (Envoy: after an hour). */
const defaultIdleTimeoutMs = 60_000;

/** Streams on one connection to an endpoint, if it takes so many: more go to another connection (Envoy has no limit of its own). */
const maxStreamsUpstream = 1024;

/** `typed_extension_protocol_options` of HTTP, and the older fields of the cluster itself. */
function compileHttpOptions(message: ClusterMessage, place: string) {
  const options = unpackAny(HttpProtocolOptionsSchema, message.typedExtensionProtocolOptions['envoy.extensions.upstreams.http.v3.HttpProtocolOptions']);
  const protocol = options?.upstreamProtocolOptions;
  const explicit = protocol?.case === 'explicitHttpConfig' ? protocol.value.protocolConfig : undefined;
  if (explicit?.case === 'http3ProtocolOptions' || protocol?.case === 'autoConfig')
    throw new MizzenError('unsupported-cluster', `${place}: HTTP/3 and auto_config are not spoken to clusters: say which of HTTP/1.1 and HTTP/2 it is`);
  const own = protocol?.case === 'useDownstreamProtocolConfig' ? protocol.value : undefined;
  const common = options?.commonHttpProtocolOptions ?? message.commonHttpProtocolOptions;
  const http1 = explicit?.case === 'httpProtocolOptions' ? explicit.value : (own?.httpProtocolOptions ?? message.httpProtocolOptions);
  const http2 = explicit?.case === 'http2ProtocolOptions' ? explicit.value : (own?.http2ProtocolOptions ?? message.http2ProtocolOptions);
  const maxHeaderCount = common?.maxHeadersCount ?? defaultHeadLimits.maxHeaderCount;
  const headerCase: HeaderCase = compileHeaderCase(http1?.headerKeyFormat, place);
  return {
    maxRequestsPerConnection: common?.maxRequestsPerConnection ?? message.maxRequestsPerConnection ?? 0,
    idleTimeoutMs: durationToMs(common?.idleTimeout) ?? defaultIdleTimeoutMs,
    maxConnectionDurationMs: durationToMs(common?.maxConnectionDuration) ?? 0,
    protocol: (own
      ? 'downstream'
      : explicit?.case === 'http2ProtocolOptions' || (!explicit && message.http2ProtocolOptions)
        ? 'http2'
        : 'http1') as ClusterSettings['protocol'],
    http2: compileHttp2Options(http2, { ...defaultHeadLimits, maxHeaderCount }, place, maxStreamsUpstream),
    maxHeaderCount,
    maxResponseHeadBytes: defaultHeadLimits.maxHeadBytes,
    headerCase,
  };
}

function compileTransport(message: TransportSocket | undefined, secrets: SecretStore, socket: SocketSettings, place: string): Transport {
  if (message === undefined) return plainTransport(socket);
  const any = message.configType.case === 'typedConfig' ? message.configType.value : undefined;
  const tls = unpackAny(UpstreamTlsContextSchema, any);
  if (tls) return tlsTransport(new ClientTls(tls, secrets, place), socket);
  const proxied = unpackAny(ProxyProtocolUpstreamTransportSchema, any);
  if (proxied) {
    const inner = proxied.transportSocket?.configType.case === 'typedConfig' ? proxied.transportSocket.configType.value : undefined;
    const innerTls = unpackAny(UpstreamTlsContextSchema, inner);
    if (inner && !innerTls && !inner.typeUrl.endsWith('.RawBuffer'))
      throw new MizzenError('unsupported-transport', `${place}: inside the PROXY protocol only TLS and raw_buffer are supported`);
    return proxyProtocolTransport(
      proxied.config?.version === ProxyProtocolConfig_Version.V2 ? 2 : 1,
      innerTls && new ClientTls(innerTls, secrets, place),
      socket,
    );
  }
  if (message.name === 'envoy.transport_sockets.raw_buffer' || any?.typeUrl.endsWith('.RawBuffer')) return plainTransport(socket);
  throw new MizzenError('unsupported-transport', `${place}: the transport socket ${message.name} is not supported`);
}

/** `upstream_connection_options`. Node.js sets the time before the first probe; number and distance of the probes are the system's. */
function compileKeepalive(options: UpstreamConnectionOptions | undefined, place: string): number | undefined {
  if (options === undefined) return undefined;
  refuseUnsupported(UpstreamConnectionOptionsSchema, options, new Set(['tcpKeepalive']), place);
  return options.tcpKeepalive && (options.tcpKeepalive.keepaliveTime ?? systemKeepaliveSeconds) * 1000;
}

const systemKeepaliveSeconds = 7_200;

/** `upstream_bind_config`: the address that connections come from. */
function compileSourceAddress(bind: BindConfig | undefined, place: string): string | undefined {
  if (bind === undefined) return undefined;
  refuseUnsupported(BindConfigSchema, bind, new Set(['sourceAddress']), place);
  if (bind.sourceAddress?.portSpecifier.case === 'portValue' && bind.sourceAddress.portSpecifier.value !== 0)
    throw new MizzenError('unsupported-cluster', `${place}: upstream_bind_config may name an address, not a port`);
  return bind.sourceAddress?.address;
}

function blockReasonOf(metadata: Metadata | undefined): string | undefined {
  const reason = metadata?.filterMetadata['mizzen.block']?.['reason'];
  return typeof reason === 'string' ? reason : undefined;
}
