import type { Logger } from '@mizzen/common';
import type { SecretStore } from '../tls/secret-store.ts';

/** As for clusters without endpoints (config_source.proto `initial_fetch_timeout`). */
const initialFetchTimeoutMs = 15_000;

/**
 * The generic secrets that routes and filters need and SDS has not brought. Configuration that needs one takes effect when it arrives, or when the time for
 * the first fetch is over: then its filters refuse requests, and all other configuration is in effect. Later updates do not wait for the same secret again.
 */
export class AwaitedSecrets {
  readonly #secrets: Pick<SecretStore, 'generic'>;
  readonly #logger: Pick<Logger, 'error'>;
  readonly #since: Map<string, number>;
  readonly #givenUp: Set<string>;

  constructor(secrets: Pick<SecretStore, 'generic'>, logger: Pick<Logger, 'error'>) {
    this.#secrets = secrets;
    this.#logger = logger;
    this.#since = new Map();
    this.#givenUp = new Set();
  }

  /** Of these secrets those that are worth waiting for. */
  missing(names: readonly string[], nowMs: number): string[] {
    return names.filter((name) => this.#isAwaited(name, nowMs));
  }

  /** Whether time alone may end a wait. */
  get isWaiting(): boolean {
    return this.#since.size > 0;
  }

  #isAwaited(name: string, nowMs: number): boolean {
    if (this.#secrets.generic(name) !== undefined) {
      this.#since.delete(name);
      this.#givenUp.delete(name);
      return false;
    }
    if (this.#givenUp.has(name)) return false;
    const since = this.#since.get(name);
    if (since === undefined) this.#since.set(name, nowMs);
    else if (nowMs - since >= initialFetchTimeoutMs) {
      this.#since.delete(name);
      this.#givenUp.add(name);
      this.#logger.error('a secret has not arrived: requests that need it are refused', { secret: name, waitedMs: initialFetchTimeoutMs });
      return false;
    }
    return true;
  }
}
