import type { AuthorizationPolicySpec } from '@mizzen/api';
import { type Init, packAny } from '@mizzen/envoy-api';
import type { FilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type PolicySchema, RBAC_Action, type RBACSchema } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import { RBACSchema as HttpRbacSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/rbac/v3/rbac_pb.js';
import type { HttpFilterSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { RBACSchema as NetworkRbacSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/rbac/v3/rbac_pb.js';
import { isForTopics } from '../analysis/not-implemented.ts';
import type { PathNormalization } from '../mesh-config.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { never, policyOfRule, type RulePlace } from './authorization-rules.ts';
import { isForWorkload } from './policy-selection.ts';
import { jwtFilters } from './request-authentication.ts';

type Policy = Configured<AuthorizationPolicySpec>;

/** Policies with this annotation decide nothing: what they would have decided is counted. */
const dryRunAnnotation = 'istio.io/dry-run';

/** The actions in the order in which they are asked. */
const actions = [
  ['AUDIT', RBAC_Action.LOG],
  ['DENY', RBAC_Action.DENY],
  ['ALLOW', RBAC_Action.ALLOW],
] as const;

/** The policies of one action, as Envoy's RBAC filters say them. */
interface Rules {
  readonly rules?: Init<typeof RBACSchema>;
  readonly shadowRules?: Init<typeof RBACSchema>;
  readonly shadowRulesStatPrefix: string;
}

/** What stands before all else on the way into a workload. `port`: the workload's own, where connections arrive at another. */
export function securityFilters(view: ProxyView, snapshot: MeshSnapshot, port: number | undefined): Init<typeof HttpFilterSchema>[] {
  return [...jwtFilters(view, snapshot), ...authorizationHttpFilters(view, snapshot, port)];
}

function authorizationHttpFilters(view: ProxyView, snapshot: MeshSnapshot, port: number | undefined): Init<typeof HttpFilterSchema>[] {
  return rulesFor(view, snapshot, port, false).map((rules) => ({
    name: 'envoy.filters.http.rbac',
    configType: { case: 'typedConfig', value: packAny(HttpRbacSchema, rules) },
  }));
}

/** For connections of which nobody looks into what is spoken. */
export function authorizationNetworkFilters(view: ProxyView, snapshot: MeshSnapshot, port: number | undefined): Init<typeof FilterSchema>[] {
  return rulesFor(view, snapshot, port, true).map((rules) => ({
    name: 'envoy.filters.network.rbac',
    configType: { case: 'typedConfig', value: packAny(NetworkRbacSchema, { ...rules, statPrefix: 'tcp.' }) },
  }));
}

function rulesFor(view: ProxyView, snapshot: MeshSnapshot, port: number | undefined, isBytes: boolean): Rules[] {
  const policies = authorizationPoliciesFor(view, snapshot);
  if (policies.length === 0) return [];
  const place = { trustDomains: [snapshot.trustDomain, ...snapshot.meshConfig.trustDomainAliases], isBytes, port };
  return actions.flatMap(([action, code]) => {
    const own = policies.filter(({ spec }) => (spec.action ?? 'ALLOW') === action);
    const enforced = own.filter((policy) => !isDryRun(policy));
    const rehearsed = own.filter(isDryRun);
    if (own.length === 0) return [];
    return [
      {
        ...(enforced.length > 0 ? { rules: { action: code, policies: policiesOf(enforced, place) } } : {}),
        ...(rehearsed.length > 0 ? { shadowRules: { action: code, policies: policiesOf(rehearsed, place) } } : {}),
        shadowRulesStatPrefix: rehearsed.length > 0 ? `istio_dry_run_${action.toLowerCase()}_` : '',
      },
    ];
  });
}

/** The policies that a workload is under, those of topics aside. */
export function authorizationPoliciesFor(view: Pick<ProxyView, 'namespace' | 'labels' | 'type'>, snapshot: MeshSnapshot): Policy[] {
  return snapshot.authorizationPolicies.filter((policy) => !isForTopics(policy.spec) && isForWorkload(policy, view));
}

/** Where rules look at paths, `//admin` must not be another path than `/admin`: slashes are merged there, unless the mesh config has something else done. */
export function pathNormalizationFor(view: ProxyView, snapshot: MeshSnapshot): PathNormalization | undefined {
  const said = snapshot.meshConfig.pathNormalization;
  if (said !== undefined) return said;
  const looksAtPaths = authorizationPoliciesFor(view, snapshot).some(({ spec }) =>
    spec.rules?.some(({ to }) => to?.some(({ operation }) => operation?.paths?.length || operation?.notPaths?.length)),
  );
  return looksAtPaths ? 'MERGE_SLASHES' : undefined;
}

export function isDryRun({ annotations }: Policy): boolean {
  return annotations[dryRunAnnotation] === 'true';
}

function policiesOf(policies: readonly Policy[], place: Omit<RulePlace, 'namespace' | 'isForAllowing'>): Record<string, Init<typeof PolicySchema>> {
  const found: Record<string, Init<typeof PolicySchema>> = {};
  for (const { namespace, name, spec } of policies) {
    const nameOf = (rule: number) => `ns[${namespace}]-policy[${name}]-rule[${rule}]`;
    const rules = spec.rules ?? [];
    if (rules.length === 0) found[nameOf(0)] = never;
    for (const [i, rule] of rules.entries()) {
      const policy = policyOfRule(rule, { ...place, namespace, isForAllowing: (spec.action ?? 'ALLOW') === 'ALLOW' });
      if (policy !== undefined) found[nameOf(i)] = policy;
    }
  }
  return found;
}
