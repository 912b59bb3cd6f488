import { create } from '@bufbuild/protobuf';
import type { Init } from '@mizzen/envoy-api';
import { HealthStatus } from '@mizzen/envoy-api/gen/envoy/config/core/v3/health_check_pb.js';
import type { LbEndpointSchema } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_components_pb.js';
import { type ClusterLoadAssignment, ClusterLoadAssignmentSchema } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_pb.js';
import { spiffeUri } from '../../citadel/spiffe-identity.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { Instance, Service, ServicePort } from '../registry/service.ts';
import { selects } from '../registry/service.ts';
import { isVisible, type MeshSnapshot } from '../snapshot.ts';
import { destinationRuleFor, effectivePolicy } from './destination-policy.ts';
import { type LocalityGroup, localityGroups, placementFor } from './localities.ts';
import { peerAuthenticationMode } from './peer-authentication.ts';

/** EDS: the endpoints of one cluster, each with the metadata that its transport and its metrics need. */
export function endpointsOf(clusterName: string, view: ProxyView, snapshot: MeshSnapshot): ClusterLoadAssignment {
  const [direction, portText, subsetName, hostname] = clusterName.split('|');
  const service = hostname === undefined ? undefined : snapshot.servicesByHostname.get(hostname);
  const port = service?.ports.find((candidate) => candidate.number === Number(portText));
  // Only the one spelling that clusters have: `outbound|080||h` and `outbound|80||h|x` would each cost another copy of the endpoints.
  const isCanonical = port !== undefined && clusterName === `outbound|${port.number}|${subsetName}|${hostname}`;
  if (direction !== 'outbound' || !service || !port || !isCanonical || !isVisible(service.exportTo, service.namespace, view.namespace))
    return create(ClusterLoadAssignmentSchema, { clusterName });
  const rule = destinationRuleFor(service, view, snapshot)?.spec;
  const subset = subsetName ? rule?.subsets?.find((candidate) => candidate.name === subsetName) : undefined;
  const instances = subsetName && !subset ? [] : service.instances.filter((instance) => selects(subset?.labels, instance.labels));
  const placement = placementFor(effectivePolicy(rule, subset, port.number), service, view, snapshot);
  const endpoints = localityEndpoints(localityGroups(instances, placement, view, snapshot), port, service, snapshot);
  return create(ClusterLoadAssignmentSchema, { clusterName, endpoints });
}

/** `snapshot` is absent for endpoints outside of the mesh, whose identity nobody knows. */
export function localityEndpoints(groups: readonly LocalityGroup[], port: ServicePort, service: Service, snapshot?: MeshSnapshot) {
  return groups.map((group) => ({
    locality: locality(group.locality),
    loadBalancingWeight: group.weight,
    priority: group.priority,
    lbEndpoints: group.instances.flatMap((instance) => {
      // A workload without the port that the service names takes no part in it.
      const target = instance.ports.get(port.number);
      return target === undefined ? [] : [lbEndpoint(instance, target, port, service, snapshot)];
    }),
  }));
}

function locality(text: string) {
  const [region = '', zone = '', subZone = ''] = text.split('/');
  return { region, zone, subZone };
}

function lbEndpoint(
  instance: Instance,
  target: number,
  port: ServicePort,
  service: Service,
  snapshot: MeshSnapshot | undefined,
): Init<typeof LbEndpointSchema> {
  const targetPort = typeof port.targetPort === 'number' ? port.targetPort : port.number;
  const takesMutualTls =
    instance.hasSidecar && (snapshot === undefined || peerAuthenticationMode(instance.namespace, instance.labels, targetPort, snapshot) !== 'DISABLE');
  const app = instance.labels['app'] ?? instance.labels['service.istio.io/canonical-name'] ?? instance.workload;
  const version = instance.labels['version'] ?? instance.labels['service.istio.io/canonical-revision'] ?? 'latest';
  return {
    hostIdentifier: {
      case: 'endpoint',
      value: {
        address: {
          address: {
            case: 'socketAddress',
            value: { address: instance.address, portSpecifier: { case: 'portValue', value: target } },
          },
        },
      },
    },
    healthStatus: instance.isHealthy ? HealthStatus.HEALTHY : HealthStatus.UNHEALTHY,
    loadBalancingWeight: instance.weight,
    metadata: {
      filterMetadata: {
        ...(takesMutualTls ? { 'envoy.transport_socket_match': { tlsMode: 'istio' } } : {}),
        // workload;namespace;canonical name;canonical revision;cluster: what Istio's stats read, and ours.
        istio: { workload: `${instance.workload};${instance.namespace};${app};${version};Kubernetes` },
        'mizzen.endpoint': {
          app: instance.labels['app'] ?? '',
          version: instance.labels['version'] ?? '',
          service: service.hostname,
          ...(takesMutualTls && snapshot
            ? { principal: spiffeUri({ trustDomain: snapshot.trustDomain, namespace: instance.namespace, serviceAccount: instance.serviceAccount }) }
            : {}),
        },
      },
    },
  };
}
