import type { AuthorizationRuleSpec } from '@mizzen/api';
import { describeOrigin } from '@mizzen/common';
import { LabelIndex } from '../registry/label-index.ts';
import { type Instance, mayBeHttp, type Service } from '../registry/service.ts';
import { authorizationProvider } from '../security/external-authorization.ts';
import { targetsOf } from '../security/policy-selection.ts';
import { type Configured, type MeshSnapshot, rootNamespace } from '../snapshot.ts';
import type { Finding } from './finding.ts';
import { neverMatching } from './never-matching.ts';
import { isForTopics } from './not-implemented.ts';

/** The workloads of services, found by a policy's selector. */
type Selected = LabelIndex<{ readonly service: Service; readonly instance: Instance }>;

function selectable(services: readonly Service[]): Selected {
  const all = services.flatMap((service) => service.instances.map((instance) => ({ service, instance })));
  return new LabelIndex(
    all,
    ({ instance }) => instance.namespace,
    ({ instance }) => instance.labels,
  );
}

const scopeOf = ({ namespace, spec }: Configured<Selecting>) => [namespace === rootNamespace ? undefined : namespace, spec.selector?.matchLabels] as const;

/** Exact hosts that are not there with a port, or with the dot that a name may end in, too. */
function hostsWithoutPort(hosts: readonly string[]): string[] {
  return hosts.filter((host) => !host.includes('*') && !host.includes(':') && !(hosts.includes(`${host}:*`) && hosts.includes(`${host}.*`)));
}

/** Services with a port that their workloads listen on under another number, by that port. */
function servicePorts(services: Iterable<Service>): Map<number, Service[]> {
  const found = new Map<number, Service[]>();
  for (const service of services)
    for (const { number, targetPort } of service.ports) {
      if (targetPort === number) continue;
      const others = found.get(number);
      if (others === undefined) found.set(number, [service]);
      else others.push(service);
    }
  return found;
}

/** Ports in the rules of an AuthorizationPolicy. */
function portsNamed(rules: readonly (AuthorizationRuleSpec | null)[]): { readonly path: string; readonly port: number }[] {
  return rules.flatMap((rule, i) => [
    ...(rule?.to ?? []).flatMap((one, k) =>
      (['ports', 'notPorts'] as const).flatMap((field) =>
        (one?.operation?.[field] ?? []).map((port, at) => ({ path: `spec.rules[${i}].to[${k}].operation.${field}[${at}]`, port: Number(port) })),
      ),
    ),
    ...(rule?.when ?? []).flatMap(({ key, values = [], notValues = [] }, k) =>
      key === 'destination.port' ? [...values, ...notValues].map((port) => ({ path: `spec.rules[${i}].when[${k}]`, port: Number(port) })) : [],
    ),
  ]);
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
  const withoutHttp = selectable(snapshot.services.filter(({ ports }) => ports.some(({ protocol }) => !mayBeHttp(protocol))));
  const all = selectable(snapshot.services);
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
    if (action === 'CUSTOM' && provided?.http !== undefined && withoutHttp.has(...scopeOf(policy)))
      add(
        policy,
        'MZ0014',
        'spec.provider.name',
        `has no effect on ports without HTTP: the provider ${provided.name} is asked by HTTP and decides about requests only. Deny those ports with a DENY policy, or use a gRPC provider.`,
      );
    for (const { path, message } of neverMatching(rules)) add(policy, 'MZ0015', path, message);
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
        if (isAboutRequests && !isAboutConnections && withoutHttp.has(...scopeOf(policy)))
          add(
            policy,
            'MZ0011',
            `spec.rules[${i}]`,
            `rule ${i} denies every connection to ports without HTTP, of whose requests nobody knows anything. Say with ports which ones are meant.`,
          );
      }
  }
  const remapped = selectable(snapshot.services.filter(({ ports }) => ports.some(({ number, targetPort }) => number !== targetPort)));
  const byScope = new Map<string, ReadonlyMap<number, Service[]>>();
  /** Services of the workloads that a policy selects, by those of their ports whose workloads listen on another one. */
  const portsOf = (policy: Configured<Selecting>) => {
    const scope = scopeOf(policy);
    const key = JSON.stringify(scope);
    const known = byScope.get(key) ?? servicePorts(new Set(remapped.matching(...scope).map(({ service }) => service)));
    byScope.set(key, known);
    return known;
  };
  for (const policy of snapshot.authorizationPolicies) {
    if (isForTopics(policy.spec) || targetsOf(policy.spec).length > 0) continue;
    for (const { path, port } of portsNamed(policy.spec.rules ?? [])) mistakenPort(policy, path, port);
  }
  for (const policy of snapshot.peerAuthentications)
    for (const port of Object.keys(policy.spec.portLevelMtls ?? {})) mistakenPort(policy, `spec.portLevelMtls.${port}`, Number(port));
  function mistakenPort(policy: Configured<Selecting>, path: string, port: number): void {
    const services = portsOf(policy).get(port) ?? [];
    const [service] = services;
    if (service === undefined || services.some(({ ports }) => ports.some(({ targetPort }) => typeof targetPort === 'string' || targetPort === port))) return;
    const own = service.ports.find(({ number }) => number === port)!.targetPort;
    add(
      policy,
      'MZ0015',
      path,
      `${path}: ${port} is the port of the Service ${service.namespace}/${service.name}; policies are about the port of the workload, which is ${own}.`,
    );
  }
  for (const policy of [...snapshot.authorizationPolicies, ...snapshot.requestAuthentications, ...snapshot.peerAuthentications] as Configured<Selecting>[]) {
    const labels = Object.entries(policy.spec.selector?.matchLabels ?? {});
    if (labels.length === 0 || targetsOf(policy.spec).length > 0) continue;
    if (!all.has(...scopeOf(policy)))
      add(policy, 'IST0127', 'spec.selector', `no workload of a service has the labels ${labels.map(([name, value]) => `${name}=${value}`).join(', ')}.`);
  }
  return findings;
}
