import { describeOrigin, MizzenError, unixPathOf } from '@mizzen/common';
import type { Configured } from '../snapshot.ts';

/** The names that xDS resources carry. They are Istio's, so that dashboards, EnvoyFilters and people's habits fit. */
export function outboundClusterName(port: number, subset: string, hostname: string): string {
  return `outbound|${port}|${subset}|${hostname}`;
}

export function inboundClusterName(port: number): string {
  return `inbound|${port}||`;
}

/** Lets a captured connection go on to where it was going. */
export const passthroughCluster = 'PassthroughCluster';
/** Where captured connections go that may go nowhere. */
export const blackHoleCluster = 'BlackHoleCluster';
/** To ports of the workload that nobody declared. */
export const inboundPassthroughCluster = 'InboundPassthroughCluster';
export const inboundPassthroughClusterIpv6 = 'InboundPassthroughClusterIpv6';

/** The table of an explicitly called sidecar; tables of captured ports are named after the port. */
export const outboundRouteName = 'http_proxy';

/** `127.0.0.1:15001` or `[::1]:15001` to its parts; of a Unix socket (`unix:///path`) the path, with port 0. */
export function splitAddress(text: string): { readonly address: string; readonly port: number } {
  const path = unixPathOf(text);
  if (path !== undefined) return { address: path, port: 0 };
  const cut = text.lastIndexOf(':');
  const address = text.slice(0, cut).replace(/^\[|\]$/g, '');
  const port = Number(text.slice(cut + 1));
  if (cut < 0 || address === '' || !Number.isInteger(port) || port < 0 || port > 65535)
    throw new MizzenError('invalid-address', `${JSON.stringify(text)} is no address: write HOST:PORT`);
  return { address, port };
}

const gatewayApiKinds = new Set(['HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute', 'ListenerSet']);

/** Provenance for the `metadata` of an xDS resource: Istio's config path, and the line that a person wrote. */
export function provenance(config: Configured<unknown>, path?: string): { filterMetadata: Record<string, { [key: string]: string }> } {
  const group = gatewayApiKinds.has(config.kind) ? 'gateway.networking.k8s.io' : 'networking.istio.io';
  const kind = config.kind.replace(/([a-z])([A-Z])/g, '$1-$2').toLowerCase();
  return {
    filterMetadata: {
      istio: { config: `/apis/${group}/v1/namespaces/${config.namespace}/${kind}/${config.name}` },
      'mizzen.provenance': {
        object: `${config.kind} ${config.namespace}/${config.name}`,
        origin: describeOrigin(config.origin, path),
        ...(path ? { path } : {}),
        revision: String(config.revision),
      },
    },
  };
}
