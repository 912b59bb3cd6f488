import type { GatewaySpec } from '@mizzen/api';
import { isGranted } from '../gateway-api/references.ts';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import { type Configured, type MeshSnapshot, rootNamespace } from '../snapshot.ts';

/**
 * The Gateways that a proxy serves: those that select its proven labels, in its own namespace. A gateway workload serves another namespace's Gateway when it
 * runs in the root namespace, which only admins write, or when a ReferenceGrant there allows it.
 */
export function servedGateways(view: Pick<ProxyView, 'type' | 'namespace' | 'labels' | 'isProven'>, snapshot: MeshSnapshot): Configured<GatewaySpec>[] {
  if (view.type !== 'gateway' || !view.isProven) return [];
  return snapshot.gateways.filter(
    ({ spec, namespace, name }) =>
      selects(spec.selector, view.labels) &&
      (namespace === view.namespace ||
        (!spec.isForOwnNamespace && mayRead(view, { group: 'networking.istio.io', kind: 'Gateway', namespace, name }, snapshot))),
  );
}

/** Whether a gateway workload may be given what an object of another namespace holds. */
export function mayRead(
  view: Pick<ProxyView, 'namespace'>,
  object: { readonly group: string; readonly kind: string; readonly namespace: string; readonly name: string },
  snapshot: MeshSnapshot,
): boolean {
  return view.namespace === rootNamespace || isGranted({ group: 'mizzen.dev', kind: 'Workload', namespace: view.namespace }, object, snapshot.gatewayApi);
}
