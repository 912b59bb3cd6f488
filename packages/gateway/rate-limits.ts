import { MizzenError } from '@mizzen/common';
import { durationToMs } from '@mizzen/envoy-api';
import { ApiVersion } from '@mizzen/envoy-api/gen/envoy/config/core/v3/config_source_pb.js';
import { GrpcServiceSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/grpc_service_pb.js';
import { type RateLimit as RouteRateLimit, RateLimitSchema as RouteRateLimitSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { type LocalRateLimitDescriptor, LocalRateLimitDescriptorSchema } from '@mizzen/envoy-api/gen/envoy/extensions/common/ratelimit/v3/ratelimit_pb.js';
import { type LocalRateLimit, LocalRateLimitSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit_pb.js';
import {
  type RateLimit,
  type RateLimitPerRoute,
  RateLimitPerRouteSchema,
  RateLimitSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/ratelimit/v3/rate_limit_pb.js';
import type { MetadataKey } from '@mizzen/envoy-api/gen/envoy/type/metadata/v3/metadata_pb.js';
import { type HttpStatus, StatusCode } from '@mizzen/envoy-api/gen/envoy/type/v3/http_status_pb.js';
import type { TokenBucket } from '@mizzen/envoy-api/gen/envoy/type/v3/token_bucket_pb.js';
import { refuseUnsupported, supportedFields } from './supported-fields.ts';

/**
 * Which configurations of Envoy's rate limit filters are enforced (local_rate_limit.proto, rate_limit.proto, route_components.proto `RateLimit`).
 * The control plane refuses an EnvoyFilter by it, a proxy a resource: neither accepts a limit that would not hold. All functions throw
 * MizzenError.
 */

const maxStage = 10;
const minFillMs = 50;
/** Of each list of headers to add. */
const maxAddedHeaders = 10;

function invalid(place: string, problem: string): never {
  throw new MizzenError('invalid-rate-limit', `${place}: ${problem}`);
}

const supportedOfLocal = supportedFields(LocalRateLimitSchema, [
  ...['statPrefix', 'status', 'tokenBucket', 'filterEnabled', 'filterEnforced', 'requestHeadersToAddWhenNotEnforced', 'responseHeadersToAdd'],
  ...['descriptors', 'stage', 'localRateLimitPerDownstreamConnection', 'enableXRatelimitHeaders', 'vhRateLimits'],
  ...['alwaysConsumeDefaultTokenBucket', 'rateLimitedAsResourceExhausted'],
]);

/** envoy.filters.http.local_ratelimit, of a listener or (`isOfRoute`) of a virtual host or route. */
export function checkLocalRateLimit(config: LocalRateLimit, place: string, isOfRoute: boolean): void {
  refuseUnsupported(LocalRateLimitSchema, config, supportedOfLocal, place);
  if (config.statPrefix === '') invalid(place, 'stat_prefix is empty');
  checkStatus(config.status, 'status', place);
  checkStage(config.stage, place);
  if (isOfRoute && config.tokenBucket === undefined) invalid(place, 'a virtual host or route needs a token_bucket');
  checkAddedHeaders(config.responseHeadersToAdd.length, place);
  checkAddedHeaders(config.requestHeadersToAddWhenNotEnforced.length, place);
  if (config.tokenBucket !== undefined) checkBucket(config.tokenBucket, place);
  const entries = config.descriptors.map((descriptor, i) => checkDescriptor(descriptor, `${place}, descriptors[${i}]`));
  if (new Set(entries).size < entries.length) invalid(place, 'two descriptors have the same entries');
}

function checkDescriptor(descriptor: LocalRateLimitDescriptor, place: string): string {
  refuseUnsupported(LocalRateLimitDescriptorSchema, descriptor, new Set(['entries', 'tokenBucket']), place);
  const { entries, tokenBucket } = descriptor;
  if (entries.length === 0 || tokenBucket === undefined) invalid(place, 'entries and token_bucket are needed');
  // In newer versions of Envoy an empty value stands for any value, each with a bucket of its own.
  if (entries.some(({ key, value }) => key === '' || value === '')) invalid(place, 'entries with an empty key or value are not supported');
  checkBucket(tokenBucket, place);
  return JSON.stringify(entries.map(({ key, value }) => [key, value]));
}

function checkBucket({ maxTokens, tokensPerFill, fillInterval }: TokenBucket, place: string): void {
  if (maxTokens === 0 || tokensPerFill === 0) invalid(place, 'a token_bucket needs max_tokens and tokens_per_fill above 0');
  const fillMs = durationToMs(fillInterval) ?? 0;
  if (!(fillMs >= minFillMs)) invalid(place, `fill_interval must be at least ${minFillMs} ms`);
}

function checkStage(stage: number, place: string): void {
  if (stage > maxStage) invalid(place, `stage ${stage} is above ${maxStage}`);
}

function checkStatus(status: HttpStatus | undefined, field: string, place: string): void {
  if (status !== undefined && (status.code === StatusCode.Empty || StatusCode[status.code] === undefined))
    invalid(place, `${field}: ${status.code} is not a status of HTTP`);
}

function checkAddedHeaders(count: number, place: string): void {
  if (count > maxAddedHeaders) invalid(place, `${count} headers to add are more than ${maxAddedHeaders}`);
}

const supportedOfGlobal = supportedFields(RateLimitSchema, [
  ...['domain', 'stage', 'requestType', 'timeout', 'failureModeDeny', 'rateLimitedAsResourceExhausted', 'rateLimitService', 'enableXRatelimitHeaders'],
  ...['disableXEnvoyRatelimitedHeader', 'rateLimitedStatus', 'responseHeadersToAdd', 'statusOnError', 'statPrefix'],
]);

/** envoy.filters.http.ratelimit. Returns the cluster and authority of its service. */
export function checkRateLimit(config: RateLimit, place: string): { readonly cluster: string; readonly authority: string } {
  refuseUnsupported(RateLimitSchema, config, supportedOfGlobal, place);
  if (config.domain === '') invalid(place, 'domain is empty');
  checkStatus(config.rateLimitedStatus, 'rate_limited_status', place);
  checkStatus(config.statusOnError, 'status_on_error', place);
  checkStage(config.stage, place);
  // Without `internal_address_config` no request is internal, in Envoy as here.
  if (config.requestType === 'internal') invalid(place, 'request_type internal would limit nothing, since no request counts as internal: use external or both');
  if (!['', 'external', 'both'].includes(config.requestType))
    invalid(place, `request_type ${JSON.stringify(config.requestType)} is not known: external or both`);
  checkAddedHeaders(config.responseHeadersToAdd.length, place);
  const version = config.rateLimitService?.transportApiVersion;
  if (version === ApiVersion.V2) invalid(place, 'transport_api_version must be V3');
  const service = config.rateLimitService?.grpcService;
  if (service === undefined) return invalid(place, 'rate_limit_service needs a grpc_service');
  refuseUnsupported(GrpcServiceSchema, service, new Set(['envoyGrpc', 'timeout']), `${place}, grpc_service`);
  if (service.targetSpecifier.case !== 'envoyGrpc') return invalid(place, 'grpc_service needs envoy_grpc');
  const { clusterName, authority } = service.targetSpecifier.value;
  if (clusterName === '') invalid(place, 'envoy_grpc needs a cluster_name');
  // The name of a cluster may hold what no authority can.
  return { cluster: clusterName, authority: authority || clusterName.replace(/[^\w.:-]/g, '-') };
}

/** What a virtual host or route says to envoy.filters.http.ratelimit. */
export function checkRateLimitPerRoute(config: RateLimitPerRoute, place: string): void {
  refuseUnsupported(RateLimitPerRouteSchema, config, new Set(['vhRateLimits', 'domain']), place);
}

/** `rate_limits` of a virtual host or route. */
export function checkRouteRateLimits(limits: readonly RouteRateLimit[], place: string): void {
  for (const [i, limit] of limits.entries()) checkRouteRateLimit(limit, `${place}, rate_limits[${i}]`);
}

function checkRouteRateLimit(limit: RouteRateLimit, place: string): void {
  // `disable_key` names a runtime key, and there is no runtime to set one.
  refuseUnsupported(RouteRateLimitSchema, limit, new Set(['stage', 'disableKey', 'actions', 'limit']), place);
  checkStage(limit.stage ?? 0, place);
  if (limit.actions.length === 0) invalid(place, 'no actions');
  for (const [i, { actionSpecifier }] of limit.actions.entries()) checkAction(actionSpecifier, `${place}, actions[${i}]`);
  if (limit.limit === undefined) return;
  if (limit.limit.overrideSpecifier.case !== 'dynamicMetadata') return invalid(place, 'limit has no dynamic_metadata');
  checkMetadataKey(limit.limit.overrideSpecifier.value.metadataKey, place);
}

function checkAction(action: RouteRateLimit['actions'][number]['actionSpecifier'], place: string): void {
  switch (action.case) {
    case 'sourceCluster':
    case 'destinationCluster':
    case 'remoteAddress':
      return;
    case 'maskedRemoteAddress':
      if ((action.value.v4PrefixMaskLen ?? 0) > 32 || (action.value.v6PrefixMaskLen ?? 0) > 128) invalid(place, 'a prefix is longer than an address');
      return;
    case 'requestHeaders':
      if (action.value.descriptorKey === '' || action.value.headerName === '') invalid(place, 'descriptor_key and header_name are needed');
      return;
    case 'genericKey':
      return checkLiteral(action.value.descriptorValue, place);
    case 'headerValueMatch':
      if (action.value.headers.length === 0) invalid(place, 'header_value_match needs headers');
      return checkLiteral(action.value.descriptorValue, place);
    case 'queryParameterValueMatch':
      if (action.value.queryParameters.length === 0) invalid(place, 'query_parameter_value_match needs query_parameters');
      return checkLiteral(action.value.descriptorValue, place);
    case 'metadata':
    case 'dynamicMetadata':
      if (action.value.descriptorKey === '') invalid(place, 'descriptor_key is needed');
      return checkMetadataKey(action.value.metadataKey, place);
    default:
      invalid(place, `a rate limit action of type ${action.case ?? '(none)'} is not supported`);
  }
}

/** Newer versions of Envoy expand command operators here; a text that would mean something else there is refused. */
function checkLiteral(text: string, place: string): void {
  if (text === '') invalid(place, 'descriptor_value is empty');
  if (text.includes('%')) invalid(place, 'command operators in descriptor_value are not supported');
}

function checkMetadataKey(key: MetadataKey | undefined, place: string): void {
  if (key === undefined || key.key === '') return invalid(place, 'metadata_key has no key');
  if (key.path.some(({ segment }) => segment.case !== 'key')) invalid(place, 'metadata_key has an empty segment');
}
