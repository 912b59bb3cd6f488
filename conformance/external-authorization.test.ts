import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type AuthorizationServers, authorizationServers } from '../e2e/support/authorization-servers.ts';
import { cluster, http, type Json, TestEngine, typed } from '../e2e/support/engine.ts';
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

function comparable({ status, headers, body, seen }: Outcome) {
  const { 'content-length': _length, ...rest } = headers;
  return { status, headers: rest, body, seen };
}
