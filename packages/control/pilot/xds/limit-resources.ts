import { create, type DescMessage, fromBinary, type Message, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import { type ReflectMessage, reflect } from '@bufbuild/protobuf/reflect';
import { type Any, AnySchema } from '@bufbuild/protobuf/wkt';
import { type DiscoveryType, packAny, unpackAny } from '@mizzen/envoy-api';
import { type Cluster, ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { type FilterChain, FilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { RouteMatchSchema, type VirtualHost, VirtualHostSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { type RouteConfiguration, RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import {
  type HttpConnectionManager,
  HttpConnectionManagerSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { TcpProxySchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy_pb.js';
import { registry } from '../envoy-filters/patches.ts';
import type { MissingFeatures } from './missing-features.ts';

/** Something that a proxy is not sent since it does not know it. */
export interface Shortfall {
  /** `listener inbound_9080`. */
  readonly resource: string;
  /** A filter, or a field as `Message.field`. */
  readonly feature: string;
  /** refuses: a security policy needs it, so what the policy covers refuses all traffic. omitted: it is left out. */
  readonly effect: 'refuses' | 'omitted';
}

/** The HTTP filters by which policies are enforced. What needs one of them refuses all requests without it. */
const securityFilters: ReadonlySet<string> = new Set([
  ...['envoy.filters.http.rbac', 'envoy.filters.http.jwt_authn', 'envoy.filters.http.ext_authz', 'mizzen.filters.http.authentication'],
  ...['mizzen.filters.http.login', 'mizzen.filters.http.ip_access', 'mizzen.filters.http.rate_limit', 'mizzen.filters.http.validation'],
  ...['mizzen.filters.http.script', 'envoy.filters.http.local_ratelimit', 'envoy.filters.http.ratelimit'],
]);
/** Those that do something only on routes that name them. */
const filtersOfRoutes: ReadonlySet<string> = new Set([...securityFilters].filter((name) => name.startsWith('mizzen.')));
/** How a path is read, and what is said about the caller: policies rely on both. */
const securityFieldsOfManager: ReadonlySet<string> = new Set([
  ...['normalizePath', 'mergeSlashes', 'pathWithEscapedSlashesAction', 'forwardClientCertDetails', 'setCurrentClientCertDetails', 'useRemoteAddress'],
]);
const router = 'envoy.filters.http.router';
const refusal = 'this proxy is too old to enforce a policy of the mesh\n';

/** Resources of one type as an older proxy can use them. Nothing of a security policy is left out in silence: what it covers refuses. */
export function limitResources(type: DiscoveryType, resources: readonly Any[], missing: MissingFeatures): { resources: Any[]; shortfalls: Shortfall[] } {
  const shortfalls = new Map<string, Shortfall>();
  const limiter = (resource: string) =>
    new Limiter(missing, (feature, effect) => {
      const key = `${resource} ${feature}`;
      // What made a policy refuse may be left out of the rest, too.
      if (shortfalls.get(key)?.effect !== 'refuses') shortfalls.set(key, { resource, feature, effect });
    });
  const limited = resources.map((any) => {
    switch (type) {
      case 'listener':
        return limit(any, ListenerSchema, (listener) => limiter(`listener ${listener.name}`).listener(listener));
      case 'route':
        return limit(any, RouteConfigurationSchema, (table) => limiter(`route configuration ${table.name}`).routes(table));
      case 'cluster':
        return limit(any, ClusterSchema, (cluster) => limiter(`cluster ${cluster.name}`).cluster(cluster));
      default:
        return any;
    }
  });
  return { resources: limited, shortfalls: [...shortfalls.values()] };
}

/** How a refusal is put: by HTTP with 403, as long as the proxy accepts the rest of the listener, else by closing connections. */
export type RefusalForm = 'http' | 'close';

/** A listener or route configuration of the same addresses or hosts that refuses all traffic. */
export function refusing(type: DiscoveryType, any: Any, form: RefusalForm): Any {
  if (type === 'route')
    return limit(any, RouteConfigurationSchema, (table) => {
      for (const host of table.virtualHosts) refuseHost(host);
    });
  return limit(any, ListenerSchema, (listener) => {
    for (const chain of chainsOf(listener)) refuseChain(chain, form);
  });
}

/** The bytes by which a listener or a route configuration enforces policies: equal bytes enforce the same. Empty: none. */
export function securityOf(type: DiscoveryType, any: Any): string {
  const parts: string[] = [];
  const add = (bytes: Uint8Array) => parts.push(Buffer.from(bytes).toString('base64'));
  const addRoutes = (table: RouteConfiguration) => {
    for (const { typedPerFilterConfig } of [...table.virtualHosts, ...table.virtualHosts.flatMap(({ routes }) => routes)])
      for (const [name, config] of Object.entries(typedPerFilterConfig)) if (securityFilters.has(name)) add(config.value);
  };
  if (type === 'route') addRoutes(fromBinary(RouteConfigurationSchema, any.value));
  if (type === 'listener')
    for (const chain of chainsOf(fromBinary(ListenerSchema, any.value))) {
      if (chain.transportSocket?.configType.case === 'typedConfig') add(chain.transportSocket.configType.value.value);
      for (const filter of chain.filters) {
        const manager = managerOf(filter);
        if (manager === undefined) {
          if (filter.configType.case === 'typedConfig' && unpackAny(TcpProxySchema, filter.configType.value) === undefined) add(filter.configType.value.value);
          continue;
        }
        for (const { name, configType } of manager.httpFilters) if (securityFilters.has(name) && configType.case === 'typedConfig') add(configType.value.value);
        if (manager.routeSpecifier.case === 'routeConfig') addRoutes(manager.routeSpecifier.value);
      }
    }
  return parts.join(' ');
}

function limit<Desc extends DescMessage>(any: Any, schema: Desc, change: (message: ReturnType<typeof fromBinary<Desc>>) => void): Any {
  const message = fromBinary(schema, any.value);
  change(message);
  return create(AnySchema, { typeUrl: any.typeUrl, value: toBinary(schema, message) });
}

const chainsOf = (listener: Listener): FilterChain[] => [...listener.filterChains, ...(listener.defaultFilterChain ? [listener.defaultFilterChain] : [])];

function managerOf(filter: FilterChain['filters'][number]): HttpConnectionManager | undefined {
  return filter.configType.case === 'typedConfig' ? unpackAny(HttpConnectionManagerSchema, filter.configType.value) : undefined;
}

class Limiter {
  readonly #missing: MissingFeatures;
  readonly #report: (feature: string, effect: Shortfall['effect']) => void;

  constructor(missing: MissingFeatures, report: (feature: string, effect: Shortfall['effect']) => void) {
    this.#missing = missing;
    this.#report = report;
  }

  listener(listener: Listener): void {
    for (const chain of chainsOf(listener)) this.#chain(chain);
    this.#omit(ListenerSchema, listener);
  }

  cluster(cluster: Cluster): void {
    // Without a part of its TLS settings the proxy would trust other servers than it should.
    const sockets = [cluster.transportSocket, ...cluster.transportSocketMatches.map(({ transportSocket }) => transportSocket)];
    for (const socket of sockets)
      if (socket?.configType.case === 'typedConfig' && this.#refuses(socket.configType.value)) {
        Object.assign(
          cluster,
          create(ClusterSchema, { name: cluster.name, clusterDiscoveryType: { case: 'type', value: 0 }, loadAssignment: { clusterName: cluster.name } }),
        );
        return;
      }
    this.#omit(ClusterSchema, cluster);
  }

  routes(table: RouteConfiguration): void {
    for (const host of table.virtualHosts) {
      if (this.#refusesPerFilter(host)) {
        refuseHost(host);
        continue;
      }
      host.routes = host.routes.filter((route) => {
        if (this.#refusesPerFilter(route)) {
          route.action = refusingAction();
          route.typedPerFilterConfig = {};
          return true;
        }
        if (route.action.case === 'route' && route.action.value.clusterSpecifier.case === 'weightedClusters')
          for (const cluster of route.action.value.clusterSpecifier.value.clusters)
            if (this.#refusesPerFilter(cluster)) {
              route.action = refusingAction();
              return true;
            }
        // With a condition less a route would take requests that are not for it.
        const conditions = route.match === undefined ? [] : this.#fieldsIn(RouteMatchSchema, route.match);
        if (conditions.length === 0) return true;
        const isSecured = Object.keys(route.typedPerFilterConfig).some((name) => securityFilters.has(name));
        for (const feature of conditions) this.#report(feature, isSecured ? 'refuses' : 'omitted');
        if (isSecured) refuseHost(host);
        return false;
      });
    }
    this.#omit(RouteConfigurationSchema, table);
  }

  #chain(chain: FilterChain): void {
    const socket = chain.transportSocket?.configType;
    if (socket?.case === 'typedConfig' && this.#refuses(socket.value)) return refuseChain(chain, 'close');
    for (const filter of chain.filters) {
      const manager = managerOf(filter);
      if (manager !== undefined) {
        if (this.#managerRefuses(manager)) refuseManager(manager);
        else if (manager.routeSpecifier.case === 'routeConfig') this.routes(manager.routeSpecifier.value);
        this.#omit(HttpConnectionManagerSchema, manager);
        filter.configType = { case: 'typedConfig', value: packAny(HttpConnectionManagerSchema, manager) };
        continue;
      }
      if (filter.configType.case !== 'typedConfig' || unpackAny(TcpProxySchema, filter.configType.value) !== undefined) continue;
      // What stands before the TCP proxy decides who may connect.
      if (this.#missing.hasFilter(filter.name)) this.#report(filter.name, 'refuses');
      else if (!this.#refuses(filter.configType.value)) continue;
      return refuseChain(chain, 'close');
    }
  }

  #managerRefuses(manager: HttpConnectionManager): boolean {
    let refuses = false;
    const isSecured = manager.httpFilters.some(({ name }) => securityFilters.has(name));
    manager.httpFilters = manager.httpFilters.filter(({ name, configType }) => {
      if (this.#missing.hasFilter(name)) {
        const isSecurity = securityFilters.has(name) && !filtersOfRoutes.has(name);
        if (isSecurity || !securityFilters.has(name)) this.#report(name, isSecurity ? 'refuses' : 'omitted');
        refuses ||= isSecurity;
        return false;
      }
      if (securityFilters.has(name) && configType.case === 'typedConfig' && this.#refuses(configType.value)) refuses = true;
      return true;
    });
    if (!isSecured) return refuses;
    for (const field of HttpConnectionManagerSchema.fields) {
      if (!securityFieldsOfManager.has(field.localName) || !this.#missing.hasField(HttpConnectionManagerSchema, field)) continue;
      if (!reflect(HttpConnectionManagerSchema, manager).isSet(field)) continue;
      this.#report(`HttpConnectionManager.${field.name}`, 'refuses');
      refuses = true;
    }
    return refuses;
  }

  /** Whether a security policy of a route, virtual host or weighted cluster cannot be enforced; other configuration of missing filters is left out. */
  #refusesPerFilter(place: { typedPerFilterConfig: Record<string, Any> }): boolean {
    let refuses = false;
    for (const [name, config] of Object.entries(place.typedPerFilterConfig)) {
      const isSecurity = securityFilters.has(name);
      if (this.#missing.hasFilter(name)) {
        this.#report(name, isSecurity ? 'refuses' : 'omitted');
        refuses ||= isSecurity;
        delete place.typedPerFilterConfig[name];
      } else if (isSecurity && this.#refuses(config)) refuses = true;
    }
    return refuses;
  }

  /** Whether something in a packed message of a security policy is missing. */
  #refuses(any: Any): boolean {
    const schema = registry.getMessage(any.typeUrl.slice(any.typeUrl.lastIndexOf('/') + 1));
    if (schema === undefined) return false;
    const found = this.#fieldsIn(schema, fromBinary(schema, any.value));
    for (const feature of found) this.#report(feature, 'refuses');
    return found.length > 0;
  }

  #fieldsIn(schema: DescMessage, message: Message): string[] {
    const found: string[] = [];
    this.#walk(reflect(schema, message), (feature) => void found.push(feature));
    return found;
  }

  /** Leaves out what is missing. */
  #omit(schema: DescMessage, message: Message): void {
    this.#walk(reflect(schema, message), (feature, clear) => {
      this.#report(feature, 'omitted');
      clear();
    });
  }

  #walk(message: ReflectMessage, visit: (feature: string, clear: () => void) => void): void {
    if (message.desc.typeName === AnySchema.typeName) return this.#walkPacked(message.message as Any, visit);
    for (const field of message.fields) {
      if (!message.isSet(field)) continue;
      if (this.#missing.hasField(message.desc, field)) visit(`${message.desc.name}.${field.name}`, () => message.clear(field));
      else if (field.fieldKind === 'message') this.#walk(message.get(field), visit);
      else if (field.fieldKind === 'list' && field.listKind === 'message') for (const entry of message.get(field)) this.#walk(entry as ReflectMessage, visit);
      else if (field.fieldKind === 'map' && field.mapKind === 'message') for (const [, entry] of message.get(field)) this.#walk(entry as ReflectMessage, visit);
    }
  }

  #walkPacked(any: Any, visit: (feature: string, clear: () => void) => void): void {
    const schema = registry.getMessage(any.typeUrl.slice(any.typeUrl.lastIndexOf('/') + 1));
    if (schema === undefined) return;
    const inner = fromBinary(schema, any.value);
    let isChanged = false;
    this.#walk(reflect(schema, inner), (feature, clear) =>
      visit(feature, () => {
        clear();
        isChanged = true;
      }),
    );
    if (isChanged) any.value = toBinary(schema, inner);
  }
}

const refusingAction = (): VirtualHost['routes'][number]['action'] =>
  create(VirtualHostSchema, {
    routes: [{ action: { case: 'directResponse', value: { status: 403, body: { specifier: { case: 'inlineString', value: refusal } } } } }],
  }).routes[0]!.action;

function refuseHost(host: VirtualHost): void {
  const init: MessageInitShape<typeof VirtualHostSchema> = {
    ...{ name: host.name, domains: host.domains },
    routes: [{ match: { pathSpecifier: { case: 'prefix', value: '/' } }, action: refusingAction() }],
  };
  Object.assign(host, create(VirtualHostSchema, init));
}

function refuseManager(manager: HttpConnectionManager): void {
  manager.httpFilters = manager.httpFilters.filter(({ name }) => name === router);
  const host = create(VirtualHostSchema, { name: 'refused', domains: ['*'] });
  refuseHost(host);
  manager.routeSpecifier = { case: 'routeConfig', value: create(RouteConfigurationSchema, { name: 'refused', virtualHosts: [host] }) };
}

/** Other connections than HTTP are closed in either form, since their cluster does not exist. */
function refuseChain(chain: FilterChain, form: RefusalForm): void {
  const last = chain.filters.at(-1);
  const manager = last === undefined ? undefined : managerOf(last);
  if (form === 'http' && last !== undefined && manager !== undefined) {
    refuseManager(manager);
    chain.filters = [create(FilterSchema, { name: last.name, configType: { case: 'typedConfig', value: packAny(HttpConnectionManagerSchema, manager) } })];
    return;
  }
  const clusterSpecifier = { case: 'cluster', value: 'refused, since a policy cannot be enforced' } as const;
  chain.filters = [
    create(FilterSchema, {
      name: 'envoy.filters.network.tcp_proxy',
      configType: { case: 'typedConfig', value: packAny(TcpProxySchema, { statPrefix: 'refused', clusterSpecifier }) },
    }),
  ];
  if (form === 'close') delete chain.transportSocket;
}
