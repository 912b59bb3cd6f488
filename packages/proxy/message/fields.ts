import { isHeaderName, verifiedValue } from './header-bytes.ts';
import { foldedName, isAlias, isAlwaysOwned, isMeshName } from './owned-headers.ts';

/** Fields in their order, as trailers and HTTP/2 carry them: names in lower case, values as byte strings. */
export type Fields = readonly (readonly [name: string, value: string])[];

export const noFields: Fields = [];

/** Fields about one connection only (RFC 9110 section 7.6.1): a peer that speaks HTTP/2 takes a message that has one for malformed (RFC 9113 section 8.2.2). */
export const connectionSpecificNames: ReadonlySet<string> = new Set(['connection', 'keep-alive', 'proxy-connection', 'transfer-encoding', 'upgrade']);

/** Names that trailers must not carry (RFC 9110 section 6.5.1): framing, routing, credentials. */
const forbiddenInTrailers =
  /^(?:content-length|host|te|trailer|authorization|proxy-auth.*|cookie|set-cookie|expect|content-encoding|content-type|content-range|cache-control|x-forwarded-.*|x-envoy-.*|http2-settings)$/;

/** Whether a field may be a trailer. Applications that merge trailers into headers would take another spelling of a forbidden or owned field for that field. */
export function isTrailerName(name: string): boolean {
  if (!isHeaderName(name) || isForbiddenInTrailers(name)) return false;
  if (!isAlias(name)) return true;
  const folded = foldedName(name);
  return !isAlwaysOwned(folded) && !isForbiddenInTrailers(folded);
}

function isForbiddenInTrailers(name: string): boolean {
  return connectionSpecificNames.has(name) || forbiddenInTrailers.test(name) || isMeshName(name);
}

/** Trailers as they may be written, by either version: fields that trailers must not carry are left out, also those that a filter added. */
export function verifiedTrailers(trailers: Fields): Fields {
  if (trailers.length === 0) return trailers;
  return trailers.filter(([name]) => isTrailerName(name)).map(([name, value]) => [name, verifiedValue(value)] as const);
}
