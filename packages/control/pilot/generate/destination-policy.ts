import type {
  ClientTlsSpec,
  ConnectionPoolSpec,
  DestinationRuleSpec,
  LoadBalancerSpec,
  OutlierDetectionSpec,
  PortTrafficPolicySpec,
  SubsetSpec,
  TrafficPolicySpec,
} from '@mizzen/api';
import { type Service, selects } from '../registry/service.ts';
import { type Configured, isVisible, type MeshSnapshot, patternsFor, resolveHost, rootNamespace } from '../snapshot.ts';

/** Who asks: rules are seen from a namespace, and may be for some of its workloads only. */
export interface Viewer {
  readonly namespace: string;
  readonly labels: Readonly<Record<string, string>>;
}

/**
 * The DestinationRule in effect for a service as one client sees it: the client's own, else the service's, else the root's. One that selects
 * workloads is for those of its own namespace, and goes before those for all.
 */
export function destinationRuleFor(service: Service, viewer: Viewer, snapshot: MeshSnapshot): Rule | undefined {
  const { rules, found } = rulesOf(snapshot);
  const matching = patternsFor(service.hostname).flatMap((pattern) => rules.get(pattern) ?? []);
  if (matching.length === 0) return undefined;
  // What is visible depends on the namespace, and on labels where rules select by them.
  const isByLabels = matching.some(({ rule }) => rule.spec.workloadSelector !== undefined);
  const key = `${service.hostname}\0${service.namespace}\0${viewer.namespace}\0${isByLabels ? JSON.stringify(viewer.labels) : ''}`;
  if (!found.has(key))
    found.set(
      key,
      effectiveRule(
        matching.sort((a, b) => a.age - b.age),
        service,
        viewer,
      ),
    );
  return found.get(key);
}

type Rule = Configured<DestinationRuleSpec>;

interface RuleIndex {
  /** By the host that a rule is for, with its place by age. */
  readonly rules: ReadonlyMap<string, readonly { readonly rule: Rule; readonly age: number }[]>;
  /** The rules in effect that were looked for before. */
  readonly found: Map<string, Rule | undefined>;
}

const ruleIndexes = new WeakMap<readonly Rule[], RuleIndex>();

/** Made once for a snapshot: services and rules are as many as users like, so that comparing each with each would cost their product. */
function rulesOf(snapshot: MeshSnapshot): RuleIndex {
  let index = ruleIndexes.get(snapshot.destinationRules);
  if (index === undefined) {
    const aged = snapshot.destinationRules.map((rule, age) => ({ rule, age }));
    index = { rules: Map.groupBy(aged, ({ rule }) => resolveHost(rule.spec.host, rule.namespace, snapshot)), found: new Map() };
    ruleIndexes.set(snapshot.destinationRules, index);
  }
  return index;
}

function effectiveRule(matching: readonly { readonly rule: Rule }[], service: Service, viewer: Viewer): Rule | undefined {
  const candidates = matching.flatMap(({ rule }) => (isVisible(rule.spec.exportTo, rule.namespace, viewer.namespace) && isFor(rule, viewer) ? [rule] : []));
  for (const namespace of new Set([viewer.namespace, service.namespace, rootNamespace])) {
    const inNamespace = candidates.filter((rule) => rule.namespace === namespace);
    // The most specific host wins: an exact one before a wildcard, a longer wildcard before a shorter.
    inNamespace.sort(
      (a, b) =>
        Number(b.spec.workloadSelector !== undefined) - Number(a.spec.workloadSelector !== undefined) ||
        Number(a.spec.host.startsWith('*')) - Number(b.spec.host.startsWith('*')) ||
        b.spec.host.length - a.spec.host.length,
    );
    if (inNamespace[0]) return withSubsetsOfOthers(inNamespace[0], inNamespace);
  }
  return undefined;
}

function isFor({ namespace, spec: { workloadSelector } }: Configured<DestinationRuleSpec>, viewer: Viewer): boolean {
  return !workloadSelector || (namespace === viewer.namespace && selects(workloadSelector.matchLabels, viewer.labels));
}

/** Several rules of one host are one, as in Istio: the oldest says the policy, each adds subsets that those before it do not name. */
function withSubsetsOfOthers(rule: Configured<DestinationRuleSpec>, all: readonly Configured<DestinationRuleSpec>[]): Configured<DestinationRuleSpec> {
  const others = all.filter(
    (other) =>
      other !== rule && other.spec.host === rule.spec.host && (other.spec.workloadSelector === undefined) === (rule.spec.workloadSelector === undefined),
  );
  if (others.length === 0) return rule;
  const subsets = [...(rule.spec.subsets ?? [])];
  const names = new Set(subsets.map(({ name }) => name));
  for (const other of others)
    for (const subset of other.spec.subsets ?? []) {
      if (names.has(subset.name)) continue;
      names.add(subset.name);
      subsets.push(subset);
    }
  const trafficPolicy = rule.spec.trafficPolicy ?? others.find((other) => other.spec.trafficPolicy)?.spec.trafficPolicy;
  return { ...rule, spec: { ...rule.spec, subsets, ...(trafficPolicy ? { trafficPolicy } : {}) } };
}

export interface EffectivePolicy {
  readonly loadBalancer: LoadBalancerSpec | undefined;
  readonly connectionPool: ConnectionPoolSpec | undefined;
  readonly outlierDetection: OutlierDetectionSpec | undefined;
  readonly tls: ClientTlsSpec | undefined;
  readonly proxyProtocol: TrafficPolicySpec['proxyProtocol'];
  readonly retryBudget: TrafficPolicySpec['retryBudget'];
  readonly tunnel: TrafficPolicySpec['tunnel'];
}

/** The policy for one port and subset: the subset's over the rule's, port-level settings over both (each setting as a whole). */
export function effectivePolicy(rule: DestinationRuleSpec | undefined, subset: SubsetSpec | undefined, port: number): EffectivePolicy {
  const policies = [subset?.trafficPolicy, rule?.trafficPolicy];
  const layers: (PortTrafficPolicySpec | undefined)[] = policies.flatMap((policy) => [
    policy?.portLevelSettings?.find((settings) => settings.port?.number === port),
    policy,
  ]);
  const first = <Key extends keyof PortTrafficPolicySpec>(key: Key) => layers.find((layer) => layer?.[key] !== undefined)?.[key];
  const whole = <Key extends keyof TrafficPolicySpec>(key: Key) => policies.find((policy) => policy?.[key] !== undefined)?.[key];
  return {
    loadBalancer: first('loadBalancer'),
    connectionPool: first('connectionPool'),
    outlierDetection: first('outlierDetection'),
    tls: first('tls'),
    proxyProtocol: whole('proxyProtocol'),
    retryBudget: whole('retryBudget'),
    tunnel: whole('tunnel'),
  };
}
