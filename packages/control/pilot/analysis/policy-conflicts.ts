import { describeOrigin } from '@mizzen/common';
import { type Configured, type MeshSnapshot, resolveHost } from '../snapshot.ts';
import type { Finding } from './finding.ts';

/**
 * Policies of which one alone counts: the oldest PeerAuthentication of a selector, and the oldest traffic policy of the DestinationRules for a host. The writer
 * of another would rely on a STRICT mode or on TLS settings that are not in effect.
 */
export function policyConflictFindings(snapshot: MeshSnapshot): Finding[] {
  const peers = snapshot.peerAuthentications.map((policy) => ({
    policy,
    path: 'spec',
    key: `${policy.namespace}/${labelsText(policy.spec.selector?.matchLabels)}`,
    what: 'selects the same workloads',
  }));
  const rules = snapshot.destinationRules
    .filter(({ spec }) => spec.trafficPolicy !== undefined)
    .map((policy) => ({
      policy,
      path: 'spec.trafficPolicy',
      key: `${policy.namespace}/${resolveHost(policy.spec.host, policy.namespace, snapshot)}/${labelsText(policy.spec.workloadSelector?.matchLabels)}`,
      what: 'has the traffic policy of the same host',
    }));
  return [peers, rules].flatMap((candidates) => {
    const oldest = new Map<string, Configured<unknown>>();
    return candidates.flatMap(({ policy, path, key, what }): Finding[] => {
      const first = oldest.get(key);
      if (first === undefined) {
        oldest.set(key, policy);
        return [];
      }
      const object = `${policy.kind} ${policy.namespace}/${policy.name}`;
      return [
        {
          ...{ code: 'MZ0024', level: 'warning', object, path },
          place: policy.origin.source === 'file' ? describeOrigin(policy.origin, path) : '',
          message: `${object}: ${path} has no effect, since ${first.kind} ${first.namespace}/${first.name}, which is older, ${what}.`,
        },
      ];
    });
  });
}

const labelsText = (labels: Readonly<Record<string, string>> | undefined) => JSON.stringify(Object.entries(labels ?? {}).sort());
