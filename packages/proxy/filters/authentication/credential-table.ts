import { createHash, createHmac, randomBytes, scrypt, timingSafeEqual } from 'node:crypto';
import { errorBoundary, readPasswordHash } from '@mizzen/common';
import type { ConsumerList } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { Consumer } from '../../http/exchange.ts';

const boundary = errorBoundary('authentication.password');

/**
 * The subject of an issuer's tokens, as the name of a consumer: neither another issuer's subject nor a Consumer (`namespace/name`) can have it.
 */
export function subjectName(issuer: string, subject: string): string {
  return `${issuer.replaceAll('#', '%23')}#${subject}`;
}

/** A consumer as a credential proves it. */
export interface Holder {
  readonly consumer: Consumer;
  /** namespace/name of the credential. */
  readonly credential: string;
  /** Milliseconds since 1970; Infinity: never. */
  readonly expiresAtMs: number;
}

interface Login {
  readonly holder: Holder;
  readonly parameters: { readonly N: number; readonly r: number; readonly p: number };
  readonly salt: Buffer;
  readonly hash: Buffer;
}

/** Passwords cost 30 ms each by design: no more than so many are looked at, or wait for it, at one time. */
const maxPendingPasswords = 32;
/** A password that was right is taken without that cost for so long. */
const rememberMs = 5 * 60_000;
const maxRemembered = 10_000;

/**
 * The credentials of some consumers, found by what their holders show: API keys by their SHA-256, so that the keys themselves are nowhere;
 * passwords against their scrypt hash (RFC 7914).
 */
export class CredentialTable {
  readonly #keys: Map<string, Holder>;
  readonly #logins: Map<string, Login>;
  readonly #hmacKeys: Map<string, { readonly holder: Holder; readonly secret: Buffer }>;
  /** Several namespaces may each map one subject. */
  readonly #subjects: Map<string, Holder[]>;
  readonly #remembered: Map<string, number>;
  readonly #rememberKey: Buffer;
  #pendingPasswords: number;

  /** `onProblem` is told of a credential that cannot be used: it opens nothing, and the others are not affected. */
  constructor({ consumers }: Pick<ConsumerList, 'consumers'>, onProblem: (problem: string) => void) {
    this.#keys = new Map();
    this.#logins = new Map();
    this.#hmacKeys = new Map();
    this.#subjects = new Map();
    this.#remembered = new Map();
    this.#rememberKey = randomBytes(32);
    this.#pendingPasswords = 0;
    for (const { name, groups, credentials } of consumers) {
      const consumer: Consumer = { name, groups, claims: {} };
      for (const credential of credentials) {
        const holder: Holder = {
          consumer,
          credential: credential.name,
          expiresAtMs: credential.expiresAtMs === 0n ? Number.POSITIVE_INFINITY : Number(credential.expiresAtMs),
        };
        const { kind } = credential;
        if (kind.case === 'apiKey') this.#keys.set(Buffer.from(kind.value.sha256).toString('base64'), holder);
        else if (kind.case === 'basic') {
          const login = readLogin(kind.value.passwordHash, holder);
          if (login === undefined) onProblem(`the password of credential ${credential.name} is not a scrypt hash (scrypt$N$r$p$salt$hash)`);
          else this.#logins.set(kind.value.username, login);
        } else if (kind.case === 'hmac') this.#hmacKeys.set(kind.value.keyId, { holder, secret: Buffer.from(kind.value.secret) });
        else if (kind.case === 'jwt') this.#addSubject(subjectName(kind.value.issuer, kind.value.subject), holder);
        else onProblem(`credential ${credential.name} is of an unknown kind`);
      }
    }
  }

  /** Whoever holds this key. The look-up is by its hash: how long it takes says nothing about keys. */
  byApiKey(key: string): Holder | undefined {
    return this.#keys.get(createHash('sha256').update(key).digest('base64'));
  }

  /** The Consumer that a subject, by its `subjectName`, is mapped to, among those that `isMeant` accepts. */
  bySubject(name: string, isMeant: (consumer: Consumer) => boolean): Holder | undefined {
    return this.#subjects.get(name)?.find(({ consumer }) => isMeant(consumer));
  }

  #addSubject(name: string, holder: Holder): void {
    this.#subjects.set(name, [...(this.#subjects.get(name) ?? []), holder]);
  }

  byHmacKeyId(keyId: string): { readonly holder: Holder; readonly secret: Buffer } | undefined {
    return this.#hmacKeys.get(keyId);
  }

  hasLogin(username: string): boolean {
    return this.#logins.has(username);
  }

  /** A login that was right a short while ago; undefined says nothing. */
  rememberedLogin(username: string, password: string, now: number): Holder | undefined {
    const until = this.#remembered.get(this.#fingerprint(username, password));
    return until !== undefined && until > now ? this.#logins.get(username)?.holder : undefined;
  }

  /** Calls `done` later, with the holder, undefined for a wrong login, `busy`, or `failed` after an internal error. */
  checkLogin(username: string, password: string, now: number, done: (holder: Holder | undefined | 'busy' | 'failed') => void): void {
    if (this.#pendingPasswords >= maxPendingPasswords) return done('busy');
    const login = this.#logins.get(username);
    // A name that nobody has takes as long as a wrong password.
    const { parameters, salt, hash } = login ?? noLogin;
    const verify = (error: Error | null, derived: Buffer) => {
      if (error !== null || login === undefined || !timingSafeEqual(derived, hash)) return done(undefined);
      if (this.#remembered.size >= maxRemembered) this.#remembered.clear();
      this.#remembered.set(this.#fingerprint(username, password), now + rememberMs);
      done(login.holder);
    };
    const verified = boundary.wrap(verify, () => done('failed'));
    scrypt(password, salt, hash.length, { ...parameters, maxmem: 256 * parameters.N * parameters.r }, (error, derived) => {
      this.#pendingPasswords--;
      verified(error, derived);
    });
    this.#pendingPasswords++;
  }

  #fingerprint(username: string, password: string): string {
    return createHmac('sha256', this.#rememberKey).update(`${username.length}:${username}${password}`).digest('base64');
  }
}

const noLogin = { parameters: { N: 16_384, r: 8, p: 1 }, salt: Buffer.alloc(16), hash: Buffer.alloc(32) };

function readLogin(text: string, holder: Holder): Login | undefined {
  const password = readPasswordHash(text);
  return password && { holder, ...password };
}
