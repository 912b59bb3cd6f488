/** A SPIFFE ID in its parts (SPIFFE-ID.md of the SPIFFE standards, section 2). */
export interface SpiffeId {
  readonly trustDomain: string;
  /** Segments of the path, none of them empty, `.` or `..`. */
  readonly segments: readonly string[];
}

const maxIdLength = 2048;
const maxTrustDomainLength = 255;
const pattern = /^spiffe:\/\/([a-z0-9._-]+)((?:\/[A-Za-z0-9._-]+)*)$/;

/**
 * The one parser for SPIFFE IDs: certificates, tokens, bundles and policies all mean the same by one. Undefined for what is not a SPIFFE ID: an
 * empty segment (`//`), a relative one (`.`, `..`), a slash at the end, upper case in the trust domain, escapes, a port, a query.
 */
export function parseSpiffeId(uri: string): SpiffeId | undefined {
  if (uri.length > maxIdLength) return undefined;
  const match = pattern.exec(uri);
  if (match === null || match[1]!.length > maxTrustDomainLength) return undefined;
  const segments = match[2]!.split('/').slice(1);
  return segments.includes('.') || segments.includes('..') ? undefined : { trustDomain: match[1]!, segments };
}
