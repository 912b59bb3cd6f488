import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { cluster, http, type Json, TestEngine, typed } from '../e2e/support/engine.ts';
import { skipWithout } from '../e2e/support/requirements.ts';
import { TokenIssuer } from '../e2e/support/tokens.ts';
import { EnvoyPair, type Outcome } from './support/envoy-pair.ts';

const algorithms = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA'];

/** The same tokens must be good, and the same bad ones bad, with a stock Envoy and with ours; and services must be told the same of them. */
describe('tokens, beside stock Envoy', { skip: skipWithout('envoy') }, () => {
  let engine: TestEngine;
  let pair: EnvoyPair;
  let one: TokenIssuer;
  let two: TokenIssuer;
  before(async () => {
    engine = new TestEngine();
    const { ports, seen } = await EnvoyPair.servers(engine, 2);
    one = await TokenIssuer.create('https://one.example', algorithms);
    two = await TokenIssuer.create('https://two.example', ['RS256']);
    const provider = (issuer: TokenIssuer, more: Json): Json => ({
      issuer: issuer.issuer,
      local_jwks: { inline_string: issuer.jwks },
      payload_in_metadata: 'payload',
      ...more,
    });
    const either = (provider_name: string): Json => ({ requires_any: { requirements: [{ provider_name }, { allow_missing: {} }] } });
    const filters = [
      typed('envoy.filters.http.jwt_authn', 'extensions.filters.http.jwt_authn.v3.JwtAuthentication', {
        bypass_cors_preflight: true,
        providers: {
          one: provider(one, {
            audiences: ['shop', 'https://shop.example/'],
            forward_payload_header: 'x-payload',
            claim_to_headers: [
              { header_name: 'x-sub', claim_name: 'sub' },
              { header_name: 'x-nested', claim_name: 'a.b' },
              { header_name: 'x-admin', claim_name: 'admin' },
            ],
            normalize_payload_in_metadata: { space_delimited_claims: ['scope'] },
            clear_route_cache: true,
          }),
          two: provider(two, { forward: true, from_headers: [{ name: 'x-token' }], from_params: ['token'], from_cookies: ['token'] }),
        },
        rules: [
          { match: { prefix: '/required' }, requires: { provider_name: 'one' } },
          { match: { prefix: '/both' }, requires: { requires_all: { requirements: [{ provider_name: 'one' }, { provider_name: 'two' }] } } },
          { match: { prefix: '/lax' }, requires: { requires_any: { requirements: [{ provider_name: 'one' }, { allow_missing_or_failed: {} }] } } },
          { match: { prefix: '/open' } },
          {
            match: { prefix: '/' },
            requires: {
              requires_any: {
                requirements: [{ provider_name: 'one' }, { provider_name: 'two' }, { requires_all: { requirements: [either('one'), either('two')] } }],
              },
            },
          },
        ],
      }),
      typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router'),
    ];
    const claimIs = (path: readonly string[], value: Json): Json => ({
      filter: 'envoy.filters.http.jwt_authn',
      path: path.map((key) => ({ key })),
      value,
    });
    const routes = [
      {
        match: { prefix: '/claim', dynamic_metadata: [claimIs(['payload', 'scope'], { list_match: { one_of: { string_match: { exact: 'write' } } } })] },
        route: { cluster: 'c1' },
      },
      { match: { prefix: '/' }, route: { cluster: 'c0' } },
    ];
    pair = await EnvoyPair.start(
      engine,
      http('c0', { http_filters: filters, route_config: { name: 'r', virtual_hosts: [{ name: 'all', domains: ['*'], routes }] } }),
      [cluster('c0', [ports[0]!]), cluster('c1', [ports[1]!])],
      seen,
    );
  });
  after(() => engine.close());

  const same = async (what: string, path: string, headers: Record<string, string>, status?: number, method = 'GET') => {
    const { ours, theirs } = await pair.both({ path, headers, method });
    assert.deepEqual(comparable(ours), comparable(theirs), what);
    if (status !== undefined) assert.equal(ours.status, status, what);
    return ours;
  };
  const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
  const now = () => Math.floor(Date.now() / 1000);

  it('are taken from where they may be, and told of', async () => {
    await same('none', '/', {}, 200);
    await same('none where one is required', '/required', {}, 401);
    for (const alg of algorithms) {
      const token = await one.sign({ aud: 'shop', a: { b: 7 }, admin: true }, { alg });
      const { seen } = await same(alg, '/required/x?y=1', bearer(token), 200);
      assert.deepEqual([seen[0]!.headers['x-sub'], seen[0]!.headers['x-nested'], seen[0]!.headers['authorization']], ['anna', '7', undefined]);
    }
    const good = await one.sign({ aud: ['other', 'http://shop.example'] });
    await same('a claim that others have set', '/', { 'x-sub': 'root', 'x-payload': 'x', ...bearer(good) }, 200);
    await same('a claim that others have set, without a token', '/', { 'x-sub': 'root' }, 200);
    const second = await two.sign({});
    await same('a header of its own', '/', { 'x-token': second }, 200);
    await same('a query parameter', `/a?token=${second}&b=1`, {}, 200);
    await same('a cookie', '/', { cookie: `a=b; token=${second}; c=d` }, 200);
    await same('both', '/both', { 'x-token': second, ...bearer(good) }, 200);
    await same('one of both', '/both', { 'x-token': second }, 401);
    await same('in a place where it is not looked for', '/', bearer(second), 401);
    await same('a preflight', '/required', { origin: 'http://a', 'access-control-request-method': 'GET' }, 200, 'OPTIONS');
    await same('a route for its claim', '/claim', bearer(await one.sign({ aud: 'shop', scope: 'read write' })), 200);
    assert.equal((await same('no route for its claim', '/claim', bearer(await one.sign({ aud: 'shop', scope: 'writes' })), 200)).seen[0]!.server, 0);
  });

  it('are refused for the same reasons', async () => {
    const token = await one.sign({ aud: 'shop' });
    const [head, payload, signature] = token.split('.') as [string, string, string];
    const cases: Record<string, string> = {
      ...one.forgeries({ aud: 'shop' }),
      expired: await one.sign({ aud: 'shop', exp: now() - 120 }),
      'expired, within the skew': await one.sign({ aud: 'shop', exp: now() - 20 }),
      'not yet valid': await one.sign({ aud: 'shop', nbf: now() + 600 }),
      'not yet valid, within the skew': await one.sign({ aud: 'shop', nbf: now() + 20 }),
      'another issuer': await two.sign({ aud: 'shop' }),
      'the issuer of another': await two.sign({ aud: 'shop', iss: one.issuer }),
      'another audience': await one.sign({ aud: 'shop.evil' }),
      'another audience in a list': await one.sign({ aud: ['a', 'shop '] }),
      'no audience': await one.sign({}),
      'an unknown key': await one.sign({ aud: 'shop' }, { header: { kid: 'unknown' } }),
      'a changed claim': `${head}.${Buffer.from(Buffer.from(payload, 'base64url').toString().replace('anna', 'root')).toString('base64url')}.${signature}`,
      'a cut signature': token.slice(0, -4),
      'a part too many': `${token}.x`,
      'a part too few': `${head}.${payload}`,
      'no JSON': `${Buffer.from('{').toString('base64url')}.${payload}.${signature}`,
      'a list of claims': `${head}.${Buffer.from('[1]').toString('base64url')}.${signature}`,
    };
    for (const [what, text] of Object.entries(cases)) {
      const isFine = what.includes('within the skew');
      const ours = await pair.both({ path: '/required', headers: bearer(text) });
      assert.equal(ours.ours.status, ours.theirs.status, `${what}: ${ours.ours.body} | ${ours.theirs.body}`);
      assert.equal(ours.ours.status === 200, isFine, what);
      for (const path of ['/', '/lax', '/open']) {
        const { ours: a, theirs: b } = await pair.both({ path, headers: bearer(text) });
        assert.equal(a.status, b.status, `${what} at ${path}: ${a.body} | ${b.body}`);
      }
    }
    for (const prefix of ['Bearer  ', ' Bearer ', 'Basic Bearer '])
      for (const path of ['/required', '/']) await same(JSON.stringify(prefix), path, { authorization: `${prefix}${token}` });
    // Meant to differ: for Envoy these are no tokens, so that a bad one would pass where a token is optional (RFC 9110 section 11.1).
    for (const prefix of ['bearer ', 'Bearer\t', 'BEARER ']) {
      assert.equal((await pair.both({ path: '/required', headers: { authorization: `${prefix}${token}` } })).ours.status, 200, JSON.stringify(prefix));
      assert.equal((await pair.both({ path: '/', headers: { authorization: `${prefix}${token.slice(0, -4)}` } })).ours.status, 401, JSON.stringify(prefix));
    }
  });
});

function comparable({ status, headers, body, seen }: Outcome) {
  const { 'content-length': _length, ...rest } = headers;
  return { status, headers: rest, body: status === 200 ? body : '', seen };
}
