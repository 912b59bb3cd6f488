import { MizzenError } from '@mizzen/common';
import { durationToTimerMs } from '@mizzen/envoy-api';
import {
  DirectResponseActionSchema,
  RouteAction_ClusterNotFoundResponseCode as NotFoundCode,
  RedirectAction_RedirectResponseCode,
  type RedirectAction as RedirectActionMessage,
  RouteAction_MaxStreamDurationSchema,
  type RouteAction_RequestMirrorPolicy,
  type RouteAction as RouteActionMessage,
  RouteActionSchema,
  type Route as RouteMessage,
  type WeightedCluster_ClusterWeight,
  WeightedCluster_ClusterWeightSchema,
  WeightedClusterSchema,
} from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { utf8Bytes } from '../message/header-bytes.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import { compileFilterConfigs } from './compile-filter-configs.ts';
import { compileHedge, compileRetry } from './compile-policies.ts';
import { compileRequestHash } from './hash-policy.ts';
import { HeaderOperations } from './header-operations.ts';
import type { Inherited } from './inherited.ts';
import { RegexSubstitution } from './regex-substitution.ts';
import type { DirectResponseAction, ForwardAction, HostRewrite, Mirror, PathCondition, PathRewrite, RedirectAction, RouteAction, Target } from './route.ts';
import { shareOf } from './share.ts';
import { WeightedTargets } from './weighted-targets.ts';

/** What to do with a request (route_components.proto `Route.action`). */
export function compileAction(route: RouteMessage, path: PathCondition, inherited: Inherited, place: string): RouteAction {
  const { action } = route;
  switch (action.case) {
    case 'route':
      return compileForward(action.value, path, inherited, place);
    case 'redirect':
      return compileRedirect(action.value, path);
    case 'directResponse':
      return compileDirectResponse(action.value, inherited, place);
    default:
      throw new MizzenError('unsupported-route', `${place}: a route action of type ${action.case ?? '(none)'} is not supported`);
  }
}

function compileDirectResponse(action: Extract<RouteMessage['action'], { case: 'directResponse' }>['value'], inherited: Inherited, place: string) {
  refuseUnsupported(DirectResponseActionSchema, action, new Set(['status', 'body']), `${place}, direct_response`);
  const source = action.body?.specifier;
  let body = Buffer.alloc(0);
  if (source?.case === 'inlineString' || source?.case === 'inlineBytes') body = Buffer.from(source.value as string);
  else if (source?.case !== undefined)
    throw new MizzenError('unsupported-route', `${place}: the body of a direct response must be inline, not by ${source.case}`);
  if (body.length > inherited.maxDirectResponseBytes)
    throw new MizzenError(
      'invalid-route',
      `${place}: the body of a direct response has ${body.length} bytes, more than max_direct_response_body_size_bytes allows`,
    );
  return { kind: 'direct', status: action.status, body } satisfies DirectResponseAction;
}

function compileRedirect(value: RedirectActionMessage, path: PathCondition): RedirectAction {
  const rewrite = value.pathRewriteSpecifier;
  return {
    kind: 'redirect',
    status: redirectStatus[value.responseCode] ?? 301,
    scheme:
      value.schemeRewriteSpecifier.case === 'schemeRedirect'
        ? value.schemeRewriteSpecifier.value
        : value.schemeRewriteSpecifier.case === 'httpsRedirect' && value.schemeRewriteSpecifier.value
          ? 'https'
          : '',
    host: utf8Bytes(value.hostRedirect),
    port: value.portRedirect,
    path: rewrite.case === 'pathRedirect' ? utf8Bytes(rewrite.value) : undefined,
    rewrite:
      rewrite.case === 'prefixRewrite'
        ? prefixRewrite(rewrite.value, path)
        : rewrite.case === 'regexRewrite'
          ? { kind: 'regex', substitution: RegexSubstitution.compile(rewrite.value) }
          : undefined,
    stripsQuery: value.stripQuery,
  };
}

const redirectStatus: Readonly<Record<number, number>> = {
  [RedirectAction_RedirectResponseCode.MOVED_PERMANENTLY]: 301,
  [RedirectAction_RedirectResponseCode.FOUND]: 302,
  [RedirectAction_RedirectResponseCode.SEE_OTHER]: 303,
  [RedirectAction_RedirectResponseCode.TEMPORARY_REDIRECT]: 307,
  [RedirectAction_RedirectResponseCode.PERMANENT_REDIRECT]: 308,
};

function prefixRewrite(text: string, path: PathCondition): PathRewrite {
  return { kind: 'prefix', length: path.kind === 'regex' || path.kind === 'connect' ? -1 : path.text.length, text: utf8Bytes(text) };
}

/** Envoy's default for a route that sets none (route_components.proto `RouteAction.timeout`). */
const defaultTimeoutMs = 15_000;

const supported = supportedFields(RouteActionSchema, [
  ...['cluster', 'clusterHeader', 'weightedClusters', 'clusterNotFoundResponseCode', 'prefixRewrite', 'regexRewrite', 'hostRewriteLiteral'],
  ...['hostRewriteHeader', 'hostRewritePathRegex', 'appendXForwardedHost', 'timeout', 'retryPolicy', 'requestMirrorPolicies', 'hashPolicy'],
  ...['maxGrpcTimeout', 'upgradeConfigs', 'hedgePolicy', 'maxStreamDuration', 'rateLimits', 'includeVhRateLimits'],
]);

const supportedOfDuration = supportedFields(RouteAction_MaxStreamDurationSchema, ['maxStreamDuration', 'grpcTimeoutHeaderMax']);
const supportedOfWeights = supportedFields(WeightedClusterSchema, ['clusters', 'totalWeight', 'runtimeKeyPrefix']);

const notFoundStatus: Readonly<Record<NotFoundCode, number>> = {
  [NotFoundCode.SERVICE_UNAVAILABLE]: 503,
  [NotFoundCode.NOT_FOUND]: 404,
  [NotFoundCode.INTERNAL_SERVER_ERROR]: 500,
};

function compileForward(action: RouteActionMessage, path: PathCondition, inherited: Inherited, place: string): ForwardAction {
  refuseUnsupported(RouteActionSchema, action, supported, place);
  refuseUnsupported(RouteAction_MaxStreamDurationSchema, action.maxStreamDuration, supportedOfDuration, place);
  const mirrors = action.requestMirrorPolicies.length > 0 ? action.requestMirrorPolicies : inherited.mirrors;
  return {
    kind: 'forward',
    targets: compileTargets(action, inherited, place),
    timeoutMs: durationToTimerMs(action.maxStreamDuration?.maxStreamDuration) ?? durationToTimerMs(action.timeout) ?? defaultTimeoutMs,
    maxGrpcTimeoutMs: durationToTimerMs(action.maxStreamDuration?.grpcTimeoutHeaderMax) ?? durationToTimerMs(action.maxGrpcTimeout),
    retry: compileRetry(action.retryPolicy ?? inherited.retry, place),
    hedge: compileHedge(action.hedgePolicy ?? inherited.hedge, place),
    rewrite: compileRewrite(action, path),
    hostRewrite: compileHostRewrite(action.hostRewriteSpecifier, place),
    tellsHost: action.appendXForwardedHost,
    hash: compileRequestHash(action.hashPolicy, place),
    upgrades: new Map(action.upgradeConfigs.map((upgrade) => [upgrade.upgradeType.toLowerCase(), upgrade.enabled ?? true])),
    terminatesConnect: action.upgradeConfigs.some((upgrade) => upgrade.upgradeType.toUpperCase() === 'CONNECT' && upgrade.connectConfig !== undefined),
    clusterNotFoundStatus: notFoundStatus[action.clusterNotFoundResponseCode] ?? 503,
    mirrors: mirrors.map(compileMirror),
  };
}

function compileRewrite({ prefixRewrite: prefix, regexRewrite: regex }: RouteActionMessage, path: PathCondition): PathRewrite | undefined {
  if (prefix !== '') return prefixRewrite(prefix, path);
  return regex && { kind: 'regex', substitution: RegexSubstitution.compile(regex) };
}

function compileMirror(policy: RouteAction_RequestMirrorPolicy): Mirror {
  return {
    cluster: policy.cluster,
    clusterHeader: policy.clusterHeader.toLowerCase(),
    share: policy.runtimeFraction?.defaultValue ? shareOf(policy.runtimeFraction.defaultValue) : 1,
    marksHost: !policy.disableShadowHostSuffixAppend,
  };
}

function compileHostRewrite(spec: RouteActionMessage['hostRewriteSpecifier'], place: string): HostRewrite | undefined {
  switch (spec.case) {
    case undefined:
      return undefined;
    case 'hostRewriteLiteral':
      return { kind: 'literal', text: utf8Bytes(spec.value) };
    case 'hostRewriteHeader':
      return { kind: 'header', name: spec.value.toLowerCase() };
    case 'hostRewritePathRegex':
      return { kind: 'path', substitution: RegexSubstitution.compile(spec.value) };
    default:
      throw new MizzenError('unsupported-route', `${place}: a host rewrite of type ${spec.case} is not supported`);
  }
}

function compileTargets(action: RouteActionMessage, inherited: Inherited, place: string): WeightedTargets<Target> {
  const spec = action.clusterSpecifier;
  const plain = {
    weight: 1,
    requestHeaders: HeaderOperations.compile(inherited.requestHeaders, place),
    responseHeaders: HeaderOperations.compile(inherited.responseHeaders, place),
    filterConfigs: undefined,
    hostRewrite: undefined,
  };
  switch (spec.case) {
    case 'cluster':
      return new WeightedTargets([{ ...plain, cluster: spec.value, clusterHeader: '' }]);
    case 'clusterHeader':
      return new WeightedTargets([{ ...plain, cluster: '', clusterHeader: spec.value.toLowerCase() }]);
    case 'weightedClusters': {
      refuseUnsupported(WeightedClusterSchema, spec.value, supportedOfWeights, place);
      const targets = spec.value.clusters.map((cluster) => compileTarget(cluster, inherited, place));
      const total = targets.reduce((sum, target) => sum + target.weight, 0);
      if (total <= 0) throw new MizzenError('invalid-route', `${place}: the weights of a route add up to nothing`);
      return new WeightedTargets(targets);
    }
    default:
      throw new MizzenError('unsupported-route', `${place}: a cluster specifier of type ${spec.case ?? '(none)'} is not supported`);
  }
}

const supportedOfWeight = supportedFields(WeightedCluster_ClusterWeightSchema, [
  ...['name', 'clusterHeader', 'weight', 'requestHeadersToAdd', 'requestHeadersToRemove', 'responseHeadersToAdd', 'responseHeadersToRemove'],
  ...['typedPerFilterConfig', 'hostRewriteLiteral'],
]);

function compileTarget(cluster: WeightedCluster_ClusterWeight, inherited: Inherited, place: string): Target {
  refuseUnsupported(WeightedCluster_ClusterWeightSchema, cluster, supportedOfWeight, place);
  const ownRequest = { add: cluster.requestHeadersToAdd, remove: cluster.requestHeadersToRemove };
  const ownResponse = { add: cluster.responseHeadersToAdd, remove: cluster.responseHeadersToRemove };
  return {
    cluster: cluster.name,
    clusterHeader: cluster.clusterHeader.toLowerCase(),
    weight: cluster.weight ?? 0,
    requestHeaders: HeaderOperations.compile([ownRequest, ...inherited.requestHeaders], place),
    responseHeaders: HeaderOperations.compile([ownResponse, ...inherited.responseHeaders], place),
    filterConfigs: compileFilterConfigs([{ perFilter: cluster.typedPerFilterConfig, place: `${place}, cluster ${cluster.name}` }], new Set()),
    hostRewrite: cluster.hostRewriteSpecifier.case === 'hostRewriteLiteral' ? utf8Bytes(cluster.hostRewriteSpecifier.value) : undefined,
  };
}
