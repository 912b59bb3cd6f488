import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto';
import { cookieValue } from '../../message/cookie.ts';
import type { HeaderList } from '../../message/header-list.ts';

/** Browsers keep 4096 bytes of a cookie, its name and attributes included. */
const maxValueLength = 3_600;
const maxParts = 5;
const ivBytes = 12;
const tagBytes = 16;

/** Values in cookies that only this mesh can read or make (AES-256-GCM), each for one use: a login's cannot be passed off as a session's. */
export class SealedCookies {
  readonly #key: Buffer;

  /** `context`: another one means another key. */
  constructor(secret: string, context: string) {
    this.#key = Buffer.from(hkdfSync('sha256', secret, '', `mizzen login ${context}`, 32));
  }

  seal(use: string, value: unknown): string {
    const iv = randomBytes(ivBytes);
    const cipher = createCipheriv('aes-256-gcm', this.#key, iv).setAAD(Buffer.from(use));
    const sealed = Buffer.concat([cipher.update(JSON.stringify(value)), cipher.final()]);
    return Buffer.concat([iv, cipher.getAuthTag(), sealed]).toString('base64url');
  }

  /** undefined: it was not made here for this use, or has been changed. */
  unseal(use: string, text: string): unknown {
    const bytes = Buffer.from(text, 'base64url');
    if (bytes.length <= ivBytes + tagBytes) return undefined;
    try {
      const decipher = createDecipheriv('aes-256-gcm', this.#key, bytes.subarray(0, ivBytes)).setAAD(Buffer.from(use));
      decipher.setAuthTag(bytes.subarray(ivBytes, ivBytes + tagBytes));
      return JSON.parse(Buffer.concat([decipher.update(bytes.subarray(ivBytes + tagBytes)), decipher.final()]).toString('utf8'));
    } catch {
      return undefined;
    }
  }
}

/** `Set-Cookie` values for one that may be longer than a cookie: name, name.1, name.2. undefined: it is too long for that, too. */
export function setCookies(name: string, value: string, attributes: string, before: HeaderList): string[] | undefined {
  const parts = value === '' ? [] : (value.match(new RegExp(`.{1,${maxValueLength}}`, 'g')) ?? []);
  if (parts.length > maxParts) return undefined;
  const cookies = parts.map((part, i) => `${partName(name, i)}=${part}; ${attributes}`);
  // Parts of a longer one before it.
  for (let i = parts.length; i < maxParts; i++)
    if (cookieValue(before, partName(name, i)) !== undefined) cookies.push(`${partName(name, i)}=; ${attributes}; Max-Age=0`);
  return cookies;
}

export function joinedCookie(headers: HeaderList, name: string): string | undefined {
  let joined: string | undefined;
  for (let i = 0; i < maxParts; i++) {
    const part = cookieValue(headers, partName(name, i));
    if (part === undefined) break;
    joined = (joined ?? '') + part;
  }
  return joined;
}

const partName = (name: string, i: number) => (i === 0 ? name : `${name}.${i}`);
