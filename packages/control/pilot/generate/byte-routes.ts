import { isIPv6 } from 'node:net';
import type { DestinationSpec, L4MatchSpec, RouteDestinationSpec, TlsRouteSpec, VirtualServiceSpec } from '@mizzen/api';
import { parseDurationMs } from '@mizzen/common';
import { durationFromMs, type Init } from '@mizzen/envoy-api';
import type { FilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import type { ProxyView } from '../proxy-view.ts';
import type { Service, ServicePort } from '../registry/service.ts';
import { type Configured, hostMatches, type MeshSnapshot } from '../snapshot.ts';
import { type ByteTarget, tcpProxy } from './connection-manager.ts';
import { destinationRuleFor, effectivePolicy } from './destination-policy.ts';
import { outboundClusterName } from './names.ts';
import { isBoundTo, resolveDestination, sourceFits, virtualServiceFor } from './virtual-service-routes.ts';

/** Where bytes go that no proxy looks into: `tcp` and `tls` of VirtualServices (istio/api virtual_service.proto `TCPRoute`, `TLSRoute`). */

/** Where one route leads. */
export interface ByteRoute {
  readonly targets: readonly ByteTarget[];
  readonly filter: Init<typeof FilterSchema>;
  /** The line that a person wrote, below `spec`. */
  readonly path: string;
}

export interface ServerNameRoute extends ByteRoute {
  readonly serverNames: readonly string[];
}

/** What connections to a service are carried to: what a VirtualService says of its port, or the service itself. */
export function bytesTo(service: Service, port: ServicePort, address: string | undefined, view: ProxyView, snapshot: MeshSnapshot): ByteRoute {
  const virtualService = virtualServiceFor(service.hostname, view.namespace, 'mesh', snapshot);
  const routed = virtualService && tcpRouteOf(virtualService, port.number, address, view, snapshot, 'mesh');
  return (
    routed ?? byteRoute([{ destination: { host: service.hostname, port: { number: port.number } } }], 'spec', service.namespace, port.number, view, snapshot)
  );
}

/** TLS that the application speaks itself: by the server names that a VirtualService sends elsewhere, or the service's own. */
export function serverNamesTo(service: Service, port: ServicePort, view: ProxyView, snapshot: MeshSnapshot): ServerNameRoute[] {
  const virtualService = virtualServiceFor(service.hostname, view.namespace, 'mesh', snapshot);
  const routed = virtualService ? serverNameRoutesOf(virtualService, port.number, view, snapshot, 'mesh') : [];
  return routed.length > 0 ? routed : [{ ...bytesTo(service, port, undefined, view, snapshot), serverNames: [service.hostname] }];
}

/** The first `tcp` route that fits. `address`: where connections are going, where one is known. */
export function tcpRouteOf(
  virtualService: Configured<VirtualServiceSpec>,
  port: number,
  address: string | undefined,
  view: ProxyView,
  snapshot: MeshSnapshot,
  gateway: string,
): ByteRoute | undefined {
  for (const [i, route] of (virtualService.spec.tcp ?? []).entries()) {
    const fits = !route.match?.length || route.match.some((match) => matchFits(match, port, address, view, gateway, virtualService.namespace));
    if (fits) return byteRoute(route.route ?? [], `spec.tcp[${i}]`, virtualService.namespace, port, view, snapshot);
  }
  return undefined;
}

/** `tls` routes, each server name at the first that names it. */
export function serverNameRoutesOf(
  virtualService: Configured<VirtualServiceSpec>,
  port: number,
  view: ProxyView,
  snapshot: MeshSnapshot,
  gateway: string,
): ServerNameRoute[] {
  const taken = new Set<string>();
  return (virtualService.spec.tls ?? []).flatMap((route: TlsRouteSpec, i) => {
    const serverNames = (route.match ?? [])
      .filter((match) => matchFits({ ...match, destinationSubnets: [] }, port, undefined, view, gateway, virtualService.namespace))
      .flatMap((match) => match.sniHosts ?? [])
      .filter((name) => !taken.has(name) && taken.add(name));
    if (serverNames.length === 0) return [];
    return [{ ...byteRoute(route.route ?? [], `spec.tls[${i}]`, virtualService.namespace, port, view, snapshot), serverNames }];
  });
}

function matchFits(match: L4MatchSpec, port: number, address: string | undefined, view: ProxyView, gateway: string, namespace: string): boolean {
  if (match.port !== undefined && match.port !== port) return false;
  if (match.gateways?.length && !isBoundTo(match.gateways, gateway, namespace)) return false;
  if (match.destinationSubnets?.length && (address === undefined || !match.destinationSubnets.some((subnet) => holds(subnet, address)))) return false;
  return sourceFits(match, view, gateway);
}

/** Whether an address is in `10.1.0.0/16`, or is the address without a length. */
function holds(subnet: string, address: string): boolean {
  const [base = '', length] = subnet.split('/');
  if (length === undefined) return base === address;
  if (isIPv6(base) || isIPv6(address)) return base === address && length === '128';
  const bits = (text: string) => text.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
  const size = 2 ** (32 - Number(length));
  return Math.floor(bits(base) / size) === Math.floor(bits(address) / size);
}

function byteRoute(
  destinations: readonly RouteDestinationSpec[],
  path: string,
  namespace: string,
  port: number,
  view: ProxyView,
  snapshot: MeshSnapshot,
): ByteRoute {
  const targets = destinations
    .filter(({ weight }) => destinations.length === 1 || (weight ?? 0) > 0)
    .map(({ destination, weight }) => ({ cluster: clusterOf(destination, namespace, port, snapshot), weight: destinations.length === 1 ? 1 : (weight ?? 0) }));
  return { targets, filter: tcpProxy(targets[0]?.cluster ?? '', targets, policyOf(destinations[0]?.destination, namespace, port, view, snapshot)), path };
}

function clusterOf(destination: DestinationSpec, namespace: string, port: number, snapshot: MeshSnapshot): string {
  const { hostname, number } = resolveDestination(destination, namespace, port, snapshot);
  return outboundClusterName(number, destination.subset ?? '', hostname);
}

/** What the first destination's DestinationRule says of whole connections. */
function policyOf(destination: DestinationSpec | undefined, namespace: string, port: number, view: ProxyView, snapshot: MeshSnapshot) {
  if (!destination) return {};
  const { service, number } = resolveDestination(destination, namespace, port, snapshot);
  const rule = service && destinationRuleFor(service, view, snapshot)?.spec;
  const subset = rule?.subsets?.find(({ name }) => name === destination.subset);
  const { connectionPool, loadBalancer, tunnel } = effectivePolicy(rule, subset, number);
  const idleTimeoutMs = connectionPool?.tcp?.idleTimeout ? parseDurationMs(connectionPool.tcp.idleTimeout) : undefined;
  return {
    ...(idleTimeoutMs === undefined ? {} : { idleTimeout: durationFromMs(idleTimeoutMs) }),
    ...(tunnel ? { tunnelingConfig: { hostname: `${tunnel.targetHost}:${tunnel.targetPort}` } } : {}),
    ...(loadBalancer?.consistentHash?.useSourceIp ? { hashPolicy: [{ policySpecifier: { case: 'sourceIp' as const, value: {} } }] } : {}),
  };
}

/** The VirtualServices of a gateway whose hosts a server has. */
export function serves(serverHosts: readonly string[], hosts: readonly string[] | undefined): boolean {
  return (hosts ?? []).some((host) => serverHosts.some((pattern) => hostMatches(pattern, host) || hostMatches(host, pattern)));
}
