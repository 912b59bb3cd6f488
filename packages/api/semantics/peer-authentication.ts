import type { Problem } from '../resource.ts';
import type { PeerAuthenticationSpec } from '../types/service.ts';
import { collect, invalid, portProblem } from './checks.ts';
import { selectorProblems } from './policy-selector.ts';

export function peerAuthenticationProblems(spec: PeerAuthenticationSpec): Problem[] {
  const ports = Object.keys(spec.portLevelMtls ?? {});
  const problems = [
    ...selectorProblems(spec),
    // Another spelling of the number (080, 0x50) would be stored and would name no port.
    ...ports.flatMap((port) => collect(portProblem(/^[1-9]\d*$/.test(port) ? Number(port) : port, `spec.portLevelMtls.${port}`))),
  ];
  if (ports.length > 0 && !Object.keys(spec.selector?.matchLabels ?? {}).length)
    problems.push(invalid('spec.portLevelMtls', 'port settings need a selector with matchLabels: they hold for named workloads only'));
  return problems;
}
