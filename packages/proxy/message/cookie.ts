import type { HeaderList } from './header-list.ts';

/** The first cookie of this name (RFC 6265 section 5.4), without the quotes around its value. */
export function cookieValue(headers: HeaderList, name: string): string | undefined {
  for (const line of headers.getAll('cookie'))
    for (const pair of line.split(';')) {
      const equals = pair.indexOf('=');
      if (equals > 0 && pair.slice(0, equals).trim() === name)
        return pair
          .slice(equals + 1)
          .trim()
          .replace(/^"(.*)"$/, '$1');
    }
  return undefined;
}
