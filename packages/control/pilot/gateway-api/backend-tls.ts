import type { Service, ServicePort } from '../registry/service.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { problemOfRoots } from '../trusted-roots.ts';
import { resolveBackend } from './references.ts';
import type { Translation } from './translate.ts';
import { type BackendTlsPolicySpec, type Condition, condition, failed, group } from './types.ts';

/** How TLS is spoken to a back end that says so (BackendTLSPolicy). */
export interface BackendTls {
  readonly policy: Configured<BackendTlsPolicySpec>;
  readonly hostname: string;
  /** PEM; undefined: the system's roots. */
  readonly roots: string | undefined;
  readonly subjectAltNames: readonly { readonly type: 'dns' | 'uri'; readonly value: string }[];
}

/** The oldest policy for a port of a service, one that names the port before one for all. undefined: there is none, or none that can be used. */
export function backendTlsOf(service: Service, port: ServicePort, snapshot: MeshSnapshot): BackendTls | 'unusable' | undefined {
  const all = snapshot.gatewayApi.backendTlsPolicies.filter((policy) => policy.namespace === service.namespace && service.kind === 'Service');
  const targets = (policy: Configured<BackendTlsPolicySpec>, section: string | undefined) =>
    (policy.spec.targetRefs ?? []).some((ref) => (ref.kind ?? 'Service') === 'Service' && ref.name === service.name && ref.sectionName === section);
  const policy = (port.name ? all.find((one) => targets(one, port.name)) : undefined) ?? all.find((one) => targets(one, undefined));
  if (!policy) return undefined;
  if (problemOf(policy, snapshot)) return 'unusable';
  const { hostname = '', caCertificateRefs, subjectAltNames = [] } = policy.spec.validation ?? {};
  const names = subjectAltNames.map(({ type, hostname: name, uri }) =>
    type === 'URI' ? { type: 'uri' as const, value: uri ?? '' } : { type: 'dns' as const, value: name ?? '' },
  );
  return {
    policy,
    hostname,
    roots: caCertificateRefs?.length
      ? caCertificateRefs.map(({ name }) => snapshot.configMaps.get(`${policy.namespace}/${name}`)!['ca.crt']!).join('\n')
      : undefined,
    subjectAltNames: names.length > 0 ? names : [{ type: 'dns', value: hostname }],
  };
}

function problemOf(policy: Configured<BackendTlsPolicySpec>, snapshot: MeshSnapshot): Condition | undefined {
  const { caCertificateRefs = [], wellKnownCACertificates } = policy.spec.validation ?? {};
  for (const { kind = 'ConfigMap', name, group: ofGroup = '' } of caCertificateRefs) {
    if (ofGroup !== '' || kind !== 'ConfigMap') return failed('ResolvedRefs', 'InvalidKind', `roots are in ConfigMaps, not in ${kind}`);
    const problem = problemOfRoots(snapshot.configMaps.get(`${policy.namespace}/${name}`)?.['ca.crt']);
    if (problem !== undefined) return failed('ResolvedRefs', 'InvalidCACertificateRef', `ca.crt of the ConfigMap ${policy.namespace}/${name} ${problem}`);
  }
  if (caCertificateRefs.length === 0 && wellKnownCACertificates !== 'System')
    return failed('ResolvedRefs', 'InvalidCACertificateRef', 'caCertificateRefs, or wellKnownCACertificates: System, is required');
  return undefined;
}

/** For the status: a policy counts at the Gateways whose routes lead to its services. */
export function backendTlsStates(snapshot: MeshSnapshot, { routes }: Translation) {
  return snapshot.gatewayApi.backendTlsPolicies.map((policy) => {
    const hosts = new Set((policy.spec.targetRefs ?? []).map(({ name }) => `${name}.${policy.namespace}.svc.${snapshot.domain}`));
    const leadsThere = ({ route }: Translation['routes'][number]) =>
      (route.spec.rules ?? []).some((rule) =>
        (rule.backendRefs ?? []).some((ref) => {
          const backend = resolveBackend(ref, route, snapshot, snapshot.gatewayApi);
          return 'destination' in backend && hosts.has(backend.destination.host);
        }),
      );
    const ancestors = new Map<string, { group: string; kind: string; name: string; namespace: string }>();
    for (const state of routes.filter(leadsThere))
      for (const { ref } of state.parents) {
        if ((ref.kind ?? 'Gateway') !== 'Gateway') continue;
        const namespace = ref.namespace ?? state.route.namespace;
        ancestors.set(`${namespace}/${ref.name}`, { group, kind: 'Gateway', name: ref.name, namespace });
      }
    const problem = problemOf(policy, snapshot);
    const conditions = problem
      ? [failed('Accepted', 'NoValidCACertificate', problem.message), problem]
      : [condition('Accepted', 'Accepted'), condition('ResolvedRefs', 'ResolvedRefs')];
    return { policy, ancestors: [...ancestors.values()], conditions };
  });
}
