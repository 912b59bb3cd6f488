import { create } from '@bufbuild/protobuf';
import { durationFromMs } from '@mizzen/envoy-api';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import type { Capture, ProxyView } from '../proxy-view.ts';
import { protocolOf } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { httpInspector, originalDestination, socketAddress, tcpProxy, tlsInspector } from './connection-manager.ts';
import { type InboundTarget, implementedService, inboundChains } from './inbound-chains.ts';
import { inboundExtras } from './inbound-extras.ts';
import { blackHoleCluster, inboundClusterName, inboundPassthroughCluster, inboundPassthroughClusterIpv6 } from './names.ts';
import { peerAuthenticationMode, portsWithOwnMode } from './peer-authentication.ts';

/**
 * The listener to which the kernel redirects everything that comes to the workload (Istio's `virtualInbound`), one for each IP version: by
 * the port that the caller was going to, to the application; what goes to a port that nobody declared is let through to it, under the
 * workload's mutual TLS policy all the same.
 */
export function capturedInboundListeners(view: ProxyView, capture: Capture & { readonly inboundPort: number }, snapshot: MeshSnapshot): Listener[] {
  return (capture.hasIPv6 ? ([4, 6] as const) : ([4] as const)).map((version) => virtualInbound(view, capture.inboundPort, version, snapshot));
}

function virtualInbound(view: ProxyView, port: number, version: 4 | 6, snapshot: MeshSnapshot): Listener {
  const targets = inboundTargets(view, version, snapshot);
  // On these neither TLS nor HTTP is looked for: their server may be the first to speak.
  const known = targets.flatMap((target) =>
    target.mode === 'DISABLE' && target.protocol !== 'AUTO' && target.match.destinationPort !== undefined ? [target.match.destinationPort] : [],
  );
  const declared = targets.flatMap((target) =>
    target.protocol !== 'AUTO' && target.match.destinationPort !== undefined ? [target.match.destinationPort] : [],
  );
  return create(ListenerSchema, {
    name: version === 4 ? 'virtualInbound' : 'virtualInbound_ipv6',
    address: socketAddress(version === 4 ? '0.0.0.0' : '::', port),
    trafficDirection: 1,
    listenerFilters: [originalDestination, tlsInspector(known), httpInspector(declared)],
    listenerFiltersTimeout: durationFromMs(snapshot.meshConfig.protocolDetectionTimeoutMs),
    continueOnListenerFiltersTimeout: true,
    filterChains: [
      // Whoever calls this very port was going nowhere.
      { name: 'virtualInbound-blackhole', filterChainMatch: { destinationPort: port }, filters: [tcpProxy(blackHoleCluster, blackHoleCluster)] },
      ...targets.flatMap(inboundChains),
    ],
    metadata: { filterMetadata: { 'mizzen.inbound': { mtls: peerAuthenticationMode(view.namespace, view.labels, 0, snapshot) } } },
  });
}

function inboundTargets(view: ProxyView, version: 4 | 6, snapshot: MeshSnapshot): InboundTarget[] {
  const modeOf = (port: number) => peerAuthenticationMode(view.namespace, view.labels, port, snapshot);
  const passthrough = version === 4 ? inboundPassthroughCluster : inboundPassthroughClusterIpv6;
  const declared = view.inbound.map((inbound) => ({
    name: String(inbound.port),
    cluster: inboundClusterName(inbound.port),
    mode: modeOf(inbound.port),
    ...implementedService(inbound, view, snapshot),
    statPrefix: `inbound_${view.address}_${inbound.port}`,
    match: { destinationPort: inbound.port },
    ...inboundExtras(view, snapshot),
  }));
  const undeclared = {
    cluster: passthrough,
    protocol: protocolOf(undefined, undefined, undefined),
    service: undefined,
    statPrefix: passthrough,
    ...inboundExtras(view, snapshot),
  };
  return [
    ...declared,
    ...portsWithOwnMode(view.namespace, view.labels, snapshot)
      .filter((port) => !view.inbound.some((inbound) => inbound.port === port))
      .map((port) => ({ ...undeclared, name: `passthrough-${port}`, mode: modeOf(port), match: { destinationPort: port } })),
    { ...undeclared, name: 'passthrough', mode: modeOf(0), match: {} },
  ];
}
