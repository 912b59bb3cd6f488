import assert from 'node:assert/strict';
import dgram from 'node:dgram';
import { once } from 'node:events';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { TestAuthority } from './support/certificates.ts';
import { RawClient } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const object = (kind: string, name: string, spec: string, more = '') =>
  `---\napiVersion: gateway.networking.k8s.io/v1\nkind: ${kind}\nmetadata: { name: ${name}${more} }\nspec:\n${spec}`;

interface Condition {
  readonly type: string;
  readonly status: string;
  readonly reason: string;
  readonly message: string;
  readonly observedGeneration: number;
}

describe('the Gateway API', () => {
  let mesh: TestMesh;
  let authority: TestAuthority;
  let ports: { http: number; https: number; tcp: number };
  const udpServers: dgram.Socket[] = [];
  let client: RunningProxy;
  const kind = (name: string) => findKind('gateway.networking.k8s.io', name)!;

  const statusOf = async (name: string, of: string, namespace = 'default') => {
    await mesh.plane.pilot.statusesWritten();
    return (await mesh.plane.registry.get(kind(of), namespace, name)).resource.status as {
      conditions?: Condition[];
      supportedFeatures?: { name: string }[];
      addresses?: { value: string }[];
      listeners?: { name: string; attachedRoutes: number; supportedKinds: { kind: string }[]; conditions: Condition[] }[];
      parents?: { controllerName: string; conditions: Condition[] }[];
      ancestors?: { conditions: Condition[] }[];
    };
  };
  const short = (conditions: readonly Condition[] | undefined) =>
    Object.fromEntries((conditions ?? []).map(({ type, status, reason }) => [type, `${status} ${reason}`]));
  const routeConditions = async (name: string, of = 'HTTPRoute') => short((await statusOf(name, of)).parents?.[0]?.conditions);
  const ask = async (path: string, headers: Record<string, string> = {}, method = 'GET', port = ports.http) => {
    const answer = await call({ port, path, method, headers: { host: 'shop.test', ...headers } });
    return {
      ...answer,
      echo: answer.body.startsWith('{') ? (JSON.parse(answer.body) as { name: string; url: string; headers: Record<string, string> }) : undefined,
    };
  };
  const route = (rules: string, more = '', name = 'shop') => object('HTTPRoute', name, `  parentRefs: [{ name: edge }]\n${more}  rules:\n${rules}`);

  before(async () => {
    mesh = await TestMesh.start();
    authority = new TestAuthority(mesh.home);
    for (const name of ['shop', 'stock']) {
      await mesh.apply(service(name));
      await mesh.workload(name);
    }
    client = await mesh.proxy('client');
    await client.proxy.ready;
    ports = { http: await mesh.ports.next(), https: await mesh.ports.next(), tcp: await mesh.ports.next() };
    const { cert, key } = authority.issue('secure', ['DNS:secure.test']);
    const base64 = (file: string) => Buffer.from(authority.pem(file)).toString('base64');
    await mesh.apply(
      [
        `apiVersion: v1\nkind: Secret\nmetadata: { name: secure }\ntype: kubernetes.io/tls\ndata: { tls.crt: ${base64(cert)}, tls.key: ${base64(key)} }\n`,
        object(
          'Gateway',
          'edge',
          `  gatewayClassName: mizzen\n  listeners:\n  - { name: http, port: ${ports.http}, protocol: HTTP }\n  - { name: secure, port: ${ports.https}, protocol: HTTPS, hostname: secure.test, tls: { certificateRefs: [{ name: secure }] } }\n  - { name: tcp, port: ${ports.tcp}, protocol: TCP }\n  - { name: broken, port: ${ports.https}, protocol: HTTPS, hostname: broken.test, tls: { certificateRefs: [{ name: nothing }] } }\n  - { name: udp, port: ${ports.tcp}, protocol: UDP }\n`,
        ),
      ].join(''),
    );
    assert.equal(short((await statusOf('edge', 'Gateway')).conditions)['Programmed'], 'False AddressNotAssigned');
    const gateway = await mesh.proxy('edge', { type: 'gateway', labels: { 'gateway.networking.k8s.io/gateway-name': 'edge' } });
    await mesh.apply(route('  - backendRefs: [{ name: shop, port: 9080 }]\n'));
    await gateway.proxy.ready;
    await mesh.synced();
  });
  after(() => {
    for (const socket of udpServers) socket.close();
    return mesh.close();
  });

  it('says what has become of a Gateway and its listeners', async () => {
    const { conditions, supportedFeatures } = await statusOf('mizzen', 'GatewayClass', '');
    assert.deepEqual(short(conditions), { Accepted: 'True Accepted' });
    assert.ok(supportedFeatures?.some(({ name }) => name === 'HTTPRouteRequestMirror'));
    const status = await statusOf('edge', 'Gateway');
    assert.deepEqual(short(status.conditions), { Accepted: 'True ListenersNotValid', Programmed: 'True Programmed' });
    assert.deepEqual(
      status.addresses?.map(({ value }) => value),
      ['127.0.0.1'],
    );
    const [http, , tcp, broken] = status.listeners!;
    assert.deepEqual([http!.name, http!.attachedRoutes, http!.supportedKinds.map((one) => one.kind)], ['http', 1, ['HTTPRoute', 'GRPCRoute']]);
    assert.deepEqual(short(http!.conditions), {
      Accepted: 'True Accepted',
      Conflicted: 'False NoConflicts',
      ResolvedRefs: 'True ResolvedRefs',
      Programmed: 'True Programmed',
    });
    assert.deepEqual(
      tcp!.supportedKinds.map((one) => one.kind),
      ['TCPRoute'],
    );
    assert.equal(short(broken!.conditions)['ResolvedRefs'], 'False InvalidCertificateRef');
    assert.ok(status.conditions!.every(({ observedGeneration }) => observedGeneration === 1));
    assert.deepEqual(await routeConditions('shop'), { Accepted: 'True Accepted', ResolvedRefs: 'True ResolvedRefs' });
    const { resource } = await mesh.plane.registry.get(kind('Gateway'), 'default', 'edge');
    const gateway = resource as never as { spec: object };
    const withAddresses = async (...values: string[]) => {
      const { resource: live } = await mesh.plane.registry.get(kind('Gateway'), 'default', 'edge');
      const spec = { ...gateway.spec, addresses: values.map((value) => ({ value })) };
      await mesh.plane.registry.update(kind('Gateway'), 'default', 'edge', { ...live, spec } as never, {
        manager: 'test',
        origin: { source: 'api', name: 'test' },
      });
      await mesh.plane.pilot.refresh();
      return statusOf('edge', 'Gateway');
    };
    const elsewhere = await withAddresses('127.0.0.1', '192.0.2.1');
    assert.match(
      elsewhere.conditions!.find(({ reason }) => reason === 'AddressNotUsable')!.message,
      /no proxy of this Gateway is at 192\.0\.2\.1; its proxies are at 127\.0\.0\.1/,
    );
    assert.equal(short((await withAddresses('127.0.0.1')).conditions)['Programmed'], 'True Programmed');
  });

  it('routes by path, method, headers and query parameters, the most specific first whatever the order', async () => {
    await mesh.apply(
      route(`
  - matches: [{ path: { value: / } }]
    backendRefs: [{ name: shop, port: 9080 }]
  - matches: [{ path: { value: /a } }, { path: { value: /b }, method: POST }]
    backendRefs: [{ name: stock, port: 9080 }]
  - matches: [{ path: { type: Exact, value: /a/exact } }, { path: { value: /a }, headers: [{ name: X-V, value: "2" }] }, { path: { value: /a }, queryParams: [{ name: q, value: "1" }] }]
    backendRefs: [{ name: shop, port: 9080 }]
  - matches: [{ path: { type: RegularExpression, value: "/r[0-9]+" } }]
    backendRefs: [{ name: stock, port: 9080 }]
`),
    );
    const to = async (...args: Parameters<typeof ask>) => (await ask(...args)).echo?.name;
    assert.deepEqual(
      [
        await to('/'),
        await to('/a'),
        await to('/a/x'),
        await to('/ab'),
        await to('/a/exact'),
        await to('/a/exact/x'),
        await to('/b'),
        await to('/b', {}, 'POST'),
      ],
      ['shop', 'stock', 'stock', 'shop', 'shop', 'stock', 'shop', 'stock'],
    );
    assert.deepEqual([await to('/a', { 'x-v': '2' }), await to('/a?q=1'), await to('/r42'), await to('/r42x')], ['shop', 'shop', 'stock', 'shop']);
  });

  it('changes headers, rewrites, redirects, mirrors and answers other origins', async () => {
    await mesh.apply(
      route(`
  - matches: [{ path: { value: /headers } }]
    filters:
    - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-set, value: "50%" }], remove: [x-gone] } }
    - { type: ResponseHeaderModifier, responseHeaderModifier: { add: [{ name: x-answer, value: "yes" }] } }
    backendRefs: [{ name: shop, port: 9080, filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { add: [{ name: x-backend, value: shop }] } }] }]
  - matches: [{ path: { value: /prefix } }]
    filters: [{ type: URLRewrite, urlRewrite: { hostname: inner.test, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new/ } } }]
    backendRefs: [{ name: shop, port: 9080 }]
  - matches: [{ path: { value: /strip } }]
    filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]
    backendRefs: [{ name: shop, port: 9080 }]
  - matches: [{ path: { value: /full } }]
    filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: /whole } } }]
    backendRefs: [{ name: shop, port: 9080 }]
  - matches: [{ path: { value: /moved } }]
    filters: [{ type: RequestRedirect, requestRedirect: { scheme: https, hostname: other.test, path: { type: ReplacePrefixMatch, replacePrefixMatch: /here }, statusCode: 301 } }]
  - matches: [{ path: { value: /port } }]
    filters: [{ type: RequestRedirect, requestRedirect: { port: 8443 } }]
  - matches: [{ path: { value: /any-origin } }]
    filters: [{ type: CORS, cors: { allowOrigins: ["*"], allowMethods: ["*"], allowHeaders: ["*"], allowCredentials: true } }]
    backendRefs: [{ name: shop, port: 9080 }]
  - matches: [{ path: { value: /cors } }]
    filters: [{ type: CORS, cors: { allowOrigins: ["https://*.page.test"], allowMethods: [GET, PUT], maxAge: 60 } }]
    backendRefs: [{ name: shop, port: 9080 }]
`),
    );
    const changed = await ask('/headers', { 'x-gone': '1' });
    assert.deepEqual(
      [changed.echo?.headers['x-set'], changed.echo?.headers['x-gone'], changed.echo?.headers['x-backend'], changed.headers['x-answer']],
      ['50%', undefined, 'shop', 'yes'],
    );
    const rewritten = await ask('/prefix/x?y=1');
    assert.deepEqual([rewritten.echo?.url, rewritten.echo?.headers['host']], ['/new/x?y=1', 'inner.test']);
    assert.deepEqual(
      [(await ask('/prefix')).echo?.url, (await ask('/strip/x')).echo?.url, (await ask('/strip')).echo?.url, (await ask('/full/x?y=1')).echo?.url],
      ['/new', '/x', '/', '/whole?y=1'],
    );
    const moved = await ask('/moved/x?y=1');
    assert.equal(moved.status, 301);
    assert.match(String(moved.headers['location']), /^https:\/\/other\.test(:443)?\/here\/x\?y=1$/);
    assert.deepEqual([(await ask('/port')).status, (await ask('/port')).headers['location']], [302, 'http://shop.test:8443/port']);
    const wildcard = await ask(
      '/any-origin',
      { origin: 'https://b.test', 'access-control-request-method': 'PATCH', 'access-control-request-headers': 'x-a, x-b' },
      'OPTIONS',
    );
    assert.deepEqual(
      ['origin', 'credentials', 'methods', 'headers'].map((field) => wildcard.headers[`access-control-allow-${field}`]),
      ['https://b.test', 'true', 'PATCH', 'x-a, x-b'],
    );
    const opaque = await ask('/any-origin', { origin: 'null', 'access-control-request-method': 'PATCH' }, 'OPTIONS');
    assert.equal(opaque.headers['access-control-allow-origin'], undefined);
    const preflight = await ask('/cors', { origin: 'https://a.page.test', 'access-control-request-method': 'PUT' }, 'OPTIONS');
    assert.deepEqual(
      [preflight.status, preflight.headers['access-control-allow-origin'], preflight.headers['access-control-max-age']],
      [200, 'https://a.page.test', '60'],
    );
  });

  it('shares by weight, and answers the share of what is not there with 500', async () => {
    await mesh.apply(
      route('  - backendRefs: [{ name: shop, port: 9080, weight: 1 }, { name: nobody, port: 80, weight: 1 }, { name: stock, port: 9080, weight: 0 }]\n'),
    );
    const counts = new Map<number, number>();
    for (let i = 0; i < 60; i++) {
      const { status } = await ask('/');
      counts.set(status, (counts.get(status) ?? 0) + 1);
    }
    assert.deepEqual([...counts.keys()].sort(), [200, 500]);
    assert.ok(counts.get(500)! > 10 && counts.get(500)! < 50, `${counts.get(500)} of 60 fail`);
    assert.deepEqual(await routeConditions('shop'), { Accepted: 'True Accepted', ResolvedRefs: 'False BackendNotFound' });
    await mesh.apply(route('  - backendRefs: [{ name: shop, namespace: other, port: 80 }]\n'));
    assert.equal((await routeConditions('shop'))['ResolvedRefs'], 'False RefNotPermitted');
    assert.equal((await ask('/')).status, 500);
    await mesh.apply(route('  - backendRefs: [{ kind: Pod, name: shop, port: 80 }]\n'));
    assert.equal((await routeConditions('shop'))['ResolvedRefs'], 'False InvalidKind');
  });

  it('lets back ends of other namespaces be used by a ReferenceGrant', async () => {
    await mesh.apply(
      `apiVersion: v1\nkind: Namespace\nmetadata: { name: other }\n---\n${service('far').replace('name: far }', 'name: far, namespace: other }')}${route('  - backendRefs: [{ name: far, namespace: other, port: 9080 }]\n')}`,
    );
    assert.equal((await routeConditions('shop'))['ResolvedRefs'], 'False RefNotPermitted');
    await mesh.apply(
      object(
        'ReferenceGrant',
        'in',
        '  from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default }]\n  to: [{ group: "", kind: Service }]\n',
        ', namespace: other',
      ),
    );
    assert.equal((await routeConditions('shop'))['ResolvedRefs'], 'True ResolvedRefs');
    assert.equal((await ask('/')).status, 503, 'it has no endpoints, but is allowed');
  });

  it('binds by host name, listener and namespace, and says why not', async () => {
    await mesh.apply(
      [
        route('  - backendRefs: [{ name: shop, port: 9080 }]\n', '  hostnames: [shop.test, "*.shop.test"]\n'),
        object(
          'HTTPRoute',
          'secure',
          '  parentRefs: [{ name: edge, sectionName: secure }]\n  hostnames: [secure.test]\n  rules: [{ backendRefs: [{ name: stock, port: 9080 }] }]\n',
        ),
        object(
          'HTTPRoute',
          'nowhere',
          '  parentRefs: [{ name: edge, sectionName: secure }]\n  hostnames: [other.test]\n  rules: [{ backendRefs: [{ name: stock, port: 9080 }] }]\n',
        ),
        object(
          'HTTPRoute',
          'foreign',
          '  parentRefs: [{ name: edge, namespace: default }]\n  rules: [{ backendRefs: [{ name: far, port: 9080 }] }]\n',
          ', namespace: other',
        ),
        object('HTTPRoute', 'lost', '  parentRefs: [{ name: edge, sectionName: none }]\n  rules: [{ backendRefs: [{ name: stock, port: 9080 }] }]\n'),
        object(
          'HTTPRoute',
          'odd',
          '  parentRefs: [{ name: edge }]\n  rules: [{ filters: [{ type: ExtensionRef, extensionRef: { group: a, kind: B, name: c } }], backendRefs: [{ name: stock, port: 9080 }] }]\n',
        ),
      ].join(''),
    );
    assert.deepEqual(
      [(await ask('/')).status, (await ask('/', { host: 'a.shop.test' })).status, (await ask('/', { host: 'else.test' })).status],
      [200, 200, 404],
    );
    const secure = await new Promise<string>((resolve, reject) => {
      https
        .get(
          { port: ports.https, host: '127.0.0.1', servername: 'secure.test', headers: { host: 'secure.test' }, ca: authority.pem(authority.certificate) },
          (response) => {
            let text = '';
            response.on('data', (chunk) => (text += chunk));
            response.on('end', () => resolve(text));
          },
        )
        .on('error', reject);
    });
    assert.equal(JSON.parse(secure).name, 'stock');
    assert.equal((await routeConditions('nowhere'))['Accepted'], 'False NoMatchingListenerHostname');
    assert.equal((await routeConditions('lost'))['Accepted'], 'False NoMatchingParent');
    assert.equal((await routeConditions('odd'))['Accepted'], 'False UnsupportedValue');
    assert.equal(short((await statusOf('foreign', 'HTTPRoute', 'other')).parents?.[0]?.conditions)['Accepted'], 'False NotAllowedByListeners');
    assert.deepEqual(
      (await statusOf('edge', 'Gateway')).listeners?.map(({ attachedRoutes }) => attachedRoutes),
      [1, 1, 0, 0, 0],
    );
  });

  it('carries bytes of a TCPRoute', async () => {
    await mesh.apply(
      object('TCPRoute', 'bytes', '  parentRefs: [{ name: edge, sectionName: tcp }]\n  rules: [{ backendRefs: [{ name: shop, port: 9080 }] }]\n'),
    );
    const socket = new RawClient(ports.tcp).write('GET /bytes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n');
    assert.match(await socket.closed(), /"url":"\/bytes"/);
  });

  it('accepts and closes the connections of a TCPRoute whose back end does not exist, and serves all other listeners', async () => {
    const route = (name: string) =>
      object('TCPRoute', 'bytes', `  parentRefs: [{ name: edge, sectionName: tcp }]\n  rules: [{ backendRefs: [{ name: ${name}, port: 9080 }] }]\n`);
    await mesh.apply(route('missing'));
    const { state, types } = mesh.plane.pilot.proxies().find(({ type }) => type === 'gateway')!;
    assert.equal(state, 'synced', JSON.stringify(types));
    const socket = new RawClient(ports.tcp).write('GET /bytes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n');
    assert.equal(await socket.closed(), '');
    await mesh.apply(route('shop'));
  });

  it('carries the datagrams of a UDPRoute, each client’s to one back end, chosen by weight', async () => {
    const echo = async (name: string) => {
      const server = dgram.createSocket('udp4');
      udpServers.push(server);
      server.on('message', (data, from) => server.send(`${name}: ${data}`, from.port, from.address));
      server.bind(0, '127.0.0.1');
      await once(server, 'listening');
      return server.address().port;
    };
    for (const name of ['one', 'two'])
      await mesh.apply(
        `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: ${name} }\nspec:\n  hosts: [${name}.test]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{ number: 53, name: dns, protocol: UDP, targetPort: ${await echo(name)} }]\n  endpoints: [{ address: 127.0.0.1 }]\n`,
      );
    const backend = (name: string, weight: number) => `{ group: networking.istio.io, kind: Hostname, name: ${name}.test, port: 53, weight: ${weight} }`;
    const udpRoute = (backends: string, parent = 'name: edge, sectionName: udp') =>
      object('UDPRoute', 'datagrams', `  parentRefs: [{ ${parent} }]\n  rules: [{ backendRefs: [${backends}] }]\n`);
    await mesh.apply(udpRoute(`${backend('one', 3)}, ${backend('two', 1)}`));
    assert.deepEqual(await routeConditions('datagrams', 'UDPRoute'), { Accepted: 'True Accepted', ResolvedRefs: 'True ResolvedRefs' });
    const sessions = await Promise.all(
      Array.from({ length: 60 }, async () => {
        const socket = dgram.createSocket('udp4');
        udpServers.push(socket);
        const answers: string[] = [];
        for (const text of ['a', 'b']) {
          socket.send(text, ports.tcp, '127.0.0.1');
          answers.push(String((await once(socket, 'message'))[0]));
        }
        return answers;
      }),
    );
    for (const [first, second] of sessions) assert.equal(second, first!.replace(/a$/, 'b'), 'a session stays where it is');
    const ofTwo = sessions.filter(([first]) => first === 'two: a').length;
    assert.ok(ofTwo > 3 && ofTwo < 30, `${ofTwo} of 60`);
    await mesh.apply(udpRoute(backend('one', 1), 'group: "", kind: Service, name: shop'));
    assert.equal((await routeConditions('datagrams', 'UDPRoute'))['Accepted'], 'False UnsupportedValue');
  });

  it('takes listeners of ListenerSets that the Gateway lets in', async () => {
    const port = await mesh.ports.next();
    await mesh.apply(object('ListenerSet', 'more', `  parentRef: { name: edge }\n  listeners: [{ name: extra, port: ${port}, protocol: HTTP }]\n`));
    assert.deepEqual(short((await statusOf('more', 'ListenerSet')).conditions), { Accepted: 'False NotAllowed', Programmed: 'False NotAllowed' });
    const gateway = (await mesh.plane.registry.get(kind('Gateway'), 'default', 'edge')).resource as never as { spec: object };
    await mesh.plane.registry.update(
      kind('Gateway'),
      'default',
      'edge',
      { ...gateway, spec: { ...gateway.spec, allowedListeners: { namespaces: { from: 'Same' } } } },
      { manager: 'test', origin: { source: 'api', name: 'test' } },
    );
    await mesh.apply(
      object('HTTPRoute', 'more', '  parentRefs: [{ kind: ListenerSet, name: more }]\n  rules: [{ backendRefs: [{ name: stock, port: 9080 }] }]\n'),
    );
    assert.deepEqual(short((await statusOf('more', 'ListenerSet')).conditions), { Accepted: 'True Accepted', Programmed: 'True Programmed' });
    await until(
      'the new listener answers',
      () => ask('/', {}, 'GET', port).catch(() => undefined),
      (answer) => answer?.echo?.name === 'stock',
    );
  });

  it('speaks TLS to back ends that say so, to those whose certificate is right', async () => {
    const { cert, key } = authority.issue('backend', ['DNS:backend.test']);
    const server = https
      .createServer({ cert: authority.pem(cert), key: authority.pem(key) }, (_request, response) => response.end('over TLS'))
      .listen(0, '127.0.0.1');
    await new Promise((resolve) => server.on('listening', resolve));
    mesh.onClose(async () => {
      server.closeAllConnections();
      server.close();
    });
    const policy = (hostname: string) =>
      object(
        'BackendTLSPolicy',
        'backend',
        `  targetRefs: [{ group: "", kind: Service, name: backend }]\n  validation: { hostname: ${hostname}, caCertificateRefs: [{ group: "", kind: ConfigMap, name: roots }] }\n`,
      );
    await mesh.apply(
      [
        `apiVersion: v1\nkind: ConfigMap\nmetadata: { name: roots }\ndata:\n  ca.crt: ${JSON.stringify(authority.pem(authority.certificate).toString())}\n`,
        '---\napiVersion: v1\nkind: Service\nmetadata: { name: backend }\nspec: { ports: [{ name: http, port: 443 }] }\n',
        `---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: { name: backend, labels: { kubernetes.io/service-name: backend } }\naddressType: IPv4\nports: [{ name: http, port: ${(server.address() as AddressInfo).port} }]\nendpoints: [{ addresses: [127.0.0.1] }]\n`,
        route('  - backendRefs: [{ name: backend, port: 443 }]\n'),
        policy('backend.test'),
      ].join(''),
    );
    assert.equal((await ask('/')).body, 'over TLS');
    assert.deepEqual(short((await statusOf('backend', 'BackendTLSPolicy')).ancestors?.[0]?.conditions), {
      Accepted: 'True Accepted',
      ResolvedRefs: 'True ResolvedRefs',
    });
    await mesh.apply(policy('somebody-else.test'));
    assert.equal((await ask('/')).status, 503);
  });

  it('routes within the mesh: by the service’s own namespace for all, by another for its own callers', async () => {
    await mesh.apply(
      object(
        'HTTPRoute',
        'mesh',
        '  parentRefs: [{ group: "", kind: Service, name: shop, port: 9080 }]\n  rules:\n  - matches: [{ path: { value: /old } }]\n    backendRefs: [{ name: stock, port: 9080 }]\n  - backendRefs: [{ name: shop, port: 9080 }]\n',
      ),
    );
    const within = async (path: string) => JSON.parse((await call({ port: client.outboundPort, path, headers: { host: 'shop:9080' } })).body).name as string;
    assert.deepEqual([await within('/old/x'), await within('/new')], ['stock', 'shop']);
    assert.deepEqual(await routeConditions('mesh'), { Accepted: 'True Accepted', ResolvedRefs: 'True ResolvedRefs' });
    await mesh.apply(
      object(
        'GRPCRoute',
        'mesh-grpc',
        '  parentRefs: [{ group: "", kind: Service, name: shop }]\n  rules: [{ matches: [{ method: { service: a.B, method: C } }], backendRefs: [{ name: stock, port: 9080 }] }]\n',
      ),
    );
    assert.equal((await routeConditions('mesh-grpc', 'GRPCRoute'))['Accepted'], 'True Accepted');
  });
});
