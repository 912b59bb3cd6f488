import type { Endpoint } from '../endpoint.ts';
import { hash64 } from './hash.ts';
import type { HashTable, Share } from './hash-table.ts';

export interface RingSettings {
  readonly minimumSize: number;
  readonly maximumSize: number;
}

/** envoy cluster.proto `RingHashLbConfig`. */
export const defaultRing: RingSettings = { minimumSize: 1024, maximumSize: 8 * 1024 * 1024 };

interface SortedPlaces {
  readonly highs: readonly number[];
  readonly lows: readonly number[];
  /** Whose they are. */
  readonly from: readonly number[];
  readonly order: readonly number[];
}

interface Kept {
  readonly ring: HashRing;
  /** The endpoints of the new ring that this one lacks, or has with another number of places. */
  readonly fresh: readonly number[];
  /** By this ring's endpoints: the same ones in the new ring, -1 for those that are gone. */
  readonly owners: Int32Array;
}

/**
 * A ketama ring (envoy `RING_HASH`): each endpoint has as many places as its share is worth, at the hashes of `ADDRESS:PORT_N`; a request goes to the
 * first place at or behind its hash. An endpoint's hashes are computed once and kept with it.
 */
export class HashRing implements HashTable {
  readonly #endpoints: readonly Endpoint[];
  /** How many places each endpoint has. */
  readonly #counts: Uint32Array;
  /** Hashes in ascending order, as upper and lower halves: comparing numbers costs nothing, comparing bigints does. */
  readonly #high: Uint32Array;
  readonly #low: Uint32Array;
  readonly #owner: Uint32Array;

  /** `previous`: the ring that this one takes the place of. What has not changed keeps its place, and need not be sorted again. */
  constructor(shares: readonly Share[], settings: RingSettings, previous?: HashTable) {
    this.#endpoints = shares.map(({ endpoint }) => endpoint);
    this.#counts = countsOf(shares, settings);
    const size = this.#counts.reduce((sum, count) => sum + count, 0);
    this.#high = new Uint32Array(size);
    this.#low = new Uint32Array(size);
    this.#owner = new Uint32Array(size);
    const kept = previous instanceof HashRing ? this.#keptFrom(previous) : undefined;
    this.#fill(this.#placesOf(kept?.fresh ?? this.#endpoints.keys()), kept);
  }

  #keptFrom(previous: HashRing): Kept {
    const before = new Map<Endpoint, number>();
    for (const [i, endpoint] of previous.#endpoints.entries()) before.set(endpoint, i);
    const owners = new Int32Array(previous.#endpoints.length).fill(-1);
    const fresh: number[] = [];
    for (const [i, endpoint] of this.#endpoints.entries()) {
      const old = before.get(endpoint);
      if (old !== undefined && previous.#counts[old] === this.#counts[i]) owners[old] = i;
      else fresh.push(i);
    }
    return { ring: previous, fresh, owners };
  }

  /** The places of some endpoints in the order of their hashes. */
  #placesOf(owners: Iterable<number>): SortedPlaces {
    const highs: number[] = [];
    const lows: number[] = [];
    const from: number[] = [];
    for (const owner of owners) {
      const endpoint = this.#endpoints[owner]!;
      for (let i = 0; i < this.#counts[owner]!; i++) {
        if (endpoint.ringHashes.length <= 2 * i) addHash(endpoint, i);
        highs.push(endpoint.ringHashes[2 * i]!);
        lows.push(endpoint.ringHashes[2 * i + 1]!);
        from.push(owner);
      }
    }
    return { highs, lows, from, order: sortedBy(highs, lows) };
  }

  /** Merges sorted places with those of the previous ring that stay. */
  #fill({ highs, lows, from, order }: SortedPlaces, kept: Kept | undefined): void {
    let at = 0;
    let next = 0;
    const put = (high: number, low: number, owner: number) => {
      this.#high[at] = high;
      this.#low[at] = low;
      this.#owner[at++] = owner;
    };
    const putFresh = () => {
      const place = order[next++]!;
      put(highs[place]!, lows[place]!, from[place]!);
    };
    if (kept !== undefined)
      for (let i = 0; i < kept.ring.size; i++) {
        const owner = kept.owners[kept.ring.#owner[i]!]!;
        if (owner < 0) continue;
        const [high, low] = [kept.ring.#high[i]!, kept.ring.#low[i]!];
        while (next < order.length && (highs[order[next]!]! < high || (highs[order[next]!] === high && lows[order[next]!]! < low))) putFresh();
        put(high, low, owner);
      }
    while (next < order.length) putFresh();
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

/** In all as many places as the least share needs to have as many as `minimumSize` says, each endpoint as its share is worth (ring_hash_lb.cc). */
function countsOf(shares: readonly Share[], { minimumSize, maximumSize }: RingSettings): Uint32Array {
  const counts = new Uint32Array(shares.length);
  const least = shares.reduce((found, { share }) => Math.min(found, share), 1);
  const scale = shares.length === 0 ? 0 : Math.min(Math.ceil(least * minimumSize) / least, maximumSize);
  let target = 0;
  let placed = 0;
  for (const [i, { share }] of shares.entries()) {
    target += scale * share;
    for (; placed < target; placed++) counts[i]!++;
  }
  return counts;
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
