import type { FetchPolicy } from '@mizzen/common/fetch-policy';
import { callHttps } from '@mizzen/common/https-call';
import { KeySet } from './key-set.ts';

/** How long a fetched key set is used before it is fetched again; an unknown key asks for it sooner, but not more often than the second. */
const maxAgeMs = 10 * 60_000;
const cooldownMs = 10_000;
const timeoutMs = 3_000;
const maxBytes = 1024 * 1024;

/** A key set that is published somewhere, fetched when it is first needed. One that was fetched is used on while it cannot be fetched anew. */
export class RemoteKeys {
  readonly #uri: string;
  readonly #policy: FetchPolicy;
  #keys: KeySet | undefined;
  #fetchedAt: number;
  #triedAt: number;
  #fetching: Promise<void> | undefined;

  constructor(uri: string, policy: FetchPolicy) {
    this.#uri = new URL(uri).href;
    this.#policy = policy;
    this.#keys = undefined;
    this.#fetchedAt = -Infinity;
    this.#triedAt = -Infinity;
    this.#fetching = undefined;
  }

  /** undefined: it has never been fetched. `isMissing`: the set at hand lacks a key that is asked for. */
  async get(isMissing: boolean): Promise<KeySet | undefined> {
    const now = performance.now();
    const isStale = isMissing || now - this.#fetchedAt > maxAgeMs;
    if (isStale && (this.#fetching !== undefined || now - this.#triedAt > cooldownMs)) {
      this.#fetching ??= this.#fetch().finally(() => (this.#fetching = undefined));
      if (isMissing || this.#keys === undefined) await this.#fetching;
    }
    return this.#keys;
  }

  async #fetch(): Promise<void> {
    this.#triedAt = performance.now();
    try {
      const signal = AbortSignal.timeout(timeoutMs);
      const { status, text } = await callHttps(this.#uri, { signal, policy: this.#policy, headers: { accept: 'application/json' }, maxBytes });
      if (status !== 200) return;
      this.#keys = KeySet.read(text);
      this.#fetchedAt = performance.now();
    } catch {
      // The next request that needs it tries again, after the pause.
    }
  }
}
