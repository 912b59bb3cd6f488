import type { CorsPolicySpec, DestinationSpec, HeaderOperationsSpec, HttpMatchSpec, HttpRouteSpec, StringMatchSpec } from '@mizzen/api';
import { parseDurationMs } from '@mizzen/common';
import type { Backend } from './references.ts';
import type { BackendRefSpec, HeaderModifierSpec, NamedMatchSpec, PathModifierSpec, RouteFilterSpec, RouteMatchSpec, RouteRuleSpec } from './types.ts';

/** One rule of an HTTPRoute or GRPCRoute under one of its matches, as a route of a VirtualService, with what decides its rank among others. */
export interface RankedRoute {
  readonly route: HttpRouteSpec;
  /** Higher goes first, the first number first (HTTPRouteRule: "precedence"). */
  readonly rank: readonly number[];
}

/** What a rule says that cannot be honoured. */
export class UnsupportedRule extends Error {}

/** `listenerPort`: what a redirect without a port of its own points to; undefined: within the mesh. */
export function routesOfRule(
  rule: RouteRuleSpec,
  kind: string,
  resolve: (ref: BackendRefSpec) => Backend,
  listener: { readonly port: number; readonly isTls: boolean } | undefined,
): RankedRoute[] {
  if (rule.sessionPersistence)
    throw new UnsupportedRule('sessionPersistence is not supported: a DestinationRule with consistentHash keeps clients at one endpoint');
  const matches = rule.matches?.length ? rule.matches : [{}];
  return matches.map((match) => {
    const http = kind === 'GRPCRoute' ? grpcMatch(match) : httpMatch(match);
    const route: HttpRouteSpec = {
      ...(rule.name ? { name: rule.name } : {}),
      ...(Object.keys(http).length > 0 ? { match: [http] } : {}),
      ...actionOf(rule, http.uri, resolve, listener),
    };
    return { route, rank: rankOf(match, http) };
  });
}

function rankOf(match: RouteMatchSpec, { uri }: HttpMatchSpec): number[] {
  const text = uri?.exact ?? uri?.segments ?? uri?.prefix ?? uri?.regex ?? '';
  return [
    uri?.exact !== undefined ? 2 : uri?.regex !== undefined ? 1 : 0,
    // "/" fits everything, as no path at all does.
    text === '/' ? 1 : text.length,
    typeof match.method === 'string' ? 1 : 0,
    match.headers?.length ?? 0,
    match.queryParams?.length ?? 0,
  ];
}

function httpMatch({ path, method, headers, queryParams }: RouteMatchSpec): HttpMatchSpec {
  const value = path?.value ?? '/';
  const uri: StringMatchSpec | undefined =
    path?.type === 'Exact'
      ? { exact: value }
      : path?.type === 'RegularExpression'
        ? { regex: value }
        : value === '/'
          ? undefined
          : { segments: withoutLastSlashes(value) };
  return {
    ...(uri ? { uri } : {}),
    ...(typeof method === 'string' ? { method: { exact: method } } : {}),
    ...namedMatches('headers', headers, true),
    ...namedMatches('queryParams', queryParams, false),
  };
}

function grpcMatch({ method, headers }: RouteMatchSpec): HttpMatchSpec {
  const { type = 'Exact', service = '', method: name = '' } = typeof method === 'object' ? method : {};
  const part = (text: string) => text || '[^/]+';
  const uri: StringMatchSpec | undefined =
    type === 'RegularExpression'
      ? { regex: `/${part(service)}/${part(name)}` }
      : service && name
        ? { exact: `/${service}/${name}` }
        : service
          ? { prefix: `/${service}/` }
          : name
            ? { regex: `/[^/]+/${name.replace(/[.+*?()[\]{}^$|\\]/g, '\\$&')}` }
            : undefined;
  return { ...(uri ? { uri } : {}), ...namedMatches('headers', headers, true) };
}

function namedMatches(field: 'headers' | 'queryParams', matches: readonly NamedMatchSpec[] | undefined, ignoresCase: boolean) {
  if (!matches?.length) return {};
  const entries = new Map<string, StringMatchSpec>();
  for (const { name, type, value } of matches) {
    const key = ignoresCase ? name.toLowerCase() : name;
    // Of several with one name the first counts.
    if (!entries.has(key)) entries.set(key, type === 'RegularExpression' ? { regex: value } : { exact: value });
  }
  return { [field]: Object.fromEntries(entries) };
}

function actionOf(
  rule: RouteRuleSpec,
  uri: StringMatchSpec | undefined,
  resolve: (ref: BackendRefSpec) => Backend,
  listener: { readonly port: number; readonly isTls: boolean } | undefined,
): Partial<HttpRouteSpec> {
  const filters = rule.filters ?? [];
  const headers = headersOf(filters);
  const redirect = filters.find(({ requestRedirect }) => requestRedirect)?.requestRedirect;
  const cors = filters.find((filter) => filter.cors)?.cors;
  const common = { ...(headers ? { headers } : {}), ...(cors ? { corsPolicy: corsOf(cors) } : {}) };
  for (const filter of filters)
    if (!knownFilters.has(filter.type)) throw new UnsupportedRule(`the filter ${filter.type} is not supported: ${[...knownFilters].join(', ')}`);
  if (redirect) {
    const before = listener?.isTls ? 'https' : 'http';
    const scheme = redirect.scheme ?? before;
    // Without a port the scheme's is meant, or without a scheme the listener's; which is not said where the scheme says it.
    const port = redirect.port ?? (redirect.scheme ? undefined : listener?.port);
    return {
      ...common,
      redirect: {
        ...(redirect.scheme ? { scheme: redirect.scheme } : {}),
        ...(redirect.hostname ? { authority: redirect.hostname } : {}),
        ...(port === undefined || port === (scheme === 'https' ? 443 : 80) ? { dropsPort: true } : { port }),
        redirectCode: redirect.statusCode ?? 302,
        ...pathChange(redirect.path, uri),
      },
    };
  }
  const rewrite = filters.find(({ urlRewrite }) => urlRewrite)?.urlRewrite;
  const change = pathChange(rewrite?.path, uri);
  const mirrors = filters.flatMap(({ requestMirror }) => (requestMirror ? mirrorsOf(requestMirror, resolve) : []));
  return {
    ...common,
    ...destinations(rule.backendRefs ?? [], resolve),
    ...(rewrite
      ? {
          rewrite: {
            ...(rewrite.hostname ? { authority: rewrite.hostname } : {}),
            ...(change.uri === undefined ? {} : { uriRegexRewrite: { match: '^[^?]*', rewrite: escaped(change.uri) } }),
            ...(change.uriRegexRewrite ? { uriRegexRewrite: change.uriRegexRewrite } : {}),
          },
        }
      : {}),
    ...(mirrors.length > 0 ? { mirrors } : {}),
    ...timeoutsOf(rule),
  };
}

const knownFilters = new Set(['RequestHeaderModifier', 'ResponseHeaderModifier', 'RequestMirror', 'RequestRedirect', 'URLRewrite', 'CORS']);
const escaped = (text: string) => text.replaceAll('\\', '\\\\');

/** In one pass. */
function withoutLastSlashes(path: string): string {
  let end = path.length;
  while (end > 0 && path[end - 1] === '/') end--;
  return path.slice(0, end);
}

/** A whole path, or the part of it that the match took, by whole segments. */
function pathChange(path: PathModifierSpec | undefined, uri: StringMatchSpec | undefined) {
  if (path?.replaceFullPath !== undefined) return { uri: path.replaceFullPath || '/' };
  if (path?.replacePrefixMatch === undefined) return {};
  const prefix = withoutLastSlashes(uri?.segments ?? uri?.prefix ?? '').replace(/[.+*?()[\]{}^$|\\]/g, '\\$&');
  const replacement = withoutLastSlashes(path.replacePrefixMatch);
  // "/foo" to "" leaves "/", not nothing.
  const rewrite = replacement === '' ? '/\\1' : `${escaped(replacement)}\\1`;
  return { uriRegexRewrite: { match: replacement === '' ? `^${prefix}/*(.*)$` : `^${prefix}(/.*)?$`, rewrite } };
}

/** What is wrong with a back end is answered with 500, in its share of the requests. */
function destinations(refs: readonly BackendRefSpec[], resolve: (ref: BackendRefSpec) => Backend): Partial<HttpRouteSpec> {
  const failure = { directResponse: { status: 500 } };
  const used = refs.filter(({ weight = 1 }) => weight > 0);
  if (used.length === 0) return failure;
  const targets = used.map((ref) => ({ ref, backend: resolve(ref) }));
  if (targets.every(({ backend }) => !('destination' in backend))) return failure;
  return {
    missingClusterStatus: 500,
    route: targets.map(({ ref, backend }) => {
      const headers = headersOf(ref.filters ?? []);
      const unsupported = ref.filters?.find(({ type }) => type !== 'RequestHeaderModifier' && type !== 'ResponseHeaderModifier');
      if (unsupported) throw new UnsupportedRule(`of one back end, the filter ${unsupported.type} is not supported: only changes to headers are`);
      return {
        destination: 'destination' in backend ? backend.destination : noBackend,
        ...(used.length > 1 ? { weight: ref.weight ?? 1 } : {}),
        ...(headers ? { headers } : {}),
      };
    }),
  };
}

/** A host that no service has. */
export const noBackend: DestinationSpec = { host: 'no-backend.invalid', port: { number: 1 } };

function headersOf(filters: readonly RouteFilterSpec[]): HttpRouteSpec['headers'] {
  const request = filters.find(({ requestHeaderModifier }) => requestHeaderModifier)?.requestHeaderModifier;
  const response = filters.find(({ responseHeaderModifier }) => responseHeaderModifier)?.responseHeaderModifier;
  if (!request && !response) return undefined;
  return { ...(request ? { request: operations(request) } : {}), ...(response ? { response: operations(response) } : {}) };
}

function operations({ set = [], add = [], remove = [] }: HeaderModifierSpec): HeaderOperationsSpec {
  // Values are meant as they are written, percent signs too.
  const record = (entries: readonly { readonly name: string; readonly value: string }[]) =>
    Object.fromEntries(entries.map(({ name, value }) => [name, value.replaceAll('%', '%%')]));
  return { set: record(set), add: record(add), remove };
}

function mirrorsOf({ backendRef, percent, fraction }: NonNullable<RouteFilterSpec['requestMirror']>, resolve: (ref: BackendRefSpec) => Backend) {
  const backend = resolve(backendRef);
  if (!('destination' in backend)) return [];
  const share = percent ?? (fraction ? (100 * fraction.numerator) / (fraction.denominator ?? 100) : undefined);
  return [{ destination: backend.destination, ...(share === undefined ? {} : { percentage: { value: share } }) }];
}

function corsOf(cors: NonNullable<RouteFilterSpec['cors']>): CorsPolicySpec {
  return {
    allowOrigins: (cors.allowOrigins ?? []).map((origin) =>
      // Every origin that is one: `null`, which any sandboxed frame has, is not.
      origin === '*'
        ? { regex: '.+://.*' }
        : origin.includes('*')
          ? { regex: origin.replace(/[.+?()[\]{}^$|\\]/g, '\\$&').replaceAll('*', '.*') }
          : { exact: origin },
    ),
    ...(cors.allowCredentials === undefined ? {} : { allowCredentials: cors.allowCredentials }),
    ...(cors.allowMethods ? { allowMethods: cors.allowMethods } : {}),
    ...(cors.allowHeaders ? { allowHeaders: cors.allowHeaders } : {}),
    ...(cors.exposeHeaders ? { exposeHeaders: cors.exposeHeaders } : {}),
    maxAge: `${cors.maxAge ?? 5}s`,
    unmatchedPreflights: 'IGNORE',
  };
}

/** Conditions that a rule with `retry` tries again on, beside its codes. */
const retryOn = 'connect-failure,refused-stream,reset-before-request';

function timeoutsOf({ timeouts, retry }: RouteRuleSpec): Partial<HttpRouteSpec> {
  const [request, backend] = [timeouts?.request, timeouts?.backendRequest].map((text) => (text && parseDurationMs(text) ? text : undefined));
  return {
    ...(request || backend ? { timeout: request ?? backend! } : {}),
    ...(retry
      ? {
          retries: {
            attempts: retry.attempts ?? 1,
            retryOn: [retryOn, ...(retry.codes ?? [])].join(','),
            ...(backend ? { perTryTimeout: backend } : {}),
            ...(retry.backoff ? { backoff: retry.backoff } : {}),
          },
        }
      : // Nobody has asked for a second try.
        { retries: { attempts: 0 } }),
  };
}
