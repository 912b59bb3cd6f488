import type { GatewaySpec } from '@mizzen/api';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';

/** The Gateways that a proxy serves: those that select its labels. */
export function servedGateways(view: ProxyView, snapshot: MeshSnapshot): Configured<GatewaySpec>[] {
  return snapshot.gateways.filter(({ spec, namespace }) => selects(spec.selector, view.labels) && (!spec.isForOwnNamespace || namespace === view.namespace));
}
