import { MizzenError, messageOf } from '@mizzen/common';
import { FetchPolicy } from '@mizzen/common/fetch-policy';
import type { JwtProvider } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { Consumer } from '../../http/exchange.ts';
import { KeySet } from '../../jwt/key-set.ts';
import { RemoteKeys } from '../../jwt/remote-keys.ts';
import { type GoodToken, type TokenProblem, TokenVerifier } from '../../jwt/token-verifier.ts';
import { subjectName } from './credential-table.ts';

export type JwtResult = { readonly consumer: Consumer } | { readonly problem: TokenProblem };

/** Checks the tokens of one issuer for an API, and tells whose they are. */
export class JwtVerifier {
  readonly provider: JwtProvider;
  readonly #verifier: TokenVerifier;
  readonly #keys: KeySet | RemoteKeys;
  readonly #consumers: WeakMap<GoodToken, Consumer>;

  constructor(provider: JwtProvider, place: string) {
    this.provider = provider;
    this.#consumers = new WeakMap();
    this.#verifier = new TokenVerifier({
      issuer: provider.issuer,
      audiences: provider.audiences,
      fitsSubject: undefined,
      requiresExpiration: true,
      maxLifetimeSeconds: undefined,
      clockSkewSeconds: provider.clockSkewSeconds || 60,
    });
    try {
      if (provider.keys.case === 'jwks') this.#keys = KeySet.read(provider.keys.value);
      else if (provider.keys.case === 'jwksUri') this.#keys = new RemoteKeys(provider.keys.value, new FetchPolicy(provider.allowedFetchHosts));
      else throw new Error('neither jwks nor jwks_uri is set');
    } catch (error) {
      throw new MizzenError('invalid-filter', `${place}: the keys of the JWT provider ${provider.name || provider.issuer} cannot be used: ${messageOf(error)}`);
    }
  }

  /** A token that was good before, and still is. */
  remembered(token: string, now: number): Consumer | undefined {
    const good = this.#verifier.remembered(token, now);
    return good && this.#consumerOf(good);
  }

  async verify(token: string): Promise<JwtResult> {
    const now = Date.now();
    const keys = this.#keys instanceof RemoteKeys ? await this.#keys.get(false) : this.#keys;
    let result = this.#verifier.verify(token, keys, now);
    if ('problem' in result && result.problem === 'unknown_key' && this.#keys instanceof RemoteKeys)
      result = this.#verifier.verify(token, await this.#keys.get(true), now);
    return 'problem' in result ? result : { consumer: this.#consumerOf(result) };
  }

  #consumerOf(good: GoodToken): Consumer {
    let consumer = this.#consumers.get(good);
    if (consumer === undefined) {
      const { claims } = good.token;
      const name = claims[this.provider.consumerClaim || 'sub'];
      const { groupsClaim } = this.provider;
      const groups = groupsClaim === '' ? undefined : claims[groupsClaim];
      consumer = {
        name: typeof name === 'string' && /^[\x21-\x7e]{1,200}$/.test(name) ? subjectName(this.provider.issuer, name) : '',
        groups: Array.isArray(groups)
          ? groups.filter((group): group is string => typeof group === 'string')
          : typeof groups === 'string'
            ? groups.split(' ').filter(Boolean)
            : [],
        claims,
      };
      this.#consumers.set(good, consumer);
    }
    return consumer;
  }
}
