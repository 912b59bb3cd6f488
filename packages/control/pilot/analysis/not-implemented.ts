import { type AuthorizationPolicySpec, groupOf, isPlainObject, type Resource } from '@mizzen/api';
import { readFilter } from '../envoy-filters/patches.ts';
import type { EnvoyFilterSpec } from '../envoy-filters/types.ts';
import { meshConfigName } from '../mesh-config.ts';
import { meshConfigNotes } from '../mesh-config-fields.ts';
import { rootNamespace } from '../root-namespace.ts';
import { fieldNotes } from './compatibility.ts';

/** Policies that somebody would rely on. What is not enforced is refused, not warned about: a silent gap would be a hole. */
const securityKinds = new Set(['AuthorizationPolicy', 'RequestAuthentication']);

export function notEnforced(resource: Resource): string | undefined {
  if (resource.kind === 'EnvoyFilter') return unenforcedFilter(resource);
  const refusal = refusalsByKind[`${groupOf(resource.apiVersion)}/${resource.kind}`]?.(resource.spec);
  if (refusal !== undefined) return `${resource.kind}: ${refusal}`;
  if (resource.kind === 'ConfigMap' && resource.metadata.namespace === rootNamespace && resource.metadata.name === meshConfigName) {
    const errors = meshConfigNotes((resource['data'] as Readonly<Record<string, unknown>> | undefined)?.['mesh']).filter(({ level }) => level === 'error');
    return errors.length === 0 ? undefined : `mesh configuration: ${errors.map(({ message }) => message).join('; ')}`;
  }
  if (groupOf(resource.apiVersion) !== 'security.istio.io' || !securityKinds.has(resource.kind)) return undefined;
  const spec = (resource.spec ?? {}) as AuthorizationPolicySpec;
  if (resource.kind === 'AuthorizationPolicy' && isForTopics(spec)) return topicPolicyProblem(resource);
  const target = [...(spec.targetRef ? [spec.targetRef] : []), ...(spec.targetRefs ?? [])].find(
    ({ group = '', kind }) => group !== 'gateway.networking.k8s.io' || kind !== 'Gateway',
  );
  return (
    target &&
    `${resource.kind}: targets of kind ${target.kind} are for waypoints, of which there are none, so the policy is refused. Use a selector for workloads, or a Gateway as target.`
  );
}

const memberOf = (value: unknown, name: string): unknown => (isPlainObject(value) ? value[name] : undefined);
const listIn = (value: unknown, name: string): readonly unknown[] => {
  const list = memberOf(value, name);
  return Array.isArray(list) ? list : [];
};

/** What objects of other kinds say about security that would not be enforced. */
const refusalsByKind: Readonly<Record<string, (spec: unknown) => string | undefined>> = {
  // Without FAIL_OPEN, requests must fail while a plugin cannot be loaded, and none is ever loaded.
  'extensions.istio.io/WasmPlugin': (spec) =>
    memberOf(spec, 'failStrategy') === 'FAIL_OPEN'
      ? undefined
      : 'plugins are not loaded, so what the plugin enforces would not be enforced. Write a filter with defineFilter, or set failStrategy: FAIL_OPEN to store the plugin without effect.',
  'networking.istio.io/Sidecar': (spec) =>
    listIn(spec, 'ingress').some((listener) => memberOf(listener, 'tls') !== undefined)
      ? 'spec.ingress.tls is not enforced: a PeerAuthentication decides which clients are accepted, and a Gateway or an Api has certificates of its own.'
      : undefined,
  'gateway.networking.k8s.io/BackendTLSPolicy': (spec) => {
    const foreign = listIn(spec, 'targetRefs').find((ref) => memberOf(ref, 'kind') !== 'Service' || (memberOf(ref, 'group') ?? '') !== '');
    if (foreign !== undefined)
      return `a target of kind ${String(memberOf(foreign, 'kind'))} is not served, so connections there would stay as they are: target a Service, or use a DestinationRule.`;
    const options = Object.keys((memberOf(spec, 'options') as object | undefined) ?? {});
    return options.length > 0 ? `the option ${JSON.stringify(options[0])} is not enforced: no options are supported.` : undefined;
  },
};

/** Filters that decide who may do what, or how often. */
const securityFilter = /auth(?!ority)|rbac|jwt|rate_?limit|csrf|bandwidth_limit|admission_control|connection_limit/i;

/** What an object has once it is stored. */
const unstored = {
  kind: 'EnvoyFilter',
  createdAt: '',
  revision: 0,
  generation: 0,
  origin: { source: 'api', name: '' },
  originFile: undefined,
  annotations: {},
} as const;

/** A patch that adds protection and has no effect is refused; any other without effect is a finding. */
function unenforcedFilter({ metadata, spec }: Resource): string | undefined {
  const filter = { name: metadata.name, namespace: metadata.namespace ?? '', spec: { ...((spec ?? {}) as EnvoyFilterSpec) }, ...unstored };
  const patches = filter.spec.configPatches ?? [];
  const problem = readFilter(filter).problems.find(({ index }) => {
    const { operation, value } = patches[index]?.patch ?? {};
    return operation !== 'REMOVE' && namesIn(value).some((name) => securityFilter.test(name));
  });
  return problem && `patch ${problem.index} adds protection that would not be enforced: ${problem.message}.`;
}

/** The names and types of the filters in a value, and the names of its fields (`rate_limits`, `typed_per_filter_config`), at any depth. */
function namesIn(value: unknown): string[] {
  if (Array.isArray(value)) return value.flatMap(namesIn);
  if (!isPlainObject(value)) return [];
  return Object.entries(value).flatMap(([key, entry]) =>
    typeof entry === 'string' ? (['name', '@type', 'type_url', 'typeUrl'].includes(key) ? [entry] : []) : [key, ...namesIn(entry)],
  );
}

/** Policies of topics are enforced: those whose targets are Components of Dapr's. */
export function isForTopics({ targetRef, targetRefs }: AuthorizationPolicySpec): boolean {
  const targets = [...(targetRef ? [targetRef] : []), ...(targetRefs ?? [])];
  return targets.length > 0 && targets.every(({ group, kind }) => group === 'dapr.io' && kind === 'Component');
}

/** What a policy of topics says that cannot be honoured: a condition that nobody looks at would let in whom it is to keep out. */
function topicPolicyProblem({ kind, spec }: Resource): string | undefined {
  const { action = 'ALLOW', rules = [] } = spec as AuthorizationPolicySpec;
  const refuse = (what: string) => `${kind}: ${what} is not enforced for topics, so the policy is refused.`;
  if (action !== 'ALLOW' && action !== 'DENY') return refuse(`action ${action}`);
  for (const rule of rules) {
    if ('when' in rule) return refuse('rules.when');
    for (const { source } of rule.from ?? [])
      for (const field of Object.keys(source ?? {})) if (field !== 'principals' && field !== 'namespaces') return refuse(`source.${field}`);
    for (const { operation } of rule.to ?? [])
      for (const field of Object.keys(operation ?? {})) if (field !== 'methods' && field !== 'paths') return refuse(`operation.${field}`);
  }
  return undefined;
}

/** Fields that are stored and that nothing acts on, with the reason. */
export function notImplementedWarnings(resource: Resource): string[] {
  const notes = fieldNotes[`${groupOf(resource.apiVersion)}/${resource.kind}`] ?? [];
  return notes
    .filter(({ effect, path }) => effect === 'none' && isSet(resource, path.replace(/\.\*$/, '').split('.')))
    .map(({ path, why }) => `${path.replace(/\.\*$/, '')} is stored but has no effect: ${why}.`);
}

function isSet(value: unknown, path: readonly string[]): boolean {
  if (path.length === 0) return value !== undefined && value !== null;
  if (path.length === 1 && path[0]!.endsWith('[1:]')) {
    const list = isPlainObject(value) ? value[path[0]!.slice(0, -'[1:]'.length)] : undefined;
    return Array.isArray(list) && list.length > 1;
  }
  if (Array.isArray(value)) return value.some((entry) => isSet(entry, path));
  return isPlainObject(value) && isSet(value[path[0]!], path.slice(1));
}
