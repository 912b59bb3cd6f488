import { isDeepStrictEqual } from 'node:util';
import type { ManagedFieldsEntry, Resource } from '@mizzen/api';
import { ApiError } from '../api-error.ts';
import { changedLeaves, type FieldSet, fieldsOf, leavesOf, setFromLeaves, valueAt, withoutFields } from './field-set.ts';
import { mergePatch } from './merge-patch.ts';

/**
 * Server-side apply (Kubernetes "structured merge"): a manager states the fields it wants; fields it stated before and no longer does
 * are removed, fields that another manager owns with another value are a conflict unless `force` takes them over.
 */
export function applyServerSide(
  live: Resource | undefined,
  applied: Record<string, unknown>,
  manager: string,
  force: boolean,
  now: string,
): Record<string, unknown> {
  const wanted = leavesOf(fieldsOf(applied));
  const wantedTexts = new Set(wanted.map(pathText));
  const entries = live?.metadata.managedFields ?? [];
  const others = entries.filter((entry) => !(entry.manager === manager && entry.operation === 'Apply'));
  const own = entries.find((entry) => entry.manager === manager && entry.operation === 'Apply');

  const conflicts: { manager: string; path: string }[] = [];
  const keptByOthers = new Set<string>();
  const remaining = others.map((entry) => {
    const kept = leavesOf(entry.fieldsV1 as FieldSet).filter((path) => {
      const disagrees = wantedTexts.has(pathText(path)) && !isDeepStrictEqual(valueAt(live, path), valueAt(applied, path));
      if (disagrees && !force) conflicts.push({ manager: entry.manager, path: `.${path.join('.')}` });
      return !disagrees;
    });
    for (const path of kept) keptByOthers.add(pathText(path));
    return { ...entry, fieldsV1: setFromLeaves(kept) as Record<string, unknown> };
  });
  if (conflicts.length > 0) {
    const causes = conflicts.map(({ manager: owner, path }) => ({ reason: 'FieldManagerConflict', message: `conflict with "${owner}"`, field: path }));
    throw new ApiError(
      409,
      'Conflict',
      `Apply failed with ${conflicts.length} conflict${conflicts.length > 1 ? 's' : ''}: ${causes.map((cause) => `${cause.message}: ${cause.field}`).join(', ')}`,
      { causes },
    );
  }

  const isGivenUp = (path: readonly string[]) => !wantedTexts.has(pathText(path)) && !keptByOthers.has(pathText(path));
  const givenUp = own ? leavesOf(own.fieldsV1 as FieldSet).filter(isGivenUp) : [];
  const result = withoutFields(live ?? {}, setFromLeaves(givenUp));
  const merged = mergePatch(result, withoutServerOwned(applied)) as Record<string, unknown>;
  const entry: ManagedFieldsEntry = {
    manager,
    operation: 'Apply',
    apiVersion: String(applied['apiVersion']),
    time: now,
    fieldsType: 'FieldsV1',
    fieldsV1: fieldsOf(applied) as Record<string, unknown>,
  };
  return withManagedFields(merged, [...remaining, entry]);
}

/** Records an update (PUT, POST or a patch of another kind): the manager now owns what it has changed, and nobody else does. */
export function recordUpdate(before: Resource | undefined, after: Resource, manager: string, now: string, subresource?: string): Resource {
  const { set, removed } = changedLeaves(before ?? {}, after);
  if (set.length === 0 && removed.length === 0) return withManagedFields(after, before?.metadata.managedFields ?? []) as Resource;
  const changed = new Set([...set, ...removed].map(pathText));
  const isOwn = (entry: ManagedFieldsEntry) => entry.manager === manager && entry.operation === 'Update' && entry.subresource === subresource;
  const entries = before?.metadata.managedFields ?? [];
  const own = entries.find(isOwn);
  const ownPaths = own ? leavesOf(own.fieldsV1 as FieldSet).filter((path) => !changed.has(pathText(path))) : [];
  const remaining = entries
    .filter((entry) => !isOwn(entry))
    .map((entry) => ({
      ...entry,
      fieldsV1: setFromLeaves(leavesOf(entry.fieldsV1 as FieldSet).filter((path) => !changed.has(pathText(path)))) as Record<string, unknown>,
    }));
  const entry: ManagedFieldsEntry = {
    manager,
    operation: 'Update',
    apiVersion: after.apiVersion,
    time: now,
    fieldsType: 'FieldsV1',
    fieldsV1: setFromLeaves([...ownPaths, ...set]) as Record<string, unknown>,
    ...(subresource ? { subresource } : {}),
  };
  return withManagedFields(after, [...remaining, entry]) as Resource;
}

function withManagedFields(object: Record<string, unknown> | Resource, entries: readonly ManagedFieldsEntry[]): Record<string, unknown> {
  const metadata = { ...(object['metadata'] as Record<string, unknown>) };
  const managedFields = entries.filter((entry) => Object.keys(entry.fieldsV1).length > 0);
  if (managedFields.length > 0) metadata['managedFields'] = managedFields;
  else delete metadata['managedFields'];
  return { ...object, metadata };
}

function withoutServerOwned(applied: Record<string, unknown>): Record<string, unknown> {
  const {
    managedFields: _,
    resourceVersion: __,
    uid: ___,
    creationTimestamp: ____,
    generation: _____,
    ...metadata
  } = (applied['metadata'] ?? {}) as Record<string, unknown>;
  return { ...applied, metadata };
}

const pathText = (path: readonly string[]) => path.join('\0');
