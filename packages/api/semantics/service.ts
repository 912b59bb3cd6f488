import type { Problem } from '../resource.ts';
import type { ServiceEntrySpec, ServiceSpec, WorkloadEntrySpec } from '../types/service.ts';
import { addressProblem, collect, hostProblem, invalid, portProblem } from './checks.ts';

/** Core Service: ports are unique by name and number. */
export function serviceProblems(spec: ServiceSpec): Problem[] {
  const problems: Problem[] = [];
  const names = new Set<string>();
  spec.ports?.forEach((port, i) => {
    problems.push(...collect(portProblem(port.port, `spec.ports[${i}].port`)));
    const name = port.name ?? '';
    if (spec.ports!.length > 1 && !name)
      problems.push({ code: 'missing-field', path: `spec.ports[${i}].name`, message: 'a service with several ports needs a name for each' });
    else if (names.has(name)) problems.push(invalid(`spec.ports[${i}].name`, `port name "${name}" is used twice`));
    names.add(name);
  });
  return problems;
}

/** Rules of Istio's own validation of ServiceEntry that can be decided from the object alone. */
export function serviceEntryProblems(spec: ServiceEntrySpec): Problem[] {
  const problems: Problem[] = [];
  if (!spec.hosts?.length) problems.push({ code: 'missing-field', path: 'spec.hosts', message: 'at least one host is required' });
  spec.hosts?.forEach((host, i) => problems.push(...collect(hostProblem(host, `spec.hosts[${i}]`))));
  spec.ports?.forEach((port, i) => problems.push(...collect(portProblem(port.number, `spec.ports[${i}].number`))));
  if (spec.workloadSelector && spec.endpoints?.length) problems.push(invalid('spec.endpoints', 'only one of endpoints and workloadSelector may be set'));
  const isDns = spec.resolution === 'DNS' || spec.resolution === 'DNS_ROUND_ROBIN';
  if (isDns && !spec.endpoints?.length && spec.hosts?.some((host) => host.startsWith('*')))
    problems.push(invalid('spec.hosts', 'a wildcard host cannot be resolved by DNS: list endpoints, or use resolution NONE'));
  if (spec.resolution === 'STATIC' && !spec.endpoints?.length && !spec.workloadSelector)
    problems.push({ code: 'missing-field', path: 'spec.endpoints', message: 'resolution STATIC needs endpoints or a workloadSelector' });
  if ((spec.resolution ?? 'NONE') === 'NONE' && spec.endpoints?.length) problems.push(invalid('spec.endpoints', 'resolution NONE takes no endpoints'));
  spec.endpoints?.forEach(({ address }, i) => {
    if (address) problems.push(...collect(addressProblem(address, `spec.endpoints[${i}].address`)));
  });
  return problems;
}

export function workloadEntryProblems(spec: WorkloadEntrySpec): Problem[] {
  if (!spec.address) return [{ code: 'missing-field', path: 'spec.address', message: 'an address is required' }];
  return [
    ...collect(addressProblem(spec.address, 'spec.address')),
    ...Object.entries(spec.ports ?? {}).flatMap(([name, port]) => collect(portProblem(port, `spec.ports.${name}`))),
  ];
}
