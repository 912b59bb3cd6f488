import { create } from '@bufbuild/protobuf';
import { durationFromMs, type Init, packAny } from '@mizzen/envoy-api';
import type { FilterChainSchema, FilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { TcpProxySchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy_pb.js';
import { TlsParameters_TlsProtocol } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import { DownstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import type { InboundPort, ProxyView } from '../proxy-view.ts';
import { isHttp, protocolOf, type Service } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { accessLog, connectionManager, httpInspector, tlsInspector } from './connection-manager.ts';
import { inboundClusterName, outboundRouteName, splitAddress } from './names.ts';
import { peerAuthenticationMode } from './peer-authentication.ts';
import { ads, meshAlpn, meshHttpAlpn, meshTlsContext } from './tls-contexts.ts';

/** LDS for a sidecar: the explicit outbound listener, and one inbound listener per port. */
export function sidecarListeners(view: ProxyView, snapshot: MeshSnapshot): Listener[] {
  return [...(view.outbound ? [outboundListener(view.outbound)] : []), ...view.inbound.map((port) => inboundListener(port, view, snapshot))];
}

function outboundListener(listen: string): Listener {
  const { address, port } = splitAddress(listen);
  return create(ListenerSchema, {
    name: `${address}_${port}`,
    address: { address: { case: 'socketAddress', value: { address, portSpecifier: { case: 'portValue', value: port } } } },
    trafficDirection: 2,
    filterChains: [
      {
        filters: [
          connectionManager({
            statPrefix: `outbound_${listen}`,
            routes: { case: 'rds', value: { configSource: ads, routeConfigName: outboundRouteName } },
            direction: 'outbound',
            isTls: false,
          }),
        ],
      },
    ],
  });
}

function inboundListener(inbound: InboundPort, view: ProxyView, snapshot: MeshSnapshot): Listener {
  const { address, port } = splitAddress(inbound.listen);
  const mode = peerAuthenticationMode(view.namespace, view.labels, inbound.port, snapshot);
  const service = serviceOf(inbound, view, snapshot);
  const protocol =
    inbound.protocol !== undefined ? protocolOf(undefined, inbound.protocol, undefined) : (service?.protocol ?? protocolOf(inbound.name, undefined, undefined));
  const cluster = inboundClusterName(inbound.port);
  const tcp: Init<typeof FilterSchema> = {
    name: 'envoy.filters.network.tcp_proxy',
    configType: {
      case: 'typedConfig',
      value: packAny(TcpProxySchema, { statPrefix: cluster, clusterSpecifier: { case: 'cluster', value: cluster }, accessLog }),
    },
  };
  const http = (isTls: boolean) =>
    connectionManager({
      statPrefix: `inbound_${inbound.listen}`,
      routes: { case: 'routeConfig', value: inboundRoutes(cluster, inbound.port, service?.service) },
      direction: 'inbound',
      isTls,
    });
  const isAuto = protocol === 'AUTO';
  const filter = (isTls: boolean) => (isHttp(protocol) ? http(isTls) : tcp);
  const chains: Init<typeof FilterChainSchema>[] = [];
  if (mode !== 'DISABLE') {
    const transportSocket = mutualTls();
    // A caller's sidecar says in the handshake whether HTTP is inside.
    if (isAuto)
      chains.push({
        name: `${inbound.port}-mtls-http`,
        filterChainMatch: { transportProtocol: 'tls', applicationProtocols: [meshHttpAlpn] },
        transportSocket,
        filters: [http(true)],
      });
    chains.push({ name: `${inbound.port}-mtls`, filterChainMatch: { transportProtocol: 'tls' }, transportSocket, filters: [filter(true)] });
  }
  if (mode !== 'STRICT') {
    const plain = mode === 'DISABLE' && !isAuto ? {} : { transportProtocol: 'raw_buffer' };
    if (isAuto)
      chains.push({
        name: `${inbound.port}-plain-http`,
        filterChainMatch: { ...plain, applicationProtocols: ['http/1.0', 'http/1.1'] },
        filters: [http(false)],
      });
    // With mutual TLS off, TLS on this port is the application's own.
    chains.push({ name: `${inbound.port}-plain`, ...(mode === 'DISABLE' ? {} : { filterChainMatch: plain }), filters: [filter(false)] });
  }
  return create(ListenerSchema, {
    name: `inbound_${address}_${port}`,
    address: { address: { case: 'socketAddress', value: { address, portSpecifier: { case: 'portValue', value: port } } } },
    trafficDirection: 1,
    listenerFilters: [...(mode === 'DISABLE' && !isAuto ? [] : [tlsInspector]), ...(isAuto ? [httpInspector] : [])],
    // A server that speaks first waits for nobody's first byte.
    ...(isAuto ? { listenerFiltersTimeout: durationFromMs(protocolDetectionTimeoutMs), continueOnListenerFiltersTimeout: true } : {}),
    filterChains: chains,
    metadata: { filterMetadata: { 'mizzen.inbound': { mtls: mode, port: inbound.port } } },
  });
}

/** What is sent on a port without a declared protocol within this time decides whether it is HTTP. */
const protocolDetectionTimeoutMs = 1_000;

function mutualTls(): NonNullable<Init<typeof FilterChainSchema>['transportSocket']> {
  return {
    name: 'envoy.transport_sockets.tls',
    configType: {
      case: 'typedConfig',
      value: packAny(DownstreamTlsContextSchema, {
        commonTlsContext: {
          ...meshTlsContext(undefined),
          alpnProtocols: [meshHttpAlpn, ...meshAlpn, 'http/1.1'],
          tlsParams: { tlsMinimumProtocolVersion: TlsParameters_TlsProtocol.TLSv1_2 },
        },
        requireClientCertificate: true,
      }),
    },
  };
}

/** The service that this port of the workload implements: it gives the routes their destination name and the port its protocol. */
function serviceOf(inbound: InboundPort, view: ProxyView, snapshot: MeshSnapshot): { service: Service; protocol: ReturnType<typeof protocolOf> } | undefined {
  for (const service of snapshot.services) {
    if (service.namespace !== view.namespace) continue;
    const isOurs = service.instances.some(
      (instance) => instance.address === view.address && [...instance.ports.values()].includes(splitAddress(inbound.listen).port),
    );
    if (!isOurs) continue;
    const port = service.ports.find(
      (candidate) => candidate.targetPort === inbound.port || (typeof candidate.targetPort === 'string' && candidate.targetPort === inbound.name),
    );
    if (port) return { service, protocol: port.protocol };
  }
  return undefined;
}

function inboundRoutes(cluster: string, port: number, service: Service | undefined) {
  return {
    name: cluster,
    validateClusters: false,
    virtualHosts: [
      {
        name: `inbound|http|${port}`,
        domains: ['*'],
        routes: [
          {
            name: 'default',
            match: { pathSpecifier: { case: 'prefix' as const, value: '/' } },
            action: { case: 'route' as const, value: { clusterSpecifier: { case: 'cluster' as const, value: cluster }, timeout: durationFromMs(0) } },
          },
        ],
        ...(service
          ? { metadata: { filterMetadata: { istio: { services: [{ host: service.hostname, name: service.name, namespace: service.namespace }] } } } }
          : {}),
      },
    ],
  };
}
