import type { Problem } from '../resource.ts';
import type { DestinationRuleSpec, TrafficPolicySpec } from '../types/destination-rule.ts';
import { collect, durationProblem, hostProblem, invalid, portProblem } from './checks.ts';

/** Rules of Istio's own validation of DestinationRule that can be decided from the object alone. */
export function destinationRuleProblems(spec: DestinationRuleSpec): Problem[] {
  if (!spec.host) return [{ code: 'missing-field', path: 'spec.host', message: 'required field "host" is missing in spec' }];
  const problems = collect(hostProblem(spec.host, 'spec.host'));
  policyProblems(spec.trafficPolicy, 'spec.trafficPolicy', problems);
  const seen = new Set<string>();
  spec.subsets?.forEach((subset, i) => {
    const path = `spec.subsets[${i}]`;
    if (!subset.name) problems.push({ code: 'missing-field', path: `${path}.name`, message: 'a subset needs a name' });
    else if (seen.has(subset.name)) problems.push(invalid(`${path}.name`, `subset "${subset.name}" is defined twice`));
    seen.add(subset.name);
    policyProblems(subset.trafficPolicy, `${path}.trafficPolicy`, problems);
  });
  return problems;
}

function policyProblems(policy: TrafficPolicySpec | undefined, path: string, problems: Problem[]): void {
  if (!policy) return;
  if (policy.loadBalancer?.simple && policy.loadBalancer.consistentHash)
    problems.push(invalid(`${path}.loadBalancer`, 'only one of simple and consistentHash may be set'));
  problems.push(...collect(durationProblem(policy.connectionPool?.tcp?.connectTimeout, `${path}.connectionPool.tcp.connectTimeout`)));
  if (policy.tls?.mode === 'MUTUAL' && !policy.tls.credentialName && !(policy.tls.clientCertificate && policy.tls.privateKey)) {
    problems.push(
      invalid(`${path}.tls`, "mode MUTUAL needs clientCertificate and privateKey (or credentialName); for the mesh's own certificates use ISTIO_MUTUAL"),
    );
  }
  policy.portLevelSettings?.forEach((settings, i) => {
    const portPath = `${path}.portLevelSettings[${i}]`;
    problems.push(...collect(portProblem(settings.port?.number, `${portPath}.port.number`)));
    policyProblems(settings, portPath, problems);
  });
}
