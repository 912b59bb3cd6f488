import { isPlainObject } from '@mizzen/api';
import type { Condition } from './types.ts';

/** The status of an object, as it is stored. */
export type Status = Readonly<Record<string, unknown>>;

export const entriesOf = (value: unknown): Status[] => (Array.isArray(value) ? value.filter(isPlainObject) : []);

/** Conditions say since when they hold, and of which version of the object. */
export function dated(conditions: readonly Condition[], before: Status, { generation }: { readonly generation: number }): Status[] {
  const known = entriesOf(before['conditions']);
  return conditions.map((one) => {
    const same = known.find((entry) => entry['type'] === one.type && entry['status'] === one.status);
    const since = same?.['lastTransitionTime'];
    return { ...one, observedGeneration: generation, lastTransitionTime: typeof since === 'string' ? since : `${new Date().toISOString().slice(0, 19)}Z` };
  });
}
