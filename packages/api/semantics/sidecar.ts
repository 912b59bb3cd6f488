import { isUnixAddress, unixPathOf, unixPathProblem } from '@mizzen/common';
import type { Problem } from '../resource.ts';
import type { EgressListenerSpec, SidecarSpec } from '../types/service.ts';
import { collect, hostProblem, invalid, portProblem } from './checks.ts';

/** Rules of Istio's own validation of Sidecar that can be decided from the object alone. */
export function sidecarProblems(spec: SidecarSpec): Problem[] {
  const problems: Problem[] = [];
  spec.egress?.forEach((listener, i) => {
    const path = `spec.egress[${i}]`;
    if (!listener.hosts?.length)
      problems.push({ code: 'missing-field', path: `${path}.hosts`, message: 'which services are known is required, for example "./*"' });
    listener.hosts?.forEach((host, j) => {
      const place = `${path}.hosts[${j}]`;
      const slash = host.indexOf('/');
      if (slash < 1) problems.push(invalid(place, `${JSON.stringify(host)} lacks the namespace: write NAMESPACE/HOST, "./*" for all of this namespace`));
      else if (!/^(?:\.|\*|~|[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)$/.test(host.slice(0, slash)))
        problems.push(invalid(place, `${JSON.stringify(host.slice(0, slash))} is no namespace: a name, "." for this one, "*" for all, "~" for none`));
      else problems.push(...collect(hostProblem(host.slice(slash + 1), place)));
    });
    if (isUnixAddress(listener.bind ?? '')) problems.push(...unixBindProblems(listener, path, spec.egress!.slice(0, i)));
    else if (listener.port?.number !== undefined) problems.push(...collect(portProblem(listener.port.number, `${path}.port.number`)));
    if (listener.bind !== undefined && listener.port === undefined) problems.push(invalid(`${path}.bind`, 'an address needs a port'));
    if (listener.port === undefined && i < spec.egress!.length - 1) problems.push(invalid(path, 'a listener for all ports must be the last one'));
  });
  const ports = new Set<number>();
  spec.ingress?.forEach((listener, i) => {
    const path = `spec.ingress[${i}]`;
    const number = listener.port?.number;
    problems.push(...collect(portProblem(number, `${path}.port.number`)));
    if (number !== undefined && ports.has(number)) problems.push(invalid(`${path}.port.number`, `port ${number} is taken by an earlier listener`));
    if (number !== undefined) ports.add(number);
    if (isUnixAddress(listener.bind ?? ''))
      problems.push(invalid(`${path}.bind`, 'callers of other machines come by TCP: only defaultEndpoint may be a Unix socket'));
    problems.push(...endpointProblems(listener.defaultEndpoint, `${path}.defaultEndpoint`));
  });
  return problems;
}

function endpointProblems(endpoint: string | undefined, path: string): Problem[] {
  if (endpoint === undefined || endpoint === '') return [];
  if (isUnixAddress(endpoint)) return unixProblems(endpoint, path);
  const [, address, port] = /^(127\.0\.0\.1|0\.0\.0\.0|\[::1\]|\[::\]):(\d{1,5})$/.exec(endpoint) ?? [];
  if (address === undefined)
    return [
      invalid(path, `${JSON.stringify(endpoint)} is no place of an application: 127.0.0.1:PORT, unix:///PATH, or 0.0.0.0:PORT for the workload's own address`),
    ];
  return collect(portProblem(Number(port), path));
}

/** As in Istio, a listener on a Unix socket has the port number 0, or none. */
function unixBindProblems(listener: EgressListenerSpec, path: string, earlier: readonly EgressListenerSpec[]): Problem[] {
  const problems = unixProblems(listener.bind!, `${path}.bind`);
  if (listener.port?.number) problems.push(invalid(`${path}.port.number`, 'a listener on a Unix socket has no port: write 0'));
  if (!listener.port?.protocol) problems.push(invalid(`${path}.port.protocol`, 'a listener on a Unix socket needs a protocol, for example HTTP or TCP'));
  if (listener.captureMode === 'IPTABLES') problems.push(invalid(`${path}.captureMode`, 'connections to a Unix socket cannot be captured: write NONE'));
  if (earlier.some(({ bind }) => bind === listener.bind)) problems.push(invalid(`${path}.bind`, 'this Unix socket is taken by an earlier listener'));
  return problems;
}

function unixProblems(address: string, path: string): Problem[] {
  const problem = unixPathProblem(unixPathOf(address) ?? '');
  return problem === undefined ? [] : [invalid(path, `${JSON.stringify(address)}: ${problem}`)];
}
