import type { Any } from '@bufbuild/protobuf/wkt';
import { MizzenError } from '@mizzen/common';
import { durationToMs, unpackAny } from '@mizzen/envoy-api';
import type { Metadata } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import {
  RedirectAction_RedirectResponseCode,
  type RouteAction as RouteActionMessage,
  type Route as RouteMessage,
  VirtualHost_TlsRequirementType,
} from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import type { RouteConfiguration } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { CorsPolicySchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/cors/v3/cors_pb.js';
import { HTTPFaultSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/fault/v3/fault_pb.js';
import { type FractionalPercent, FractionalPercent_DenominatorType } from '@mizzen/envoy-api/gen/envoy/type/v3/percent_pb.js';
import { corsFields } from '../filters/cors.ts';
import { filterKinds } from '../filters/filter-kinds.ts';
import { httpStatusOfGrpc } from '../http/grpc.ts';
import { refuseUnsupported } from '../xds/supported-fields.ts';
import { compileRequestHash } from './hash-policy.ts';
import { HeaderOperations } from './header-operations.ts';
import { type Condition, compileHeaderMatcher, compileRegex, compileStringMatcher, regexTest } from './matchers.ts';
import { queryParameter } from './query.ts';
import {
  type CorsPolicy,
  type FaultPolicy,
  type ForwardAction,
  type PathCondition,
  type PathRewrite,
  type RedirectAction,
  type RetryPolicy,
  Route,
  type RouteAction,
  type Target,
  WeightedTargets,
} from './route.ts';
import { RouteTable, type ServiceName, VirtualHost } from './route-table.ts';

/** Compiles a RouteConfiguration. What it cannot honour is refused (and becomes a NACK), never left out in silence. */
export function compileRouteTable(config: RouteConfiguration): RouteTable {
  const hosts = config.virtualHosts.map((host) => ({
    domains: host.domains,
    host: new VirtualHost(
      host.name,
      host.routes.map((route) => compileRoute(route, host.typedPerFilterConfig, `route table ${config.name}, virtual host ${host.name}`)),
      host.requireTls !== VirtualHost_TlsRequirementType.NONE,
      serviceNameOf(host.metadata),
    ),
  }));
  return new RouteTable(config.name, hosts);
}

/** The service that Istio's metadata names: `filter_metadata.istio.services[0]`. */
export function serviceNameOf(metadata: Metadata | undefined): ServiceName | undefined {
  const services = metadata?.filterMetadata['istio']?.['services'];
  const first = Array.isArray(services) ? services[0] : undefined;
  if (typeof first !== 'object' || first === null || Array.isArray(first)) return undefined;
  return { host: String(first['host'] ?? ''), name: String(first['name'] ?? ''), namespace: String(first['namespace'] ?? '') };
}

function compileRoute(route: RouteMessage, ofHost: Readonly<Record<string, Any>>, place: string): Route {
  const { match } = route;
  const perFilter = { ...ofHost, ...route.typedPerFilterConfig };
  if (!match) throw new MizzenError('invalid-route', `${place}: a route has no match`);
  const path = compilePath(match.pathSpecifier, match.caseSensitive === false, place);
  const conditions: Condition[] = match.headers.map(compileHeaderMatcher);
  for (const parameter of match.queryParameters) {
    const { name, queryParameterMatchSpecifier: spec } = parameter;
    const test = spec.case === 'stringMatch' ? compileStringMatcher(spec.value) : undefined;
    conditions.push({
      matches(head) {
        const value = queryParameter(head.target, name);
        return value !== undefined && (test === undefined || test(value));
      },
    });
  }
  return new Route({
    name: route.name,
    path,
    conditions,
    action: compileAction(route, path, place),
    cors: compileCors(perFilter['envoy.filters.http.cors'], place),
    fault: compileFault(perFilter['envoy.filters.http.fault']),
    filterConfigs: compileFilterConfigs(perFilter, place),
    requestHeaders: HeaderOperations.compile(route.requestHeadersToAdd, route.requestHeadersToRemove),
    responseHeaders: HeaderOperations.compile(route.responseHeadersToAdd, route.responseHeadersToRemove),
    origin: String(route.metadata?.filterMetadata['mizzen.provenance']?.['origin'] ?? ''),
  });
}

const compiledElsewhere = new Set(['envoy.filters.http.cors', 'envoy.filters.http.fault']);

function compileFilterConfigs(perFilter: Readonly<Record<string, Any>>, place: string): Map<string, unknown> | undefined {
  let compiled: Map<string, unknown> | undefined;
  for (const [name, any] of Object.entries(perFilter)) {
    if (compiledElsewhere.has(name)) continue;
    const kind = filterKinds.get(name);
    if (kind?.compileRoute === undefined) throw new MizzenError('unsupported-filter', `${place}: the HTTP filter ${name} takes nothing from routes here`);
    (compiled ??= new Map()).set(name, kind.compileRoute(any, `${place}, ${name}`));
  }
  return compiled;
}

function compilePath(spec: NonNullable<RouteMessage['match']>['pathSpecifier'], ignoresCase: boolean, place: string): PathCondition {
  const fold = (text: string) => (ignoresCase ? text.toLowerCase() : text);
  switch (spec.case) {
    case 'prefix':
      return { kind: 'prefix', text: fold(spec.value), ignoresCase, regex: undefined };
    case 'path':
      return { kind: 'exact', text: fold(spec.value), ignoresCase, regex: undefined };
    case 'pathSeparatedPrefix':
      return { kind: 'segmentPrefix', text: fold(spec.value), ignoresCase, regex: undefined };
    case 'connectMatcher':
      return { kind: 'connect', text: '', ignoresCase, regex: undefined };
    case 'safeRegex':
      return { kind: 'regex', text: spec.value.regex, ignoresCase, regex: regexTest(ignoresCase ? `(?i)${spec.value.regex}` : spec.value.regex) };
    default:
      throw new MizzenError('unsupported-route', `${place}: a path condition of type ${spec.case ?? '(none)'} is not supported`);
  }
}

function compileAction(route: RouteMessage, path: PathCondition, place: string): RouteAction {
  const { action } = route;
  switch (action.case) {
    case 'route':
      return compileForward(action.value, path, place);
    case 'redirect': {
      const { value } = action;
      const rewrite = value.pathRewriteSpecifier;
      if (rewrite.case === 'regexRewrite') throw new MizzenError('unsupported-route', `${place}: regex_rewrite in a redirect is not supported`);
      return {
        kind: 'redirect',
        status: redirectStatus[value.responseCode] ?? 301,
        scheme:
          value.schemeRewriteSpecifier.case === 'schemeRedirect'
            ? value.schemeRewriteSpecifier.value
            : value.schemeRewriteSpecifier.case === 'httpsRedirect' && value.schemeRewriteSpecifier.value
              ? 'https'
              : '',
        host: value.hostRedirect,
        port: value.portRedirect,
        path: rewrite.case === 'pathRedirect' ? rewrite.value : undefined,
        prefixRewrite: rewrite.case === 'prefixRewrite' ? { length: path.regex ? 0 : path.text.length, text: rewrite.value } : undefined,
      } satisfies RedirectAction;
    }
    case 'directResponse': {
      const source = action.value.body?.specifier;
      const body = source?.case === 'inlineString' ? Buffer.from(source.value) : source?.case === 'inlineBytes' ? Buffer.from(source.value) : Buffer.alloc(0);
      return { kind: 'direct', status: action.value.status, body };
    }
    default:
      throw new MizzenError('unsupported-route', `${place}: a route action of type ${action.case ?? '(none)'} is not supported`);
  }
}

const redirectStatus: Readonly<Record<number, number>> = {
  [RedirectAction_RedirectResponseCode.MOVED_PERMANENTLY]: 301,
  [RedirectAction_RedirectResponseCode.FOUND]: 302,
  [RedirectAction_RedirectResponseCode.SEE_OTHER]: 303,
  [RedirectAction_RedirectResponseCode.TEMPORARY_REDIRECT]: 307,
  [RedirectAction_RedirectResponseCode.PERMANENT_REDIRECT]: 308,
};

/** Envoy's default for a route that sets none (route_components.proto `RouteAction.timeout`). */
const defaultTimeoutMs = 15_000;

function compileForward(action: RouteActionMessage, path: PathCondition, place: string): ForwardAction {
  let targets: Target[];
  const plain = { requestHeaders: undefined, responseHeaders: undefined };
  switch (action.clusterSpecifier.case) {
    case 'cluster':
      targets = [{ cluster: action.clusterSpecifier.value, weight: 1, ...plain }];
      break;
    case 'weightedClusters':
      targets = action.clusterSpecifier.value.clusters.map((cluster) => ({
        cluster: cluster.name,
        weight: cluster.weight ?? 0,
        requestHeaders: HeaderOperations.compile(cluster.requestHeadersToAdd, cluster.requestHeadersToRemove),
        responseHeaders: HeaderOperations.compile(cluster.responseHeadersToAdd, cluster.responseHeadersToRemove),
      }));
      if (targets.reduce((sum, target) => sum + target.weight, 0) <= 0)
        throw new MizzenError('invalid-route', `${place}: the weights of a route add up to nothing`);
      break;
    default:
      throw new MizzenError('unsupported-route', `${place}: a cluster specifier of type ${action.clusterSpecifier.case ?? '(none)'} is not supported`);
  }
  let rewrite: PathRewrite | undefined;
  if (action.prefixRewrite !== '') rewrite = { kind: 'prefix', length: path.text.length, text: action.prefixRewrite };
  else if (action.regexRewrite?.pattern)
    rewrite = { kind: 'regex', pattern: compileRegex(action.regexRewrite.pattern.regex), substitution: action.regexRewrite.substitution };
  if (action.hostRewriteSpecifier.case !== undefined && action.hostRewriteSpecifier.case !== 'hostRewriteLiteral')
    throw new MizzenError('unsupported-route', `${place}: a host rewrite of type ${action.hostRewriteSpecifier.case} is not supported`);
  return {
    kind: 'forward',
    targets: new WeightedTargets(targets),
    timeoutMs: durationToMs(action.maxStreamDuration?.maxStreamDuration) ?? durationToMs(action.timeout) ?? defaultTimeoutMs,
    maxGrpcTimeoutMs: durationToMs(action.maxStreamDuration?.grpcTimeoutHeaderMax) ?? durationToMs(action.maxGrpcTimeout),
    retry: compileRetry(action.retryPolicy),
    rewrite,
    hostRewrite: action.hostRewriteSpecifier.case === 'hostRewriteLiteral' ? action.hostRewriteSpecifier.value : undefined,
    hash: compileRequestHash(action.hashPolicy, place),
    upgrades: new Map(action.upgradeConfigs.map((upgrade) => [upgrade.upgradeType.toLowerCase(), upgrade.enabled ?? true])),
    terminatesConnect: action.upgradeConfigs.some((upgrade) => upgrade.upgradeType.toUpperCase() === 'CONNECT' && upgrade.connectConfig !== undefined),
    mirrors: action.requestMirrorPolicies.map((policy) => ({
      cluster: policy.cluster,
      share: policy.runtimeFraction?.defaultValue ? shareOf(policy.runtimeFraction.defaultValue) : 1,
    })),
  };
}

/** envoy "x-envoy-retry-grpc-on". */
const retriableGrpc = [
  ['cancelled', 1],
  ['deadline-exceeded', 4],
  ['resource-exhausted', 8],
  ['internal', 13],
  ['unavailable', 14],
] as const;

/** Retry conditions: envoy "x-envoy-retry-on" and "x-envoy-retry-grpc-on". */
function compileRetry(policy: RouteActionMessage['retryPolicy']): RetryPolicy | undefined {
  if (!policy || policy.retryOn === '' || policy.numRetries === 0) return undefined;
  const on = new Set(policy.retryOn.split(',').map((condition) => condition.trim()));
  const base = durationToMs(policy.retryBackOff?.baseInterval) ?? 25;
  return {
    retries: policy.numRetries ?? 1,
    perTryTimeoutMs: durationToMs(policy.perTryTimeout) ?? 0,
    onConnectFailure: on.has('connect-failure') || on.has('5xx') || on.has('gateway-error') || on.has('reset'),
    onReset: on.has('reset') || on.has('5xx') || on.has('gateway-error'),
    onResetBeforeRequest: on.has('reset-before-request'),
    on5xx: on.has('5xx'),
    onGatewayError: on.has('gateway-error'),
    onRetriable4xx: on.has('retriable-4xx'),
    onRefusedStream: on.has('refused-stream') || on.has('reset') || on.has('5xx') || on.has('gateway-error'),
    grpcStatuses: new Set(retriableGrpc.filter(([condition]) => on.has(condition)).map(([, status]) => String(status))),
    statusCodes: on.has('retriable-status-codes') ? new Set(policy.retriableStatusCodes) : new Set(),
    avoidsPreviousHosts: policy.retryHostPredicate.some((predicate) => predicate.name.endsWith('previous_hosts')),
    backoffBaseMs: base,
    backoffMaxMs: durationToMs(policy.retryBackOff?.maxInterval) ?? base * 10,
  };
}

const supportedOfCors = new Set([
  ...['allowOriginStringMatch', 'allowMethods', 'allowHeaders', 'exposeHeaders', 'maxAge', 'allowCredentials', 'forwardNotMatchingPreflights', 'filterEnabled'],
]);

function compileCors(any: Any | undefined, place: string): CorsPolicy | undefined {
  const cors = unpackAny(CorsPolicySchema, any);
  if (!cors) return undefined;
  refuseUnsupported(CorsPolicySchema, cors, supportedOfCors, `${place}, cors`);
  if (cors.filterEnabled?.defaultValue && shareOf(cors.filterEnabled.defaultValue) < 1)
    throw new MizzenError('unsupported-route', `${place}, cors: filter_enabled for a share of the requests is not supported`);
  for (const value of [cors.allowMethods, cors.allowHeaders, cors.exposeHeaders, cors.maxAge])
    if (/[\x00-\x1f\x7f]/.test(value)) throw new MizzenError('invalid-route', `${place}, cors: ${JSON.stringify(value)} cannot be the value of a header`);
  const origins = cors.allowOriginStringMatch.map(compileStringMatcher);
  return {
    allowsOrigin: (origin) => origins.some((matches) => matches(origin)),
    ...corsFields({ ...cors, allowsCredentials: cors.allowCredentials ?? false }),
    forwardsUnmatchedPreflights: cors.forwardNotMatchingPreflights ?? true,
  };
}

function compileFault(any: Any | undefined): FaultPolicy | undefined {
  const fault = unpackAny(HTTPFaultSchema, any);
  if (!fault) return undefined;
  const { delay, abort } = fault;
  const grpc = abort?.errorType.case === 'grpcStatus' ? abort.errorType.value : undefined;
  return {
    delayMs: delay?.faultDelaySecifier.case === 'fixedDelay' ? (durationToMs(delay.faultDelaySecifier.value) ?? 0) : 0,
    delayShare: delay?.percentage ? shareOf(delay.percentage) : 0,
    abortStatus: abort?.errorType.case === 'httpStatus' ? abort.errorType.value : httpStatusOfGrpc(grpc ?? 0),
    abortGrpcStatus: grpc,
    abortShare: abort?.percentage ? shareOf(abort.percentage) : 0,
  };
}

function shareOf(percent: FractionalPercent): number {
  const denominator =
    percent.denominator === FractionalPercent_DenominatorType.MILLION
      ? 1_000_000
      : percent.denominator === FractionalPercent_DenominatorType.TEN_THOUSAND
        ? 10_000
        : 100;
  return Math.min(1, percent.numerator / denominator);
}
