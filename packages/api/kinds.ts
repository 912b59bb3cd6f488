import { readFileSync } from 'node:fs';
import { closestName } from '@mizzen/common';
import { readSchema, type Schema } from './schema.ts';

/**
 * Every kind of resource that Mizzen takes: how it is named on the API, in which versions it is served, and its schema. Adding a kind
 * is a line in `names` (and its schema, where it is Mizzen's own).
 */
export interface Kind {
  readonly group: string;
  readonly kind: string;
  readonly plural: string;
  readonly singular: string;
  readonly shortNames: readonly string[];
  readonly isNamespaced: boolean;
  /** All served versions; the first is preferred and the one that is stored. Versions of one kind share one schema. */
  readonly versions: readonly string[];
  /** Columns of `kubectl get` between NAME and AGE. */
  readonly columns: readonly Column[];
}

export interface Column {
  readonly name: string;
  readonly type: 'string' | 'integer';
  /** Dotted path into the object. */
  readonly path: string;
}

interface NameEntry {
  readonly shortNames?: readonly string[];
  readonly plural?: string;
  readonly isClusterScoped?: boolean;
  readonly columns?: readonly Column[];
}

const column = (name: string, path: string): Column => ({ name, type: 'string', path });

const networking: Readonly<Record<string, NameEntry>> = {
  VirtualService: { shortNames: ['vs'], columns: [column('Gateways', 'spec.gateways'), column('Hosts', 'spec.hosts')] },
  DestinationRule: { shortNames: ['dr'], columns: [column('Host', 'spec.host')] },
  Gateway: { shortNames: ['gw'] },
  ServiceEntry: {
    shortNames: ['se'],
    plural: 'serviceentries',
    columns: [column('Hosts', 'spec.hosts'), column('Location', 'spec.location'), column('Resolution', 'spec.resolution')],
  },
  Sidecar: {},
  WorkloadEntry: { shortNames: ['we'], plural: 'workloadentries', columns: [column('Address', 'spec.address')] },
  WorkloadGroup: { shortNames: ['wg'] },
  ProxyConfig: {},
  EnvoyFilter: {},
};

const names: Readonly<Record<string, Readonly<Record<string, NameEntry>>>> = {
  '': {
    Namespace: { shortNames: ['ns'], isClusterScoped: true },
    Service: { shortNames: ['svc'], columns: [column('Type', 'spec.type'), column('Ports', 'spec.ports.*.port')] },
    Endpoints: { shortNames: ['ep'], plural: 'endpoints' },
    Pod: { shortNames: ['po'] },
    Secret: { columns: [column('Type', 'type')] },
    ConfigMap: { shortNames: ['cm'] },
    ServiceAccount: { shortNames: ['sa'] },
    Event: { shortNames: ['ev'] },
  },
  'discovery.k8s.io': { EndpointSlice: {} },
  'networking.istio.io': networking,
  'security.istio.io': {
    AuthorizationPolicy: { shortNames: ['ap'], plural: 'authorizationpolicies', columns: [column('Action', 'spec.action')] },
    PeerAuthentication: { shortNames: ['pa'], columns: [column('Mode', 'spec.mtls.mode')] },
    RequestAuthentication: { shortNames: ['ra'] },
  },
  'telemetry.istio.io': { Telemetry: { shortNames: ['telemetry'], plural: 'telemetries' } },
  'extensions.istio.io': { WasmPlugin: {} },
  'gateway.networking.k8s.io': {
    GatewayClass: { shortNames: ['gc'], plural: 'gatewayclasses', isClusterScoped: true, columns: [column('Controller', 'spec.controllerName')] },
    Gateway: { shortNames: ['gtw'], columns: [column('Class', 'spec.gatewayClassName')] },
    HTTPRoute: { columns: [column('Hostnames', 'spec.hostnames')] },
    GRPCRoute: {},
    TLSRoute: {},
    TCPRoute: {},
    UDPRoute: {},
    ListenerSet: {},
    BackendTLSPolicy: { plural: 'backendtlspolicies' },
    ReferenceGrant: { shortNames: ['refgrant'] },
  },
  'cert-manager.io': {
    Issuer: { columns: [column('Server', 'spec.acme.server'), column('Ready', 'status.conditions.0.status')] },
    ClusterIssuer: { isClusterScoped: true, columns: [column('Server', 'spec.acme.server'), column('Ready', 'status.conditions.0.status')] },
    Certificate: {
      shortNames: ['cert', 'certs'],
      columns: [column('Ready', 'status.conditions.0.status'), column('Secret', 'spec.secretName'), column('Until', 'status.notAfter')],
    },
  },
  'dapr.io': {
    Component: { columns: [column('Type', 'spec.type')] },
    Subscription: { columns: [column('Pubsub', 'spec.pubsubname'), column('Topic', 'spec.topic')] },
    Resiliency: { plural: 'resiliencies' },
  },
  'mizzen.dev': {
    Workload: {
      shortNames: ['wl'],
      columns: [column('Service-Account', 'spec.serviceAccount'), column('Replicas', 'spec.replicas'), column('Ready', 'status.readyReplicas')],
    },
    Api: { columns: [column('Placement', 'spec.placement'), column('Hosts', 'spec.hosts'), column('Version', 'spec.version')] },
    MessageRoute: { shortNames: ['mr'], columns: [column('Topic', 'spec.topic'), column('Subscriber', 'spec.subscriber.service')] },
    Consumer: { columns: [column('Groups', 'spec.groups')] },
    Credential: { shortNames: ['cred'], columns: [column('Consumer', 'spec.consumer'), column('Expires', 'spec.expires')] },
  },
};

/** Kinds whose schemas are written by hand, in ./schemas. */
const ownKinds = [
  ...['Workload', 'Api', 'Consumer', 'Credential', 'MessageRoute'].map((kind) => ({ group: 'mizzen.dev', version: 'v1alpha1', kind })),
  ...['Component', 'Subscription', 'Resiliency'].map((kind) => ({ group: 'dapr.io', version: 'v1alpha1', kind })),
  { group: 'dapr.io', version: 'v2alpha1', kind: 'Subscription' },
];

/** Kinds that are known to Mizzen's users but mean nothing to it, with what to use instead. */
const foreignKinds: Readonly<Record<string, string>> = {
  Deployment: 'Mizzen does not run containers: describe the process as a mizzen.dev/v1alpha1 Workload instead.',
  StatefulSet: 'Mizzen does not run containers: describe the process as a mizzen.dev/v1alpha1 Workload instead.',
  DaemonSet: 'Mizzen does not run containers: describe the process as a mizzen.dev/v1alpha1 Workload instead.',
  Ingress: 'Use a networking.istio.io/v1 Gateway with a VirtualService instead.',
};

function buildKinds(): Kind[] {
  const index = JSON.parse(readFileSync(new URL('gen/index.json', import.meta.url), 'utf8')) as { group: string; version: string; kind: string }[];
  const versions = new Map<string, string[]>();
  for (const { group, version, kind } of [...index, ...ownKinds]) {
    const key = `${group}/${kind}`;
    versions.set(key, [...(versions.get(key) ?? []), version]);
  }
  const kinds: Kind[] = [];
  for (const [group, entries] of Object.entries(names)) {
    for (const [kind, entry] of Object.entries(entries)) {
      const singular = kind.toLowerCase();
      kinds.push({
        group,
        kind,
        singular,
        plural: entry.plural ?? `${singular}s`,
        shortNames: entry.shortNames ?? [],
        isNamespaced: !entry.isClusterScoped,
        versions: versions.get(`${group}/${kind}`) ?? [],
        columns: entry.columns ?? [],
      });
    }
  }
  return kinds;
}

/** All kinds, in the order of `names`. */
export const kinds: readonly Kind[] = buildKinds();

const byGroupKind = new Map(kinds.map((kind) => [`${kind.group}/${kind.kind}`, kind]));
const byGroupPlural = new Map(kinds.map((kind) => [`${kind.group}/${kind.plural}`, kind]));

export function findKind(group: string, kind: string): Kind | undefined {
  return byGroupKind.get(`${group}/${kind}`);
}

export function findKindByPlural(group: string, plural: string): Kind | undefined {
  return byGroupPlural.get(`${group}/${plural}`);
}

/** The `apiVersion` in which a kind is stored and shown by default. */
export function preferredApiVersion(kind: Kind): string {
  return kind.group ? `${kind.group}/${kind.versions[0]}` : kind.versions[0]!;
}

/**
 * Finds a kind by what a person types: `virtualservices`, `vs`, `VirtualService`, or with its group, `gateways.networking.istio.io`.
 * Where two groups share a name, Istio's wins, since it stands first.
 */
export function findKindByWord(word: string): Kind | undefined {
  const [name = '', ...rest] = word.toLowerCase().split('.');
  const group = rest.join('.');
  return kinds.find(
    (kind) => (rest.length === 0 || kind.group === group) && (kind.plural === name || kind.singular === name || kind.shortNames.includes(name)),
  );
}

/** Why an `apiVersion` and `kind` are not taken, as a sentence with the remedy. */
export function explainUnknownKind(apiVersion: string, kind: string): string {
  const foreign = foreignKinds[kind];
  if (foreign) return `kind ${kind} is not taken. ${foreign}`;
  const sameKind = kinds.filter((candidate) => candidate.kind === kind);
  if (sameKind.length > 0) {
    const served = sameKind.flatMap((candidate) => candidate.versions.map((version) => (candidate.group ? `${candidate.group}/${version}` : version)));
    return `kind ${kind} is not served as apiVersion "${apiVersion}". Use ${served.join(' or ')}.`;
  }
  const near = closestName(
    kind,
    kinds.map((candidate) => candidate.kind),
  );
  return near
    ? `unknown kind "${kind}": did you mean ${near}?`
    : `unknown kind "${kind}" (apiVersion ${apiVersion}). \`mizzen api-resources\` lists what is taken.`;
}

const schemas = new Map<string, Schema>();

/** The schema of a kind's own fields (everything but apiVersion, kind and metadata). Read once, when first asked for. */
export function schemaOf(kind: Kind): Schema {
  const key = `${kind.group}/${kind.kind}`;
  let schema = schemas.get(key);
  if (!schema) {
    const isOwn = ownKinds.some((own) => own.group === kind.group && own.kind === kind.kind);
    schema = readSchema(isOwn ? `schemas/${kind.kind}.json` : `gen/${kind.group || 'core'}/${kind.versions[0]}/${kind.kind}.json`);
    schemas.set(key, schema);
  }
  return schema;
}

const objectMeta: Schema = {
  type: 'object',
  properties: {
    name: { type: 'string' },
    generateName: { type: 'string' },
    namespace: { type: 'string' },
    labels: { type: 'object', additionalProperties: { type: 'string' } },
    annotations: { type: 'object', additionalProperties: { type: 'string' } },
    uid: { type: 'string' },
    resourceVersion: { type: 'string' },
    generation: { type: 'number' },
    selfLink: { type: 'string' },
    creationTimestamp: { type: 'string' },
    deletionTimestamp: { type: 'string' },
    deletionGracePeriodSeconds: { type: 'number' },
    finalizers: { type: 'array', items: { type: 'string' } },
    managedFields: { type: 'array', items: { 'x-kubernetes-preserve-unknown-fields': true } },
    ownerReferences: { type: 'array', items: { 'x-kubernetes-preserve-unknown-fields': true } },
  },
};

/** The schema of a whole object of this kind, as the API publishes it and as decoding checks it. */
export function objectSchemaOf(kind: Kind): Schema {
  const own = schemaOf(kind);
  return {
    type: 'object',
    description: own.description ?? `${kind.kind} (${kind.group || 'core'})`,
    properties: { apiVersion: { type: 'string' }, kind: { type: 'string' }, metadata: objectMeta, ...own.properties },
    required: ['apiVersion', 'kind', 'metadata', ...(own.required ?? [])],
  };
}

/** Whether a kind has a `status` that is written apart from the rest (the status subresource). */
export function schemaHasStatus(kind: Kind): boolean {
  return schemaOf(kind).properties?.['status'] !== undefined;
}
