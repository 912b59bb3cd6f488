import type { Endpoint } from '../endpoint.ts';
import { hash64 } from './hash.ts';
import type { HashTable, Share } from './hash-table.ts';

export interface RingSettings {
  readonly minimumSize: number;
  readonly maximumSize: number;
}

/** envoy cluster.proto `RingHashLbConfig`. */
export const defaultRing: RingSettings = { minimumSize: 1024, maximumSize: 8 * 1024 * 1024 };

/**
 * A ketama ring (envoy `RING_HASH`): each endpoint has as many places as its share is worth, at the hashes of `ADDRESS:PORT_N`; a request goes to the
 * first place at or behind its hash. An endpoint's hashes are computed once and kept with it.
 */
export class HashRing implements HashTable {
  readonly #endpoints: readonly Endpoint[];
  /** Hashes in ascending order, as upper and lower halves: comparing numbers costs nothing, comparing bigints does. */
  readonly #high: Uint32Array;
  readonly #low: Uint32Array;
  readonly #owner: Uint32Array;

  constructor(shares: readonly Share[], { minimumSize, maximumSize }: RingSettings) {
    this.#endpoints = shares.map(({ endpoint }) => endpoint);
    const least = shares.reduce((found, { share }) => Math.min(found, share), 1);
    const scale = shares.length === 0 ? 0 : Math.min(Math.ceil(least * minimumSize) / least, maximumSize);
    const highs: number[] = [];
    const lows: number[] = [];
    const owners: number[] = [];
    let target = 0;
    for (const [owner, { endpoint, share }] of shares.entries()) {
      target += scale * share;
      for (let i = 0; owners.length < target; i++) {
        if (endpoint.ringHashes.length <= 2 * i) addHash(endpoint, i);
        highs.push(endpoint.ringHashes[2 * i]!);
        lows.push(endpoint.ringHashes[2 * i + 1]!);
        owners.push(owner);
      }
    }
    const order = sortedBy(highs, lows);
    this.#high = Uint32Array.from(order, (at) => highs[at]!);
    this.#low = Uint32Array.from(order, (at) => lows[at]!);
    this.#owner = Uint32Array.from(order, (at) => owners[at]!);
  }

  get size(): number {
    return this.#owner.length;
  }

  pick(hash: bigint, attempt: number): Endpoint | undefined {
    const size = this.#owner.length;
    if (size === 0) return undefined;
    const high = Number(hash >> 32n);
    const low = Number(hash & 0xffff_ffffn);
    let from = 0;
    let to = size;
    while (from < to) {
      const middle = (from + to) >>> 1;
      const above = this.#high[middle]!;
      if (above < high || (above === high && this.#low[middle]! < low)) from = middle + 1;
      else to = middle;
    }
    return this.#endpoints[this.#owner[(from + attempt) % size]!];
  }
}

function addHash(endpoint: Endpoint, i: number): void {
  const hash = hash64(`${endpoint.text}_${i}`);
  endpoint.ringHashes.push(Number(hash >> 32n), Number(hash & 0xffff_ffffn));
}

const indexBits = 2 ** 21;

/** Positions in the order of their hashes: the upper half and the position in one number, which typed arrays sort without calling anybody. */
function sortedBy(highs: readonly number[], lows: readonly number[]): readonly number[] {
  const comesBefore = (a: number, b: number) => highs[a]! - highs[b]! || lows[a]! - lows[b]!;
  if (highs.length > indexBits) return Array.from(highs, (_, at) => at).sort(comesBefore);
  const keys = Float64Array.from(highs, (high, at) => high * indexBits + at).sort();
  const order = Array.from(keys, (key) => key % indexBits);
  // Equal upper halves are rare.
  for (let i = 1; i < order.length; i++)
    for (let at = i; at > 0 && comesBefore(order[at - 1]!, order[at]!) > 0; at--) [order[at - 1], order[at]] = [order[at]!, order[at - 1]!];
  return order;
}
