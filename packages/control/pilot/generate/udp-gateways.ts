import { create } from '@bufbuild/protobuf';
import type { GatewaySpec, RouteDestinationSpec } from '@mizzen/api';
import { durationFromMs, packAny } from '@mizzen/envoy-api';
import { type Cluster, Cluster_DiscoveryType, ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { SocketAddress_Protocol } from '@mizzen/envoy-api/gen/envoy/config/core/v3/address_pb.js';
import { type ClusterLoadAssignment, ClusterLoadAssignmentSchema } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_pb.js';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { UdpProxyConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/udp/udp_proxy/v3/udp_proxy_pb.js';
import type { ProxyView } from '../proxy-view.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { socketAddress } from './connection-manager.ts';
import { localityEndpoints } from './endpoints.ts';
import { provenance } from './names.ts';
import { servedGateways } from './served-gateways.ts';
import { ads } from './tls-contexts.ts';
import { resolveDestination, virtualServicesOfGateway } from './virtual-service-routes.ts';

/**
 * Datagrams at a gateway (Gateway API `UDPRoute`). A session goes to one of the back ends by their weights: each is a locality of one cluster, since
 * a UDP proxy has no cluster but one (envoy udp_proxy.proto).
 */
interface UdpServer {
  readonly gateway: Configured<GatewaySpec>;
  readonly index: number;
  readonly bind: string;
  readonly port: number;
  readonly cluster: string;
  readonly namespace: string;
  readonly destinations: readonly RouteDestinationSpec[];
}

const clusterPrefix = 'udp|';
/** Envoy's default. */
const sessionIdleMs = 60_000;

function udpServersOf(view: ProxyView, snapshot: MeshSnapshot): UdpServer[] {
  if (view.type !== 'gateway') return [];
  const taken = new Set<string>();
  return servedGateways(view, snapshot).flatMap((gateway) =>
    (gateway.spec.servers ?? []).flatMap((server, index): UdpServer[] => {
      const { port } = server;
      const bind = server.bind || view.gatewayBind;
      if (port?.protocol.toUpperCase() !== 'UDP' || taken.has(`${bind}:${port.number}`)) return [];
      const name = `${gateway.namespace}/${gateway.name}`;
      const bound = virtualServicesOfGateway(name, snapshot).find(({ spec }) => spec.udp);
      if (!bound) return [];
      taken.add(`${bind}:${port.number}`);
      return [
        {
          gateway,
          index,
          bind,
          port: port.number,
          cluster: `${clusterPrefix}${port.number}|${name}`,
          namespace: bound.namespace,
          destinations: bound.spec.udp!,
        },
      ];
    }),
  );
}

export function udpListeners(view: ProxyView, snapshot: MeshSnapshot): Listener[] {
  return udpServersOf(view, snapshot).map(({ gateway, index, bind, port, cluster }) =>
    create(ListenerSchema, {
      name: `udp_${bind}_${port}`,
      address: {
        address: { case: 'socketAddress', value: { ...socketAddress(bind, port).address.value, protocol: SocketAddress_Protocol.UDP } },
      },
      enableReusePort: true,
      udpListenerConfig: { downstreamSocketConfig: {} },
      listenerFilters: [
        {
          name: 'envoy.filters.udp_listener.udp_proxy',
          configType: {
            case: 'typedConfig',
            value: packAny(UdpProxyConfigSchema, {
              statPrefix: cluster,
              routeSpecifier: { case: 'cluster', value: cluster },
              idleTimeout: durationFromMs(sessionIdleMs),
            }),
          },
        },
      ],
      trafficDirection: 2,
      metadata: provenance(gateway, `spec.servers[${index}]`),
    }),
  );
}

export function udpClusters(view: ProxyView, snapshot: MeshSnapshot): Cluster[] {
  return udpServersOf(view, snapshot).map(({ cluster }) =>
    create(ClusterSchema, {
      name: cluster,
      clusterDiscoveryType: { case: 'type', value: Cluster_DiscoveryType.EDS },
      edsClusterConfig: { edsConfig: ads, serviceName: cluster },
      commonLbConfig: { healthyPanicThreshold: { value: 0 }, localityConfigSpecifier: { case: 'localityWeightedLbConfig', value: {} } },
    }),
  );
}

/** The endpoints of a cluster of these; undefined: it is none. */
export function udpEndpoints(name: string, view: ProxyView, snapshot: MeshSnapshot): ClusterLoadAssignment | undefined {
  if (!name.startsWith(clusterPrefix)) return undefined;
  const server = udpServersOf(view, snapshot).find(({ cluster }) => cluster === name);
  const endpoints = (server?.destinations ?? []).flatMap(({ destination, weight = 1 }) => {
    const { service, number } = resolveDestination(destination, server!.namespace, server!.port, snapshot);
    const port = service?.ports.find((one) => one.number === number);
    if (!service || !port || weight === 0) return [];
    // Where the locality of a back end's instances would stand is which back end they are.
    return localityEndpoints([{ locality: service.hostname, priority: 0, weight, instances: service.instances }], port, service);
  });
  return create(ClusterLoadAssignmentSchema, { clusterName: name, endpoints });
}
