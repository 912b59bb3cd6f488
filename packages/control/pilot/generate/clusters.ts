import { isIP } from 'node:net';
import { create } from '@bufbuild/protobuf';
import type { ClientTlsSpec, ConnectionPoolSpec, DestinationRuleSpec, SubsetSpec, TrafficPolicySpec } from '@mizzen/api';
import { parseDurationMs } from '@mizzen/common';
import { durationFromMs, type Init, packAny } from '@mizzen/envoy-api';
import {
  type Cluster,
  Cluster_DiscoveryType,
  Cluster_DnsLookupFamily,
  Cluster_LbPolicy,
  ClusterSchema,
} from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { TransportSocketSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { ProxyProtocolConfig_Version } from '@mizzen/envoy-api/gen/envoy/config/core/v3/proxy_protocol_pb.js';
import { ProxyProtocolUpstreamTransportSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol_pb.js';
import { RawBufferSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer_pb.js';
import type { CertificateValidationContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { CommonTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { UpstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { HttpProtocolOptionsSchema } from '@mizzen/envoy-api/gen/envoy/extensions/upstreams/http/v3/http_protocol_options_pb.js';
import { spiffeUri } from '../../citadel/spiffe-identity.ts';
import { apisOf, rateLimitCluster } from '../apis/listener-filters.ts';
import { type BackendTls, backendTlsOf } from '../gateway-api/backend-tls.ts';
import type { Capture, ProxyView } from '../proxy-view.ts';
import { type Instance, mayBeHttp, type Protocol, type Service, type ServicePort, selects } from '../registry/service.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { clientSecretNames } from './client-tls.ts';
import { listenAddress, socketAddress } from './connection-manager.ts';
import { destinationRuleFor, type EffectivePolicy, effectivePolicy } from './destination-policy.ts';
import { localityEndpoints } from './endpoints.ts';
import { GenerationBudget, generationLimits } from './generation-budget.ts';
import { implementedService } from './inbound-chains.ts';
import { balancing, commonBalancing, outlierDetection } from './load-balancing.ts';
import { localityGroups, placementFor, weighsLocalities } from './localities.ts';
import {
  blackHoleCluster,
  inboundClusterName,
  inboundPassthroughCluster,
  inboundPassthroughClusterIpv6,
  outboundClusterName,
  passthroughCluster,
  provenance,
  splitAddress,
} from './names.ts';
import { ads, meshClientTls, rootSecretName, type Spoken, trustDomainsOf, workloadSecretName } from './tls-contexts.ts';

const defaultConnectTimeoutMs = 10_000;

import { inboundPoolOf, visibleServices } from './sidecar-scope.ts';

/** CDS: one cluster per service, port and subset that the proxy sees, and one per inbound port. */
export function clustersFor(view: ProxyView, snapshot: MeshSnapshot): Cluster[] {
  const clusters: Cluster[] = [];
  const budget = new GenerationBudget('clusters', generationLimits.maxClusters);
  const planned = visibleServices(view, snapshot).map((service) => ({ service, rule: destinationRuleFor(service, view, snapshot) }));
  for (const { service, rule } of planned) budget.spend(service.ports.length * (1 + (rule?.spec.subsets?.length ?? 0)));
  for (const { service, rule } of planned) {
    for (const port of service.ports) {
      if (port.protocol === 'UDP') continue;
      clusters.push(outboundCluster(service, port, undefined, rule, view, snapshot));
      for (const subset of rule?.spec.subsets ?? []) clusters.push(outboundCluster(service, port, subset, rule, view, snapshot));
    }
  }
  for (const port of view.inbound)
    clusters.push(inboundCluster(port.port, port.app, implementedService(port, view, snapshot).protocol, inboundPoolOf(port.port, view, snapshot)));
  if (view.capture) clusters.push(...captureClusters(view.capture));
  const { edge, client, sidecar } = apisOf(view, snapshot);
  if (view.control !== undefined && [...edge, ...client, ...sidecar].some((api) => api.hasGlobalLimits)) clusters.push(rateLimitServiceCluster(view.control));
  return clusters;
}

function outboundCluster(
  service: Service,
  port: ServicePort,
  subset: SubsetSpec | undefined,
  rule: Configured<DestinationRuleSpec> | undefined,
  view: ProxyView,
  snapshot: MeshSnapshot,
): Cluster {
  const name = outboundClusterName(port.number, subset?.name ?? '', service.hostname);
  const policy = effectivePolicy(rule?.spec, subset, port.number);
  const isDns = service.resolution === 'dns' || service.resolution === 'dnsOne';
  const members = service.instances.filter((instance) => selects(subset?.labels, instance.labels));
  const placement = placementFor(policy, service, view, snapshot);
  // A captured caller of a headless service has chosen the instance itself.
  const isOriginalDestination =
    policy.loadBalancer?.simple === 'PASSTHROUGH' ||
    service.resolution === 'none' ||
    service.resolution === 'byName' ||
    (service.isHeadless && view.capture !== undefined);
  const subsetIndex = subset ? rule!.spec.subsets!.indexOf(subset) : -1;
  const metadata = rule ? provenance(rule, subset ? `spec.subsets[${subsetIndex}]` : undefined) : undefined;
  const tcp = policy.connectionPool?.tcp;
  const http = policy.connectionPool?.http;
  const cluster = create(ClusterSchema, {
    name,
    clusterDiscoveryType: {
      case: 'type',
      value:
        service.resolution === 'dnsOne'
          ? Cluster_DiscoveryType.LOGICAL_DNS
          : isDns
            ? Cluster_DiscoveryType.STRICT_DNS
            : isOriginalDestination
              ? Cluster_DiscoveryType.ORIGINAL_DST
              : Cluster_DiscoveryType.EDS,
    },
    ...(service.resolution === 'static' && !isOriginalDestination ? { edsClusterConfig: { edsConfig: ads, serviceName: name } } : {}),
    ...(isDns
      ? { loadAssignment: { clusterName: name, endpoints: localityEndpoints(localityGroups(members, placement, view, snapshot), port, service) } }
      : {}),
    ...(isDns
      ? { dnsRefreshRate: durationFromMs(snapshot.meshConfig.dnsRefreshMs), respectDnsTtl: true, dnsLookupFamily: Cluster_DnsLookupFamily.V4_PREFERRED }
      : {}),
    connectTimeout: durationFromMs((tcp?.connectTimeout && parseDurationMs(tcp.connectTimeout)) || defaultConnectTimeoutMs),
    ...(isOriginalDestination
      ? {
          lbPolicy: Cluster_LbPolicy.CLUSTER_PROVIDED,
          ...(service.resolution === 'byName'
            ? { lbConfig: { case: 'originalDstLbConfig' as const, value: { useHttpHeader: true, httpHeaderName: ':authority' } } }
            : {}),
        }
      : { ...balancing(policy.loadBalancer), ...commonBalancing(policy.outlierDetection, weighsLocalities(placement)) }),
    ...outlierDetection(policy.outlierDetection),
    ...(tcp?.tcpKeepalive ? { upstreamConnectionOptions: { tcpKeepalive: tcpKeepalive(tcp.tcpKeepalive) } } : {}),
    circuitBreakers: { thresholds: [{ ...limitsOf(policy.connectionPool), ...(policy.retryBudget ? { retryBudget: retryBudget(policy.retryBudget) } : {}) }] },
    metadata: {
      filterMetadata: {
        ...metadata?.filterMetadata,
        istio: {
          ...(metadata?.filterMetadata['istio'] ?? {}),
          services: [{ host: service.hostname, name: service.name, namespace: service.namespace }],
          ...(subset ? { subset: subset.name } : {}),
          default_original_port: port.number,
        },
      },
    },
  });
  const spoken = spokenTo(service, port, policy, snapshot);
  Object.assign(cluster, httpOptions(spoken, connectionLimits(policy.connectionPool), http));
  const backendTls = policy.tls ? undefined : backendTlsOf(service, port, snapshot);
  if (backendTls) applyBackendTls(cluster, backendTls, spoken);
  else applyTls(cluster, service, spoken, isOriginalDestination, policy.tls, rule?.namespace, snapshot);
  if (policy.proxyProtocol) applyProxyProtocol(cluster, policy.proxyProtocol.version ?? 'V1');
  return cluster;
}

/**
 * What is spoken to a port: what it declares; HTTP/2 where a policy has connections upgraded and all instances have a sidecar to take it;
 * where nothing is declared, or a policy says so, what the client speaks.
 */
function spokenTo(service: Service, port: ServicePort, policy: EffectivePolicy, snapshot: MeshSnapshot): Spoken {
  if (!mayBeHttp(port.protocol)) return 'bytes';
  const http = policy.connectionPool?.http;
  if (http?.useClientProtocol) return 'either';
  if (port.protocol === 'HTTP2' || port.protocol === 'GRPC') return 'http2';
  if (port.protocol === 'AUTO') return 'either';
  const upgrade = http?.h2UpgradePolicy ?? 'DEFAULT';
  const isUpgraded = upgrade === 'UPGRADE' || (upgrade === 'DEFAULT' && snapshot.meshConfig.upgradesToHttp2);
  const isMesh = policy.tls?.mode === undefined || policy.tls.mode === 'ISTIO_MUTUAL';
  return isUpgraded && isMesh && service.instances.length > 0 && service.instances.every((instance) => instance.hasSidecar) ? 'http2' : 'http1';
}

const httpOptionsKey = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions';

function httpOptions(
  spoken: Spoken,
  commonHttpProtocolOptions: NonNullable<Init<typeof HttpProtocolOptionsSchema>['commonHttpProtocolOptions']>,
  http: NonNullable<ConnectionPoolSpec['http']> | undefined,
): Pick<Cluster, 'typedExtensionProtocolOptions'> | undefined {
  if (spoken === 'bytes') return undefined;
  const keepalive = http?.http2KeepAlive;
  const http2ProtocolOptions = {
    ...(http?.maxConcurrentStreams ? { maxConcurrentStreams: http.maxConcurrentStreams } : {}),
    ...(keepalive
      ? {
          connectionKeepalive: {
            ...(keepalive.interval ? { interval: durationFromMs(parseDurationMs(keepalive.interval) ?? 0) } : {}),
            ...(keepalive.timeout ? { timeout: durationFromMs(parseDurationMs(keepalive.timeout) ?? 0) } : {}),
          },
        }
      : {}),
  };
  const upstreamProtocolOptions: Init<typeof HttpProtocolOptionsSchema>['upstreamProtocolOptions'] =
    spoken === 'either'
      ? { case: 'useDownstreamProtocolConfig', value: { httpProtocolOptions: {}, http2ProtocolOptions } }
      : {
          case: 'explicitHttpConfig',
          value: {
            protocolConfig: spoken === 'http2' ? { case: 'http2ProtocolOptions', value: http2ProtocolOptions } : { case: 'httpProtocolOptions', value: {} },
          },
        };
  return { typedExtensionProtocolOptions: { [httpOptionsKey]: packAny(HttpProtocolOptionsSchema, { commonHttpProtocolOptions, upstreamProtocolOptions }) } };
}

/** Limits of a pool as a whole. */
function limitsOf(pool: ConnectionPoolSpec | undefined) {
  return {
    maxConnections: pool?.tcp?.maxConnections || unlimited,
    maxPendingRequests: pool?.http?.http1MaxPendingRequests || unlimited,
    maxRequests: pool?.http?.http2MaxRequests || unlimited,
    maxRetries: pool?.http?.maxRetries || unlimited,
  };
}

/** Limits of each of its connections. */
function connectionLimits(pool: ConnectionPoolSpec | undefined): NonNullable<Init<typeof HttpProtocolOptionsSchema>['commonHttpProtocolOptions']> {
  const idleTimeout = pool?.http?.idleTimeout ?? pool?.tcp?.idleTimeout;
  const maxDuration = pool?.tcp?.maxConnectionDuration;
  return {
    ...(idleTimeout ? { idleTimeout: durationFromMs(parseDurationMs(idleTimeout) ?? 0) } : {}),
    ...(pool?.http?.maxRequestsPerConnection ? { maxRequestsPerConnection: pool.http.maxRequestsPerConnection } : {}),
    ...(maxDuration ? { maxConnectionDuration: durationFromMs(parseDurationMs(maxDuration) ?? 0) } : {}),
  };
}

/** Envoy's default is 1024; Istio, like us, leaves the limits open unless a DestinationRule sets them. */
const unlimited = 4_294_967_295;

/** Defaults of Envoy, which Istio keeps. */
function retryBudget({ percent = 20, minRetryConcurrency = 3 }: NonNullable<TrafficPolicySpec['retryBudget']>) {
  return { budgetPercent: { value: percent }, minRetryConcurrency: minRetryConcurrency || 3 };
}

function tcpKeepalive({ probes, time, interval }: NonNullable<NonNullable<ConnectionPoolSpec['tcp']>['tcpKeepalive']>) {
  const seconds = (text: string | undefined) => (text === undefined ? undefined : Math.round((parseDurationMs(text) ?? 0) / 1000));
  const [keepaliveTime, keepaliveInterval] = [seconds(time), seconds(interval)];
  return {
    ...(probes === undefined ? {} : { keepaliveProbes: probes }),
    ...(keepaliveTime === undefined ? {} : { keepaliveTime }),
    ...(keepaliveInterval === undefined ? {} : { keepaliveInterval }),
  };
}

/** Every connection begins with whom it is for, before TLS. */
function applyProxyProtocol(cluster: Cluster, version: 'V1' | 'V2'): void {
  const wrapped = (transportSocket: Cluster['transportSocket']) =>
    create(TransportSocketSchema, {
      name: 'envoy.transport_sockets.upstream_proxy_protocol',
      configType: {
        case: 'typedConfig',
        value: packAny(ProxyProtocolUpstreamTransportSchema, {
          config: { version: version === 'V2' ? ProxyProtocolConfig_Version.V2 : ProxyProtocolConfig_Version.V1 },
          transportSocket: transportSocket ?? rawBuffer,
        }),
      },
    });
  for (const match of cluster.transportSocketMatches) match.transportSocket = wrapped(match.transportSocket);
  if (cluster.transportSocketMatches.length === 0) cluster.transportSocket = wrapped(cluster.transportSocket);
}

const rawBuffer: Init<typeof TransportSocketSchema> = {
  name: 'envoy.transport_sockets.raw_buffer',
  configType: { case: 'typedConfig', value: packAny(RawBufferSchema, {}) },
};

function applyTls(
  cluster: Cluster,
  service: Service,
  spoken: Spoken,
  isOriginalDestination: boolean,
  tls: ClientTlsSpec | undefined,
  ruleNamespace: string | undefined,
  snapshot: MeshSnapshot,
): void {
  const identitiesOf = (instances: readonly Instance[]) =>
    [
      ...new Set(
        instances.flatMap(({ namespace, serviceAccount }) =>
          trustDomainsOf(snapshot).map((trustDomain) => spiffeUri({ trustDomain, namespace, serviceAccount })),
        ),
      ),
    ].sort();
  const behindSidecars = identitiesOf(service.instances.filter(({ hasSidecar }) => hasSidecar));
  const mesh = (identities: readonly string[]) =>
    upstreamTls(
      meshClientTls(identities, spoken),
      // An egress gateway tells by it where a connection is to go.
      tls?.sni || `outbound_.${cluster.name.split('|')[1]}_.${cluster.name.split('|')[2]}_.${service.hostname}`,
    );
  if (tls === undefined && !snapshot.meshConfig.hasAutoMtls) return;
  switch (tls?.mode) {
    case 'DISABLE':
      return;
    case 'ISTIO_MUTUAL':
      // Said so, it is spoken to who has no sidecar too: to gateways.
      cluster.transportSocket = mesh(
        tls.subjectAltNames?.length ? tls.subjectAltNames : identitiesOf(service.instances.filter(({ serviceAccount }) => serviceAccount !== '')),
      );
      return;
    case 'SIMPLE':
    case 'MUTUAL': {
      const sni = tls.sni ?? (service.hostname.startsWith('*') ? '' : service.hostname);
      const secrets = clientSecretNames(tls, ruleNamespace ?? '');
      const names = { matchTypedSubjectAltNames: serverNames(tls, service, sni) };
      const crl = tls.caCrl ? { crl: { specifier: { case: 'filename' as const, value: tls.caCrl } } } : {};
      const trustedCa = { specifier: { case: 'filename' as const, value: tls.caCertificates ?? 'system' } };
      const validation: Init<typeof CommonTlsContextSchema> = tls.insecureSkipVerify
        ? {}
        : {
            validationContextType: secrets.roots
              ? {
                  case: 'combinedValidationContext' as const,
                  value: { defaultValidationContext: { ...names, ...crl }, validationContextSdsSecretConfig: { name: secrets.roots, sdsConfig: ads } },
                }
              : { case: 'validationContext' as const, value: { ...names, ...crl, trustedCa } },
          };
      const certificates: Init<typeof CommonTlsContextSchema> = secrets.certificate
        ? { tlsCertificateSdsSecretConfigs: [{ name: secrets.certificate, sdsConfig: ads }] }
        : tls.mode === 'MUTUAL' && tls.clientCertificate && tls.privateKey
          ? {
              tlsCertificates: [
                {
                  certificateChain: { specifier: { case: 'filename' as const, value: tls.clientCertificate } },
                  privateKey: { specifier: { case: 'filename' as const, value: tls.privateKey } },
                },
              ],
            }
          : {};
      cluster.transportSocket = upstreamTls({ ...validation, ...certificates, alpnProtocols: originatedAlpn[spoken] }, sni);
      return;
    }
    default:
      // Nothing was said: mutual TLS to endpoints that have a sidecar, plain text to the others ("auto mTLS").
      if (behindSidecars.length === 0) return;
      if (isOriginalDestination) {
        if (service.instances.every((instance) => instance.hasSidecar)) cluster.transportSocket = mesh(behindSidecars);
        return;
      }
      cluster.transportSocketMatches = create(ClusterSchema, {
        transportSocketMatches: [
          { name: 'tlsMode-istio', match: { tlsMode: 'istio' }, transportSocket: mesh(behindSidecars) },
          {
            name: 'tlsMode-disabled',
            match: {},
            transportSocket: rawBuffer,
          },
        ],
      }).transportSocketMatches;
  }
}

/** One of these names is in the server's certificate. Any certificate of a trusted root would do without one. */
function serverNames(tls: ClientTlsSpec, service: Service, sni: string): Init<typeof CertificateValidationContextSchema>['matchTypedSubjectAltNames'] {
  const named = [tls.subjectAltNames, service.subjectAltNames].find((names) => names?.length) ?? (sni ? [sni] : []);
  if (named.length > 0) return named.map((value) => ({ sanType: value.includes('://') ? 3 : 2, matcher: { matchPattern: { case: 'exact' as const, value } } }));
  // Of a wildcard host every server has a name of its own, or the wildcard.
  const suffix = service.hostname.slice(1);
  return suffix === '' ? [] : [{ sanType: 2, matcher: { matchPattern: { case: 'suffix' as const, value: suffix } } }];
}

/** A back end whose roots are not known is not spoken to: in the clear it must not be, and nobody could be told from it. */
function applyBackendTls(cluster: Cluster, tls: BackendTls | 'unusable', spoken: Spoken): void {
  const { hostname, roots, subjectAltNames } =
    tls === 'unusable' ? { hostname: 'unusable.invalid', roots: undefined, subjectAltNames: [{ type: 'dns' as const, value: 'unusable.invalid' }] } : tls;
  cluster.transportSocket = upstreamTls(
    {
      alpnProtocols: originatedAlpn[spoken],
      validationContextType: {
        case: 'validationContext',
        value: {
          trustedCa: { specifier: roots === undefined ? { case: 'filename', value: 'system' } : { case: 'inlineString', value: roots } },
          matchTypedSubjectAltNames: subjectAltNames.map(({ type, value }) => ({
            sanType: type === 'uri' ? 3 : 2,
            matcher: { matchPattern: { case: 'exact' as const, value } },
          })),
        },
      },
    },
    hostname,
  );
}

/** What a server outside the mesh is told in the handshake. */
const originatedAlpn: Readonly<Record<Spoken, string[]>> = { bytes: [], http1: [], http2: ['h2'], either: ['h2', 'http/1.1'] };

function upstreamTls(common: Init<typeof CommonTlsContextSchema>, sni: string) {
  return create(ClusterSchema, {
    transportSocket: {
      name: 'envoy.transport_sockets.tls',
      configType: { case: 'typedConfig', value: packAny(UpstreamTlsContextSchema, { commonTlsContext: common, sni }) },
    },
  }).transportSocket!;
}

/** Limits of the whole mesh are counted by the control plane, at the address by which the proxy knows it. */
function rateLimitServiceCluster(control: string): Cluster {
  const { address, port } = splitAddress(control);
  const cluster = create(ClusterSchema, {
    name: rateLimitCluster,
    clusterDiscoveryType: { case: 'type', value: isIP(address) === 0 ? Cluster_DiscoveryType.STRICT_DNS : Cluster_DiscoveryType.STATIC },
    connectTimeout: durationFromMs(1_000),
    ...httpOptions('http2', {}, undefined),
    loadAssignment: {
      clusterName: rateLimitCluster,
      endpoints: [{ lbEndpoints: [{ hostIdentifier: { case: 'endpoint', value: { address: socketAddress(address, port) } } }] }],
    },
  });
  cluster.transportSocket = upstreamTls(
    {
      alpnProtocols: ['h2'],
      tlsCertificateSdsSecretConfigs: [{ name: workloadSecretName, sdsConfig: ads }],
      validationContextType: {
        case: 'combinedValidationContext',
        value: {
          defaultValidationContext: { matchTypedSubjectAltNames: [{ sanType: 2, matcher: { matchPattern: { case: 'exact', value: controlPlaneName } } }] },
          validationContextSdsSecretConfig: { name: rootSecretName, sdsConfig: ads },
        },
      },
    },
    controlPlaneName,
  );
  return cluster;
}

/** A name in the certificate of every control plane. */
const controlPlaneName = 'mizzen-control';

/** The application is spoken to in what its port declares, or else in what its caller speaks. */
function inboundCluster(port: number, app: string, protocol: Protocol, pool: ConnectionPoolSpec | undefined): Cluster {
  const spoken = protocol === 'HTTP2' || protocol === 'GRPC' ? 'http2' : protocol === 'AUTO' ? 'either' : 'http1';
  const name = inboundClusterName(port);
  const { address, port: appPort } = splitAddress(app);
  return create(ClusterSchema, {
    name,
    clusterDiscoveryType: { case: 'type', value: Cluster_DiscoveryType.STATIC },
    connectTimeout: durationFromMs(defaultConnectTimeoutMs),
    ...httpOptions(spoken, connectionLimits(pool), pool?.http),
    ...(pool ? { circuitBreakers: { thresholds: [limitsOf(pool)] } } : {}),
    loadAssignment: {
      clusterName: name,
      endpoints: [
        {
          lbEndpoints: [
            {
              hostIdentifier: {
                case: 'endpoint',
                value: { address: listenAddress(address, appPort) },
              },
            },
          ],
        },
      ],
    },
  });
}

/** Where captured connections go that are for no service: on, or nowhere. */
function captureClusters(capture: Capture): Cluster[] {
  const passthrough = (name: string, sourceAddress?: string) =>
    create(ClusterSchema, {
      name,
      clusterDiscoveryType: { case: 'type', value: Cluster_DiscoveryType.ORIGINAL_DST },
      connectTimeout: durationFromMs(defaultConnectTimeoutMs),
      lbPolicy: Cluster_LbPolicy.CLUSTER_PROVIDED,
      circuitBreakers: { thresholds: [{ maxConnections: unlimited, maxPendingRequests: unlimited, maxRequests: unlimited, maxRetries: unlimited }] },
      ...(sourceAddress === undefined
        ? {}
        : { upstreamBindConfig: { sourceAddress: { address: sourceAddress, portSpecifier: { case: 'portValue' as const, value: 0 } } } }),
    });
  return [
    passthrough(passthroughCluster),
    // The rules of capture know by this source that the connection has been inspected already: it is not captured a second time.
    ...(capture.inboundPort === undefined ? [] : [passthrough(inboundPassthroughCluster, '127.0.0.6')]),
    ...(capture.inboundPort !== undefined && capture.hasIPv6 ? [passthrough(inboundPassthroughClusterIpv6, '::6')] : []),
    create(ClusterSchema, {
      name: blackHoleCluster,
      clusterDiscoveryType: { case: 'type', value: Cluster_DiscoveryType.STATIC },
      connectTimeout: durationFromMs(defaultConnectTimeoutMs),
      metadata: { filterMetadata: { 'mizzen.block': { reason: 'not_in_registry' } } },
    }),
  ];
}
