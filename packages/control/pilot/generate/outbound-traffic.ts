import type { OutboundTrafficMode } from '../mesh-config.ts';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import { type MeshSnapshot, rootNamespace } from '../snapshot.ts';

/**
 * What becomes of a workload's calls to hosts that the mesh does not know: its Sidecar's word, its namespace's, the root namespace's, the
 * mesh's (istio/api sidecar.proto `outbound_traffic_policy`).
 */
export function outboundTrafficMode(view: ProxyView, snapshot: MeshSnapshot): OutboundTrafficMode {
  const labelsOf = (sidecar: (typeof snapshot.sidecars)[number]) => sidecar.spec.workloadSelector?.labels ?? {};
  const isForAll = (sidecar: (typeof snapshot.sidecars)[number]) => Object.keys(labelsOf(sidecar)).length === 0;
  const own = snapshot.sidecars.filter((sidecar) => sidecar.namespace === view.namespace);
  const chosen =
    own.find((sidecar) => !isForAll(sidecar) && selects(labelsOf(sidecar), view.labels)) ??
    own.find(isForAll) ??
    snapshot.sidecars.find((sidecar) => sidecar.namespace === rootNamespace && isForAll(sidecar));
  const policy = chosen?.spec.outboundTrafficPolicy;
  // The message is there without a mode: protobuf's first value, which is REGISTRY_ONLY.
  return policy === undefined ? snapshot.meshConfig.outboundTrafficPolicy : (policy.mode ?? 'REGISTRY_ONLY');
}
