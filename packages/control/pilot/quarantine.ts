import { kinds } from '@mizzen/api';
import { describeOrigin, type Logger, messageOf } from '@mizzen/common';
import { type Change, type ConfigStore, keyText, type StoredResource } from '../galley/config-store.ts';
import type { Finding } from './analysis/finding.ts';

/** What a snapshot is built from. */
export type ConfigReader = Pick<ConfigStore, 'get' | 'list' | 'revision'>;

/** An object that generation fails with. */
export interface Excluded {
  readonly stored: StoredResource;
  readonly reason: string;
  /** The version that stays in effect; undefined: the object is left out. */
  readonly substitute: StoredResource | undefined;
}

/** Kinds that describe what exists. Where one of them fails only together with a policy or a route, the latter is the cause. */
const inventory = new Set(['Namespace', 'Service', 'ServiceEntry', 'WorkloadEntry', 'Workload', 'Endpoints', 'EndpointSlice', 'Secret', 'ConfigMap']);

/**
 * Isolates objects from each other: whatever throws while a snapshot is built or resources are generated is attributed to the one object that
 * causes it. The cause is found by trying, not by the place that throws: objects are shown in order, the inventory first and then by age, and
 * the object that ends the shortest failing sequence is excluded. It stays in its last good version, or is left out; all others take effect.
 */
export class Quarantine {
  readonly #store: ConfigReader;
  readonly #logger: Logger;
  readonly #excluded: Map<string, Excluded>;
  /** Versions that were in effect at the last success, of objects that have changed since. */
  readonly #lastGood: Map<string, StoredResource>;
  #failures: number;

  constructor(store: ConfigReader, logger: Logger) {
    this.#store = store;
    this.#logger = logger;
    this.#excluded = new Map();
    this.#lastGood = new Map();
    this.#failures = 0;
  }

  /** Failures that were attributed to an object, since the start. */
  get failures(): number {
    return this.#failures;
  }

  get excluded(): readonly Excluded[] {
    return [...this.#excluded.values()];
  }

  /** Called with every change: a new version of an excluded object is given a chance. */
  changed({ type, stored, previous }: Change): void {
    const key = keyText(stored.key);
    const excluded = this.#excluded.get(key);
    this.#excluded.delete(key);
    const good = excluded === undefined ? previous : excluded.substitute;
    if (type === 'deleted') this.#lastGood.delete(key);
    else if (good !== undefined && !this.#lastGood.has(key)) this.#lastGood.set(key, good);
  }

  /** Called when everything was generated: what is in effect now is good. */
  succeeded(): void {
    this.#lastGood.clear();
  }

  /** The configuration without what is excluded and, while the cause is searched, without `hidden` keys. */
  reader(hidden: ReadonlySet<string> = noKeys): ConfigReader {
    const visible = (stored: StoredResource): StoredResource | undefined => {
      const key = keyText(stored.key);
      if (hidden.has(key)) return undefined;
      const excluded = this.#excluded.get(key);
      return excluded === undefined ? stored : excluded.substitute;
    };
    return {
      revision: () => this.#store.revision(),
      get: async (key) => {
        const stored = await this.#store.get(key);
        return stored && visible(stored);
      },
      list: async (group, kind, namespace) => {
        const { items, revision } = await this.#store.list(group, kind, namespace);
        return { items: hidden.size === 0 && this.#excluded.size === 0 ? items : items.flatMap((stored) => visible(stored) ?? []), revision };
      },
    };
  }

  /** Finds the object that makes `attempt` throw and excludes it. False: no object is the cause, since it throws without any, too, or no longer throws. */
  async isolate(attempt: (reader: ConfigReader) => Promise<void>): Promise<boolean> {
    const reader = this.reader();
    const lists = await Promise.all(kinds.map(({ group, kind }) => reader.list(group, kind)));
    const rank = ({ key, revision }: StoredResource) => (inventory.has(key.kind) ? revision - Number.MAX_SAFE_INTEGER : revision);
    const objects = lists.flatMap(({ items }) => items).sort((a, b) => rank(a) - rank(b));
    let reason = '';
    const works = async (shown: number): Promise<boolean> => {
      try {
        await attempt(this.reader(new Set(objects.slice(shown).map(({ key }) => keyText(key)))));
        return true;
      } catch (error) {
        reason = messageOf(error);
        return false;
      }
    };
    if (await works(objects.length)) return false;
    let failing = objects.length;
    let working = objects.length;
    // Most often it is one of the newest: steps double from the end.
    for (let step = 1; ; step *= 2) {
      working = Math.max(0, objects.length - step);
      if (await works(working)) break;
      failing = working;
      if (working === 0) return false;
    }
    while (failing - working > 1) {
      const middle = (failing + working) >> 1;
      if (await works(middle)) working = middle;
      else failing = middle;
    }
    const cause = objects[failing - 1];
    if (cause === undefined || (await works(failing))) return false;
    this.#exclude(cause, reason);
    return true;
  }

  #exclude(shown: StoredResource, reason: string): void {
    const key = keyText(shown.key);
    const before = this.#excluded.get(key);
    const excluded: Excluded =
      before === undefined ? { stored: shown, reason, substitute: this.#lastGood.get(key) } : { ...before, reason, substitute: undefined };
    this.#excluded.set(key, excluded);
    this.#failures++;
    this.#logger.error('cannot generate configuration with an object', { object: nameOf(shown), reason, effect: effectOf(excluded) });
  }

  findings(): Finding[] {
    return this.excluded.map((excluded) => ({
      code: 'MZ0017',
      level: 'error',
      object: nameOf(excluded.stored),
      path: 'spec',
      place: excluded.stored.origin.source === 'file' ? describeOrigin(excluded.stored.origin) : '',
      message: `${nameOf(excluded.stored)}: cannot generate configuration with it: ${excluded.reason}. ${effectOf(excluded)}`,
    }));
  }
}

const noKeys: ReadonlySet<string> = new Set();
const nameOf = ({ key }: StoredResource) => `${key.kind} ${key.namespace ? `${key.namespace}/` : ''}${key.name}`;
const effectOf = ({ substitute }: Excluded) => (substitute === undefined ? 'It is left out.' : 'The version before it stays in effect.');
