import type { Logger } from '@mizzen/common';
import { rootSecretName, workloadSecretName } from '../tls/secret-names.ts';
import type { SecretStore } from '../tls/secret-store.ts';

/** As for clusters without endpoints (config_source.proto `initial_fetch_timeout`). */
const initialFetchTimeoutMs = 15_000;

/**
 * The secrets that listeners, routes and filters need and SDS has not brought. Configuration that needs one takes effect when it arrives, or when the time for
 * the first fetch is over: then its filters refuse requests, its TLS servers refuse connections, and all other configuration is in effect. Later updates do not wait for the same secret again.
 */
export class AwaitedSecrets {
  readonly #secrets: Pick<SecretStore, 'has'>;
  readonly #logger: Pick<Logger, 'error'>;
  readonly #since: Map<string, number>;
  readonly #givenUp: Set<string>;

  constructor(secrets: Pick<SecretStore, 'has'>, logger: Pick<Logger, 'error'>) {
    this.#secrets = secrets;
    this.#logger = logger;
    this.#since = new Map();
    this.#givenUp = new Set();
  }

  /** Of these secrets those that are worth waiting for. */
  missing(names: readonly string[], nowMs: number): string[] {
    return names.filter((name) => this.#isAwaited(name, nowMs));
  }

  /** A secret has gone that was there: what needs it refuses, and does not wait for it. */
  withdrawn(name: string): void {
    this.#since.delete(name);
    this.#givenUp.add(name);
  }

  /** Whether time alone may end a wait. */
  get isWaiting(): boolean {
    return this.#since.size > 0;
  }

  #isAwaited(name: string, nowMs: number): boolean {
    if (this.#secrets.has(name)) {
      this.#since.delete(name);
      this.#givenUp.delete(name);
      return false;
    }
    // The proxy's own certificate and the mesh's roots: without them nothing could be served.
    if (name === workloadSecretName || name === rootSecretName) return true;
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
