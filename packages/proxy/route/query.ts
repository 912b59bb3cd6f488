import { utf8Bytes } from '../message/header-bytes.ts';

/**
 * The value of the first query parameter with this name; undefined when it is absent. Both are compared as they are written, escapes and all, as
 * Envoy does: `a%20b` is not `a b`.
 */
export function queryParameter(target: string, name: string): string | undefined {
  const start = target.indexOf('?');
  if (start < 0) return undefined;
  // The next `=` is searched once, not for every parameter that has none.
  let nextEquals = start;
  for (let at = start + 1; at <= target.length; ) {
    let end = target.indexOf('&', at);
    if (end < 0) end = target.length;
    if (nextEquals < at) {
      nextEquals = target.indexOf('=', at);
      if (nextEquals < 0) nextEquals = target.length;
    }
    const equals = Math.min(nextEquals, end);
    if (target.slice(at, equals) === name) return target.slice(Math.min(equals + 1, end), end);
    at = end + 1;
  }
  return undefined;
}

/**
 * The target with these parameters set, each in the place of all of its name, and then those of `removes` taken away (envoy external_auth.proto
 * `OkHttpResponse`). Keys and values are taken as escaped already; what would end a parameter or the query is escaped.
 */
export function changedQuery(target: string, sets: readonly (readonly [key: string, value: string])[], removes: readonly string[]): string {
  const start = target.indexOf('?');
  const path = start < 0 ? target : target.slice(0, start);
  const values = new Map(sets.map(([key, value]) => [escaped(key), escaped(value)]));
  const gone = new Set([...values.keys(), ...removes.map(escaped)]);
  const kept =
    start < 0
      ? []
      : target
          .slice(start + 1)
          .split('&')
          .filter((part) => part !== '' && !gone.has(part.split('=', 1)[0]!));
  for (const key of removes) values.delete(escaped(key));
  const parts = [...kept, ...[...values].map(([key, value]) => `${key}=${value}`)];
  return parts.length === 0 ? path : `${path}?${parts.join('&')}`;
}

function escaped(text: string): string {
  return utf8Bytes(text).replace(/[\x00-\x20"#&<>\x7f-\xff]/g, (byte) => `%${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`);
}
