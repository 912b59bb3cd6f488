import { create, type JsonObject } from '@bufbuild/protobuf';
import { version } from '@mizzen/common';
import { type Node, NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import type { ProxyConfig } from '../proxy-config.ts';
import { declaredFeatures } from './declared-features.ts';

/** How this proxy presents itself to the control plane; keys are Istio's where Istio has them. */
export function nodeOf(config: ProxyConfig, adminPort: number | undefined): Node {
  const kind = config.type === 'gateway' ? 'router' : 'sidecar';
  const [region = '', zone = '', subZone = ''] = (config.locality ?? '').split('/');
  return create(NodeSchema, {
    id: `${kind}~${config.address}~${config.name}.${config.namespace}~${config.namespace}.svc.cluster.local`,
    cluster: `${config.workload}.${config.namespace}`,
    locality: { region, zone, subZone },
    userAgentName: 'mizzen',
    clientFeatures: declaredFeatures(),
    userAgentVersionType: { case: 'userAgentVersion', value: version },
    metadata: {
      NAME: config.name,
      NAMESPACE: config.namespace,
      WORKLOAD_NAME: config.workload,
      SERVICE_ACCOUNT: config.serviceAccount,
      LABELS: { ...config.labels },
      CLUSTER_ID: 'Kubernetes',
      INTERCEPTION_MODE: config.capture ? 'REDIRECT' : 'NONE',
      ...(config.capture ? { MIZZEN_CAPTURE: { ...config.capture } } : {}),
      MIZZEN_ADDRESS: config.address,
      MIZZEN_REGISTER: config.registers === true,
      MIZZEN_INBOUND: (config.inbound ?? []).map(({ name, port, protocol, listen, app }) => ({
        port,
        listen,
        app,
        ...(name ? { name } : {}),
        ...(protocol ? { protocol } : {}),
      })),
      ...(config.outbound ? { MIZZEN_OUTBOUND: config.outbound } : {}),
      ...(config.workloadGroup ? { AUTO_REGISTER_GROUP: config.workloadGroup } : {}),
      MIZZEN_CONTROL: config.control,
      ...(config.messaging ? { MIZZEN_APP_ID: config.messaging.appId } : {}),
      ...(config.publicPorts ? { MIZZEN_PUBLIC_PORTS: config.publicPorts.map(({ port, listen }) => ({ port, listen })) } : {}),
      ...(config.filters ? { MIZZEN_FILTERS: config.filters.map((filter) => ({ ...filter }) as JsonObject) } : {}),
      ...(config.gatewayBind ? { MIZZEN_GATEWAY_BIND: config.gatewayBind } : {}),
      ...(adminPort === undefined ? {} : { MIZZEN_ADMIN: `127.0.0.1:${adminPort}` }),
    },
  });
}
