import { create } from '@bufbuild/protobuf';
import { durationFromMs } from '@mizzen/envoy-api';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { apiFilters, apisOf } from '../apis/listener-filters.ts';
import type { InboundPort, ProxyView } from '../proxy-view.ts';
import { mayBeHttp, protocolOf } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { tracingFor } from '../telemetry-config.ts';
import { bytesTo } from './byte-routes.ts';
import { capturedInboundListeners } from './captured-inbound.ts';
import { capturedOutboundListeners } from './captured-outbound.ts';
import { connectionManager, httpInspector, listenAddress, socketAddress, tlsInspector } from './connection-manager.ts';
import { implementedService, inboundChains } from './inbound-chains.ts';
import { inboundExtras } from './inbound-extras.ts';
import { inboundClusterName, outboundRouteName, splitAddress } from './names.ts';
import { peerAuthenticationMode } from './peer-authentication.ts';
import { publicListeners } from './public-listeners.ts';
import { type BoundListener, boundListeners, servicesOfListener } from './sidecar-scope.ts';
import { ads } from './tls-contexts.ts';

/**
 * LDS for a sidecar. What is called explicitly has listeners of its own: one outbound, and one for each inbound port. Where the kernel
 * captures, virtual listeners take everything and hand it on.
 */
export function sidecarListeners(view: ProxyView, snapshot: MeshSnapshot): Listener[] {
  return [
    ...(view.outbound ? [outboundListener(view.outbound, view, snapshot)] : []),
    ...boundListeners(view, snapshot).flatMap((bound) => boundListener(bound, view, snapshot)),
    ...publicListeners(view, snapshot),
    ...(view.capture ? capturedOutboundListeners(view, view.capture, snapshot) : []),
    ...(view.capture?.inboundPort === undefined
      ? view.inbound.map((port) => inboundListener(port, view, snapshot))
      : capturedInboundListeners(view, { ...view.capture, inboundPort: view.capture.inboundPort }, snapshot)),
  ];
}

function outboundListener(listen: string, view: ProxyView, snapshot: MeshSnapshot): Listener {
  const { address, port } = splitAddress(listen);
  return create(ListenerSchema, {
    name: `${address}_${port}`,
    address: socketAddress(address, port),
    trafficDirection: 2,
    filterChains: [{ filters: [outboundHttp(`outbound_${listen}`, outboundRouteName, view, snapshot)] }],
  });
}

function outboundHttp(statPrefix: string, routeConfigName: string, view: ProxyView, snapshot: MeshSnapshot) {
  return connectionManager({
    statPrefix,
    routes: { case: 'rds', value: { configSource: ads, routeConfigName } },
    direction: 'outbound',
    isTls: false,
    filters: apiFilters(apisOf(view, snapshot).client),
    tracing: tracingFor(view, snapshot),
  });
}

/** One that a Sidecar binds for its workload: HTTP by the host that is named, bytes to the first service that it lists. */
function boundListener({ listener, address, port, name }: BoundListener, view: ProxyView, snapshot: MeshSnapshot): Listener[] {
  const services = servicesOfListener(listener, view, snapshot);
  const protocol = protocolOf(listener.port?.name, listener.port?.protocol, undefined);
  const first = services
    .flatMap((service) => service.ports.map((candidate) => ({ service, candidate })))
    .find(({ candidate }) => (port === 0 ? !mayBeHttp(candidate.protocol) : candidate.number === port));
  const filter = mayBeHttp(protocol)
    ? outboundHttp(`outbound_${name}`, name, view, snapshot)
    : first && bytesTo(first.service, first.candidate, undefined, view, snapshot).filter;
  if (filter === undefined) return [];
  return [create(ListenerSchema, { name, address: listenAddress(address, port), trafficDirection: 2, filterChains: [{ filters: [filter] }] })];
}

function inboundListener(inbound: InboundPort, view: ProxyView, snapshot: MeshSnapshot): Listener {
  const { address, port } = splitAddress(inbound.listen);
  const mode = peerAuthenticationMode(view.namespace, view.labels, inbound.port, snapshot);
  const { service, protocol } = implementedService(inbound, view, snapshot);
  const isAuto = protocol === 'AUTO';
  return create(ListenerSchema, {
    name: `inbound_${address}_${port}`,
    address: socketAddress(address, port),
    trafficDirection: 1,
    listenerFilters: [...(mode === 'DISABLE' && !isAuto ? [] : [tlsInspector()]), ...(isAuto ? [httpInspector()] : [])],
    // A server that speaks first waits for nobody's first byte.
    ...(isAuto ? { listenerFiltersTimeout: durationFromMs(snapshot.meshConfig.protocolDetectionTimeoutMs), continueOnListenerFiltersTimeout: true } : {}),
    filterChains: inboundChains({
      name: String(inbound.port),
      cluster: inboundClusterName(inbound.port),
      mode,
      protocol,
      service,
      statPrefix: `inbound_${inbound.listen}`,
      match: {},
      ...inboundExtras(view, snapshot, inbound.port),
    }),
    metadata: { filterMetadata: { 'mizzen.inbound': { mtls: mode, port: inbound.port } } },
  });
}
