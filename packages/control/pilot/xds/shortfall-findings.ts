import type { Finding } from '../analysis/finding.ts';
import type { ProxyConnection } from './proxy-connection.ts';

/** One finding for each proxy and effect: what an older proxy does not enforce, and what refuses traffic because of that. */
export function shortfallFindings(connections: readonly ProxyConnection[]): Finding[] {
  return connections.flatMap((connection) => {
    const { namespace, name, version } = connection.view;
    const found = Map.groupBy(connection.shortfalls(), ({ effect }) => effect);
    return (['refuses', 'omitted'] as const).flatMap((effect): Finding[] => {
      const shortfalls = found.get(effect);
      if (shortfalls === undefined) return [];
      const list = shortfalls.map(({ resource, feature }) => `${feature} (${resource})`).join(', ');
      const message =
        effect === 'refuses'
          ? `Proxy ${namespace}/${name} (${version || 'unknown version'}) cannot enforce ${list}. What these policies cover refuses all traffic there. Upgrade the proxy.`
          : `Proxy ${namespace}/${name} (${version || 'unknown version'}) does not know ${list}. The proxy works without it. Upgrade the proxy.`;
      return [{ code: 'MZ0021', level: effect === 'refuses' ? 'error' : 'warning', object: `Proxy ${namespace}/${name}`, path: '', place: '', message }];
    });
  });
}
