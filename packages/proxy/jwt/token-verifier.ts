import { type CompactToken, readCompactToken } from './compact-token.ts';
import { isKnownAlgorithm, type KeySet } from './key-set.ts';

export type TokenProblem =
  | 'malformed'
  | 'algorithm_not_allowed'
  | 'wrong_issuer'
  | 'wrong_audience'
  | 'wrong_subject'
  | 'expired'
  | 'not_yet_valid'
  | 'lives_too_long'
  | 'claim_missing'
  | 'unknown_key'
  | 'wrong_signature'
  | 'keys_unavailable';

export interface TokenRules {
  /** '': any. */
  readonly issuer: string;
  /** One of them; none: any. */
  readonly audiences: readonly string[];
  /** undefined: any. */
  readonly fitsSubject: ((subject: string) => boolean) | undefined;
  readonly requiresExpiration: boolean;
  /** From when it was issued (or now) to its end; undefined: as long as it says. */
  readonly maxLifetimeSeconds: number | undefined;
  readonly clockSkewSeconds: number;
}

export interface GoodToken {
  readonly token: CompactToken;
  /** In the milliseconds of Date.now(), skew included; Infinity: it has no end. */
  readonly expiresAtMs: number;
}

const maxRemembered = 2_000;

/** Checks tokens of one issuer (RFC 7519, RFC 8725). One that was good is not checked again while it is remembered and lives. */
export class TokenVerifier {
  readonly rules: TokenRules;
  readonly #good: Map<string, GoodToken>;

  constructor(rules: TokenRules) {
    this.rules = rules;
    this.#good = new Map();
  }

  /** A token that was good before, and still is. */
  remembered(text: string, nowMs: number): GoodToken | undefined {
    const good = this.#good.get(text);
    if (good === undefined || nowMs < good.expiresAtMs) return good;
    this.#good.delete(text);
    return undefined;
  }

  /** `keys`: undefined while there are none. */
  verify(text: string, keys: KeySet | undefined, nowMs: number): GoodToken | { readonly problem: TokenProblem } {
    const token = readCompactToken(text);
    if (token === undefined) return { problem: 'malformed' };
    const problem = this.#problemOf(token, keys, nowMs);
    if (problem !== undefined) return { problem };
    const { exp } = token.claims;
    const good = { token, expiresAtMs: typeof exp === 'number' ? (exp + this.rules.clockSkewSeconds) * 1000 : Infinity };
    if (this.#good.size >= maxRemembered) this.#good.delete(this.#good.keys().next().value!);
    this.#good.set(text, good);
    return good;
  }

  /** What costs least is looked at first; the signature last. */
  #problemOf(token: CompactToken, keys: KeySet | undefined, nowMs: number): TokenProblem | undefined {
    const { issuer, audiences, fitsSubject, requiresExpiration, maxLifetimeSeconds, clockSkewSeconds } = this.rules;
    const { iss, aud, sub, exp, nbf, iat } = token.claims;
    if (issuer !== '' && iss !== issuer) return 'wrong_issuer';
    if (!isKnownAlgorithm(token.algorithm)) return 'algorithm_not_allowed';
    for (const time of [exp, nbf, iat]) if (time !== undefined && !Number.isFinite(time)) return 'malformed';
    const now = nowMs / 1000;
    if (exp === undefined && requiresExpiration) return 'claim_missing';
    if (typeof nbf === 'number' && now + clockSkewSeconds < nbf) return 'not_yet_valid';
    if (typeof exp === 'number' && now > exp + clockSkewSeconds) return 'expired';
    if (maxLifetimeSeconds !== undefined && (typeof exp !== 'number' || exp - (typeof iat === 'number' ? iat : now) > maxLifetimeSeconds))
      return 'lives_too_long';
    if (fitsSubject !== undefined && (typeof sub !== 'string' || !fitsSubject(sub))) return 'wrong_subject';
    const given: readonly unknown[] = Array.isArray(aud) ? aud : [aud];
    if (
      audiences.length > 0 &&
      !audiences.some((audience) => given.some((one) => one === audience || (typeof one === 'string' && withoutSlash(one) === withoutSlash(audience))))
    )
      return 'wrong_audience';
    if (keys === undefined) return 'keys_unavailable';
    const verdict = keys.verify(token);
    return verdict === 'good' ? undefined : verdict === 'noKey' ? 'unknown_key' : 'wrong_signature';
  }
}

/** As Envoy compares audiences: neither scheme nor a last slash tells two apart. */
const withoutSlash = (audience: string) => audience.replace(/^https?:\/\//, '').replace(/\/$/, '');
