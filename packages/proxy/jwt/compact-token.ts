/** A token in the compact form of RFC 7515 section 7.1, taken apart; nothing of it is believed yet. */
export interface CompactToken {
  readonly algorithm: string;
  readonly keyId: string | undefined;
  readonly header: Readonly<Record<string, unknown>>;
  readonly claims: Readonly<Record<string, unknown>>;
  /** The claims as they are in the token, in base64url. */
  readonly payload: string;
  readonly signed: Buffer;
  readonly signature: Buffer;
}

/** Longer ones are not read: who proves who they are need not send a book. */
export const maxTokenLength = 16 * 1024;
const part = /^[A-Za-z0-9_-]+$/;

/** undefined: this is none. `alg: none` is, and so is an encrypted token (RFC 7516). */
export function readCompactToken(text: string): CompactToken | undefined {
  if (text.length > maxTokenLength) return undefined;
  const parts = text.split('.');
  if (parts.length !== 3 || !parts.every((one) => part.test(one))) return undefined;
  const [head, payload, signature] = parts as [string, string, string];
  const header = readObject(head);
  const claims = readObject(payload);
  const algorithm = header?.['alg'];
  const keyId = header?.['kid'];
  if (header === undefined || claims === undefined || typeof algorithm !== 'string' || algorithm.toLowerCase() === 'none') return undefined;
  if (keyId !== undefined && typeof keyId !== 'string') return undefined;
  // RFC 7515 section 4.1.11: whoever does not understand a critical extension must refuse, and we understand none.
  if (header['crit'] !== undefined || header['b64'] !== undefined) return undefined;
  return {
    algorithm,
    keyId,
    header,
    claims,
    payload,
    signed: Buffer.from(text.slice(0, text.lastIndexOf('.')), 'latin1'),
    signature: Buffer.from(signature, 'base64url'),
  };
}

function readObject(base64url: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(utf8.decode(Buffer.from(base64url, 'base64url')));
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true });
