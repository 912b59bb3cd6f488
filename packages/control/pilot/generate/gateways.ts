import { create } from '@bufbuild/protobuf';
import type { GatewayServerSpec, GatewaySpec } from '@mizzen/api';
import { type Init, packAny } from '@mizzen/envoy-api';
import type { FilterChainSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { VirtualHost_TlsRequirementType } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { type RouteConfiguration, RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { DownstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { apiFilters, apisOf } from '../apis/listener-filters.ts';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import { type Configured, hostMatches, type MeshSnapshot } from '../snapshot.ts';
import { tracingFor } from '../telemetry-config.ts';
import { connectionManager, tlsInspector } from './connection-manager.ts';
import { provenance } from './names.ts';
import { ads } from './tls-contexts.ts';
import { routesOf, type VirtualHost, virtualServicesOfGateway } from './virtual-service-routes.ts';

/** One server of a Gateway resource that this proxy serves. */
interface Server {
  readonly gateway: Configured<GatewaySpec>;
  readonly spec: GatewayServerSpec;
  readonly index: number;
  readonly port: number;
  readonly isTls: boolean;
}

function serversOf(view: ProxyView, snapshot: MeshSnapshot): Server[] {
  return snapshot.gateways
    .filter((gateway) => selects(gateway.spec.selector, view.labels))
    .flatMap((gateway) =>
      (gateway.spec.servers ?? []).map((spec, index) => ({
        gateway,
        spec,
        index,
        port: spec.port?.number ?? 0,
        isTls: spec.port?.protocol.toUpperCase() === 'HTTPS',
      })),
    )
    .filter((server) => server.port > 0 && ['HTTP', 'HTTPS', 'HTTP2', 'GRPC'].includes(server.spec.port!.protocol.toUpperCase()));
}

function routeNameOf(server: Server): string {
  return server.isTls ? `https.${server.port}.${server.spec.port?.name ?? 'https'}.${server.gateway.name}.${server.gateway.namespace}` : `http.${server.port}`;
}

function hostsOf(server: Server): string[] {
  return server.spec.hosts.map((host) => (host.includes('/') ? host.slice(host.indexOf('/') + 1) : host));
}

/** LDS for a gateway: one listener per port; servers that share a port become its filter chains (TLS, by SNI) or its virtual hosts. */
export function gatewayListeners(view: ProxyView, snapshot: MeshSnapshot): Listener[] {
  const byPort = new Map<number, Server[]>();
  const extras = { filters: apiFilters(apisOf(view, snapshot).edge, snapshot), tracing: tracingFor(view, snapshot) };
  for (const server of serversOf(view, snapshot)) byPort.set(server.port, [...(byPort.get(server.port) ?? []), server]);
  return [...byPort].map(([port, servers]) => {
    const plain = servers.filter((server) => !server.isTls);
    const tls = servers.filter((server) => server.isTls);
    const chains: Init<typeof FilterChainSchema>[] = tls.map((server) => ({
      name: `${server.gateway.namespace}/${server.gateway.name}/${server.index}`,
      filterChainMatch: { transportProtocol: 'tls', serverNames: hostsOf(server).includes('*') ? [] : hostsOf(server) },
      filters: [
        connectionManager({
          statPrefix: routeNameOf(server),
          routes: { case: 'rds', value: { configSource: ads, routeConfigName: routeNameOf(server) } },
          direction: 'gateway',
          isTls: true,
          ...extras,
        }),
      ],
      transportSocket: {
        name: 'envoy.transport_sockets.tls',
        configType: { case: 'typedConfig', value: packAny(DownstreamTlsContextSchema, downstreamTls(server)) },
      },
    }));
    if (plain.length > 0) {
      chains.push({
        name: `http.${port}`,
        ...(tls.length > 0 ? { filterChainMatch: { transportProtocol: 'raw_buffer' } } : {}),
        filters: [
          connectionManager({
            statPrefix: `http.${port}`,
            routes: { case: 'rds', value: { configSource: ads, routeConfigName: `http.${port}` } },
            direction: 'gateway',
            isTls: false,
            ...extras,
          }),
        ],
      });
    }
    return create(ListenerSchema, {
      name: `${view.gatewayBind}_${port}`,
      address: { address: { case: 'socketAddress', value: { address: view.gatewayBind, portSpecifier: { case: 'portValue', value: port } } } },
      listenerFilters: tls.length > 0 ? [tlsInspector()] : [],
      filterChains: chains,
      trafficDirection: 2,
      metadata: provenance(servers[0]!.gateway, `spec.servers[${servers[0]!.index}]`),
    });
  });
}

function downstreamTls(server: Server): Init<typeof DownstreamTlsContextSchema> {
  const tls = server.spec.tls!;
  const needsClient = tls.mode === 'MUTUAL' || tls.mode === 'OPTIONAL_MUTUAL';
  const versions: Readonly<Record<string, number>> = { TLS_AUTO: 0, TLSV1_0: 1, TLSV1_1: 2, TLSV1_2: 3, TLSV1_3: 4 };
  const certificates = tls.credentialName
    ? { tlsCertificateSdsSecretConfigs: [{ name: `kubernetes://${server.gateway.namespace}/${tls.credentialName}`, sdsConfig: ads }] }
    : {
        tlsCertificates: [
          {
            certificateChain: { specifier: { case: 'filename' as const, value: tls.serverCertificate! } },
            privateKey: { specifier: { case: 'filename' as const, value: tls.privateKey! } },
          },
        ],
      };
  return {
    requireClientCertificate: tls.mode === 'MUTUAL',
    commonTlsContext: {
      alpnProtocols: ['h2', 'http/1.1'],
      tlsParams: {
        tlsMinimumProtocolVersion: Math.max(versions[tls.minProtocolVersion ?? 'TLS_AUTO'] ?? 0, 3),
        tlsMaximumProtocolVersion: versions[tls.maxProtocolVersion ?? 'TLS_AUTO'] ?? 0,
        cipherSuites: [...(tls.cipherSuites ?? [])],
      },
      ...certificates,
      ...(needsClient
        ? {
            validationContextType: tls.credentialName
              ? {
                  case: 'validationContextSdsSecretConfig' as const,
                  value: { name: `kubernetes://${server.gateway.namespace}/${tls.credentialName}-cacert`, sdsConfig: ads },
                }
              : { case: 'validationContext' as const, value: { trustedCa: { specifier: { case: 'filename' as const, value: tls.caCertificates! } } } },
          }
        : {}),
    },
  };
}

/** RDS for a gateway: one table per plain port and one per TLS server, with the VirtualServices that are bound to it. */
export function gatewayRouteConfigurations(view: ProxyView, snapshot: MeshSnapshot): RouteConfiguration[] {
  const tables = new Map<string, Map<string, VirtualHost>>();
  for (const server of serversOf(view, snapshot)) {
    const name = routeNameOf(server);
    const hosts = tables.get(name) ?? new Map<string, VirtualHost>();
    tables.set(name, hosts);
    const serverHosts = hostsOf(server);
    for (const virtualService of virtualServicesOfGateway(`${server.gateway.namespace}/${server.gateway.name}`, snapshot)) {
      const routes = routesOf(virtualService, server.port, view, snapshot, `${server.gateway.namespace}/${server.gateway.name}`);
      for (const host of virtualService.spec.hosts ?? []) {
        const domain = serverHosts.some((pattern) => hostMatches(pattern, host)) ? host : serverHosts.find((pattern) => hostMatches(host, pattern));
        if (domain === undefined) continue;
        const existing = hosts.get(domain);
        // Several VirtualServices on one gateway host are merged: conditional routes first, as in Istio.
        const merged = [...(existing?.routes ?? []), ...routes];
        hosts.set(domain, {
          name: `${domain}:${server.port}`,
          domains: domain === '*' ? ['*'] : [domain, `${domain}:*`],
          routes: existing ? stableConditionalFirst(merged) : merged,
          requireTls: server.spec.tls?.httpsRedirect ? VirtualHost_TlsRequirementType.ALL : VirtualHost_TlsRequirementType.NONE,
        });
      }
    }
    if (server.spec.tls?.httpsRedirect && hosts.size === 0)
      hosts.set('*', { name: `redirect:${server.port}`, domains: ['*'], requireTls: VirtualHost_TlsRequirementType.ALL });
  }
  return [...tables].map(([name, hosts]) => create(RouteConfigurationSchema, { name, virtualHosts: [...hosts.values()], validateClusters: false }));
}

function stableConditionalFirst(routes: NonNullable<VirtualHost['routes']>): NonNullable<VirtualHost['routes']> {
  const isCatchAll = (route: (typeof routes)[number]) =>
    route.match?.pathSpecifier?.case === 'prefix' &&
    route.match.pathSpecifier.value === '/' &&
    !route.match.headers?.length &&
    !route.match.queryParameters?.length;
  return [...routes.filter((route) => !isCatchAll(route)), ...routes.filter(isCatchAll)];
}
