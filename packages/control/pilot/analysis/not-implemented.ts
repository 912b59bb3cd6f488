import { type AuthorizationPolicySpec, groupOf, isPlainObject, type Resource } from '@mizzen/api';
import { fieldNotes } from './compatibility.ts';

/** Policies that somebody would rely on. What is not enforced is refused, not warned about: a silent gap would be a hole. */
const securityKinds = new Set(['AuthorizationPolicy', 'RequestAuthentication']);

export function notEnforced(resource: Resource): string | undefined {
  if (groupOf(resource.apiVersion) !== 'security.istio.io' || !securityKinds.has(resource.kind)) return undefined;
  const spec = (resource.spec ?? {}) as AuthorizationPolicySpec;
  if (resource.kind === 'AuthorizationPolicy' && isForTopics(spec)) return topicPolicyProblem(resource);
  const target = [...(spec.targetRef ? [spec.targetRef] : []), ...(spec.targetRefs ?? [])].find(
    ({ group = '', kind }) => group !== 'gateway.networking.k8s.io' || kind !== 'Gateway',
  );
  return (
    target &&
    `${resource.kind}: targets of kind ${target.kind} are for waypoints, of which there are none, so the policy is refused. Use a selector for workloads, or a Gateway as target.`
  );
}

/** Policies of topics are enforced: those whose targets are Components of Dapr's. */
export function isForTopics({ targetRef, targetRefs }: AuthorizationPolicySpec): boolean {
  const targets = [...(targetRef ? [targetRef] : []), ...(targetRefs ?? [])];
  return targets.length > 0 && targets.every(({ group, kind }) => group === 'dapr.io' && kind === 'Component');
}

/** What a policy of topics says that cannot be honoured: a condition that nobody looks at would let in whom it is to keep out. */
function topicPolicyProblem({ kind, spec }: Resource): string | undefined {
  const { action = 'ALLOW', rules = [] } = spec as AuthorizationPolicySpec;
  const refuse = (what: string) => `${kind}: ${what} is not enforced for topics, so the policy is refused.`;
  if (action !== 'ALLOW' && action !== 'DENY') return refuse(`action ${action}`);
  for (const rule of rules) {
    if ('when' in rule) return refuse('rules.when');
    for (const { source } of rule.from ?? [])
      for (const field of Object.keys(source ?? {})) if (field !== 'principals' && field !== 'namespaces') return refuse(`source.${field}`);
    for (const { operation } of rule.to ?? [])
      for (const field of Object.keys(operation ?? {})) if (field !== 'methods' && field !== 'paths') return refuse(`operation.${field}`);
  }
  return undefined;
}

/** Fields that are stored and that nothing acts on, with the reason. */
export function notImplementedWarnings(resource: Resource): string[] {
  const notes = fieldNotes[`${groupOf(resource.apiVersion)}/${resource.kind}`] ?? [];
  return notes
    .filter(({ effect, path }) => effect === 'none' && isSet(resource, path.replace(/\.\*$/, '').split('.')))
    .map(({ path, why }) => `${path.replace(/\.\*$/, '')} is stored but has no effect: ${why}.`);
}

function isSet(value: unknown, path: readonly string[]): boolean {
  if (path.length === 0) return value !== undefined && value !== null;
  if (path.length === 1 && path[0]!.endsWith('[1:]')) {
    const list = isPlainObject(value) ? value[path[0]!.slice(0, -'[1:]'.length)] : undefined;
    return Array.isArray(list) && list.length > 1;
  }
  if (Array.isArray(value)) return value.some((entry) => isSet(entry, path));
  return isPlainObject(value) && isSet(value[path[0]!], path.slice(1));
}
