import { createRegistry, fromJson, type JsonValue } from '@bufbuild/protobuf';
import { type Any, StructSchema } from '@bufbuild/protobuf/wkt';
import { MizzenError, messageOf } from '@mizzen/common';
import { packAny, type ResourceType } from '@mizzen/envoy-api';
import { type Bootstrap, BootstrapSchema } from '@mizzen/envoy-api/gen/envoy/config/bootstrap/v3/bootstrap_pb.js';
import { ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { DownstreamConnectionsConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections_pb.js';
import { FixedHeapConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap_pb.js';
import { SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { knownMessages } from '@mizzen/envoy-api/known-messages';
import { compileOverload, type OverloadSettings } from './overload/overload-manager.ts';
import { refuseUnsupported } from './xds/supported-fields.ts';

/** What a proxy without a control plane is told: Envoy's bootstrap with static resources (bootstrap.proto). */
export interface StaticConfig {
  readonly name: string;
  readonly resources: readonly (readonly [ResourceType, readonly Any[]])[];
  readonly adminPort: number | undefined;
  readonly overload: OverloadSettings;
}

/** Whether a configuration file is an Envoy bootstrap rather than one of ours. */
export function isBootstrap(value: unknown): boolean {
  return typeof value === 'object' && value !== null && ['static_resources', 'staticResources'].some((name) => name in value);
}

/** Reads a bootstrap from its JSON form. What cannot be honoured is refused, with the place in the document where the reader tells it. */
export function compileBootstrap(value: unknown, place: string): StaticConfig {
  const registry = createRegistry(...knownMessages, StructSchema, FixedHeapConfigSchema, DownstreamConnectionsConfigSchema);
  let bootstrap: Bootstrap;
  try {
    bootstrap = fromJson(BootstrapSchema, value as JsonValue, { registry });
  } catch (error) {
    throw new MizzenError('invalid-bootstrap', `it is no Envoy bootstrap that can be read: ${messageOf(error).replace(/^cannot decode message /, '')}`, place);
  }
  if (bootstrap.dynamicResources)
    throw new MizzenError(
      'unsupported-bootstrap',
      'dynamic_resources are not supported in a bootstrap; a proxy of a mesh is told its control plane by our own form of the file',
      place,
    );
  refuseUnsupported(BootstrapSchema, bootstrap, new Set(['node', 'staticResources', 'admin', 'overloadManager']), place);
  const { clusters = [], listeners = [], secrets = [] } = bootstrap.staticResources ?? {};
  const admin = bootstrap.admin?.address?.address;
  if (admin?.case === 'socketAddress' && !['127.0.0.1', 'localhost', '::1'].includes(admin.value.address))
    throw new MizzenError(
      'invalid-bootstrap',
      `the admin address must be 127.0.0.1, not ${admin.value.address}: the admin server is for this machine only`,
      place,
    );
  return {
    name: bootstrap.node?.id || 'proxy',
    resources: [
      ['secret', secrets.map((secret) => packAny(SecretSchema, secret))],
      ['cluster', clusters.map((cluster) => packAny(ClusterSchema, cluster))],
      ['listener', listeners.map((listener) => packAny(ListenerSchema, listener))],
    ],
    adminPort: admin?.case === 'socketAddress' && admin.value.portSpecifier.case === 'portValue' ? admin.value.portSpecifier.value : undefined,
    overload: compileOverload(bootstrap.overloadManager),
  };
}
