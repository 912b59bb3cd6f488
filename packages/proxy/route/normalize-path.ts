/**
 * Brings a path to one form before anything is decided on it, so that no policy is passed by writing the same path differently
 * (Istio's BASE normalisation: RFC 3986 section 5.2.4 dot segments, `\` as `/`, unreserved percent-encodings decoded).
 */
const suspicious = /\/\.|\\|%(?:2[de]|3\d|[46][1-9a-f]|[57][0-9a]|5f|7e)/i;

const dotSegmentWithParameters = /^\.{1,2}(?:;|%3b)/i;

/** The normal form of `target` (path and query). Returns undefined for a path that leaves the root or holds an encoded NUL. */
export function normalizeTarget(target: string): string | undefined {
  if (target.includes('%00')) return undefined;
  if (!suspicious.test(target)) return target;
  const query = target.indexOf('?');
  const path = (query < 0 ? target : target.slice(0, query)).replaceAll('\\', '/').replace(/%([0-9a-f]{2})/gi, (text, hex: string) => {
    const character = String.fromCharCode(Number.parseInt(hex, 16));
    return /[A-Za-z0-9\-._~]/.test(character) ? character : text;
  });
  const segments: string[] = [];
  const parts = path.slice(1).split('/');
  for (const [i, part] of parts.entries()) {
    // A servlet container drops `;` and what follows, so this is a dot segment to it and a name to others.
    if (dotSegmentWithParameters.test(part)) return undefined;
    const isLast = i === parts.length - 1;
    if (part === '.' || part === '..') {
      if (part === '..') {
        if (segments.length === 0) return undefined;
        segments.pop();
      }
      if (isLast) segments.push('');
    } else segments.push(part);
  }
  return `/${segments.join('/')}${query < 0 ? '' : target.slice(query)}`;
}

/** What else is done to paths before anything is decided on them (envoy http_connection_manager.proto `merge_slashes`, `path_with_escaped_slashes_action`). */
export interface PathSettings {
  readonly mergesSlashes: boolean;
  /** Of `%2F` and `%5C`. */
  readonly escapedSlashes: 'keep' | 'reject' | 'unescape' | 'redirect';
}

/** The target to go on with; `redirect`: the client is to ask for that one itself; undefined: the path is refused. */
export function settleTarget(
  target: string,
  { mergesSlashes, escapedSlashes }: PathSettings,
): { readonly target: string; readonly isRedirect: boolean } | undefined {
  const query = target.indexOf('?');
  const path = query < 0 ? target : target.slice(0, query);
  const rest = query < 0 ? '' : target.slice(query);
  const hasEscaped = escapedSlashes !== 'keep' && /%(?:2f|5c)/i.test(path);
  if (hasEscaped && escapedSlashes === 'reject') return undefined;
  const unescaped = hasEscaped ? path.replace(/%2f/gi, '/').replace(/%5c/gi, '\\') : path;
  const normal = normalizeTarget(unescaped);
  if (normal === undefined) return undefined;
  return { target: (mergesSlashes ? normal.replace(/\/{2,}/g, '/') : normal) + rest, isRedirect: hasEscaped && escapedSlashes === 'redirect' };
}
