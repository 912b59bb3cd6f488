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
      if (Array.isArray(current) && Array.isArray(value)) result[list] = current.filter((entry) => !value.includes(entry));
    } else if (value === null) delete result[name];
    else if (Array.isArray(value))
      setOwn(result, name, mergeList(Object.hasOwn(result, name) ? result[name] : undefined, value, patch[`$setElementOrder/${name}`], childPath));
    else setOwn(result, name, mergeAt(Object.hasOwn(result, name) ? result[name] : undefined, value, childPath));
  }
  const retained = patch['$retainKeys'];
  if (Array.isArray(retained)) for (const name of Object.keys(result)) if (!retained.includes(name)) delete result[name];
  return result;
}

function mergeList(target: unknown, patch: readonly unknown[], order: unknown, path: string): unknown {
  const key = mergeKeys[path];
  if (mergedPrimitiveLists.has(path)) return [...new Set([...(Array.isArray(target) ? target : []), ...patch])];
  if (key === undefined) return patch;
  if (patch.some((entry) => isPlainObject(entry) && entry['$patch'] === 'replace'))
    return patch.filter((entry) => !(isPlainObject(entry) && entry['$patch'] === 'replace'));
  const merged: Record<string, unknown>[] = Array.isArray(target) ? target.filter(isPlainObject) : [];
  for (const entry of patch) {
    if (!isPlainObject(entry) || entry[key] === undefined) throw badRequest(`strategic merge patch: an entry of ${path} has no "${key}"`);
    const at = merged.findIndex((existing) => existing[key] === entry[key]);
    if (entry['$patch'] === 'delete') {
      if (at >= 0) merged.splice(at, 1);
    } else if (at >= 0) merged[at] = mergeAt(merged[at], entry, path) as Record<string, unknown>;
    else merged.push(mergeAt({}, entry, path) as Record<string, unknown>);
  }
  if (Array.isArray(order)) {
    const wanted = order.map((entry) => (isPlainObject(entry) ? entry[key] : entry));
    const rank = (entry: Record<string, unknown>) => (wanted.includes(entry[key]) ? wanted.indexOf(entry[key]) : wanted.length);
    merged.sort((a, b) => rank(a) - rank(b));
  }
  return merged;
}
