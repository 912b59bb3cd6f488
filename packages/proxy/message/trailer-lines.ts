import { type Fields, noFields } from './fields.ts';

/** Trailers as the lines that end a chunked body (RFC 9112 section 7.1.2), each with its CRLF. */
export function trailerLines(trailers: Fields): string {
  if (trailers.length === 0) return '';
  return trailers.map(([name, value]) => `${name}: ${value}\r\n`).join('');
}

/** The fields of lines that have been checked. */
export function fieldsOfLines(lines: string): Fields {
  if (lines === '') return noFields;
  return lines
    .slice(0, -2)
    .split('\r\n')
    .map((line) => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
    });
}
