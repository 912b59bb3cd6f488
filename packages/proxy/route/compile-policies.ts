import type { Any } from '@bufbuild/protobuf/wkt';
import { MizzenError } from '@mizzen/common';
import { durationToTimerMs, unpackAny } from '@mizzen/envoy-api';
import {
  type HedgePolicy as HedgePolicyMessage,
  HedgePolicySchema,
  type RetryPolicy as RetryPolicyMessage,
  RetryPolicySchema,
} from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { type CorsPolicy as CorsPolicyMessage, CorsPolicySchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/cors/v3/cors_pb.js';
import { HTTPFaultSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/fault/v3/fault_pb.js';
import { PreviousPrioritiesConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config_pb.js';
import { corsFields } from '../filters/cors.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import { compileFieldMatcher, compileHeaderMatcher, compileStringMatcher } from './matchers.ts';
import type { CorsPolicy, FaultPolicy, HedgePolicy, RetryPolicy } from './route.ts';
import { shareOf } from './share.ts';

/** Envoy's "x-envoy-retry-grpc-on". */
const retriableGrpc = [
  ['cancelled', 1],
  ['deadline-exceeded', 4],
  ['resource-exhausted', 8],
  ['internal', 13],
  ['unavailable', 14],
] as const;

const supportedOfRetry = supportedFields(RetryPolicySchema, [
  ...['retryOn', 'numRetries', 'perTryTimeout', 'retryPriority', 'retryHostPredicate', 'hostSelectionRetryMaxAttempts', 'retriableStatusCodes'],
  ...['retryBackOff', 'retriableHeaders', 'retriableRequestHeaders'],
]);

/** Retry conditions: Envoy's "x-envoy-retry-on" and "x-envoy-retry-grpc-on". */
export function compileRetry(policy: RetryPolicyMessage | undefined, place: string): RetryPolicy | undefined {
  if (!policy || policy.retryOn === '' || policy.numRetries === 0) return undefined;
  refuseUnsupported(RetryPolicySchema, policy, supportedOfRetry, `${place}, retry_policy`);
  const on = new Set(policy.retryOn.split(',').map((condition) => condition.trim()));
  const base = durationToTimerMs(policy.retryBackOff?.baseInterval) ?? 25;
  const predicates = policy.retryHostPredicate.map(({ name }) => name);
  const unknown = predicates.find((name) => !name.endsWith('previous_hosts'));
  if (unknown !== undefined) throw new MizzenError('unsupported-route', `${place}: the retry host predicate ${unknown} is not supported`);
  return {
    retries: policy.numRetries ?? 1,
    perTryTimeoutMs: durationToTimerMs(policy.perTryTimeout) ?? 0,
    onConnectFailure: on.has('connect-failure') || on.has('5xx') || on.has('gateway-error') || on.has('reset'),
    onReset: on.has('reset') || on.has('5xx') || on.has('gateway-error'),
    onResetBeforeRequest: on.has('reset-before-request'),
    on5xx: on.has('5xx'),
    onGatewayError: on.has('gateway-error'),
    onRetriable4xx: on.has('retriable-4xx'),
    onRefusedStream: on.has('refused-stream') || on.has('reset') || on.has('5xx') || on.has('gateway-error'),
    onRateLimited: on.has('envoy-ratelimited'),
    grpcStatuses: new Set(retriableGrpc.filter(([condition]) => on.has(condition)).map(([, status]) => String(status))),
    statusCodes: on.has('retriable-status-codes') ? new Set(policy.retriableStatusCodes) : new Set(),
    answers: on.has('retriable-headers') ? policy.retriableHeaders.map(compileFieldMatcher) : [],
    requests: policy.retriableRequestHeaders.map(compileHeaderMatcher),
    avoidsPreviousHosts: predicates.length > 0,
    avoidsPrioritiesAfter: compileRetryPriority(policy, place),
    backoffBaseMs: base,
    backoffMaxMs: durationToTimerMs(policy.retryBackOff?.maxInterval) ?? base * 10,
  };
}

function compileRetryPriority({ retryPriority }: RetryPolicyMessage, place: string): number {
  if (retryPriority === undefined) return 0;
  const config = unpackAny(PreviousPrioritiesConfigSchema, retryPriority.configType.case === 'typedConfig' ? retryPriority.configType.value : undefined);
  if (!config) throw new MizzenError('unsupported-route', `${place}: the retry priority ${retryPriority.name} is not supported`);
  if (config.updateFrequency < 1) throw new MizzenError('invalid-route', `${place}: update_frequency of previous_priorities must be at least 1`);
  return config.updateFrequency;
}

export function compileHedge(policy: HedgePolicyMessage | undefined, place: string): HedgePolicy | undefined {
  if (!policy) return undefined;
  refuseUnsupported(HedgePolicySchema, policy, new Set(['hedgeOnPerTryTimeout']), `${place}, hedge_policy`);
  return policy.hedgeOnPerTryTimeout ? { onPerTryTimeout: true } : undefined;
}

const supportedOfCors = supportedFields(CorsPolicySchema, [
  ...['allowOriginStringMatch', 'allowMethods', 'allowHeaders', 'exposeHeaders', 'maxAge', 'allowCredentials', 'forwardNotMatchingPreflights', 'filterEnabled'],
]);

/** `places`: what the route, its host and its table say. Each field is that of the first that has it (envoy cors_filter.cc). */
export function compileCors(places: readonly (Any | undefined)[], place: string): CorsPolicy | undefined {
  const policies = places.map((any) => unpackAny(CorsPolicySchema, any)).filter((policy) => policy !== undefined);
  if (policies.length === 0) return undefined;
  for (const cors of policies) checkCors(cors, place);
  const text = (field: 'allowMethods' | 'allowHeaders' | 'exposeHeaders' | 'maxAge') => policies.find((cors) => cors[field] !== '')?.[field] ?? '';
  const flag = (field: 'allowCredentials' | 'forwardNotMatchingPreflights') => policies.find((cors) => cors[field] !== undefined)?.[field];
  const origins = (policies.find((cors) => cors.allowOriginStringMatch.length > 0)?.allowOriginStringMatch ?? []).map(compileStringMatcher);
  return {
    allowsOrigin: (origin) => origins.some((matches) => matches(origin)),
    ...corsFields({
      allowMethods: text('allowMethods'),
      allowHeaders: text('allowHeaders'),
      exposeHeaders: text('exposeHeaders'),
      maxAge: text('maxAge'),
      allowsCredentials: flag('allowCredentials') ?? false,
    }),
    forwardsUnmatchedPreflights: flag('forwardNotMatchingPreflights') ?? true,
  };
}

function checkCors(cors: CorsPolicyMessage, place: string): void {
  refuseUnsupported(CorsPolicySchema, cors, supportedOfCors, `${place}, cors`);
  if (cors.filterEnabled?.defaultValue && shareOf(cors.filterEnabled.defaultValue) < 1)
    throw new MizzenError('unsupported-route', `${place}, cors: filter_enabled for a share of the requests is not supported`);
  for (const value of [cors.allowMethods, cors.allowHeaders, cors.exposeHeaders, cors.maxAge])
    if (/[\x00-\x1f\x7f]/.test(value)) throw new MizzenError('invalid-route', `${place}, cors: ${JSON.stringify(value)} cannot be the value of a header`);
}

export function compileFault(any: Any | undefined, place: string): FaultPolicy | undefined {
  const fault = unpackAny(HTTPFaultSchema, any);
  if (!fault) return undefined;
  refuseUnsupported(HTTPFaultSchema, fault, new Set(['delay', 'abort', 'headers', 'disableDownstreamClusterStats']), `${place}, fault`);
  const { delay, abort } = fault;
  if (delay?.faultDelaySecifier.case === 'headerDelay' || abort?.errorType.case === 'headerAbort')
    throw new MizzenError('unsupported-route', `${place}, fault: faults that requests ask for by header are not supported`);
  const grpc = abort?.errorType.case === 'grpcStatus' ? abort.errorType.value : undefined;
  return {
    requests: fault.headers.map(compileHeaderMatcher),
    delayMs: delay?.faultDelaySecifier.case === 'fixedDelay' ? (durationToTimerMs(delay.faultDelaySecifier.value) ?? 0) : 0,
    delayShare: delay?.percentage ? shareOf(delay.percentage) : 0,
    // A caller that is none of gRPC's is told nothing else than that it was the fault filter, as by Envoy.
    abortStatus: abort?.errorType.case === 'httpStatus' ? abort.errorType.value : 200,
    abortGrpcStatus: grpc,
    abortShare: abort?.percentage ? shareOf(abort.percentage) : 0,
  };
}
