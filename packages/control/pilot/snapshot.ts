import type {
  ApiSpec,
  AuthorizationPolicySpec,
  ComponentSpec,
  ConsumerSpec,
  CredentialSpec,
  DestinationRuleSpec,
  GatewaySpec,
  MessageRouteSpec,
  PeerAuthenticationSpec,
  RequestAuthenticationSpec,
  ResiliencySpec,
  SidecarSpec,
  SubscriptionSpec,
  VirtualServiceSpec,
} from '@mizzen/api';
import type { Origin } from '@mizzen/common';
import type { BrokerApp } from '@mizzen/envoy-api';
import type { OwnedChallenge } from '../certificates/certificate-controller.ts';
import type { JwksResolver } from '../citadel/jwks-resolver.ts';
import type { StoredResource } from '../galley/config-store.ts';
import { originFileAnnotation } from '../galley/directory-source.ts';
import type { ConsumerTable } from './apis/consumer-table.ts';
import { DocumentReader } from './apis/documents.ts';
import type { ResolvedApi } from './apis/resolved-api.ts';
import type { EnvoyFilterSpec } from './envoy-filters/types.ts';
import { type GatewayApiResources, readGatewayApi } from './gateway-api/resources.ts';
import type { MeshConfig } from './mesh-config.ts';
import type { ConfigReader } from './quarantine.ts';
import { type AutoAddress, autoAddresses } from './registry/auto-addresses.ts';
import { buildServices } from './registry/build-services.ts';
import type { Service } from './registry/service.ts';
import { readBindingObjects, type WorkloadBinding, WorkloadBindings } from './registry/workload-bindings.ts';
import type { TelemetrySpec } from './telemetry-config.ts';

/**
 * Everything that generation reads, at one revision and immutable: a push never sees half of a change.
 */
export interface MeshSnapshot {
  readonly revision: number;
  readonly trustDomain: string;
  readonly domain: string;
  readonly services: readonly Service[];
  readonly servicesByHostname: ReadonlyMap<string, Service>;
  readonly virtualServices: readonly Configured<VirtualServiceSpec>[];
  readonly destinationRules: readonly Configured<DestinationRuleSpec>[];
  readonly gateways: readonly Configured<GatewaySpec>[];
  readonly peerAuthentications: readonly Configured<PeerAuthenticationSpec>[];
  readonly sidecars: readonly Configured<SidecarSpec>[];
  readonly authorizationPolicies: readonly Configured<AuthorizationPolicySpec>[];
  /** Of issuers whose keys are fetched. */
  readonly keySets: Pick<JwksResolver, 'keysOf' | 'problemOf'>;
  readonly requestAuthentications: readonly Configured<RequestAuthenticationSpec>[];
  readonly envoyFilters: readonly Configured<EnvoyFilterSpec>[];
  readonly meshConfig: MeshConfig;
  readonly gatewayApi: GatewayApiResources;
  /** Addresses of services that have none of their own, by host name. */
  readonly autoAddresses: ReadonlyMap<string, AutoAddress>;
  /** What gateways answer to ACME servers that ask whether names are theirs. */
  readonly challenges: readonly OwnedChallenge[];
  readonly secrets: ReadonlyMap<string, Readonly<Record<string, string>>>;
  readonly configMaps: ReadonlyMap<string, Readonly<Record<string, string>>>;
  readonly apiConfigs: readonly Configured<ApiSpec>[];
  readonly consumerConfigs: readonly Configured<ConsumerSpec>[];
  readonly credentialConfigs: readonly Configured<CredentialSpec>[];
  readonly messaging: MessagingResources;
  readonly telemetries: readonly Configured<TelemetrySpec>[];
  /** Those that can be honoured, with what they refer to. */
  readonly apis: readonly ResolvedApi[];
  readonly consumers: ConsumerTable;
  /** What binds service accounts to gateways. */
  readonly gatewayBindings: readonly WorkloadBinding[];
  /** Paths of files that resources name, within the folder that is followed. */
  readonly documents: DocumentReader;
  /** `host:port` of the mesh's own broker; undefined: there is none. */
  readonly brokerAddress: string | undefined;
}

/** A resource as generation uses it: its spec, its identity and where it came from. */
export interface Configured<Spec> {
  readonly kind: string;
  readonly name: string;
  readonly namespace: string;
  readonly createdAt: string;
  readonly revision: number;
  /** Of the object's spec, as its status says which it speaks of. */
  readonly generation: number;
  readonly spec: Spec;
  readonly origin: Origin;
  /** The file that it was written in, where the control plane has read it from one. */
  readonly originFile: string | undefined;
  readonly annotations: Readonly<Record<string, string>>;
}

export interface Scoped<Spec> extends Configured<Spec> {
  /** App ids; none: all. */
  readonly scopes: readonly string[];
}

export interface MessagingResources {
  readonly components: readonly Scoped<ComponentSpec>[];
  readonly subscriptions: readonly Scoped<SubscriptionSpec>[];
  readonly resiliencies: readonly Scoped<ResiliencySpec>[];
  readonly routes: readonly Configured<MessageRouteSpec>[];
  /** The app ids that objects bind to service accounts. */
  readonly apps: readonly BrokerApp[];
}

export { rootNamespace } from './root-namespace.ts';

export async function takeSnapshot(
  store: ConfigReader,
  trustDomain: string,
  meshConfig: MeshConfig,
  filesRoot: string | undefined,
  brokerAddress: string | undefined,
  keySets: MeshSnapshot['keySets'],
  domain = 'cluster.local',
): Promise<MeshSnapshot> {
  const list = async (group: string, kind: string) => (await store.list(group, kind)).items;
  const networking = 'networking.istio.io';
  const bindings = new WorkloadBindings(await readBindingObjects(store));
  const services = buildServices(
    {
      services: await list('', 'Service'),
      serviceEntries: await list(networking, 'ServiceEntry'),
      workloadEntries: await list(networking, 'WorkloadEntry'),
      endpointSlices: await list('discovery.k8s.io', 'EndpointSlice'),
      bindings,
    },
    domain,
  );
  const servicesByHostname = new Map<string, Service>();
  for (const service of services) if (!servicesByHostname.has(service.hostname)) servicesByHostname.set(service.hostname, service);
  const secrets = (await list('', 'Secret')).map(
    (stored) => [`${stored.key.namespace}/${stored.key.name}`, (stored.resource['data'] ?? {}) as Record<string, string>] as const,
  );
  const own = 'mizzen.dev';
  const configMaps = new Map(
    (await list('', 'ConfigMap')).map(
      (stored) => [`${stored.key.namespace}/${stored.key.name}`, (stored.resource['data'] ?? {}) as Record<string, string>] as const,
    ),
  );
  return {
    revision: store.revision(),
    trustDomain,
    domain,
    services,
    servicesByHostname,
    virtualServices: (await list(networking, 'VirtualService')).map(configured<VirtualServiceSpec>).sort(byAge),
    destinationRules: (await list(networking, 'DestinationRule')).map(configured<DestinationRuleSpec>).sort(byAge),
    gateways: (await list(networking, 'Gateway')).map(configured<GatewaySpec>).sort(byAge),
    peerAuthentications: (await list('security.istio.io', 'PeerAuthentication')).map(configured<PeerAuthenticationSpec>).sort(byAge),
    authorizationPolicies: (await list('security.istio.io', 'AuthorizationPolicy')).map(configured<AuthorizationPolicySpec>).sort(byAge),
    keySets,
    requestAuthentications: (await list('security.istio.io', 'RequestAuthentication')).map(configured<RequestAuthenticationSpec>).sort(byAge),
    envoyFilters: (await list(networking, 'EnvoyFilter')).map(configured<EnvoyFilterSpec>).sort(byAge),
    sidecars: (await list(networking, 'Sidecar')).map(configured<SidecarSpec>).sort(byAge),
    meshConfig,
    gatewayApi: await readGatewayApi(store, configured, byAge),
    autoAddresses: autoAddresses([...servicesByHostname.values()]),
    challenges: [],
    secrets: new Map(secrets),
    configMaps,
    apiConfigs: (await list(own, 'Api')).map(configured<ApiSpec>).sort(byAge),
    consumerConfigs: (await list(own, 'Consumer')).map(configured<ConsumerSpec>).sort(byAge),
    credentialConfigs: (await list(own, 'Credential')).map(configured<CredentialSpec>).sort(byAge),
    telemetries: (await list('telemetry.istio.io', 'Telemetry')).map(configured<TelemetrySpec>).sort(byAge),
    apis: [],
    messaging: {
      components: (await list('dapr.io', 'Component')).map(scoped<ComponentSpec>).sort(byAge),
      subscriptions: (await list('dapr.io', 'Subscription')).map(scoped<SubscriptionSpec>).sort(byAge),
      resiliencies: (await list('dapr.io', 'Resiliency')).map(scoped<ResiliencySpec>).sort(byAge),
      routes: (await list(own, 'MessageRoute')).map(configured<MessageRouteSpec>).sort(byAge),
      apps: bindings.apps(),
    },
    consumers: { consumers: [] },
    gatewayBindings: bindings.gateways(),
    documents: new DocumentReader(filesRoot, configMaps),
    brokerAddress,
  };
}

const noAnnotations: Readonly<Record<string, string>> = {};

function configured<Spec>(stored: StoredResource): Configured<Spec> {
  return {
    kind: stored.key.kind,
    name: stored.key.name,
    namespace: stored.key.namespace,
    createdAt: stored.resource.metadata.creationTimestamp ?? '',
    revision: stored.revision,
    generation: stored.resource.metadata.generation ?? 1,
    spec: (stored.resource.spec ?? {}) as Spec,
    origin: stored.origin,
    originFile: stored.resource.metadata.annotations?.[originFileAnnotation],
    annotations: stored.resource.metadata.annotations ?? noAnnotations,
  };
}

/** Dapr's kinds keep their scopes beside the spec. */
function scoped<Spec>(stored: StoredResource): Scoped<Spec> {
  const scopes = stored.resource['scopes'];
  return { ...configured<Spec>(stored), scopes: Array.isArray(scopes) ? (scopes as string[]) : [] };
}

/** The oldest first, then by name: where two objects claim one thing, the older one wins, as in Istio. */
function byAge(a: Configured<unknown>, b: Configured<unknown>): number {
  const key = (object: Configured<unknown>) => `${object.createdAt}/${object.namespace}/${object.name}`;
  return key(a) < key(b) ? -1 : 1;
}

/** The full host name of what a resource in `namespace` calls `host`: short names are of the resource's own namespace. */
export function resolveHost(host: string, namespace: string, snapshot: MeshSnapshot): string {
  if (host.includes('.') || host === '*') {
    if (snapshot.servicesByHostname.has(host)) return host;
    const [name, hostNamespace, ...rest] = host.split('.');
    if (rest.length === 0 || (rest.length === 1 && rest[0] === 'svc')) {
      const full = `${name}.${hostNamespace}.svc.${snapshot.domain}`;
      if (snapshot.servicesByHostname.has(full)) return full;
    }
    return host;
  }
  return `${host}.${namespace}.svc.${snapshot.domain}`;
}

/** Whether `host` is covered by `pattern`, which may be `*` or start with `*.`. */
export function hostMatches(pattern: string, host: string): boolean {
  if (pattern === '*' || pattern === host) return true;
  return pattern.startsWith('*') && host.endsWith(pattern.slice(1)) && host.length > pattern.length - 1;
}

/** All patterns that cover a host, the longest first: itself, the wildcards of its parent domains, and `*`. */
export function patternsFor(host: string): string[] {
  const patterns = [host];
  for (let dot = host.indexOf('.'); dot >= 0; dot = host.indexOf('.', dot + 1)) if (dot > 0) patterns.push(`*${host.slice(dot)}`);
  return [...new Set([...patterns, '*'])];
}

/** Whether a resource of `namespace` that is exported to `exportTo` is seen in `viewer`. */
export function isVisible(exportTo: readonly string[] | undefined, namespace: string, viewer: string): boolean {
  return !exportTo?.length || exportTo.includes('*') || (exportTo.includes('.') && namespace === viewer) || exportTo.includes(viewer);
}
