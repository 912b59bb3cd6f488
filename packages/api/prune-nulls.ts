import type { Schema } from './schema.ts';
import { isPlainObject } from './validate.ts';

/**
 * Drops nulls as Kubernetes does before validation ("Defaulting and nullable" of custom resources): a null member of an object or map means
 * that the field is not set. A null in a list stays and is refused, since dropping it would move the entries behind it. What a schema does
 * not describe (`x-kubernetes-preserve-unknown-fields`, unknown fields) stays as written.
 */
export function pruneNulls(value: unknown, schema: Schema | undefined, depth = 0): unknown {
  if (schema === undefined || depth > maxPruneDepth) return value;
  if (Array.isArray(value)) {
    const pruned = value.map((entry) => pruneNulls(entry, schema.items, depth + 1));
    return pruned.some((entry, i) => entry !== value[i]) ? pruned : value;
  }
  if (!isPlainObject(value)) return value;
  let pruned: Record<string, unknown> | undefined;
  for (const [name, member] of Object.entries(value)) {
    const known = schema.properties && Object.hasOwn(schema.properties, name) ? schema.properties[name] : schema.additionalProperties;
    if (known === undefined || known.type === 'null') continue;
    const kept = member === null ? undefined : pruneNulls(member, known, depth + 1);
    if (kept === member) continue;
    pruned ??= { ...value };
    if (member === null) delete pruned[name];
    else pruned[name] = kept;
  }
  return pruned ?? value;
}

/** Schemas are finite; a recursive one would end here, and validation refuses what is deeper. */
const maxPruneDepth = 100;
