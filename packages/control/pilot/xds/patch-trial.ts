import type { DiscoveryType } from '@mizzen/envoy-api';
import type { Patch } from '../envoy-filters/patches.ts';
import type { EnvoyFilterSpec } from '../envoy-filters/types.ts';
import type { Configured } from '../snapshot.ts';

type Filter = Configured<EnvoyFilterSpec>;

const keyOf = ({ namespace, name, revision }: Filter) => `${namespace}/${name}@${revision}`;

/**
 * Finds the EnvoyFilter because of which a proxy refuses its resources. One filter must not take others with it, since they may be what protects
 * the proxy. The newest filters are left out first, one by one, until the proxy accepts. The last one left out is then the cause; the others come
 * back. A changed set of filters is tried again from the start.
 */
export class PatchTrial {
  #signature: string;
  /** Filters that were found to be the cause, with what the proxy said. */
  readonly #refused: Map<string, { readonly filter: Filter; readonly reason: string }>;
  /** Left out for now, the newest first. */
  #suspects: Filter[];
  #reason: string;
  /** Types that the proxy refused last. */
  readonly #failing: Set<DiscoveryType>;
  /** The proxy refuses without patches, too. */
  #isOver: boolean;

  constructor() {
    this.#signature = '';
    this.#refused = new Map();
    this.#suspects = [];
    this.#reason = '';
    this.#failing = new Set();
    this.#isOver = false;
  }

  /** Those of the patches that are in effect. */
  allowed(patches: readonly Patch[]): readonly Patch[] {
    const signature = [...new Set(patches.map(({ filter }) => keyOf(filter)))].join(' ');
    if (signature !== this.#signature) {
      this.#signature = signature;
      this.#refused.clear();
      this.#suspects = [];
      this.#failing.clear();
      this.#isOver = false;
    }
    if (this.#refused.size === 0 && this.#suspects.length === 0) return patches;
    const left = new Set([...this.#refused.keys(), ...this.#suspects.map(keyOf)]);
    return patches.filter(({ filter }) => !left.has(keyOf(filter)));
  }

  /** The proxy has refused a type. Leaves out one more filter, which need not change the type; false: it is not because of a filter. */
  refused(type: DiscoveryType, reason: string, patches: readonly Patch[]): boolean {
    if (this.#isOver) return false;
    const [next] = this.allowed(patches)
      .map(({ filter }) => filter)
      .sort((a, b) => b.revision - a.revision);
    if (this.#failing.size === 0) this.#reason = reason;
    this.#failing.add(type);
    if (next === undefined) {
      this.#isOver = true;
      this.#suspects = [];
      return false;
    }
    this.#suspects.push(next);
    return true;
  }

  /** The proxy has accepted a type. True: a cause was found, and filters come back that were left out for the trial. */
  accepted(type: DiscoveryType): boolean {
    this.#failing.delete(type);
    const cause = this.#suspects.at(-1);
    if (this.#failing.size > 0 || cause === undefined) return false;
    this.#refused.set(keyOf(cause), { filter: cause, reason: this.#reason });
    const comeBack = this.#suspects.length > 1;
    this.#suspects = [];
    return comeBack;
  }

  /** Filters that are not in effect, with what the proxy said. */
  get leftOut(): readonly { readonly filter: Filter; readonly reason: string }[] {
    return [...this.#refused.values(), ...this.#suspects.map((filter) => ({ filter, reason: this.#reason }))];
  }
}
