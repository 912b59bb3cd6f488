import type { ServiceEntrySpec, ServiceSpec, WorkloadEntrySpec } from '@mizzen/api';
import { isUnixPath } from '@mizzen/common';
import type { StoredResource } from '../../galley/config-store.ts';
import { LabelIndex } from './label-index.ts';
import { type Instance, type Protocol, protocolOf, type Service, type ServicePort } from './service.ts';
import { registeredAnnotation, type WorkloadBindings } from './workload-bindings.ts';

/** Builds the registry's services, with their instances, from Service, ServiceEntry, WorkloadEntry and EndpointSlice objects. */
export interface RegistrySources {
  readonly services: readonly StoredResource[];
  readonly serviceEntries: readonly StoredResource[];
  readonly workloadEntries: readonly StoredResource[];
  readonly endpointSlices: readonly StoredResource[];
  /** What decides which labels and service account the entries of registered workloads may have. */
  readonly bindings: WorkloadBindings;
}

/** Set by registration on the WorkloadEntry of a sidecar, and by people on one that has a sidecar of its own. */
export const tlsModeLabel = 'security.istio.io/tlsMode';
export const workloadNameAnnotation = 'mizzen.dev/workload';
/** Istio's, which also ServiceEntries may carry. */
const trafficDistributionAnnotation = 'networking.istio.io/traffic-distribution';
export const unhealthyAnnotation = 'mizzen.dev/unhealthy';

export function buildServices(sources: RegistrySources, domain: string): Service[] {
  const workloads = new LabelIndex(
    sources.workloadEntries.flatMap((stored) => toWorkload(stored, sources.bindings)),
    ({ namespace }) => namespace,
    ({ labels }) => labels,
  );
  const slices = Map.groupBy(
    sources.endpointSlices,
    ({ key, resource }) => `${key.namespace}/${resource.metadata.labels?.['kubernetes.io/service-name'] ?? ''}`,
  );
  return [
    ...sources.services.map((stored) => fromService(stored, workloads, slices, domain)),
    ...sources.serviceEntries.flatMap((stored) => fromServiceEntry(stored, workloads)),
  ];
}

interface Workload {
  readonly name: string;
  readonly namespace: string;
  readonly spec: WorkloadEntrySpec;
  readonly labels: Readonly<Record<string, string>>;
  readonly isHealthy: boolean;
}

/** An entry that registration made is what the object that binds its service account says, not what the entry says; without such an object it is nothing. */
function toWorkload(stored: StoredResource, bindings: WorkloadBindings): Workload[] {
  const spec = stored.resource.spec as WorkloadEntrySpec;
  const { annotations, labels, name } = stored.resource.metadata;
  const { namespace } = stored.key;
  const isHealthy = annotations?.[unhealthyAnnotation] === undefined;
  if (annotations?.[registeredAnnotation] === undefined)
    return [{ name: annotations?.[workloadNameAnnotation] ?? name, namespace, spec, labels: { ...labels, ...spec.labels }, isHealthy }];
  const found = bindings.find({ namespace, name, serviceAccount: spec.serviceAccount || 'default', group: undefined, address: undefined });
  if (found === undefined || 'refusal' in found || found.binding.type !== 'sidecar') return [];
  const { binding } = found;
  return [{ name: binding.name, namespace, spec, labels: { ...binding.labels, [tlsModeLabel]: 'istio' }, isHealthy }];
}

function fromService(
  stored: StoredResource,
  workloads: LabelIndex<Workload>,
  endpointSlices: ReadonlyMap<string, readonly StoredResource[]>,
  domain: string,
): Service {
  const { name } = stored.resource.metadata;
  const { namespace } = stored.key;
  const spec = (stored.resource.spec ?? {}) as ServiceSpec;
  const ports = (spec.ports ?? []).map(
    (port): ServicePort => ({
      name: port.name ?? '',
      number: port.port,
      targetPort: port.targetPort ?? port.port,
      protocol: protocolOf(port.name, port.appProtocol, port.protocol),
    }),
  );
  const hasSelector = Object.keys(spec.selector ?? {}).length > 0;
  const selected = hasSelector ? workloads.matching(namespace, spec.selector) : [];
  const instances = [
    ...selected.map((workload) => toInstance(workload, ports)),
    ...(hasSelector ? [] : fromEndpointSlices(name, namespace, ports, endpointSlices.get(`${namespace}/${name}`) ?? [])),
  ];
  const isExternalName = spec.type === 'ExternalName' && spec.externalName !== undefined;
  return {
    hostname: `${name}.${namespace}.svc.${domain}`,
    name,
    namespace,
    kind: 'Service',
    ports,
    addresses: [spec.clusterIP, ...(spec.clusterIPs ?? [])].filter(
      (address, i, all) => address && address !== 'None' && all.indexOf(address) === i,
    ) as string[],
    isHeadless: spec.clusterIP === 'None',
    resolution: isExternalName ? 'dns' : 'static',
    isExternal: isExternalName,
    exportTo: undefined,
    trafficDistribution: stored.resource.metadata.annotations?.[trafficDistributionAnnotation] ?? spec.trafficDistribution,
    instances: isExternalName ? [plainInstance(spec.externalName!, name, namespace, ports)] : instances,
    origin: stored.origin,
  };
}

const resolutions = { NONE: 'none', STATIC: 'static', DNS: 'dns', DNS_ROUND_ROBIN: 'dnsOne', DYNAMIC_DNS: 'byName' } as const;

function fromServiceEntry(stored: StoredResource, workloads: LabelIndex<Workload>): Service[] {
  const spec = stored.resource.spec as ServiceEntrySpec;
  const { namespace } = stored.key;
  const ports = (spec.ports ?? []).map(
    (port): ServicePort => ({
      name: port.name,
      number: port.number,
      targetPort: port.targetPort ?? port.number,
      protocol: port.protocol
        ? ((port.protocol.toUpperCase() === 'HTTP_PROXY' ? 'HTTP' : port.protocol.toUpperCase()) as Protocol)
        : protocolOf(port.name, undefined, undefined),
    }),
  );
  const resolution = resolutions[spec.resolution ?? 'NONE'];
  const isExternal = spec.location !== 'MESH_INTERNAL';
  return (spec.hosts ?? []).map((hostname) => {
    let instances: Instance[];
    if (spec.workloadSelector) instances = workloads.matching(namespace, spec.workloadSelector.labels).map((workload) => toInstance(workload, ports));
    else if (spec.endpoints?.length)
      instances = spec.endpoints.map((endpoint, i) =>
        toInstance({ name: `${stored.resource.metadata.name}-${i}`, namespace, spec: endpoint, labels: endpoint.labels ?? {}, isHealthy: true }, ports),
      );
    else instances = resolution === 'dns' || resolution === 'dnsOne' ? [plainInstance(hostname, stored.resource.metadata.name, namespace, ports)] : [];
    return {
      hostname,
      name: stored.resource.metadata.name,
      namespace,
      kind: 'ServiceEntry',
      ports,
      addresses: (spec.addresses ?? []).map((address) => address.replace(address.includes(':') ? /\/128$/ : /\/32$/, '')),
      isHeadless: false,
      resolution,
      subjectAltNames: spec.subjectAltNames,
      isExternal,
      exportTo: spec.exportTo,
      instances,
      trafficDistribution: stored.resource.metadata.annotations?.[trafficDistributionAnnotation],
      origin: stored.origin,
    };
  });
}

function toInstance(workload: Workload, ports: readonly ServicePort[]): Instance {
  const { spec } = workload;
  return {
    workload: workload.name,
    namespace: workload.namespace,
    address: spec.address ?? '',
    ports: new Map(
      ports.flatMap((port): [number, number][] => {
        const found = workloadPort(spec.ports ?? {}, port);
        return found === undefined ? [] : [[port.number, found]];
      }),
    ),
    labels: workload.labels,
    serviceAccount: spec.serviceAccount ?? 'default',
    isHealthy: workload.isHealthy,
    hasSidecar: workload.labels[tlsModeLabel] === 'istio',
    locality: spec.locality ?? '',
    weight: spec.weight ?? 1,
  };
}

/**
 * The port of a workload that a port of a service is for. A named target is that port of the workload or none, as in Kubernetes: another one, of the service
 * port's name, may be for other callers. Else a workload entry names its ports by the target's number, or by the service port's name.
 */
function workloadPort(own: Readonly<Record<string, number>>, { name, targetPort }: ServicePort): number | undefined {
  const portOf = (key: string) => (Object.hasOwn(own, key) ? own[key] : undefined);
  if (typeof targetPort === 'string') return portOf(targetPort);
  return portOf(String(targetPort)) ?? portOf(name) ?? targetPort;
}

function plainInstance(address: string, workload: string, namespace: string, ports: readonly ServicePort[]): Instance {
  return {
    workload,
    namespace,
    address,
    ports: new Map(ports.map((port) => [port.number, typeof port.targetPort === 'number' ? port.targetPort : port.number])),
    labels: {},
    serviceAccount: '',
    isHealthy: true,
    hasSidecar: false,
    locality: '',
    weight: 1,
  };
}

interface EndpointSliceContent {
  readonly endpoints?: readonly { readonly addresses?: readonly string[]; readonly conditions?: { readonly ready?: boolean } }[];
  readonly ports?: readonly { readonly name?: string; readonly port?: number }[];
}

/** A Service without a selector takes its endpoints from the slices that name it, as in Kubernetes. */
function fromEndpointSlices(name: string, namespace: string, ports: readonly ServicePort[], slices: readonly StoredResource[]): Instance[] {
  return slices.flatMap((stored) => {
    const slice = stored.resource as unknown as EndpointSliceContent;
    const portMap = new Map(
      ports.map((port) => [
        port.number,
        slice.ports?.find((entry) => (entry.name ?? '') === port.name)?.port ?? (typeof port.targetPort === 'number' ? port.targetPort : port.number),
      ]),
    );
    return (slice.endpoints ?? []).flatMap((endpoint) =>
      // Kubernetes verifies them; another writer may not have.
      (endpoint.addresses ?? [])
        .filter((address) => !isUnixPath(address))
        .map((address): Instance => ({ ...plainInstance(address, name, namespace, ports), ports: portMap, isHealthy: endpoint.conditions?.ready !== false })),
    );
  });
}
