import assert from 'node:assert/strict';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';
import { TokenIssuer } from './support/tokens.ts';

const security = (kind: string, name: string, spec: string) =>
  `---\napiVersion: security.istio.io/v1\nkind: ${kind}\nmetadata: { name: ${name} }\nspec:\n${spec}`;

describe('RequestAuthentication', () => {
  let mesh: TestMesh;
  let shop: RunningProxy;
  let client: RunningProxy;
  let inline: TokenIssuer;
  /** Publishes its keys itself; down while `isDown`. */
  let published: TokenIssuer;
  let server: http.Server;
  let isDown = false;
  let fetches = 0;

  const ask = async (token?: string, path = '/', headers: Record<string, string> = {}, port = client.outboundPort, host = 'shop:9080') => {
    const answer = await call({ port, path, headers: { host, ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...headers } });
    return {
      ...answer,
      echo: answer.body.startsWith('{') ? (JSON.parse(answer.body) as { name: string; url: string; headers: Record<string, string> }) : undefined,
    };
  };
  before(async () => {
    server = http.createServer((request, response) => {
      fetches++;
      if (isDown) return void response.writeHead(503).end();
      const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      if (request.url === '/.well-known/openid-configuration') return void response.end(JSON.stringify({ issuer: base, jwks_uri: `${base}/keys` }));
      response.end(published.jwks);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    published = await TokenIssuer.create(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    inline = await TokenIssuer.create('https://inline.example');
    mesh = await TestMesh.start();
    await mesh.apply(service('shop'));
    shop = await mesh.workload('shop');
    client = await mesh.proxy('client');
    await client.proxy.ready;
    await mesh.synced();
  });
  after(async () => {
    server.close();
    await mesh.close();
  });

  it('refuses bad tokens, takes none for nobody, and tells the service what a good one says', async () => {
    await mesh.apply(
      security(
        'RequestAuthentication',
        'shop',
        `  selector: { matchLabels: { app: shop } }\n  jwtRules:\n  - issuer: https://inline.example\n    audiences: [shop]\n    jwks: '${inline.jwks}'\n    outputPayloadToHeader: x-payload\n    outputClaimToHeaders: [{ header: x-user, claim: sub }]\n`,
      ),
    );
    assert.equal((await ask()).status, 200);
    const good = await ask(await inline.sign({ aud: 'shop', team: 'red' }), '/', { 'x-user': 'root' });
    assert.equal(good.status, 200);
    assert.deepEqual([good.echo!.headers['x-user'], good.echo!.headers['authorization']], ['anna', undefined]);
    assert.equal((JSON.parse(Buffer.from(good.echo!.headers['x-payload']!, 'base64url').toString()) as { team: string }).team, 'red');
    assert.equal((await ask(undefined, '/', { 'x-user': 'root' })).echo!.headers['x-user'], undefined, 'what the filter says only the filter says');
    assert.equal((await ask(await inline.sign({ aud: 'other' }))).status, 403);
    const expired = await ask(await inline.sign({ aud: 'shop', exp: Math.floor(Date.now() / 1000) - 100 }));
    assert.deepEqual([expired.status, expired.body], [401, 'Jwt is expired']);
    assert.match(String(expired.headers['www-authenticate']), /^Bearer realm="http:\/\/shop:9080\/", error="invalid_token"$/);
    for (const [what, token] of Object.entries(inline.forgeries({ aud: 'shop' }))) assert.equal((await ask(token)).status, 401, what);
    const token = await inline.sign({ aud: 'shop' });
    const [header, payload] = token.split('.');
    const unsigned = `${Buffer.from('{"alg":"none"}').toString('base64url')}.${payload}.`;
    for (const scheme of ['Bearer ', 'bearer ', 'BEARER ', 'bEaReR  ', 'Bearer\t', 'Bearer \t ']) {
      assert.equal((await ask(undefined, '/', { authorization: scheme + token })).status, 200, JSON.stringify(scheme));
      for (const bad of [unsigned, unsigned.slice(0, -1), `${header}.${payload}.x`])
        assert.equal((await ask(undefined, '/', { authorization: scheme + bad })).status, 401, JSON.stringify(scheme + bad));
    }
    for (const text of [`Bearer${unsigned}`, `Bearer,${unsigned}`, `Bearer ${token}, Bearer ${unsigned}`, `Basic x, bearer ${unsigned}`])
      assert.equal((await ask(undefined, '/', { authorization: text })).status, 401, text);
    const twice = (...values: string[]) => call({ port: client.outboundPort, headers: { host: 'shop:9080', authorization: values as never } });
    for (const values of [
      [`Bearer ${token}`, `Bearer ${unsigned}`],
      [`Bearer ${unsigned}`, `Bearer ${token}`],
      [`Bearer ${token}`, 'Basic YTpi'],
    ])
      assert.equal((await twice(...values)).status, 401, values.join());
    assert.equal((await ask(token, `/?access_token=${unsigned}`)).status, 401, 'a good token beside a bad one in the query');
    assert.equal((await ask(undefined, '/', { x_user: 'root', 'X.User': 'root' })).body.includes('root'), false, 'other spellings of what the filter says');
    assert.match((await call({ port: shop.adminPort, path: '/stats/prometheus' })).body, /policy_rejections_total\{policy="jwt",reason="expired"\} 1/);
  });

  it('lets policies decide by the end user: requestPrincipals, audiences and claims', async () => {
    const allow = (rules: string) => mesh.apply(security('AuthorizationPolicy', 'shop', `  rules: ${rules}\n`));
    const token = (claims: object) => inline.sign({ aud: 'shop', ...claims });
    await allow('[{ from: [{ source: { requestPrincipals: ["*"] } }] }]');
    assert.deepEqual([(await ask()).status, (await ask(await token({}))).status], [403, 200]);
    await allow('[{ from: [{ source: { requestPrincipals: ["https://inline.example/bert"] } }] }]');
    assert.deepEqual([(await ask(await token({}))).status, (await ask(await token({ sub: 'bert' }))).status], [403, 200]);
    await allow('[{ when: [{ key: "request.auth.claims[groups]", values: [admin] }, { key: "request.auth.claims[realm][roles]", notValues: [guest] }] }]');
    assert.equal((await ask(await token({ groups: ['user', 'admin'] }))).status, 200);
    assert.equal((await ask(await token({ groups: ['user', 'admin'], realm: { roles: ['guest'] } }))).status, 403);
    assert.equal((await ask(await token({ groups: 'admin' }))).status, 200);
    assert.equal((await ask(await token({ groups: ['user'] }))).status, 403);
    await allow('[{ when: [{ key: "request.auth.claims[scope]", values: ["write"] }] }]');
    assert.equal((await ask(await token({ scope: 'read write' }))).status, 200);
    await mesh.plane.registry.delete(findKind('security.istio.io', 'AuthorizationPolicy')!, 'default', 'shop', { manager: 'test' } as never);
  });

  it('fetches keys where the issuer says they are, and keeps them when it goes away', async () => {
    isDown = true;
    await mesh.apply(
      security(
        'RequestAuthentication',
        'shop',
        `  jwtRules: [{ issuer: "${published.issuer}", forwardOriginalToken: true, fromHeaders: [{ name: x-token, prefix: "Token " }], fromParams: [t] }]\n`,
      ),
    );
    const token = await published.sign();
    const before = await ask(undefined, '/', { 'x-token': `Token ${token}` });
    assert.equal(before.status, 401, 'while nobody knows the keys, no token is good');
    const finding = await until(
      'the finding',
      async () => mesh.plane.pilot.findings.find(({ code }) => code === 'MZ0009'),
      (one) => one !== undefined,
    );
    assert.match(
      finding!.message,
      /the keys of issuer "http:\/\/127\.0\.0\.1:\d+" cannot be fetched: .* responds with 503\. Its tokens are refused until they can\./,
    );
    isDown = false;
    await until(
      'the keys have been fetched',
      () => ask(undefined, '/', { 'x-token': `Token ${token}` }),
      ({ status }) => status === 200,
      60_000,
    );
    assert.equal(
      mesh.plane.pilot.findings.some(({ code }) => code === 'MZ0009'),
      false,
    );
    isDown = true;
    await mesh.plane.pilot.refresh();
    assert.equal((await ask(undefined, `/?t=${token}`)).status, 200);
    assert.ok(fetches >= 3);
  });

  it('routes by claims at a gateway', async () => {
    const port = await mesh.ports.next();
    await mesh.apply(service('vip'));
    await mesh.workload('vip');
    const gateway = await mesh.proxy('edge', { type: 'gateway', labels: { istio: 'edge' } });
    await mesh.apply(`${security('RequestAuthentication', 'edge', `  selector: { matchLabels: { istio: edge } }\n  jwtRules: [{ issuer: https://inline.example, jwks: '${inline.jwks}' }]\n`)}---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: edge }
spec: { selector: { istio: edge }, servers: [{ port: { number: ${port}, name: http, protocol: HTTP }, hosts: ["*"] }] }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: edge }
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
  - match: [{ headers: { "@request.auth.claims.groups": { exact: vip } } }, { headers: { "@request.auth.claims[realm][Level]": { prefix: gold } } }]
    route: [{ destination: { host: vip } }]
  - match: [{ withoutHeaders: { "@request.auth.claims.blocked": { exact: "yes" } } }]
    route: [{ destination: { host: shop } }]
`);
    await gateway.proxy.ready;
    const name = async (claims?: object) => {
      const answer = await ask(claims && (await inline.sign({ ...claims })), '/', {}, port, 'any.example');
      return answer.echo?.name ?? answer.status;
    };
    await until(
      'the gateway answers',
      () => name().catch(() => undefined),
      (one) => one === 'shop',
    );
    assert.equal(await name({ groups: ['a', 'vip'] }), 'vip');
    assert.equal(await name({ groups: 'vip' }), 'vip');
    assert.equal(await name({ realm: { Level: 'gold-plus' } }), 'vip');
    assert.equal(await name({ groups: ['vips'] }), 'shop');
    assert.equal(await name({ blocked: 'yes' }), 404);
    assert.equal((await ask((await inline.sign({ groups: ['vip'] })).slice(0, -3), '/', {}, port, 'any.example')).status, 401);
  });

  it('refuses rules by which nobody could be known', async () => {
    const wrong = (rule: string, message: RegExp) => assert.rejects(mesh.apply(security('RequestAuthentication', 'wrong', `  jwtRules: [${rule}]\n`)), message);
    await wrong('{ issuer: somebody }', /spec\.jwtRules\[0\]\.issuer: where are the keys of "somebody"\?/);
    await wrong('{ issuer: a, jwksUri: "file:///etc/passwd" }', /jwksUri: "file:\/\/\/etc\/passwd" is no http or https URL/);
    await wrong(`{ issuer: a, jwks: '{"keys":[{"kty":"RSA","d":"x"}]}' }`, /holds a private key/);
    await wrong('{ issuer: a, jwks: "{" }', /jwks: is no JSON/);
    await wrong('{ issuer: "https://a", outputClaimToHeaders: [{ header: "a b", claim: c }] }', /"a b" is not a header name/);
  });
});
