import { clone, type DescMessage, type Message, type MessageShape } from '@bufbuild/protobuf';
import type { Any } from '@bufbuild/protobuf/wkt';
import { packAny, unpackAny } from '@mizzen/envoy-api';
import { type Cluster, ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import {
  type Filter,
  type FilterChain,
  FilterChainSchema,
  FilterSchema,
  type ListenerFilter,
  ListenerFilterSchema,
} from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { type Route, RouteSchema, type VirtualHost, VirtualHostSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { type RouteConfiguration, RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import {
  type HttpConnectionManager,
  HttpConnectionManagerSchema,
  type HttpFilter,
  HttpFilterSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import type { ProxyView } from '../proxy-view.ts';
import { mergeMessages } from './merge-messages.ts';
import { type Patch, registry } from './patches.ts';

/** Told of each patch that has found its place. */
export type OnApplied = (patch: Patch) => void;

type Context = 'SIDECAR_INBOUND' | 'SIDECAR_OUTBOUND' | 'GATEWAY';

const isIn = ({ match: { context = 'ANY' } }: Patch, own: Context) => context === 'ANY' || context === own;

/** CDS after the patches. */
export function patchClusters(clusters: readonly Cluster[], patches: readonly Patch[], view: ProxyView, onApplied: OnApplied): Cluster[] {
  return patchList(ClusterSchema, clusters, patches, 'CLUSTER', onApplied, (patch, cluster) => {
    const own: Context = view.type === 'gateway' ? 'GATEWAY' : /^(?:inbound\||Inbound)/.test(cluster.name) ? 'SIDECAR_INBOUND' : 'SIDECAR_OUTBOUND';
    return isIn(patch, own) && clusterFits(patch, cluster.name);
  });
}

function clusterFits({ match: { cluster: wanted } }: Patch, name: string): boolean {
  if (!wanted) return true;
  if (wanted.name) return wanted.name === name;
  const [, port = '', subset = '', service = ''] = name.split('|');
  return (
    (!wanted.portNumber || Number(port) === wanted.portNumber) &&
    (!wanted.subset || wanted.subset === subset) &&
    (!wanted.service || wanted.service === service)
  );
}

/** LDS after the patches, with the filters and inline routes in it. */
export function patchListeners(listeners: readonly Listener[], patches: readonly Patch[], view: ProxyView, onApplied: OnApplied): Listener[] {
  const patched = patchList(ListenerSchema, listeners, patches, 'LISTENER', onApplied, (patch, listener) => listenerFits(patch, listener, view));
  const inside = patches.filter(({ applyTo }) => insideListeners.has(applyTo));
  if (inside.length === 0) return patched;
  for (const listener of patched) {
    const own = inside.filter((patch) => (isOfRoutes(patch) ? isIn(patch, contextOf(listener, view)) : listenerFits(patch, listener, view)));
    if (own.length === 0) continue;
    listener.listenerFilters = patchNamed(
      ListenerFilterSchema,
      listener.listenerFilters,
      own,
      'LISTENER_FILTER',
      onApplied,
      (patch, { name }: ListenerFilter) => {
        const wanted = patch.match.listener?.listenerFilter;
        return wanted === undefined || wanted === name;
      },
    );
    listener.filterChains = patchList(FilterChainSchema, listener.filterChains, own, 'FILTER_CHAIN', onApplied, chainFits);
    for (const chain of [...listener.filterChains, ...(listener.defaultFilterChain ? [listener.defaultFilterChain] : [])]) patchChain(chain, own, onApplied);
  }
  return patched;
}

const insideListeners = new Set(['FILTER_CHAIN', 'NETWORK_FILTER', 'HTTP_FILTER', 'LISTENER_FILTER', 'ROUTE_CONFIGURATION', 'VIRTUAL_HOST', 'HTTP_ROUTE']);
const isOfRoutes = ({ applyTo }: Patch) => applyTo === 'ROUTE_CONFIGURATION' || applyTo === 'VIRTUAL_HOST' || applyTo === 'HTTP_ROUTE';

function contextOf(listener: Listener, view: ProxyView): Context {
  return view.type === 'gateway' ? 'GATEWAY' : listener.trafficDirection === 1 ? 'SIDECAR_INBOUND' : 'SIDECAR_OUTBOUND';
}

function listenerFits(patch: Patch, listener: Listener, view: ProxyView): boolean {
  if (!isIn(patch, contextOf(listener, view))) return false;
  const wanted = patch.match.listener;
  if (wanted?.name && wanted.name !== listener.name) return false;
  if (!wanted?.portNumber) return true;
  const address = listener.address?.address;
  const isOwn =
    address?.case === 'socketAddress' && address.value.portSpecifier.case === 'portValue' && address.value.portSpecifier.value === wanted.portNumber;
  // What comes in captured is told apart by the port that it was going to; an explicit sidecar's by the workload's own port.
  const declared = (listener.metadata?.filterMetadata['mizzen.inbound'] as { port?: unknown } | undefined)?.port;
  return (
    isOwn || declared === wanted.portNumber || listener.filterChains.some(({ filterChainMatch }) => filterChainMatch?.destinationPort === wanted.portNumber)
  );
}

function chainFits({ match: { listener } }: Patch, { name, filterChainMatch }: FilterChain): boolean {
  const wanted = listener?.filterChain;
  if (!wanted) return true;
  const protocols = wanted.applicationProtocols?.split(',').map((protocol) => protocol.trim());
  return (
    (!wanted.name || wanted.name === name) &&
    (!wanted.sni || (filterChainMatch?.serverNames ?? []).includes(wanted.sni)) &&
    (!wanted.transportProtocol || wanted.transportProtocol === filterChainMatch?.transportProtocol) &&
    (!protocols || protocols.every((protocol) => filterChainMatch?.applicationProtocols.includes(protocol))) &&
    (!wanted.destinationPort || wanted.destinationPort === filterChainMatch?.destinationPort)
  );
}

function patchChain(chain: FilterChain, patches: readonly Patch[], onApplied: OnApplied): void {
  const own = patches.filter((patch) => isOfRoutes(patch) || chainFits(patch, chain));
  chain.filters = patchNamed(FilterSchema, chain.filters, own, 'NETWORK_FILTER', onApplied, (patch, { name }: Filter) => {
    const wanted = patch.match.listener?.filterChain?.filter?.name;
    return !wanted || wanted === name;
  });
  const http = own.filter(({ applyTo }) => applyTo === 'HTTP_FILTER' || insideRoutes.has(applyTo));
  if (http.length === 0) return;
  for (const filter of chain.filters) {
    const any = filter.configType.case === 'typedConfig' ? filter.configType.value : undefined;
    const manager = unpackAny(HttpConnectionManagerSchema, any);
    if (manager && patchManager(manager, filter.name, http, onApplied)) (any as Any).value = packAny(HttpConnectionManagerSchema, manager).value;
  }
}

const insideRoutes = new Set(['ROUTE_CONFIGURATION', 'VIRTUAL_HOST', 'HTTP_ROUTE']);

function patchManager(manager: HttpConnectionManager, name: string, patches: readonly Patch[], onApplied: OnApplied): boolean {
  let hasChanged = false;
  const count: OnApplied = (patch) => {
    hasChanged = true;
    onApplied(patch);
  };
  const own = patches.filter(({ applyTo, match }) => {
    const wanted = match.listener?.filterChain?.filter?.name;
    return applyTo === 'HTTP_FILTER' && (!wanted || wanted === name);
  });
  manager.httpFilters = patchNamed(HttpFilterSchema, manager.httpFilters, own, 'HTTP_FILTER', count, (patch, filter: HttpFilter) => {
    const wanted = patch.match.listener?.filterChain?.filter?.subFilter?.name;
    return !wanted || wanted === filter.name;
  });
  if (manager.routeSpecifier.case === 'routeConfig') {
    const [table] = patchTables([manager.routeSpecifier.value], patches, undefined, count);
    if (table) manager.routeSpecifier.value = table;
  }
  return hasChanged;
}

/** RDS after the patches. */
export function patchRoutes(tables: readonly RouteConfiguration[], patches: readonly Patch[], view: ProxyView, onApplied: OnApplied): RouteConfiguration[] {
  const own = patches.filter((patch) => isOfRoutes(patch) && isIn(patch, view.type === 'gateway' ? 'GATEWAY' : 'SIDECAR_OUTBOUND'));
  return patchTables(tables, own, view, onApplied);
}

function patchTables(
  tables: readonly RouteConfiguration[],
  patches: readonly Patch[],
  view: ProxyView | undefined,
  onApplied: OnApplied,
): RouteConfiguration[] {
  const patched = patchList(RouteConfigurationSchema, tables, patches, 'ROUTE_CONFIGURATION', onApplied, (patch, table) => tableFits(patch, table, view));
  for (const table of patched) {
    const own = patches.filter((patch) => tableFits(patch, table, view));
    table.virtualHosts = patchList(VirtualHostSchema, table.virtualHosts, own, 'VIRTUAL_HOST', onApplied, (patch, host) => hostFits(patch, host, table));
    for (const host of table.virtualHosts)
      host.routes = patchNamed(
        RouteSchema,
        host.routes,
        own.filter((patch) => hostFits(patch, host, table)),
        'HTTP_ROUTE',
        onApplied,
        routeFits,
      );
  }
  return patched;
}

/** An explicitly called sidecar has one table for the services of all ports; its virtual hosts tell them apart. */
const allPorts = 'http_proxy';

function tableFits({ match: { routeConfiguration: wanted } }: Patch, { name }: RouteConfiguration, view: ProxyView | undefined): boolean {
  if (!wanted) return true;
  if (wanted.name && wanted.name !== name) return false;
  const parts = name.split('.');
  if (
    wanted.portNumber &&
    name !== allPorts &&
    name !== String(wanted.portNumber) &&
    parts[1] !== String(wanted.portNumber) &&
    !name.endsWith(`:${wanted.portNumber}`)
  )
    return false;
  if (wanted.portName && view?.type === 'gateway' && parts[2] !== wanted.portName) return false;
  if (wanted.gateway && view?.type === 'gateway' && parts[0] === 'https' && `${parts.at(-1)}/${parts.at(-2)}` !== wanted.gateway) return false;
  return true;
}

function hostFits({ match: { routeConfiguration: wanted } }: Patch, { name, domains }: VirtualHost, table: RouteConfiguration): boolean {
  if (table.name === allPorts && wanted?.portNumber && !name.endsWith(`:${wanted.portNumber}`)) return false;
  const host = wanted?.vhost;
  return (!host?.name || host.name === name) && (!host?.domainName || domains.includes(host.domainName));
}

function routeFits({ match: { routeConfiguration } }: Patch, { name, action }: Route): boolean {
  const wanted = routeConfiguration?.vhost?.route;
  const kinds = { ROUTE: 'route', REDIRECT: 'redirect', DIRECT_RESPONSE: 'directResponse' } as const;
  return (!wanted?.name || wanted.name === name) && (!wanted?.action || wanted.action === 'ANY' || kinds[wanted.action] === action.case);
}

/** What of a list is added, merged, replaced and removed, for lists in which the order means nothing. */
function patchList<Desc extends DescMessage>(
  schema: Desc,
  list: readonly MessageShape<Desc>[],
  patches: readonly Patch[],
  applyTo: Patch['applyTo'],
  onApplied: OnApplied,
  fits: (patch: Patch, item: MessageShape<Desc>) => boolean,
): MessageShape<Desc>[] {
  let items = [...list];
  for (const patch of patches) {
    if (patch.applyTo !== applyTo) continue;
    if (patch.operation === 'ADD') {
      items.push(copy(schema, patch));
      onApplied(patch);
    } else items = changeFitting(schema, items, patch, onApplied, fits);
  }
  return items;
}

/** The same for lists whose order counts: a patch is for a place before, after or instead of what fits it. */
function patchNamed<Desc extends DescMessage>(
  schema: Desc,
  list: readonly MessageShape<Desc>[],
  patches: readonly Patch[],
  applyTo: Patch['applyTo'],
  onApplied: OnApplied,
  fits: (patch: Patch, item: MessageShape<Desc>) => boolean,
): MessageShape<Desc>[] {
  let items = [...list];
  for (const patch of patches) {
    if (patch.applyTo !== applyTo) continue;
    const at = items.findIndex((item) => fits(patch, item));
    const insert = (index: number) => {
      items.splice(index, 0, copy(schema, patch));
      onApplied(patch);
    };
    switch (patch.operation) {
      case 'ADD':
        // The last HTTP filter is the router, behind which nothing comes.
        insert(applyTo === 'HTTP_FILTER' ? Math.max(0, items.length - 1) : items.length);
        break;
      case 'INSERT_FIRST':
        insert(0);
        break;
      case 'INSERT_BEFORE':
        if (at >= 0) insert(at);
        break;
      case 'INSERT_AFTER':
        if (at >= 0) insert(at + 1);
        break;
      default:
        items = changeFitting(schema, items, patch, onApplied, fits);
    }
  }
  return items;
}

function changeFitting<Desc extends DescMessage>(
  schema: Desc,
  items: readonly MessageShape<Desc>[],
  patch: Patch,
  onApplied: OnApplied,
  fits: (patch: Patch, item: MessageShape<Desc>) => boolean,
): MessageShape<Desc>[] {
  return items.flatMap((item) => {
    if (!fits(patch, item)) return [item];
    onApplied(patch);
    if (patch.operation === 'REMOVE') return [];
    if (patch.operation === 'REPLACE') return [copy(schema, patch)];
    const merged = clone(schema, item);
    mergeMessages(schema, merged, patch.value!, registry);
    return [merged];
  });
}

/** A value is put into many messages, each of which may be patched further. */
function copy<Desc extends DescMessage>(schema: Desc, { value }: Patch): MessageShape<Desc> {
  return clone(schema, value as Message as MessageShape<Desc>);
}
