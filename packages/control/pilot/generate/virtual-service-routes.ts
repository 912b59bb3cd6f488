import type { Any } from '@bufbuild/protobuf/wkt';
import type {
  CorsPolicySpec,
  DestinationSpec,
  HeaderOperationsSpec,
  HttpMatchSpec,
  HttpRouteSpec,
  PercentSpec,
  StringMatchSpec,
  VirtualServiceSpec,
} from '@mizzen/api';
import { grpcStatusOf } from '@mizzen/api';
import { parseDurationMs } from '@mizzen/common';
import { durationFromMs, type Init, packAny } from '@mizzen/envoy-api';
import { HeaderValueOption_HeaderAppendAction } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import {
  type HeaderMatcherSchema,
  RedirectAction_RedirectResponseCode,
  RouteAction_ClusterNotFoundResponseCode,
  type RouteAction_RequestMirrorPolicySchema,
  type RouteActionSchema,
  type RouteMatchSchema,
  type RouteSchema,
  type VirtualHostSchema,
} from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { CorsPolicySchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/cors/v3/cors_pb.js';
import { HTTPFaultSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/fault/v3/fault_pb.js';
import { PreviousHostsPredicateSchema } from '@mizzen/envoy-api/gen/envoy/extensions/retry/host/previous_hosts/v3/previous_hosts_pb.js';
import { PreviousPrioritiesConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config_pb.js';
import type { MetadataMatcherSchema } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/metadata_pb.js';
import type { StringMatcherSchema } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/string_pb.js';
import { FractionalPercent_DenominatorType } from '@mizzen/envoy-api/gen/envoy/type/v3/percent_pb.js';
import type { ProxyView } from '../proxy-view.ts';
import { type Service, selects } from '../registry/service.ts';
import { mayRoute } from '../route-ownership.ts';
import { anyOf, inList, jwtFilter, jwtPayload, metadata, regex, textValue } from '../security/value-matchers.ts';
import { type Configured, isVisible, type MeshSnapshot, patternsFor, resolveHost } from '../snapshot.ts';
import { destinationRuleFor, effectivePolicy } from './destination-policy.ts';
import { hashPolicy } from './load-balancing.ts';
import { outboundClusterName, provenance } from './names.ts';

/** Routes of VirtualServices, as RDS carries them. */
export type Route = Init<typeof RouteSchema>;
export type VirtualHost = Init<typeof VirtualHostSchema>;

export function appliesTo(virtualService: Configured<VirtualServiceSpec>, gateway: string): boolean {
  const gateways = virtualService.spec.gateways;
  return gateways?.length ? isBoundTo(gateways, gateway, virtualService.namespace) : gateway === 'mesh';
}

/** Gateways are named by NAMESPACE/NAME, or by the name of one in the object's own namespace. */
export function isBoundTo(gateways: readonly string[], gateway: string, namespace: string): boolean {
  return gateways.some((name) => name === gateway || (gateway !== 'mesh' && !name.includes('/') && `${namespace}/${name}` === gateway));
}

/** The VirtualService that holds a host for the mesh: an exact host before a wildcard, then the oldest. */
export function virtualServiceFor(hostname: string, viewer: string, gateway: string, snapshot: MeshSnapshot): Configured<VirtualServiceSpec> | undefined {
  const owner = gateway === 'mesh' ? snapshot.servicesByHostname.get(hostname)?.namespace : undefined;
  const { byHost } = virtualServicesOf(snapshot);
  for (const pattern of patternsFor(hostname)) {
    const found = byHost
      .get(pattern)
      ?.find(
        (one) =>
          appliesTo(one, gateway) &&
          isVisible(one.spec.exportTo, one.namespace, viewer) &&
          mayRoute(snapshot.meshConfig.routeOwnership, one.namespace, owner, viewer),
      );
    if (found !== undefined) return found;
  }
  return undefined;
}

interface VirtualServiceIndex {
  /** The oldest first. */
  readonly byHost: ReadonlyMap<string, readonly Configured<VirtualServiceSpec>[]>;
  readonly byGateway: ReadonlyMap<string, readonly Configured<VirtualServiceSpec>[]>;
}

const indexes = new WeakMap<readonly Configured<VirtualServiceSpec>[], VirtualServiceIndex>();

/** Made once for a snapshot: hosts, Gateways and VirtualServices are as many as users like, so that comparing each with each would cost their product. */
export function virtualServicesOf(snapshot: MeshSnapshot): VirtualServiceIndex {
  let index = indexes.get(snapshot.virtualServices);
  if (index !== undefined) return index;
  const [byHost, byGateway] = [new Map<string, Configured<VirtualServiceSpec>[]>(), new Map<string, Configured<VirtualServiceSpec>[]>()];
  const add = (map: typeof byHost, key: string, one: Configured<VirtualServiceSpec>) => {
    const list = map.get(key);
    if (list === undefined) map.set(key, [one]);
    else list.push(one);
  };
  for (const one of snapshot.virtualServices) {
    for (const host of new Set((one.spec.hosts ?? []).map((host) => resolveHost(host, one.namespace, snapshot)))) add(byHost, host, one);
    const gateways = one.spec.gateways?.length ? one.spec.gateways : ['mesh'];
    for (const name of new Set(gateways.map((name) => (name === 'mesh' || name.includes('/') ? name : `${one.namespace}/${name}`)))) add(byGateway, name, one);
  }
  index = { byHost, byGateway };
  indexes.set(snapshot.virtualServices, index);
  return index;
}

/** VirtualServices bound to a gateway, for ./gateways.ts. */
export function virtualServicesOfGateway(gateway: string, snapshot: MeshSnapshot): readonly Configured<VirtualServiceSpec>[] {
  return virtualServicesOf(snapshot).byGateway.get(gateway) ?? [];
}

/** The routes of one VirtualService as one proxy sees them on one port. Each `match` block becomes a route of its own. */
export function routesOf(
  virtualService: Configured<VirtualServiceSpec>,
  port: number | undefined,
  view: ProxyView,
  snapshot: MeshSnapshot,
  gateway: string,
): Route[] {
  const routes: Route[] = [];
  for (const [i, spec] of (virtualService.spec.http ?? []).entries()) {
    // A delegate's routes are its own: names in them are of its namespace.
    const owner = (spec.source?.object as Configured<VirtualServiceSpec> | undefined) ?? virtualService;
    const path = spec.source?.path ?? `spec.http[${i}]`;
    const make = (match: HttpMatchSpec | undefined, name: string, matchPath: string): Route => ({
      name,
      match: routeMatch(match),
      ...routeAction(spec, match, owner, port, view, snapshot),
      metadata: provenance(owner, matchPath),
    });
    const name = spec.name ?? '';
    if (!spec.match?.length) {
      routes.push(make(undefined, name, path));
      break; // nothing after an unconditional route can be reached
    }
    for (const [j, match] of spec.match.entries()) {
      if (!matchApplies(match, port, view, gateway, owner.namespace)) continue;
      const matchPath = `${path}.match[${j}]`;
      routes.push(make(match, [name, match.name].filter(Boolean).join('.'), owner.origin.lines?.[matchPath] === undefined ? path : matchPath));
    }
  }
  return routes;
}

/** The parts of a match that are about the proxy, not the request, are decided here. */
function matchApplies(match: HttpMatchSpec, port: number | undefined, view: ProxyView, gateway: string, namespace: string): boolean {
  if (match.port !== undefined && port !== undefined && match.port !== port) return false;
  if (match.gateways?.length && !isBoundTo(match.gateways, gateway, namespace)) return false;
  return sourceFits(match, view, gateway);
}

/** Whether a workload is one of those that a match is for; who calls by a gateway is nobody's workload. */
export function sourceFits(match: Pick<HttpMatchSpec, 'sourceLabels' | 'sourceNamespace'>, view: ProxyView, gateway: string): boolean {
  if (gateway !== 'mesh') return true;
  return (match.sourceNamespace === undefined || match.sourceNamespace === view.namespace) && selects(match.sourceLabels, view.labels);
}

function routeMatch(match: HttpMatchSpec | undefined): Init<typeof RouteMatchSchema> {
  const headers: Init<typeof HeaderMatcherSchema>[] = [];
  for (const [name, spec] of [
    [':method', match?.method],
    [':authority', match?.authority],
    [':scheme', match?.scheme],
  ] as const) {
    if (spec) headers.push({ name, headerMatchSpecifier: { case: 'stringMatch', value: stringMatcher(spec) } });
  }
  const dynamicMetadata: Init<typeof MetadataMatcherSchema>[] = [];
  for (const [given, isInverted] of [
    [match?.headers, false],
    [match?.withoutHeaders, true],
  ] as const)
    for (const [name, spec] of Object.entries(given ?? {})) {
      const claimPath = claimPathOf(name);
      if (claimPath === undefined) headers.push(headerMatcher(name, spec, isInverted));
      else dynamicMetadata.push(claimMatcher(claimPath, spec, isInverted));
    }
  return {
    pathSpecifier: pathSpecifier(match?.uri),
    ...(match?.ignoreUriCase ? { caseSensitive: false } : {}),
    headers,
    dynamicMetadata,
    queryParameters: Object.entries(match?.queryParams ?? {}).map(([name, spec]) => ({
      name,
      queryParameterMatchSpecifier: isEmptyMatch(spec)
        ? { case: 'presentMatch' as const, value: true }
        : { case: 'stringMatch' as const, value: stringMatcher(spec) },
    })),
  };
}

function isEmptyMatch(match: StringMatchSpec | null): boolean {
  return match === null || (match.exact === undefined && match.prefix === undefined && match.regex === undefined);
}

/** `@request.auth.claims.a.b` or `@request.auth.claims[a][b]`: a claim of the token that was accepted (istio/api virtual_service.proto `HTTPMatchRequest.headers`). */
function claimPathOf(name: string): readonly string[] | undefined {
  const rest = /^@request\.auth\.claims(.+)$/.exec(name)?.[1];
  if (rest === undefined) return undefined;
  return rest.startsWith('[') ? [...rest.matchAll(/\[([^[\]]+)\]/g)].map(([, part]) => part!) : rest.slice(1).split('.');
}

/** A text, or a list that holds it. */
function claimMatcher(path: readonly string[], spec: StringMatchSpec | null, invert: boolean): Init<typeof MetadataMatcherSchema> {
  const one = textValue(isEmptyMatch(spec) ? regex('.+') : stringMatcher(spec!));
  return { ...metadata(jwtFilter, [jwtPayload, ...path], anyOf([one, inList(one)])), invert };
}

function headerMatcher(name: string, spec: StringMatchSpec | null, isInverted: boolean): Init<typeof HeaderMatcherSchema> {
  if (isEmptyMatch(spec)) return { name, headerMatchSpecifier: { case: 'presentMatch', value: true }, invertMatch: isInverted };
  return {
    name,
    headerMatchSpecifier: { case: 'stringMatch', value: stringMatcher(spec!) },
    invertMatch: isInverted,
    ...(isInverted ? { treatMissingHeaderAsEmpty: true } : {}),
  };
}

function pathSpecifier(uri: StringMatchSpec | undefined): Init<typeof RouteMatchSchema>['pathSpecifier'] {
  if (uri?.exact !== undefined) return { case: 'path', value: uri.exact };
  if (uri?.regex !== undefined) return { case: 'safeRegex', value: { regex: uri.regex } };
  if (uri?.segments !== undefined) return { case: 'pathSeparatedPrefix', value: uri.segments };
  return { case: 'prefix', value: uri?.prefix ?? '/' };
}

function stringMatcher(match: StringMatchSpec): Init<typeof StringMatcherSchema> {
  if (match.prefix !== undefined) return { matchPattern: { case: 'prefix', value: match.prefix } };
  if (match.regex !== undefined) return { matchPattern: { case: 'safeRegex', value: { regex: match.regex } } };
  return { matchPattern: { case: 'exact', value: match.exact ?? '' } };
}

function routeAction(
  spec: HttpRouteSpec,
  match: HttpMatchSpec | undefined,
  virtualService: Configured<VirtualServiceSpec>,
  port: number | undefined,
  view: ProxyView,
  snapshot: MeshSnapshot,
): Partial<Route> {
  const headers = headerOperations(spec.headers?.request, spec.headers?.response);
  if (spec.redirect) return { ...headers, action: { case: 'redirect', value: redirectAction(spec) } };
  if (spec.directResponse) {
    const { status, body } = spec.directResponse;
    const content =
      body?.bytes !== undefined
        ? { specifier: { case: 'inlineBytes' as const, value: Buffer.from(body.bytes, 'base64') } }
        : { specifier: { case: 'inlineString' as const, value: body?.string ?? '' } };
    return { ...headers, action: { case: 'directResponse', value: { status, ...(body ? { body: content } : {}) } } };
  }
  const typedPerFilterConfig = {
    ...(spec.fault ? { 'envoy.filters.http.fault': packAny(HTTPFaultSchema, faultConfig(spec)) } : {}),
    ...(spec.corsPolicy ? { 'envoy.filters.http.cors': packAny(CorsPolicySchema, corsConfig(spec.corsPolicy)) } : {}),
    ...(spec.filterConfigs as Readonly<Record<string, Any>> | undefined),
  };
  return { ...headers, typedPerFilterConfig, action: { case: 'route', value: forwardAction(spec, match, virtualService, port, view, snapshot) } };
}

function forwardAction(
  spec: HttpRouteSpec,
  match: HttpMatchSpec | undefined,
  virtualService: Configured<VirtualServiceSpec>,
  port: number | undefined,
  view: ProxyView,
  snapshot: MeshSnapshot,
): Init<typeof RouteActionSchema> {
  const resolve = (destination: DestinationSpec) => resolveDestination(destination, virtualService.namespace, port, snapshot);
  const clusterOf = (destination: DestinationSpec): string => {
    const { hostname, number } = resolve(destination);
    return outboundClusterName(number, destination.subset ?? '', hostname);
  };
  const targets = spec.route ?? [];
  const mirrors: Init<typeof RouteAction_RequestMirrorPolicySchema>[] = [];
  if (spec.mirror)
    mirrors.push({
      cluster: clusterOf(spec.mirror),
      runtimeFraction: fraction(spec.mirrorPercentage ?? percentOf(spec.mirrorPercent ?? spec.mirror_percent)),
    });
  for (const mirror of spec.mirrors ?? [])
    if (mirror.destination) mirrors.push({ cluster: clusterOf(mirror.destination), runtimeFraction: fraction(mirror.percentage) });
  const single = targets.length === 1 ? targets[0]! : undefined;
  const clusterSpecifier: Init<typeof RouteActionSchema>['clusterSpecifier'] =
    single && !single.headers
      ? { case: 'cluster', value: clusterOf(single.destination) }
      : {
          case: 'weightedClusters',
          value: {
            clusters: targets
              .filter((target) => single || target.weight)
              .map((target) => ({
                name: clusterOf(target.destination),
                weight: single ? 100 : (target.weight ?? 0),
                ...headerOperations(target.headers?.request, target.headers?.response),
              })),
          },
        };
  const { rewrite } = spec;
  return {
    clusterSpecifier,
    ...timeouts(spec),
    ...(spec.missingClusterStatus === 500 ? { clusterNotFoundResponseCode: RouteAction_ClusterNotFoundResponseCode.INTERNAL_SERVER_ERROR } : {}),
    retryPolicy: retryPolicy(spec),
    requestMirrorPolicies: mirrors,
    hashPolicy: targets.flatMap(({ destination }) => {
      const { service, number } = resolve(destination);
      return service ? hashPoliciesFor(service, number, destination.subset, view, snapshot) : [];
    }),
    ...(rewrite?.uri !== undefined ? pathRewrite(rewrite.uri, match) : {}),
    ...(rewrite?.uriRegexRewrite
      ? { regexRewrite: { pattern: { regex: rewrite.uriRegexRewrite.match ?? '' }, substitution: rewrite.uriRegexRewrite.rewrite ?? '' } }
      : {}),
    ...(rewrite?.authority ? { hostRewriteSpecifier: { case: 'hostRewriteLiteral' as const, value: rewrite.authority } } : {}),
  };
}

/** The service and port that a destination means: the port that it names, else the service's only one, else that of the request. */
export function resolveDestination({ host, port: named }: DestinationSpec, namespace: string, port: number | undefined, snapshot: MeshSnapshot) {
  const hostname = resolveHost(host, namespace, snapshot);
  const service = snapshot.servicesByHostname.get(hostname);
  const number = named?.number ?? (service?.ports.length === 1 ? service.ports[0]!.number : port) ?? service?.ports[0]?.number ?? 80;
  return { hostname, service, number };
}

/** What requests to a service are hashed by, where its DestinationRule has them chosen by hash. */
export function hashPoliciesFor(service: Service, port: number, subsetName: string | undefined, view: ProxyView, snapshot: MeshSnapshot) {
  const rule = destinationRuleFor(service, view, snapshot)?.spec;
  const subset = subsetName ? rule?.subsets?.find(({ name }) => name === subsetName) : undefined;
  return hashPolicy(effectivePolicy(rule, subset, port).loadBalancer?.consistentHash);
}

/** A gRPC caller's own timeout counts, up to the route's, as in Istio. */
export function timeouts(spec: HttpRouteSpec | undefined): Partial<Init<typeof RouteActionSchema>> {
  const timeout = durationFromMs((spec?.timeout && parseDurationMs(spec.timeout)) || 0);
  return { timeout, maxStreamDuration: { grpcTimeoutHeaderMax: timeout } };
}

/** `rewrite.uri` replaces the matched prefix, or the whole path when the match was exact or a regex. */
function pathRewrite(uri: string, match: HttpMatchSpec | undefined): Partial<Init<typeof RouteActionSchema>> {
  if (match?.uri?.regex !== undefined) return { regexRewrite: { pattern: { regex: '^[^?]*' }, substitution: uri.replaceAll('\\', '\\\\') } };
  return { prefixRewrite: uri };
}

/** Other priorities are looked at after so many tries, as in Istio. */
const triesOfPriority = 2;

/** Istio's default: two retries for what is safe to repeat. */
const defaultRetryOn = 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes';

export function retryPolicy(spec: HttpRouteSpec | undefined): Init<typeof RouteActionSchema>['retryPolicy'] {
  const retries = spec?.retries;
  if (retries?.attempts === 0) return undefined;
  const conditions = (retries?.retryOn ?? defaultRetryOn)
    .split(',')
    .map((condition) => condition.trim())
    .filter(Boolean);
  const codes = conditions.filter((condition) => /^\d{3}$/.test(condition)).map(Number);
  const retryOn = [
    ...conditions.filter((condition) => !/^\d{3}$/.test(condition)),
    ...(codes.length > 0 && !conditions.includes('retriable-status-codes') ? ['retriable-status-codes'] : []),
  ];
  const backoffMs = retries?.backoff ? parseDurationMs(retries.backoff) : undefined;
  const perTryMs = retries?.perTryTimeout ? parseDurationMs(retries.perTryTimeout) : undefined;
  return {
    retryOn: retryOn.join(','),
    numRetries: retries?.attempts ?? 2,
    retriableStatusCodes: codes.length > 0 ? codes : retries?.retryOn === undefined ? [503] : [],
    ...(perTryMs ? { perTryTimeout: durationFromMs(perTryMs) } : {}),
    ...(backoffMs ? { retryBackOff: { baseInterval: durationFromMs(backoffMs), maxInterval: durationFromMs(backoffMs * 10) } } : {}),
    ...(retries?.retryRemoteLocalities
      ? {
          retryPriority: {
            name: 'envoy.retry_priorities.previous_priorities',
            configType: { case: 'typedConfig' as const, value: packAny(PreviousPrioritiesConfigSchema, { updateFrequency: triesOfPriority }) },
          },
        }
      : {}),
    ...(retries?.retryIgnorePreviousHosts === false
      ? {}
      : {
          retryHostPredicate: [
            {
              name: 'envoy.retry_host_predicates.previous_hosts',
              configType: { case: 'typedConfig' as const, value: packAny(PreviousHostsPredicateSchema, {}) },
            },
          ],
          hostSelectionRetryMaxAttempts: 5n,
        }),
  };
}

function redirectAction(spec: HttpRouteSpec) {
  const redirect = spec.redirect!;
  const codes: Readonly<Record<number, RedirectAction_RedirectResponseCode>> = {
    301: RedirectAction_RedirectResponseCode.MOVED_PERMANENTLY,
    302: RedirectAction_RedirectResponseCode.FOUND,
    303: RedirectAction_RedirectResponseCode.SEE_OTHER,
    307: RedirectAction_RedirectResponseCode.TEMPORARY_REDIRECT,
    308: RedirectAction_RedirectResponseCode.PERMANENT_REDIRECT,
  };
  const { uriRegexRewrite: regex } = redirect;
  return {
    responseCode: codes[redirect.redirectCode ?? 301]!,
    hostRedirect: redirect.authority ?? '',
    portRedirect: redirectPort(redirect),
    ...(redirect.scheme ? { schemeRewriteSpecifier: { case: 'schemeRedirect' as const, value: redirect.scheme } } : {}),
    ...(redirect.prefixRewrite !== undefined
      ? { pathRewriteSpecifier: { case: 'prefixRewrite' as const, value: redirect.prefixRewrite } }
      : redirect.uri !== undefined
        ? { pathRewriteSpecifier: { case: 'pathRedirect' as const, value: redirect.uri } }
        : regex
          ? { pathRewriteSpecifier: { case: 'regexRewrite' as const, value: { pattern: { regex: regex.match }, substitution: regex.rewrite } } }
          : {}),
  };
}

/** 0: that of the request's host, if it names one. */
function redirectPort({ port, derivePort, scheme, dropsPort }: NonNullable<HttpRouteSpec['redirect']>): number {
  if (port !== undefined) return port;
  return derivePort === 'FROM_PROTOCOL_DEFAULT' || dropsPort ? (scheme === 'https' ? 443 : 80) : 0;
}

function corsConfig(policy: CorsPolicySpec): Init<typeof CorsPolicySchema> {
  const maxAgeMs = policy.maxAge ? parseDurationMs(policy.maxAge) : undefined;
  const origins = [...(policy.allowOrigins ?? []), ...(policy.allowOrigin ?? []).map((origin) => (origin === '*' ? { regex: '.*' } : { exact: origin }))];
  return {
    allowOriginStringMatch: origins.map(stringMatcher),
    allowMethods: (policy.allowMethods ?? []).join(','),
    allowHeaders: (policy.allowHeaders ?? []).join(','),
    exposeHeaders: (policy.exposeHeaders ?? []).join(','),
    maxAge: maxAgeMs === undefined ? '' : String(Math.round(maxAgeMs / 1000)),
    ...(policy.allowCredentials === undefined ? {} : { allowCredentials: policy.allowCredentials }),
    forwardNotMatchingPreflights: policy.unmatchedPreflights !== 'IGNORE',
  };
}

function faultConfig(spec: HttpRouteSpec): Init<typeof HTTPFaultSchema> {
  const { delay, abort } = spec.fault!;
  const delayMs = delay?.fixedDelay ? parseDurationMs(delay.fixedDelay) : undefined;
  return {
    ...(delayMs !== undefined
      ? {
          delay: {
            faultDelaySecifier: { case: 'fixedDelay', value: durationFromMs(delayMs) },
            percentage: fractionalPercent(delay!.percentage ?? (delay!.percent === undefined ? undefined : { value: delay!.percent })),
          },
        }
      : {}),
    ...(abort?.httpStatus !== undefined
      ? { abort: { errorType: { case: 'httpStatus', value: abort.httpStatus }, percentage: fractionalPercent(abort.percentage) } }
      : abort?.grpcStatus !== undefined
        ? { abort: { errorType: { case: 'grpcStatus', value: grpcStatusOf(abort.grpcStatus) ?? 2 }, percentage: fractionalPercent(abort.percentage) } }
        : {}),
  };
}

const percentOf = (value: number | undefined) => (value === undefined ? undefined : { value });

/** Absent means always. Percentages keep four decimals, as Envoy's largest denominator does. */
function fractionalPercent(percent: PercentSpec | undefined) {
  return { numerator: Math.round((percent === undefined ? 100 : (percent.value ?? 0)) * 10_000), denominator: FractionalPercent_DenominatorType.MILLION };
}

function fraction(percent: PercentSpec | undefined) {
  return { defaultValue: fractionalPercent(percent) };
}

function headerOperations(request: HeaderOperationsSpec | undefined, response: HeaderOperationsSpec | undefined) {
  return {
    requestHeadersToAdd: toAdd(request),
    requestHeadersToRemove: [...(request?.remove ?? [])],
    responseHeadersToAdd: toAdd(response),
    responseHeadersToRemove: [...(response?.remove ?? [])],
  };
}

function toAdd(operations: HeaderOperationsSpec | undefined) {
  const option = (key: string, value: string, appendAction: HeaderValueOption_HeaderAppendAction) => ({ header: { key, value }, appendAction });
  return [
    ...Object.entries(operations?.set ?? {}).map(([key, value]) => option(key, value, HeaderValueOption_HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD)),
    ...Object.entries(operations?.add ?? {}).map(([key, value]) => option(key, value, HeaderValueOption_HeaderAppendAction.APPEND_IF_EXISTS_OR_ADD)),
  ];
}
