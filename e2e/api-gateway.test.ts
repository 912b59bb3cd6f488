// Longer than other files: all policies of an Api are tried at one gateway, which is started once.
import assert from 'node:assert/strict';
import { createHash, createHmac, createSign, generateKeyPairSync, scryptSync } from 'node:crypto';
import http from 'node:http';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { createClient } from '@connectrpc/connect';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { call, until } from './support/http.ts';
import { citadelTransport, signingRequest } from './support/identities.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');
const scryptHash = (password: string) => {
  const salt = Buffer.from('0123456789abcdef');
  return `scrypt$16384$8$1$${salt.toString('base64')}$${scryptSync(password, salt, 32).toString('base64')}`;
};

const consumers = `
apiVersion: mizzen.dev/v1alpha1
kind: Consumer
metadata: { name: alice }
spec: { groups: [gold] }
---
apiVersion: mizzen.dev/v1alpha1
kind: Consumer
metadata: { name: bob }
spec: {}
---
apiVersion: mizzen.dev/v1alpha1
kind: Credential
metadata: { name: alice-key }
spec: { consumer: alice, apiKey: { sha256: ${sha256('alice-secret')} } }
---
apiVersion: mizzen.dev/v1alpha1
kind: Credential
metadata: { name: bob-key }
spec: { consumer: bob, apiKey: { sha256: ${sha256('bob-secret')} } }
---
apiVersion: mizzen.dev/v1alpha1
kind: Credential
metadata: { name: bob-old-key }
spec: { consumer: bob, apiKey: { sha256: ${sha256('bob-old')} }, expires: "2020-01-01T00:00:00Z" }
---
apiVersion: mizzen.dev/v1alpha1
kind: Credential
metadata: { name: alice-login }
spec: { consumer: alice, basic: { username: alice, passwordHash: "${scryptHash('open sesame')}" } }
---
apiVersion: v1
kind: Secret
metadata: { name: alice-hmac }
stringData: {}
data: { key: ${Buffer.from('hmac-secret').toString('base64')} }
---
apiVersion: mizzen.dev/v1alpha1
kind: Credential
metadata: { name: alice-hmac }
spec: { consumer: alice, hmac: { keyId: alice-1, secret: { name: alice-hmac, key: key } } }
---
`.replace('stringData: {}\n', '');

const gateway = (port: number) => `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: ingress }
spec:
  selector: { app: gateway }
  servers: [{ port: { number: ${port}, name: http, protocol: HTTP }, hosts: ["*"] }]
---
`;

const api = (name: string, host: string, policies: string, more = '') => `
apiVersion: mizzen.dev/v1alpha1
kind: Api
metadata: { name: ${name} }
spec:
  hosts: [${host}]
  placement: edge
  gateways: [ingress]
  upstream: { service: echo }
  ${more}
  policies:
${policies}
---
`;

interface Echo {
  readonly url: string;
  readonly headers: Record<string, string>;
  readonly body: string;
}

describe('an API gateway', () => {
  let mesh: TestMesh;
  let gw: RunningProxy;
  let echoServer: RunningProxy;
  let port: number;
  const echo = (text: string) => JSON.parse(text) as Echo;
  const ask = (host: string, path = '/', options: { method?: string; headers?: Record<string, string>; body?: string | Buffer } = {}) =>
    call({ port, path, ...options, headers: { host, ...options.headers } });

  before(async () => {
    mesh = await TestMesh.start();
    port = await mesh.ports.next();
    echoServer = await mesh.workload('echo');
    gw = await mesh.proxy('gw', { type: 'gateway', labels: { app: 'gateway' } });
    await mesh.apply(service('echo') + consumers + gateway(port));
    await gw.proxy.ready;
  });
  after(() => mesh.close());

  describe('with API keys', () => {
    before(() => mesh.apply(api('keys', 'keys.test', '    authentication: { apiKey: { headers: [x-api-key], queryParameters: [api_key] } }')));

    it('lets in who holds a key, tells the service who it is, and keeps the key to itself', async () => {
      const answer = await ask('keys.test', '/things?a=1', { headers: { 'x-api-key': 'alice-secret', 'x-mizzen-consumer': 'default/root' } });
      assert.equal(answer.status, 200);
      const { headers, url } = echo(answer.body);
      assert.equal(headers['x-mizzen-consumer'], 'default/alice');
      assert.equal(headers['x-mizzen-consumer-groups'], 'gold');
      assert.equal(headers['x-api-key'], undefined);
      assert.equal(url, '/things?a=1');
    });

    it('takes a key from the query, and does not send it on', async () => {
      const answer = await ask('keys.test', '/things?api_key=bob-secret&a=1');
      assert.equal(answer.status, 200);
      assert.equal(echo(answer.body).url, '/things?a=1');
      assert.equal(echo(answer.body).headers['x-mizzen-consumer'], 'default/bob');
    });

    for (const [what, headers, path, reason] of [
      ['no key', {}, '/', 'needs a credential'],
      ['a wrong key', { 'x-api-key': 'nobody' }, '/', 'not known'],
      ['an empty key', { 'x-api-key': '' }, '/', 'not known'],
      ['an expired key', { 'x-api-key': 'bob-old' }, '/', 'expired'],
      ['two keys', { 'x-api-key': 'alice-secret' }, '/?api_key=alice-secret', 'more than one'],
      ['two keys in the query, one written differently', {}, '/?api_key=alice-secret&api%5Fkey=x', 'more than one'],
    ] as const)
      it(`turns away ${what} with 401 and the reason`, async () => {
        const answer = await ask('keys.test', path, { headers });
        assert.equal(answer.status, 401);
        assert.equal(answer.headers['content-type'], 'application/problem+json');
        assert.match(String(answer.headers['www-authenticate']), /ApiKey/);
        assert.match((JSON.parse(answer.body) as { detail: string }).detail, new RegExp(reason));
      });

    it('counts who was turned away, by reason', async () => {
      const metrics = await (await fetch(`http://127.0.0.1:${gw.adminPort}/stats/prometheus`)).text();
      assert.match(metrics, /mizzen_policy_rejections_total\{policy="authentication",reason="unknown_key"\} \d/);
      assert.match(metrics, /mizzen_policy_rejections_total\{policy="authentication",reason="expired"\} 1/);
    });

    it('lets in only the consumers and groups that a policy names', async () => {
      await mesh.apply(api('gold', 'gold.test', '    authentication: { apiKey: {}, allow: { groups: [gold] } }'));
      assert.equal((await ask('gold.test', '/', { headers: { 'x-api-key': 'alice-secret' } })).status, 200);
      assert.equal((await ask('gold.test', '/', { headers: { 'x-api-key': 'bob-secret' } })).status, 403);
    });

    it('are the word of the gateway: a workload that goes around its own sidecar cannot say which consumer it is', async () => {
      const through = await ask('keys.test', '/', { headers: { 'x-api-key': 'alice-secret' } });
      assert.equal(echo(through.body).headers['x-mizzen-consumer'], 'default/alice');
      const { token } = await mesh.plane.tokens.issue('default', 'thief', [], 600);
      const { csr, key } = await signingRequest();
      const authority = createClient(IstioCertificateService, citadelTransport(mesh));
      const { certChain } = await authority.createCertificate({ csr }, { headers: { authorization: `Bearer ${token}` } });
      const forged = ['x-mizzen-consumer', 'X-Mizzen-Consumer-Groups', 'x_mizzen_consumer', 'x-mizzen-publisher', 'x-forwarded-for', 'x-forwarded-client-cert'];
      const answer = await new Promise<string>((resolve, reject) => {
        const socket = tls.connect({
          ...{ host: '127.0.0.1', port: echoServer.inboundPort, rejectUnauthorized: false, ALPNProtocols: ['istio'] },
          ...{ cert: certChain.join(''), key },
        });
        let text = '';
        socket.once('secureConnect', () =>
          socket.write(`GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n${forged.map((name) => `${name}: FORGED\r\n`).join('')}\r\n`),
        );
        socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
        socket.on('error', reject).on('close', () => resolve(text));
      });
      assert.match(answer, /^HTTP\/1\.1 200 .*sa\/thief/s);
      assert.doesNotMatch(answer, /FORGED/);
    });

    it('lets nobody in by a credential that was taken away', async () => {
      const kind = (await import('@mizzen/api')).findKind('mizzen.dev', 'Credential')!;
      await mesh.plane.registry.delete(kind, 'default', 'bob-key', {});
      await mesh.plane.pilot.refresh();
      await mesh.synced();
      assert.equal((await ask('keys.test', '/', { headers: { 'x-api-key': 'bob-secret' } })).status, 401);
    });
  });

  describe('with passwords', () => {
    before(() => mesh.apply(api('basic', 'basic.test', '    authentication: { basic: { realm: shop }, optional: true }')));
    const login = (text: string) => ({ authorization: `Basic ${Buffer.from(text).toString('base64')}` });

    it('takes the right one, twice, and sends no password on', async () => {
      for (let i = 0; i < 2; i++) {
        const answer = await ask('basic.test', '/', { headers: login('alice:open sesame') });
        assert.equal(answer.status, 200);
        assert.equal(echo(answer.body).headers['authorization'], undefined);
        assert.equal(echo(answer.body).headers['x-mizzen-consumer'], 'default/alice');
      }
    });

    it('refuses wrong ones, unknown names and what cannot be read, although none is needed', async () => {
      for (const text of ['alice:wrong', 'carol:open sesame', 'nocolon']) assert.equal((await ask('basic.test', '/', { headers: login(text) })).status, 401);
      assert.equal((await ask('basic.test', '/', { headers: { authorization: 'Basic ?' } })).status, 401);
      assert.equal((await ask('basic.test')).status, 200);
    });
  });

  describe('with signed requests', () => {
    before(() => mesh.apply(api('hmac', 'hmac.test', '    authentication: { hmac: { clockSkewSeconds: 60 } }')));
    const sign = (path: string, method: string, body: string, change: { created?: number; key?: string; components?: string[]; nonce?: string } = {}) => {
      const digest = `sha-256=:${createHash('sha256').update(body).digest('base64')}:`;
      const components = change.components ?? ['@method', '@authority', '@path', '@query', ...(body ? ['content-digest'] : [])];
      const created = change.created ?? Math.floor(Date.now() / 1000);
      const parameters = `(${components.map((name) => `"${name}"`).join(' ')});created=${created};keyid="alice-1";alg="hmac-sha256";nonce="${change.nonce ?? Math.random()}"`;
      const [pathOnly, query] = path.split('?');
      const values: Record<string, string> = {
        '@method': method,
        '@authority': 'hmac.test',
        '@path': pathOnly!,
        '@query': `?${query ?? ''}`,
        'content-digest': digest,
      };
      const base = [...components.map((name) => `"${name}": ${values[name]}`), `"@signature-params": ${parameters}`].join('\n');
      const signature = createHmac('sha256', change.key ?? 'hmac-secret')
        .update(base)
        .digest('base64');
      return { 'signature-input': `sig1=${parameters}`, signature: `sig1=:${signature}:`, ...(body ? { 'content-digest': digest } : {}) };
    };

    it('takes a request whose signature covers what it asks and what it brings', async () => {
      assert.equal((await ask('hmac.test', '/a?b=1', { headers: sign('/a?b=1', 'GET', '') })).status, 200);
      const answer = await ask('hmac.test', '/a', { method: 'POST', body: 'hello', headers: sign('/a', 'POST', 'hello') });
      assert.equal(answer.status, 200);
      assert.equal(echo(answer.body).body, 'hello');
    });

    it('refuses what is replayed, too old, signed for something else, not covered, or changed on its way', async () => {
      const once = sign('/a', 'GET', '');
      assert.equal((await ask('hmac.test', '/a', { headers: once })).status, 200);
      assert.equal((await ask('hmac.test', '/a', { headers: once })).status, 401);
      // Neither the label nor the spelling of the base64 is signed: the last character of 43 has two bits to spare.
      const renamed = { 'signature-input': once['signature-input'].replace('sig1', 'sig2'), signature: once.signature.replace('sig1', 'sig2') };
      const respelled = { ...once, signature: once.signature.replace(/.(?==:$)/, (last) => String.fromCharCode(last.charCodeAt(0) + 1)) };
      for (const headers of [renamed, respelled]) assert.equal((await ask('hmac.test', '/a', { headers })).status, 401);
      // Nor does a change of the configuration make it a new request.
      await mesh.apply(api('other', 'other-hmac.test', '    authentication: { hmac: { clockSkewSeconds: 61 } }'));
      await mesh.apply(api('hmac', 'hmac.test', '    authentication: { hmac: { clockSkewSeconds: 60, requiresDigest: false } }'));
      assert.equal((await ask('hmac.test', '/a', { headers: once })).status, 401);
      const now = Math.floor(Date.now() / 1000);
      for (const headers of [
        sign('/a', 'GET', '', { created: now - 120 }),
        sign('/a', 'GET', '', { created: now + 120 }),
        sign('/b', 'GET', ''),
        sign('/a', 'DELETE', ''),
        sign('/a', 'GET', '', { key: 'other' }),
        sign('/a', 'GET', '', { components: ['@method', '@path'] }),
      ])
        assert.equal((await ask('hmac.test', '/a', { headers })).status, 401);
      assert.equal((await ask('hmac.test', '/a', { method: 'POST', body: 'hellO', headers: sign('/a', 'POST', 'hello') })).status, 401);
      assert.equal((await ask('hmac.test', '/a', { method: 'POST', body: 'hello', headers: sign('/a', 'POST', '') })).status, 401);
    });
  });

  describe('with tokens', () => {
    const keys = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const jwk = { ...keys.publicKey.export({ format: 'jwk' }), kid: 'k1', alg: 'RS256', use: 'sig' };
    const b64 = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const token = (claims: object, header: object = { alg: 'RS256', kid: 'k1' }, sign?: (text: string) => string) => {
      const text = `${b64(header)}.${b64(claims)}`;
      return `${text}.${sign === undefined ? createSign('RSA-SHA256').update(text).sign(keys.privateKey, 'base64url') : sign(text)}`;
    };
    const now = () => Math.floor(Date.now() / 1000);
    const good = () => ({ iss: 'https://issuer.test', aud: ['shop', 'other'], sub: 'carol', groups: ['gold'], plan: 'pro', exp: now() + 600 });
    before(() =>
      mesh.apply(
        api(
          'jwt',
          'jwt.test',
          `    authentication:
      jwt:
      - issuer: https://issuer.test
        audiences: [shop]
        clockSkewSeconds: 5
        jwks: '${JSON.stringify({ keys: [jwk] })}'
        claimToHeader: { plan: x-plan }
        headers: [authorization]
        queryParameters: [token]`,
        ),
      ),
    );
    const bearer = (text: string) => ask('jwt.test', '/', { headers: { authorization: `Bearer ${text}`, 'x-plan': 'forged' } });

    it('takes a good one, again and again, and tells the service its claims', async () => {
      const text = token(good());
      for (let i = 0; i < 3; i++) {
        const answer = await bearer(text);
        assert.equal(answer.status, 200);
        const { headers } = echo(answer.body);
        assert.equal(headers['x-mizzen-consumer'], 'https://issuer.test#carol');
        assert.equal(headers['x-plan'], 'pro');
        assert.equal(headers['authorization'], undefined);
      }
      assert.equal((await ask('jwt.test', `/?token=${text}`)).status, 200);
    });

    it('identifies by issuer and subject, and maps to Consumers and groups only where that is declared', async () => {
      const jwt = (extra = '') => `jwt: [{ issuer: https://issuer.test, jwks: '${JSON.stringify({ keys: [jwk] })}'${extra} }]`;
      await mesh.apply(
        [
          api('token-names', 'names.test', `    authentication: { ${jwt()}, allow: { consumers: [alice] } }`),
          api('token-groups', 'groups.test', `    authentication: { ${jwt()}, allow: { groups: [gold] } }`),
          api('token-claim', 'claim.test', `    authentication: { ${jwt(', groupsClaim: groups')}, allow: { groups: [gold] } }`),
          api('token-subject', 'subject.test', `    authentication: { ${jwt()}, allow: { consumers: ["https://issuer.test#carol"] } }`),
          `---\napiVersion: mizzen.dev/v1alpha1\nkind: Credential\nmetadata: { name: alice-token }\nspec: { consumer: alice, jwt: { issuer: https://issuer.test, subject: a-1 } }\n`,
          `---\napiVersion: mizzen.dev/v1alpha1\nkind: Credential\nmetadata: { name: other-issuer }\nspec: { consumer: alice, jwt: { issuer: https://other.test, subject: carol } }\n`,
        ].join(''),
      );
      const as = (host: string, claims: object) => ask(host, '/', { headers: { authorization: `Bearer ${token({ ...good(), ...claims })}` } });
      for (const sub of ['default/alice', 'alice', 'carol', 'https://other.test#carol'])
        for (const host of ['names.test', 'groups.test']) assert.equal((await as(host, { sub })).status, 403, `${sub} at ${host}`);
      for (const host of ['names.test', 'groups.test']) {
        const answer = await as(host, { sub: 'a-1', groups: ['admins'] });
        assert.equal(answer.status, 200);
        const { headers } = echo(answer.body);
        assert.deepEqual([headers['x-mizzen-consumer'], headers['x-mizzen-consumer-groups']], ['default/alice', 'gold']);
      }
      assert.equal((await as('claim.test', {})).status, 200);
      assert.equal((await as('claim.test', { groups: ['silver'] })).status, 403);
      assert.deepEqual([(await as('subject.test', {})).status, (await as('subject.test', { sub: 'dave' })).status], [200, 403]);
    });

    it('refuses every other, with the reason', async () => {
      const pem = keys.publicKey.export({ format: 'pem', type: 'spki' }) as string;
      for (const [text, reason] of [
        [token({ ...good(), exp: now() - 6 }), 'expired'],
        [token({ ...good(), exp: undefined }), 'claim missing'],
        [token({ ...good(), nbf: now() + 60 }), 'not yet valid'],
        [token({ ...good(), aud: 'elsewhere' }), 'wrong audience'],
        [token({ ...good(), iss: 'https://other.test' }), 'wrong issuer'],
        [token(good(), { alg: 'RS256', kid: '../../k1' }), 'unknown key'],
        [token(good(), { alg: 'none' }, () => ''), 'algorithm not allowed|malformed'],
        [token(good(), { alg: 'RS256', kid: 'k1', crit: ['x'], x: 1 }), 'algorithm not allowed|malformed'],
        [token(good(), { alg: 'HS256', kid: 'k1' }, (body) => createHmac('sha256', pem).update(body).digest('base64url')), 'unknown key|algorithm|signature'],
        [`${token(good()).slice(0, -4)}AAAA`, 'wrong signature'],
        ['a.b.c', 'malformed'],
      ] as const) {
        const answer = await bearer(text);
        assert.equal(answer.status, 401, reason);
        assert.match((JSON.parse(answer.body) as { detail: string }).detail, new RegExp(reason));
      }
      const text = token(good());
      assert.equal((await ask('jwt.test', `/?token=${text}`, { headers: { authorization: `Bearer ${text}` } })).status, 401);
    });
  });

  describe('with limits', () => {
    it('counts each consumer for itself, and says where it stands', async () => {
      await mesh.apply(
        api(
          'limits',
          'limits.test',
          '    authentication: { apiKey: {}, optional: true }\n    rateLimits: [{ name: free, requests: 3, per: 1h, by: consumer }]',
        ),
      );
      const alice = () => ask('limits.test', '/', { headers: { 'x-api-key': 'alice-secret' } });
      for (const remaining of ['2', '1', '0']) {
        const answer = await alice();
        assert.equal(answer.status, 200);
        assert.equal(answer.headers['ratelimit-limit'], '3');
        assert.equal(answer.headers['ratelimit-remaining'], remaining);
      }
      const refused = await alice();
      assert.equal(refused.status, 429);
      assert.ok(Number(refused.headers['retry-after']) >= 1);
      assert.equal(refused.headers['ratelimit-remaining'], '0');
      assert.equal((await ask('limits.test')).status, 200);
    });

    it('counts by header, and leaves requests alone that have none', async () => {
      await mesh.apply(api('by-header', 'by-header.test', '    rateLimits: [{ requests: 1, per: 1h, by: header, key: X-Tenant }]'));
      const tenant = (name: string) => ask('by-header.test', '/', { headers: { 'x-tenant': name } });
      assert.deepEqual([(await tenant('a')).status, (await tenant('a')).status, (await tenant('b')).status], [200, 429, 200]);
      assert.deepEqual([(await ask('by-header.test')).status, (await ask('by-header.test')).status], [200, 200]);
    });

    it('gives nobody new tokens when the configuration changes', async () => {
      await mesh.apply(api('by-header', 'by-header.test', '    timeout: 3s\n    rateLimits: [{ requests: 1, per: 1h, by: header, key: X-Tenant }]'));
      assert.equal((await ask('by-header.test', '/', { headers: { 'x-tenant': 'a' } })).status, 429);
    });

    it('counts for the whole mesh what is counted globally', async () => {
      await mesh.apply(api('global', 'global.test', '    rateLimits: [{ name: all, requests: 2, per: 24h, scope: global }]'));
      const statuses = [];
      for (let i = 0; i < 4; i++) statuses.push((await ask('global.test')).status);
      assert.deepEqual(statuses, [200, 200, 429, 429]);
      assert.equal((await ask('global.test')).headers['ratelimit-limit'], '2');
      const burst = await Promise.all(Array.from({ length: 100 }, () => ask('global.test')));
      assert.deepEqual([...new Set(burst.map(({ status }) => status))], [429], 'what was denied is denied until its window ends');
      await mesh.apply(api('burst', 'burst.test', '    rateLimits: [{ name: all, requests: 2, per: 24h, scope: global }]'));
      const first = await Promise.all(Array.from({ length: 100 }, () => ask('burst.test')));
      assert.ok(first.filter(({ status }) => status === 200).length <= 4, 'a late decision does not open the limit');
    });
  });

  describe('with an OpenAPI document', () => {
    const document = {
      openapi: '3.1.0',
      info: { title: 'shop', version: '1' },
      servers: [{ url: 'https://shop.test/v1' }],
      paths: {
        '/orders': {
          get: { parameters: [{ name: 'limit', in: 'query', schema: { type: 'integer', minimum: 1, maximum: 100 } }], responses: {} },
          post: { requestBody: { required: true, content: { 'application/json': { schema: { $ref: '#/components/schemas/Order' } } } }, responses: {} },
        },
        '/orders/{id}': { get: { parameters: [{ name: 'id', in: 'path', required: true, schema: { type: 'string', pattern: '^[a-z]+$' } }], responses: {} } },
      },
      components: {
        schemas: {
          Order: {
            type: 'object',
            required: ['items'],
            additionalProperties: false,
            properties: {
              items: {
                type: 'array',
                minItems: 1,
                items: { type: 'object', required: ['sku'], properties: { sku: { type: 'string' }, quantity: { type: 'integer', minimum: 1 } } },
              },
              note: { type: ['string', 'null'], maxLength: 10 },
            },
          },
        },
      },
    };
    before(() => mesh.apply(api('openapi', 'openapi.test', '    validation: { maxBodyBytes: 2000 }', `openapi: { inline: ${JSON.stringify(document)} }`)));
    const post = (value: unknown, type = 'application/json') =>
      ask('openapi.test', '/v1/orders', { method: 'POST', body: typeof value === 'string' ? value : JSON.stringify(value), headers: { 'content-type': type } });

    it('lets through what the document describes', async () => {
      const answer = await post({ items: [{ sku: 'a', quantity: 2 }], note: null });
      assert.equal(answer.status, 200);
      assert.equal(echo(answer.body).body, '{"items":[{"sku":"a","quantity":2}],"note":null}');
      assert.equal((await ask('openapi.test', '/v1/orders?limit=10')).status, 200);
      assert.equal((await ask('openapi.test', '/v1/orders/abc')).status, 200);
    });

    it('refuses two media types, of which the service might read the body by the other', async () => {
      const types = ['text/plain', 'application/json'] as never;
      const answer = await ask('openapi.test', '/v1/orders', { method: 'POST', body: '{}', headers: { 'content-type': types } });
      assert.ok(answer.status === 400 || answer.status === 415, `${answer.status}`);
    });

    it('points to the field that is wrong', async () => {
      for (const [value, pointer, detail] of [
        [{ items: [{ sku: 'a', quantity: 0 }] }, '#/items/0/quantity', />= 1/],
        [{ items: [{ quantity: 1 }] }, '#/items/0/sku', /missing/],
        [{ items: [{ sku: 'a' }], extra: 1 }, '#/extra', /not known/],
        [{ items: [{ sku: 'a' }], note: 'much too long' }, '#/note', /10/],
        [[], '#', /object/],
        ['{', '#', /JSON/],
      ] as const) {
        const answer = await post(value);
        assert.equal(answer.status, 400);
        const problem = JSON.parse(answer.body) as { status: number; errors: { pointer: string; detail: string }[] };
        assert.equal(problem.status, 400);
        assert.equal(problem.errors[0]!.pointer, pointer);
        assert.match(problem.errors[0]!.detail, detail);
      }
    });

    it('names the parameter that is wrong, and what else the document does not have', async () => {
      const answer = await ask('openapi.test', '/v1/orders?limit=1000');
      assert.equal(answer.status, 400);
      assert.deepEqual((JSON.parse(answer.body) as { errors: unknown }).errors, [{ parameter: 'limit', detail: 'must be <= 100' }]);
      assert.equal((await ask('openapi.test', '/v1/orders?limit=ten')).status, 400);
      assert.equal((await ask('openapi.test', '/v1/orders/ABC')).status, 400);
      assert.equal((await ask('openapi.test', '/v1/nothing')).status, 404);
      const method = await ask('openapi.test', '/v1/orders', { method: 'DELETE' });
      assert.equal(method.status, 405);
      assert.equal(method.headers['allow'], 'GET, POST');
      assert.equal((await post('a=1', 'application/x-www-form-urlencoded')).status, 415);
      assert.equal((await ask('openapi.test', '/v1/orders', { method: 'POST' })).status, 400);
      assert.equal((await post({ items: [{ sku: 'x'.repeat(3000) }] })).status, 413);
    });

    it('keeps the version of an API that worked when its document is broken, and says so', async () => {
      await mesh.apply(api('openapi', 'openapi.test', '    validation: {}', `openapi: { inline: { openapi: "2.0", paths: {} } }`));
      const [finding] = mesh.plane.pilot.findings.filter(({ object }) => object === 'Api default/openapi');
      assert.match(finding!.message, /OpenAPI 3\.0 and 3\.1 are supported.*The version before it stays in effect/);
      assert.equal((await ask('openapi.test', '/v1/orders?limit=10')).status, 200);
      assert.equal((await ask('openapi.test', '/v1/nothing')).status, 404);
    });
  });

  it('changes headers and paths on the way', async () => {
    await mesh.apply(
      api(
        'transform',
        'transform.test',
        `    transform:
      headers: { request: { set: { x-from: edge }, remove: [x-internal] }, response: { set: { x-served-by: shop } } }
      path: { replacePrefix: /internal }`,
        'paths: [/public]',
      ),
    );
    const answer = await ask('transform.test', '/public/a?b=1', { headers: { 'x-internal': '1' } });
    assert.equal(answer.headers['x-served-by'], 'shop');
    const { url, headers } = echo(answer.body);
    assert.equal(url, '/internal/a?b=1');
    assert.equal(headers['x-from'], 'edge');
    assert.equal(headers['x-internal'], undefined);
    assert.equal((await ask('transform.test', '/publicity')).status, 404);
  });

  it('lets in by address', async () => {
    await mesh.apply(
      api('ip-no', 'ip-no.test', '    ipAccess: { deny: [127.0.0.0/8] }') +
        api('ip-yes', 'ip-yes.test', '    ipAccess: { allow: [127.0.0.1, "::1"], deny: [10.0.0.0/8] }'),
    );
    assert.equal((await ask('ip-no.test', '/', { headers: { 'x-forwarded-for': '8.8.8.8' } })).status, 403);
    assert.equal((await ask('ip-yes.test')).status, 200);
  });

  it('refuses a path with 400 that the service could read as one of another Api with policies, and serves it where neither has any', async () => {
    const of = (name: string, host: string, prefix: string, policies: string) => api(name, host, policies, `paths: [${prefix}]`);
    await mesh.apply(
      of('open', 'ambiguous.test', '/', '    timeout: 5s') +
        of('locked', 'ambiguous.test', '/admin', '    authentication: { apiKey: { headers: [x-api-key] } }') +
        of('plain', 'plain.test', '/', '    timeout: 5s') +
        of('plain-admin', 'plain.test', '/admin', '    timeout: 6s'),
    );
    for (const path of ['/admin;x=y/users', '/admin;x', '/x%2f..%2fadmin', '/;x/admin/users', '/admin%2fusers', '/x%5c..%5cadmin']) {
      const refused = await ask('ambiguous.test', path, { headers: { 'x-api-key': 'alice-secret' } });
      assert.equal(refused.status, 400, path);
      assert.match(refused.body, /ambiguous/, path);
      assert.equal((await ask('plain.test', path)).status, 200, path);
    }
    assert.equal((await ask('ambiguous.test', '/admin/users')).status, 401);
    for (const path of ['/things;x=y', '/a%2fb', '/administrator;x']) assert.equal((await ask('ambiguous.test', path)).status, 200, path);
  });

  it('lets nobody say who they are by a header, also where nobody is asked', async () => {
    await mesh.apply(api('unasked', 'unasked.test', '    timeout: 5s'));
    const { headers } = echo(
      (await ask('unasked.test', '/', { headers: { 'x-mizzen-consumer': 'default/root', 'X-Mizzen-Publisher': 'spiffe://cluster.local/ns/a/sa/b' } })).body,
    );
    assert.deepEqual(
      Object.keys(headers).filter((name) => name.startsWith('x-mizzen')),
      [],
    );
  });

  it('knows the consumers of its own namespace, and of others only those that it names', async () => {
    await mesh.apply(`apiVersion: v1
kind: Namespace
metadata: { name: other }
---
apiVersion: mizzen.dev/v1alpha1
kind: Consumer
metadata: { name: carol, namespace: other }
spec: {}
---
apiVersion: mizzen.dev/v1alpha1
kind: Credential
metadata: { name: carol, namespace: other }
spec: { consumer: carol, apiKey: { sha256: ${sha256('carol-secret')} } }
---
${api('own', 'own.test', '    authentication: { apiKey: {} }')}${api('named', 'named.test', '    authentication: { apiKey: {}, allow: { consumers: [other/carol] } }')}`);
    const carol = (host: string) => ask(host, '/', { headers: { 'x-api-key': 'carol-secret' } });
    // Her namespace decides whose proxies learn her credentials.
    assert.deepEqual([(await carol('named.test')).status, (await carol('own.test')).status], [401, 401]);
    await mesh.apply(`apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: { name: carol, namespace: other }
spec:
  from: [{ group: mizzen.dev, kind: Workload, namespace: default }]
  to: [{ group: mizzen.dev, kind: Consumer, name: carol }]
`);
    assert.deepEqual([(await carol('named.test')).status, (await carol('own.test')).status], [200, 401]);
  });

  it('answers preflights before it asks for credentials', async () => {
    await mesh.apply(
      api('cors', 'cors.test', '    cors: { allowOrigins: [{ exact: "https://page.test" }], allowMethods: [GET] }\n    authentication: { apiKey: {} }'),
    );
    const answer = await ask('cors.test', '/', { method: 'OPTIONS', headers: { origin: 'https://page.test', 'access-control-request-method': 'GET' } });
    assert.equal(answer.status, 200);
    assert.equal(answer.headers['access-control-allow-origin'], 'https://page.test');
    assert.equal((await ask('cors.test', '/', { headers: { origin: 'https://page.test' } })).status, 401);
    for (const origin of ['https://page.test', 'https://other.test', undefined]) {
      const { headers } = await ask('cors.test', '/', { headers: { 'x-api-key': 'alice-secret', ...(origin === undefined ? {} : { origin }) } });
      assert.match(String(headers.vary), /Origin/, `for ${origin}`);
    }
  });

  describe('with a cache', () => {
    let served = 0;
    before(async () => {
      const app = await mesh.application('pages', (request, response) => {
        served++;
        const url = new URL(request.url!, 'http://x');
        const control = url.searchParams.get('control');
        response
          .writeHead(200, {
            ...(control ? { 'cache-control': control } : {}),
            etag: '"v1"',
            vary: 'accept-language',
            'content-type': 'text/plain',
            ...(url.searchParams.has('cookie') ? { 'set-cookie': 'a=1' } : {}),
          })
          .end(`${request.headers['accept-language'] ?? '-'} ${served}`);
      });
      await mesh.sidecar('pages', app, { port: 9080 });
      await mesh.apply(
        service('pages') +
          api('cache', 'cache.test', '    authentication: { apiKey: {}, optional: true }\n    cache: { maxBodyBytes: 1000 }').replace(
            'service: echo',
            'service: pages',
          ),
      );
    });

    it('keeps by defaultTtl only what was asked for without cookie and credential, and no origin that a client names', async () => {
      await mesh.apply(
        api('ttl', 'ttl.test', '    authentication: { apiKey: {}, optional: true }\n    cache: { defaultTtl: 60s }').replace('service: echo', 'service: pages'),
      );
      const status = async (path: string, headers: Record<string, string> = {}) => String((await ask('ttl.test', path, { headers })).headers['cache-status']);
      assert.match(await status('/plain'), /stored/);
      assert.match(await status('/plain'), /hit/);
      for (const headers of [{ cookie: 'session=alice' }, { authorization: 'Bearer x' }, { 'x-api-key': 'alice-secret' }] as Record<string, string>[]) {
        assert.doesNotMatch(await status(`/own-${Object.keys(headers)[0]}`, headers), /stored/);
        assert.match(await status(`/own-${Object.keys(headers)[0]}`), /uri-miss/);
      }
    });

    it('answers what is fresh itself, by what it varies on, with its age', async () => {
      const first = await ask('cache.test', '/a?control=max-age=60');
      assert.equal(first.headers['cache-status'], 'mizzen; fwd=uri-miss; stored');
      const second = await ask('cache.test', '/a?control=max-age=60');
      assert.equal(second.body, first.body);
      assert.match(String(second.headers['cache-status']), /^mizzen; hit; ttl=\d+$/);
      assert.equal(second.headers['age'], '0');
      const other = await ask('cache.test', '/a?control=max-age=60', { headers: { 'accept-language': 'de' } });
      assert.notEqual(other.body, first.body);
      assert.equal((await ask('cache.test', '/a?control=max-age=60', { headers: { 'if-none-match': '"v1"' } })).status, 304);
      assert.equal((await ask('cache.test', '/a?control=max-age=60', { method: 'HEAD' })).body, '');
    });

    it('keeps nothing that is private, not to be stored, a cookie, or an answer to a credential', async () => {
      for (const [path, headers] of [
        ['/b?control=private', {}],
        ['/b?control=no-store', {}],
        ['/b', {}],
        ['/b?control=max-age=60&cookie', {}],
        ['/c?control=max-age=60', { 'x-api-key': 'alice-secret' }],
        ['/c?control=max-age=60,must-revalidate', { 'x-api-key': 'alice-secret' }],
        ['/b?control=max-age=60', { 'x-http-method-override': 'POST' }],
      ] as const) {
        const first = await ask('cache.test', path, { headers });
        assert.notEqual((await ask('cache.test', path, { headers })).body, first.body, path);
        assert.notEqual((await ask('cache.test', path)).body, first.body, path);
      }
      const first = await ask('cache.test', '/c?control=public,max-age=60', { headers: { 'x-api-key': 'alice-secret' } });
      assert.equal((await ask('cache.test', '/c?control=public,max-age=60')).body, first.body);
    });

    it('forgets what an unsafe request changes, and asks anew when the client wants it', async () => {
      const path = '/d?control=max-age=60';
      const first = await ask('cache.test', path);
      assert.notEqual((await ask('cache.test', path, { headers: { 'cache-control': 'no-cache' } })).body, first.body);
      const again = await ask('cache.test', path);
      await ask('cache.test', path, { method: 'POST', body: 'x' });
      assert.notEqual((await ask('cache.test', path)).body, again.body);
    });
  });

  it('adds the credential of somebody else’s API in the caller’s sidecar', async () => {
    const caller = await mesh.proxy('caller');
    const other = http.createServer((request, response) => response.end(JSON.stringify({ url: request.url, headers: request.headers, body: '' })));
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    mesh.onClose(async () => void other.close());
    const { port: otherPort } = other.address() as { port: number };
    await mesh.apply(`
apiVersion: v1
kind: Secret
metadata: { name: pay }
data: { token: ${Buffer.from('s3cret\n').toString('base64')} }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: pay }
spec: { hosts: [api.pay.test], location: MESH_EXTERNAL, resolution: STATIC, ports: [{ number: 80, name: http, protocol: HTTP, targetPort: ${otherPort} }], endpoints: [{ address: 127.0.0.1 }] }
---
apiVersion: mizzen.dev/v1alpha1
kind: Api
metadata: { name: pay }
spec:
  hosts: [api.pay.test]
  placement: client
  upstream: { service: api.pay.test }
  policies: { credential: { header: authorization, prefix: "Bearer ", secret: { name: pay, key: token } }, rateLimits: [{ requests: 2, per: 1h }] }
`);
    await caller.proxy.ready;
    const answers = [];
    for (let i = 0; i < 3; i++)
      answers.push(await call({ port: caller.outboundPort, path: '/charge', headers: { host: 'api.pay.test', authorization: 'Bearer mine' } }));
    assert.deepEqual(
      answers.map(({ status }) => status),
      [200, 200, 429],
    );
    assert.equal(echo(answers[0]!.body).headers['authorization'], 'Bearer s3cret');
  });

  it('injects a changed credential at once, without another listener or route', async () => {
    const { proxy, outboundPort } = await mesh.proxy('rotating');
    await mesh.apply(`
apiVersion: mizzen.dev/v1alpha1
kind: Api
metadata: { name: rotated }
spec:
  hosts: [api.rotated.test]
  placement: client
  upstream: { service: echo }
  policies: { credential: { queryParameter: key, secret: { name: rotated, key: token } } }
---
apiVersion: v1
kind: Secret
metadata: { name: rotated }
data: { token: ${Buffer.from('first').toString('base64')} }
`);
    await proxy.ready;
    const used = async () => echo((await call({ port: outboundPort, path: '/?key=mine', headers: { host: 'api.rotated.test' } })).body).url;
    const versions = () => {
      const { listener, route } = mesh.plane.pilot.proxies().find(({ name }) => name === 'rotating')!.types;
      return [listener?.version, route?.version];
    };
    assert.equal(await used(), '/?key=first');
    const before = versions();
    await mesh.apply(`apiVersion: v1\nkind: Secret\nmetadata: { name: rotated }\ndata: { token: ${Buffer.from('second').toString('base64')} }\n`);
    assert.equal(await until('the changed credential', used, (url) => url !== '/?key=first'), '/?key=second');
    assert.deepEqual(versions(), before);
  });

  it('shows no secret of a credential in its configuration', async () => {
    const dump = await (await fetch(`http://127.0.0.1:${gw.adminPort}/config_dump`)).text();
    assert.match(dump, /mizzen:\/\/consumers\/default/);
    assert.doesNotMatch(dump, new RegExp(`hmac-secret|${Buffer.from('hmac-secret').toString('base64').replaceAll('=', '')}`));
  });
});
