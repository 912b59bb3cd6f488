import { MizzenError, messageOf } from '@mizzen/common';
import type { FetchPolicy } from '@mizzen/common/fetch-policy';
import { callHttps, type HttpsCall } from '@mizzen/common/https-call';
import { RemoteKeys } from '../../jwt/remote-keys.ts';
import { TokenVerifier } from '../../jwt/token-verifier.ts';

const timeoutMs = 5_000;
const maxBytes = 256 * 1024;
const discoveryLivesMs = 60 * 60_000;
const discoveryPauseMs = 2_000;

export interface Client {
  readonly issuer: string;
  readonly id: string;
  /** '': a public client. Read at each use: it may change. */
  readonly secret: () => string;
  /** Where its URLs may lead, those that its metadata names included. */
  readonly policy: FetchPolicy;
}

/** OpenID Connect Discovery 1.0 section 3, as far as it matters here. */
interface Discovered {
  /** Every answer carries `iss` (RFC 9207 section 3). */
  readonly namesIssuer: boolean;
  readonly authorizationEndpoint: string;
  readonly tokenEndpoint: string;
  readonly userinfoEndpoint: string | undefined;
  readonly endSessionEndpoint: string | undefined;
  readonly revocationEndpoint: string | undefined;
  readonly keys: RemoteKeys;
  readonly takesSecretInBody: boolean;
}

export interface Tokens {
  readonly accessToken: string | undefined;
  /** In the milliseconds of Date.now(). */
  readonly accessTokenEndsAt: number | undefined;
  readonly refreshToken: string | undefined;
  readonly idToken: string | undefined;
  readonly claims: Readonly<Record<string, unknown>> | undefined;
}

/** What the provider says no to; anything else that goes wrong is a MizzenError `provider-unavailable`. */
export class RefusedByProvider extends Error {}

/** Somebody who knows end users: what a relying party asks of it (OpenID Connect Core 1.0, RFC 6749, RFC 7636). */
export class OpenIdProvider {
  readonly #client: Client;
  readonly #verifier: TokenVerifier;
  #discovered: Promise<Discovered> | undefined;
  #discoveredAt: number;

  constructor(client: Client) {
    this.#client = client;
    this.#discovered = undefined;
    this.#discoveredAt = 0;
    this.#verifier = new TokenVerifier({
      ...{ issuer: client.issuer, audiences: [client.id], fitsSubject: undefined, requiresExpiration: true },
      ...{ maxLifetimeSeconds: undefined, clockSkewSeconds: 60 },
    });
  }

  /** Where a browser is sent to log in. */
  async authorizationUrl(parameters: Readonly<Record<string, string>>): Promise<string> {
    const { authorizationEndpoint } = await this.#discover();
    return withQuery(authorizationEndpoint, { client_id: this.#client.id, response_type: 'code', ...parameters });
  }

  /** Whether an answer without `iss` cannot be this provider's. */
  async namesIssuer(): Promise<boolean> {
    return (await this.#discover()).namesIssuer;
  }

  /** Where a browser is sent to log out; undefined: the provider has no such place. */
  async endSessionUrl(returnTo: string, idToken: string | undefined): Promise<string | undefined> {
    const { endSessionEndpoint } = await this.#discover();
    const hint: Record<string, string> = idToken === undefined ? {} : { id_token_hint: idToken };
    return endSessionEndpoint && withQuery(endSessionEndpoint, { client_id: this.#client.id, post_logout_redirect_uri: returnTo, ...hint });
  }

  /** Ends a token at the provider (RFC 7009), so that a copy of the session cannot be refreshed by any gateway. Without a revocation endpoint nothing happens. */
  async revoke(token: string, kind: 'refresh_token' | 'access_token'): Promise<void> {
    const { revocationEndpoint } = await this.#discover();
    if (revocationEndpoint === undefined) return;
    const { status } = await this.#post(revocationEndpoint, { token, token_type_hint: kind });
    if (status !== 200) throw unavailable(`the revocation endpoint responded with ${status}`);
  }

  /** `wanted`: claims that are asked of the userinfo endpoint where the ID token lacks them. */
  async exchange(code: string, verifier: string, redirectUri: string, nonce: string, wanted: readonly string[]): Promise<Tokens> {
    const tokens = await this.#tokens({ grant_type: 'authorization_code', code, code_verifier: verifier, redirect_uri: redirectUri }, nonce);
    if (tokens.claims === undefined) throw new RefusedByProvider('it sent no ID token');
    const { userinfoEndpoint } = await this.#discover();
    if (userinfoEndpoint === undefined || tokens.accessToken === undefined || wanted.every((claim) => tokens.claims![claim] !== undefined)) return tokens;
    const { status, body } = await this.#fetch(userinfoEndpoint, { headers: { authorization: `Bearer ${tokens.accessToken}`, accept: 'application/json' } });
    // Core section 5.3.2: about somebody else it is no answer.
    if (status !== 200 || body['sub'] !== tokens.claims['sub']) return tokens;
    return { ...tokens, claims: { ...body, ...tokens.claims } };
  }

  async refresh(refreshToken: string): Promise<Tokens> {
    const tokens = await this.#tokens({ grant_type: 'refresh_token', refresh_token: refreshToken }, undefined);
    return { ...tokens, refreshToken: tokens.refreshToken ?? refreshToken };
  }

  async #tokens(parameters: Readonly<Record<string, string>>, nonce: string | undefined): Promise<Tokens> {
    const { tokenEndpoint, keys } = await this.#discover();
    const { status, body } = await this.#post(tokenEndpoint, parameters);
    if (status >= 500) throw unavailable(`the token endpoint answered ${status}`);
    if (status !== 200)
      throw new RefusedByProvider(`the token endpoint answered ${status} ${printable(body['error'])}: ${printable(body['error_description'])}`);
    const text = (name: string) => (typeof body[name] === 'string' && body[name] !== '' ? (body[name] as string) : undefined);
    const seconds = Number(body['expires_in']);
    const idToken = text('id_token');
    return {
      accessToken: text('access_token'),
      accessTokenEndsAt: Number.isFinite(seconds) && seconds > 0 ? Date.now() + seconds * 1_000 : undefined,
      refreshToken: text('refresh_token'),
      idToken,
      claims: idToken === undefined ? undefined : await this.#verify(idToken, keys, nonce),
    };
  }

  /** A form, from a client that proves who it is. */
  async #post(
    url: string,
    parameters: Readonly<Record<string, string>>,
  ): Promise<{ readonly status: number; readonly body: Readonly<Record<string, unknown>> }> {
    const { id } = this.#client;
    const secret = this.#client.secret();
    const { takesSecretInBody } = await this.#discover();
    const isInBody = secret === '' || takesSecretInBody;
    const form = new URLSearchParams({
      ...parameters,
      ...(isInBody ? { client_id: id } : {}),
      ...(isInBody && secret !== '' ? { client_secret: secret } : {}),
    });
    // RFC 6749 section 2.3.1: both are encoded as in a form first.
    const encode = (text: string) => new URLSearchParams({ '': text }).toString().slice(1);
    const authorization = isInBody ? {} : { authorization: `Basic ${Buffer.from(`${encode(id)}:${encode(secret)}`).toString('base64')}` };
    return this.#fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/x-www-form-urlencoded', accept: 'application/json', ...authorization },
      body: form.toString(),
    });
  }

  /** Core section 3.1.3.7. */
  async #verify(idToken: string, keys: RemoteKeys, nonce: string | undefined): Promise<Readonly<Record<string, unknown>>> {
    let result = this.#verifier.verify(idToken, await keys.get(false), Date.now());
    if ('problem' in result && result.problem === 'unknown_key') result = this.#verifier.verify(idToken, await keys.get(true), Date.now());
    if ('problem' in result) {
      if (result.problem === 'keys_unavailable') throw unavailable('its keys cannot be fetched');
      throw new RefusedByProvider(`its ID token is not good: ${result.problem.replaceAll('_', ' ')}`);
    }
    const { claims } = result.token;
    if (nonce !== undefined && claims['nonce'] !== nonce) throw new RefusedByProvider('its ID token is for another login');
    if (claims['azp'] !== undefined && claims['azp'] !== this.#client.id) throw new RefusedByProvider('its ID token is for another client');
    if (typeof claims['sub'] !== 'string' || claims['sub'] === '') throw new RefusedByProvider('its ID token names nobody');
    return claims;
  }

  #discover(): Promise<Discovered> {
    const now = performance.now();
    if (this.#discovered === undefined || now - this.#discoveredAt > discoveryLivesMs) {
      const before = this.#discovered;
      const asking = this.#askForMetadata();
      this.#discovered = asking;
      this.#discoveredAt = now;
      asking.catch(() => {
        // What was known before is used on; who knows nothing yet tries again soon, but not with each request.
        if (this.#discovered !== asking) return;
        this.#discovered = before ?? asking;
        this.#discoveredAt = now - discoveryLivesMs + discoveryPauseMs;
      });
      if (before !== undefined) return asking.catch(() => before);
    }
    return this.#discovered;
  }

  async #askForMetadata(): Promise<Discovered> {
    const { issuer } = this.#client;
    const { status, body } = await this.#fetch(`${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`, { headers: { accept: 'application/json' } });
    if (status !== 200) throw unavailable(`its metadata was answered with ${status}`);
    if (body['issuer'] !== issuer) throw unavailable(`its metadata is of another issuer: ${printable(body['issuer'])}`);
    const isSecure = issuer.startsWith('https:');
    const url = (name: string) => {
      const value = body[name];
      if (typeof value !== 'string' || !URL.canParse(value)) return undefined;
      if (isSecure && !value.startsWith('https:')) throw unavailable(`its ${name} is not https`);
      return value;
    };
    const [authorizationEndpoint, tokenEndpoint, keys] = [url('authorization_endpoint'), url('token_endpoint'), url('jwks_uri')];
    if (authorizationEndpoint === undefined || tokenEndpoint === undefined || keys === undefined)
      throw unavailable('its metadata lacks authorization_endpoint, token_endpoint or jwks_uri');
    const methods = body['token_endpoint_auth_methods_supported'];
    return {
      namesIssuer: body['authorization_response_iss_parameter_supported'] === true,
      ...{ authorizationEndpoint, tokenEndpoint, userinfoEndpoint: url('userinfo_endpoint'), endSessionEndpoint: url('end_session_endpoint') },
      revocationEndpoint: url('revocation_endpoint'),
      keys: new RemoteKeys(keys, this.#client.policy),
      takesSecretInBody: Array.isArray(methods) && !methods.includes('client_secret_basic') && methods.includes('client_secret_post'),
    };
  }

  /** Redirects are not followed. */
  async #fetch(
    url: string,
    call: Pick<HttpsCall, 'method' | 'headers' | 'body'>,
  ): Promise<{ readonly status: number; readonly body: Readonly<Record<string, unknown>> }> {
    try {
      const { status, text } = await callHttps(url, { ...call, policy: this.#client.policy, signal: AbortSignal.timeout(timeoutMs), maxBytes });
      return { status, body: readObject(text) };
    } catch (error) {
      throw unavailable(messageOf(error));
    }
  }
}

function readObject(text: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

function withQuery(url: string, parameters: Readonly<Record<string, string>>): string {
  const whole = new URL(url);
  for (const [name, value] of Object.entries(parameters)) whole.searchParams.set(name, value);
  return whole.href;
}

const unavailable = (detail: string) => new MizzenError('provider-unavailable', `the OpenID provider cannot be used: ${detail}`);

const printable = (value: unknown) => (typeof value === 'string' ? value.replace(/[^\x20-\x7e]/g, '').slice(0, 200) : '');
