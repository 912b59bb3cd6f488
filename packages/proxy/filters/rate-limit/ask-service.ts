import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import type { Init } from '@mizzen/envoy-api';
import { RateLimitRequestSchema, type RateLimitResponse, RateLimitResponseSchema } from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import type { Cluster } from '../../upstream/cluster.ts';
import { unaryCall } from '../../upstream/unary-call.ts';

/** The decision of the service, or why there is none. */
export type ServiceAnswer = { readonly response: RateLimitResponse } | { readonly failure: string };

/**
 * Asks a RateLimitService (envoy rls.proto) once. `done` may be called before this returns. A response that cannot be read is a failure, not an
 * exception.
 */
export function askRateLimitService(
  cluster: Cluster | undefined,
  authority: string,
  timeoutMs: number,
  request: Init<typeof RateLimitRequestSchema>,
  done: (answer: ServiceAnswer) => void,
): void {
  if (cluster === undefined) return done({ failure: 'the cluster of the rate limit service is not known' });
  const bytes = toBinary(RateLimitRequestSchema, create(RateLimitRequestSchema, request));
  unaryCall(cluster, authority, 'envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit', bytes, timeoutMs, ({ message, status, detail }) => {
    if (message === undefined) return done({ failure: detail || `grpc-status ${status}` });
    let response: RateLimitResponse;
    try {
      response = fromBinary(RateLimitResponseSchema, message);
    } catch {
      return done({ failure: 'the response is not a RateLimitResponse' });
    }
    done({ response });
  });
}
