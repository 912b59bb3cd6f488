import { groupOf, type Problem, type Resource } from '../resource.ts';
import { isPlainObject } from '../validate.ts';
import { invalid } from './checks.ts';

/**
 * How much configuration one object may become. Lists multiply: a VirtualService is a route for each of its hosts and matches, a ServiceEntry a cluster
 * for each of its hosts and ports, in every proxy. A 1 MB object could ask for a thousand million.
 */
export const expansionLimits = {
  /** Hosts times matches of a VirtualService or of a route of the Gateway API. */
  maxRoutes: 50_000,
  /** Hosts times ports of a ServiceEntry. */
  maxClusters: 10_000,
} as const;

/** `maxItems` of the CRDs of the Gateway API, by the name of the list. */
const gatewayApiLists: Readonly<Record<string, number>> = {
  ...{ listeners: 64, parentRefs: 32, hostnames: 16, rules: 16, backendRefs: 16, filters: 16, matches: 64, targetRefs: 16, certificateRefs: 64 },
  ...{ caCertificateRefs: 16, perPort: 64, from: 16, to: 16, headers: 16, queryParams: 16 },
};
const maxTlsHostnames = 1024;
const gatewayApiKinds = new Set(['Gateway', 'ListenerSet', 'HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute', 'UDPRoute', 'BackendTLSPolicy', 'ReferenceGrant']);

const listOf = (value: unknown, name: string): readonly unknown[] => {
  const list = isPlainObject(value) ? value[name] : undefined;
  return Array.isArray(list) ? list : [];
};
const matchesOf = (routes: readonly unknown[], field: string) => routes.reduce<number>((sum, route) => sum + Math.max(1, listOf(route, field).length), 0);

export function expansionProblems(resource: Resource): Problem[] {
  const group = groupOf(resource.apiVersion);
  const { spec } = resource;
  const tooMany = (path: string, what: string, count: number, most: number) =>
    count > most ? [invalid(path, `${what} would be ${count}, more than ${most}: split the object`)] : [];
  if (group === 'gateway.networking.k8s.io') return gatewayApiKinds.has(resource.kind) ? longLists(spec, 'spec', resource.kind) : [];
  if (group !== 'networking.istio.io') return [];
  switch (resource.kind) {
    case 'VirtualService': {
      const hosts = Math.max(1, listOf(spec, 'hosts').length);
      return (['http', 'tls', 'tcp'] as const).flatMap((kind) =>
        tooMany(`spec.${kind}`, 'its routes, hosts times matches,', hosts * matchesOf(listOf(spec, kind), 'match'), expansionLimits.maxRoutes),
      );
    }
    case 'ServiceEntry':
      return tooMany(
        'spec.ports',
        'its clusters, hosts times ports,',
        listOf(spec, 'hosts').length * listOf(spec, 'ports').length,
        expansionLimits.maxClusters,
      );
    default:
      return [];
  }
}

function longLists(value: unknown, path: string, kind: string): Problem[] {
  if (!isPlainObject(value)) return [];
  return Object.entries(value).flatMap(([name, member]): Problem[] => {
    const at = `${path}.${name}`;
    if (!Array.isArray(member)) return longLists(member, at, kind);
    const most = name === 'hostnames' && kind === 'TLSRoute' ? maxTlsHostnames : gatewayApiLists[name];
    if (most !== undefined && member.length > most) return [invalid(at, `has ${member.length} entries, more than ${most}`)];
    return member.flatMap((entry, i) => longLists(entry, `${at}[${i}]`, kind));
  });
}
