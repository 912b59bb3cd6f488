import { createHmac, createPublicKey, type JsonWebKey, type KeyObject, timingSafeEqual, verify } from 'node:crypto';
import type { CompactToken } from './compact-token.ts';

interface Algorithm {
  readonly keyType: 'RSA' | 'EC' | 'OKP' | 'oct';
  readonly curve?: string;
  readonly hash: string | null;
  readonly isPss?: boolean;
}

/** RFC 7518 section 3, RFC 8037. Each is for one type of key: nobody passes a public key off as a secret. */
const algorithms: Readonly<Record<string, Algorithm>> = {
  RS256: { keyType: 'RSA', hash: 'sha256' },
  RS384: { keyType: 'RSA', hash: 'sha384' },
  RS512: { keyType: 'RSA', hash: 'sha512' },
  PS256: { keyType: 'RSA', hash: 'sha256', isPss: true },
  PS384: { keyType: 'RSA', hash: 'sha384', isPss: true },
  PS512: { keyType: 'RSA', hash: 'sha512', isPss: true },
  ES256: { keyType: 'EC', curve: 'P-256', hash: 'sha256' },
  ES384: { keyType: 'EC', curve: 'P-384', hash: 'sha384' },
  ES512: { keyType: 'EC', curve: 'P-521', hash: 'sha512' },
  EdDSA: { keyType: 'OKP', curve: 'Ed25519', hash: null },
  Ed25519: { keyType: 'OKP', curve: 'Ed25519', hash: null },
  HS256: { keyType: 'oct', hash: 'sha256' },
  HS384: { keyType: 'oct', hash: 'sha384' },
  HS512: { keyType: 'oct', hash: 'sha512' },
};

export const isKnownAlgorithm = (name: string) => Object.hasOwn(algorithms, name);

interface Key {
  readonly id: string | undefined;
  /** undefined: any that is for its type. */
  readonly algorithm: string | undefined;
  readonly type: string;
  readonly curve: string | undefined;
  readonly material: KeyObject | Buffer;
}

const maxKeys = 100;
/** RFC 7518 section 3.3. */
const minRsaBits = 2048;

/** RFC 7517: the keys of one issuer. */
export class KeySet {
  readonly #keys: readonly Key[];

  private constructor(keys: readonly Key[]) {
    this.#keys = keys;
  }

  /** Reads a JWK set. Keys that are of no use here are passed over; throws Error where there is none left. */
  static read(text: string): KeySet {
    const parsed: unknown = JSON.parse(text);
    const list = typeof parsed === 'object' && parsed !== null ? (parsed as { keys?: unknown }).keys : undefined;
    if (!Array.isArray(list)) throw new Error('a key set is an object with a list of keys (RFC 7517 section 5)');
    const keys = list.slice(0, maxKeys).flatMap((jwk: unknown) => readKey(jwk) ?? []);
    if (keys.length === 0) throw new Error('none of its keys can be used to check signatures');
    return new KeySet(keys);
  }

  /** `noKey`: it has none that the token names, or that could be meant. */
  verify({ algorithm: name, keyId, signed, signature }: CompactToken): 'good' | 'bad' | 'noKey' {
    const algorithm = Object.hasOwn(algorithms, name) ? algorithms[name]! : undefined;
    if (algorithm === undefined) return 'noKey';
    const usable = this.#keys.filter(
      ({ id, algorithm: only, type, curve }) =>
        type === algorithm.keyType &&
        (algorithm.curve === undefined || curve === algorithm.curve) &&
        (only === undefined || only === name) &&
        (keyId === undefined || id === undefined || id === keyId),
    );
    if (usable.length === 0) return 'noKey';
    return usable.some(({ material }) => isSignedBy(material, algorithm, signed, signature)) ? 'good' : 'bad';
  }
}

function readKey(value: unknown): Key | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const jwk = value as JsonWebKey & { readonly kid?: unknown; readonly alg?: unknown; readonly use?: unknown; readonly key_ops?: unknown };
  if (jwk.use !== undefined && jwk.use !== 'sig') return undefined;
  if (Array.isArray(jwk.key_ops) && !jwk.key_ops.includes('verify')) return undefined;
  const common = {
    id: typeof jwk.kid === 'string' ? jwk.kid : undefined,
    algorithm: typeof jwk.alg === 'string' ? jwk.alg : undefined,
    type: jwk.kty ?? '',
    curve: jwk.crv,
  };
  try {
    if (jwk.kty === 'oct') return typeof jwk.k === 'string' && jwk.k.length >= 43 ? { ...common, material: Buffer.from(jwk.k, 'base64url') } : undefined;
    if (jwk.kty !== 'RSA' && jwk.kty !== 'EC' && jwk.kty !== 'OKP') return undefined;
    const material = createPublicKey({ key: jwk, format: 'jwk' });
    if (jwk.kty === 'RSA' && (material.asymmetricKeyDetails?.modulusLength ?? 0) < minRsaBits) return undefined;
    return { ...common, material };
  } catch {
    return undefined;
  }
}

function isSignedBy(material: KeyObject | Buffer, { hash, keyType, isPss }: Algorithm, signed: Buffer, signature: Buffer): boolean {
  try {
    if (Buffer.isBuffer(material)) {
      const expected = createHmac(hash!, material).update(signed).digest();
      return expected.length === signature.length && timingSafeEqual(expected, signature);
    }
    if (keyType === 'EC') return verify(hash, signed, { key: material, dsaEncoding: 'ieee-p1363' }, signature);
    // RFC 7518 section 3.5: the salt is as long as the hash; 6 is RSA_PKCS1_PSS_PADDING, -1 RSA_PSS_SALTLEN_DIGEST.
    if (isPss) return verify(hash, signed, { key: material, padding: 6, saltLength: -1 }, signature);
    return verify(hash, signed, material, signature);
  } catch {
    return false;
  }
}
