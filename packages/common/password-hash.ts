/** A password as it is stored: `scrypt$N$r$p$SALT$HASH`, salt and hash in base64 (RFC 7914). */
export interface PasswordHash {
  readonly parameters: { readonly N: number; readonly r: number; readonly p: number };
  readonly salt: Buffer;
  readonly hash: Buffer;
}

/** What a login may cost, since it is paid for every attempt, and how long salt and hash are: every password has an empty hash. */
export const passwordHashLimits = {
  ...{ minN: 1_024, maxN: 65_536, maxR: 16, maxP: 4 },
  ...{ minSaltBytes: 8, minHashBytes: 16, maxBytes: 64 },
} as const;

/** undefined: the text is not such a hash, or is beyond `passwordHashLimits`. */
export function readPasswordHash(text: string): PasswordHash | undefined {
  const match = /^scrypt\$(\d{1,7})\$(\d{1,3})\$(\d{1,3})\$([A-Za-z0-9+/]{1,100}={0,2})\$([A-Za-z0-9+/]{1,100}={0,2})$/.exec(text);
  if (match === null) return undefined;
  const [N = 0, r = 0, p = 0] = match.slice(1, 4).map(Number);
  const { minN, maxN, maxR, maxP, minSaltBytes, minHashBytes, maxBytes } = passwordHashLimits;
  if (N < minN || N > maxN || (N & (N - 1)) !== 0 || r < 1 || r > maxR || p < 1 || p > maxP) return undefined;
  const [salt, hash] = [Buffer.from(match[4] ?? '', 'base64'), Buffer.from(match[5] ?? '', 'base64')];
  if (salt.length < minSaltBytes || hash.length < minHashBytes || Math.max(salt.length, hash.length) > maxBytes) return undefined;
  return { parameters: { N, r, p }, salt, hash };
}
