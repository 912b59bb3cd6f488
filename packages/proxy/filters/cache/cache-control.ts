import type { ResponseHead } from '../../message/response-head.ts';

export type CacheControl = ReadonlyMap<string, string>;
const none: CacheControl = new Map();

/** Directives by name in lower case, with their value or '' (RFC 9111 section 5.2). The first of a kind counts. */
export function readCacheControl(text: string | undefined): CacheControl {
  if (text === undefined) return none;
  const directives = new Map<string, string>();
  for (const [, name, quoted, token] of text.matchAll(/([\w!#$%&'*+.^`|~-]+)(?:\s*=\s*(?:"([^"]*)"|([^\s,;"]+)))?/g)) {
    const key = name!.toLowerCase();
    if (!directives.has(key)) directives.set(key, quoted ?? token ?? '');
  }
  return directives;
}

/** What a larger number means (RFC 9111 section 1.2.2). */
const maxAgeSeconds = 2 ** 31;
const storableStatus = new Set([200, 203, 300, 301, 308, 404, 405, 410, 414, 501]);

/**
 * RFC 9111 section 3, for a shared cache; answers to requests with credentials need leave (section 3.5). `must-revalidate` is not taken for
 * leave: servers say it of personal answers too.
 */
export function isStorable(status: number, said: CacheControl, isSecret: boolean): boolean {
  if (!storableStatus.has(status) || said.has('no-store') || said.has('private') || said.has('no-cache')) return false;
  return !isSecret || said.has('public') || said.has('s-maxage');
}

/** How long an answer is fresh (section 4.2.1). */
export function freshnessMs(head: ResponseHead, said: CacheControl, defaultMs: number, now: number): number {
  for (const directive of ['s-maxage', 'max-age']) {
    const value = said.get(directive);
    if (value !== undefined) return /^\d+$/.test(value) ? Math.min(Number(value), maxAgeSeconds) * 1000 : 0;
  }
  const expires = head.headers.get('expires');
  if (expires !== undefined) {
    const date = Date.parse(head.headers.get('date') ?? '');
    const at = Date.parse(expires);
    return Number.isNaN(at) ? 0 : at - (Number.isNaN(date) ? now : date);
  }
  return defaultMs;
}
