import { generateKeyPairSync } from 'node:crypto';
import { isPlainObject } from '@mizzen/api';
import { Backoff, errorBoundary, type Logger, messageOf } from '@mizzen/common';
import type { FetchPolicy } from '@mizzen/common/fetch-policy';
import { callHttps, type HttpsAnswer } from '@mizzen/common/https-call';

const boundary = errorBoundary('jwks.fetch');

/** Where the keys of an issuer are published. */
export interface KeySource {
  readonly issuer: string;
  /** undefined: said by the issuer (OpenID Connect Discovery 1.0). */
  readonly jwksUri: string | undefined;
  readonly timeoutMs: number;
}

interface Entry {
  readonly source: KeySource;
  readonly backoff: Backoff;
  keys: string | undefined;
  problem: string | undefined;
  timer: NodeJS.Timeout | undefined;
}

/** Key sets change rarely, and say so before they do. */
const refreshMs = 20 * 60_000;
const retryBaseMs = 1_000;
const retryMaxMs = 5 * 60_000;
const maxBytes = 1024 * 1024;

const keyOf = ({ issuer, jwksUri }: KeySource) => jwksUri ?? `discovery:${issuer}`;

/**
 * Key sets of the issuers of tokens, fetched once for the whole mesh and given to proxies with their configuration. They are fetched anew in the background;
 * an issuer that cannot be reached changes nothing about keys that were fetched from it.
 */
export class JwksResolver {
  readonly #logger: Logger;
  readonly #onChange: () => void;
  readonly #entries: Map<string, Entry>;
  readonly #refreshMs: number;
  readonly #policy: FetchPolicy | undefined;
  #isClosed: boolean;

  /** `policy`: where the URLs may lead; undefined: they are the administrator's own. */
  constructor(logger: Logger, onChange: () => void, policy: FetchPolicy | undefined, refresh = refreshMs) {
    this.#logger = logger;
    this.#onChange = onChange;
    this.#entries = new Map();
    this.#refreshMs = refresh;
    this.#policy = policy;
    this.#isClosed = false;
  }

  /** The sources that the configuration names now: new ones are fetched, others forgotten. */
  want(sources: readonly KeySource[]): void {
    const wanted = new Map(sources.map((source) => [keyOf(source), source]));
    for (const [key, { timer }] of this.#entries)
      if (!wanted.has(key)) {
        clearTimeout(timer);
        this.#entries.delete(key);
      }
    for (const [key, source] of wanted) {
      if (this.#entries.has(key)) continue;
      const entry: Entry = { source, backoff: new Backoff(retryBaseMs, retryMaxMs), keys: undefined, problem: undefined, timer: undefined };
      this.#entries.set(key, entry);
      this.#start(key, entry);
    }
  }

  /** undefined: they have never been fetched. */
  keysOf(source: KeySource): string | undefined {
    return this.#entries.get(keyOf(source))?.keys;
  }

  /** Why the newest try to fetch them failed. */
  problemOf(source: KeySource): string | undefined {
    return this.#entries.get(keyOf(source))?.problem;
  }

  close(): void {
    this.#isClosed = true;
    for (const { timer } of this.#entries.values()) clearTimeout(timer);
    this.#entries.clear();
  }

  /** Fetches, and after an exception again. */
  #start(key: string, entry: Entry): void {
    boundary.start(
      () => this.#fetch(key, entry),
      () => this.#startAfter(entry.backoff.nextMs(), key, entry),
    );
  }

  #startAfter(delayMs: number, key: string, entry: Entry): void {
    if (this.#isClosed || this.#entries.get(key) !== entry) return;
    clearTimeout(entry.timer);
    entry.timer = boundary
      .after(
        delayMs,
        () => this.#start(key, entry),
        () => this.#startAfter(entry.backoff.nextMs(), key, entry),
      )
      .unref();
  }

  async #fetch(key: string, entry: Entry): Promise<void> {
    const before = [entry.keys, entry.problem];
    try {
      entry.keys = await fetchKeys(entry.source, this.#policy);
      entry.problem = undefined;
      entry.backoff.reset();
    } catch (error) {
      entry.problem = messageOf(error);
      if (entry.backoff.attempts === 0)
        this.#logger.warn('the keys of a token issuer cannot be fetched', { issuer: entry.source.issuer, from: key, reason: entry.problem });
    }
    if (this.#isClosed || this.#entries.get(key) !== entry) return;
    this.#startAfter(entry.problem === undefined ? this.#refreshMs * (0.9 + Math.random() * 0.2) : entry.backoff.nextMs(), key, entry);
    if (before[0] !== entry.keys || before[1] !== entry.problem) this.#onChange();
  }
}

async function fetchKeys({ issuer, jwksUri, timeoutMs }: KeySource, policy: FetchPolicy | undefined): Promise<string> {
  const signal = AbortSignal.timeout(timeoutMs);
  let uri = jwksUri;
  if (uri === undefined) {
    const document = await fetchJson(`${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`, signal, policy);
    if (document['issuer'] !== issuer) throw new Error('its OpenID configuration is that of another issuer');
    if (typeof document['jwks_uri'] !== 'string') throw new Error('its OpenID configuration names no jwks_uri');
    uri = document['jwks_uri'];
  }
  const set = await fetchJson(uri, signal, policy);
  if (!Array.isArray(set['keys']) || set['keys'].length === 0) throw new Error(`${uri} answers with no key set (RFC 7517)`);
  return JSON.stringify(set);
}

const maxRedirects = 3;

/** Follows redirects within the same origin. Errors never quote what the server sent. */
async function fetchJson(uri: string, signal: AbortSignal, policy: FetchPolicy | undefined): Promise<Record<string, unknown>> {
  let url = uri;
  for (let redirects = 0; ; redirects++) {
    let response: HttpsAnswer;
    try {
      response = await callHttps(url, { signal, policy, headers: { accept: 'application/json' }, maxBytes });
    } catch (error) {
      throw new Error(`${uri}: ${messageOf(error)}`);
    }
    const { status, headers, text } = response;
    if (status >= 300 && status < 400 && headers.location !== undefined) {
      const target = URL.canParse(headers.location, url) ? new URL(headers.location, url) : undefined;
      if (redirects >= maxRedirects || target?.origin !== new URL(url).origin)
        throw new Error(`${uri} redirects to another origin, or too often: name the final URL in jwksUri`);
      url = target.href;
      continue;
    }
    if (status !== 200) throw new Error(`${uri} responds with ${status}`);
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      throw new Error(`${uri} responds with something other than JSON`);
    }
    if (!isPlainObject(value)) throw new Error(`${uri} responds with something other than a JSON object`);
    return value;
  }
}

let nobodys: string | undefined;

/** A key set by which no token is good: its private key was thrown away. For issuers whose keys nobody knows yet. */
export function nobodysKeys(): string {
  nobodys ??= JSON.stringify({ keys: [{ ...generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' }), kid: 'unknown' }] });
  return nobodys;
}
