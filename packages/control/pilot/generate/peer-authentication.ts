import type { MutualTlsMode, PeerAuthenticationSpec } from '@mizzen/api';
import { selects } from '../registry/service.ts';
import { type Configured, type MeshSnapshot, rootNamespace } from '../snapshot.ts';

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
  const forWorkload = workloadPolicy(namespace, labels, snapshot);
  const { wide } = indexOf(snapshot);
  const [forNamespace, forMesh] = [wide.get(namespace), wide.get(rootNamespace)];
  const layers = [forWorkload?.spec.portLevelMtls?.[String(port)]?.mode, forWorkload?.spec.mtls?.mode, forNamespace?.spec.mtls?.mode, forMesh?.spec.mtls?.mode];
  return layers.find((mode) => mode !== undefined && mode !== 'UNSET') ?? 'PERMISSIVE';
}

/** Ports for which the workload's policy has a mode of their own. */
export function portsWithOwnMode(namespace: string, labels: Readonly<Record<string, string>>, snapshot: MeshSnapshot): number[] {
  const policy = workloadPolicy(namespace, labels, snapshot);
  return Object.keys(policy?.spec.portLevelMtls ?? {}).map(Number);
}

type Policy = Configured<PeerAuthenticationSpec>;

interface PolicyIndex {
  /** The oldest policy without a selector, by namespace. */
  readonly wide: ReadonlyMap<string, Policy>;
  /** Policies with a selector, by namespace and one of its labels, with their place by age. */
  readonly selecting: ReadonlyMap<string, readonly { readonly policy: Policy; readonly age: number }[]>;
}

const indexes = new WeakMap<readonly Policy[], PolicyIndex>();
const labelKey = (namespace: string, [name, value]: readonly [string, string]) => `${namespace}\0${name}\0${value}`;

/** Made once for a snapshot: workloads and policies are as many as users like, so that comparing each with each would cost their product. */
function indexOf({ peerAuthentications }: MeshSnapshot): PolicyIndex {
  let index = indexes.get(peerAuthentications);
  if (index === undefined) {
    const wide = new Map<string, Policy>();
    const selecting = new Map<string, { policy: Policy; age: number }[]>();
    for (const [age, policy] of peerAuthentications.entries()) {
      const [label] = Object.entries(policy.spec.selector?.matchLabels ?? {});
      if (label === undefined) {
        if (!wide.has(policy.namespace)) wide.set(policy.namespace, policy);
        continue;
      }
      const key = labelKey(policy.namespace, label);
      const others = selecting.get(key);
      if (others === undefined) selecting.set(key, [{ policy, age }]);
      else others.push({ policy, age });
    }
    index = { wide, selecting };
    indexes.set(peerAuthentications, index);
  }
  return index;
}

/** The oldest policy that selects a workload. */
function workloadPolicy(namespace: string, labels: Readonly<Record<string, string>>, snapshot: MeshSnapshot): Policy | undefined {
  const { selecting } = indexOf(snapshot);
  if (selecting.size === 0) return undefined;
  let oldest: { readonly policy: Policy; readonly age: number } | undefined;
  for (const label of Object.entries(labels)) {
    const found = selecting.get(labelKey(namespace, label))?.find(({ policy }) => selects(policy.spec.selector!.matchLabels, labels));
    if (found !== undefined && (oldest === undefined || found.age < oldest.age)) oldest = found;
  }
  return oldest?.policy;
}
