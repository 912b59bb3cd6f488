import type { Problem } from '../resource.ts';
import type { PeerAuthenticationSpec } from '../types/service.ts';
import { collect, invalid, portProblem } from './checks.ts';

export function peerAuthenticationProblems(spec: PeerAuthenticationSpec): Problem[] {
  const ports = Object.keys(spec.portLevelMtls ?? {});
  const problems = ports.flatMap((port) => collect(portProblem(Number(port), `spec.portLevelMtls.${port}`)));
  if (ports.length > 0 && !Object.keys(spec.selector?.matchLabels ?? {}).length)
    problems.push(invalid('spec.portLevelMtls', 'port settings need a selector with matchLabels: they hold for named workloads only'));
  return problems;
}
