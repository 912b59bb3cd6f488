import type { Problem } from '../resource.ts';
import type { WorkloadSpec } from '../types/workload.ts';
import { invalid } from './checks.ts';

export function workloadProblems(spec: WorkloadSpec): Problem[] {
  const problems: Problem[] = [];
  if (spec.gateway && spec.command) problems.push(invalid('spec.gateway', 'a gateway runs no command of its own: leave one of gateway and command out'));
  if (!spec.gateway && !spec.command?.length)
    problems.push({ code: 'missing-field', path: 'spec.command', message: 'required field "command" is missing in spec' });
  if (spec.fallback && !spec.requires?.length) problems.push(invalid('spec.fallback', 'a fallback only makes sense with requires'));
  const ports = new Set<number>();
  spec.ports?.forEach((port, i) => {
    if (ports.has(port.port)) problems.push(invalid(`spec.ports[${i}].port`, `port ${port.port} is listed twice`));
    ports.add(port.port);
  });
  return problems;
}
