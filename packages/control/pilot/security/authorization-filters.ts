import { type AuthorizationPolicySpec, dryRunAnnotation } from '@mizzen/api';
import { parseBool } from '@mizzen/common';
import { type Init, packAny } from '@mizzen/envoy-api';
import type { FilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type PolicySchema, RBAC_Action, type RBACSchema } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import { RBACSchema as HttpRbacSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/rbac/v3/rbac_pb.js';
import type { HttpFilterSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { RBACSchema as NetworkRbacSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/rbac/v3/rbac_pb.js';
import { isForTopics } from '../analysis/not-implemented.ts';
import { trustDomainsOf } from '../generate/tls-contexts.ts';
import type { PathNormalization } from '../mesh-config.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { never, policyOfRule, type RulePlace } from './authorization-rules.ts';
import { askedPolicyPrefix, askedPrefix, askFilter, askNetworkFilter, authorizationProvider } from './external-authorization.ts';
import { isForWorkload } from './policy-selection.ts';
import { jwtFilters } from './request-authentication.ts';

type Policy = Configured<AuthorizationPolicySpec>;

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
  return [...customFilters(view, snapshot, port), ...jwtFilters(view, snapshot), ...authorizationHttpFilters(view, snapshot, port)];
}

/** Two filters for each provider of CUSTOM policies: the one finds out whether it is to be asked, the other asks. Where nobody can be asked, the answer is no. */
function customFilters(view: ProxyView, snapshot: MeshSnapshot, port: number | undefined): Init<typeof HttpFilterSchema>[] {
  const rbac = (config: Init<typeof HttpRbacSchema>): Init<typeof HttpFilterSchema> => ({
    name: 'envoy.filters.http.rbac',
    configType: { case: 'typedConfig', value: packAny(HttpRbacSchema, config) },
  });
  const place = placeOf(snapshot, port, false);
  return [...customPolicies(view, snapshot)].flatMap(([name, policies]) => {
    const rules = { action: RBAC_Action.DENY, policies: policiesOf(policies, place, askedPolicyPrefix(name)) };
    const provider = authorizationProvider(name, snapshot);
    if (provider === undefined) return [rbac({ rules })];
    return [rbac({ shadowRules: rules, shadowRulesStatPrefix: askedPrefix }), askFilter(provider, snapshot)];
  });
}

/** Those of each provider. What is but a dry run asks nobody. */
function customPolicies(view: ProxyView, snapshot: MeshSnapshot): Map<string, Policy[]> {
  const found = new Map<string, Policy[]>();
  for (const policy of authorizationPoliciesFor(view, snapshot)) {
    if (policy.spec.action !== 'CUSTOM' || isDryRun(policy)) continue;
    const name = policy.spec.provider?.name ?? '';
    found.set(name, [...(found.get(name) ?? []), policy]);
  }
  return found;
}

function authorizationHttpFilters(view: ProxyView, snapshot: MeshSnapshot, port: number | undefined): Init<typeof HttpFilterSchema>[] {
  return rulesFor(view, snapshot, port, false).map((rules) => ({
    name: 'envoy.filters.http.rbac',
    configType: { case: 'typedConfig', value: packAny(HttpRbacSchema, rules) },
  }));
}

/** For connections of which nobody looks into what is spoken. */
export function authorizationNetworkFilters(view: ProxyView, snapshot: MeshSnapshot, port: number | undefined): Init<typeof FilterSchema>[] {
  const rbac = (config: Rules): Init<typeof FilterSchema> => ({
    name: 'envoy.filters.network.rbac',
    configType: { case: 'typedConfig', value: packAny(NetworkRbacSchema, { ...config, statPrefix: 'tcp.' }) },
  });
  const place = placeOf(snapshot, port, true);
  const custom = [...customPolicies(view, snapshot)].flatMap(([name, policies]) => {
    const rules = { action: RBAC_Action.DENY, policies: policiesOf(policies, place, askedPolicyPrefix(name)) };
    const provider = authorizationProvider(name, snapshot);
    if (provider === undefined) return [rbac({ rules, shadowRulesStatPrefix: '' })];
    // An HTTP provider decides about requests only: Istio leaves connections without HTTP alone, and a finding names the policy.
    if (provider.http !== undefined) return [];
    return [rbac({ shadowRules: rules, shadowRulesStatPrefix: askedPrefix }), askNetworkFilter(provider, snapshot)];
  });
  return [...custom, ...rulesFor(view, snapshot, port, true).map(rbac)];
}

function rulesFor(view: ProxyView, snapshot: MeshSnapshot, port: number | undefined, isBytes: boolean): Rules[] {
  const policies = authorizationPoliciesFor(view, snapshot);
  if (policies.length === 0) return [];
  const place = placeOf(snapshot, port, isBytes);
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

/** Policies with this annotation decide nothing: what they would have decided is counted. */
export function isDryRun({ annotations }: Policy): boolean {
  return parseBool(annotations[dryRunAnnotation] ?? '') === true;
}

type Place = Omit<RulePlace, 'namespace' | 'isForAllowing'>;

function placeOf(snapshot: MeshSnapshot, port: number | undefined, isBytes: boolean): Place {
  return { trustDomains: trustDomainsOf(snapshot), isBytes, port };
}

function policiesOf(policies: readonly Policy[], place: Place, prefix = ''): Record<string, Init<typeof PolicySchema>> {
  const found: Record<string, Init<typeof PolicySchema>> = {};
  for (const { namespace, name, spec } of policies) {
    const nameOf = (rule: number) => `${prefix}ns[${namespace}]-policy[${name}]-rule[${rule}]`;
    const rules = spec.rules ?? [];
    if (rules.length === 0) found[nameOf(0)] = never;
    for (const [i, rule] of rules.entries()) {
      const policy = policyOfRule(rule, { ...place, namespace, isForAllowing: (spec.action ?? 'ALLOW') === 'ALLOW' });
      if (policy !== undefined) found[nameOf(i)] = policy;
    }
  }
  return found;
}
