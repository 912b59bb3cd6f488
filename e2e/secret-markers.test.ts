import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import https from 'node:https';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { kinds } from '@mizzen/api';
import { Logger } from '@mizzen/common';
import { homeFiles } from '@mizzen/control';
import { proxyConfig, proxyConfigTypes } from '../packages/cli/commands/proxy-config.ts';
import { TestAuthority } from './support/certificates.ts';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

/**
 * Every secret of a mesh carries a marker. What the mesh sends to any reader but the proxies that are entitled to a secret is searched for all markers: each endpoint
 * of the API in each role, each admin endpoint, configuration dumps, `mizzen proxy-config`, logs, access logs, the audit log and error messages.
 */
const mark = (name: string) => `MARKER-${name}-${'0123456789'.repeat(3)}`;
const base64 = (text: string) => Buffer.from(text).toString('base64');
const secret = (name: string, data: Readonly<Record<string, string>>) =>
  `apiVersion: v1\nkind: Secret\nmetadata: { name: ${name} }\ndata: { ${Object.entries(data)
    .map(([key, value]) => `${key}: ${base64(value)}`)
    .join(', ')} }\n---\n`;
const api = (name: string, spec: string) =>
  `apiVersion: mizzen.dev/v1alpha1\nkind: Api\nmetadata: { name: ${name} }\nspec:\n  hosts: [${name}.test]\n  upstream: { service: echo }\n${spec}---\n`;
/** Each field comes from a Secret; the values are wrong in a way that drivers complain about. */
const component = (name: string, type: string, fields: Readonly<Record<string, string>>) =>
  `apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: { name: ${name} }\nspec: { type: ${type}, version: v1, metadata: [${Object.keys(fields)
    .map((field) => `{ name: ${field}, secretKeyRef: { name: ${name}, key: ${field} } }`)
    .join(', ')}] }\n---\n${secret(name, fields)}`;

describe('the secrets of a mesh', () => {
  let mesh: TestMesh;
  let gateway: RunningProxy;
  let echo: RunningProxy;
  let gatewayPort: number;
  let agent: https.Agent;
  const lines: string[] = [];
  /** Bytes of secrets, by a name for the failure. */
  const markers = new Map<string, string>();
  const files = () => homeFiles(mesh.home);

  /** Every form in which a secret could be shown: as it is, in base64 at any offset within something longer, encoded for URLs, in hex. */
  const formsOf = (value: string) => [
    ...[value, base64(value).replace(/=+$/, ''), encodeURIComponent(value), Buffer.from(value).toString('hex')],
    ...[1, 2].map((offset) => base64(`${'x'.repeat(offset)}${value}`).slice(4, -4)),
  ];
  const searched = new Set<string>();
  const found = (text: string): string[] => {
    if (searched.has(text)) return [];
    const names = [...markers].flatMap(([name, value]) => (formsOf(value).some((form) => text.includes(form)) ? [name] : []));
    if (names.length === 0) searched.add(text);
    return names;
  };

  const ask = (path: string, token: string, options: { method?: string; body?: string; accept?: string; type?: string } = {}) =>
    new Promise<{ status: number; body: string }>((resolve, reject) => {
      const { method = 'GET', body, accept, type = 'application/json' } = options;
      const headers = {
        authorization: `Bearer ${token}`,
        ...(accept === undefined ? {} : { accept }),
        ...(body === undefined ? {} : { 'content-type': type }),
      };
      const request = https.request({ host: '127.0.0.1', port: mesh.plane.apiPort, path, method, headers, agent });
      request.on('error', reject).on('response', (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => (text += chunk)).on('end', () => resolve({ status: response.statusCode ?? 0, body: text }));
      });
      request.end(body);
    });

  before(async () => {
    const logger = new Logger('test', 'debug', (line) => lines.push(line));
    mesh = await TestMesh.start({ logger });
    agent = new https.Agent({ keepAlive: true, maxSockets: 8, ca: readFileSync(files().rootCertificate) });
    const authority = new TestAuthority(mesh.home);
    const { cert, key } = authority.issue('edge', ['DNS:shop.test']);
    const other = authority.issue('other', ['DNS:other.test']);
    gatewayPort = await mesh.ports.next();
    const tlsPort = await mesh.ports.next();
    const secrets: Readonly<Record<string, Readonly<Record<string, string>>>> = {
      login: { client: mark('login-client'), cookie: mark('login-cookie'), short: 'MARKER-short-cookie' },
      partner: { token: mark('credential') },
      hmac: { key: mark('hmac') },
      acme: { 'tls.key': mark('acme-account') },
      unused: { password: mark('unused') },
      edge: { 'tls.crt': readFileSync(cert, 'utf8'), 'tls.key': readFileSync(key, 'utf8') },
      // A key that does not belong to its certificate, and one that is not a key: the proxy refuses them, and says why.
      mismatch: { 'tls.crt': readFileSync(cert, 'utf8'), 'tls.key': readFileSync(other.key, 'utf8') },
      garbage: { 'tls.crt': readFileSync(cert, 'utf8'), 'tls.key': `-----BEGIN PRIVATE KEY-----\n${mark('garbage-key')}\n-----END PRIVATE KEY-----\n` },
    };
    const components: Readonly<Record<string, readonly [string, Readonly<Record<string, string>>]>> = {
      redis: ['pubsub.redis', { redisHost: '127.0.0.1:1', redisPassword: mark('redis') }],
      'redis-url': ['pubsub.redis', { redisHost: `redis://user:${mark('redis-url')}@:no-port` }],
      rabbit: ['pubsub.rabbitmq', { connectionString: `amqp://user:${mark('rabbit')}@127.0.0.1:1/` }],
      'rabbit-url': ['pubsub.rabbitmq', { connectionString: `amqp://user:${mark('rabbit-url')}@[no` }],
      nats: ['pubsub.jetstream', { natsURL: `nats://user:${mark('nats')}@127.0.0.1:1`, token: mark('nats-token'), stream: 's' }],
      'nats-url': ['pubsub.jetstream', { natsURL: `nats://user:${mark('nats-url')}@[no`, stream: 's' }],
      embedded: ['pubsub.mizzen', { address: `127.0.0.1:${mark('embedded')}` }],
      number: ['pubsub.mizzen', { address: '127.0.0.1:1', plaintext: mark('number') }],
    };
    for (const [name, data] of [...Object.entries(secrets), ...Object.entries(components).map(([name, [, fields]]) => [name, fields] as const)])
      for (const [field, value] of Object.entries(data)) {
        const marked = /MARKER-[\w-]+/.exec(value)?.[0] ?? (field === 'tls.key' ? value.split('\n')[1]! : undefined);
        if (marked !== undefined) markers.set(`${name}/${field}`, marked);
      }
    const server = (number: number, name: string, more: string) =>
      `{ port: { number: ${number}, name: ${name}, protocol: HTTP${more === '' ? '' : 'S'} }, hosts: ['*']${more} }`;
    const tls = (credential: string) => `, tls: { mode: SIMPLE, credentialName: ${credential} }`;
    await mesh.apply(
      [
        service('echo'),
        ...Object.entries(secrets).map(([name, data]) => secret(name, data)),
        ...Object.entries(components).map(([name, [type, fields]]) => component(name, type, fields)),
        `apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: edge }\nspec:\n  selector: { app: gw }\n  servers: [${[
          server(gatewayPort, 'http', ''),
          server(tlsPort, 'https', tls('edge')),
          server(await mesh.ports.next(), 'mismatch', tls('mismatch')),
          server(await mesh.ports.next(), 'garbage', tls('garbage')),
        ].join(', ')}]\n---\n`,
        'apiVersion: mizzen.dev/v1alpha1\nkind: Consumer\nmetadata: { name: alice }\nspec: {}\n---\n',
        'apiVersion: mizzen.dev/v1alpha1\nkind: Credential\nmetadata: { name: alice }\nspec: { consumer: alice, hmac: { keyId: alice, secret: { name: hmac, key: key } } }\n---\n',
        api(
          'shop',
          '  placement: edge\n  gateways: [edge]\n  policies: { login: { issuer: "http://127.0.0.1:1", clientId: shop, clientSecret: { name: login, key: client }, cookieSecret: { name: login, key: cookie } } }\n',
        ),
        api(
          'short',
          '  placement: edge\n  gateways: [edge]\n  policies: { login: { issuer: "http://127.0.0.1:1", clientId: shop, cookieSecret: { name: login, key: short } } }\n',
        ),
        api(
          'signed',
          '  placement: both\n  gateways: [edge]\n  listener: { port: 9443, tls: { credentialName: edge } }\n  policies: { authentication: { hmac: {} } }\n',
        ),
        api('partner', '  placement: client\n  policies: { credential: { header: x-partner, secret: { name: partner, key: token } } }\n'),
      ].join(''),
    );
    const httpPort = await mesh.ports.next();
    echo = await mesh.workload('echo', {
      fields: {
        messaging: { appId: 'echo', httpPort, grpcPort: await mesh.ports.next(), app: undefined },
        publicPorts: [{ port: 9443, listen: `127.0.0.1:${await mesh.ports.next()}` }],
      },
    });
    gateway = await mesh.proxy('gw', { type: 'gateway', labels: { app: 'gw' } });
    await until(
      'the gateway',
      () => call({ port: gatewayPort, headers: { host: 'signed.test' } }),
      ({ status }) => status === 401,
    );
    // Everything that uses a secret uses it once.
    assert.equal((await call({ port: gatewayPort, headers: { host: 'shop.test', accept: 'text/html' } })).status, 503);
    const forged = { 'signature-input': 'a=("@method" "@authority" "@path");created=1;keyid="alice"', signature: 'a=:AAAA:' };
    assert.equal((await call({ port: gatewayPort, headers: { host: 'signed.test', ...forged } })).status, 401);
    const charged = await call({ port: echo.outboundPort, headers: { host: 'partner.test' } });
    assert.equal((JSON.parse(charged.body) as { headers: Record<string, string> }).headers['x-partner'], mark('credential'), 'the entitled sidecar has it');
    const health = await until(
      'the drivers',
      async () => (await call({ port: httpPort, path: '/v1.0/healthz' })).body,
      (body) =>
        ['redis:', 'rabbit:', 'rabbit-url:', 'nats:', 'nats-url:'].every((name) => body.includes(`${name} `) && !body.includes(`${name} not connected yet`)),
    );
    lines.push(health);
    // What cannot be used is refused, and each refusal says why.
    await mesh.apply(secret('login', { client: mark('login-client'), cookie: 'MARKER-changed-cookie', short: 'MARKER-short-cookie' }));
    markers.set('login/changed', 'MARKER-changed-cookie');
  });
  after(() => {
    agent?.destroy();
    return mesh?.close();
  });

  it('are not in any response of the API, in any role', async () => {
    const admin = readFileSync(files().adminToken, 'utf8').trim();
    const tokenFor = async (user: string, role: string, namespaces?: readonly string[]) =>
      (JSON.parse((await ask('/mizzen/v1/access', admin, { method: 'POST', body: JSON.stringify({ user, role, namespaces }) })).body) as { token: string })
        .token;
    const callers = [
      { role: 'viewer', token: await tokenFor('vera', 'viewer') },
      { role: 'viewer of default', token: await tokenFor('valentin', 'viewer', ['default']) },
      { role: 'operator', token: await tokenFor('otto', 'operator') },
      { role: 'admin', token: admin },
    ];
    const proxies = mesh.plane.pilot.proxies();
    const paths = new Set([
      ...[
        '/',
        '/api',
        '/apis',
        '/version',
        '/healthz',
        '/readyz',
        '/livez',
        '/metrics',
        '/openapi/v2',
        '/openapi/v3',
        '/openapi/v3/api/v1',
        '/.well-known/spiffe-bundle',
      ],
      ...['/mizzen/v1/proxies', '/mizzen/v1/findings', '/mizzen/v1/ca', '/mizzen/v1/secrets', '/mizzen/v1/config', '/debug/configz', '/logs'],
      ...proxies.flatMap(({ namespace, name }) =>
        ['cluster', 'endpoint', 'listener', 'route', 'secret', 'messaging', 'name-table', 'secrets', 'all', '%73ecret'].map(
          (type) => `/mizzen/v1/proxies/${namespace}/${name}/${type}`,
        ),
      ),
    ]);
    for (const { group, versions, plural, isNamespaced } of kinds) {
      const root = group === '' ? `/api/${versions[0]}` : `/apis/${group}/${versions[0]}`;
      paths.add(root).add(`${root}/${plural}`);
      if (isNamespaced) paths.add(`${root}/namespaces/default/${plural}`);
    }
    for (const name of ['login', 'partner', 'hmac', 'edge'])
      paths.add(`/api/v1/namespaces/default/secrets/${name}`).add(`/api/v1/namespaces/default/secrets/${name}/status`);
    for (const [plural, name] of [
      ['apis', 'shop'],
      ['apis', 'short'],
      ['credentials', 'alice'],
    ])
      for (const path of ['', '/status']) paths.add(`/apis/mizzen.dev/v1alpha1/namespaces/default/${plural}/${name}${path}`);
    let asked = 0;
    for (const { role, token } of callers) {
      const isViewer = role.startsWith('viewer');
      const requests = [...paths].flatMap((path) => [
        { path, accept: undefined },
        ...(path.startsWith('/api') && isViewer ? [{ path, accept: 'application/json;as=Table;v=v1;g=meta.k8s.io' }] : []),
      ]);
      await Promise.all(
        requests.map(async ({ path, accept }) => {
          // Those who may read Secrets are shown them where Secrets are read.
          if (!isViewer && /\/secrets(?:\/|$)/.test(path) && path.startsWith('/api/')) return;
          const { status, body } = await ask(path, token, accept === undefined ? {} : { accept });
          assert.deepEqual(found(body), [], `${role}: GET ${path} ${accept ?? ''} (${status})`);
          asked++;
        }),
      );
    }
    assert.ok(asked > 500, `${asked} requests`);
    assert.deepEqual(found((await ask('/api/v1/namespaces/default/secrets/hmac', admin)).body), ['hmac/key'], 'the search finds what is there');
    const [viewer] = callers;
    for (const [method, path, body] of [
      ['PUT', '/api/v1/namespaces/default/secrets/login', '{}'],
      ['DELETE', '/api/v1/namespaces/default/secrets/login', undefined],
      ['PATCH', '/api/v1/namespaces/default/secrets/login', '{"data":{"client":null}}'],
      ['POST', '/api/v1/namespaces/default/secrets', '{"kind":"Secret","apiVersion":"v1","metadata":{"name":"login"}}'],
      ['GET', '/api/v1/namespaces/default/secrets/login?watch=true', undefined],
      ['GET', '/api/v1/secrets?fieldSelector=metadata.name=login', undefined],
    ] as const)
      assert.deepEqual(found((await ask(path, viewer!.token, { method, ...(body === undefined ? {} : { body }) })).body), [], `${method} ${path}`);
  });

  it('are not shown to those who write other objects, in answers, findings and conflicts', async () => {
    const admin = readFileSync(files().adminToken, 'utf8').trim();
    const patch = (path: string, body: object, type = 'application/merge-patch+json') =>
      ask(path, admin, { method: 'PATCH', body: JSON.stringify(body), type });
    const shop = '/apis/mizzen.dev/v1alpha1/namespaces/default/apis/shop';
    const login = (more: object) => ({
      spec: { policies: { login: { issuer: 'http://127.0.0.1:1', clientId: 'shop', cookieSecret: { name: 'login', key: 'cookie' }, ...more } } },
    });
    for (const body of [
      login({ cookieSecret: { name: 'login', key: 'short' } }),
      login({ clientSecret: { name: 'login', key: 'nothing' } }),
      login({ issuer: 'no url' }),
    ]) {
      const answer = await patch(shop, body);
      assert.deepEqual(found(answer.body), [], answer.body);
    }
    // A Secret that is written wrongly: only its writer sees what they wrote.
    for (const body of [
      { data: { client: `${mark('login-client')}` } },
      { data: { client: 7, cookie: mark('login-cookie') } },
      { stringData: { client: [mark('login-client')] } },
    ])
      await patch('/api/v1/namespaces/default/secrets/login', body);
    await patch('/api/v1/namespaces/default/secrets/login', {
      metadata: { annotations: { 'kubectl.kubernetes.io/last-applied-configuration': JSON.stringify({ data: { client: base64(mark('login-client')) } }) } },
    });
    await patch(
      '/api/v1/namespaces/default/secrets/login?fieldManager=other',
      { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'login' }, data: { cookie: base64(mark('login-cookie')) } },
      'application/apply-patch+yaml',
    );
  });

  it('are not in any admin endpoint of a proxy, nor in mizzen proxy-config', async () => {
    for (const { adminPort } of [gateway, echo])
      for (const path of [
        '/',
        '/ready',
        '/stats/prometheus',
        '/config_dump',
        '/config_dump?include_eds',
        '/clusters',
        '/listeners',
        '/certs',
        '/secrets',
        '/server_info',
        '/memory',
        '/logging',
      ]) {
        const { body } = await call({ port: adminPort, path });
        assert.deepEqual(found(body), [], path);
      }
    const written: string[] = [];
    const { write } = process.stdout;
    for (const type of proxyConfigTypes)
      for (const [name, output] of [
        ['gw', 'json'],
        ['gw', undefined],
        ['echo', 'json'],
      ] as const) {
        process.stdout.write = ((text: string) => written.push(String(text)) > 0) as typeof write;
        try {
          await proxyConfig(type, name, { home: mesh.home, output } as never);
        } finally {
          process.stdout.write = write;
        }
      }
    assert.match(written.join(''), /mizzen:\/\/api\/default\/shop\/login\.cookie/, 'the name of a secret is shown');
    assert.deepEqual(found(written.join('')), []);
  });

  it('are not in any log: of processes, of requests, of changes, of certificates', () => {
    assert.ok(
      lines.some((line) => line.includes('MARKER') === false && /cannot be used|refused/.test(line)),
      'what could not be used was logged',
    );
    for (const line of lines) assert.deepEqual(found(line), [], line.slice(0, 2_000));
    for (const name of readdirSync(mesh.home, { recursive: true, encoding: 'utf8' }).filter((path) => /\.log$/.test(path))) {
      const text = readFileSync(join(mesh.home, name), 'utf8');
      assert.deepEqual(found(text), [], name);
    }
    assert.match(readFileSync(files().auditLog, 'utf8'), /"\(secret\)"/);
  });
});
