import { durationToTimerMs } from '@mizzen/envoy-api';
import {
  type RateLimit,
  RateLimit_XRateLimitHeadersRFCVersion,
  RateLimitPerRouteSchema,
  RateLimitSchema,
  RateLimitPerRoute_VhRateLimitsOptions as VhOptions,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/ratelimit/v3/rate_limit_pb.js';
import {
  type RateLimitResponse,
  RateLimitResponse_Code,
  type RateLimitResponse_DescriptorStatus,
  RateLimitResponse_RateLimit_Unit as Unit,
} from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import { checkRateLimit, checkRateLimitPerRoute } from '@mizzen/gateway/rate-limits';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Exchange } from '../../http/exchange.ts';
import { grpcStatus } from '../../http/grpc.ts';
import type { Fields } from '../../message/fields.ts';
import { isHeaderName, unicodeText, utf8Bytes } from '../../message/header-bytes.ts';
import { isFinalStatus, type ResponseHead } from '../../message/response-head.ts';
import { HeaderOperations } from '../../route/header-operations.ts';
import type { FilterKind, HttpFilter } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';
import { askRateLimitService, type ServiceAnswer } from './ask-service.ts';
import { type HostLimits, refusalStatus, routeDescriptors } from './route-descriptors.ts';

const name = 'envoy.filters.http.ratelimit';
const defaultTimeoutMs = 20;
const hostLimits: Readonly<Record<VhOptions, HostLimits>> = {
  [VhOptions.OVERRIDE]: 'override',
  [VhOptions.INCLUDE]: 'include',
  [VhOptions.IGNORE]: 'ignore',
};
const rateLimitedHeader = 'x-envoy-ratelimited';

/** What a route or virtual host says to the filter. */
interface RouteConfig {
  readonly hostLimits: HostLimits;
  /** '': the filter's. */
  readonly domain: string;
}

/** envoy.filters.http.ratelimit: a RateLimitService decides by the descriptors that `rate_limits` of routes and virtual hosts make of a request. */
export const globalRateLimit: FilterKind = {
  name,
  typeNames: [RateLimitSchema.typeName, RateLimitPerRouteSchema.typeName],
  create(any, place, context, filterName) {
    return new GlobalRateLimitFilter(filterName, compileConfig(unpackConfig(RateLimitSchema, any, place), place), context, place);
  },
  compileRoute(any, place): RouteConfig {
    const config = unpackConfig(RateLimitPerRouteSchema, any, place);
    checkRateLimitPerRoute(config, place);
    return { hostLimits: hostLimits[config.vhRateLimits] ?? 'override', domain: config.domain };
  },
};

interface GlobalLimit {
  readonly domain: string;
  readonly stage: number;
  readonly cluster: string;
  readonly authority: string;
  readonly timeoutMs: number;
  readonly deniesOnFailure: boolean;
  readonly tellsClient: boolean;
  readonly marksRefusals: boolean;
  readonly status: number;
  readonly statusOnError: number;
  readonly grpcStatus: number | undefined;
  readonly responseHeaders: HeaderOperations | undefined;
  readonly statPrefix: string;
}

function compileConfig(config: RateLimit, place: string): GlobalLimit {
  const { cluster, authority } = checkRateLimit(config, place);
  const onError = config.statusOnError?.code ?? 0;
  return {
    domain: config.domain,
    stage: config.stage,
    cluster,
    authority,
    timeoutMs: durationToTimerMs(config.timeout) ?? defaultTimeoutMs,
    deniesOnFailure: config.failureModeDeny,
    tellsClient: config.enableXRatelimitHeaders === RateLimit_XRateLimitHeadersRFCVersion.DRAFT_VERSION_03,
    marksRefusals: !config.disableXEnvoyRatelimitedHeader,
    status: refusalStatus(config.rateLimitedStatus),
    statusOnError: isFinalStatus(onError) ? onError : 500,
    grpcStatus: config.rateLimitedAsResourceExhausted ? grpcStatus.RESOURCE_EXHAUSTED : undefined,
    responseHeaders: HeaderOperations.compile([{ add: config.responseHeadersToAdd, remove: [] }], place),
    statPrefix: (config.statPrefix || config.domain).replace(/[^\w.:-]/g, '_'),
  };
}

/** What the way back has to say about a request. */
interface Note {
  readonly isRefused: boolean;
  readonly fields: Fields;
}

class GlobalRateLimitFilter implements HttpFilter {
  readonly name: string;
  readonly #limit: GlobalLimit;
  readonly #context: ProxyContext;
  readonly #noteName: string;

  constructor(filterName: string, limit: GlobalLimit, context: ProxyContext, place: string) {
    this.name = filterName;
    this.#limit = limit;
    this.#context = context;
    this.#noteName = `${name} ${place}`;
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    const { stage, cluster, authority, timeoutMs } = this.#limit;
    if (exchange.route?.rateLimits === undefined) return 'continue';
    const ofRoute = exchange.filterConfig(this.name) as RouteConfig | undefined;
    const descriptors = routeDescriptors(exchange, stage, ofRoute?.hostLimits ?? 'override', this.#context.self);
    if (descriptors.length === 0) return 'continue';
    // A decision that is there at once does not stop the request.
    let isWaiting = false;
    let isPassed = false;
    const request = {
      domain: ofRoute?.domain || this.#limit.domain,
      descriptors: descriptors.map(({ entries, override }) => ({
        entries: entries.map(({ key, value }) => ({ key: unicodeText(key), value: unicodeText(value) })),
        ...(override === undefined ? {} : { limit: override }),
      })),
    };
    askRateLimitService(this.#context.findCluster(cluster), authority, timeoutMs, request, (answer) => {
      if (exchange.isOver || !this.#settle(exchange, answer)) return;
      if (isWaiting) exchange.resumeFilters();
      else isPassed = true;
    });
    isWaiting = true;
    return isPassed ? 'continue' : 'stop';
  }

  onResponse(exchange: Exchange, { headers }: ResponseHead): void {
    const note = exchange.note(this.#noteName) as Note | undefined;
    if (note === undefined) return;
    if (note.isRefused && this.#limit.marksRefusals) headers.set(rateLimitedHeader, 'true');
    if (note.isRefused) this.#limit.responseHeaders?.apply(headers, exchange);
    for (const [field, value] of note.fields) headers.add(field, value);
  }

  /** True: the request may pass. */
  #settle(exchange: Exchange, answer: ServiceAnswer): boolean {
    if ('failure' in answer) return this.#failed(exchange, answer.failure);
    const { response } = answer;
    // As in Envoy, a response without a decision lets the request pass.
    const isRefused = response.overallCode === RateLimitResponse_Code.OVER_LIMIT;
    this.#count(isRefused ? 'refused' : 'allowed');
    if (response.dynamicMetadata !== undefined) exchange.addMetadata(this.name, response.dynamicMetadata);
    const fields = [...headersOf(response.responseHeadersToAdd), ...(this.#limit.tellsClient ? standingOf(response.statuses) : [])];
    if (isRefused || fields.length > 0) exchange.setNote(this.#noteName, { isRefused, fields } satisfies Note);
    if (!isRefused) {
      for (const [field, value] of headersOf(response.requestHeadersToAdd)) exchange.head.headers.add(field, value);
      return true;
    }
    exchange.reply(this.#limit.status, bodyOf(response), 'RL', 'request_rate_limited', this.#limit.grpcStatus);
    return false;
  }

  #failed(exchange: Exchange, reason: string): boolean {
    const { deniesOnFailure, statusOnError } = this.#limit;
    this.#count(deniesOnFailure ? 'failure_refused' : 'failure_allowed');
    this.#context.logger.debug('the rate limit service gave no decision', { reason });
    if (!deniesOnFailure) return true;
    exchange.reply(statusOnError, '', 'RLSE', 'rate_limiter_error');
    return false;
  }

  #count(result: string): void {
    this.#context.counters.count(`rate_limit_service_decisions_total{stat_prefix="${this.#limit.statPrefix}",result="${result}"}`);
  }
}

/** Only fields that a service may add: it cannot change framing or pseudo-headers. */
function headersOf(headers: readonly { readonly key: string; readonly value: string }[]): [string, string][] {
  return headers
    .map(({ key, value }): [string, string] => [key.toLowerCase(), utf8Bytes(value)])
    .filter(([field]) => isHeaderName(field) && !framing.has(field));
}

const framing = new Set(['host', 'content-length', 'transfer-encoding', 'connection', 'upgrade', 'te', 'trailer', 'keep-alive', 'proxy-connection']);

function bodyOf({ rawBody }: RateLimitResponse): string {
  return Buffer.from(rawBody).toString('utf8');
}

const secondsOf: Readonly<Partial<Record<Unit, number>>> = {
  [Unit.SECOND]: 1,
  [Unit.MINUTE]: 60,
  [Unit.HOUR]: 3_600,
  [Unit.DAY]: 86_400,
  [Unit.MONTH]: 2_592_000,
  [Unit.YEAR]: 31_536_000,
};

/** draft-polli-ratelimit-headers-03: the limit closest to its end, and all policies. */
function standingOf(statuses: readonly RateLimitResponse_DescriptorStatus[]): [string, string][] {
  let closest: RateLimitResponse_DescriptorStatus | undefined;
  let policies = '';
  for (const status of statuses) {
    const limit = status.currentLimit;
    if (limit === undefined) continue;
    if (closest === undefined || status.limitRemaining < closest.limitRemaining) closest = status;
    const window = secondsOf[limit.unit];
    if (window === undefined) continue;
    policies += `, ${limit.requestsPerUnit};w=${window}${limit.name === '' ? '' : `;name="${utf8Bytes(limit.name)}"`}`;
  }
  if (closest === undefined) return [];
  return [
    ['x-ratelimit-limit', `${closest.currentLimit!.requestsPerUnit}${policies}`],
    ['x-ratelimit-remaining', String(closest.limitRemaining)],
    ['x-ratelimit-reset', String(closest.durationUntilReset?.seconds ?? 0n)],
  ];
}
