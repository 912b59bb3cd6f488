import { createRequire } from 'node:module';
import { MizzenError, messageOf } from '@mizzen/common';
import type { JwtProvider } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { JWTVerifyGetKey } from 'jose';
import type { Consumer } from '../../http/exchange.ts';

type Jose = typeof import('jose');
let loaded: Jose | undefined;
/** Loaded when the first provider is configured: most proxies have none. */
function jose(): Jose {
  loaded ??= createRequire(import.meta.url)('jose') as Jose;
  return loaded;
}

/** Public-key algorithms (RFC 7518, RFC 8037), and HMAC for key sets that hold such keys. `none` is none of them. */
const algorithms = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA', 'Ed25519', 'HS256', 'HS384', 'HS512'];
const maxTokenLength = 8 * 1024;
const maxRemembered = 2_000;
/** How long a key set from elsewhere is used before it is fetched again; an unknown key asks for it sooner, but not more often than the second. */
const jwksMaxAgeMs = 10 * 60_000;
const jwksCooldownMs = 10_000;
const jwksTimeoutMs = 3_000;

export type JwtResult = { readonly consumer: Consumer; readonly expiresAtMs: number } | { readonly problem: string };

/**
 * Checks tokens of one issuer (RFC 7519, RFC 8725): signature, issuer, audience, times. A token that was good is not checked again while
 * it is remembered and has not expired.
 */
export class JwtVerifier {
  readonly provider: JwtProvider;
  readonly #keys: JWTVerifyGetKey;
  readonly #good: Map<string, { readonly consumer: Consumer; readonly expiresAtMs: number }>;

  constructor(provider: JwtProvider, place: string) {
    this.provider = provider;
    this.#good = new Map();
    try {
      if (provider.keys.case === 'jwks') this.#keys = jose().createLocalJWKSet(JSON.parse(provider.keys.value) as never);
      else if (provider.keys.case === 'jwksUri')
        this.#keys = jose().createRemoteJWKSet(new URL(provider.keys.value), {
          cacheMaxAge: jwksMaxAgeMs,
          cooldownDuration: jwksCooldownMs,
          timeoutDuration: jwksTimeoutMs,
        });
      else throw new Error('neither jwks nor jwks_uri is set');
    } catch (error) {
      throw new MizzenError('invalid-filter', `${place}: the keys of the JWT provider ${provider.name || provider.issuer} cannot be used: ${messageOf(error)}`);
    }
  }

  /** A token that was good before, and still is. */
  remembered(token: string, now: number): Consumer | undefined {
    const good = this.#good.get(token);
    if (good === undefined) return undefined;
    if (now < good.expiresAtMs) return good.consumer;
    this.#good.delete(token);
    return undefined;
  }

  async verify(token: string): Promise<JwtResult> {
    if (token.length > maxTokenLength) return { problem: 'too_long' };
    const { issuer, audiences, clockSkewSeconds, consumerClaim } = this.provider;
    const skew = clockSkewSeconds || 60;
    try {
      const { payload } = await jose().jwtVerify(token, this.#keys, {
        algorithms,
        requiredClaims: ['exp'],
        clockTolerance: skew,
        ...(issuer === '' ? {} : { issuer }),
        ...(audiences.length === 0 ? {} : { audience: [...audiences] }),
      });
      const name = payload[consumerClaim || 'sub'];
      const groups = payload['groups'];
      const consumer: Consumer = {
        name: typeof name === 'string' && /^[\x21-\x7e]{1,200}$/.test(name) ? name : '',
        groups: Array.isArray(groups) ? groups.filter((group): group is string => typeof group === 'string') : [],
        claims: payload,
      };
      const good = { consumer, expiresAtMs: (payload.exp! + skew) * 1000 };
      if (this.#good.size >= maxRemembered) this.#good.delete(this.#good.keys().next().value!);
      this.#good.set(token, good);
      return good;
    } catch (error) {
      return { problem: reasonOf(error) };
    }
  }
}

/** A word of ours for each of jose's error codes. */
function reasonOf(error: unknown): string {
  const { code, claim } = error as { readonly code?: string; readonly claim?: string };
  switch (code) {
    case 'ERR_JWT_EXPIRED':
      return 'expired';
    case 'ERR_JWT_CLAIM_VALIDATION_FAILED':
      return claim === 'aud' ? 'wrong_audience' : claim === 'iss' ? 'wrong_issuer' : claim === 'nbf' ? 'not_yet_valid' : 'claim_missing';
    case 'ERR_JWS_SIGNATURE_VERIFICATION_FAILED':
      return 'wrong_signature';
    case 'ERR_JWKS_NO_MATCHING_KEY':
    case 'ERR_JWKS_MULTIPLE_MATCHING_KEYS':
      return 'unknown_key';
    case 'ERR_JOSE_ALG_NOT_ALLOWED':
    case 'ERR_JOSE_NOT_SUPPORTED':
      return 'algorithm_not_allowed';
    case 'ERR_JWKS_TIMEOUT':
    case 'ERR_JWKS_INVALID':
    case 'ERR_JOSE_GENERIC':
      return 'keys_unavailable';
    case 'ERR_JWS_INVALID':
    case 'ERR_JWT_INVALID':
      return 'malformed';
    default:
      // fetch throws errors without a code of jose's when the keys' server cannot be reached.
      return error instanceof TypeError ? 'keys_unavailable' : 'malformed';
  }
}
