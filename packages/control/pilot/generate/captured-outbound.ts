import { create } from '@bufbuild/protobuf';
import { durationFromMs, type Init } from '@mizzen/envoy-api';
import type { FilterChainSchema, FilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { apiFilters, apisOf } from '../apis/listener-filters.ts';
import type { Capture, ProxyView } from '../proxy-view.ts';
import { isHttp, type Service, type ServicePort } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { tracingFor } from '../telemetry-config.ts';
import { bytesTo, serverNamesTo } from './byte-routes.ts';
import { connectionManager, httpInspector, originalDestination, plainHttp, socketAddress, tcpProxy, tlsInspector } from './connection-manager.ts';
import { blackHoleCluster, outboundClusterName, passthroughCluster } from './names.ts';
import { serviceAddresses } from './service-addresses.ts';
import { egressProxyOf, outboundTrafficMode, visibleServices } from './sidecar-scope.ts';
import { ads } from './tls-contexts.ts';
import { resolveDestination } from './virtual-service-routes.ts';

/**
 * The listener to which the kernel redirects everything that the application sends (Istio's `virtualOutbound`), and those without a socket
 * to which it hands connections on: one for each port on which somebody speaks HTTP, told apart by Host; one for each address and port of
 * services that do not. What nobody is for goes on to where it was going, or nowhere (outboundTrafficPolicy).
 */
export function capturedOutboundListeners(view: ProxyView, capture: Capture, snapshot: MeshSnapshot): Listener[] {
  const versions = capture.hasIPv6 ? ([4, 6] as const) : ([4] as const);
  const others = clusterForOthers(view, snapshot);
  const plan = planListeners(view, snapshot);
  return [
    ...versions.map((version) => virtualOutbound(capture.outboundPort, version, others)),
    ...versions.flatMap((version) => [...plan.byPort].map(([port, wanted]) => portListener(port, wanted, version, others, view, snapshot))),
    ...[...plan.byAddress.values()].map((wanted) => addressListener(wanted, view, snapshot)),
  ];
}

function clusterForOthers(view: ProxyView, snapshot: MeshSnapshot): string {
  if (outboundTrafficMode(view, snapshot) === 'REGISTRY_ONLY') return blackHoleCluster;
  const proxy = egressProxyOf(view, snapshot);
  if (proxy === undefined) return passthroughCluster;
  const { hostname, number } = resolveDestination(proxy.destination, proxy.namespace, undefined, snapshot);
  return outboundClusterName(number, proxy.destination.subset ?? '', hostname);
}

function virtualOutbound(port: number, version: 4 | 6, others: string): Listener {
  return create(ListenerSchema, {
    name: version === 4 ? 'virtualOutbound' : 'virtualOutbound_ipv6',
    // The kernel redirects what leaves this machine to loopback: nobody else can come in here.
    address: socketAddress(version === 4 ? '127.0.0.1' : '::1', port),
    trafficDirection: 2,
    useOriginalDst: true,
    listenerFilters: [originalDestination],
    filterChains: [{ name: 'virtualOutbound-blackhole', filterChainMatch: { destinationPort: port }, filters: [tcpProxy(blackHoleCluster, blackHoleCluster)] }],
    defaultFilterChain: { name: 'virtualOutbound-others', filters: [tcpProxy(others, others)] },
  });
}

type Filter = Init<typeof FilterSchema>;

/** What services want of a port on all addresses. */
interface PortPlan {
  /** Somebody has declared HTTP on it. */
  isHttp: boolean;
  /** Somebody has declared nothing, and has no address by which it could be told apart. */
  isUndeclared: boolean;
  /** TLS of applications, by the server name that they ask for. */
  readonly byServerName: Map<string, Filter>;
  /** Address ranges of services (`10.1.0.0/16`). */
  readonly byRange: Map<string, Filter>;
  /** What is neither, for a service that is wherever its client thinks it is. */
  bytes: Filter | undefined;
}

interface AddressPlan {
  readonly address: string;
  readonly service: Service;
  readonly port: ServicePort;
}

function planListeners(view: ProxyView, snapshot: MeshSnapshot): { byPort: Map<number, PortPlan>; byAddress: Map<string, AddressPlan> } {
  const byPort = new Map<number, PortPlan>();
  const byAddress = new Map<string, AddressPlan>();
  const planOf = (port: number): PortPlan => {
    const known = byPort.get(port);
    if (known) return known;
    const made: PortPlan = { isHttp: false, isUndeclared: false, byServerName: new Map(), byRange: new Map(), bytes: undefined };
    byPort.set(port, made);
    return made;
  };
  for (const service of visibleServices(view, snapshot)) {
    const addresses = service.isHeadless
      ? service.instances.map((instance) => instance.address)
      : serviceAddresses(service, view, snapshot).filter((address) => !address.includes('/'));
    for (const port of service.ports) {
      if (port.protocol === 'UDP') continue;
      if (isHttp(port.protocol)) {
        planOf(port.number).isHttp = true;
        continue;
      }
      if (port.protocol === 'HTTPS' || port.protocol === 'TLS') {
        const names = planOf(port.number).byServerName;
        for (const { serverNames, filter } of serverNamesTo(service, port, view, snapshot))
          for (const name of serverNames) if (!names.has(name)) names.set(name, filter);
      } else if (addresses.length === 0) {
        if (port.protocol === 'AUTO') planOf(port.number).isUndeclared = true;
        else if (service.resolution === 'none') planOf(port.number).bytes ??= bytesTo(service, port, undefined, view, snapshot).filter;
      }
      for (const range of service.addresses) {
        const { byRange } = planOf(port.number);
        if (range.includes('/') && !byRange.has(range)) byRange.set(range, bytesTo(service, port, range.split('/')[0], view, snapshot).filter);
      }
      for (const address of addresses) {
        const key = `${address}_${port.number}`;
        // Where two services claim one address and port, the one that was there first has it.
        if (!byAddress.has(key)) byAddress.set(key, { address, service, port });
      }
    }
  }
  return { byPort, byAddress };
}

function portListener(port: number, plan: PortPlan, version: 4 | 6, others: string, view: ProxyView, snapshot: MeshSnapshot): Listener {
  const address = version === 4 ? '0.0.0.0' : '::';
  const name = `${address}_${port}`;
  const speaksHttp = plan.isHttp || plan.isUndeclared;
  // Where HTTP alone is spoken nothing has to be found out.
  const isHttpOnly = plan.isHttp && !plan.isUndeclared && plan.byServerName.size === 0 && plan.byRange.size === 0 && plan.bytes === undefined;
  const http = httpChain(name, String(port), isHttpOnly, view, snapshot);
  const rest = plan.bytes ?? tcpProxy(others, others);
  return create(ListenerSchema, {
    name,
    address: socketAddress(address, port),
    bindToPort: false,
    trafficDirection: 2,
    ...(isHttpOnly ? {} : detection(snapshot, plan.byServerName.size > 0, speaksHttp)),
    filterChains: [
      ...(speaksHttp ? [http] : []),
      ...[...plan.byServerName].map(([serverName, filter]) => ({
        name: `${name}-${serverName}`,
        filterChainMatch: { transportProtocol: 'tls', serverNames: [serverName] },
        filters: [filter],
      })),
      ...[...plan.byRange].map(([range, filter]) => {
        const [addressPrefix = '', length] = range.split('/');
        return {
          name: `${name}-${range}`,
          filterChainMatch: { prefixRanges: [{ addressPrefix, prefixLen: Number(length) }] },
          filters: [filter],
        };
      }),
    ],
    ...(isHttpOnly ? {} : { defaultFilterChain: { name: `${name}-others`, filters: [rest] } }),
  });
}

function addressListener({ address, service, port }: AddressPlan, view: ProxyView, snapshot: MeshSnapshot): Listener {
  const name = `${address}_${port.number}`;
  const { filter } = bytesTo(service, port, address, view, snapshot);
  const isUndeclared = port.protocol === 'AUTO';
  return create(ListenerSchema, {
    name,
    address: socketAddress(address, port.number),
    bindToPort: false,
    trafficDirection: 2,
    ...(isUndeclared ? detection(snapshot, true, true) : {}),
    filterChains: isUndeclared ? [httpChain(name, `${service.hostname}:${port.number}`, false, view, snapshot)] : [],
    defaultFilterChain: { name: `${name}-tcp`, filters: [filter] },
  });
}

function httpChain(name: string, routeConfigName: string, isOnly: boolean, view: ProxyView, snapshot: MeshSnapshot): Init<typeof FilterChainSchema> {
  return {
    name: `${name}-http`,
    ...(isOnly ? {} : { filterChainMatch: { transportProtocol: 'raw_buffer', applicationProtocols: plainHttp } }),
    filters: [
      connectionManager({
        statPrefix: `outbound_${name}`,
        routes: { case: 'rds', value: { configSource: ads, routeConfigName } },
        direction: 'outbound',
        isTls: false,
        filters: apiFilters(apisOf(view, snapshot).client),
        tracing: tracingFor(view, snapshot),
      }),
    ],
  };
}

/** What is spoken is found out by the first bytes; a server that speaks first waits for nobody's. */
function detection(snapshot: MeshSnapshot, tls: boolean, http: boolean) {
  return {
    listenerFilters: [...(tls || http ? [tlsInspector()] : []), ...(http ? [httpInspector()] : [])],
    listenerFiltersTimeout: durationFromMs(snapshot.meshConfig.protocolDetectionTimeoutMs),
    continueOnListenerFiltersTimeout: true,
  };
}
