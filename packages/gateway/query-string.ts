/** All values of a query parameter, decoded; one that cannot be decoded counts as it is. */
export function queryValues(target: string, parameter: string): string[] {
  const cut = target.indexOf('?');
  if (cut < 0) return [];
  const values: string[] = [];
  for (const part of target.slice(cut + 1).split('&')) {
    const equals = part.indexOf('=');
    if (decode(equals < 0 ? part : part.slice(0, equals)) === parameter) values.push(equals < 0 ? '' : decode(part.slice(equals + 1)));
  }
  return values;
}

/**
 * Whether servers that also separate by `;`, or that read `name[...]` as `name` (PHP, Rack, qs), find this parameter more often than
 * `queryValues` does. `declared`: names that are parameters of their own.
 */
export function isReadDifferently(target: string, parameter: string, declared: ReadonlySet<string>): boolean {
  const cut = target.indexOf('?');
  if (cut < 0 || !/[;[]|%5b/i.test(target)) return false;
  const query = target.slice(cut + 1);
  const count = (separator: RegExp, isMeant: (name: string) => boolean) =>
    query.split(separator).filter((part) => isMeant(decode(part.split('=', 1)[0] ?? ''))).length;
  return count(/[&;]/, (name) => name === parameter || (name.startsWith(`${parameter}[`) && !declared.has(name))) > count(/&/, (name) => name === parameter);
}

/** The target without a parameter of its query, however that is written. */
export function removeQueryParameter(target: string, parameter: string): string {
  const cut = target.indexOf('?');
  if (cut < 0) return target;
  const parts = target.slice(cut + 1).split('&');
  const rest = parts.filter((part) => decode(part.split('=', 1)[0]!) !== parameter);
  if (rest.length === parts.length) return target;
  return rest.length === 0 ? target.slice(0, cut) : `${target.slice(0, cut)}?${rest.join('&')}`;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text.replaceAll('+', ' '));
  } catch {
    return text;
  }
}
