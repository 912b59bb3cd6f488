import { parseBool } from '@mizzen/common';
import { groupOf, type Problem, type Resource } from '../resource.ts';
import type { AuthorizationPolicySpec } from '../types/authorization-policy.ts';
import { invalid } from './checks.ts';

/** An AuthorizationPolicy with this annotation is evaluated and counted, not enforced. */
export const dryRunAnnotation = 'istio.io/dry-run';

/**
 * Annotations that change what an object does. A spelling that is not understood is refused: the writer of `istio.io/dry-run: "yes"` expects a
 * rehearsal and would get enforcement.
 */
export function annotationProblems(resource: Resource): Problem[] {
  const value = resource.metadata.annotations?.[dryRunAnnotation];
  if (value === undefined) return [];
  const refuse = (message: string) => [invalid(`metadata.annotations[${dryRunAnnotation}]`, message)];
  const isDryRun = parseBool(value);
  if (isDryRun === undefined) return refuse(`${JSON.stringify(value.slice(0, 80))} is not a boolean: write "true" or "false"`);
  if (!isDryRun) return [];
  if (groupOf(resource.apiVersion) !== 'security.istio.io' || resource.kind !== 'AuthorizationPolicy')
    return refuse(`a ${resource.kind} cannot be tried in a dry run: only an AuthorizationPolicy can`);
  const { action = 'ALLOW', targetRef, targetRefs } = (resource.spec ?? {}) as AuthorizationPolicySpec;
  if (action === 'AUDIT' || action === 'CUSTOM') return refuse(`the action ${action} has no dry run: only ALLOW and DENY have one`);
  if ([targetRef, ...(targetRefs ?? [])].some((target) => target?.kind === 'Component')) return refuse('a policy for topics has no dry run');
  return [];
}
