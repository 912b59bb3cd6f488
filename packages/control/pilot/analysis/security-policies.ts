import type { AuthorizationRuleSpec } from '@mizzen/api';
import { describeOrigin } from '@mizzen/common';
import { type Instance, mayBeHttp, selects } from '../registry/service.ts';
import { authorizationProvider } from '../security/external-authorization.ts';
import { targetsOf } from '../security/policy-selection.ts';
import { type Configured, type MeshSnapshot, rootNamespace } from '../snapshot.ts';
import type { Finding } from './finding.ts';
import { isForTopics } from './not-implemented.ts';

/** Whether some workload that the policy is for serves something else than HTTP. */
function hasPortsWithoutHttp(policy: Configured<Selecting>, snapshot: MeshSnapshot): boolean {
  return snapshot.services.some(
    ({ instances, ports }) => ports.some(({ protocol }) => !mayBeHttp(protocol)) && instances.some((instance) => isSelected(policy, instance)),
  );
}

function isSelected({ namespace, spec }: Configured<Selecting>, instance: Instance): boolean {
  return (instance.namespace === namespace || namespace === rootNamespace) && selects(spec.selector?.matchLabels, instance.labels);
}

/** Exact hosts that are not there with a port, or with the dot that a name may end in, too. */
function hostsWithoutPort(hosts: readonly string[]): string[] {
  return hosts.filter((host) => !host.includes('*') && !host.includes(':') && !(hosts.includes(`${host}:*`) && hosts.includes(`${host}.*`)));
}

/** Values that never match as their writers expect: a * in the middle is literal in Istio, and a principal has no scheme. */
function literalWildcards(rules: readonly AuthorizationRuleSpec[]): { readonly path: string; readonly message: string }[] {
  const found: { path: string; message: string }[] = [];
  const check = (path: string, value: string) => {
    if (value.slice(1, -1).includes('*') && !value.includes('{*'))
      found.push({ path, message: `${path}: in ${JSON.stringify(value)} the * in the middle is not a wildcard: it stands for itself.` });
    if (/rincipals/.test(path) && !/equestPrincipals/.test(path) && value.startsWith('spiffe://'))
      found.push({ path, message: `${path}: ${JSON.stringify(value)} matches no identity: write it without spiffe://.` });
  };
  const checkAll = (path: string, fields: object | undefined) => {
    for (const [field, values] of Object.entries(fields ?? {}))
      if (Array.isArray(values) && !/amespaces$/.test(field))
        for (const [i, value] of values.entries()) if (typeof value === 'string') check(`${path}.${field}[${i}]`, value);
  };
  for (const [i, { from, to }] of rules.entries()) {
    for (const [k, one] of (from ?? []).entries()) checkAll(`spec.rules[${i}].from[${k}].source`, one?.source);
    for (const [k, one] of (to ?? []).entries()) checkAll(`spec.rules[${i}].to[${k}].operation`, one?.operation);
  }
  return found;
}

type Selecting = Parameters<typeof targetsOf>[0];

/** Policies of security that do something else than their writer will have meant. */
export function securityPolicyFindings(snapshot: MeshSnapshot): Finding[] {
  const findings: Finding[] = [];
  const add = (policy: Configured<unknown>, code: Finding['code'], path: string, message: string) =>
    findings.push({
      code,
      level: 'warning',
      object: `${policy.kind} ${policy.namespace}/${policy.name}`,
      path,
      place: policy.origin.source === 'file' ? describeOrigin(policy.origin, path) : '',
      message: `${policy.kind} ${policy.namespace}/${policy.name}: ${message}`,
    });
  for (const policy of snapshot.authorizationPolicies) {
    const { action = 'ALLOW', provider, rules = [] } = policy.spec;
    if (isForTopics(policy.spec)) continue;
    if (action === 'CUSTOM' && authorizationProvider(provider?.name ?? '', snapshot) === undefined)
      add(
        policy,
        'MZ0010',
        'spec.provider.name',
        `nobody can be asked: ${JSON.stringify(provider?.name ?? '')} is no extensionProvider of the mesh with a service that is there. What it should decide about is denied.`,
      );
    const provided = snapshot.meshConfig.extensionProviders.authorization.find(({ name }) => name === provider?.name);
    if (action === 'CUSTOM' && provided?.http !== undefined && hasPortsWithoutHttp(policy, snapshot))
      add(
        policy,
        'MZ0014',
        'spec.provider.name',
        `has no effect on ports without HTTP: the provider ${provided.name} is asked by HTTP and decides about requests only. Deny those ports with a DENY policy, or use a gRPC provider.`,
      );
    for (const { path, message } of literalWildcards(rules)) add(policy, 'MZ0015', path, message);
    const escapable = action === 'DENY' ? rules.flatMap(({ to = [] }) => to.flatMap(({ operation }) => hostsWithoutPort(operation?.hosts ?? []))) : [];
    if (escapable.length > 0)
      add(
        policy,
        'MZ0012',
        'spec.rules',
        `who writes ${escapable.map((host) => `${host}:80`).join(', ')} or ${escapable.map((host) => `${host}.`).join(', ')} is not denied: hosts are compared as clients write them. Add ${escapable.map((host) => `"${host}:*" and "${host}.*"`).join(', ')}.`,
      );
    if (action === 'DENY')
      for (const [i, { from = [], to = [], when = [] }] of rules.entries()) {
        const isAboutRequests =
          to.some(
            ({ operation }) =>
              operation?.paths ?? operation?.methods ?? operation?.hosts ?? operation?.notPaths ?? operation?.notMethods ?? operation?.notHosts,
          ) ||
          from.some(({ source }) => source?.requestPrincipals ?? source?.notRequestPrincipals) ||
          when.some(({ key = '' }) => key.startsWith('request.'));
        const isAboutConnections =
          to.some(({ operation }) => operation?.ports ?? operation?.notPorts) ||
          from.some(({ source }) => Object.keys(source ?? {}).some((field) => !/equestPrincipals$/.test(field))) ||
          when.some(({ key = '' }) => !key.startsWith('request.'));
        if (isAboutRequests && !isAboutConnections && hasPortsWithoutHttp(policy, snapshot))
          add(
            policy,
            'MZ0011',
            `spec.rules[${i}]`,
            `rule ${i} denies every connection to ports without HTTP, of whose requests nobody knows anything. Say with ports which ones are meant.`,
          );
      }
  }
  for (const policy of [...snapshot.authorizationPolicies, ...snapshot.requestAuthentications, ...snapshot.peerAuthentications] as Configured<Selecting>[]) {
    const labels = Object.entries(policy.spec.selector?.matchLabels ?? {});
    if (labels.length === 0 || targetsOf(policy.spec).length > 0) continue;
    if (!snapshot.services.some(({ instances }) => instances.some((instance) => isSelected(policy, instance))))
      add(policy, 'IST0127', 'spec.selector', `no workload of a service has the labels ${labels.map(([name, value]) => `${name}=${value}`).join(', ')}.`);
  }
  return findings;
}
