import { readFileSync } from 'node:fs';
import { isPlainObject } from '@mizzen/api';
import { MizzenError, messageOf, silentLogger } from '@mizzen/common';
import { callHttps } from '@mizzen/common/https-call';
import { createLocalJWKSet, decodeJwt, errors, type JSONWebKeySet, type JWTPayload, jwtVerify } from 'jose';
import { JwksResolver, type KeySource } from './jwks-resolver.ts';
import { clockToleranceSeconds, identityOfSubject, type TokenIdentity, type TokenIssuer, tokenAudience } from './token-issuer.ts';

/** Finds out which workload a bearer token speaks for. */
export interface WorkloadTokens {
  /**
   * `forCertificate`: it is shown for a certificate, by which a token that is good once is used up. Throws MizzenError `invalid-token` with the reason and the remedy; never
   * repeats the token.
   */
  verify(token: string, forCertificate?: boolean): Promise<TokenIdentity>;
}

export interface TokenSources {
  /** Issuers of Kubernetes' service account tokens (https URLs), whose keys are found by OpenID Connect Discovery. */
  readonly issuers?: readonly string[] | undefined;
  /** A Kubernetes API server that is asked about tokens that nobody else knows (authentication.k8s.io/v1 TokenReview). */
  readonly kubernetes?: KubernetesAccess | undefined;
}

export interface KubernetesAccess {
  /** https://host:port */
  readonly api: string;
  /** Who may ask; read anew each time, since Kubernetes changes it. */
  readonly tokenFile: string;
  /** Roots, PEM. */
  readonly caFile: string;
}

const timeoutMs = 5_000;
const maxAnswerBytes = 1024 * 1024;

/** Tokens of this control plane, of issuers that it was told of, and of a Kubernetes cluster. Each token is asked about where it says that it comes from. */
export class KnownTokens implements WorkloadTokens {
  readonly #own: TokenIssuer;
  readonly #sources: TokenSources;
  readonly #issuers: ReadonlyMap<string, KeySource>;
  readonly #keys: JwksResolver;

  constructor(own: TokenIssuer, sources: TokenSources, logger = silentLogger) {
    this.#own = own;
    this.#sources = sources;
    for (const issuer of sources.issuers ?? [])
      if (!/^https:\/\/|^http:\/\/(127\.0\.0\.1|\[::1\]|localhost)[:/]/.test(issuer) || !URL.canParse(issuer))
        throw new MizzenError('bad-option', `the issuer ${JSON.stringify(issuer)} has to be an https URL: its keys are fetched there`);
    this.#issuers = new Map((sources.issuers ?? []).map((issuer) => [issuer, { issuer, jwksUri: undefined, timeoutMs }]));
    this.#keys = new JwksResolver(logger, () => {}, undefined);
    this.#keys.want([...this.#issuers.values()]);
  }

  async verify(token: string, forCertificate = false): Promise<TokenIdentity> {
    const source = this.#issuers.get(claimedIssuer(token) ?? '');
    if (source !== undefined) return this.#byKeys(token, source);
    const { kubernetes } = this.#sources;
    try {
      return await this.#own.verify(token, forCertificate);
    } catch (error) {
      if (kubernetes !== undefined && error instanceof MizzenError && error.code === 'foreign-token') return review(token, kubernetes);
      throw error;
    }
  }

  close(): void {
    this.#keys.close();
  }

  async #byKeys(token: string, source: KeySource): Promise<TokenIdentity> {
    const { issuer } = source;
    const keys = this.#keys.keysOf(source);
    if (keys === undefined)
      throw new MizzenError('invalid-token', `the keys of the issuer ${issuer} are not known: ${this.#keys.problemOf(source) ?? 'they are being fetched'}`);
    let payload: JWTPayload;
    try {
      const options = { issuer, audience: tokenAudience, clockTolerance: clockToleranceSeconds, requiredClaims: ['exp', 'sub'], algorithms: asymmetric };
      payload = (await jwtVerify(token, createLocalJWKSet(JSON.parse(keys) as JSONWebKeySet), options)).payload;
    } catch (error) {
      const reason =
        error instanceof errors.JWTExpired
          ? 'it has expired'
          : error instanceof errors.JWTClaimValidationFailed
            ? `its claim "${error.claim}" is wrong`
            : messageOf(error);
      throw new MizzenError('invalid-token', `the token of ${issuer} is not good: ${reason}. It has to be for the audience ${tokenAudience}.`);
    }
    return identityOfSubject(payload.sub!);
  }
}

function claimedIssuer(token: string): string | undefined {
  try {
    return decodeJwt(token).iss;
  } catch {
    return undefined;
  }
}

const asymmetric = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA'];

/** Throws MizzenError `invalid-token`: also when Kubernetes cannot be asked. */
async function review(token: string, { api, tokenFile, caFile }: KubernetesAccess): Promise<TokenIdentity> {
  let status: unknown;
  try {
    const body = JSON.stringify({ apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', spec: { token, audiences: [tokenAudience] } });
    const answer = await post(`${api.replace(/\/$/, '')}/apis/authentication.k8s.io/v1/tokenreviews`, body, {
      token: readFileSync(tokenFile, 'utf8').trim(),
      ca: readFileSync(caFile, 'utf8'),
    });
    status = isPlainObject(answer) ? answer['status'] : undefined;
    if (!isPlainObject(status)) throw new Error('its answer is no TokenReview');
  } catch (error) {
    throw new MizzenError('invalid-token', `the token could not be checked: the Kubernetes API at ${api} cannot be asked (${messageOf(error)})`);
  }
  const { authenticated, user, audiences, error } = status as Record<string, unknown>;
  if (authenticated !== true)
    throw new MizzenError('invalid-token', `Kubernetes does not know the token${typeof error === 'string' && error ? `: ${error}` : ''}`);
  // An API server that knows nothing of audiences leaves them out: its tokens are for anybody, and so for others than us, too.
  if (!Array.isArray(audiences) || !audiences.includes(tokenAudience))
    throw new MizzenError('invalid-token', `the token is not for the audience ${tokenAudience}: project one that is (serviceAccountToken.audience)`);
  const name = isPlainObject(user) ? user['username'] : undefined;
  return identityOfSubject(typeof name === 'string' ? name : '');
}

async function post(url: string, body: string, { token, ca }: { readonly token: string; readonly ca: string }): Promise<unknown> {
  const headers = { 'content-type': 'application/json', accept: 'application/json', authorization: `Bearer ${token}` };
  const signal = AbortSignal.timeout(timeoutMs);
  const { status, text } = await callHttps(url, { method: 'POST', headers, body, ca, signal, policy: undefined, maxBytes: maxAnswerBytes });
  if (status !== 200 && status !== 201) throw new Error(`it answers with ${status}`);
  try {
    return JSON.parse(text);
  } catch {
    throw new Error('its answer is no JSON');
  }
}
