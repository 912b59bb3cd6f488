import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { toJson } from '@bufbuild/protobuf';
import { RateLimitRequestSchema } from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import { type AuthorizationServers, authorizationServers } from '../e2e/support/authorization-servers.ts';
import { cluster, http, type Json, TestEngine, typed } from '../e2e/support/engine.ts';
import { type RateLimitServer, rateLimitServer } from '../e2e/support/rate-limit-server.ts';
import { skipWithout } from '../e2e/support/requirements.ts';
import { EnvoyPair, type Outcome } from './support/envoy-pair.ts';

const router = typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router');
const exactly = (...names: readonly string[]): Json => ({ patterns: names.map((exact) => ({ exact, ignore_case: true })) });

/** One service decides for a stock Envoy and for ours; client and service must see the same of it. */
describe('external authorization, beside stock Envoy', { skip: skipWithout('envoy') }, () => {
  let engine: TestEngine;
  let servers: AuthorizationServers;
  let ports: number[];
  let seen: Map<string, Outcome['seen'][number][]>;
  before(async () => {
    engine = new TestEngine();
    servers = await authorizationServers();
    engine.onClose(async () => servers.close());
    ({ ports, seen } = await EnvoyPair.servers(engine, 1));
  });
  after(() => engine.close());

  const pairWith = (config: Json) =>
    EnvoyPair.start(
      engine,
      http('c0', {
        http_filters: [
          typed('envoy.filters.http.ext_authz', 'extensions.filters.http.ext_authz.v3.ExtAuthz', { transport_api_version: 'V3', ...config }),
          router,
        ],
      }),
      [cluster('c0', ports), cluster('grpc', [servers.grpcPort], { http2_protocol_options: {} }), cluster('http', [servers.httpPort])],
      seen,
    );
  const grpc = (more: Json = {}): Json => ({ grpc_service: { envoy_grpc: { cluster_name: 'grpc' }, timeout: '0.3s' }, ...more });
  const same = async (pair: EnvoyPair, headers: Record<string, string>, status: number, method = 'GET') => {
    const { ours, theirs } = await pair.both({ path: '/a?b=c', headers: { 'x-secret': 's', 'x-more': 'a', 'x-user': 'root', ...headers }, method });
    assert.deepEqual(comparable(ours), comparable(theirs), JSON.stringify(headers));
    assert.equal(ours.status, status);
    return ours;
  };

  it('by gRPC', async () => {
    const pair = await pairWith(grpc());
    const allowed = await same(pair, { 'x-decide': 'allow' }, 200);
    assert.deepEqual([allowed.seen[0]!.headers['x-user'], allowed.seen[0]!.headers['x-secret'], allowed.headers['x-checked']], ['anna', undefined, 'yes']);
    await same(pair, { 'x-decide': 'deny' }, 401);
    await same(pair, { 'x-decide': 'deny-403' }, 403);
    await same(pair, { 'x-decide': 'broken' }, 403);
    await same(pair, { 'x-decide': 'late' }, 403);
    const [theirs, ours] = [0, 1].map(
      (i) => servers.grpcRequests.filter(({ attributes }) => attributes?.request?.http?.headers['x-decide'] === 'allow').at(-1 - i)!.attributes!,
    );
    const http = ({ request }: NonNullable<typeof ours>) => {
      const { method, path, host, scheme, protocol, headers } = request!.http!;
      // Of the moment, or Envoy's own.
      const {
        'x-request-id': _id,
        'x-probe': _probe,
        'x-envoy-expected-rq-timeout-ms': _timeout,
        'x-envoy-decorator-operation': _operation,
        'x-forwarded-for': _for,
        ...rest
      } = headers;
      return { method, path, host, scheme, protocol, headers: rest };
    };
    assert.deepEqual(http(ours!), http(theirs!));
  });

  it('by gRPC, when it fails, open or with a status of its own', async () => {
    const open = await pairWith(grpc({ failure_mode_allow: true, failure_mode_allow_header_add: true }));
    await same(open, { 'x-decide': 'broken' }, 200);
    await same(open, { 'x-decide': 'deny' }, 401);
    await same(await pairWith(grpc({ status_on_error: { code: 503 } })), { 'x-decide': 'broken' }, 503);
  });

  it('by HTTP, with the headers that are chosen', async () => {
    const pair = await pairWith({
      allowed_headers: exactly('x-decide', 'cookie'),
      http_service: {
        server_uri: { uri: 'http://authz', cluster: 'http', timeout: '0.3s' },
        path_prefix: '/check',
        authorization_request: { headers_to_add: [{ key: 'x-asked-by', value: 'proxy' }] },
        authorization_response: {
          allowed_upstream_headers: exactly('x-user'),
          allowed_client_headers: exactly('x-why'),
          allowed_client_headers_on_success: exactly('x-checked'),
        },
      },
    });
    const allowed = await same(pair, { 'x-decide': 'allow', authorization: 'Bearer x', cookie: 'a=b' }, 200);
    assert.deepEqual([allowed.seen[0]!.headers['x-user'], allowed.seen[0]!.headers['x-internal'], allowed.headers['x-checked']], ['anna', undefined, 'yes']);
    const denied = await same(pair, { 'x-decide': 'deny' }, 401);
    assert.deepEqual([denied.headers['x-why'], denied.headers['x-internal'], denied.body], ['no', undefined, 'not you']);
    await same(pair, { 'x-decide': 'deny-403' }, 403);
    await same(pair, { 'x-decide': 'broken' }, 403);
    await same(pair, { 'x-decide': 'late' }, 403);
    const [one, two] = servers.httpRequests.filter(({ headers }) => headers['cookie'] === 'a=b');
    const told = ({ method, url, headers, body }: NonNullable<typeof one>) => {
      const { host, 'x-decide': decide, authorization, cookie, 'x-asked-by': asked, 'x-secret': secret } = headers;
      return { method, url, body, host, decide, authorization, cookie, asked, secret };
    };
    assert.deepEqual([told(one!).url, told(one!).secret], ['/check/a?b=c', undefined]);
    assert.deepEqual(told(one!), told(two!));
  });
});

/** A limiter's decision is external, too; local limits are compared here as well, since they use the same descriptors. */
describe('rate limits, beside stock Envoy', { skip: skipWithout('envoy') }, () => {
  let engine: TestEngine;
  let limiter: RateLimitServer;
  let ports: number[];
  let seen: Map<string, Outcome['seen'][number][]>;
  before(async () => {
    engine = new TestEngine();
    limiter = await rateLimitServer();
    engine.onClose(async () => limiter.close());
    ({ ports, seen } = await EnvoyPair.servers(engine, 1));
  });
  after(() => engine.close());

  const pairWith = (filters: readonly Json[], host: Json, routes: readonly Json[]) =>
    EnvoyPair.start(
      engine,
      http('c0', { http_filters: [...filters, router], route_config: { name: 'test', virtual_hosts: [{ name: 'all', domains: ['*'], routes, ...host }] } }),
      [cluster('c0', ports), cluster('limiter', [limiter.port], { http2_protocol_options: {} })],
      seen,
    );
  const route = (prefix: string, action: Json = {}, more: Json = {}): Json => ({ match: { prefix }, route: { cluster: 'c0', ...action }, ...more });
  const filter = (type: 'local' | 'global', config: Json): Json =>
    type === 'local'
      ? typed('envoy.filters.http.local_ratelimit', 'extensions.filters.http.local_ratelimit.v3.LocalRateLimit', { stat_prefix: 'test', ...config })
      : typed('envoy.filters.http.ratelimit', 'extensions.filters.http.ratelimit.v3.RateLimit', {
          domain: 'shop',
          timeout: '0.3s',
          rate_limit_service: { transport_api_version: 'V3', grpc_service: { envoy_grpc: { cluster_name: 'limiter' } } },
          ...config,
        });
  const ofRoute = (type: 'local' | 'global', config: Json): Json =>
    type === 'local'
      ? {
          typed_per_filter_config: {
            'envoy.filters.http.local_ratelimit': {
              '@type': 'type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit',
              stat_prefix: 'route',
              ...config,
            },
          },
        }
      : {
          typed_per_filter_config: {
            'envoy.filters.http.ratelimit': { '@type': 'type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute', ...config },
          },
        };
  const same = async (pair: EnvoyPair, path: string, headers: Record<string, string>, status: number) => {
    const { ours, theirs } = await pair.both({ path, headers });
    assert.deepEqual(comparable(ours), comparable(theirs), `${path} ${JSON.stringify(headers)}`);
    assert.equal(ours.status, status, path);
    return ours;
  };
  const decide = { request_headers: { header_name: 'x-decide', descriptor_key: 'decide', skip_if_absent: true } };

  it('makes the same descriptors of every action, stage and level', async () => {
    const metadata = { filter_metadata: { test: { plan: { name: 'gold' } } } };
    const pair = await pairWith(
      [filter('global', {}), filter('global', { stage: 2, domain: 'second' })],
      { rate_limits: [{ actions: [{ generic_key: { descriptor_value: 'of-host' } }] }] },
      [
        route('/override', { rate_limits: [{ actions: [{ request_headers: { header_name: ':path', descriptor_key: 'PATH' } }] }] }),
        route(
          '/include',
          { rate_limits: [{ actions: [{ generic_key: { descriptor_value: 'a', descriptor_key: 'k' } }] }] },
          ofRoute('global', { vh_rate_limits: 'INCLUDE', domain: 'other' }),
        ),
        route('/ignore', {}, ofRoute('global', { vh_rate_limits: 'IGNORE' })),
        route('/stages', { rate_limits: [{ stage: 2, actions: [{ destination_cluster: {} }] }] }),
        route(
          '/all',
          {
            rate_limits: [
              { actions: [{ remote_address: {} }, { masked_remote_address: { v4_prefix_mask_len: 9 } }] },
              { actions: [{ request_headers: { header_name: 'x-user', descriptor_key: 'user' } }, { generic_key: { descriptor_value: 'known' } }] },
              {
                actions: [
                  { request_headers: { header_name: 'x-other', descriptor_key: 'other', skip_if_absent: true } },
                  { generic_key: { descriptor_value: 'anyway' } },
                ],
              },
              { actions: [{ header_value_match: { descriptor_value: 'beta', headers: [{ name: 'x-beta', string_match: { exact: 'yes' } }] } }] },
              { actions: [{ header_value_match: { descriptor_value: 'not-beta', expect_match: false, headers: [{ name: 'x-beta', present_match: true }] } }] },
              { actions: [{ query_parameter_value_match: { descriptor_value: 'debug', query_parameters: [{ name: 'debug', present_match: true }] } }] },
              {
                actions: [
                  { metadata: { descriptor_key: 'plan', source: 'ROUTE_ENTRY', metadata_key: { key: 'test', path: [{ key: 'plan' }, { key: 'name' }] } } },
                ],
              },
              { actions: [{ metadata: { descriptor_key: 'none', metadata_key: { key: 'none', path: [{ key: 'x' }] }, default_value: 'usual' } }] },
              { actions: [{ metadata: { descriptor_key: 'none', metadata_key: { key: 'none', path: [{ key: 'x' }] } } }] },
            ],
          },
          { metadata },
        ),
        { match: { prefix: '/direct' }, direct_response: { status: 204 } },
        route('/'),
      ],
    );
    for (const [path, headers] of [
      ['/override?a=b', {}],
      ['/include', {}],
      ['/ignore', {}],
      ['/stages', {}],
      ['/all', {}],
      ['/all?debug', { 'x-user': 'anna', 'x-other': 'o', 'x-beta': 'yes' }],
      ['/all', { 'x-user': Buffer.from('M\u00fcnchen').toString('latin1'), 'x-beta': 'no' }],
      ['/direct', {}],
      ['/', {}],
    ] as const) {
      const before = limiter.requests.length;
      await same(pair, path, headers, path === '/direct' ? 204 : 200);
      const asked = limiter.requests.slice(before).map((request) => JSON.stringify(toJson(RateLimitRequestSchema, request)));
      assert.ok(asked.length % 2 === 0, `${path}: both ask as often: ${asked.join('\n')}`);
      assert.equal(new Set(asked).size * 2, asked.length, `${path}: both ask the same: ${asked.join('\n')}`);
      assert.equal(asked.length, path === '/ignore' || path === '/direct' ? 0 : path === '/stages' ? 2 : 2, path);
    }
  });

  it('does what the service decides, and passes or refuses what it does not decide', async () => {
    const limits = { rate_limits: [{ actions: [decide, { generic_key: { descriptor_value: 'x' } }] }] };
    const open = await pairWith([filter('global', { enable_x_ratelimit_headers: 'DRAFT_VERSION_03' })], limits, [route('/')]);
    const allowed = await same(open, '/', {}, 200);
    assert.equal(allowed.headers['x-ratelimit-limit'], '10, 10;w=60;name="per-path", 1000;w=3600');
    assert.equal(allowed.seen[0]!.headers['x-for-service'], 'counted');
    const over = await same(open, '/', { 'x-decide': 'over' }, 429);
    assert.deepEqual([over.headers['x-envoy-ratelimited'], over.headers['x-from-limiter'], over.body], ['true', 'over', 'too many']);
    for (const failure of ['broken', 'late', 'garbage', 'unknown']) await same(open, '/', { 'x-decide': failure }, 200);
    const closed = await pairWith(
      [
        filter('global', {
          failure_mode_deny: true,
          status_on_error: { code: 503 },
          rate_limited_status: { code: 502 },
          disable_x_envoy_ratelimited_header: true,
          response_headers_to_add: [{ header: { key: 'x-limited', value: 'by %PROTOCOL%' } }],
        }),
      ],
      limits,
      [route('/')],
    );
    for (const failure of ['broken', 'late', 'garbage']) await same(closed, '/', { 'x-decide': failure }, 503);
    await same(closed, '/', { 'x-decide': 'unknown' }, 200);
    assert.equal((await same(closed, '/', { 'x-decide': 'over' }, 502)).headers['x-limited'], 'by HTTP/1.1');
  });

  it('counts locally: by listener, host, route and descriptor, enforced or not', async () => {
    const all = { default_value: { numerator: 100, denominator: 'HUNDRED' } };
    const bucket = (max_tokens: number) => ({ max_tokens, tokens_per_fill: 1, fill_interval: '1000s' });
    const pair = await pairWith(
      [
        filter('local', {
          token_bucket: bucket(2),
          filter_enabled: all,
          filter_enforced: all,
          enable_x_ratelimit_headers: 'DRAFT_VERSION_03',
          response_headers_to_add: [{ header: { key: 'x-local-rate-limit', value: 'true' }, append_action: 'OVERWRITE_IF_EXISTS_OR_ADD' }],
        }),
      ],
      {},
      [
        route('/route', {}, ofRoute('local', { token_bucket: bucket(1), filter_enabled: all, filter_enforced: all, status: { code: 503 } })),
        route('/off', {}, ofRoute('local', { token_bucket: bucket(1) })),
        route(
          '/shadow',
          {},
          ofRoute('local', {
            token_bucket: bucket(1),
            filter_enabled: all,
            request_headers_to_add_when_not_enforced: [{ header: { key: 'x-over', value: 'yes' } }],
          }),
        ),
        route(
          '/users',
          {
            rate_limits: [
              { actions: [{ request_headers: { header_name: 'x-user', descriptor_key: 'user' } }] },
              { actions: [{ generic_key: { descriptor_value: 'all' } }] },
            ],
          },
          ofRoute('local', {
            token_bucket: bucket(6),
            filter_enabled: all,
            filter_enforced: all,
            enable_x_ratelimit_headers: 'DRAFT_VERSION_03',
            descriptors: [
              { entries: [{ key: 'user', value: 'anna' }], token_bucket: bucket(2) },
              { entries: [{ key: 'generic_key', value: 'all' }], token_bucket: { ...bucket(5), tokens_per_fill: 5 } },
            ],
          }),
        ),
        route(
          '/other',
          { rate_limits: [{ actions: [{ request_headers: { header_name: 'x-user', descriptor_key: 'user' } }] }] },
          ofRoute('local', {
            token_bucket: bucket(1),
            filter_enabled: all,
            filter_enforced: all,
            always_consume_default_token_bucket: false,
            descriptors: [{ entries: [{ key: 'user', value: 'anna' }], token_bucket: bucket(3) }],
          }),
        ),
        route('/'),
      ],
    );
    const statuses = async (path: string, count: number, headers: Record<string, string> = {}) => {
      const found: number[] = [];
      for (let i = 0; i < count; i++) {
        const { ours, theirs } = await pair.both({ path, headers });
        assert.deepEqual(comparable(ours), comparable(theirs), `${path}, request ${i}`);
        found.push(ours.status);
      }
      return found;
    };
    assert.deepEqual(await statuses('/', 4), [200, 200, 429, 429]);
    assert.deepEqual(await statuses('/route', 2), [200, 503]);
    assert.deepEqual(await statuses('/off', 3), [200, 200, 200]);
    assert.deepEqual(await statuses('/shadow', 2), [200, 200]);
    assert.deepEqual(await statuses('/users', 3, { 'x-user': 'anna' }), [200, 200, 429]);
    assert.deepEqual(await statuses('/users', 4, { 'x-user': 'bert' }), [200, 200, 200, 429]);
    assert.deepEqual(await statuses('/other', 4, { 'x-user': 'anna' }), [200, 200, 200, 429]);
    assert.deepEqual(await statuses('/other', 2, { 'x-user': 'bert' }), [200, 429]);
  });
});

function comparable({ status, headers, body, seen }: Outcome) {
  const { 'content-length': _length, ...rest } = headers;
  return { status, headers: rest, body, seen };
}
