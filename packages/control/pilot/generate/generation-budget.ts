import { MizzenError } from '@mizzen/common';

/**
 * Limits of what one proxy may be sent. Objects multiply each other: every VirtualService of a Gateway is in the route table of every server, every subset of a
 * wildcard DestinationRule is a cluster of every host. What is beyond throws, and the quarantine (../quarantine.ts) leaves the newest cause out.
 */
export const generationLimits = {
  maxClusters: 50_000,
  maxRoutes: 150_000,
  maxFilterChains: 50_000,
  /** Conditions of one VirtualService with those of its delegates. */
  maxDelegatedMatches: 50_000,
} as const;

/** Counts before anything is made, so that no memory is spent beyond the limit. */
export class GenerationBudget {
  readonly #what: string;
  readonly #max: number;
  #spent: number;

  constructor(what: string, max: number) {
    this.#what = what;
    this.#max = max;
    this.#spent = 0;
  }

  /** Throws MizzenError `too-much-configuration` when there is no room for so many more. */
  spend(count: number): void {
    this.#spent += count;
    if (this.#spent > this.#max) throw new MizzenError('too-much-configuration', `more than ${this.#max} ${this.#what} would be generated`);
  }
}
