import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { MizzenError } from '@mizzen/common';
import { errors, type JWTPayload, jwtVerify, SignJWT } from 'jose';
import { readPrivateFile, writePrivateFile } from './private-file.ts';
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
    const path = join(directory, 'token-key.pem');
    let pem = readPrivateFile(path);
    if (!pem) {
      pem = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'pem', type: 'pkcs8' }) as string;
      writePrivateFile(path, pem);
    }
    this.#key = createPrivateKey(pem);
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
    const issuedAt = Math.floor(this.#now() / 1000);
    const expiresAt = issuedAt + Math.floor(seconds);
    const token = await new SignJWT({
      'kubernetes.io': { namespace, serviceaccount: { name: serviceAccount } },
      ...(isOnce ? { 'mizzen.dev': { once: true }, jti: randomUUID() } : {}),
    })
      .setProtectedHeader({ alg: 'ES256', typ: 'JWT' })
      .setIssuer(tokenIssuerName)
      .setSubject(`system:serviceaccount:${namespace}:${serviceAccount}`)
      .setAudience(audiences.length > 0 ? [...audiences] : [tokenAudience])
      .setIssuedAt(issuedAt)
      .setNotBefore(issuedAt)
      .setExpirationTime(expiresAt)
      .sign(this.#key);
    return { token, expiresAt: new Date(expiresAt * 1000) };
  }

  /** A token for a person or a program that uses the API. */
  async issueAccess(name: string, role: string, namespaces: readonly string[] | undefined, seconds: number): Promise<{ token: string; expiresAt: Date }> {
    const issuedAt = Math.floor(this.#now() / 1000);
    const expiresAt = issuedAt + Math.floor(seconds);
    const token = await new SignJWT({ 'mizzen.dev': { role, ...(namespaces === undefined ? {} : { namespaces }) } })
      .setProtectedHeader({ alg: 'ES256', typ: 'JWT' })
      .setIssuer(tokenIssuerName)
      .setSubject(`user:${name}`)
      .setAudience(accessAudience)
      .setIssuedAt(issuedAt)
      .setExpirationTime(expiresAt)
      .sign(this.#key);
    return { token, expiresAt: new Date(expiresAt * 1000) };
  }

  /** Whose a token of the API is. Throws MizzenError `invalid-token`. */
  async verifyAccess(token: string): Promise<{ readonly name: string; readonly role: string; readonly namespaces: readonly string[] | undefined }> {
    const remedy = 'An admin makes a new one with `mizzen kubeconfig --user NAME --role ROLE`.';
    try {
      const { payload } = await jwtVerify(token, this.#publicKey, {
        algorithms: ['ES256'],
        issuer: tokenIssuerName,
        audience: accessAudience,
        clockTolerance: clockToleranceSeconds,
        requiredClaims: ['exp', 'sub'],
        currentDate: new Date(this.#now()),
      });
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
      ({ payload } = await jwtVerify(token, this.#publicKey, {
        algorithms: ['ES256'],
        issuer: tokenIssuerName,
        audience,
        clockTolerance: clockToleranceSeconds,
        requiredClaims: ['exp', 'sub'],
        currentDate: new Date(this.#now()),
      }));
    } catch (error) {
      if (error instanceof errors.JWTExpired) throw new MizzenError('invalid-token', `the token has expired. ${remedy}`);
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
}
