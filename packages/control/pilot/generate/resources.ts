import { create, type DescMessage, type MessageShape, toBinary } from '@bufbuild/protobuf';
import { type Any, AnySchema } from '@bufbuild/protobuf/wkt';
import { type DiscoveryType, typeUrls } from '@mizzen/envoy-api';
import { ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { ClusterLoadAssignmentSchema } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { NameTableSchema } from '@mizzen/envoy-api/gen/istio/networking/nds/v1/nds_pb.js';
import { BrokerPolicySchema, MessagingSchema } from '@mizzen/envoy-api/gen/mizzen/message/v1/messaging_pb.js';
import type { TrustBundle } from '../../citadel/trust-bundles.ts';
import { type OnApplied, patchClusters, patchListeners, patchRoutes } from '../envoy-filters/apply-patches.ts';
import type { Patch } from '../envoy-filters/patches.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { brokerPolicyFor } from './broker-policy.ts';
import { clustersFor } from './clusters.ts';
import { endpointsOf } from './endpoints.ts';
import { gatewayListeners, gatewayRouteConfigurations } from './gateways.ts';
import { messagingFor } from './messaging.ts';
import { nameTable } from './name-table.ts';
import { secretsFor } from './secrets.ts';
import { sidecarListeners } from './sidecar-listeners.ts';
import { sidecarRoutes } from './sidecar-routes.ts';
import { withIngress } from './sidecar-scope.ts';
import { udpClusters, udpEndpoints, udpListeners } from './udp-gateways.ts';

/**
 * All resources of one type for one proxy, packed. `names` are the resources that the proxy asked for; for listeners and clusters it
 * asks for all. `patches` are those of EnvoyFilters.
 */
export function resourcesFor(
  type: DiscoveryType,
  names: ReadonlySet<string>,
  proxy: ProxyView,
  snapshot: MeshSnapshot,
  trustBundle: TrustBundle,
  patches: readonly Patch[],
  onPatched: OnApplied,
): Any[] {
  const view = withIngress(proxy, snapshot);
  switch (type) {
    case 'cluster':
      return pack(type, ClusterSchema, patchClusters([...clustersFor(view, snapshot), ...udpClusters(view, snapshot)], patches, view, onPatched));
    case 'endpoint':
      return pack(
        type,
        ClusterLoadAssignmentSchema,
        [...names].map((name) => udpEndpoints(name, view, snapshot) ?? endpointsOf(name, view, snapshot)),
      );
    case 'listener': {
      const listeners = view.type === 'gateway' ? [...gatewayListeners(view, snapshot), ...udpListeners(view, snapshot)] : sidecarListeners(view, snapshot);
      return pack(type, ListenerSchema, patchListeners(listeners, patches, view, onPatched));
    }
    case 'route': {
      const tables = view.type === 'gateway' ? gatewayRouteConfigurations(view, snapshot) : sidecarRoutes(view, snapshot);
      return pack(
        type,
        RouteConfigurationSchema,
        patchRoutes(
          tables.filter((table) => names.has(table.name)),
          patches,
          view,
          onPatched,
        ),
      );
    }
    case 'name-table':
      return pack(type, NameTableSchema, [nameTable(view, snapshot)]);
    case 'messaging':
      return pack(type, MessagingSchema, [create(MessagingSchema, { config: JSON.stringify(messagingFor(view, snapshot)) })]);
    case 'broker-policy': {
      const policy = brokerPolicyFor(view, snapshot);
      return policy === undefined ? [] : pack(type, BrokerPolicySchema, [create(BrokerPolicySchema, { policy: JSON.stringify(policy) })]);
    }
    case 'secret':
      return pack(type, SecretSchema, secretsFor(names, view, snapshot, trustBundle));
  }
}

function pack<Desc extends DescMessage>(type: DiscoveryType, schema: Desc, messages: readonly MessageShape<Desc>[]): Any[] {
  return messages.map((message) => create(AnySchema, { typeUrl: typeUrls[type], value: toBinary(schema, message) }));
}
