import { isPlainObject } from '@mizzen/api';
import { badRequest } from '../api-error.ts';
import { setOwn } from './merge-patch.ts';

/**
 * Kubernetes' strategic merge patch, which kubectl sends for the core kinds: like a merge patch, but lists with a merge key are merged
 * entry by entry. Directives: `$patch: delete|replace|merge`, `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`, `$retainKeys`.
 */
export function strategicMergePatch(target: unknown, patch: unknown): unknown {
  return mergeAt(target, patch, '');
}

/** Merge keys of the lists in the core kinds that are served, by path (k8s.io/api struct tags `patchMergeKey`). */
export const mergeKeys: Readonly<Record<string, string>> = {
  'spec.ports': 'port',
  'spec.containers': 'name',
  'spec.initContainers': 'name',
  'spec.volumes': 'name',
  'spec.containers.ports': 'containerPort',
  'spec.containers.env': 'name',
  'spec.containers.volumeMounts': 'mountPath',
  secrets: 'name',
  imagePullSecrets: 'name',
  'metadata.ownerReferences': 'uid',
  'status.conditions': 'type',
};
const mergedPrimitiveLists = new Set(['metadata.finalizers']);

function mergeAt(target: unknown, patch: unknown, path: string): unknown {
  if (!isPlainObject(patch)) return patch;
  if (patch['$patch'] === 'replace') {
    const { $patch: _, ...rest } = patch;
    return rest;
  }
  const result: Record<string, unknown> = isPlainObject(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(patch)) {
    const childPath = path ? `${path}.${name}` : name;
    if (name === '$patch' || name === '$retainKeys' || name.startsWith('$setElementOrder/')) continue;
    if (name.startsWith('$deleteFromPrimitiveList/')) {
      const list = name.slice(name.indexOf('/') + 1);
      const current = result[list];
      const gone = new Set(Array.isArray(value) ? value : []);
      if (Array.isArray(current))
        setOwn(
          result,
          list,
          current.filter((entry) => !gone.has(entry)),
        );
    } else if (value === null) delete result[name];
    else if (Array.isArray(value))
      setOwn(result, name, mergeList(Object.hasOwn(result, name) ? result[name] : undefined, value, patch[`$setElementOrder/${name}`], childPath));
    else setOwn(result, name, mergeAt(Object.hasOwn(result, name) ? result[name] : undefined, value, childPath));
  }
  const retained = patch['$retainKeys'];
  const kept = Array.isArray(retained) ? new Set(retained) : undefined;
  if (kept !== undefined) for (const name of Object.keys(result)) if (!kept.has(name)) delete result[name];
  return result;
}

function mergeList(target: unknown, patch: readonly unknown[], order: unknown, path: string): unknown {
  const key = mergeKeys[path];
  if (mergedPrimitiveLists.has(path)) return [...new Set([...(Array.isArray(target) ? target : []), ...patch])];
  if (key === undefined) return patch;
  if (patch.some((entry) => isPlainObject(entry) && entry['$patch'] === 'replace'))
    return patch.filter((entry) => !(isPlainObject(entry) && entry['$patch'] === 'replace'));
  // By the value of their key: a list of many entries costs in proportion to its length.
  const merged = new Map<unknown, Record<string, unknown>>();
  for (const entry of Array.isArray(target) ? target.filter(isPlainObject) : []) if (!merged.has(entry[key])) merged.set(entry[key], entry);
  for (const entry of patch) {
    if (!isPlainObject(entry) || entry[key] === undefined) throw badRequest(`strategic merge patch: an entry of ${path} has no "${key}"`);
    if (entry['$patch'] === 'delete') merged.delete(entry[key]);
    else merged.set(entry[key], mergeAt(merged.get(entry[key]) ?? {}, entry, path) as Record<string, unknown>);
  }
  const entries = [...merged.values()];
  if (!Array.isArray(order)) return entries;
  const ranks = new Map<unknown, number>();
  for (const [rank, entry] of order.entries()) {
    const value: unknown = isPlainObject(entry) ? entry[key] : entry;
    if (!ranks.has(value)) ranks.set(value, rank);
  }
  const rankOf = (entry: Record<string, unknown>) => ranks.get(entry[key]) ?? order.length;
  return entries.sort((a, b) => rankOf(a) - rankOf(b));
}
