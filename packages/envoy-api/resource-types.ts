/** The resource types of xDS that a data plane works with, in the order in which they must be pushed (make before break). */
export const resourceTypes = ['cluster', 'endpoint', 'listener', 'route', 'secret'] as const;
export type ResourceType = (typeof resourceTypes)[number];

/** All types that are discovered: those, the table of names for the DNS proxy (Istio's NDS), the message mesh of a sidecar, and what the broker enforces. */
export const discoveryTypes = [...resourceTypes, 'name-table', 'messaging', 'broker-policy'] as const;
export type DiscoveryType = (typeof discoveryTypes)[number];

export const typeUrls: Readonly<Record<DiscoveryType, string>> = {
  cluster: 'type.googleapis.com/envoy.config.cluster.v3.Cluster',
  endpoint: 'type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment',
  listener: 'type.googleapis.com/envoy.config.listener.v3.Listener',
  route: 'type.googleapis.com/envoy.config.route.v3.RouteConfiguration',
  secret: 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret',
  'name-table': 'type.googleapis.com/istio.networking.nds.v1.NameTable',
  messaging: 'type.googleapis.com/mizzen.message.v1.Messaging',
  'broker-policy': 'type.googleapis.com/mizzen.message.v1.BrokerPolicy',
};
