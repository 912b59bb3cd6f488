import { MizzenError } from '@mizzen/common';
import { peerOf } from '@mizzen/common/connection-guard';
import { type RateLimitResponse, RateLimitResponse_Code } from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import { RateLimitUnit } from '@mizzen/envoy-api/gen/envoy/type/v3/ratelimit_unit_pb.js';
import { Limit_By, type Limit as LimitMessage, RateLimitPerRouteSchema, RateLimitSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Exchange } from '../../http/exchange.ts';
import type { Fields } from '../../message/fields.ts';
import type { FilterKind, HttpFilter } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';
import { askRateLimitService } from './ask-service.ts';
import { spendingOf } from './shared-spending.ts';
import { TokenBuckets } from './token-buckets.ts';

const name = 'mizzen.filters.http.rate_limit';
/** Keys of one limit that are told apart at a time. */
const maxKeys = 100_000;
const maxKeyLength = 256;
/** Denials of the service that are remembered at a time; the oldest goes first. */
const maxDenials = 100_000;
const defaultTimeoutMs = 100;

interface Limit {
  readonly name: string;
  readonly identity: string;
  readonly by: Limit_By;
  readonly key: string;
  readonly requests: number;
  readonly perMs: number;
  readonly burst: number;
  readonly unit: RateLimitUnit;
  readonly failsClosed: boolean;
}

interface RouteLimits {
  readonly local: readonly Limit[];
  readonly global: readonly Limit[];
}

/** What is told to the client: of the limit that it is closest to. */
interface Standing {
  readonly limit: number;
  readonly remaining: number;
  readonly resetSeconds: number;
}

/**
 * mizzen.filters.http.rate_limit: how much one consumer, address, header value or claim may ask for. Local limits are token buckets of this
 * proxy's (of each of its workers); global ones are asked of a RateLimitService (envoy rls.proto). Answers say where the client stands, in
 * `ratelimit-limit`, `ratelimit-remaining` and `ratelimit-reset` (draft-ietf-httpapi-ratelimit-headers, in the form that clients know).
 */
export const rateLimit: FilterKind = {
  name,
  create(any, place, context) {
    const config = any === undefined ? undefined : unpackConfig(RateLimitSchema, any, place);
    return new RateLimitFilter(context, config?.serviceTarget ?? '', config?.domain || 'mizzen', config?.timeoutMs || defaultTimeoutMs);
  },
  compileRoute(any, place): RouteLimits {
    const limits = unpackConfig(RateLimitPerRouteSchema, any, place).limits.map((limit) => ({ limit: compileLimit(limit, place), isGlobal: limit.isGlobal }));
    return {
      local: limits.filter(({ isGlobal }) => !isGlobal).map(({ limit }) => limit),
      global: limits.filter(({ isGlobal }) => isGlobal).map(({ limit }) => limit),
    };
  },
};

const units: Readonly<Record<number, RateLimitUnit>> = {
  1000: RateLimitUnit.SECOND,
  60000: RateLimitUnit.MINUTE,
  3600000: RateLimitUnit.HOUR,
  86400000: RateLimitUnit.DAY,
};

function compileLimit(limit: LimitMessage, place: string): Limit {
  const { requests, perMs, burst } = limit;
  const unit = units[perMs] ?? RateLimitUnit.UNKNOWN;
  if (requests === 0 || perMs === 0) throw new MizzenError('invalid-filter', `${place}: limit ${limit.name} needs requests and per`);
  if (limit.isGlobal && unit === RateLimitUnit.UNKNOWN)
    throw new MizzenError('invalid-filter', `${place}: limit ${limit.name}: global limits are per second, minute, hour or day`);
  const key = limit.by === Limit_By.HEADER ? limit.key.toLowerCase() : limit.key;
  return {
    name: limit.name,
    identity: JSON.stringify([limit.name, limit.by, key, requests, perMs, burst]),
    by: limit.by,
    key,
    requests,
    perMs,
    burst: burst || requests,
    unit,
    failsClosed: limit.failsClosed,
  };
}

class RateLimitFilter implements HttpFilter {
  readonly name = name;
  readonly #context: ProxyContext;
  readonly #cluster: string;
  readonly #authority: string;
  readonly #domain: string;
  readonly #timeoutMs: number;
  /** Outlives updates: a new configuration gives nobody new tokens. */
  readonly #buckets: Map<string, TokenBuckets>;
  readonly #denials: Denials;

  constructor(context: ProxyContext, cluster: string, domain: string, timeoutMs: number) {
    this.#context = context;
    this.#cluster = cluster;
    // A cluster's name may hold what no authority can.
    this.#authority = cluster.replace(/[^\w.-]/g, '-');
    this.#domain = domain;
    this.#timeoutMs = timeoutMs;
    const kept = context.filterStates.get(name) as Map<string, TokenBuckets> | undefined;
    this.#buckets = kept ?? new Map<string, TokenBuckets>();
    context.filterStates.set(name, this.#buckets);
    const denials = context.filterStates.get(`${name}.denials`) as Denials | undefined;
    this.#denials = denials ?? new Denials(maxDenials);
    context.filterStates.set(`${name}.denials`, this.#denials);
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    const limits = exchange.filterConfig(name) as RouteLimits | undefined;
    if (limits === undefined) return 'continue';
    const now = performance.now();
    let standing: Standing | undefined;
    for (const limit of limits.local) {
      const key = keyOf(exchange, limit);
      if (key === undefined) continue;
      const taken = this.#bucketsOf(limit).take(key, now);
      const own = { limit: limit.burst, remaining: taken.remaining, resetSeconds: Math.ceil(taken.untilFullMs / 1000) };
      if (!taken.isAllowed) return this.#refuse(exchange, limit, own, Math.max(1, Math.ceil(taken.untilNextMs / 1000)));
      standing = closer(standing, own);
    }
    if (standing !== undefined) exchange.setNote(name, standing);
    if (limits.global.length === 0) return 'continue';
    return this.#ask(exchange, limits.global, standing);
  }

  onResponse(exchange: Exchange, { headers }: { readonly headers: { set(name: string, value: string): void } }): void {
    const standing = exchange.note(name) as Standing | undefined;
    if (standing !== undefined) for (const [field, value] of fieldsOf(standing)) headers.set(field, value);
  }

  #bucketsOf(limit: Limit, scope: 'local' | 'global' = 'local'): TokenBuckets {
    const identity = scope === 'local' ? limit.identity : `global ${limit.identity}`;
    let buckets = this.#buckets.get(identity);
    if (buckets === undefined) {
      buckets = new TokenBuckets(limit.requests, limit.perMs, limit.burst, maxKeys);
      this.#buckets.set(identity, buckets);
      spendingOf(this.#context)?.share(`${name} ${identity}`, buckets);
    }
    return buckets;
  }

  #ask(exchange: Exchange, limits: readonly Limit[], standing: Standing | undefined): 'continue' | 'stop' {
    const asked = limits.flatMap((limit) => {
      const key = keyOf(exchange, limit);
      return key === undefined ? [] : [{ limit, key }];
    });
    if (asked.length === 0) return 'continue';
    const now = performance.now();
    for (const { limit, key } of asked) {
      const denial = this.#denials.find(denialKey(limit, key), now);
      if (denial !== undefined) return this.#refuse(exchange, limit, denial.standing, Math.max(1, Math.ceil((denial.untilMs - now) / 1000)));
    }
    // Counted here too: what the caller can delay by asking often must not decide in its favour.
    const overOwnCount = asked.find(({ limit, key }) => !this.#bucketsOf(limit, 'global').take(key, now).isAllowed);
    const noAnswer = (detail: string): boolean => {
      const closed = asked.find(({ limit }) => limit.failsClosed);
      const isAllowed = closed === undefined && overOwnCount === undefined;
      this.#context.counters.count(`rate_limit_service_failures_total{outcome="${isAllowed ? 'allowed' : 'refused'}"}`);
      if (isAllowed) return true;
      if (closed === undefined) {
        const { limit } = overOwnCount!;
        this.#refuse(exchange, limit, undefined, Math.max(1, Math.ceil(limit.perMs / limit.requests / 1000)));
        return false;
      }
      exchange.replyProblem(
        503,
        { title: 'Service Unavailable', detail: `the limit "${closed.limit.name}" cannot be checked: ${detail}` },
        'rate_limit_service_error',
      );
      return false;
    };
    /** True: the request may pass. */
    const settle = (response: RateLimitResponse): boolean => {
      let closest = standing;
      let over: { readonly limit: Limit; readonly standing: Standing } | undefined;
      for (const [i, status] of response.statuses.entries()) {
        const limit = asked[i]?.limit;
        if (limit === undefined) continue;
        const own = {
          limit: status.currentLimit?.requestsPerUnit ?? limit.requests,
          remaining: status.limitRemaining,
          resetSeconds: Number(status.durationUntilReset?.seconds ?? 0n) + ((status.durationUntilReset?.nanos ?? 0) > 0 ? 1 : 0),
        };
        closest = closer(closest, own);
        if (status.code !== RateLimitResponse_Code.OVER_LIMIT) continue;
        over ??= { limit, standing: own };
        const reset = status.durationUntilReset;
        const resetMs = reset === undefined ? 1_000 : Number(reset.seconds) * 1_000 + reset.nanos / 1_000_000;
        this.#denials.add(denialKey(limit, asked[i]!.key), { untilMs: performance.now() + Math.min(resetMs, limit.perMs), standing: own });
      }
      if (response.overallCode === RateLimitResponse_Code.OVER_LIMIT) {
        this.#refuse(exchange, over?.limit ?? asked[0]!.limit, over?.standing, Math.max(1, over?.standing.resetSeconds ?? 1));
        return false;
      }
      if (closest !== undefined) exchange.setNote(name, closest);
      return true;
    };
    // A decision that is there at once does not stop the request.
    let isWaiting = false;
    let isPassed = false;
    askRateLimitService(
      this.#context.findCluster(this.#cluster),
      this.#authority,
      this.#timeoutMs,
      {
        domain: this.#domain,
        descriptors: asked.map(({ limit, key }) => ({
          entries: [
            { key: 'limit', value: limit.name },
            { key: 'key', value: key },
          ],
          limit: { requestsPerUnit: limit.requests, unit: limit.unit },
        })),
      },
      exchange.later((answer) => {
        if (!('failure' in answer ? noAnswer(answer.failure) : settle(answer.response))) return;
        if (isWaiting) exchange.resumeFilters();
        else isPassed = true;
      }),
    );
    isWaiting = true;
    return isPassed ? 'continue' : 'stop';
  }

  #refuse(exchange: Exchange, limit: Limit, standing: Standing | undefined, retryAfterSeconds: number): 'stop' {
    this.#context.counters.countRejection('rate_limit', limit.name.replace(/[^\w.:-]/g, '_'));
    if (standing !== undefined) exchange.setNote(name, standing);
    exchange.addFlag('RL');
    exchange.replyProblem(429, { title: 'Too Many Requests', detail: `the limit "${limit.name}" is reached` }, 'request_rate_limited', [
      ['retry-after', String(retryAfterSeconds)],
    ]);
    return 'stop';
  }
}

interface Denial {
  /** In the milliseconds of performance.now(): when the service's window ends. */
  readonly untilMs: number;
  readonly standing: Standing;
}

/** What the service has denied, until its window ends: asking again cannot change it, and many who ask at once cannot make the answer late. */
export class Denials {
  readonly #byKey: Map<string, Denial>;
  readonly #max: number;

  constructor(max: number) {
    this.#byKey = new Map();
    this.#max = max;
  }

  find(key: string, nowMs: number): Denial | undefined {
    const denial = this.#byKey.get(key);
    if (denial === undefined || nowMs < denial.untilMs) return denial;
    this.#byKey.delete(key);
    return undefined;
  }

  add(key: string, denial: Denial): void {
    if (this.#byKey.size >= this.#max && !this.#byKey.has(key)) this.#byKey.delete(this.#byKey.keys().next().value!);
    this.#byKey.set(key, denial);
  }
}

const denialKey = (limit: Limit, key: string): string => `${limit.identity} ${key}`;

function closer(a: Standing | undefined, b: Standing): Standing {
  return a === undefined || b.remaining / b.limit < a.remaining / a.limit ? b : a;
}

function fieldsOf({ limit, remaining, resetSeconds }: Standing): Fields {
  return [
    ['ratelimit-limit', String(limit)],
    ['ratelimit-remaining', String(remaining)],
    ['ratelimit-reset', String(resetSeconds)],
  ];
}

/** undefined: the limit is not about this request. */
function keyOf(exchange: Exchange, limit: Limit): string | undefined {
  switch (limit.by) {
    case Limit_By.CONSUMER:
      // Nobody in particular is limited by address, so that being anonymous is no way around a limit.
      return exchange.consumer?.name || `ip:${peerOf(exchange)}`;
    case Limit_By.IP:
      return peerOf(exchange);
    case Limit_By.HEADER:
      return exchange.head.headers.getJoined(limit.key)?.slice(0, maxKeyLength);
    case Limit_By.CLAIM: {
      const value = exchange.consumer?.claims[limit.key];
      return value === undefined ? undefined : (typeof value === 'string' ? value : JSON.stringify(value)).slice(0, maxKeyLength);
    }
    default:
      return '';
  }
}
