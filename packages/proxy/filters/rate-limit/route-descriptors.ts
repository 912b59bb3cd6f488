import { VhRateLimitsOptions } from '@mizzen/envoy-api/gen/envoy/extensions/common/ratelimit/v3/ratelimit_pb.js';
import type { Exchange } from '../../http/exchange.ts';
import type { Descriptor, RateLimitPolicy } from '../../route/rate-limit-actions.ts';
import type { PeerMetadata } from '../../telemetry/peer-metadata.ts';

/** Whether the rate limits of the virtual host count beside the route's (envoy ratelimit.proto `VhRateLimitsOptions`). */
export type HostLimits = 'override' | 'include' | 'ignore';

export const hostLimitsOf: Readonly<Record<VhRateLimitsOptions, HostLimits>> = {
  [VhRateLimitsOptions.OVERRIDE]: 'override',
  [VhRateLimitsOptions.INCLUDE]: 'include',
  [VhRateLimitsOptions.IGNORE]: 'ignore',
};

/** The descriptors of a request for a filter of this stage: those of its route, and of its virtual host where they count. */
export function routeDescriptors(exchange: Exchange, stage: number, hostLimits: HostLimits, self: PeerMetadata): Descriptor[] {
  const limits = exchange.route?.rateLimits;
  if (limits === undefined) return [];
  const sourceCluster = self.namespace === 'unknown' ? self.workload : `${self.workload}.${self.namespace}`;
  const descriptors: Descriptor[] = [];
  const add = (policies: readonly RateLimitPolicy[]) => {
    for (const policy of policies) {
      const descriptor = policy.stage === stage ? policy.describe(exchange, sourceCluster) : undefined;
      if (descriptor !== undefined) descriptors.push(descriptor);
    }
  };
  add(limits.ofRoute);
  const option = limits.includesHost ? 'include' : hostLimits;
  if (option === 'include' || (option === 'override' && limits.ofRoute.length === 0)) add(limits.ofHost);
  return descriptors;
}

/** The status of a refused request: below 400 it is 429 (envoy local_rate_limit.proto, ratelimit.proto). */
export function refusalStatus(status: { readonly code: number } | undefined): number {
  return status === undefined || status.code < 400 ? 429 : status.code;
}
