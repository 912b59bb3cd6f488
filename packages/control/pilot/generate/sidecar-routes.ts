import { create } from '@bufbuild/protobuf';
import { durationFromMs } from '@mizzen/envoy-api';
import { type RouteConfiguration, RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import type { ProxyView } from '../proxy-view.ts';
import { mayBeHttp, type Service, type ServicePort } from '../registry/service.ts';
import { hostMatches, isVisible, type MeshSnapshot, resolveHost } from '../snapshot.ts';
import { bytesTo, serverNamesTo } from './byte-routes.ts';
import { GenerationBudget, generationLimits } from './generation-budget.ts';
import { outboundClusterName, outboundRouteName, passthroughCluster } from './names.ts';
import { serviceAddresses } from './service-addresses.ts';
import { boundListeners, egressProxyOf, importsHost, outboundTrafficMode, servicesOfListener, visibleServices } from './sidecar-scope.ts';
import {
  appliesTo,
  hashPoliciesFor,
  type Route,
  resolveDestination,
  retryPolicy,
  routesOf,
  timeouts,
  type VirtualHost,
  virtualServiceFor,
} from './virtual-service-routes.ts';

/**
 * RDS for a sidecar. An explicitly called one has a single table for the services of all ports, told apart by the Host that the caller
 * names. Where the kernel captures, each port has its own, and so has each port whose protocol nobody declared.
 */
export function sidecarRoutes(view: ProxyView, snapshot: MeshSnapshot): RouteConfiguration[] {
  return [
    ...(view.outbound
      ? [
          table(outboundRouteName, [
            ...outboundVirtualHosts(visibleServices(view, snapshot), undefined, view, snapshot),
            unknownHosts(blockAll, view, snapshot),
          ]),
        ]
      : []),
    ...boundListeners(view, snapshot).map(({ listener, port, name }) =>
      table(name, [
        ...outboundVirtualHosts(servicesOfListener(listener, view, snapshot), port || undefined, view, snapshot),
        unknownHosts(blockAll, view, snapshot),
      ]),
    ),
    ...(view.capture ? capturedRoutes(view, snapshot) : []),
  ];
}

function table(name: string, virtualHosts: VirtualHost[]): RouteConfiguration {
  return create(RouteConfigurationSchema, { name, virtualHosts, validateClusters: false });
}

function capturedRoutes(view: ProxyView, snapshot: MeshSnapshot): RouteConfiguration[] {
  const tables = new Map<number, { readonly hosts: VirtualHost[]; readonly taken: Set<string> }>();
  const others = outboundTrafficMode(view, snapshot) === 'REGISTRY_ONLY' ? blockAll : unknownHosts(allowAny, view, snapshot);
  const single: RouteConfiguration[] = [];
  const budget = new GenerationBudget('routes', generationLimits.maxRoutes);
  for (const service of visibleServices(view, snapshot))
    for (const port of service.ports) {
      if (!mayBeHttp(port.protocol)) continue;
      const virtualService = virtualServiceFor(service.hostname, view.namespace, 'mesh', snapshot);
      const routes = virtualService ? routesOf(virtualService, port.number, view, snapshot, 'mesh') : [defaultRoute(service, port, view, snapshot)];
      budget.spend(routes.length);
      const name = `${service.hostname}:${port.number}`;
      // Connections that are for this service's own address: whatever the Host says.
      if (port.protocol === 'AUTO') single.push(table(name, [{ name, domains: ['*'], routes }]));
      const { hosts, taken } = tables.get(port.number) ?? { hosts: [], taken: new Set(['*']) };
      tables.set(port.number, { hosts, taken });
      const addresses = serviceAddresses(service, view, snapshot).filter((address) => !address.includes('/'));
      const domains = [...domainsOf(service, port, true, view.namespace), ...addresses.flatMap((address) => addressDomains(address, port.number))].filter(
        (domain) => !taken.has(domain) && taken.add(domain),
      );
      if (domains.length > 0) hosts.push({ name, domains, routes });
    }
  for (const [port, { hosts, taken }] of tables) hosts.push(...virtualHostsWithoutService(port, taken, view, snapshot, budget), others);
  return [...[...tables].map(([port, { hosts }]) => table(String(port), hosts)), ...single];
}

function addressDomains(address: string, port: number): string[] {
  return address.includes(':') ? [`[${address}]`, `[${address}]:${port}`] : [address, `${address}:${port}`];
}

/** A captured request to a host that the mesh does not know goes on to where it was going. */
const allowAny = toCluster('allow_any', passthroughCluster);

function toCluster(name: string, cluster: string): VirtualHost {
  return {
    name,
    domains: ['*'],
    routes: [
      {
        name,
        match: { pathSpecifier: { case: 'prefix', value: '/' } },
        action: { case: 'route', value: { clusterSpecifier: { case: 'cluster', value: cluster }, timeout: durationFromMs(0) } },
      },
    ],
  };
}

/** A request to a host that the mesh does not know is answered, not guessed at. */
const blockAll: VirtualHost = {
  name: 'block_all',
  domains: ['*'],
  routes: [
    {
      name: 'block_all',
      match: { pathSpecifier: { case: 'prefix', value: '/' } },
      action: {
        case: 'directResponse',
        value: {
          status: 502,
          body: {
            specifier: {
              case: 'inlineString',
              value: 'This host is not a service of the mesh. `mizzen get services` lists those that are; a ServiceEntry adds one.\n',
            },
          },
        },
      },
    },
  ],
};

/** What becomes of hosts that nobody knows, unless a Sidecar has a proxy for them. */
function unknownHosts(otherwise: VirtualHost, view: ProxyView, snapshot: MeshSnapshot): VirtualHost {
  const proxy = egressProxyOf(view, snapshot);
  if (proxy === undefined) return otherwise;
  const { hostname, number } = resolveDestination(proxy.destination, proxy.namespace, undefined, snapshot);
  return toCluster('egress_proxy', outboundClusterName(number, proxy.destination.subset ?? '', hostname));
}

/** `only`: the one port that the listener is for; its hosts may be named without it. */
function outboundVirtualHosts(services: readonly Service[], only: number | undefined, view: ProxyView, snapshot: MeshSnapshot): VirtualHost[] {
  const hosts: VirtualHost[] = [];
  const taken = new Set<string>(['*']);
  const budget = new GenerationBudget('routes', generationLimits.maxRoutes);
  const claim = (names: readonly string[]) => names.filter((name) => !taken.has(name) && taken.add(name));
  for (const service of services) {
    const httpPorts = service.ports.filter((port) => mayBeHttp(port.protocol) && (only === undefined || port.number === only));
    const bare = httpPorts.find((port) => port.number === 80) ?? (httpPorts.length === 1 ? httpPorts[0] : undefined);
    for (const port of httpPorts) {
      const virtualService = virtualServiceFor(service.hostname, view.namespace, 'mesh', snapshot);
      const routes = virtualService ? routesOf(virtualService, port.number, view, snapshot, 'mesh') : [defaultRoute(service, port, view, snapshot)];
      budget.spend(routes.length);
      const domains = claim(domainsOf(service, port, port === bare, view.namespace));
      if (domains.length > 0) hosts.push({ name: `${service.hostname}:${port.number}`, domains, routes });
    }
  }
  // What is no HTTP can be reached by CONNECT.
  for (const service of services)
    for (const port of service.ports) {
      if (mayBeHttp(port.protocol) || port.protocol === 'UDP' || (only !== undefined && port.number !== only)) continue;
      const domains = claim(domainsOf(service, port, false, view.namespace));
      if (domains.length > 0) hosts.push({ name: `${service.hostname}:${port.number}`, domains, routes: [connectRoute(service, port, view, snapshot)] });
    }
  hosts.push(...virtualHostsWithoutService(only, taken, view, snapshot, budget));
  return hosts;
}

/** Hosts that only a VirtualService names: they have no service of their own, but routes to others. */
function virtualHostsWithoutService(
  port: number | undefined,
  taken: Set<string>,
  view: ProxyView,
  snapshot: MeshSnapshot,
  budget: GenerationBudget,
): VirtualHost[] {
  const hosts: VirtualHost[] = [];
  for (const virtualService of snapshot.virtualServices) {
    if (!appliesTo(virtualService, 'mesh') || !isVisible(virtualService.spec.exportTo, virtualService.namespace, view.namespace)) continue;
    let routes: Route[] | undefined;
    for (const host of virtualService.spec.hosts ?? []) {
      const resolved = resolveHost(host, virtualService.namespace, snapshot);
      if (snapshot.servicesByHostname.has(resolved) || !importsHost(resolved, virtualService.namespace, view, snapshot)) continue;
      const bareName = host.includes('.') ? [] : [host, `${host}:*`];
      const domains = (host.startsWith('*') ? [resolved] : [resolved, `${resolved}:*`, ...bareName]).filter((name) => !taken.has(name) && taken.add(name));
      if (domains.length === 0) continue;
      routes ??= routesOf(virtualService, port, view, snapshot, 'mesh');
      budget.spend(routes.length);
      hosts.push({ name: `${resolved}:${virtualService.name}`, domains, routes });
    }
  }
  return hosts;
}

/** All the ways in which a client of `viewer`'s namespace may write a service's name. */
function domainsOf(service: Service, port: ServicePort, includesBare: boolean, viewer: string): string[] {
  const names = [service.hostname];
  if (service.kind === 'Service') {
    names.push(`${service.name}.${service.namespace}.svc`, `${service.name}.${service.namespace}`);
    if (service.namespace === viewer) names.push(service.name);
  }
  const withPort = names.map((name) => `${name}:${port.number}`);
  return includesBare ? [...withPort, ...names] : withPort;
}

function defaultRoute(service: Service, port: ServicePort, view: ProxyView, snapshot: MeshSnapshot): Route {
  return {
    name: 'default',
    match: { pathSpecifier: { case: 'prefix', value: '/' } },
    action: {
      case: 'route',
      value: {
        clusterSpecifier: { case: 'cluster', value: outboundClusterName(port.number, '', service.hostname) },
        ...timeouts(undefined),
        retryPolicy: retryPolicy(undefined),
        hashPolicy: hashPoliciesFor(service, port.number, undefined, view, snapshot),
      },
    },
    metadata: { filterMetadata: { 'mizzen.provenance': { object: `${service.kind} ${service.namespace}/${service.name}`, origin: originText(service) } } },
  };
}

/** CONNECT ends at this sidecar; what comes through it goes to the service as bytes. */
function connectRoute(service: Service, port: ServicePort, view: ProxyView, snapshot: MeshSnapshot): Route {
  // Nobody has seen a server name yet: whoever names the service means it.
  const ofServerName = serverNamesTo(service, port, view, snapshot).find(({ serverNames }) => serverNames.some((name) => hostMatches(name, service.hostname)));
  const { targets } = (port.protocol === 'TLS' || port.protocol === 'HTTPS' ? ofServerName : undefined) ?? bytesTo(service, port, undefined, view, snapshot);
  return {
    name: 'connect',
    match: { pathSpecifier: { case: 'connectMatcher', value: {} } },
    action: {
      case: 'route',
      value: {
        clusterSpecifier:
          targets.length === 1
            ? { case: 'cluster', value: targets[0]!.cluster }
            : { case: 'weightedClusters', value: { clusters: targets.map(({ cluster, weight }) => ({ name: cluster, weight })) } },
        timeout: durationFromMs(0),
        upgradeConfigs: [{ upgradeType: 'CONNECT', connectConfig: {} }],
      },
    },
    metadata: { filterMetadata: { 'mizzen.provenance': { object: `${service.kind} ${service.namespace}/${service.name}`, origin: originText(service) } } },
  };
}

const originText = (service: Service) => (service.origin.line === undefined ? service.origin.name : `${service.origin.name}:${service.origin.line}`);
