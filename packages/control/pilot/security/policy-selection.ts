import type { TargetReference } from '@mizzen/api';
import { gatewayNameLabel } from '../gateway-api/listeners.ts';
import { group as gatewayApiGroup } from '../gateway-api/types.ts';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import { type Configured, rootNamespace } from '../snapshot.ts';

interface Selecting {
  readonly selector?: { readonly matchLabels?: Readonly<Record<string, string>> };
  readonly targetRef?: TargetReference;
  readonly targetRefs?: readonly TargetReference[];
}

export function targetsOf({ targetRef, targetRefs }: Selecting): readonly TargetReference[] {
  return [...(targetRef ? [targetRef] : []), ...(targetRefs ?? [])];
}

/**
 * Whether a policy is for a workload (istio/api type/v1beta1/selector.proto): of its own namespace or of the mesh's root namespace, by its labels; or for a
 * gateway of the Gateway API that it targets, of which selectors say nothing.
 */
export function isForWorkload({ namespace, spec }: Configured<Selecting>, view: Pick<ProxyView, 'namespace' | 'labels' | 'type'>): boolean {
  if (namespace !== view.namespace && namespace !== rootNamespace) return false;
  const targets = targetsOf(spec);
  const gatewayName = view.labels[gatewayNameLabel];
  if (targets.length > 0)
    return targets.some(
      ({ group = '', kind, name }) =>
        view.type === 'gateway' &&
        namespace === view.namespace &&
        group === gatewayApiGroup &&
        kind === 'Gateway' &&
        name === gatewayName &&
        name !== undefined,
    );
  return selects(spec.selector?.matchLabels ?? {}, view.labels);
}
