import { HeaderField } from './header-field.ts';

/** RFC 7541 appendix A: index 1 is the first entry. */
const staticNames: readonly string[] = [
  ...['', ':authority', ':method', ':method', ':path', ':path', ':scheme', ':scheme'],
  ...[':status', ':status', ':status', ':status', ':status', ':status', ':status'],
  ...['accept-charset', 'accept-encoding', 'accept-language', 'accept-ranges', 'accept', 'access-control-allow-origin', 'age', 'allow', 'authorization'],
  ...['cache-control', 'content-disposition', 'content-encoding', 'content-language', 'content-length', 'content-location', 'content-range'],
  ...['content-type', 'cookie', 'date', 'etag', 'expect', 'expires', 'from', 'host', 'if-match', 'if-modified-since', 'if-none-match', 'if-range'],
  ...['if-unmodified-since', 'last-modified', 'link', 'location', 'max-forwards', 'proxy-authenticate', 'proxy-authorization', 'range', 'referer'],
  ...['refresh', 'retry-after', 'server', 'set-cookie', 'strict-transport-security', 'transfer-encoding', 'user-agent', 'vary', 'via'],
  'www-authenticate',
];

const withValues: Readonly<Record<number, string>> = {
  ...{ 2: 'GET', 3: 'POST', 4: '/', 5: '/index.html', 6: 'http', 7: 'https', 8: '200', 9: '204', 10: '206', 11: '304', 12: '400', 13: '404', 14: '500' },
  16: 'gzip, deflate',
};

export const staticCount = staticNames.length - 1;

/** The first index of each name. */
export const staticIndexOfName: ReadonlyMap<string, number> = new Map(
  staticNames
    .map((name, index) => [name, index] as const)
    .slice(1)
    .reverse(),
);

/** The indices of the values of those names that have some. */
export const staticIndicesOf: ReadonlyMap<string, ReadonlyMap<string, number>> = valuesByName();

function valuesByName(): Map<string, Map<string, number>> {
  const byName = new Map<string, Map<string, number>>();
  for (const [index, value] of Object.entries(withValues)) {
    const name = staticNames[Number(index)]!;
    byName.set(name, (byName.get(name) ?? new Map()).set(value, Number(index)));
  }
  return byName;
}

/** The entries, by index. */
export const staticFields: readonly HeaderField[] = staticNames.map((name, index) => new HeaderField(name || 'x', withValues[index] ?? ''));
