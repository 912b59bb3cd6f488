import type { Resource, TargetReference } from '@mizzen/api';
import { groupOf } from '@mizzen/api';
import { describeOrigin } from '@mizzen/common';
import type { ConfigStore } from '../../galley/config-store.ts';
import { type Condition, condition, controllerName, failed, group as gatewayApiGroup, type K8sGatewaySpec } from '../gateway-api/types.ts';
import { targetsOf } from '../security/policy-selection.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import type { Finding } from './finding.ts';

/**
 * What a policy's `targetRefs` lead to (istio/api type/v1beta1/selector.proto). A policy whose target does not exist yet is accepted, because the
 * target may come later and then serves its first request under the policy; the writer is warned and the status says so. A policy whose target
 * exists and is not served here is refused.
 */
export interface PolicyTargetState {
  readonly policy: Configured<Targeting>;
  readonly group: string;
  readonly conditions: readonly Condition[];
  /** `gateway`: the one that exists and is not served. */
  readonly problems: readonly { readonly path: string; readonly message: string; readonly gateway: string | undefined }[];
}

type Targeting = Parameters<typeof targetsOf>[0];

export function policyTargetStates(snapshot: MeshSnapshot): PolicyTargetState[] {
  const policies = [
    ...[...snapshot.authorizationPolicies, ...snapshot.requestAuthentications].map((policy) => ({ policy, group: 'security.istio.io' })),
    ...snapshot.envoyFilters.map((policy) => ({ policy, group: 'networking.istio.io' })),
  ] as { policy: Configured<Targeting>; group: string }[];
  return policies.flatMap(({ policy, group }) => {
    const targets = targetsOf(policy.spec);
    if (targets.length === 0) return [];
    const problems = targets.flatMap((target, i) => {
      const problem = problemOf(target, policy.namespace, snapshot);
      return problem === undefined ? [] : [{ ...problem, path: policy.spec.targetRefs === undefined ? 'spec.targetRef' : `spec.targetRefs[${i}]` }];
    });
    const [first] = problems;
    const conditions = [
      first === undefined
        ? condition('Accepted', 'Accepted', 'enforced at all of its targets')
        : failed('Accepted', first.reason, problems.map(({ message }) => message).join('; ')),
    ];
    return [{ policy, group, conditions, problems }];
  });
}

function problemOf(
  { group = '', kind, name }: TargetReference,
  namespace: string,
  snapshot: MeshSnapshot,
): { readonly reason: 'TargetNotFound' | 'Invalid'; readonly message: string; readonly gateway: string | undefined } | undefined {
  const missing = (what: string) => ({
    reason: 'TargetNotFound' as const,
    message: `the ${what} ${namespace}/${name} does not exist, so nothing is enforced there`,
    gateway: undefined,
  });
  if (group === 'dapr.io' && kind === 'Component')
    return snapshot.messaging.components.some((one) => one.namespace === namespace && one.name === name) ? undefined : missing('Component');
  if (group !== gatewayApiGroup || kind !== 'Gateway') return { reason: 'Invalid', message: `a target of kind ${kind} is not served here`, gateway: undefined };
  const gateway = snapshot.gatewayApi.gateways.find((one) => one.namespace === namespace && one.name === name);
  if (gateway === undefined) return missing('Gateway');
  const served = snapshot.gatewayApi.classes.some((one) => one.name === gateway.spec.gatewayClassName && one.spec.controllerName === controllerName);
  return served ? undefined : { reason: 'Invalid', message: unserved(namespace, name, gateway.spec.gatewayClassName), gateway: name };
}

const unserved = (namespace: string, name: string | undefined, className: string | undefined) =>
  `the Gateway ${namespace}/${name} is of class ${className ?? ''}, which is not served here, so nothing is enforced there`;

/** For the writer of the policy, and for the writer of a Gateway that policies rely on. */
export function policyTargetFindings(snapshot: MeshSnapshot): Finding[] {
  return policyTargetStates(snapshot).flatMap(({ policy, problems }) =>
    problems.flatMap(({ path, message, gateway }): Finding[] => {
      const object = `${policy.kind} ${policy.namespace}/${policy.name}`;
      const place = policy.origin.source === 'file' ? describeOrigin(policy.origin, path) : '';
      const own: Finding = { code: 'MZ0013', level: 'error', object, path, place, message: `${object}: ${message}.` };
      if (gateway === undefined) return [own];
      const target = `Gateway ${policy.namespace}/${gateway}`;
      return [
        own,
        { ...own, object: target, path: 'spec.gatewayClassName', place: '', message: `${target}: ${object} targets it and is not enforced: ${message}.` },
      ];
    }),
  );
}

/** Why a policy is refused at its write: its target exists and will never enforce it. */
export async function unservedTarget(resource: Resource, store: ConfigStore): Promise<string | undefined> {
  if (groupOf(resource.apiVersion) !== 'security.istio.io') return undefined;
  for (const { group, kind, name = '' } of targetsOf((resource.spec ?? {}) as Targeting)) {
    if (group !== gatewayApiGroup || kind !== 'Gateway') continue;
    const namespace = resource.metadata.namespace ?? '';
    const gateway = await store.get({ group: gatewayApiGroup, kind: 'Gateway', namespace, name });
    if (gateway === undefined) continue;
    const className = (gateway.resource.spec as K8sGatewaySpec | undefined)?.gatewayClassName;
    const ofClass = await store.get({ group: gatewayApiGroup, kind: 'GatewayClass', namespace: '', name: className ?? '' });
    if ((ofClass?.resource.spec as { controllerName?: string } | undefined)?.controllerName !== controllerName)
      return `${unserved(namespace, name, className)}. Target a Gateway of class mizzen, or select workloads by labels.`;
  }
  return undefined;
}
