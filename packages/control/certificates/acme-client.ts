import { createHmac, createPublicKey, type KeyObject } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { MizzenError, messageOf } from '@mizzen/common';
import type { FetchPolicy } from '@mizzen/common/fetch-policy';
import { callHttps } from '@mizzen/common/https-call';
import { calculateJwkThumbprint, FlattenedSign, type JWK } from 'jose';

export interface AcmeOptions {
  /** The directory's URL. */
  readonly server: string;
  readonly email: string | undefined;
  /** Of the account: ECDSA P-256. */
  readonly key: KeyObject;
  /** Roots by which the server is known, PEM; undefined: those of the public web. */
  readonly roots: string | undefined;
  /** Of an account elsewhere that this one belongs to (RFC 8555 section 7.3.4). */
  readonly binding?: { readonly keyId: string; readonly key: Buffer } | undefined;
  readonly signal: AbortSignal;
  /** Where the server's URLs may lead. */
  readonly policy: FetchPolicy | undefined;
}

/** What has to be found at `http://DOMAIN/.well-known/acme-challenge/TOKEN` (RFC 8555 section 8.3). */
export interface HttpChallenge {
  readonly domain: string;
  readonly token: string;
  readonly answer: string;
}

interface Directory {
  readonly newNonce: string;
  readonly newAccount: string;
  readonly newOrder: string;
}

interface Answer {
  readonly status: number;
  readonly location: string | undefined;
  readonly retryAfterMs: number;
  readonly text: string;
}

interface Authorization {
  readonly status: string;
  readonly identifier: { readonly type: string; readonly value: string };
  readonly challenges: readonly { readonly type: string; readonly url: string; readonly token: string; readonly error?: Problem }[];
}

interface Order {
  readonly status: string;
  readonly authorizations: readonly string[];
  readonly finalize: string;
  readonly certificate?: string;
  readonly error?: Problem;
}

/** RFC 7807. */
interface Problem {
  readonly type?: string;
  readonly detail?: string;
  readonly subproblems?: readonly Problem[];
}

const requestTimeoutMs = 30_000;
const maxAnswerBytes = 1024 * 1024;
const pollMs = 1_000;
const maxPolls = 120;
const maxNonceTries = 10;

/** A client of one account at one ACME server (RFC 8555), for certificates of names that are proved by HTTP. */
export class AcmeClient {
  readonly #options: AcmeOptions;
  #directory: Directory | undefined;
  /** The account's URL. */
  #account: string | undefined;
  #nonce: string | undefined;

  constructor(options: AcmeOptions) {
    this.#options = options;
    this.#directory = undefined;
    this.#account = undefined;
    this.#nonce = undefined;
  }

  /** Registers the account, or finds it by its key. Returns its URL. */
  async register(): Promise<string> {
    if (this.#account !== undefined) return this.#account;
    const { email, binding, key } = this.#options;
    const { newAccount } = await this.#find();
    const jwk = createPublicKey(key).export({ format: 'jwk' });
    const { location } = await this.#post(newAccount, {
      termsOfServiceAgreed: true,
      ...(email === undefined ? {} : { contact: [`mailto:${email}`] }),
      ...(binding === undefined ? {} : { externalAccountBinding: bound(jwk, binding, newAccount) }),
    });
    if (location === undefined) throw new MizzenError('certificate-not-issued', 'the server has made an account without a URL');
    this.#account = location;
    return location;
  }

  /** `csr`: DER. `prove` has to put answers where they are looked for. Resolves to the chain, PEM. Throws Error with what the server says. */
  async certificate(names: readonly string[], csr: Buffer, prove: (challenges: readonly HttpChallenge[]) => Promise<void>): Promise<string> {
    await this.register();
    const { newOrder } = await this.#find();
    const made = await this.#post(newOrder, { identifiers: names.map((value) => ({ type: 'dns', value })) });
    const { location } = made;
    if (location === undefined) throw new MizzenError('certificate-not-issued', 'the server has made an order without a URL');
    const { authorizations, finalize } = parse<Order>(made);
    const ordered = new Set(names.map((name) => name.toLowerCase()));
    const pending: { readonly at: string; readonly url: string; readonly challenge: HttpChallenge }[] = [];
    for (const at of authorizations) {
      const { status, identifier, challenges } = parse<Authorization>(await this.#post(at));
      // The server chooses the identifier: a name that was not ordered is not proved for it.
      const domain = String(identifier?.value).toLowerCase();
      if (identifier?.type !== 'dns' || !ordered.has(domain))
        throw new MizzenError(
          'certificate-not-issued',
          `the server requests a proof of ${JSON.stringify(identifier?.value)}, which is not in the order for ${names.join(', ')}`,
        );
      if (status === 'valid') continue;
      const http = challenges.find(({ type }) => type === 'http-01');
      if (http === undefined)
        throw new MizzenError(
          'certificate-not-issued',
          `${identifier.value} cannot be proved by http-01 there, but by ${challenges.map(({ type }) => type).join(', ')}`,
        );
      pending.push({ at, url: http.url, challenge: { domain, token: http.token, answer: await this.#answerTo(http.token) } });
    }
    await prove(pending.map(({ challenge }) => challenge));
    for (const { url } of pending) await this.#post(url, {});
    for (const { at } of pending) await this.#proved(at);
    await this.#post(finalize, { csr: csr.toString('base64url') });
    const order = await this.#poll<Order>(location, ({ status }) => status === 'valid' || status === 'invalid');
    if (order.status !== 'valid' || order.certificate === undefined)
      throw new MizzenError('certificate-not-issued', `the order came to nothing: ${describe(order.error)}`);
    return (await this.#post(order.certificate)).text;
  }

  async #proved(at: string): Promise<void> {
    const { status, identifier, challenges } = await this.#poll<Authorization>(at, (one) => one.status !== 'pending');
    if (status !== 'valid')
      throw new MizzenError(
        'certificate-not-issued',
        `${identifier.value} was not proved: ${describe(challenges.find(({ error }) => error !== undefined)?.error)}`,
      );
  }

  async #answerTo(token: string): Promise<string> {
    if (!/^[\w-]{1,200}$/.test(token)) throw new MizzenError('certificate-not-issued', 'the server has sent a token that is none (RFC 8555 section 8.1)');
    return `${token}.${await calculateJwkThumbprint(createPublicKey(this.#options.key).export({ format: 'jwk' }) as JWK)}`;
  }

  async #poll<T>(url: string, isOver: (value: T) => boolean): Promise<T> {
    for (let i = 0; i < maxPolls; i++) {
      const answer = await this.#post(url);
      const value = parse<T>(answer);
      if (isOver(value)) return value;
      await sleep(answer.retryAfterMs || pollMs, undefined, { signal: this.#options.signal });
    }
    throw new MizzenError('certificate-not-issued', `${url} has not come to an end`);
  }

  async #find(): Promise<Directory> {
    if (this.#directory === undefined) {
      const answer = await this.#send('GET', this.#options.server);
      if (answer.status !== 200) throw new MizzenError('certificate-not-issued', `${this.#options.server} answers with ${answer.status}`);
      const directory = parse<Partial<Directory>>(answer);
      const { newNonce, newAccount, newOrder } = directory;
      if (!newNonce || !newAccount || !newOrder)
        throw new MizzenError('certificate-not-issued', `${this.#options.server} is no ACME directory (RFC 8555 section 7.1.1)`);
      this.#directory = { newNonce, newAccount, newOrder };
    }
    return this.#directory;
  }

  /** `payload` undefined: POST-as-GET (RFC 8555 section 6.3). */
  async #post(url: string, payload?: object): Promise<Answer> {
    const { key } = this.#options;
    const { newNonce } = await this.#find();
    for (let i = 0; ; i++) {
      if (this.#nonce === undefined) await this.#send('HEAD', newNonce);
      const nonce = this.#nonce;
      this.#nonce = undefined;
      if (nonce === undefined) throw new MizzenError('certificate-not-issued', 'the server gives no nonces');
      const identity = this.#account === undefined ? { jwk: createPublicKey(key).export({ format: 'jwk' }) as JWK } : { kid: this.#account };
      const signed = await new FlattenedSign(payload === undefined ? new Uint8Array() : Buffer.from(JSON.stringify(payload)))
        .setProtectedHeader({ alg: 'ES256', nonce, url, ...identity })
        .sign(key);
      const answer = await this.#send('POST', url, JSON.stringify(signed));
      if (answer.status < 300) return answer;
      const problem = problemIn(answer);
      if (problem?.type !== 'urn:ietf:params:acme:error:badNonce' || i >= maxNonceTries)
        throw new MizzenError('certificate-not-issued', problem === undefined ? `${url} answers with ${answer.status}` : describe(problem));
    }
  }

  async #send(method: string, url: string, body?: string): Promise<Answer> {
    const { roots, signal, policy } = this.#options;
    const content = body === undefined ? {} : { 'content-type': 'application/jose+json', 'content-length': Buffer.byteLength(body) };
    try {
      const { status, headers, text } = await callHttps(url, {
        ...{ method, body, headers: { 'user-agent': 'mizzen', ...content }, maxBytes: maxAnswerBytes },
        ...(roots === undefined ? {} : { ca: roots }),
        policy,
        signal: AbortSignal.any([signal, AbortSignal.timeout(requestTimeoutMs)]),
      });
      const { 'replay-nonce': nonce, location, 'retry-after': retryAfter } = headers;
      if (typeof nonce === 'string') this.#nonce = nonce;
      return { status, location, retryAfterMs: Math.min(Number(retryAfter ?? 0) || 0, 60) * 1_000, text };
    } catch (error) {
      throw new MizzenError('certificate-not-issued', `${new URL(url).host}: ${messageOf(error)}`);
    }
  }
}

/** The key of the account, signed by the key that the other account was given for it. */
function bound(jwk: object, { keyId, key }: { readonly keyId: string; readonly key: Buffer }, url: string): object {
  const header = Buffer.from(JSON.stringify({ alg: 'HS256', kid: keyId, url })).toString('base64url');
  const payload = Buffer.from(JSON.stringify(jwk)).toString('base64url');
  return { protected: header, payload, signature: createHmac('sha256', key).update(`${header}.${payload}`).digest('base64url') };
}

function parse<T>({ text }: Answer): T {
  try {
    return JSON.parse(text) as T;
  } catch {
    throw new MizzenError('certificate-not-issued', 'the server’s answer is no JSON');
  }
}

function problemIn({ text }: Answer): Problem | undefined {
  try {
    return JSON.parse(text) as Problem;
  } catch {
    return undefined;
  }
}

function describe(problem: Problem | undefined): string {
  if (problem === undefined) return 'the server does not say why';
  const type = problem.type?.replace('urn:ietf:params:acme:error:', '') ?? 'error';
  return [`${type}: ${problem.detail ?? ''}`, ...(problem.subproblems ?? []).map(describe)].join('; ');
}
