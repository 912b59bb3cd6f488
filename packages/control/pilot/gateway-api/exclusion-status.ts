import { findKind, isPlainObject, kinds, objectSchemaOf } from '@mizzen/api';
import { keyText, type ResourceKey, type StoredResource } from '../../galley/config-store.ts';
import type { ResourceRegistry } from '../../galley/resource-registry.ts';
import type { Excluded } from '../quarantine.ts';
import { dated, entriesOf, type Status } from './status-conditions.ts';
import { controllerName, failed, group } from './types.ts';

/** Of kinds outside the Gateway API, which has `Accepted`. Istio's name for it. */
const conditionType = 'Reconciled';
const leftOut = 'LeftOut';
const keptBefore = 'VersionBeforeInEffect';
const reasons: ReadonlySet<unknown> = new Set([leftOut, keptBefore]);

export interface StatusChange {
  readonly stored: Pick<StoredResource, 'key'>;
  change(before: Status): Status;
}

/** Says in the status of an object that generation fails with it, and takes that back when it is in effect again. */
export class ExclusionStatus {
  readonly #registry: ResourceRegistry;
  /** Objects whose status says that they are excluded; undefined: it is not known yet what was written before a restart. */
  #marked: Map<string, ResourceKey> | undefined;
  #excluded: ReadonlySet<string>;

  constructor(registry: ResourceRegistry) {
    this.#registry = registry;
    this.#marked = undefined;
    this.#excluded = new Set();
  }

  /** Whether the status of an object is written here now. */
  has(key: ResourceKey): boolean {
    return this.#excluded.has(keyText(key));
  }

  async changes(excluded: readonly Excluded[]): Promise<StatusChange[]> {
    const before = (this.#marked ??= await this.#markedBefore());
    const marked = new Map(excluded.map(({ stored }) => [keyText(stored.key), stored.key]));
    this.#marked = marked;
    this.#excluded = new Set(marked.keys());
    return [
      ...[...before].filter(([key]) => !marked.has(key)).map(([, key]): StatusChange => ({ stored: { key }, change: cleared })),
      ...excluded
        .filter(({ stored }) => statusFieldsOf(stored.key).size > 0)
        .map((one): StatusChange => ({ stored: one.stored, change: (status) => marking(one, status) })),
    ];
  }

  async #markedBefore(): Promise<Map<string, ResourceKey>> {
    const lists = await Promise.all(kinds.filter((kind) => statusFieldsOf(kind).size > 0).map(({ group, kind }) => this.#registry.store.list(group, kind)));
    const marked = lists.flatMap(({ items }) => items).filter(({ resource }) => isPlainObject(resource.status) && resource.status !== cleared(resource.status));
    return new Map(marked.map(({ key }) => [keyText(key), key]));
  }
}

/** Where a kind has conditions: `conditions`, or those of each of its `parents` or `ancestors`. */
function statusFieldsOf({ group: ofGroup, kind }: Pick<ResourceKey, 'group' | 'kind'>): ReadonlySet<string> {
  const found = findKind(ofGroup, kind);
  const schema = found && objectSchemaOf(found).properties?.['status'];
  if (schema === undefined) return new Set();
  const fields = ['parents', 'ancestors', 'conditions'].filter((field) => schema.properties?.[field] !== undefined);
  // A status that may hold anything.
  return new Set(schema.properties === undefined ? ['conditions'] : fields);
}

function marking({ stored, reason, substitute }: Excluded, before: Status): Status {
  const { key, resource } = stored;
  const generation = resource.metadata.generation ?? 1;
  const effect = substitute === undefined ? 'it is left out' : 'the version before it stays in effect';
  const type = key.group === group ? 'Accepted' : conditionType;
  const condition = failed(type, substitute === undefined ? leftOut : keptBefore, `cannot generate configuration: ${reason}; ${effect}`);
  const conditionsOf = (owner: Status) => [
    ...entriesOf(owner['conditions']).filter((entry) => entry['type'] !== type),
    ...dated([condition], owner, { generation }),
  ];
  const fields = statusFieldsOf(key);
  for (const [list, ref] of [
    ['parents', 'parentRef'],
    ['ancestors', 'ancestorRef'],
  ] as const) {
    if (!fields.has(list)) continue;
    const own = entriesOf(before[list]).filter((entry) => entry['controllerName'] === controllerName);
    const others = entriesOf(before[list]).filter((entry) => entry['controllerName'] !== controllerName);
    const spec = isPlainObject(resource.spec) ? resource.spec : {};
    const refs = list === 'parents' && own.length === 0 ? entriesOf(spec['parentRefs']).map((one): Status => ({ [ref]: one, controllerName })) : own;
    return { ...before, [list]: [...others, ...refs.map((entry) => ({ ...entry, conditions: conditionsOf(entry) }))] };
  }
  return { ...before, conditions: conditionsOf(before) };
}

/** Without what `marking` has written; the same object when there is nothing of it. What is in effect again gets its usual conditions. */
function cleared(before: Status): Status {
  const isOurs = (entry: Status) => reasons.has(entry['reason']);
  if (entriesOf(before['conditions']).some(isOurs)) return { ...before, conditions: entriesOf(before['conditions']).filter((entry) => !isOurs(entry)) };
  for (const list of ['parents', 'ancestors']) {
    const entries = entriesOf(before[list]);
    if (!entries.some((entry) => entriesOf(entry['conditions']).some(isOurs))) continue;
    return { ...before, [list]: entries.map((entry) => ({ ...entry, conditions: entriesOf(entry['conditions']).filter((one) => !isOurs(one)) })) };
  }
  return before;
}
