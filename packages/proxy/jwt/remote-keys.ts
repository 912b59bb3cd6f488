import { limitedText } from '@mizzen/common';
import { KeySet } from './key-set.ts';

/** How long a fetched key set is used before it is fetched again; an unknown key asks for it sooner, but not more often than the second. */
const maxAgeMs = 10 * 60_000;
const cooldownMs = 10_000;
const timeoutMs = 3_000;
const maxBytes = 1024 * 1024;

/** A key set that is published somewhere, fetched when it is first needed. One that was fetched is used on while it cannot be fetched anew. */
export class RemoteKeys {
  readonly #uri: URL;
  #keys: KeySet | undefined;
  #fetchedAt: number;
  #triedAt: number;
  #fetching: Promise<void> | undefined;

  constructor(uri: string) {
    this.#uri = new URL(uri);
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
      const response = await fetch(this.#uri, { redirect: 'error', signal: AbortSignal.timeout(timeoutMs), headers: { accept: 'application/json' } });
      if (!response.ok) return;
      this.#keys = KeySet.read(await limitedText(response, maxBytes));
      this.#fetchedAt = performance.now();
    } catch {
      // The next request that needs it tries again, after the pause.
    }
  }
}
