import { createHash } from 'node:crypto';
import { Code, ConnectError, type HandlerContext, type ServiceImpl } from '@connectrpc/connect';
import { messageOf } from '@mizzen/common';
import type { Init } from '@mizzen/envoy-api';
import {
  RateLimitResponse_Code,
  type RateLimitResponse_DescriptorStatusSchema,
  RateLimitResponse_RateLimit_Unit,
  type RateLimitService,
} from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import { RateLimitUnit } from '@mizzen/envoy-api/gen/envoy/type/v3/ratelimit_unit_pb.js';
import { type Identity, spiffeUri } from '../citadel/spiffe-identity.ts';
import type { LimitCounters } from './limit-counters.ts';

const secondsOf: Readonly<Record<number, number>> = {
  [RateLimitUnit.SECOND]: 1,
  [RateLimitUnit.MINUTE]: 60,
  [RateLimitUnit.HOUR]: 3_600,
  [RateLimitUnit.DAY]: 86_400,
};
const unitOf: Readonly<Record<number, RateLimitResponse_RateLimit_Unit>> = {
  [RateLimitUnit.SECOND]: RateLimitResponse_RateLimit_Unit.SECOND,
  [RateLimitUnit.MINUTE]: RateLimitResponse_RateLimit_Unit.MINUTE,
  [RateLimitUnit.HOUR]: RateLimitResponse_RateLimit_Unit.HOUR,
  [RateLimitUnit.DAY]: RateLimitResponse_RateLimit_Unit.DAY,
};
const maxDescriptors = 32;
const maxKeyLength = 200;

/**
 * envoy.service.ratelimit.v3.RateLimitService: counts in fixed windows of the unit's length. The limits come with the descriptors
 * (`RateLimitDescriptor.limit`), so that the service has no configuration of its own; a descriptor without one is not limited. `admit` throws for whoever is not of the mesh: strangers could use up others' limits.
 */
export function rateLimitService(
  counters: LimitCounters,
  admit: (context: HandlerContext) => Promise<Identity | undefined>,
  now: () => number = Date.now,
): Partial<ServiceImpl<typeof RateLimitService>> {
  return {
    async shouldRateLimit(request, context) {
      const caller = await admit(context);
      if (request.descriptors.length > maxDescriptors) throw new ConnectError(`at most ${maxDescriptors} descriptors`, Code.InvalidArgument);
      const seconds = Math.floor(now() / 1000);
      const asked = request.descriptors.map((descriptor) => {
        const unit = secondsOf[descriptor.limit?.unit ?? 0];
        if (descriptor.limit === undefined || unit === undefined) return undefined;
        const window = Math.floor(seconds / unit);
        const text = JSON.stringify([request.domain, ...descriptor.entries.map(({ key, value }) => [key, value]), unit, window]);
        // A caller chooses the text; what is kept of it is short.
        const key = text.length > maxKeyLength ? createHash('sha256').update(text).digest('base64') : text;
        return {
          key,
          hits: request.hitsAddend || 1,
          seconds: unit,
          limit: descriptor.limit,
          reset: (window + 1) * unit - seconds,
        };
      });
      const limited = asked.filter((one) => one !== undefined);
      let counts: readonly number[];
      try {
        counts = await counters.add(limited, caller === undefined ? 'plain' : spiffeUri(caller));
      } catch (error) {
        throw new ConnectError(`the counters cannot be reached: ${messageOf(error)}`, Code.Unavailable);
      }
      const byKey = new Map(limited.map((one, i) => [one, counts[i]!]));
      const statuses = asked.map((one): Init<typeof RateLimitResponse_DescriptorStatusSchema> => {
        if (one === undefined) return { code: RateLimitResponse_Code.OK };
        const count = byKey.get(one)!;
        const { requestsPerUnit, unit } = one.limit;
        return {
          code: count > requestsPerUnit ? RateLimitResponse_Code.OVER_LIMIT : RateLimitResponse_Code.OK,
          currentLimit: { requestsPerUnit, unit: unitOf[unit] ?? RateLimitResponse_RateLimit_Unit.UNKNOWN },
          limitRemaining: Math.max(0, requestsPerUnit - count),
          durationUntilReset: { seconds: BigInt(one.reset) },
        };
      });
      return {
        overallCode: statuses.some(({ code }) => code === RateLimitResponse_Code.OVER_LIMIT) ? RateLimitResponse_Code.OVER_LIMIT : RateLimitResponse_Code.OK,
        statuses,
      };
    },
  };
}
