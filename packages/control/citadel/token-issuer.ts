import { createPublicKey, type KeyObject, randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { MizzenError } from '@mizzen/common';
import { clockSays } from '@mizzen/common/certificate-time';
import { errors, type JWTPayload, jwtVerify, SignJWT } from 'jose';
import { signingKeyIn } from './signing-key.ts';
import { UsedTokens } from './used-tokens.ts';

/**
 * Bootstrap tokens: JWTs (ES256) bound to one service account, with the claims of Kubernetes' projected service account tokens, so that
 * whoever can check one can check the other. They prove who a sidecar is until it has its first certificate.
 */
export const tokenAudience = 'istio-ca';
/** Of tokens for the API: none of the two is good for the other's purpose. */
const accessAudience = 'mizzen-api';
const tokenIssuerName = 'mizzen-citadel';
export const clockToleranceSeconds = 60;

export interface TokenIdentity {
  readonly namespace: string;
  readonly serviceAccount: string;
}

const remedy = 'Get a new one with `mizzen token SERVICEACCOUNT`.';

/** Of a token whose subject is a service account, as Kubernetes writes it. Throws MizzenError `invalid-token`. */
export function identityOfSubject(subject: string): TokenIdentity {
  const [system, kind, namespace, serviceAccount, ...rest] = subject.split(':');
  if (system !== 'system' || kind !== 'serviceaccount' || !name.test(namespace ?? '') || !name.test(serviceAccount ?? '') || rest.length > 0)
    throw new MizzenError('invalid-token', `the token is for "${subject}", which is no service account. ${remedy}`);
  return { namespace: namespace!, serviceAccount: serviceAccount! };
}

/** Nothing else may get into a SPIFFE id. */
const name = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/;

export class TokenIssuer {
  readonly #key: KeyObject;
  readonly #publicKey: KeyObject;
  readonly #now: () => number;
  readonly #used: UsedTokens;

  constructor(directory: string, now: () => number = Date.now) {
    this.#key = signingKeyIn(join(directory, 'token-key.pem'));
    this.#publicKey = createPublicKey(this.#key);
    this.#now = now;
    this.#used = new UsedTokens(join(directory, 'used-tokens.json'), now);
  }

  /** `isOnce`: it is used up by the first certificate that is issued for it, and good for nothing else. */
  async issue(
    namespace: string,
    serviceAccount: string,
    audiences: readonly string[],
    seconds: number,
    isOnce = false,
  ): Promise<{ token: string; expiresAt: Date }> {
    const claims = {
      'kubernetes.io': { namespace, serviceaccount: { name: serviceAccount } },
      ...(isOnce ? { 'mizzen.dev': { once: true }, jti: randomUUID() } : {}),
      nbf: Math.floor(this.#now() / 1000),
    };
    return this.#sign(claims, `system:serviceaccount:${namespace}:${serviceAccount}`, audiences.length > 0 ? [...audiences] : [tokenAudience], seconds);
  }

  /** A token for a person or a program that uses the API. */
  async issueAccess(name: string, role: string, namespaces: readonly string[] | undefined, seconds: number): Promise<{ token: string; expiresAt: Date }> {
    const claims = { 'mizzen.dev': { role, ...(namespaces === undefined ? {} : { namespaces }) } };
    return this.#sign(claims, `user:${name}`, accessAudience, seconds);
  }

  /** Whose a token of the API is. Throws MizzenError `invalid-token`. */
  async verifyAccess(token: string): Promise<{ readonly name: string; readonly role: string; readonly namespaces: readonly string[] | undefined }> {
    const remedy = 'An admin makes a new one with `mizzen kubeconfig --user NAME --role ROLE`.';
    try {
      const payload = await this.#read(token, accessAudience);
      const { role, namespaces } = payload['mizzen.dev'] as { readonly role: string; readonly namespaces?: readonly string[] };
      return { name: payload.sub!.replace(/^user:/, ''), role, namespaces };
    } catch (error) {
      if (error instanceof errors.JWTExpired) throw new MizzenError('invalid-token', `the token has expired. ${remedy}`);
      throw new MizzenError('invalid-token', `the token is none of this API's. ${remedy}`);
    }
  }

  /** `audience`: who asks. */
  async verify(token: string, forCertificate = false, audience = tokenAudience): Promise<TokenIdentity> {
    let payload: JWTPayload;
    try {
      payload = await this.#read(token, audience);
    } catch (error) {
      const timeProblem = this.#timeProblem(error);
      if (timeProblem !== undefined) throw new MizzenError('invalid-token', `${timeProblem}. ${remedy}`);
      if (error instanceof errors.JWTClaimValidationFailed)
        throw new MizzenError('invalid-token', `the token's claim "${error.claim}" is not acceptable (the audience must be ${audience}). ${remedy}`);
      throw new MizzenError('foreign-token', `the token was not issued by this control plane. ${remedy}`);
    }
    const { once } = (payload['mizzen.dev'] ?? {}) as { readonly once?: boolean };
    if (once === true) {
      if (!forCertificate) throw new MizzenError('invalid-token', 'the token is good for one certificate, and for nothing else');
      if (!this.#used.use(String(payload.jti), payload.exp! + clockToleranceSeconds))
        throw new MizzenError('invalid-token', `the token was good once, and has been used. ${remedy}`);
    }
    return identityOfSubject(payload.sub!);
  }

  /** What the clock of the control plane has against a token that is of this issuer; undefined: nothing. */
  #timeProblem(error: unknown): string | undefined {
    if (!(error instanceof errors.JWTExpired) && !(error instanceof errors.JWTClaimValidationFailed)) return undefined;
    const { exp, nbf, sub } = error.payload;
    const at = (seconds: number) => new Date(seconds * 1000).toISOString().replace(/\.\d+Z$/, 'Z');
    const says = (seconds: number) => clockSays('the clock of the control plane', this.#now(), seconds * 1000);
    if (error instanceof errors.JWTExpired && exp !== undefined) return `the token has expired (of ${sub}, on ${at(exp)}: ${says(exp)})`;
    if ((error.claim === 'nbf' || error.claim === 'iat') && typeof nbf === 'number' && nbf * 1000 > this.#now())
      return `the token of ${sub} is not valid before ${at(nbf)}: ${says(nbf)}. Set the clock that is wrong`;
    return undefined;
  }

  async #sign(claims: JWTPayload, subject: string, audience: string | string[], seconds: number): Promise<{ token: string; expiresAt: Date }> {
    const issuedAt = Math.floor(this.#now() / 1000);
    const expiresAt = issuedAt + Math.floor(seconds);
    const token = await new SignJWT(claims)
      .setProtectedHeader({ alg: 'ES256', typ: 'JWT' })
      .setIssuer(tokenIssuerName)
      .setSubject(subject)
      .setAudience(audience)
      .setIssuedAt(issuedAt)
      .setExpirationTime(expiresAt)
      .sign(this.#key);
    return { token, expiresAt: new Date(expiresAt * 1000) };
  }

  /** What a token of ours says. Throws what jose throws. */
  async #read(token: string, audience: string): Promise<JWTPayload> {
    const options = { algorithms: ['ES256'], issuer: tokenIssuerName, audience, clockTolerance: clockToleranceSeconds, requiredClaims: ['exp', 'sub'] };
    return (await jwtVerify(token, this.#publicKey, { ...options, currentDate: new Date(this.#now()) })).payload;
  }
}
