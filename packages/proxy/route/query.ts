/**
 * The value of the first query parameter with this name; undefined when it is absent. Both are compared as they are written, escapes and all, as
 * Envoy does: `a%20b` is not `a b`.
 */
export function queryParameter(target: string, name: string): string | undefined {
  const start = target.indexOf('?');
  if (start < 0) return undefined;
  for (let at = start + 1; at <= target.length; ) {
    let end = target.indexOf('&', at);
    if (end < 0) end = target.length;
    let equals = target.indexOf('=', at);
    if (equals < 0 || equals > end) equals = end;
    if (target.slice(at, equals) === name) return target.slice(Math.min(equals + 1, end), end);
    at = end + 1;
  }
  return undefined;
}
