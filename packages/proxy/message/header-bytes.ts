import { isUtf8 } from 'node:buffer';

/**
 * The one place where text becomes the bytes of a header field (RFC 9110 section 5.5). In this program a header value is a *byte string*: one
 * character for each byte, U+0000 to U+00FF, as it came from a socket. Text from any other source (configuration, certificates, protobuf,
 * tokens, filters) is Unicode and passes through `utf8Bytes` first. Every value that enters a HeaderList, a trailer or a start line is
 * verified here, so that no writer can emit CR, LF, NUL or half of a character.
 */

const legalName = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/;
/** 1 for each byte that a value must not hold. A table is twice as fast as a regular expression, and this runs for each field that is set. */
const isIllegalByte = Uint8Array.from({ length: 256 }, (_, byte) => ((byte < 0x20 && byte !== 0x09) || byte === 0x7f ? 1 : 0));
/** Names that were verified: a mesh uses few, and a look-up is faster than the pattern. */
const knownNames = new Set<string>();
const maxKnownNames = 1_000;
/** A target or authority of a request line: no white space, or a server would read a second part into it. */
const legalTarget = /^[\x21-\x7e\x80-\xff]*$/;

/** The UTF-8 encoding of a Unicode text as a byte string. ASCII, the usual case, is returned as it is. */
export function utf8Bytes(text: string): string {
  return /[^\x00-\x7f]/.test(text) ? Buffer.from(text, 'utf8').toString('latin1') : text;
}

/** The Unicode text in a byte string: `utf8Bytes` reversed. Bytes that are not UTF-8 stay one character each. */
export function unicodeText(bytes: string): string {
  if (!/[\x80-\xff]/.test(bytes)) return bytes;
  const encoded = Buffer.from(bytes, 'latin1');
  return isUtf8(encoded) ? encoded.toString('utf8') : bytes;
}

/** A lower-case field name of HTTP (a token). */
export function isHeaderName(name: string): boolean {
  if (knownNames.has(name)) return true;
  if (!legalName.test(name)) return false;
  if (knownNames.size < maxKnownNames) knownNames.add(name);
  return true;
}

/** What HTTP/2 allows (RFC 9113 section 8.2.1), which HTTP/1.1 allows too: no control bytes but HTAB, no white space at either end. */
export function isHeaderValue(value: string): boolean {
  const { length } = value;
  if (length === 0) return true;
  if (value.charCodeAt(0) <= 0x20 || value.charCodeAt(length - 1) <= 0x20) return false;
  for (let i = 0; i < length; i++) if (isIllegalByte[value.charCodeAt(i)] !== 0) return false;
  return true;
}

/**
 * A value as it is written. RFC 9110 section 5.5: CR, LF and NUL are replaced by SP; so are other control bytes. White space at the ends is
 * not part of a value. Text that was never encoded (a character above U+00FF) is encoded now.
 */
export function verifiedValue(value: string): string {
  return isHeaderValue(value) ? value : mendedValue(value);
}

function mendedValue(value: string): string {
  const bytes = /[^\x00-\xff]/.test(value) ? utf8Bytes(value) : value;
  return withoutOuterSpace(bytes.replace(/[\x00-\x08\x0a-\x1f\x7f]/g, ' '));
}

/** Without SP and HTAB at the ends (OWS, RFC 9110 section 5.6.3). In one pass: a regular expression would try each run of blanks within a value at each of its bytes. */
export function withoutOuterSpace(text: string): string {
  let from = 0;
  let to = text.length;
  while (from < to && isSpace(text.charCodeAt(from))) from++;
  while (to > from && isSpace(text.charCodeAt(to - 1))) to--;
  return text.slice(from, to);
}

const isSpace = (code: number): boolean => code === 0x20 || code === 0x09;

/** A target or an authority as it is written: what a request line cannot hold is percent-encoded. */
export function verifiedTarget(target: string): string {
  if (legalTarget.test(target)) return target;
  const bytes = /[^\x00-\xff]/.test(target) ? utf8Bytes(target) : target;
  return bytes.replace(/[\x00-\x20\x7f]/g, (byte) => `%${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`);
}

/**
 * A distinguished name inside the quotes of `x-forwarded-client-cert`, as Envoy writes it (RFC 2253): bytes outside printable ASCII become
 * `\\XX`. OpenSSL has escaped quotes and control bytes already; a quote that it did not escape is escaped here.
 */
export function escapedSubject(subject: string): string {
  return utf8Bytes(subject)
    .replace(/\\[\s\S]|["\\]/g, (match) => (match.length === 1 ? `\\${match}` : match))
    .replace(/[^\x20-\x7e]/g, (byte) => `\\${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`);
}
