import { describeOrigin } from '@mizzen/common';
import { isFor, patchesFor, readFilter } from '../envoy-filters/patches.ts';
import type { EnvoyFilterSpec } from '../envoy-filters/types.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { type ProxyConnection, patchKey } from '../xds/proxy-connection.ts';
import type { Finding } from './finding.ts';

/** Patches that cannot be read, that a proxy does not take, or that find no place in any proxy that they are for. */
export function envoyFilterFindings(snapshot: MeshSnapshot, connections: readonly ProxyConnection[]): Finding[] {
  const findings: Finding[] = [];
  const add = (filter: Configured<EnvoyFilterSpec>, code: Finding['code'], level: Finding['level'], path: string, message: string) => {
    const object = `EnvoyFilter ${filter.namespace}/${filter.name}`;
    const place = filter.origin.source === 'file' ? describeOrigin(filter.origin, path) : '';
    findings.push({ code, level, object, path, place, message: `${object}: ${message}` });
  };
  for (const filter of snapshot.envoyFilters) {
    const { problems, notes } = readFilter(filter);
    for (const { index, message } of problems) add(filter, 'MZ0006', 'error', `spec.configPatches[${index}]`, `patch ${index} is not in effect: ${message}.`);
    for (const { index, message } of notes) add(filter, 'MZ0007', 'warning', `spec.configPatches[${index}]`, `patch ${index}: ${message}.`);
  }
  const refused = new Set<string>();
  for (const { refusedFilters, view } of connections)
    for (const { filter, reason } of refusedFilters) {
      const key = `${filter.namespace}/${filter.name}@${filter.revision}`;
      if (refused.has(key)) continue;
      refused.add(key);
      add(
        filter,
        'MZ0008',
        'error',
        'spec.configPatches',
        `the proxy ${view.namespace}/${view.name} goes on without it, since it refuses what comes of it: ${reason}`,
      );
    }
  if (connections.length > 0)
    for (const filter of snapshot.envoyFilters)
      if (!connections.some(({ view }) => isFor(filter, view))) add(filter, 'MZ0007', 'info', 'spec', 'it is for no connected proxy.');
  const known = new Set(connections.flatMap(({ patched }) => [...patched]));
  const wanted = new Map(connections.flatMap(({ view }) => patchesFor(view, snapshot.envoyFilters)).map((patch) => [patchKey(patch), patch]));
  for (const [key, { filter, index, applyTo }] of wanted)
    if (!known.has(key) && !refused.has(`${filter.namespace}/${filter.name}@${filter.revision}`))
      add(
        filter,
        'MZ0007',
        'warning',
        `spec.configPatches[${index}]`,
        `patch ${index} (${applyTo}) matches nothing in the ${connections.length} connected proxies.`,
      );
  return findings;
}
