import { errorBoundary } from '@mizzen/common';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { TokenBuckets } from './token-buckets.ts';

const boundary = errorBoundary('rate-limit.spending');

/** The state of the filters of one engine (ProxyContext.filterStates) that holds it. */
export const sharedSpendingState = 'mizzen.shared_spending';

/** undefined: the proxy has one worker. */
export function spendingOf({ filterStates }: ProxyContext): SharedSpending | undefined {
  return filterStates.get(sharedSpendingState) as SharedSpending | undefined;
}

/** Tokens that one worker has taken of a bucket since it last said so. */
export interface Spent {
  readonly limit: string;
  readonly key: string;
  readonly tokens: number;
}

/** For so long a worker does not know what the others have taken. */
const intervalMs = 20;
/** Limits whose buckets are shared; the oldest goes first. */
const maxLimits = 20_000;
/** Keys that one message has. More wait for the next one. */
const maxSpent = 10_000;

/**
 * Makes the buckets of a proxy's workers one bucket. Each worker decides at once, by its own, and tells the others every 20 ms what it has taken,
 * which they take too: a bucket may then be in debt, and gives out nothing until that is paid. So a burst within 20 ms may exceed a limit, and
 * the rate does not.
 */
export class SharedSpending {
  readonly #send: (spent: readonly Spent[]) => void;
  readonly #buckets: Map<string, TokenBuckets>;
  readonly #pending: Map<string, Map<string, number>>;
  #timer: NodeJS.Timeout | undefined;

  constructor(send: (spent: readonly Spent[]) => void) {
    this.#send = send;
    this.#buckets = new Map();
    this.#pending = new Map();
    this.#timer = undefined;
  }

  /** `limit` is the same in each worker. */
  share(limit: string, buckets: TokenBuckets): void {
    if (this.#buckets.size >= maxLimits && !this.#buckets.has(limit)) this.#buckets.delete(this.#buckets.keys().next().value ?? '');
    this.#buckets.set(limit, buckets);
    buckets.onTake = (key) => this.#note(limit, key);
  }

  /** What another worker has taken. */
  receive(spent: readonly Spent[]): void {
    const now = performance.now();
    for (const { limit, key, tokens } of spent) this.#buckets.get(limit)?.spend(key, tokens, now);
  }

  #note(limit: string, key: string): void {
    let ofLimit = this.#pending.get(limit);
    if (ofLimit === undefined) this.#pending.set(limit, (ofLimit = new Map()));
    ofLimit.set(key, (ofLimit.get(key) ?? 0) + 1);
    this.#flushSoon();
  }

  #flushSoon(): void {
    const again = () => {
      this.#timer = undefined;
      this.#flushSoon();
    };
    this.#timer ??= boundary.after(intervalMs, () => this.#flush(), again).unref();
  }

  #flush(): void {
    this.#timer = undefined;
    const spent: Spent[] = [];
    for (const [limit, ofLimit] of this.#pending) {
      for (const [key, tokens] of ofLimit) {
        if (spent.length >= maxSpent) break;
        spent.push({ limit, key, tokens });
        ofLimit.delete(key);
      }
      if (ofLimit.size > 0) this.#flushSoon();
      else this.#pending.delete(limit);
    }
    this.#send(spent);
  }
}
