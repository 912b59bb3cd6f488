import { type Fields, isTrailerName, noFields, verifiedTrailers } from './fields.ts';
import { withoutOuterSpace } from './header-bytes.ts';

/** Trailers as the lines that end a chunked body (RFC 9112 section 7.1.2), each with its CRLF. */
export function trailerLines(trailers: Fields): string {
  if (trailers.length === 0) return '';
  return fieldLines(verifiedTrailers(trailers));
}

/** Verified fields as lines, each with its CRLF. */
export function fieldLines(fields: Fields): string {
  return fields.map(([name, value]) => `${name}: ${value}\r\n`).join('');
}

/** The fields of trailer lines whose grammar has been verified, without those that trailers must not carry. */
export function fieldsOfLines(lines: string): Fields {
  if (lines === '') return noFields;
  const fields: (readonly [string, string])[] = [];
  for (const line of lines.slice(0, -2).split('\r\n')) {
    const colon = line.indexOf(':');
    const name = line.slice(0, colon).toLowerCase();
    // White space is SP and HTAB here, not what Unicode takes for it: byte A0 belongs to the value.
    if (isTrailerName(name)) fields.push([name, withoutOuterSpace(line.slice(colon + 1))]);
  }
  return fields;
}
