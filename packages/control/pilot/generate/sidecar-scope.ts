import type { ConnectionPoolSpec, DestinationSpec, EgressListenerSpec, SidecarSpec } from '@mizzen/api';
import { unixPathOf } from '@mizzen/common';
import type { OutboundTrafficMode } from '../mesh-config.ts';
import type { InboundPort, ProxyView } from '../proxy-view.ts';
import { type Service, selects } from '../registry/service.ts';
import { type Configured, hostMatches, isVisible, type MeshSnapshot, rootNamespace } from '../snapshot.ts';

/** What a Sidecar makes of a proxy's view of the mesh (istio/api sidecar.proto): which services it knows, and what it takes for its workload. */

/** The workload's own Sidecar, else its namespace's, else the root namespace's. Gateways have none. */
export function sidecarOf(view: ProxyView, snapshot: MeshSnapshot): Configured<SidecarSpec> | undefined {
  if (view.type === 'gateway') return undefined;
  const labelsOf = ({ spec }: Configured<SidecarSpec>) => spec.workloadSelector?.labels ?? {};
  const isForAll = (sidecar: Configured<SidecarSpec>) => Object.keys(labelsOf(sidecar)).length === 0;
  const own = snapshot.sidecars.filter((sidecar) => sidecar.namespace === view.namespace);
  return (
    own.find((sidecar) => !isForAll(sidecar) && selects(labelsOf(sidecar), view.labels)) ??
    own.find(isForAll) ??
    snapshot.sidecars.find((sidecar) => sidecar.namespace === rootNamespace && isForAll(sidecar))
  );
}

/** What becomes of a workload's calls to hosts that the mesh does not know: its Sidecar's word, else the mesh's. */
export function outboundTrafficMode(view: ProxyView, snapshot: MeshSnapshot): OutboundTrafficMode {
  const policy = sidecarOf(view, snapshot)?.spec.outboundTrafficPolicy;
  // The message is there without a mode: protobuf's first value, which is REGISTRY_ONLY.
  return policy === undefined ? snapshot.meshConfig.outboundTrafficPolicy : (policy.mode ?? 'REGISTRY_ONLY');
}

/** Where calls to such hosts go instead of where they were going. */
export function egressProxyOf(view: ProxyView, snapshot: MeshSnapshot): { readonly destination: DestinationSpec; readonly namespace: string } | undefined {
  const sidecar = sidecarOf(view, snapshot);
  const destination = sidecar?.spec.outboundTrafficPolicy?.egressProxy;
  return destination && outboundTrafficMode(view, snapshot) === 'ALLOW_ANY' ? { destination, namespace: sidecar.namespace } : undefined;
}

/** The services that a proxy is told of, with the ports that it may call. */
export function visibleServices(view: ProxyView, snapshot: MeshSnapshot): Service[] {
  const exported = [...snapshot.servicesByHostname.values()].filter((service) => isVisible(service.exportTo, service.namespace, view.namespace));
  const egress = sidecarOf(view, snapshot)?.spec.egress;
  return egress?.length ? exported.flatMap((service) => importedBy(egress, service, view.namespace)) : exported;
}

/** The services that one egress listener of the Sidecar names. */
export function servicesOfListener(listener: EgressListenerSpec, view: ProxyView, snapshot: MeshSnapshot): Service[] {
  const exported = [...snapshot.servicesByHostname.values()].filter((service) => isVisible(service.exportTo, service.namespace, view.namespace));
  return exported.flatMap((service) => importedBy([listener], service, view.namespace));
}

/** The service with those of its ports that some listener has; nothing when none does. */
function importedBy(listeners: readonly EgressListenerSpec[], service: Service, namespace: string): Service[] {
  const naming = listeners.filter(({ hosts }) => (hosts ?? []).some((host) => imports(host, service.hostname, service.namespace, namespace)));
  if (naming.length === 0) return [];
  if (naming.some(({ port }) => !port?.number)) return [service];
  const ports = service.ports.filter(({ number }) => naming.some(({ port }) => port!.number === number));
  return ports.length === 0 ? [] : [{ ...service, ports }];
}

/** `NAMESPACE/HOST`: `.` is the Sidecar's own namespace, `*` any, `~` none. */
export function imports(pattern: string, hostname: string, ofNamespace: string, ownNamespace: string): boolean {
  const slash = pattern.indexOf('/');
  const [namespace, host] = slash < 0 ? ['*', pattern] : [pattern.slice(0, slash), pattern.slice(slash + 1)];
  if (namespace === '~') return false;
  const isThere = namespace === '*' || (namespace === '.' ? ownNamespace : namespace) === ofNamespace;
  return isThere && hostMatches(host, hostname);
}

/** Whether a host that only a VirtualService names is among those that a proxy is told of. */
export function importsHost(hostname: string, namespace: string, view: ProxyView, snapshot: MeshSnapshot): boolean {
  const egress = sidecarOf(view, snapshot)?.spec.egress;
  return !egress?.length || egress.some(({ hosts }) => (hosts ?? []).some((host) => imports(host, hostname, namespace, view.namespace)));
}

/** The proxy as its Sidecar's `ingress` has it: the ports that it takes, and where the application listens for them. */
export function withIngress(view: ProxyView, snapshot: MeshSnapshot): ProxyView {
  const ingress = sidecarOf(view, snapshot)?.spec.ingress;
  if (!ingress?.length) return view;
  const inbound = ingress.flatMap((listener): InboundPort[] => {
    const port = listener.port?.number;
    if (port === undefined) return [];
    const declared = view.inbound.find((candidate) => candidate.port === port);
    return [
      {
        name: listener.port?.name ?? declared?.name ?? '',
        port,
        protocol: listener.port?.protocol ?? declared?.protocol,
        listen: declared?.listen ?? `${hostText(listener.bind ?? view.address)}:${port}`,
        app: appOf(listener.defaultEndpoint, view) ?? declared?.app ?? `127.0.0.1:${port}`,
      },
    ];
  });
  return { ...view, inbound };
}

/** Limits towards the application: what is said of the port, else of all. */
export function inboundPoolOf(port: number, view: ProxyView, snapshot: MeshSnapshot): ConnectionPoolSpec | undefined {
  const sidecar = sidecarOf(view, snapshot)?.spec;
  return sidecar?.ingress?.find((listener) => listener.port?.number === port)?.connectionPool ?? sidecar?.inboundConnectionPool;
}

/** Listeners that the application calls instead of having its calls captured: `bind` and port. */
export function boundListeners(view: ProxyView, snapshot: MeshSnapshot): BoundListener[] {
  return (sidecarOf(view, snapshot)?.spec.egress ?? []).flatMap((listener) => {
    const path = unixPathOf(listener.bind ?? '');
    if (path !== undefined) return [{ listener, address: path, port: 0, name: listener.bind! }];
    const port = listener.port?.number;
    if (port === undefined || (listener.bind === undefined && listener.captureMode !== 'NONE')) return [];
    const address = listener.bind || '127.0.0.1';
    return [{ listener, address, port, name: `${address}_${port}` }];
  });
}

export interface BoundListener {
  readonly listener: EgressListenerSpec;
  /** An IP address, or the path of a Unix socket. */
  readonly address: string;
  /** 0: of a Unix socket, on which the services are called by all their ports. */
  readonly port: number;
  /** Of the listener, and of its route table. */
  readonly name: string;
}

const hostText = (address: string) => (address.includes(':') ? `[${address}]` : address);

/** `127.0.0.1:8080`, `0.0.0.0:8080` (the workload's own address), `unix:///path`. */
function appOf(endpoint: string | undefined, view: ProxyView): string | undefined {
  if (endpoint === undefined || endpoint === '') return undefined;
  return endpoint.replace(/^0\.0\.0\.0:/, `${hostText(view.address)}:`);
}
