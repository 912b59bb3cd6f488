import type { GatewayServerSpec, GatewaySpec, VirtualServiceSpec } from '@mizzen/api';
import { appliesTo } from './generate/virtual-service-routes.ts';
import { type Configured, hostMatches, type MeshSnapshot } from './snapshot.ts';

interface Claim {
  readonly pattern: string;
  readonly namespace: string;
  readonly by: Configured<unknown>;
}

/**
 * The namespace that owns a host at these Gateways, so that its Certificates may be proved there; undefined: no namespace does. Gateways claim the hosts of
 * their servers and of the VirtualServices bound to them. The longest matching host decides. Where several namespaces claim that one, the oldest object
 * decides, unless its spec has changed since: an old object that is edited later must not take over a host.
 */
export function hostOwner(host: string, gateways: readonly Configured<GatewaySpec>[], snapshot: MeshSnapshot): string | undefined {
  const claims = gateways.flatMap((gateway) => claimsOf(gateway, host, snapshot));
  const length = Math.max(...claims.map(({ pattern }) => pattern.length));
  const longest = claims.filter(({ pattern }) => pattern.length === length);
  const namespaces = new Set(longest.map(({ namespace }) => namespace));
  if (namespaces.size <= 1) return longest[0]?.namespace;
  const [oldest, ...others] = longest.sort((a, b) => (a.by.createdAt < b.by.createdAt ? -1 : 1));
  if (oldest === undefined || oldest.by.generation > 1) return undefined;
  const isTied = others.some(({ by, namespace }) => namespace !== oldest.namespace && by.createdAt === oldest.by.createdAt);
  return isTied ? undefined : oldest.namespace;
}

/** Whether a server of the Gateway has the host and speaks plain HTTP, on this port if one is given. */
export function hasPlainHttp({ spec }: Configured<GatewaySpec>, host: string, port?: number): boolean {
  return (spec.servers ?? []).some(
    (server) =>
      plainHttp.has(server.port?.protocol.toUpperCase() ?? '') &&
      (port === undefined || server.port?.number === port) &&
      hostsOf(server).some((pattern) => hostMatches(pattern, host)),
  );
}

const plainHttp = new Set(['HTTP', 'HTTP2', 'GRPC', 'GRPC-WEB']);

/** Without the namespaces that they are for. */
const hostsOf = ({ hosts }: GatewayServerSpec) => hosts.map((host) => host.slice(host.indexOf('/') + 1).toLowerCase());

function claimsOf(gateway: Configured<GatewaySpec>, host: string, snapshot: MeshSnapshot): Claim[] {
  const { namespace } = gateway;
  const own = (gateway.spec.servers ?? []).flatMap(hostsOf).filter((pattern) => hostMatches(pattern, host));
  if (own.length === 0) return [];
  const name = `${namespace}/${gateway.name}`;
  const bound: readonly Configured<VirtualServiceSpec>[] = snapshot.virtualServices.filter((one) => appliesTo(one, name));
  return [
    ...own.map((pattern) => ({ pattern, namespace, by: gateway })),
    ...bound.flatMap((by) =>
      (by.spec.hosts ?? []).flatMap((pattern) => (hostMatches(pattern.toLowerCase(), host) ? [{ pattern: pattern.toLowerCase(), namespace, by }] : [])),
    ),
  ];
}
