import type { MutualTlsMode } from '@mizzen/api';
import { selects } from '../registry/service.ts';
import { type MeshSnapshot, rootNamespace } from '../snapshot.ts';

/**
 * The mutual TLS mode of one port of a workload: port setting, then the workload's policy, its namespace's, the mesh's; UNSET inherits.
 * The default is PERMISSIVE (istio/api peer_authentication.proto).
 */
export function peerAuthenticationMode(
  namespace: string,
  labels: Readonly<Record<string, string>>,
  port: number,
  snapshot: MeshSnapshot,
): Exclude<MutualTlsMode, 'UNSET'> {
  const hasSelector = (selector: { readonly matchLabels?: Readonly<Record<string, string>> } | undefined) =>
    Object.keys(selector?.matchLabels ?? {}).length > 0;
  const inNamespace = snapshot.peerAuthentications.filter((policy) => policy.namespace === namespace);
  const forWorkload = inNamespace.find((policy) => hasSelector(policy.spec.selector) && selects(policy.spec.selector!.matchLabels, labels));
  const forNamespace = inNamespace.find((policy) => !hasSelector(policy.spec.selector));
  const forMesh = snapshot.peerAuthentications.find((policy) => policy.namespace === rootNamespace && !hasSelector(policy.spec.selector));
  const layers = [forWorkload?.spec.portLevelMtls?.[String(port)]?.mode, forWorkload?.spec.mtls?.mode, forNamespace?.spec.mtls?.mode, forMesh?.spec.mtls?.mode];
  return layers.find((mode) => mode !== undefined && mode !== 'UNSET') ?? 'PERMISSIVE';
}

/** Ports for which the workload's policy has a mode of their own. */
export function portsWithOwnMode(namespace: string, labels: Readonly<Record<string, string>>, snapshot: MeshSnapshot): number[] {
  const policy = snapshot.peerAuthentications.find(
    ({ namespace: own, spec }) => own === namespace && Object.keys(spec.selector?.matchLabels ?? {}).length > 0 && selects(spec.selector!.matchLabels, labels),
  );
  return Object.keys(policy?.spec.portLevelMtls ?? {}).map(Number);
}
