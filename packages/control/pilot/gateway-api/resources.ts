import type { StoredResource } from '../../galley/config-store.ts';
import type { ConfigReader } from '../quarantine.ts';
import type { Configured } from '../snapshot.ts';
import {
  type BackendTlsPolicySpec,
  type GatewayClassSpec,
  group,
  type K8sGatewaySpec,
  type ListenerSetSpec,
  type ReferenceGrantSpec,
  type RouteSpec,
} from './types.ts';

/** The Gateway API's objects as they are stored. */
export interface GatewayApiResources {
  readonly classes: readonly Configured<GatewayClassSpec>[];
  readonly gateways: readonly Configured<K8sGatewaySpec>[];
  readonly listenerSets: readonly Configured<ListenerSetSpec>[];
  /** Of all kinds, the oldest first. */
  readonly routes: readonly Configured<RouteSpec>[];
  readonly grants: readonly Configured<ReferenceGrantSpec>[];
  readonly backendTlsPolicies: readonly Configured<BackendTlsPolicySpec>[];
  /** Labels of namespaces, by name. */
  readonly namespaces: ReadonlyMap<string, Readonly<Record<string, string>>>;
}

export const routeKinds = ['HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute', 'UDPRoute'] as const;

export async function readGatewayApi(
  store: ConfigReader,
  configured: <Spec>(stored: StoredResource) => Configured<Spec>,
  byAge: (a: Configured<unknown>, b: Configured<unknown>) => number,
): Promise<GatewayApiResources> {
  const list = async <Spec>(kind: string) => (await store.list(group, kind)).items.map(configured<Spec>).sort(byAge);
  const routes = (await Promise.all(routeKinds.map((kind) => list<RouteSpec>(kind)))).flat().sort(byAge);
  return {
    classes: await list<GatewayClassSpec>('GatewayClass'),
    gateways: await list<K8sGatewaySpec>('Gateway'),
    listenerSets: await list<ListenerSetSpec>('ListenerSet'),
    routes,
    grants: await list<ReferenceGrantSpec>('ReferenceGrant'),
    backendTlsPolicies: await list<BackendTlsPolicySpec>('BackendTLSPolicy'),
    namespaces: new Map(
      (await store.list('', 'Namespace')).items.map(({ key, resource }) => [
        key.name,
        { 'kubernetes.io/metadata.name': key.name, ...resource.metadata.labels },
      ]),
    ),
  };
}
