import type { Endpoint } from '../endpoint.ts';
import { hash64 } from './hash.ts';
import type { HashTable, Share } from './hash-table.ts';

/** A prime (maglev_lb.cc, paper section 5.3). */
export const defaultMaglevSize = 65_537;

/**
 * Google's Maglev table ("Maglev: A Fast and Reliable Software Network Load Balancer", section 3.4; envoy `MAGLEV`): endpoints take turns to claim the
 * places of their own permutation of the table until it is full. One look-up, no search.
 */
export class MaglevTable implements HashTable {
  readonly #endpoints: readonly Endpoint[];
  readonly #table: Uint32Array;

  constructor(unordered: readonly Share[], size: number) {
    // All proxies shall make the same table, whatever order their endpoints came in.
    const shares = unordered.toSorted((a, b) => (a.endpoint.text < b.endpoint.text ? -1 : 1));
    this.#endpoints = shares.map(({ endpoint }) => endpoint);
    this.#table = new Uint32Array(shares.length === 0 ? 0 : size);
    if (shares.length === 0) return;
    const most = shares.reduce((found, { share }) => Math.max(found, share), 0);
    const entries = shares.map(({ endpoint, share }) => {
      const [, at, skip] = permutationOf(endpoint, size);
      return { at, skip, share, due: 0 };
    });
    const isTaken = new Uint8Array(size);
    for (let turn = 1, filled = 0; filled < size; turn++)
      for (let i = 0; i < entries.length && filled < size; i++) {
        const entry = entries[i]!;
        // The heaviest takes its turn in every round, one with half its share in every second.
        if (turn * entry.share < entry.due) continue;
        entry.due += most;
        while (isTaken[entry.at] === 1) entry.at = (entry.at + entry.skip) % size;
        isTaken[entry.at] = 1;
        this.#table[entry.at] = i;
        entry.at = (entry.at + entry.skip) % size;
        filled++;
      }
  }

  pick(hash: bigint, attempt: number): Endpoint | undefined {
    const size = this.#table.length;
    if (size === 0) return undefined;
    const wanted = attempt === 0 ? hash : BigInt.asUintN(64, hash ^ (0xffff_ffff_ffff_ffffn - BigInt(attempt) + 1n));
    return this.#endpoints[this.#table[Number(wanted % BigInt(size))]!];
  }
}

/** Where an endpoint's permutation of the table begins, and how it goes on: computed once and kept with it. */
function permutationOf(endpoint: Endpoint, size: number): readonly [size: number, at: number, skip: number] {
  if (endpoint.maglevPermutation?.[0] !== size)
    endpoint.maglevPermutation = [size, Number(hash64(endpoint.text) % BigInt(size)), Number(hash64(endpoint.text, 1n) % BigInt(size - 1)) + 1];
  return endpoint.maglevPermutation;
}
