import { create } from '@bufbuild/protobuf';
import type { ApiListenerSpec } from '@mizzen/api';
import { packAny } from '@mizzen/envoy-api';
import { type Listener, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { ProxyProtocolSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol_pb.js';
import { DownstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { apiFilters, apisOf } from '../apis/listener-filters.ts';
import { type ResolvedApi, sidecarGateway } from '../apis/resolved-api.ts';
import type { InboundPort, ProxyView } from '../proxy-view.ts';
import { pathNormalizationFor, securityFilters } from '../security/authorization-filters.ts';
import { type MeshSnapshot, resolveHost } from '../snapshot.ts';
import { tracingFor } from '../telemetry-config.ts';
import { connectionManager, socketAddress } from './connection-manager.ts';
import { implementedService, isInstance } from './inbound-chains.ts';
import { inboundClusterName, provenance, splitAddress } from './names.ts';
import { ads } from './tls-contexts.ts';
import { routesOf, type VirtualHost } from './virtual-service-routes.ts';

/** An API that this sidecar answers for itself, and the port of its workload that is behind it. */
export interface PublicApi {
  readonly resolved: ResolvedApi;
  readonly inbound: InboundPort;
}

/** APIs with placement `sidecar` whose service this workload implements. */
export function publicApis(view: ProxyView, snapshot: MeshSnapshot): PublicApi[] {
  return apisOf(view, snapshot).sidecar.flatMap((resolved) => {
    const { api } = resolved;
    const host = resolveHost(api.spec.upstream.service, api.namespace, snapshot);
    const inbound = view.inbound.find((candidate) => {
      const { service } = implementedService(candidate, view, snapshot);
      if (service?.hostname !== host) return false;
      // The listener has the certificate and the consumers of the API: it is for the service account of the service alone.
      if (!service.instances.some((instance) => instance.serviceAccount === view.serviceAccount && isInstance(instance, candidate, view))) return false;
      const port = service.ports.find(({ targetPort }) => targetPort === candidate.port || targetPort === candidate.name);
      return api.spec.upstream.port === undefined || port?.number === api.spec.upstream.port;
    });
    return inbound === undefined || !isOfSubset(resolved, host, view, snapshot) ? [] : [{ resolved, inbound }];
  });
}

function isOfSubset({ api }: ResolvedApi, host: string, view: ProxyView, snapshot: MeshSnapshot): boolean {
  const { subset } = api.spec.upstream;
  if (subset === undefined) return true;
  const rule = snapshot.destinationRules.find((candidate) => resolveHost(candidate.spec.host, candidate.namespace, snapshot) === host);
  const labels = rule?.spec.subsets?.find(({ name }) => name === subset)?.labels;
  return labels !== undefined && Object.entries(labels).every(([name, value]) => view.labels[name] === value);
}

/**
 * The public listeners of a sidecar: one for each port that APIs name, with their certificates by server name. Whoever calls is a client of the
 * API, not of the mesh: what it says about itself is not believed.
 */
export function publicListeners(view: ProxyView, snapshot: MeshSnapshot): Listener[] {
  const byPort = new Map<number, PublicApi[]>();
  for (const one of publicApis(view, snapshot)) {
    const { port } = one.resolved.api.spec.listener!;
    byPort.set(port, [...(byPort.get(port) ?? []), one]);
  }
  return [...byPort].map(([port, apis]) => {
    const { listener } = apis[0]!.resolved.api.spec;
    const given = view.publicPorts.find((candidate) => candidate.port === port);
    const { address, port: actual } = given === undefined ? { address: listener!.bind ?? '0.0.0.0', port } : splitAddress(given.listen);
    const tls = new Map<string, PublicApi[]>();
    for (const one of apis) {
      const key = JSON.stringify(one.resolved.api.spec.listener!.tls ?? null) + one.resolved.api.namespace;
      tls.set(key, [...(tls.get(key) ?? []), one]);
    }
    const isTls = apis.some(({ resolved }) => resolved.api.spec.listener!.tls !== undefined);
    return create(ListenerSchema, {
      name: `public_${address}_${actual}`,
      address: socketAddress(address, actual),
      trafficDirection: 2,
      listenerFilters: [
        ...(apis.some(({ resolved }) => resolved.api.spec.listener!.proxyProtocol)
          ? [{ name: 'envoy.filters.listener.proxy_protocol', configType: { case: 'typedConfig' as const, value: packAny(ProxyProtocolSchema, {}) } }]
          : []),
        ...(isTls
          ? [
              {
                name: 'envoy.filters.listener.tls_inspector',
                configType: {
                  case: 'typedConfig' as const,
                  value: { typeUrl: 'type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector' },
                },
              },
            ]
          : []),
      ],
      filterChains: [...tls.values()].map((group, i) => chain(group, i, port, view, snapshot)),
      metadata: provenance(apis[0]!.resolved.api),
    });
  });
}

function chain(apis: readonly PublicApi[], index: number, port: number, view: ProxyView, snapshot: MeshSnapshot) {
  const { api } = apis[0]!.resolved;
  const { tls } = api.spec.listener!;
  const hosts = [...new Set(apis.flatMap(({ resolved }) => resolved.api.spec.hosts))];
  return {
    name: `public.${port}.${index}`,
    ...(tls === undefined ? {} : { filterChainMatch: { transportProtocol: 'tls', serverNames: hosts.includes('*') ? [] : hosts } }),
    filters: [
      connectionManager({
        statPrefix: `public_${port}`,
        routes: { case: 'routeConfig', value: { name: `public.${port}.${index}`, validateClusters: false, virtualHosts: virtualHosts(apis, view, snapshot) } },
        direction: 'gateway',
        isTls: tls !== undefined,
        filters: [...securityFilters(view, snapshot, apis[0]!.inbound.port), ...apiFilters(apis.map(({ resolved }) => resolved))],
        tracing: tracingFor(view, snapshot),
        paths: pathNormalizationFor(view, snapshot),
      }),
    ],
    ...(tls === undefined
      ? {}
      : {
          transportSocket: {
            name: 'envoy.transport_sockets.tls',
            configType: { case: 'typedConfig' as const, value: packAny(DownstreamTlsContextSchema, downstreamTls(tls, api.namespace)) },
          },
        }),
  };
}

function downstreamTls(tls: NonNullable<ApiListenerSpec['tls']>, namespace: string) {
  const name = `kubernetes://${namespace}/${tls.credentialName}`;
  return {
    requireClientCertificate: tls.mode === 'MUTUAL',
    commonTlsContext: {
      alpnProtocols: ['h2', 'http/1.1'],
      tlsParams: { tlsMinimumProtocolVersion: 3 },
      tlsCertificateSdsSecretConfigs: [{ name, sdsConfig: ads }],
      ...(tls.mode === 'MUTUAL'
        ? { validationContextType: { case: 'validationContextSdsSecretConfig' as const, value: { name: `${name}-cacert`, sdsConfig: ads } } }
        : {}),
    },
  };
}

/** By host; the routes are those that a gateway has, but lead to the application beside. */
function virtualHosts(apis: readonly PublicApi[], view: ProxyView, snapshot: MeshSnapshot): VirtualHost[] {
  const hosts = new Map<string, NonNullable<VirtualHost['routes']>>();
  for (const { resolved, inbound } of apis) {
    // Where a broken version was kept out, the one before is what is served.
    const { virtualService } = resolved;
    const routes = routesOf(virtualService, undefined, view, snapshot, sidecarGateway).map((route) =>
      route.action?.case === 'route'
        ? {
            ...route,
            action: {
              case: 'route' as const,
              value: { ...route.action.value, clusterSpecifier: { case: 'cluster' as const, value: inboundClusterName(inbound.port) } },
            },
          }
        : route,
    );
    for (const host of resolved.api.spec.hosts) hosts.set(host, [...(hosts.get(host) ?? []), ...routes]);
  }
  return [...hosts].map(([host, routes]) => ({ name: `${host}:public`, domains: host === '*' ? ['*'] : [host, `${host}:*`], routes: longestFirst(routes) }));
}

/** Several APIs on one host: the longer path wins, whichever is older. */
function longestFirst(routes: NonNullable<VirtualHost['routes']>): NonNullable<VirtualHost['routes']> {
  const length = (route: (typeof routes)[number]) => (typeof route.match?.pathSpecifier?.value === 'string' ? route.match.pathSpecifier.value.length : 0);
  return routes
    .map((route, i) => ({ route, i }))
    .sort((a, b) => length(b.route) - length(a.route) || a.i - b.i)
    .map(({ route }) => route);
}
