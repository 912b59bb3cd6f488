import type {
  ClientTlsSpec,
  ConnectionPoolSpec,
  DestinationRuleSpec,
  LoadBalancerSpec,
  PortTrafficPolicySpec,
  SubsetSpec,
  TrafficPolicySpec,
} from '@mizzen/api';
import type { Service } from '../registry/service.ts';
import { type Configured, hostMatches, isVisible, type MeshSnapshot, resolveHost, rootNamespace } from '../snapshot.ts';

/** The DestinationRule in effect for a service as one namespace sees it: the client's own, else the service's, else the root's. */
export function destinationRuleFor(service: Service, viewer: string, snapshot: MeshSnapshot): Configured<DestinationRuleSpec> | undefined {
  const candidates = snapshot.destinationRules.filter((rule) => {
    const host = resolveHost(rule.spec.host, rule.namespace, snapshot);
    return hostMatches(host, service.hostname) && isVisible(rule.spec.exportTo, rule.namespace, viewer) && !rule.spec.workloadSelector;
  });
  for (const namespace of [viewer, service.namespace, rootNamespace]) {
    const inNamespace = candidates.filter((rule) => rule.namespace === namespace);
    // The most specific host wins: an exact one before a wildcard, a longer wildcard before a shorter.
    inNamespace.sort((a, b) => Number(a.spec.host.startsWith('*')) - Number(b.spec.host.startsWith('*')) || b.spec.host.length - a.spec.host.length);
    if (inNamespace[0]) return inNamespace[0];
  }
  return undefined;
}

export interface EffectivePolicy {
  readonly loadBalancer: LoadBalancerSpec | undefined;
  readonly connectionPool: ConnectionPoolSpec | undefined;
  readonly tls: ClientTlsSpec | undefined;
}

/** The policy for one port and subset: the subset's over the rule's, port-level settings over both (each setting as a whole). */
export function effectivePolicy(rule: DestinationRuleSpec | undefined, subset: SubsetSpec | undefined, port: number): EffectivePolicy {
  const layers: (PortTrafficPolicySpec | undefined)[] = [];
  for (const policy of [subset?.trafficPolicy, rule?.trafficPolicy] as (TrafficPolicySpec | undefined)[]) {
    layers.push(
      policy?.portLevelSettings?.find((settings) => settings.port?.number === port),
      policy,
    );
  }
  const first = <Key extends keyof PortTrafficPolicySpec>(key: Key) => layers.find((layer) => layer?.[key] !== undefined)?.[key];
  return { loadBalancer: first('loadBalancer'), connectionPool: first('connectionPool'), tls: first('tls') };
}
