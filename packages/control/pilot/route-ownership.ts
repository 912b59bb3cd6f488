import { MizzenError } from '@mizzen/common';
import type { StoredResource } from '../galley/config-store.ts';
import { rootNamespace } from './root-namespace.ts';

/**
 * Which VirtualServices change where other namespaces' calls go. `ANY`: all of them, as in Istio. `OWNERS`: those of the service's own namespace, of the
 * root namespace and of the namespaces listed; any other is in effect for callers of its own namespace only.
 */
export interface RouteOwnership {
  readonly mode: 'ANY' | 'OWNERS';
  readonly namespaces: readonly string[];
}

/** Where it is configured: the keys `crossNamespaceRoutes` and `routeNamespaces` of this ConfigMap. A new mesh starts with `OWNERS`. */
export const routeOwnershipConfig = { namespace: 'mizzen-system', name: 'mizzen', key: 'crossNamespaceRoutes', initial: 'OWNERS' } as const;

export const anyRoutes: RouteOwnership = { mode: 'ANY', namespaces: [] };

/** Throws MizzenError for a mode that is not known. No ConfigMap: a mesh from before, which keeps Istio's rule. */
export function readRouteOwnership(configMap: StoredResource | undefined): RouteOwnership {
  const data = (configMap?.resource['data'] ?? {}) as Readonly<Record<string, string>>;
  const mode = data[routeOwnershipConfig.key] ?? 'ANY';
  if (mode !== 'ANY' && mode !== 'OWNERS')
    throw new MizzenError(
      'invalid-mesh-config',
      `ConfigMap ${routeOwnershipConfig.namespace}/${routeOwnershipConfig.name}, data.${routeOwnershipConfig.key}: ${JSON.stringify(mode)} is not known: ANY or OWNERS`,
    );
  return { mode, namespaces: (data['routeNamespaces'] ?? '').split(',').flatMap((name) => name.trim() || []) };
}

/** Whether a VirtualService of a namespace decides about the calls of `caller` to a service of `owner`; undefined: no service has the host. */
export function mayRoute({ mode, namespaces }: RouteOwnership, namespace: string, owner: string | undefined, caller: string): boolean {
  if (mode === 'ANY' || owner === undefined) return true;
  return namespace === caller || namespace === owner || namespace === rootNamespace || namespaces.includes(namespace);
}
