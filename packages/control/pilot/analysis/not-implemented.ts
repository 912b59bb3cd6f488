import { type AuthorizationPolicySpec, groupOf, isPlainObject, type Resource } from '@mizzen/api';

/**
 * What the schema takes and nothing acts on yet. It is said when such an object is written, so that nobody believes it to be in effect.
 * A line leaves this table when its behaviour arrives.
 */
const fields: Readonly<Record<string, readonly string[]>> = {
  VirtualService: ['spec.http.fault.delay.exponentialDelay', 'spec.http.fault.abort.http2Error', 'spec.http.match.statPrefix'],
  DestinationRule: [
    'tunnel',
    'tls.credentialName',
    'tls.caCertCredentialName',
    'outlierDetection.consecutiveErrors',
    'outlierDetection.outlierDetectionHttpErrorCodes',
  ].flatMap((field) => [`spec.trafficPolicy.${field}`, `spec.subsets.trafficPolicy.${field}`, `spec.trafficPolicy.portLevelSettings.${field}`]),
  ServiceEntry: ['spec.subjectAltNames'],
  Telemetry: [
    'spec.metrics',
    'spec.accessLogging',
    'spec.targetRef',
    'spec.targetRefs',
    'spec.tracing.customTags',
    'spec.tracing.match',
    'spec.tracing.useRequestIdForTraceSampling',
  ],
  Sidecar: ['spec.ingress.tls'],
};

const kindsWithoutEffect: Readonly<Record<string, string>> = {
  'networking.istio.io/WorkloadGroup': 'sidecars register without it',
  'networking.istio.io/ProxyConfig': 'proxies are configured by their command line',
  'extensions.istio.io/WasmPlugin': 'no plugin is loaded',
  'gateway.networking.k8s.io/UDPRoute': 'UDP is not routed yet',
};

/** Policies that somebody would rely on. What is not enforced is refused, not warned about: a silent gap would be a hole. */
const securityKinds = new Set(['AuthorizationPolicy', 'RequestAuthentication']);

export function notEnforced(resource: Resource): string | undefined {
  if (groupOf(resource.apiVersion) !== 'security.istio.io' || !securityKinds.has(resource.kind)) return undefined;
  if (resource.kind === 'AuthorizationPolicy' && isForTopics(resource.spec as AuthorizationPolicySpec)) return topicPolicyProblem(resource);
  return `${resource.kind} is not enforced by this version of Mizzen, so it is refused: requests would pass as if it were not there. PeerAuthentication (mutual TLS) is enforced.`;
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

export function notImplementedWarnings(resource: Resource): string[] {
  const group = groupOf(resource.apiVersion);
  const without = kindsWithoutEffect[`${group}/${resource.kind}`];
  if (without) return [`${resource.kind} is stored but has no effect yet: ${without}.`];
  if (group !== 'networking.istio.io' && group !== 'telemetry.istio.io') return [];
  return (fields[resource.kind] ?? []).filter((path) => isSet(resource, path.split('.'))).map((path) => `${path} is stored but has no effect yet.`);
}

function isSet(value: unknown, path: readonly string[]): boolean {
  if (path.length === 0) return value !== undefined && value !== null;
  if (Array.isArray(value)) return value.some((entry) => isSet(entry, path));
  return isPlainObject(value) && isSet(value[path[0]!], path.slice(1));
}
