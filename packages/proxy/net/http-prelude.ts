/**
 * The HTTP inspector: whether the first bytes of a connection are HTTP, and which. Used where a port has no declared protocol, and
 * where the filter chain depends on it (Envoy, `envoy.filters.listener.http_inspector`).
 */
export type SniffedProtocol = 'http/1.0' | 'http/1.1' | 'h2c';

const prefaceLine = 'PRI * HTTP/2.0\r\n';
/** A request line that is longer than this is taken for something else. */
export const maxPreludeBytes = 8 * 1024;
const longestMethod = 20;

/** `none`: this is no HTTP; the decision falls with the first byte that cannot be part of a request line. */
export function sniffHttp(bytes: Buffer): SniffedProtocol | 'none' | 'incomplete' {
  const length = Math.min(bytes.length, maxPreludeBytes);
  if (length === 0) return 'incomplete';
  const start = bytes.toString('latin1', 0, Math.min(length, prefaceLine.length));
  if (start === prefaceLine) return 'h2c';
  if (prefaceLine.startsWith(start)) return 'incomplete';
  let at = 0;
  // Methods that are in use are upper-case letters (and `-`, as in M-SEARCH): binary protocols rarely begin so.
  while (at < length && isMethodByte(bytes[at]!)) if (++at > longestMethod) return 'none';
  if (at === length) return 'incomplete';
  if (at === 0 || bytes[at] !== 0x20) return 'none';
  const end = bytes.indexOf(0x0a);
  if (end < 0) return hasControlByte(bytes, at, length) || length === maxPreludeBytes ? 'none' : 'incomplete';
  const line = bytes.toString('latin1', at, bytes[end - 1] === 0x0d ? end - 1 : end);
  const version = /^ [\x21-\x7e\x80-\xff]+ HTTP\/1\.([01])$/.exec(line);
  return version === null ? 'none' : version[1] === '0' ? 'http/1.0' : 'http/1.1';
}

function isMethodByte(byte: number): boolean {
  return (byte >= 0x41 && byte <= 0x5a) || byte === 0x2d;
}

function hasControlByte(bytes: Buffer, from: number, to: number): boolean {
  for (let i = from; i < to; i++) if (bytes[i]! < 0x20 && bytes[i] !== 0x0d) return true;
  return false;
}
