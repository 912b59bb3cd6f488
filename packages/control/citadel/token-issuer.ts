import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { join } from 'node:path';
import { MizzenError } from '@mizzen/common';
import { errors, jwtVerify, SignJWT } from 'jose';
import { readPrivateFile, writePrivateFile } from './private-file.ts';

/**
 * Bootstrap tokens: JWTs (ES256) bound to one service account, with the claims of Kubernetes' projected service account tokens, so that
 * whoever can check one can check the other. They prove who a sidecar is until it has its first certificate.
 */
export const tokenAudience = 'istio-ca';
/** Of tokens for the API: none of the two is good for the other's purpose. */
const accessAudience = 'mizzen-api';
const issuer = 'mizzen-citadel';
const clockToleranceSeconds = 60;

export interface TokenIdentity {
  readonly namespace: string;
  readonly serviceAccount: string;
}

export class TokenIssuer {
  readonly #key: KeyObject;
  readonly #publicKey: KeyObject;
  readonly #now: () => number;

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
  }

  async issue(namespace: string, serviceAccount: string, audiences: readonly string[], seconds: number): Promise<{ token: string; expiresAt: Date }> {
    const issuedAt = Math.floor(this.#now() / 1000);
    const expiresAt = issuedAt + Math.floor(seconds);
    const token = await new SignJWT({ 'kubernetes.io': { namespace, serviceaccount: { name: serviceAccount } } })
      .setProtectedHeader({ alg: 'ES256', typ: 'JWT' })
      .setIssuer(issuer)
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
      .setIssuer(issuer)
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
        issuer,
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

  /** Who a token speaks for. Throws MizzenError `invalid-token` with the reason and the remedy; never repeats the token. */
  async verify(token: string): Promise<TokenIdentity> {
    const remedy = 'Get a new one with `mizzen token SERVICEACCOUNT`.';
    let subject: string;
    try {
      const { payload } = await jwtVerify(token, this.#publicKey, {
        algorithms: ['ES256'],
        issuer,
        audience: tokenAudience,
        clockTolerance: clockToleranceSeconds,
        requiredClaims: ['exp', 'sub'],
        currentDate: new Date(this.#now()),
      });
      subject = payload.sub!;
    } catch (error) {
      if (error instanceof errors.JWTExpired) throw new MizzenError('invalid-token', `the token has expired. ${remedy}`);
      if (error instanceof errors.JWTClaimValidationFailed)
        throw new MizzenError('invalid-token', `the token's claim "${error.claim}" is not acceptable (the audience must be ${tokenAudience}). ${remedy}`);
      throw new MizzenError('invalid-token', `the token was not issued by this control plane. ${remedy}`);
    }
    const [system, kind, namespace, serviceAccount, ...rest] = subject.split(':');
    if (system !== 'system' || kind !== 'serviceaccount' || !namespace || !serviceAccount || rest.length > 0)
      throw new MizzenError('invalid-token', `the token is for "${subject}", which is no service account. ${remedy}`);
    return { namespace, serviceAccount };
  }
}
