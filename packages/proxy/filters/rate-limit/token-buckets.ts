/** How far several workers may have overdrawn a bucket, in its capacities: more than a proxy has workers. */
const maxDebt = 1_000;

/**
 * Token buckets, one for each key. A bucket is filled evenly: `tokens` in each `periodMs`, up to `capacity`. Keys that have not been used for
 * long are forgotten, which changes nothing: their buckets would be full.
 */
export class TokenBuckets {
  readonly capacity: number;
  readonly #perMs: number;
  readonly #maxKeys: number;
  readonly #buckets: Map<string, Bucket>;
  /** Told of each token that is taken; undefined: there are no other workers. */
  onTake: ((key: string) => void) | undefined;

  constructor(tokens: number, periodMs: number, capacity: number, maxKeys: number) {
    this.capacity = capacity;
    this.#perMs = tokens / periodMs;
    this.#maxKeys = maxKeys;
    this.#buckets = new Map();
    this.onTake = undefined;
  }

  /** Takes a token, if there is one. `now` in milliseconds of a clock that does not go back. */
  take(key: string, now: number): Taken {
    const bucket = this.#filled(key, now);
    const isAllowed = bucket.tokens >= 1;
    if (isAllowed) {
      bucket.tokens -= 1;
      this.onTake?.(key);
    }
    return { isAllowed, ...this.#standing(bucket.tokens) };
  }

  /** What a bucket holds now, without taking of it. */
  peek(key: string, now: number): Omit<Taken, 'isAllowed'> {
    const bucket = this.#buckets.get(key);
    const tokens = bucket === undefined ? this.capacity : Math.min(this.capacity, bucket.tokens + (now - bucket.at) * this.#perMs);
    return this.#standing(tokens);
  }

  /** Takes tokens that another worker has given out, whether or not they are there. */
  spend(key: string, tokens: number, now: number): void {
    const bucket = this.#filled(key, now);
    bucket.tokens = Math.max(-maxDebt * this.capacity, bucket.tokens - tokens);
  }

  #filled(key: string, now: number): Bucket {
    let bucket = this.#buckets.get(key);
    if (bucket === undefined) {
      if (this.#buckets.size >= this.#maxKeys) this.#forgetOldest(now);
      bucket = new Bucket(this.capacity, now);
      this.#buckets.set(key, bucket);
    } else {
      bucket.tokens = Math.min(this.capacity, bucket.tokens + (now - bucket.at) * this.#perMs);
      bucket.at = now;
    }
    return bucket;
  }

  #standing(tokens: number): Omit<Taken, 'isAllowed'> {
    return {
      remaining: Math.max(0, Math.floor(tokens)),
      untilFullMs: (this.capacity - tokens) / this.#perMs,
      untilNextMs: tokens >= 1 ? 0 : (1 - tokens) / this.#perMs,
    };
  }

  /** An attacker with many keys (addresses, say) must not make us forget who is limited now: those that would be full go first. */
  #forgetOldest(now: number): void {
    let looked = 0;
    for (const [key, bucket] of this.#buckets) {
      if (bucket.tokens + (now - bucket.at) * this.#perMs >= this.capacity) this.#buckets.delete(key);
      if (++looked >= 64) break;
    }
    if (this.#buckets.size >= this.#maxKeys) this.#buckets.delete(this.#buckets.keys().next().value!);
  }
}

class Bucket {
  tokens: number;
  at: number;
  constructor(tokens: number, at: number) {
    this.tokens = tokens;
    this.at = at;
  }
}

export interface Taken {
  readonly isAllowed: boolean;
  readonly remaining: number;
  readonly untilFullMs: number;
  readonly untilNextMs: number;
}
