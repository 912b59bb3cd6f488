import type { GatewaySpec, HttpRouteSpec, RouteDestinationSpec, VirtualServiceSpec } from '@mizzen/api';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { noBackend, type RankedRoute, routesOfRule, UnsupportedRule } from './http-rules.ts';
import { type GatewayState, gatewayStates, internalGateway, type Listener, sharedHostnames } from './listeners.ts';
import { admits, type Backend, resolveBackend } from './references.ts';
import type { GatewayApiResources } from './resources.ts';
import { type BackendRefSpec, type Condition, condition, failed, group, type ParentReferenceSpec, type RouteRuleSpec, type RouteSpec } from './types.ts';

/** The Gateway API's objects as what generation understands: gateways with one server each, and VirtualServices bound to them or to the mesh. */
export interface Translation {
  readonly gateways: readonly Configured<GatewaySpec>[];
  readonly virtualServices: readonly Configured<VirtualServiceSpec>[];
  readonly states: readonly GatewayState[];
  readonly routes: readonly RouteState[];
  /** How many routes are bound to a listener, by its internal name and namespace. */
  readonly attached: ReadonlyMap<string, number>;
}

/** What has become of a route at each of its parents that is ours. */
export interface RouteState {
  readonly route: Configured<RouteSpec>;
  readonly parents: readonly { readonly ref: ParentReferenceSpec; readonly conditions: readonly Condition[] }[];
}

type Route = Configured<RouteSpec>;

/** A route at a place where it is bound. */
interface Binding {
  readonly route: Route;
  readonly hostnames: readonly string[];
}

export function translateGatewayApi(resources: GatewayApiResources, snapshot: MeshSnapshot): Translation {
  const states = gatewayStates(resources, snapshot);
  const listeners = states.flatMap((state) => state.listeners);
  const bindings = new Map<Listener, Binding[]>(listeners.map((listener) => [listener, []]));
  const services = new Map<string, { readonly routes: Route[]; readonly port: number | undefined; readonly hostname: string; readonly exportTo: string }>();
  const problems = new Map<Route, string>();
  const routes: RouteState[] = [];
  for (const route of resources.routes) {
    const backends = backendCondition(route, snapshot, resources);
    const unsupported = unsupportedOf(route, snapshot, resources);
    if (unsupported !== undefined) problems.set(route, unsupported);
    const parents = (route.spec.parentRefs ?? []).flatMap((ref) => {
      if ((ref.group ?? group) === '' && ref.kind === 'Service')
        return [{ ref, conditions: [bindToService(route, ref, unsupported, services, snapshot), backends] }];
      const own = states.filter(({ gateway, listenerSets }) =>
        ref.kind === 'ListenerSet'
          ? listenerSets.some(({ set }) => set.name === ref.name && set.namespace === (ref.namespace ?? route.namespace))
          : (ref.kind ?? 'Gateway') === 'Gateway' && gateway.name === ref.name && gateway.namespace === (ref.namespace ?? route.namespace),
      );
      return own.map((state) => ({ ref, conditions: [bindToListeners(route, ref, unsupported, state.listeners, bindings, resources), backends] }));
    });
    if (parents.length > 0) routes.push({ route, parents });
  }
  const virtualServices = [
    ...[...services.values()].map(({ routes: bound, port, hostname, exportTo }) => meshVirtualService(bound, port, hostname, exportTo, snapshot, resources)),
    ...listeners.flatMap((listener) => listenerVirtualServices(listener, bindings.get(listener)!, snapshot, resources)),
  ];
  return {
    gateways: listeners.filter(({ isValid }) => isValid).map(internalGateway),
    virtualServices,
    states,
    routes,
    attached: new Map(listeners.map((listener) => [`${listener.gateway.namespace}/${listener.name}`, bindings.get(listener)!.length])),
  };
}

function bindToListeners(
  route: Route,
  ref: ParentReferenceSpec,
  unsupported: string | undefined,
  listeners: readonly Listener[],
  bindings: Map<Listener, Binding[]>,
  resources: GatewayApiResources,
): Condition {
  const isOfSet = ref.kind === 'ListenerSet';
  const named = listeners.filter(
    ({ spec, owner, gateway }) =>
      (isOfSet ? owner.kind === 'ListenerSet' && owner.name === ref.name : owner === gateway) &&
      (ref.sectionName === undefined || spec.name === ref.sectionName) &&
      (ref.port === undefined || spec.port === ref.port),
  );
  if (named.length === 0)
    return failed('Accepted', 'NoMatchingParent', `no listener has ${ref.sectionName ? `the name ${ref.sectionName}` : `port ${ref.port}`}`);
  const allowing = named.filter(
    ({ spec, owner, supportedKinds }) =>
      supportedKinds.includes(route.kind) && admits(spec.allowedRoutes?.namespaces, owner.namespace, route.namespace, 'Same', resources),
  );
  if (allowing.length === 0)
    return failed('Accepted', 'NotAllowedByListeners', `no listener takes a ${route.kind} of namespace ${route.namespace}: see allowedRoutes and the protocol`);
  const reached = allowing
    .map((listener) => ({ listener, hostnames: sharedHostnames(hasHostnames(route) ? listener.spec.hostname : undefined, route.spec.hostnames) }))
    .filter(({ hostnames }) => hostnames.length > 0);
  if (reached.length === 0)
    return failed('Accepted', 'NoMatchingListenerHostname', `none of its host names is one of ${allowing.map(({ spec }) => spec.hostname).join(', ')}`);
  if (unsupported !== undefined) return failed('Accepted', 'UnsupportedValue', unsupported);
  for (const { listener, hostnames } of reached) {
    const bound = bindings.get(listener)!;
    if (!bound.some((one) => one.route === route)) bound.push({ route, hostnames });
  }
  return condition('Accepted', 'Accepted');
}

const hasHostnames = ({ kind }: Route) => kind !== 'TCPRoute' && kind !== 'UDPRoute';

/** GAMMA: a route of the service's own namespace is for all of its callers, another for those of its own namespace. */
function bindToService(
  route: Route,
  ref: ParentReferenceSpec,
  unsupported: string | undefined,
  services: Map<string, { readonly routes: Route[]; readonly port: number | undefined; readonly hostname: string; readonly exportTo: string }>,
  snapshot: MeshSnapshot,
): Condition {
  const namespace = ref.namespace ?? route.namespace;
  const hostname = `${ref.name}.${namespace}.svc.${snapshot.domain}`;
  const service = snapshot.servicesByHostname.get(hostname);
  if (!service) return failed('Accepted', 'NoMatchingParent', `the Service ${namespace}/${ref.name} does not exist`);
  if (ref.port !== undefined && !service.ports.some(({ number }) => number === ref.port))
    return failed('Accepted', 'NoMatchingParent', `the Service ${namespace}/${ref.name} has no port ${ref.port}`);
  if (unsupported !== undefined) return failed('Accepted', 'UnsupportedValue', unsupported);
  if (route.kind === 'UDPRoute') return failed('Accepted', 'UnsupportedValue', 'sidecars carry no UDP: a UDPRoute is for a Gateway');
  const exportTo = namespace === route.namespace ? '*' : route.namespace;
  const isBytes = !['HTTPRoute', 'GRPCRoute'].includes(route.kind);
  const key = `${hostname}/${exportTo}/${ref.port ?? ''}/${isBytes}`;
  const entry = services.get(key) ?? { routes: [], port: ref.port, hostname, exportTo };
  services.set(key, entry);
  entry.routes.push(route);
  return condition('Accepted', 'Accepted');
}

/** The first back end that cannot be used says why; the requests that would go to it are answered with 500. */
function backendCondition(route: Route, snapshot: MeshSnapshot, resources: GatewayApiResources): Condition {
  for (const rule of route.spec.rules ?? [])
    for (const ref of backendRefsOf(rule)) {
      const backend = resolveBackend(ref, route, snapshot, resources);
      if (!('destination' in backend)) return failed('ResolvedRefs', backend.reason, backend.message);
    }
  return condition('ResolvedRefs', 'ResolvedRefs');
}

function backendRefsOf(rule: RouteRuleSpec): BackendRefSpec[] {
  return [...(rule.backendRefs ?? []), ...(rule.filters ?? []).flatMap(({ requestMirror }) => (requestMirror ? [requestMirror.backendRef] : []))];
}

function unsupportedOf(route: Route, snapshot: MeshSnapshot, resources: GatewayApiResources): string | undefined {
  if (route.kind !== 'HTTPRoute' && route.kind !== 'GRPCRoute') return undefined;
  try {
    rankedRoutes(route, undefined, snapshot, resources);
    return undefined;
  } catch (error) {
    if (error instanceof UnsupportedRule) return error.message;
    throw error;
  }
}

interface OwnedRoute extends RankedRoute {
  readonly owner: Route;
}

function rankedRoutes(
  route: Route,
  listener: { readonly port: number; readonly isTls: boolean } | undefined,
  snapshot: MeshSnapshot,
  resources: GatewayApiResources,
): OwnedRoute[] {
  const resolve = (ref: BackendRefSpec): Backend => resolveBackend(ref, route, snapshot, resources);
  return (route.spec.rules ?? []).flatMap((rule, i) =>
    routesOfRule(rule, route.kind, resolve, listener).map(({ route: http, rank }) => ({
      route: { ...http, source: { object: route, path: `spec.rules[${i}]` } },
      rank,
      owner: route,
    })),
  );
}

/** The more specific first; of equals those of the older object, then the earlier in it: sorting keeps their order. */
function inOrder(routes: readonly OwnedRoute[]): HttpRouteSpec[] {
  return [...routes]
    .sort((a, b) => {
      for (const [i, value] of a.rank.entries()) if (value !== b.rank[i]) return b.rank[i]! - value;
      return 0;
    })
    .map(({ route }) => route);
}

function meshVirtualService(
  routes: readonly Route[],
  port: number | undefined,
  hostname: string,
  exportTo: string,
  snapshot: MeshSnapshot,
  resources: GatewayApiResources,
): Configured<VirtualServiceSpec> {
  const [first] = routes;
  const base: VirtualServiceSpec = { hosts: [hostname], gateways: ['mesh'], exportTo: [exportTo] };
  if (first!.kind !== 'HTTPRoute' && first!.kind !== 'GRPCRoute') {
    const route = bytesOf(first!, snapshot, resources);
    return { ...first!, spec: { ...base, tcp: [{ ...(port === undefined ? {} : { match: [{ port }] }), route }] } };
  }
  const http = inOrder(routes.flatMap((route) => rankedRoutes(route, undefined, snapshot, resources)));
  const onPort = port === undefined ? http : http.map((route) => ({ ...route, match: (route.match ?? [{}]).map((match) => ({ ...match, port })) }));
  return { ...first!, spec: { ...base, http: onPort } };
}

/** One VirtualService for each host name of a listener, with the rules of all routes that are reached by it. */
function listenerVirtualServices(
  listener: Listener,
  bound: readonly Binding[],
  snapshot: MeshSnapshot,
  resources: GatewayApiResources,
): Configured<VirtualServiceSpec>[] {
  const { spec, name, owner, gateway } = listener;
  const gateways = [`${gateway.namespace}/${name}`];
  if (spec.protocol === 'HTTP' || spec.protocol === 'HTTPS') {
    const byHostname = new Map<string, OwnedRoute[]>();
    const at = { port: spec.port, isTls: spec.protocol === 'HTTPS' };
    for (const { route, hostnames } of bound)
      for (const hostname of hostnames) byHostname.set(hostname, [...(byHostname.get(hostname) ?? []), ...rankedRoutes(route, at, snapshot, resources)]);
    // A host that is this listener's is no other's, though nothing is routed there.
    const own = spec.hostname || '*';
    if (!byHostname.has(own)) byHostname.set(own, []);
    return [...byHostname].map(([hostname, routes]) => ({
      ...(routes[0]?.owner ?? owner),
      name: routes[0]?.owner.name ?? owner.name,
      spec: { hosts: [hostname], gateways, http: inOrder(routes) },
    }));
  }
  return bound.map(({ route, hostnames }) => {
    const to = bytesOf(route, snapshot, resources);
    if (spec.protocol === 'UDP') return { ...route, spec: { hosts: [...hostnames], gateways, udp: to } };
    const terminates = spec.protocol === 'TCP' || spec.tls?.mode !== 'Passthrough';
    return {
      ...route,
      spec: {
        hosts: [...hostnames],
        gateways,
        ...(terminates ? { tcp: [{ route: to }] } : { tls: [{ match: [{ sniHosts: [...hostnames] }], route: to }] }),
      },
    };
  });
}

/** Of the first rule: bytes have nothing by which several could be told apart. */
function bytesOf(route: Route, snapshot: MeshSnapshot, resources: GatewayApiResources): RouteDestinationSpec[] {
  const refs = (route.spec.rules?.[0]?.backendRefs ?? []).filter(({ weight = 1 }) => weight > 0);
  const resolved = refs.map((ref) => ({ ref, backend: resolveBackend(ref, route, snapshot, resources) }));
  const weightOf = ({ weight = 1 }: BackendRefSpec) => (refs.length > 1 ? { weight } : {});
  if (route.kind === 'UDPRoute')
    return resolved.flatMap(({ ref, backend }) => ('destination' in backend ? [{ destination: backend.destination, ...weightOf(ref) }] : []));
  // A connection for a back end that cannot be used is accepted and closed, in its share of the connections.
  if (resolved.length === 0) return [{ destination: noBackend }];
  return resolved.map(({ ref, backend }) => ({ destination: 'destination' in backend ? backend.destination : noBackend, ...weightOf(ref) }));
}
