import { createHmac } from 'node:crypto';
import { type CryptoKey, exportJWK, exportSPKI, generateKeyPair, type JWTPayload, SignJWT } from 'jose';

interface Key {
  readonly privateKey: CryptoKey;
  readonly publicPem: string;
}

/** Keys of an issuer, and tokens signed with them. */
export class TokenIssuer {
  readonly issuer: string;
  readonly jwks: string;
  readonly #keys: ReadonlyMap<string, Key>;

  private constructor(issuer: string, jwks: string, keys: ReadonlyMap<string, Key>) {
    this.issuer = issuer;
    this.jwks = jwks;
    this.#keys = keys;
  }

  static async create(issuer: string, algorithms: readonly string[] = ['RS256', 'ES256']): Promise<TokenIssuer> {
    const keys = new Map<string, Key>();
    const jwks = await Promise.all(
      algorithms.map(async (alg) => {
        const { publicKey, privateKey } = await generateKeyPair(alg, { extractable: true });
        keys.set(alg, { privateKey: privateKey, publicPem: await exportSPKI(publicKey) });
        return { ...(await exportJWK(publicKey)), alg, kid: `${issuer}/${alg}`, use: 'sig' };
      }),
    );
    return new TokenIssuer(issuer, JSON.stringify({ keys: jwks }), keys);
  }

  get algorithms(): string[] {
    return [...this.#keys.keys()];
  }

  /** Ends in an hour unless `claims.exp` says otherwise. */
  sign(
    claims: JWTPayload = {},
    { alg = 'RS256', header = {} }: { readonly alg?: string; readonly header?: Readonly<Record<string, unknown>> } = {},
  ): Promise<string> {
    const now = Math.floor(Date.now() / 1000);
    return new SignJWT({ iss: this.issuer, sub: 'anna', exp: now + 3600, iat: now, ...claims })
      .setProtectedHeader({ alg, kid: `${this.issuer}/${alg}`, ...header })
      .sign(this.#keys.get(alg)!.privateKey);
  }

  /** Made up by somebody who knows the public key only. */
  forgeries(claims: JWTPayload = {}): Readonly<Record<string, string>> {
    const payload = encoded({ iss: this.issuer, sub: 'anna', exp: Math.floor(Date.now() / 1000) + 3600, ...claims });
    const unsigned = (header: object) => `${encoded(header)}.${payload}.`;
    const byHmac = `${encoded({ alg: 'HS256', kid: `${this.issuer}/RS256` })}.${payload}`;
    return {
      'alg none': unsigned({ alg: 'none' }),
      'alg None': unsigned({ alg: 'None' }),
      'alg none with a signature': `${unsigned({ alg: 'none' })}AAAA`,
      'HMAC by the public key': `${byHmac}.${createHmac('sha256', this.#keys.get('RS256')!.publicPem).update(byHmac).digest('base64url')}`,
      'HMAC without a key id': (() => {
        const text = `${encoded({ alg: 'HS256' })}.${payload}`;
        return `${text}.${createHmac('sha256', this.#keys.get('RS256')!.publicPem).update(text).digest('base64url')}`;
      })(),
      'a key id that is a path': `${encoded({ alg: 'RS256', kid: '../../../../dev/null' })}.${payload}.AAAA`,
      'a key of its own': `${encoded({ alg: 'RS256', jwk: { kty: 'oct', k: 'AAAA' }, jku: 'http://127.0.0.1:1/keys' })}.${payload}.AAAA`,
      'an empty signature': `${encoded({ alg: 'RS256', kid: `${this.issuer}/RS256` })}.${payload}.`,
    };
  }
}

const encoded = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
