import { create } from '@bufbuild/protobuf';
import type { GatewayServerSpec, GatewaySpec, VirtualServiceSpec } from '@mizzen/api';
import { type Init, packAny } from '@mizzen/envoy-api';
import type { FilterChainSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { VirtualHost_TlsRequirementType } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { type RouteConfiguration, RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { DownstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { apiFilters, apisOf } from '../apis/listener-filters.ts';
import { hasPlainHttp, hostOwner } from '../host-owner.ts';
import type { ProxyView } from '../proxy-view.ts';
import { authorizationNetworkFilters, pathNormalizationFor, securityFilters } from '../security/authorization-filters.ts';
import { type Configured, hostMatches, type MeshSnapshot, patternsFor } from '../snapshot.ts';
import { tracingFor } from '../telemetry-config.ts';
import { serverNameRoutesOf, serves, tcpRouteOf } from './byte-routes.ts';
import { connectionManager, socketAddress, tlsInspector } from './connection-manager.ts';
import { GenerationBudget, generationLimits } from './generation-budget.ts';
import { mutualTls } from './inbound-chains.ts';
import { provenance } from './names.ts';
import { servedGateways } from './served-gateways.ts';
import { serverTlsContext } from './server-tls.ts';
import { ads, callersTrustDomains } from './tls-contexts.ts';
import { type Route, routesOf, type VirtualHost, virtualServicesOfGateway } from './virtual-service-routes.ts';

/** One server of a Gateway resource that this proxy serves. */
interface Server {
  readonly gateway: Configured<GatewaySpec>;
  readonly spec: GatewayServerSpec;
  readonly index: number;
  readonly port: number;
  /** What is spoken, where TLS is ended here inside of it; `server-names`: TLS that is not ended here. */
  readonly serves: 'http' | 'bytes' | 'server-names';
  /** TLS is ended here. */
  readonly isTls: boolean;
}

const httpProtocols = new Set(['HTTP', 'HTTPS', 'HTTP2', 'GRPC', 'GRPC-WEB']);
const byteProtocols = new Set(['TCP', 'TLS', 'MONGO', 'HTTPS']);

function serversOf(view: ProxyView, snapshot: MeshSnapshot): Server[] {
  return servedGateways(view, snapshot).flatMap((gateway) =>
    (gateway.spec.servers ?? []).flatMap((spec, index): Server[] => {
      const protocol = spec.port?.protocol.toUpperCase() ?? '';
      const port = spec.port?.number ?? 0;
      const base = { gateway, spec, index, port };
      if (port === 0) return [];
      if (spec.tls?.mode === 'PASSTHROUGH') return byteProtocols.has(protocol) ? [{ ...base, serves: 'server-names', isTls: false }] : [];
      if (httpProtocols.has(protocol)) return [{ ...base, serves: 'http', isTls: protocol === 'HTTPS' }];
      return byteProtocols.has(protocol) ? [{ ...base, serves: 'bytes', isTls: protocol === 'TLS' }] : [];
    }),
  );
}

function routeNameOf(server: Server): string {
  return server.isTls ? `https.${server.port}.${server.spec.port?.name ?? 'https'}.${server.gateway.name}.${server.gateway.namespace}` : `http.${server.port}`;
}

/** A server's hosts may be for VirtualServices of one namespace: `NAMESPACE/HOST`, `.` being the Gateway's own. */
function hostsFor(server: Server, namespace: string): string[] {
  return server.spec.hosts.flatMap((host) => {
    const slash = host.indexOf('/');
    if (slash < 0) return [host];
    const wanted = host.slice(0, slash);
    return wanted === '*' || (wanted === '.' ? server.gateway.namespace : wanted) === namespace ? [host.slice(slash + 1)] : [];
  });
}

function hostsOf(server: Server): string[] {
  return server.spec.hosts.map((host) => (host.includes('/') ? host.slice(host.indexOf('/') + 1) : host));
}

const nameOf = ({ gateway }: Server) => `${gateway.namespace}/${gateway.name}`;

/** LDS for a gateway: one listener per port; servers that share a port become its filter chains (TLS, by SNI) or its virtual hosts. */
export function gatewayListeners(view: ProxyView, snapshot: MeshSnapshot): Listener[] {
  const byAddress = new Map<string, Server[]>();
  const budget = new GenerationBudget('filter chains', generationLimits.maxFilterChains);
  for (const server of serversOf(view, snapshot)) {
    const address = `${server.spec.bind || view.gatewayBind}_${server.port}`;
    const others = byAddress.get(address);
    if (others === undefined) byAddress.set(address, [server]);
    else others.push(server);
  }
  return [...byAddress].flatMap(([name, servers]) => {
    const { port, spec } = servers[0]!;
    const chains = servers
      .filter((server) => server.serves !== 'http' || server.isTls)
      .flatMap((server) => {
        const found = chainsOf(server, view, snapshot);
        budget.spend(found.length);
        return found;
      });
    const looksForTls = servers.some((server) => server.isTls || server.serves === 'server-names');
    // Servers of plain HTTP share one table.
    if (servers.some((server) => server.serves === 'http' && !server.isTls))
      chains.push({
        name: `http.${port}`,
        ...(looksForTls ? { filterChainMatch: { transportProtocol: 'raw_buffer' } } : {}),
        filters: [httpFilter(`http.${port}`, false, view, snapshot)],
      });
    if (chains.length === 0) return [];
    return create(ListenerSchema, {
      name,
      address: socketAddress(spec.bind || view.gatewayBind, port),
      listenerFilters: looksForTls ? [tlsInspector()] : [],
      filterChains: chains,
      trafficDirection: 2,
      metadata: provenance(servers[0]!.gateway, `spec.servers[${servers[0]!.index}]`),
    });
  });
}

function httpFilter(routeConfigName: string, isTls: boolean, view: ProxyView, snapshot: MeshSnapshot) {
  return connectionManager({
    statPrefix: routeConfigName,
    routes: { case: 'rds', value: { configSource: ads, routeConfigName } },
    direction: 'gateway',
    isTls,
    filters: [...securityFilters(view, snapshot, undefined), ...apiFilters(apisOf(view, snapshot).edge)],
    tracing: tracingFor(view, snapshot),
    paths: pathNormalizationFor(view, snapshot),
  });
}

/** The chains of a server that is told by its TLS, or by its port alone. */
function chainsOf(server: Server, view: ProxyView, snapshot: MeshSnapshot): Init<typeof FilterChainSchema>[] {
  const name = `${nameOf(server)}/${server.index}`;
  const hosts = hostsOf(server);
  const serverNames = hosts.includes('*') ? [] : hosts;
  if (server.serves === 'http')
    return [
      {
        name,
        filterChainMatch: { transportProtocol: 'tls', serverNames },
        filters: [httpFilter(routeNameOf(server), true, view, snapshot)],
        transportSocket: serverTls(server, snapshot),
      },
    ];
  const bound = virtualServicesOfGateway(nameOf(server), snapshot).filter(({ spec, namespace }) => serves(hostsFor(server, namespace), spec.hosts));
  if (server.serves === 'server-names')
    return bound.flatMap((virtualService) =>
      serverNameRoutesOf(virtualService, server.port, view, snapshot, nameOf(server)).map((route) => ({
        name: `${name}/${virtualService.namespace}/${virtualService.name}/${route.path}`,
        filterChainMatch: { transportProtocol: 'tls', serverNames: route.serverNames.filter((serverName) => serverName !== '*') },
        filters: [...authorizationNetworkFilters(view, snapshot, undefined), route.filter],
      })),
    );
  const routes = bound.map((virtualService) => tcpRouteOf(virtualService, server.port, undefined, view, snapshot, nameOf(server)));
  const route = routes.find((one) => one !== undefined);
  if (route === undefined) return [];
  return [
    {
      name,
      ...(server.isTls ? { filterChainMatch: { transportProtocol: 'tls', serverNames }, transportSocket: serverTls(server, snapshot) } : {}),
      filters: [...authorizationNetworkFilters(view, snapshot, undefined), route.filter],
    },
  ];
}

function serverTls(server: Server, snapshot: MeshSnapshot): NonNullable<Init<typeof FilterChainSchema>['transportSocket']> {
  // Clients are the mesh's own: sidecars on their way out of it.
  if (server.spec.tls?.mode === 'ISTIO_MUTUAL') return mutualTls(callersTrustDomains(snapshot), snapshot.meshConfig, server.spec.tls);
  return {
    name: 'envoy.transport_sockets.tls',
    configType: { case: 'typedConfig', value: packAny(DownstreamTlsContextSchema, serverTlsContext(server.spec.tls!, server.gateway.namespace)) },
  };
}

/** RDS for a gateway: one table per plain port and one per TLS server, with the VirtualServices that are bound to it. */
export function gatewayRouteConfigurations(view: ProxyView, snapshot: MeshSnapshot): RouteConfiguration[] {
  const tables = new Map<string, Map<string, VirtualHost>>();
  const merged = new Map<string, { readonly hosts: Map<string, VirtualHost>; readonly domain: string; readonly parts: Route[][] }>();
  for (const { server, served } of plannedRoutes(view, snapshot)) {
    const name = routeNameOf(server);
    const hosts = tables.get(name) ?? new Map<string, VirtualHost>();
    tables.set(name, hosts);
    for (const { virtualService, domains } of served) {
      const routes = routesOf(virtualService, server.port, view, snapshot, nameOf(server));
      for (const domain of domains) {
        const existing = hosts.get(domain);
        // Several VirtualServices on one gateway host are merged: conditional routes first, as in Istio.
        const parts = merged.get(`${name}\0${domain}`)?.parts;
        if (parts === undefined) merged.set(`${name}\0${domain}`, { hosts, domain, parts: [routes] });
        else parts.push(routes);
        hosts.set(domain, {
          name: `${domain}:${server.port}`,
          domains: domain === '*' ? ['*'] : [domain, `${domain}:*`],
          routes,
          // One server that redirects is enough: plain requests for the host must not depend on the order of Gateways.
          requireTls:
            server.spec.tls?.httpsRedirect || existing?.requireTls === VirtualHost_TlsRequirementType.ALL
              ? VirtualHost_TlsRequirementType.ALL
              : VirtualHost_TlsRequirementType.NONE,
        });
      }
    }
    if (server.spec.tls?.httpsRedirect && hosts.size === 0)
      hosts.set('*', { name: `redirect:${server.port}`, domains: ['*'], requireTls: VirtualHost_TlsRequirementType.ALL });
  }
  for (const { hosts, domain, parts } of merged.values()) {
    const host = hosts.get(domain);
    if (host !== undefined && parts.length > 1) hosts.set(domain, { ...host, routes: stableConditionalFirst(parts.flat()) });
  }
  const port = (name: string) => name.slice('http.'.length);
  for (const [name, hosts] of tables) if (name.startsWith('http.')) answerChallenges(hosts, port(name), servedGateways(view, snapshot), snapshot);
  return [...tables].map(([name, hosts]) => create(RouteConfigurationSchema, { name, virtualHosts: [...hosts.values()], validateClusters: false }));
}

interface PlannedRoutes {
  readonly server: Server;
  readonly served: readonly { readonly virtualService: Configured<VirtualServiceSpec>; readonly domains: readonly string[] }[];
}

/** Which VirtualServices each HTTP server has, under which of their hosts. Their routes are counted before any is made. */
function plannedRoutes(view: ProxyView, snapshot: MeshSnapshot): PlannedRoutes[] {
  const budget = new GenerationBudget('routes', generationLimits.maxRoutes);
  return serversOf(view, snapshot).flatMap((server): PlannedRoutes[] => {
    if (server.serves !== 'http') return [];
    const byNamespace = new Map<string, { readonly patterns: ReadonlySet<string>; readonly hosts: readonly string[] }>();
    const served = virtualServicesOfGateway(nameOf(server), snapshot).flatMap((virtualService) => {
      const { namespace, spec } = virtualService;
      let known = byNamespace.get(namespace);
      if (known === undefined) {
        const hosts = hostsFor(server, namespace);
        known = { hosts, patterns: new Set(hosts) };
        byNamespace.set(namespace, known);
      }
      const { hosts, patterns } = known;
      const domains = (spec.hosts ?? []).flatMap((host): string[] => {
        if (patternsFor(host).some((pattern) => patterns.has(pattern))) return [host];
        const narrower = host.startsWith('*') ? hosts.find((pattern) => hostMatches(host, pattern)) : undefined;
        return narrower === undefined ? [] : [narrower];
      });
      if (domains.length === 0) return [];
      budget.spend(domains.length * (spec.http ?? []).reduce((sum, { match }) => sum + Math.max(1, match?.length ?? 0), 0));
      return [{ virtualService, domains }];
    });
    return [{ server, served }];
  });
}

/** Before anything else that is said of a name, redirects to TLS too: there is no certificate yet. */
function answerChallenges(hosts: Map<string, VirtualHost>, port: string, gateways: readonly Configured<GatewaySpec>[], snapshot: MeshSnapshot): void {
  for (const { domain, token, answer, namespace } of snapshot.challenges) {
    // The account and the token are the Certificate's: at a host of another namespace they would prove that host for it.
    const isServed = gateways.some((gateway) => gateway.namespace === namespace && hasPlainHttp(gateway, domain, Number(port)));
    if (!isServed || hostOwner(domain, gateways, snapshot) !== namespace) continue;
    const covering = [...hosts.keys()].filter((host) => hostMatches(host, domain)).sort((a, b) => b.length - a.length)[0];
    const host = covering === undefined ? undefined : hosts.get(covering);
    const route = {
      name: `acme:${domain}`,
      match: { pathSpecifier: { case: 'path' as const, value: `/.well-known/acme-challenge/${token}` } },
      action: { case: 'directResponse' as const, value: { status: 200, body: { specifier: { case: 'inlineString' as const, value: answer } } } },
    };
    const redirect = {
      match: { pathSpecifier: { case: 'prefix' as const, value: '/' } },
      action: { case: 'redirect' as const, value: { schemeRewriteSpecifier: { case: 'httpsRedirect' as const, value: true } } },
    };
    const isRedirected = host?.requireTls === VirtualHost_TlsRequirementType.ALL;
    hosts.set(domain, { name: `${domain}:${port}`, domains: [domain, `${domain}:*`], routes: [route, ...(isRedirected ? [redirect] : (host?.routes ?? []))] });
  }
}

function stableConditionalFirst(routes: NonNullable<VirtualHost['routes']>): NonNullable<VirtualHost['routes']> {
  const isCatchAll = (route: (typeof routes)[number]) =>
    route.match?.pathSpecifier?.case === 'prefix' &&
    route.match.pathSpecifier.value === '/' &&
    !route.match.headers?.length &&
    !route.match.queryParameters?.length;
  return [...routes.filter((route) => !isCatchAll(route)), ...routes.filter(isCatchAll)];
}
