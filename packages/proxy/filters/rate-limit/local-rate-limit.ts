import type { Any } from '@bufbuild/protobuf/wkt';
import { durationToMs } from '@mizzen/envoy-api';
import type { RuntimeFractionalPercent } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { XRateLimitHeadersRFCVersion } from '@mizzen/envoy-api/gen/envoy/extensions/common/ratelimit/v3/ratelimit_pb.js';
import { type LocalRateLimit, LocalRateLimitSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit_pb.js';
import type { TokenBucket } from '@mizzen/envoy-api/gen/envoy/type/v3/token_bucket_pb.js';
import { checkLocalRateLimit } from '@mizzen/gateway/rate-limits';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Exchange } from '../../http/exchange.ts';
import { grpcStatus } from '../../http/grpc.ts';
import { utf8Bytes } from '../../message/header-bytes.ts';
import type { ResponseHead } from '../../message/response-head.ts';
import { HeaderOperations } from '../../route/header-operations.ts';
import type { Descriptor } from '../../route/rate-limit-actions.ts';
import { shareOf } from '../../route/share.ts';
import type { FilterKind, HttpFilter } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';
import { type HostLimits, hostLimitsOf, refusalStatus, routeDescriptors } from './route-descriptors.ts';
import { type SharedSpending, spendingOf } from './shared-spending.ts';
import { TokenBuckets } from './token-buckets.ts';

const name = 'envoy.filters.http.local_ratelimit';
/** Configurations whose buckets are kept over updates; the oldest goes first. */
const maxKeptLimiters = 10_000;

/**
 * envoy.filters.http.local_ratelimit: token buckets in this process, one for all requests of the listener or route and one for each
 * configured descriptor. Workers share what they spend (./shared-spending.ts).
 */
export const localRateLimit: FilterKind = {
  name,
  typeNames: [LocalRateLimitSchema.typeName],
  create(any, place, context, filterName) {
    const config = compileConfig(unpackConfig(LocalRateLimitSchema, any, place), place, false);
    return new LocalRateLimitFilter(filterName, config, context, place);
  },
  compileRoute(any, place): LocalLimit {
    // What a virtual host says is compiled once for each of its routes, and is one limit for all of them.
    let compiled = byMessage.get(any);
    if (compiled === undefined) byMessage.set(any, (compiled = compileConfig(unpackConfig(LocalRateLimitSchema, any, place), place, true)));
    return compiled;
  },
};

const byMessage = new WeakMap<Any, LocalLimit>();

interface BucketSize {
  readonly maxTokens: number;
  readonly tokensPerFill: number;
  readonly fillMs: number;
}

/** One configuration, of a listener, a virtual host or a route. */
interface LocalLimit {
  /** Where it stands and what it says: by it its buckets are found again after an update. */
  readonly identity: string;
  /** Of the counter of its decisions; the names are made here, not for each request. */
  readonly countedAs: Readonly<Record<'allowed' | 'refused' | 'not_enforced', string>>;
  readonly status: number;
  readonly bucket: BucketSize | undefined;
  readonly descriptors: readonly { readonly key: string; readonly bucket: BucketSize }[];
  /** Shares of the requests, 0 to 1. */
  readonly enabled: number;
  readonly enforced: number;
  readonly requestHeaders: HeaderOperations | undefined;
  readonly responseHeaders: HeaderOperations | undefined;
  readonly stage: number;
  readonly hostLimits: HostLimits;
  readonly isPerConnection: boolean;
  readonly tellsClient: boolean;
  readonly alwaysTakesDefault: boolean;
  readonly grpcStatus: number | undefined;
}

function compileConfig(config: LocalRateLimit, place: string, isOfRoute: boolean): LocalLimit {
  checkLocalRateLimit(config, place, isOfRoute);
  const { responseHeadersToAdd, requestHeadersToAddWhenNotEnforced } = config;
  const bucket = config.tokenBucket && bucketSize(config.tokenBucket);
  const descriptors = config.descriptors.map(({ entries, tokenBucket }) => ({
    key: keyOf(entries.map(({ key, value }) => ({ key: utf8Bytes(key), value: utf8Bytes(value) }))),
    bucket: bucketSize(tokenBucket!),
  }));
  const statPrefix = config.statPrefix.replace(/[^\w.:-]/g, '_');
  const counterName = (result: string) => `local_rate_limit_requests_total{stat_prefix="${statPrefix}",result="${result}"}`;
  return {
    identity: JSON.stringify([place, bucket, descriptors, config.localRateLimitPerDownstreamConnection]),
    countedAs: { allowed: counterName('allowed'), refused: counterName('refused'), not_enforced: counterName('not_enforced') },
    status: refusalStatus(config.status),
    bucket,
    descriptors,
    enabled: shareOfRequests(config.filterEnabled),
    enforced: shareOfRequests(config.filterEnforced),
    requestHeaders: HeaderOperations.compile([{ add: requestHeadersToAddWhenNotEnforced, remove: [] }], place),
    responseHeaders: HeaderOperations.compile([{ add: responseHeadersToAdd, remove: [] }], place),
    stage: config.stage,
    hostLimits: hostLimitsOf[config.vhRateLimits] ?? 'override',
    isPerConnection: config.localRateLimitPerDownstreamConnection,
    tellsClient: config.enableXRatelimitHeaders === XRateLimitHeadersRFCVersion.DRAFT_VERSION_03,
    alwaysTakesDefault: config.alwaysConsumeDefaultTokenBucket ?? true,
    grpcStatus: config.rateLimitedAsResourceExhausted ? grpcStatus.RESOURCE_EXHAUSTED : undefined,
  };
}

/** `checkLocalRateLimit` has verified that all is there. */
function bucketSize({ maxTokens, tokensPerFill = 1, fillInterval }: TokenBucket): BucketSize {
  return { maxTokens, tokensPerFill, fillMs: durationToMs(fillInterval) ?? 0 };
}

/** envoy local_rate_limit.proto: absent means none, "for safety". */
const shareOfRequests = (fraction: RuntimeFractionalPercent | undefined): number => (fraction?.defaultValue ? shareOf(fraction.defaultValue) : 0);

const keyOf = (entries: Descriptor['entries']): string => JSON.stringify(entries.map(({ key, value }) => [key, value]));

/** One bucket, with its size. */
class Bucket {
  readonly maxTokens: number;
  readonly fillPerMs: number;
  readonly #tokens: TokenBuckets;

  constructor({ maxTokens, tokensPerFill, fillMs }: BucketSize, limit: string, spending: SharedSpending | undefined) {
    this.maxTokens = maxTokens;
    this.fillPerMs = tokensPerFill / fillMs;
    this.#tokens = new TokenBuckets(tokensPerFill, fillMs, maxTokens, 1);
    spending?.share(limit, this.#tokens);
  }

  take(nowMs: number): boolean {
    return this.#tokens.take('', nowMs).isAllowed;
  }

  peek(nowMs: number): { readonly remaining: number; readonly resetSeconds: number } {
    const { remaining, untilNextMs } = this.#tokens.peek('', nowMs);
    return { remaining, resetSeconds: Math.ceil(untilNextMs / 1_000) };
  }
}

/** The buckets of one configuration. */
class Limiter {
  readonly #default: Bucket | undefined;
  readonly #byDescriptor: ReadonlyMap<string, Bucket>;
  readonly #alwaysTakesDefault: boolean;

  /** `spending`: undefined where the buckets are this worker's alone. */
  constructor({ identity, bucket, descriptors, alwaysTakesDefault }: LocalLimit, spending: SharedSpending | undefined) {
    this.#default = bucket && new Bucket(bucket, `${name} ${identity}`, spending);
    this.#byDescriptor = new Map(descriptors.map(({ key, bucket: size }) => [key, new Bucket(size, `${name} ${identity} ${key}`, spending)]));
    this.#alwaysTakesDefault = alwaysTakesDefault;
  }

  /** Takes a token of each bucket that counts the request, the slowest first, until one has none (envoy local_ratelimit_impl.cc). */
  take(descriptors: readonly Descriptor[], nowMs: number): { readonly isAllowed: boolean; readonly bucket: Bucket | undefined } {
    const matched: Bucket[] = [];
    for (const { entries } of descriptors) {
      const bucket = this.#byDescriptor.get(keyOf(entries));
      if (bucket !== undefined) matched.push(bucket);
    }
    matched.sort((a, b) => a.fillPerMs - b.fillPerMs);
    for (const bucket of matched) if (!bucket.take(nowMs)) return { isAllowed: false, bucket };
    const shown = matched[0] ?? this.#default;
    if (this.#default === undefined || (matched.length > 0 && !this.#alwaysTakesDefault)) return { isAllowed: true, bucket: shown };
    return this.#default.take(nowMs) ? { isAllowed: true, bucket: shown } : { isAllowed: false, bucket: this.#default };
  }
}

/** What the way back has to say about a request. */
interface Note {
  readonly limit: LocalLimit;
  readonly bucket: Bucket | undefined;
  readonly isRefused: boolean;
}

class LocalRateLimitFilter implements HttpFilter {
  readonly name: string;
  readonly #config: LocalLimit;
  readonly #context: ProxyContext;
  readonly #noteName: string;
  /** Outlives updates: a new configuration gives no client new tokens. */
  readonly #limiters: Map<string, Limiter>;
  readonly #ofConnections: WeakMap<object, Map<string, Limiter>>;

  constructor(filterName: string, config: LocalLimit, context: ProxyContext, place: string) {
    this.name = filterName;
    this.#config = config;
    this.#context = context;
    this.#noteName = `${name} ${place}`;
    const kept = context.filterStates.get(name) as Map<string, Limiter> | undefined;
    this.#limiters = kept ?? new Map();
    context.filterStates.set(name, this.#limiters);
    const connections = context.filterStates.get(`${name}.connections`) as WeakMap<object, Map<string, Limiter>> | undefined;
    this.#ofConnections = connections ?? new WeakMap();
    context.filterStates.set(`${name}.connections`, this.#ofConnections);
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    const limit = (exchange.filterConfig(this.name) as LocalLimit | undefined) ?? this.#config;
    const { random, counters, self } = this.#context;
    if (!isDrawn(limit.enabled, random)) return 'continue';
    const descriptors = limit.descriptors.length === 0 ? [] : routeDescriptors(exchange, limit.stage, limit.hostLimits, self);
    const { isAllowed, bucket } = this.#limiterOf(limit, exchange).take(descriptors, performance.now());
    const isRefused = !isAllowed && isDrawn(limit.enforced, random);
    const result = isAllowed ? 'allowed' : isRefused ? 'refused' : 'not_enforced';
    counters.count(limit.countedAs[result]);
    if (isRefused || limit.tellsClient) exchange.setNote(this.#noteName, { limit, bucket, isRefused } satisfies Note);
    if (isAllowed) return 'continue';
    if (!isRefused) {
      limit.requestHeaders?.apply(exchange.head.headers, exchange);
      return 'continue';
    }
    exchange.reply(limit.status, 'local_rate_limited', 'RL', 'local_rate_limited', limit.grpcStatus);
    return 'stop';
  }

  onResponse(exchange: Exchange, { headers }: ResponseHead): void {
    const note = exchange.note(this.#noteName) as Note | undefined;
    if (note === undefined) return;
    const { limit, bucket, isRefused } = note;
    if (isRefused) limit.responseHeaders?.apply(headers, exchange);
    if (!limit.tellsClient || bucket === undefined) return;
    const { remaining, resetSeconds } = bucket.peek(performance.now());
    headers.set('x-ratelimit-limit', String(bucket.maxTokens));
    headers.set('x-ratelimit-remaining', String(remaining));
    headers.set('x-ratelimit-reset', String(resetSeconds));
  }

  #limiterOf(limit: LocalLimit, exchange: Exchange): Limiter {
    let limiters = this.#limiters;
    if (limit.isPerConnection) {
      const connection = exchange.downstream.client;
      const ofConnection = this.#ofConnections.get(connection) ?? new Map<string, Limiter>();
      this.#ofConnections.set(connection, ofConnection);
      limiters = ofConnection;
    }
    let limiter = limiters.get(limit.identity);
    if (limiter === undefined) {
      if (limiters.size >= maxKeptLimiters) limiters.delete(limiters.keys().next().value!);
      limiters.set(limit.identity, (limiter = new Limiter(limit, limit.isPerConnection ? undefined : spendingOf(this.#context))));
    }
    return limiter;
  }
}

const isDrawn = (share: number, random: () => number): boolean => share >= 1 || (share > 0 && random() < share);
