/**
 * How else a server may read a path that the proxy forwards as it is. Servers disagree about path parameters (`;a=b`, RFC 3986 section 3.3), encoded slashes, repeated slashes and
 * escapes that are not UTF-8. What decides by paths must not be passed by a spelling that only the server understands: a DENY rule is met when any view meets it, an ALLOW rule and
 * a route with filters of its own when all structural views do.
 */
export interface PathViews {
  /** Other segments than those that are forwarded: by parameters, encoded and repeated slashes. */
  readonly structural: readonly string[];
  /** The same with every escape decoded, overlong UTF-8, double escapes and `%u` escapes included, and the escapes in either case. */
  readonly decoded: readonly string[];
}

const ambiguous = /;|%|\\|\/\//;

/** undefined: every server reads `path` (no query) alike, apart from upper and lower case. */
export function pathViews(path: string): PathViews | undefined {
  if (!ambiguous.test(path)) return undefined;
  const bare = withoutParameters(path);
  const split = decodeDelimiters(path);
  const structural = viewsOf(path, [path, bare, split, withoutParameters(split), decodeDelimiters(bare)]);
  if (!path.includes('%')) return { structural, decoded: [] };
  const once = decode(path);
  const twice = decode(once);
  const decoded = viewsOf(path, [
    once,
    withoutParameters(once),
    decode(bare),
    twice,
    withoutParameters(twice),
    ...[upperEscapes, lowerEscapes].map((to) => to(path)),
  ]);
  for (const view of [...decoded]) if (/[\x80-\xff]/.test(view)) decoded.push(Buffer.from(view, 'latin1').toString('utf8'));
  return { structural, decoded: decoded.filter((view) => !structural.includes(view)) };
}

function viewsOf(path: string, forms: readonly string[]): string[] {
  const views = new Set(forms.map(canonical));
  views.delete(path);
  return [...views];
}

/** A segment ends at its first `;`. */
const withoutParameters = (path: string) => path.replace(/;[^/]*/g, '');

const decodeDelimiters = (path: string) => path.replace(/%2f/gi, '/').replace(/%5c/gi, '\\').replace(/%3b/gi, ';').replace(/%2e/gi, '.');

const upperEscapes = (path: string) => path.replace(/%[0-9a-f]{2}/gi, (text) => text.toUpperCase());
const lowerEscapes = (path: string) => path.replace(/%[0-9a-f]{2}/gi, (text) => text.toLowerCase());

/** One slash each, without dot segments; a path never leaves its root. */
function canonical(path: string): string {
  const segments: string[] = [];
  const parts = path.replaceAll('\\', '/').split('/');
  for (const [i, part] of parts.entries()) {
    const isLast = i === parts.length - 1;
    if (part === '..') segments.pop();
    else if (part !== '.' && part !== '') segments.push(part);
    if (isLast && (part === '' || part === '.' || part === '..')) segments.push('');
  }
  return `/${segments.join('/')}`;
}

/** Bytes as characters (latin1), as the path of a request is. */
function decode(path: string): string {
  return path
    .replace(/%u([0-9a-f]{4})/gi, (_escape, hex: string) => Buffer.from(String.fromCharCode(Number.parseInt(hex, 16)), 'utf8').toString('latin1'))
    .replace(/%([0-9a-f]{2})/gi, (_escape, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
    .replace(/[\xc0\xc1][\x80-\xbf]|\xe0[\x80\x81][\x80-\xbf]|\xf0\x80[\x80\x81][\x80-\xbf]/g, overlong);
}

/** An ASCII character in more bytes than it needs: its last 7 bits. */
function overlong(bytes: string): string {
  return String.fromCharCode(((bytes.charCodeAt(bytes.length - 2) & 1) << 6) | (bytes.charCodeAt(bytes.length - 1) & 0x3f));
}
