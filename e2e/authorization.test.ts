import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import net, { type AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { authorizationServers } from './support/authorization-servers.ts';
import { RawClient } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const policy = (spec: string, more = '', name = 'shop') =>
  `---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: ${name}${more} }\nspec:\n${spec}`;

/** A service outside of the mesh, on this machine. */
const external = (name: string, port: number, portName: string) =>
  `---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: ${name} }\nspec:\n  hosts: [${name}.example]\n  resolution: STATIC\n  ports: [{ number: ${port}, name: ${portName}, protocol: ${portName.toUpperCase()} }]\n  endpoints: [{ address: 127.0.0.1 }]\n`;

describe('AuthorizationPolicy', () => {
  let mesh: TestMesh;
  let shop: RunningProxy;
  let anna: RunningProxy;
  let bert: RunningProxy;
  const names = new Set<string>();

  const ask = async (from: RunningProxy, path = '/', headers: Record<string, string> = {}, method = 'GET') =>
    (await call({ port: from.outboundPort, path, method, headers: { host: 'shop:9080', ...headers } })).status;
  const apply = async (yaml: string) => {
    for (const [, name] of yaml.matchAll(/metadata: \{ name: ([\w-]+)/g)) names.add(name!);
    await mesh.apply(yaml);
  };
  const remove = async () => {
    const { findKind } = await import('@mizzen/api');
    for (const name of names)
      await mesh.plane.registry.delete(findKind('security.istio.io', 'AuthorizationPolicy')!, 'default', name, { manager: 'test' } as never);
    names.clear();
    await mesh.plane.pilot.refresh();
    await mesh.synced();
  };
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('shop'));
    shop = await mesh.workload('shop');
    anna = await mesh.proxy('anna', { serviceAccount: 'anna' });
    bert = await mesh.proxy('bert', { serviceAccount: 'bert' });
    await Promise.all([anna.proxy.ready, bert.proxy.ready]);
    await mesh.synced();
  });
  after(() => mesh.close());

  it('lets in whom a policy allows, and nobody else once there is one', async () => {
    assert.deepEqual([await ask(anna), await ask(bert)], [200, 200]);
    await apply(
      policy(
        '  rules: [{ from: [{ source: { principals: [cluster.local/ns/default/sa/anna] } }], to: [{ operation: { methods: [GET], paths: ["/a*"] } }] }]\n',
      ),
    );
    assert.deepEqual([await ask(anna, '/a/b'), await ask(anna, '/b'), await ask(anna, '/a', {}, 'POST'), await ask(bert, '/a')], [200, 403, 403, 403]);
    const refused = await call({ port: bert.outboundPort, headers: { host: 'shop:9080' } });
    assert.equal(refused.body, 'RBAC: access denied');
    await until(
      'the access log says why',
      async () => readFileSync(shop.config.accessLogFile!, 'utf8'),
      (text) => text.includes('rbac_access_denied_matched_policy[none]'),
    );
    // Whoever has no identity is not anna.
    assert.equal((await call({ port: shop.inboundPort, path: '/a', headers: { host: 'shop' } })).status, 403);
    await remove();
    assert.equal(await ask(bert), 200);
  });

  it('is nobody with an empty ALLOW, everybody with an empty rule, and DENY comes first', async () => {
    await apply(policy('  {}\n'));
    assert.deepEqual([await ask(anna), await ask(bert)], [403, 403]);
    await apply(policy('  rules: [{}]\n'));
    assert.deepEqual([await ask(anna), await ask(bert)], [200, 200]);
    await apply(
      policy(
        '  action: DENY\n  rules: [{ from: [{ source: { serviceAccounts: [bert] } }], to: [{ operation: { notPaths: ["/public/{**}"] } }] }]\n',
        '',
        'no-bert',
      ),
    );
    assert.deepEqual([await ask(anna), await ask(bert), await ask(bert, '/public/x')], [200, 403, 200]);
    await remove();
  });

  it('counts what a dry run would decide, and decides nothing by it', async () => {
    await apply(policy('  action: DENY\n  rules: [{ from: [{ source: { serviceAccounts: [bert] } }] }]\n', ', annotations: { istio.io/dry-run: "true" }'));
    assert.deepEqual([await ask(anna), await ask(bert)], [200, 200]);
    const metrics = (await call({ port: shop.adminPort, path: '/stats/prometheus' })).body;
    assert.match(metrics, /authorization_decisions_total\{action="DENY",mode="shadow",result="denied"\} 1/);
    await remove();
  });

  it('holds for bytes: what is about requests lets nobody in there, and keeps more out', async () => {
    await mesh.apply(service('bytes', 'tcp', 9000));
    const app = net.createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1');
    await once(app, 'listening');
    const listen = await mesh.ports.next();
    const bytes = await mesh.proxy('bytes', {
      registers: true,
      inbound: [{ name: 'tcp', port: 9000, listen: `127.0.0.1:${listen}`, app: `127.0.0.1:${(app.address() as AddressInfo).port}` }],
    });
    await bytes.proxy.ready;
    const echoes = async () => {
      const socket = net.connect(listen, '127.0.0.1');
      socket.on('error', () => {});
      socket.write('hello');
      const answer = await Promise.race([once(socket, 'data').then(([data]) => String(data)), once(socket, 'close').then(() => 'closed')]);
      socket.destroy();
      return answer;
    };
    const bytesPolicy = (spec: string) => apply(policy(`  selector: { matchLabels: { app: bytes } }\n${spec}`, '', 'bytes'));
    assert.equal(await echoes(), 'hello');
    await bytesPolicy('  rules: [{ from: [{ source: { ipBlocks: [127.0.0.0/8] } }], to: [{ operation: { ports: ["9000"] } }] }]\n');
    assert.equal(await echoes(), 'hello');
    await bytesPolicy('  rules: [{ from: [{ source: { ipBlocks: [127.0.0.0/8] } }], to: [{ operation: { methods: [GET] } }] }]\n');
    assert.equal(await echoes(), 'closed', 'nobody knows the method');
    await bytesPolicy('  action: DENY\n  rules: [{ to: [{ operation: { methods: [GET] } }] }]\n');
    assert.equal(await echoes(), 'closed', 'nobody knows that it is not that method');
    assert.match(mesh.plane.pilot.findings.find(({ code }) => code === 'MZ0011')!.message, /rule 0 denies every connection to ports without HTTP/);
    await bytesPolicy('  action: DENY\n  rules: [{ to: [{ operation: { methods: [GET], ports: ["9001"] } }] }]\n');
    assert.equal(await echoes(), 'hello');
    await bytesPolicy('  rules: [{ from: [{ source: { principals: ["*"] } }] }]\n');
    assert.equal(await echoes(), 'closed', 'plain text proves nothing');
    app.close();
    await remove();
  });

  it('asks somebody else about connections, too, with who it is and nothing of what is said', async () => {
    const servers = await authorizationServers();
    await mesh.apply(service('ledger', 'tcp', 9001));
    const app = net.createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1');
    await once(app, 'listening');
    await mesh.sidecar('ledger', (app.address() as AddressInfo).port, { name: 'tcp', port: 9001 });
    const echoes = async (from: RunningProxy) => {
      const socket = new RawClient(from.outboundPort).write('CONNECT ledger:9001 HTTP/1.1\r\nhost: ledger:9001\r\n\r\n');
      const opened = await socket.until(/\r\n\r\n/).catch(() => '');
      socket.write('hello');
      const answer = await socket.until(/hello$/).then(
        () => 'hello',
        () => 'closed',
      );
      socket.destroy();
      return opened === '' ? 'closed' : answer;
    };
    const ask = (provider: string, rules = 'rules: [{ to: [{ operation: { ports: ["9001"] } }] }]') =>
      apply(policy(`  selector: { matchLabels: { app: ledger } }\n  action: CUSTOM\n  provider: { name: ${provider} }\n  ${rules}\n`, '', 'ledger'));
    try {
      await mesh.apply(`${external('decider', servers.grpcPort, 'grpc')}---
apiVersion: v1
kind: ConfigMap
metadata: { name: istio, namespace: istio-system }
data:
  mesh: |
    extensionProviders:
    - name: decider
      envoyExtAuthzGrpc: { service: decider.example, port: ${servers.grpcPort}, timeout: 1s }
    - name: open
      envoyExtAuthzGrpc: { service: decider.example, port: ${servers.grpcPort}, timeout: 1s, failOpen: true }
    - name: web
      envoyExtAuthzHttp: { service: decider.example, port: ${servers.grpcPort} }
`);
      await ask('decider');
      assert.deepEqual([await echoes(anna), await echoes(bert)], ['hello', 'closed']);
      const { source, destination, request } = servers.grpcRequests.at(-1)!.attributes!;
      assert.deepEqual(
        [source!.principal, destination!.principal, request?.http],
        ['spiffe://cluster.local/ns/default/sa/bert', 'spiffe://cluster.local/ns/default/sa/ledger', undefined],
      );
      const count = servers.grpcRequests.length;
      await ask('decider', 'rules: [{ to: [{ operation: { ports: ["9002"] } }] }]');
      assert.deepEqual([await echoes(bert), servers.grpcRequests.length], ['hello', count], 'whom no rule is for nobody is asked about');
      await ask('web');
      assert.equal(await echoes(anna), 'hello', 'a provider by HTTP decides about requests only, as in Istio');
      assert.ok(
        mesh.plane.pilot.findings.some(({ code }) => code === 'MZ0014'),
        'which the writer is warned of',
      );
      await ask('open');
      servers.close();
      assert.equal(await echoes(bert), 'hello', 'no answer is yes only where it was said');
      await ask('decider');
      assert.equal(await echoes(anna), 'closed', 'no answer is no');
    } finally {
      servers.close();
      app.close();
    }
    await remove();
  });

  it('of one port only, by the number that the workload knows it by', async () => {
    await apply(policy('  action: DENY\n  rules: [{ to: [{ operation: { ports: ["9080"] } }] }]\n'));
    assert.equal(await ask(anna), 403);
    await apply(policy('  action: DENY\n  rules: [{ to: [{ operation: { ports: ["9081"] } }] }]\n'));
    assert.equal(await ask(anna), 200);
    await remove();
  });

  it('is not passed by writing the same thing differently', async () => {
    await apply(
      policy(
        '  action: DENY\n  rules: [{ to: [{ operation: { paths: ["/admin", "/admin/*"] } }] }, { to: [{ operation: { hosts: [secret.example], methods: [DELETE] } }] }]\n',
      ),
    );
    const raw = async (target: string, host = 'shop', method = 'GET') =>
      Number(
        /^HTTP\/1\.1 (\d+)/.exec(
          await new RawClient(shop.inboundPort).write(`${method} ${target} HTTP/1.1\r\nhost: ${host}\r\nconnection: close\r\n\r\n`).closed(),
        )?.[1],
      );
    for (const target of [
      '/admin',
      '/%61dmin',
      '/admin/',
      '//admin',
      '/./admin',
      '/x/../admin',
      '/x/%2e%2e/admin',
      '/admin?',
      '/admin?x',
      '/admin#x',
      '/admin/x',
      '/%61dmin/x',
    ])
      assert.ok([403, 400].includes(await raw(target)), `${target} is not let through`);
    for (const target of ['/admin%2f', '/admin%00', '\\admin', '/\\admin']) assert.notEqual(await raw(target), undefined, target);
    for (const host of ['secret.example', 'SECRET.example', 'Secret.Example']) assert.equal(await raw('/', host, 'DELETE'), 403, host);
    assert.equal(await raw('/public'), 200);
    assert.equal(await raw('/', 'secret.example', 'delete'), 400, 'methods are written in capitals');
    // A servlet container drops parameters, and some decode overlong UTF-8.
    for (const target of ['/admin;a=b', '/;/admin', '/x%2f..%2fadmin', '/%c0%afadmin', '/%e0%80%afadmin']) assert.equal(await raw(target), 403, target);
    assert.equal(await raw('/public;a=b/x%2Fadmin'), 200);
    await remove();
  });

  it('is not passed by a host with a port or a dot at its end: the policy says both, or a finding says that it does not', async () => {
    const denied = (...hosts: readonly string[]) => apply(policy(`  action: DENY\n  rules: [{ to: [{ operation: { hosts: ${JSON.stringify(hosts)} } }] }]\n`));
    const status = async (host: string) => (await call({ port: shop.inboundPort, headers: { host } })).status;
    const finding = () => mesh.plane.pilot.findings.find(({ code }) => code === 'MZ0012')?.message;
    await denied('secret.example');
    assert.deepEqual([await status('secret.example'), await status('secret.example:9080'), await status('secret.example.')], [403, 200, 200]);
    assert.match(finding()!, /who writes secret\.example:80 or secret\.example\. is not denied.*Add "secret\.example:\*" and "secret\.example\.\*"/);
    await denied('secret.example', 'secret.example:*', 'secret.example.*');
    for (const host of ['secret.example', 'SECRET.example:9080', 'secret.example.', 'secret.example.:9080']) assert.equal(await status(host), 403, host);
    assert.equal(finding(), undefined);
    await remove();
  });

  it('is not passed by a header that is there twice, whichever of them is the bad one', async () => {
    await apply(policy('  action: DENY\n  rules: [{ when: [{ key: "request.headers[x-role]", values: [bad] }] }]\n'));
    const status = async (...lines: readonly string[]) => {
      const head = ['GET / HTTP/1.1', 'host: shop', ...lines, 'connection: close', '', ''].join('\r\n');
      return Number(/^HTTP\/1\.1 (\d+)/.exec(await new RawClient(shop.inboundPort).write(head).closed())?.[1]);
    };
    for (const lines of [['x-role: bad'], ['X-ROLE:   bad  '], ['x-role: good', 'x-role: bad'], ['x-role: bad', 'x-role: good']])
      assert.equal(await status(...lines), 403, lines.join(', '));
    assert.deepEqual([await status('x-role: good'), await status('x_role: bad')], [200, 200], 'another name is another header');
    await remove();
  });

  it('asks somebody else where a policy says so, and denies where nobody can be asked', async () => {
    const servers = await authorizationServers();
    try {
      await apply(policy('  action: CUSTOM\n  provider: { name: opa }\n  rules: [{ to: [{ operation: { paths: ["/asked*"] } }] }]\n'));
      assert.deepEqual([await ask(anna, '/asked'), await ask(anna, '/')], [403, 200]);
      assert.match(mesh.plane.pilot.findings.find(({ code }) => code === 'MZ0010')!.message, /nobody can be asked: "opa" is no extensionProvider of the mesh/);
      await mesh.apply(`${external('authz-grpc', servers.grpcPort, 'grpc')}${external('authz-http', servers.httpPort, 'http')}---
apiVersion: v1
kind: ConfigMap
metadata: { name: istio, namespace: istio-system }
data:
  mesh: |
    extensionProviders:
    - name: opa
      envoyExtAuthzGrpc: { service: authz-grpc.example, port: ${servers.grpcPort}, timeout: 1s, includeRequestBodyInCheck: { maxRequestBytes: 10, allowPartialMessage: true } }
    - name: web
      envoyExtAuthzHttp:
        service: authz-http.example
        port: ${servers.httpPort}
        timeout: 1s
        includeRequestHeadersInCheck: [x-decide]
        headersToUpstreamOnAllow: [x-user]
        includeRequestBodyInCheck: { maxRequestBytes: 100 }
`);
      for (const provider of ['opa', 'web']) {
        await apply(policy(`  action: CUSTOM\n  provider: { name: ${provider} }\n  rules: [{ to: [{ operation: { paths: ["/asked*"] } }] }]\n`));
        const asked = servers.grpcRequests.length + servers.httpRequests.length;
        assert.equal(await ask(anna, '/not', { 'x-decide': 'deny' }), 200);
        assert.equal(servers.grpcRequests.length + servers.httpRequests.length, asked, 'what no rule is for nobody is asked about');
        const allowed = await call({ port: anna.outboundPort, path: '/asked', headers: { host: 'shop:9080', 'x-user': 'root' } });
        assert.equal((JSON.parse(allowed.body) as { headers: Record<string, string> }).headers['x-user'], 'anna');
        const denied = await call({ port: anna.outboundPort, path: '/asked', headers: { host: 'shop:9080', 'x-decide': 'deny' } });
        assert.deepEqual([denied.status, denied.body], [401, 'not you']);
        const body = 'twenty bytes of text';
        const posted = await call({ port: anna.outboundPort, path: '/asked', method: 'POST', headers: { host: 'shop:9080' }, body });
        assert.equal((JSON.parse(posted.body) as { body: string }).body, body, 'the service has all of it');
      }
      await apply(policy('  action: CUSTOM\n  provider: { name: opa }\n  rules: [{ to: [{ operation: { paths: ["/asked*"] } }] }]\n'));
      const forged = await call({ port: anna.outboundPort, path: '/asked?secret=1&page=2', headers: { host: 'shop:9080', 'x-decide': 'forge' } });
      const seen = JSON.parse(forged.body) as { url: string; headers: Record<string, string> };
      assert.equal(seen.url, '/asked?page=2&user=anna%0D%0A');
      // The application reads header bytes as latin1, and so does the client its answer.
      const utf8 = (bytes: string) => Buffer.from(bytes, 'latin1').toString();
      const text = (name: string) => utf8(utf8(seen.headers[name] ?? ''));
      assert.deepEqual([text('x-city'), text('x-user')], ['München 日本', 'xčĊčĊGET /admin HTTP/1.1čĊ']);
      assert.deepEqual([seen.headers['x-forged'], seen.headers['x-evil']], [undefined, undefined]);
      const denial = await call({ port: anna.outboundPort, path: '/asked', headers: { host: 'shop:9080', 'x-decide': 'forge-denial' } });
      assert.deepEqual([denial.status, denial.body, denial.headers['transfer-encoding'], denial.headers['content-length']], [403, 'not you', undefined, '7']);
      await call({ port: anna.outboundPort, path: '/asked', method: 'POST', headers: { host: 'shop:9080' }, body: 'twenty bytes of text' });
      const told = servers.grpcRequests.at(-1)!.attributes!.request!.http!;
      assert.deepEqual([told.body, told.headers['x-envoy-auth-partial-body']], ['twenty byt', 'true']);
      assert.equal(servers.grpcRequests.at(-1)!.attributes!.source!.principal, 'spiffe://cluster.local/ns/default/sa/anna');
      assert.equal(servers.httpRequests.at(-1)!.body, 'twenty bytes of text');
      await apply(policy('  action: CUSTOM\n  provider: { name: web }\n  rules: [{ to: [{ operation: { paths: ["/asked*"] } }] }]\n'));
      const large = await call({ port: anna.outboundPort, path: '/asked', method: 'POST', headers: { host: 'shop:9080' }, body: 'x'.repeat(200) });
      assert.equal(large.status, 413);
      for (const status of ['99', '099', '101', '199', '600', '999', '1000000000', '-1', '2e2', '200.5'])
        assert.equal(await ask(anna, '/asked', { 'x-decide': `raw ${status}` }), 403, `the service answers with status ${status}`);
      assert.equal(await ask(anna, '/asked', { 'x-decide': 'raw 200' }), 200);
    } finally {
      servers.close();
    }
    assert.equal(await ask(anna, '/asked'), 403, 'no answer is no');
    await remove();
  });

  it('refuses what it does not understand, with the place', async () => {
    const wrong = (spec: string, message: RegExp) => assert.rejects(mesh.apply(policy(spec)), message);
    await wrong(
      '  rules: [{ from: [{ source: { ipBlocks: [10.0.0.0/33] } }] }]\n',
      /spec\.rules\[0\]\.from\[0\]\.source\.ipBlocks\[0\]: "10\.0\.0\.0\/33" is not an address/,
    );
    await wrong('  rules: [{ when: [{ key: "request.header[x]", values: [a] }] }]\n', /the attribute "request\.header\[x\]" is not known\. Known: source\.ip/);
    await wrong('  rules: [{ to: [{ operation: { paths: ["/a/{**}/b"] } }] }]\n', /\{\*\*\} stands for all that follows/);
    await wrong('  rules: [{ to: [] }]\n', /nothing is listed: leave it out for everything/);
    await wrong('  action: DENY\n', /without rules a policy with the action DENY does nothing/);
    await wrong('  rules: [{ from: [{ source: { principal: [x] } }] }]\n', /unknown field "principal": did you mean "principals"\?/);
  });
});
