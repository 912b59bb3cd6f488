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

export function cookieNames(headers: HeaderList): string[] {
  return headers.getAll('cookie').flatMap((line) => line.split(';').map((pair) => pair.split('=', 1)[0]!.trim()));
}

/** Takes cookies out of a request, and leaves the others as they are. */
export function removeCookies(headers: HeaderList, isMeant: (name: string) => boolean): void {
  const lines = headers.getAll('cookie');
  const rest = lines.map((line) => line.split(';').filter((pair) => !isMeant(pair.split('=', 1)[0]!.trim())));
  if (rest.every((pairs, i) => pairs.length === lines[i]!.split(';').length)) return;
  headers.remove('cookie');
  for (const pairs of rest) if (pairs.length > 0) headers.add('cookie', pairs.join(';').trim());
}
