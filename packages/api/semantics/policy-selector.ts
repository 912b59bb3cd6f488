import type { Problem } from '../resource.ts';
import type { TargetReference } from '../types/authorization-policy.ts';
import { invalid } from './checks.ts';

interface Selecting {
  readonly selector?: { readonly matchLabels?: Readonly<Record<string, string>> };
  readonly targetRef?: TargetReference;
  readonly targetRefs?: readonly TargetReference[];
}

/** Whom a policy is for is said in one way: by labels of workloads, or by the objects that it targets (istio/api type/v1beta1/selector.proto). */
export function selectorProblems({ selector, targetRef, targetRefs }: Selecting): Problem[] {
  const problems: Problem[] = [];
  if ([selector, targetRef, targetRefs].filter((one) => one !== undefined).length > 1)
    problems.push(invalid('spec', 'whom is it for? One of selector, targetRef and targetRefs'));
  for (const [name, value] of Object.entries(selector?.matchLabels ?? {}))
    if (name === '' || value.includes('*')) problems.push(invalid('spec.selector.matchLabels', 'labels are matched as they are, without *'));
  const targets = [
    ...(targetRef ? [[targetRef, 'spec.targetRef'] as const] : []),
    ...(targetRefs ?? []).map((ref, i) => [ref, `spec.targetRefs[${i}]`] as const),
  ];
  for (const [ref, path] of targets) {
    if (!ref.name) problems.push({ code: 'missing-field', path: `${path}.name`, message: 'which object?' });
    if (!ref.kind) problems.push({ code: 'missing-field', path: `${path}.kind`, message: 'of which kind?' });
    if (ref.namespace) problems.push(invalid(`${path}.namespace`, 'targets are of the policy’s own namespace'));
  }
  return problems;
}
