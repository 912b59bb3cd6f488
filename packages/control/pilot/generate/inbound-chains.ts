import type { Any } from '@bufbuild/protobuf/wkt';
import type { MutualTlsMode, ServerTlsSpec } from '@mizzen/api';
import { type Init, packAny } from '@mizzen/envoy-api';
import type { FilterChainMatchSchema, FilterChainSchema, FilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { TlsParameters_TlsProtocol } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import { DownstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import type { MeshConfig } from '../mesh-config.ts';
import type { InboundPort, ProxyView } from '../proxy-view.ts';
import { type Instance, isHttp, type Protocol, protocolOf, type Service } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { type ConnectionManagerOptions, connectionManager, plainHttp, tcpProxy } from './connection-manager.ts';
import { inboundRoutes } from './inbound-routes.ts';
import { splitAddress } from './names.ts';
import { demandedOfClients, tlsParameters } from './server-tls.ts';
import { meshAlpn, meshHttpAlpn, meshServerTls } from './tls-contexts.ts';

/** How connections to one port of a workload are taken. */
export interface InboundTarget {
  /** Begins the names of its chains: the port, or what stands for all ports that nobody declared. */
  readonly name: string;
  readonly cluster: string;
  readonly mode: Exclude<MutualTlsMode, 'UNSET'>;
  readonly protocol: Protocol;
  readonly service: Service | undefined;
  readonly statPrefix: string;
  /** What its connections are told by, beside their transport: the destination port, say. */
  readonly match: Init<typeof FilterChainMatchSchema>;
  readonly filters: NonNullable<ConnectionManagerOptions['filters']>;
  /** Before bytes are carried. */
  readonly networkFilters: readonly Init<typeof FilterSchema>[];
  readonly filterConfigs: Readonly<Record<string, Any>>;
  readonly tracing: ConnectionManagerOptions['tracing'];
  readonly paths: ConnectionManagerOptions['paths'];
  /** Whose identities are taken. */
  readonly trustDomains: readonly string[];
  readonly meshConfig: MeshConfig;
}

/** The filter chains of one port: by mutual TLS mode, and by what is spoken where nothing was declared. */
export function inboundChains({
  name,
  cluster,
  mode,
  protocol,
  service,
  statPrefix,
  match,
  filters,
  networkFilters,
  filterConfigs,
  tracing,
  paths,
  trustDomains,
  meshConfig,
}: InboundTarget): Init<typeof FilterChainSchema>[] {
  const tcp = [...networkFilters, tcpProxy(cluster, cluster)];
  const http = (isTls: boolean) =>
    connectionManager({
      statPrefix,
      routes: { case: 'routeConfig', value: inboundRoutes(cluster, name, service, filterConfigs) },
      direction: 'inbound',
      isTls,
      filters,
      tracing,
      paths,
    });
  const isAuto = protocol === 'AUTO';
  const filtersFor = (isTls: boolean) => (isHttp(protocol) ? [http(isTls)] : tcp);
  const chains: Init<typeof FilterChainSchema>[] = [];
  if (mode !== 'DISABLE') {
    const transportSocket = mutualTls(trustDomains, meshConfig);
    // A caller's sidecar says in the handshake whether HTTP is inside.
    if (isAuto)
      chains.push({
        name: `${name}-mtls-http`,
        filterChainMatch: { ...match, transportProtocol: 'tls', applicationProtocols: meshHttpAlpn },
        transportSocket,
        filters: [http(true)],
      });
    // Where plain text is taken too, so is TLS that is the application's own: what comes from a sidecar says so in its handshake.
    const takesOwnTls = mode === 'PERMISSIVE' && !isHttp(protocol);
    chains.push({
      name: `${name}-mtls`,
      filterChainMatch: { ...match, transportProtocol: 'tls', ...(takesOwnTls ? { applicationProtocols: meshAlpn } : {}) },
      transportSocket,
      filters: filtersFor(true),
    });
    if (takesOwnTls) chains.push({ name: `${name}-own-tls`, filterChainMatch: { ...match, transportProtocol: 'tls' }, filters: tcp });
  }
  if (mode !== 'STRICT') {
    // With mutual TLS off, TLS on this port is the application's own.
    const plain = { ...match, ...(mode === 'DISABLE' ? {} : { transportProtocol: 'raw_buffer' }) };
    if (isAuto)
      chains.push({
        name: `${name}-plain-http`,
        filterChainMatch: { ...match, transportProtocol: 'raw_buffer', applicationProtocols: plainHttp },
        filters: [http(false)],
      });
    chains.push({ name: `${name}-plain`, ...(Object.keys(plain).length > 0 ? { filterChainMatch: plain } : {}), filters: filtersFor(false) });
  }
  return chains;
}

/** The service that this port of the workload implements: it gives the routes their destination name and the port its protocol. */
export function implementedService(inbound: InboundPort, view: ProxyView, snapshot: MeshSnapshot): { service: Service | undefined; protocol: Protocol } {
  for (const service of snapshot.services) {
    if (service.namespace !== view.namespace) continue;
    if (!service.instances.some((instance) => isInstance(instance, inbound, view))) continue;
    const port = service.ports.find(
      (candidate) => candidate.targetPort === inbound.port || (typeof candidate.targetPort === 'string' && candidate.targetPort === inbound.name),
    );
    if (port) return { service, protocol: inbound.protocol === undefined ? port.protocol : protocolOf(undefined, inbound.protocol, undefined) };
  }
  return {
    service: undefined,
    protocol: inbound.protocol === undefined ? protocolOf(inbound.name, undefined, undefined) : protocolOf(undefined, inbound.protocol, undefined),
  };
}

/**
 * Whether an instance is this workload at this port. Address and ports of a proxy may be claims: the service account of the instance must be the proxy's.
 * Endpoints of an EndpointSlice have none; no secret depends on them (./public-listeners.ts).
 */
export function isInstance({ address, ports, serviceAccount }: Instance, { listen }: InboundPort, view: ProxyView): boolean {
  return (
    address === view.address && (serviceAccount === '' || serviceAccount === view.serviceAccount) && [...ports.values()].includes(splitAddress(listen).port)
  );
}

/** Accepts clients with a certificate of the mesh only. `tls`: what a server of a Gateway demands besides. */
export function mutualTls(
  trustDomains: readonly string[],
  { minMeshTls }: MeshConfig,
  tls: ServerTlsSpec = {},
): NonNullable<Init<typeof FilterChainSchema>['transportSocket']> {
  const mesh = meshServerTls(trustDomains, demandedOfClients(tls));
  const parameters = tlsParameters(tls);
  const least = minMeshTls === 'TLSV1_3' ? TlsParameters_TlsProtocol.TLSv1_3 : TlsParameters_TlsProtocol.TLSv1_2;
  return {
    name: 'envoy.transport_sockets.tls',
    configType: {
      case: 'typedConfig',
      value: packAny(DownstreamTlsContextSchema, {
        commonTlsContext: {
          ...mesh,
          ...(tls.alpnProtocols?.length ? { alpnProtocols: [...meshHttpAlpn, ...meshAlpn, ...tls.alpnProtocols] } : {}),
          tlsParams: { ...parameters, tlsMinimumProtocolVersion: Math.max(parameters.tlsMinimumProtocolVersion, least) },
        },
        requireClientCertificate: true,
      }),
    },
  };
}
