import { isDeepStrictEqual } from 'node:util';
import { isPlainObject } from '@mizzen/api';
import { setOwn } from './merge-patch.ts';

/**
 * Sets of fields, as server-side apply keeps them in `metadata.managedFields` (`fieldsV1`): nested objects whose keys are `f:<name>`.
 * Lists are atomic here: a list is one field, owned and replaced as a whole, as it is for kinds whose schema names no list keys.
 */
export type FieldSet = { readonly [key: `f:${string}`]: FieldSet };

/** Fields that the server owns whatever a client sends. */
const serverOwned = new Set([
  'uid',
  'resourceVersion',
  'generation',
  'creationTimestamp',
  'managedFields',
  'selfLink',
  'deletionTimestamp',
  'name',
  'namespace',
  'generateName',
]);

/** The fields that an object sets, down to its leaves; identity and server-owned metadata left out. */
export function fieldsOf(value: unknown, depth = 0): FieldSet {
  if (!isPlainObject(value)) return {};
  const fields: Record<string, FieldSet> = {};
  for (const [name, member] of Object.entries(value)) {
    if (depth === 0 && (name === 'apiVersion' || name === 'kind')) continue;
    if (depth === 0 && name === 'metadata' && isPlainObject(member)) {
      const kept = Object.fromEntries(Object.entries(member).filter(([field]) => !serverOwned.has(field)));
      if (Object.keys(kept).length > 0) fields['f:metadata'] = fieldsOf(kept, 1);
    } else fields[`f:${name}`] = fieldsOf(member, depth + 1);
  }
  return fields;
}

/** The paths of a set's leaves, each as its list of names. */
export function leavesOf(fields: FieldSet, prefix: readonly string[] = []): string[][] {
  const entries = Object.entries(fields);
  return entries.flatMap(([key, child]) => {
    const path = [...prefix, key.slice(2)];
    return Object.keys(child).length === 0 ? [path] : leavesOf(child, path);
  });
}

export function setFromLeaves(leaves: Iterable<readonly string[]>): FieldSet {
  const root: Record<string, unknown> = {};
  for (const path of leaves) {
    let at = root;
    for (const name of path) {
      const key = `f:${name}`;
      if (!Object.hasOwn(at, key)) setOwn(at, key, {});
      at = at[key] as Record<string, unknown>;
    }
  }
  return root as FieldSet;
}

export function valueAt(value: unknown, path: readonly string[]): unknown {
  let at = value;
  for (const name of path) {
    if (!isPlainObject(at) || !Object.hasOwn(at, name)) return undefined;
    at = at[name];
  }
  return at;
}

/** A copy of `value` without the fields of these leaves; objects that this leaves empty go too. Every object is copied once, however many of its fields go. */
export function withoutFields(value: unknown, fields: FieldSet): unknown {
  const names = Object.keys(fields);
  if (!isPlainObject(value) || names.length === 0) return value;
  const copy = { ...value };
  for (const key of names) {
    const name = key.slice(2);
    if (!Object.hasOwn(copy, name)) continue;
    const below = fields[key as `f:${string}`] ?? {};
    if (Object.keys(below).length === 0) {
      delete copy[name];
      continue;
    }
    const child = withoutFields(copy[name], below);
    if (isPlainObject(child) && Object.keys(child).length === 0) delete copy[name];
    else setOwn(copy, name, child);
  }
  return copy;
}

/** The leaves at which two objects differ, seen from `after`: what an update has set or removed. */
export function changedLeaves(before: unknown, after: unknown): { readonly set: string[][]; readonly removed: string[][] } {
  const set = leavesOf(fieldsOf(after)).filter((path) => !isDeepStrictEqual(valueAt(before, path), valueAt(after, path)));
  const removed = leavesOf(fieldsOf(before)).filter((path) => valueAt(after, path) === undefined);
  return { set, removed };
}
