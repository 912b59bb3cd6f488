import type { GatewaySpec } from '@mizzen/api';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';

/** The Gateways that a proxy serves: those that select its labels. */
export function servedGateways(view: ProxyView, snapshot: MeshSnapshot): Configured<GatewaySpec>[] {
  return snapshot.gateways.filter(({ spec, namespace }) => selects(spec.selector, view.labels) && (!spec.isForOwnNamespace || namespace === view.namespace));
}

/** The name of the secret with a server's certificate (SDS). */
export function credentialOf(
  { namespace }: Configured<GatewaySpec>,
  tls: { readonly credentialName?: string; readonly credentialNamespace?: string } | undefined,
): string {
  return `kubernetes://${tls?.credentialNamespace ?? namespace}/${tls?.credentialName}`;
}
