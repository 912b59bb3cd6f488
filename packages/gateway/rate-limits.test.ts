import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { createRegistry, fromJson, type JsonValue } from '@bufbuild/protobuf';
import { RateLimitSchema as RouteRateLimitSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { LocalRateLimitSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit_pb.js';
import { RateLimitPerRouteSchema, RateLimitSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/ratelimit/v3/rate_limit_pb.js';
import { checkLocalRateLimit, checkRateLimit, checkRateLimitPerRoute, checkRouteRateLimits } from './rate-limits.ts';

const bucket = { max_tokens: 10, tokens_per_fill: 1, fill_interval: '60s' };
const local = (more: Record<string, unknown>, isOfRoute = false) =>
  checkLocalRateLimit(fromJson(LocalRateLimitSchema, { stat_prefix: 'x', token_bucket: bucket, ...more } as JsonValue), 'here', isOfRoute);
const grpc = { grpc_service: { envoy_grpc: { cluster_name: 'limiter' } }, transport_api_version: 'V3' };
const global = (more: Record<string, unknown>) =>
  checkRateLimit(fromJson(RateLimitSchema, { domain: 'shop', rate_limit_service: grpc, ...more } as JsonValue, { registry: createRegistry() }), 'here');
const route = (limit: Record<string, unknown>) => checkRouteRateLimits([fromJson(RouteRateLimitSchema, limit as JsonValue)], 'here');
const action = (one: Record<string, unknown>) => route({ actions: [one] });

describe('rate limit configuration', () => {
  it('that cannot be enforced is refused by a local limit', () => {
    local({});
    local({ descriptors: [{ entries: [{ key: 'a', value: 'b' }], token_bucket: bucket }], status: { code: 503 } }, true);
    const descriptor = { entries: [{ key: 'a', value: 'b' }], token_bucket: bucket };
    for (const [more, problem] of [
      [{ stat_prefix: '' }, /stat_prefix is empty/],
      [{ stage: 11 }, /stage 11 is above 10/],
      [{ status: { code: 99 } }, /99 is not a status/],
      [{ token_bucket: { ...bucket, max_tokens: 0 } }, /above 0/],
      [{ token_bucket: { ...bucket, tokens_per_fill: 0 } }, /above 0/],
      [{ token_bucket: { max_tokens: 1 } }, /fill_interval must be at least 50 ms/],
      [{ token_bucket: { ...bucket, fill_interval: '-1s' } }, /at least 50 ms/],
      [{ token_bucket: { ...bucket, fill_interval: '0.049s' } }, /at least 50 ms/],
      [{ response_headers_to_add: new Array(11).fill({ header: { key: 'a', value: 'b' } }) }, /11 headers to add/],
      [{ descriptors: [{ token_bucket: bucket }] }, /descriptors\[0\]: entries and token_bucket/],
      [{ descriptors: [{ entries: descriptor.entries }] }, /entries and token_bucket/],
      [{ descriptors: [{ ...descriptor, entries: [{ key: 'a', value: '' }] }] }, /empty key or value/],
      [{ descriptors: [descriptor, descriptor] }, /two descriptors have the same entries/],
      [{ local_cluster_rate_limit: {} }, /local_cluster_rate_limit of LocalRateLimit is not supported/],
    ] as const)
      assert.throws(() => local(more), problem, JSON.stringify(more));
    assert.throws(() => local({ token_bucket: null }, true), /needs a token_bucket/);
  });

  it('that cannot be enforced is refused by a global limit and its routes', () => {
    assert.deepEqual(global({}), { cluster: 'limiter', authority: 'limiter' });
    for (const [more, problem] of [
      [{ domain: '' }, /domain is empty/],
      [{ request_type: 'internal' }, /would limit nothing/],
      [{ request_type: 'some' }, /"some" is not known/],
      [{ stage: 11 }, /stage 11/],
      [{ rate_limited_status: { code: 420 } }, /420 is not a status/],
      [{ rate_limit_service: {} }, /needs a grpc_service/],
      [{ rate_limit_service: { ...grpc, transport_api_version: 'V2' } }, /must be V3/],
      [{ rate_limit_service: { grpc_service: { google_grpc: { target_uri: 'x', stat_prefix: 'x' } } } }, /google_grpc of GrpcService is not supported/],
      [{ rate_limit_service: { grpc_service: { envoy_grpc: {} } } }, /needs a cluster_name/],
    ] as const)
      assert.throws(() => global(more), problem, JSON.stringify(more));
    const perRoute = (more: Record<string, unknown>) => checkRateLimitPerRoute(fromJson(RateLimitPerRouteSchema, more as JsonValue), 'here');
    perRoute({ vh_rate_limits: 'INCLUDE', domain: 'x' });
    assert.throws(() => perRoute({ override_option: 'INCLUDE_POLICY' }), /override_option/);
    assert.throws(() => perRoute({ rate_limits: [{ actions: [{ remote_address: {} }] }] }), /rate_limits of RateLimitPerRoute/);
  });

  it('that cannot be enforced is refused in the actions of a route', () => {
    action({ remote_address: {} });
    for (const [one, problem] of [
      [{}, /type \(none\) is not supported/],
      [{ extension: { name: 'x', typed_config: {} } }, /type extension is not supported/],
      [{ generic_key: {} }, /descriptor_value is empty/],
      [{ generic_key: { descriptor_value: '%REQ(a)%' } }, /command operators/],
      [{ request_headers: { header_name: 'a' } }, /descriptor_key and header_name/],
      [{ header_value_match: { descriptor_value: 'a' } }, /needs headers/],
      [{ query_parameter_value_match: { descriptor_value: 'a' } }, /needs query_parameters/],
      [{ masked_remote_address: { v4_prefix_mask_len: 33 } }, /longer than an address/],
      [{ metadata: { descriptor_key: 'a' } }, /metadata_key has no key/],
      [{ metadata: { descriptor_key: 'a', metadata_key: { key: 'x', path: [{}] } } }, /empty segment/],
    ] as const)
      assert.throws(() => action(one), problem, JSON.stringify(one));
    assert.throws(() => route({}), /no actions/);
    assert.throws(() => route({ stage: 12, actions: [{ remote_address: {} }] }), /stage 12/);
    assert.throws(() => route({ actions: [{ remote_address: {} }], limit: {} }), /no dynamic_metadata/);
  });
});
