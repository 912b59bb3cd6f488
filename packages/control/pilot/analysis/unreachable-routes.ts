import { isDeepStrictEqual } from 'node:util';
import type { HttpMatchSpec, HttpRouteSpec, StringMatchSpec } from '@mizzen/api';

/** A route or one of its matches that another takes everything from. */
export interface UnreachableRoute {
  readonly route: number;
  /** undefined: the route as a whole. */
  readonly match: number | undefined;
  /** The route that takes it. */
  readonly by: number;
}

const everything: HttpMatchSpec = {};

/** Matches are compared with so many before them, so that a long list costs no more than in proportion to its length. */
const mostCompared = 300;

/**
 * What no request comes to, since routes are tried in their order: every request that it is for meets a match before it. Told from the conditions
 * alone; that several matches together leave nothing over is not seen.
 */
export function unreachableRoutes(routes: readonly HttpRouteSpec[]): UnreachableRoute[] {
  const found: UnreachableRoute[] = [];
  const earlier: { readonly route: number; readonly match: HttpMatchSpec }[] = [];
  for (const [i, route] of routes.entries()) {
    const matches = route.match?.length ? route.match : [everything];
    const takenBy = matches.map((match) => earlier.find((before) => isWithin(match, before.match))?.route);
    const by = takenBy[0];
    if (by !== undefined && takenBy.every((taker) => taker !== undefined)) found.push({ route: i, match: undefined, by });
    else for (const [j, taker] of takenBy.entries()) if (taker !== undefined) found.push({ route: i, match: j, by: taker });
    // A delegate may have no route for a request, which then goes on to the next.
    if (!route.delegate && earlier.length < mostCompared) earlier.push(...matches.map((match) => ({ route: i, match })));
  }
  return found;
}

/** Whether every request that meets `inner` meets `outer`. */
function isWithin(inner: HttpMatchSpec, outer: HttpMatchSpec): boolean {
  return (
    isUriWithin(inner, outer) &&
    (['scheme', 'method', 'authority', 'port', 'sourceNamespace'] as const).every(
      (key) => outer[key] === undefined || isDeepStrictEqual(inner[key], outer[key]),
    ) &&
    (['headers', 'withoutHeaders', 'queryParams', 'sourceLabels'] as const).every((key) => {
      const names: Readonly<Record<string, StringMatchSpec | string>> = inner[key] ?? {};
      return Object.entries(outer[key] ?? {}).every(([name, wanted]) => isDeepStrictEqual(names[name], wanted));
    }) &&
    (!outer.gateways?.length || (inner.gateways?.length ? inner.gateways.every((gateway) => outer.gateways!.includes(gateway)) : false))
  );
}

function isUriWithin(inner: HttpMatchSpec, outer: HttpMatchSpec): boolean {
  if (outer.uri === undefined) return true;
  const isSameCase = (inner.ignoreUriCase ?? false) === (outer.ignoreUriCase ?? false);
  if (isSameCase && isDeepStrictEqual(inner.uri, outer.uri)) return true;
  const { prefix } = outer.uri;
  if (prefix === undefined || inner.ignoreUriCase) return prefix === '/' && inner.uri?.regex === undefined;
  const begins = (text: string | undefined) => (outer.ignoreUriCase ? text?.toLowerCase().startsWith(prefix.toLowerCase()) : text?.startsWith(prefix)) ?? false;
  return prefix === '/' || begins(inner.uri?.prefix) || begins(inner.uri?.exact) || begins(inner.uri?.segments);
}
