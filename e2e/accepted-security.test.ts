import assert from 'node:assert/strict';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import https from 'node:https';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { connect } from 'node:tls';
import { findKind } from '@mizzen/api';
import { write } from './support/api.ts';
import { TestAuthority } from './support/certificates.ts';
import { call, until } from './support/http.ts';
import { service, TestMesh } from './support/mesh.ts';

const gatewayApi = (kind: string, name: string, spec: string) =>
  `---\napiVersion: gateway.networking.k8s.io/v1\nkind: ${kind}\nmetadata: { name: ${name} }\nspec: ${spec}\n`;
const policy = (name: string, spec: string, annotations = '{}') =>
  `---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: ${name}, annotations: ${annotations} }\nspec: ${spec}\n`;

describe('security that is accepted', () => {
  let mesh: TestMesh;
  let shopPort: number;
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('shop'));
    shopPort = (await mesh.workload('shop')).inboundPort;
  });
  after(() => mesh.close());
  const conditionsOf = async (name: string) => {
    await mesh.plane.pilot.statusesWritten();
    const { resource } = await mesh.plane.registry.get(findKind('security.istio.io', 'AuthorizationPolicy')!, 'default', name);
    return (resource.status as { conditions?: { type: string; status: string; reason: string }[] } | undefined)?.conditions ?? [];
  };

  it('warns the writer of a policy whose target does not exist yet, and enforces it from the first request of the target', async () => {
    const written = await write(
      mesh,
      policy('early', '{ action: DENY, targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: late }], rules: [{}] }'),
    );
    assert.ok(written.status < 300, written.message);
    assert.match(written.warnings.join(), /the Gateway default\/late does not exist, so nothing is enforced there/);
    assert.deepEqual(
      (await conditionsOf('early')).map(({ type, status, reason }) => [type, status, reason]),
      [['Accepted', 'False', 'TargetNotFound']],
    );
    const port = await mesh.ports.next();
    const gateway = await mesh.proxy('late', { type: 'gateway', labels: { 'gateway.networking.k8s.io/gateway-name': 'late' } });
    await mesh.apply(
      gatewayApi('HTTPRoute', 'late', '{ parentRefs: [{ name: late }], rules: [{ backendRefs: [{ name: shop, port: 9080 }] }] }') +
        gatewayApi('Gateway', 'late', `{ gatewayClassName: mizzen, listeners: [{ name: http, port: ${port}, protocol: HTTP }] }`),
    );
    await gateway.proxy.ready;
    assert.equal((await call({ port, headers: { host: 'shop.test' } })).status, 403);
    assert.deepEqual(
      (await conditionsOf('early')).map(({ status, reason }) => [status, reason]),
      [['True', 'Accepted']],
    );
  });

  it('refuses a policy whose target is not served, and warns the writer of a Gateway that makes one so', async () => {
    const waypoint = gatewayApi('Gateway', 'waypoint', '{ gatewayClassName: istio-waypoint, listeners: [{ name: mesh, port: 15008, protocol: HBONE }] }');
    const onWaypoint = policy('waypoint', '{ action: DENY, targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: waypoint }], rules: [{}] }');
    assert.match((await write(mesh, onWaypoint)).warnings.join(), /waypoint does not exist/);
    assert.match((await write(mesh, waypoint)).warnings.join(), /AuthorizationPolicy default\/waypoint targets it and is not enforced/);
    const again = await write(mesh, onWaypoint.replace('rules: [{}]', 'rules: [{}, {}]'));
    assert.equal(again.status, 422);
    assert.match(again.message, /is of class istio-waypoint, which is not served here/);
    assert.equal((await conditionsOf('waypoint'))[0]?.reason, 'Invalid');
    assert.ok(mesh.plane.pilot.findings.some(({ object, level }) => object === 'AuthorizationPolicy default/waypoint' && level === 'error'));
    for (const target of [
      '{ group: "", kind: Service, name: shop }',
      '{ group: gateway.networking.k8s.io, kind: GatewayClass, name: mizzen }',
      '{ group: networking.istio.io, kind: ServiceEntry, name: x }',
    ]) {
      const { status } = await write(mesh, policy('wrong-kind', `{ action: DENY, targetRefs: [${target}], rules: [{}] }`));
      assert.equal(status, 422, target);
    }
  });

  it('refuses a dry run that would not be one', async () => {
    const dry = (value: string, action = 'DENY') =>
      write(
        mesh,
        policy(
          'dry',
          `{ action: ${action}, ${action === 'CUSTOM' ? 'provider: { name: x }, ' : ''}selector: { matchLabels: { app: x } }, rules: [{}] }`,
          `{ istio.io/dry-run: ${JSON.stringify(value)} }`,
        ),
      );
    for (const value of ['True', '1', 't', 'false', 'F']) assert.ok((await dry(value)).status < 300, value);
    for (const value of ['yes', 'on', '', 'tRUE', ' true']) {
      const { status, message } = await dry(value);
      assert.equal(status, 422, value);
      assert.match(message, /is not a boolean/);
    }
    assert.match((await dry('true', 'AUDIT')).message, /the action AUDIT has no dry run/);
    assert.match((await dry('true', 'CUSTOM')).message, /the action CUSTOM has no dry run/);
    const peer = `apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: dry, annotations: { istio.io/dry-run: "true" } }\nspec: {}\n`;
    assert.match((await write(mesh, peer)).message, /a PeerAuthentication cannot be tried in a dry run/);
  });

  it('tells the writer of a policy what the policy does not do', async () => {
    const { warnings } = await write(
      mesh,
      policy(
        'literal',
        '{ action: DENY, rules: [{ to: [{ operation: { paths: ["/a*b"] } }], from: [{ source: { principals: ["spiffe://td/ns/a/sa/b"] } }] }] }',
      ),
    );
    assert.match(warnings.join(), /a\*b.* the \* in the middle is not a wildcard/);
    assert.match(warnings.join(), /write it without spiffe:/);
  });

  it('refuses mesh configuration that would not be enforced, and warns of what has no effect', async () => {
    const config = (text: string) =>
      write(
        mesh,
        `---\n${JSON.stringify({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'istio', namespace: 'istio-system' }, data: { mesh: text } })}\n`,
      );
    assert.match((await config('outboundTraficPolicy: { mode: REGISTRY_ONLY }')).message, /unknown field: did you mean outboundTrafficPolicy/);
    assert.match((await config('tlsDefaults: { minProtocolVersion: TLSV1_3 }')).message, /tlsDefaults is not enforced/);
    assert.match((await config('accessLogFormat: "%START_TIME%"')).warnings.join(), /accessLogFormat has no effect/);
    const shop = mesh.plane.pilot.connections().find(({ view }) => view.name === 'shop')!;
    const listeners = () => JSON.stringify(shop.sent('listener').map((any) => Buffer.from(any.value).toString('base64')));
    const before = listeners();
    assert.ok((await config('meshMTLS: { minProtocolVersion: TLSV1_3 }')).status < 300);
    await mesh.synced();
    assert.notEqual(listeners(), before);
    const tls = (version: 'TLSv1.2' | 'TLSv1.3') =>
      new Promise<string>((resolve) => {
        const socket = connect({
          host: '127.0.0.1',
          port: shopPort,
          rejectUnauthorized: false,
          minVersion: version,
          maxVersion: version,
          ALPNProtocols: ['istio'],
        });
        socket.once('secureConnect', () => resolve(socket.getProtocol() ?? ''));
        socket.once('error', ({ message }) => resolve(message));
        socket.once('close', () => resolve('closed'));
      });
    assert.equal(await tls('TLSv1.3'), 'TLSv1.3');
    assert.notEqual(await tls('TLSv1.2'), 'TLSv1.2');
    const isEncrypted = () => shop.sent('cluster').some(({ value }) => Buffer.from(value).includes('tlsMode-istio'));
    assert.equal(isEncrypted(), true);
    assert.ok((await config('enableAutoMtls: false')).status < 300);
    await mesh.synced();
    assert.equal(isEncrypted(), false);
    assert.ok((await config('{}')).status < 300);
    await mesh.synced();
    assert.equal(isEncrypted(), true);
  });

  it('refuses an EnvoyFilter that adds protection without effect, and warns of any other without effect', async () => {
    const filter = (name: string, type: string) =>
      write(
        mesh,
        `---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: { name: none }\nspec: { configPatches: [{ applyTo: HTTP_FILTER, match: { context: SIDECAR_INBOUND }, patch: { operation: INSERT_BEFORE, value: { name: ${name}, typed_config: { "@type": type.googleapis.com/${type} } } } }] }\n`,
      );
    for (const [name, type] of [
      ['envoy.filters.http.ratelimit', 'envoy.extensions.filters.http.ratelimit.v3.RateLimit'],
      ['envoy.filters.http.oauth2', 'envoy.extensions.filters.http.oauth2.v3.OAuth2'],
      ['envoy.filters.http.basic_auth', 'envoy.extensions.filters.http.basic_auth.v3.BasicAuth'],
    ] as const) {
      const { status, message } = await filter(name, type);
      assert.equal(status, 422, name);
      assert.match(message, /adds protection that would not be enforced/);
    }
    const limit = (more: string) =>
      write(
        mesh,
        `---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: { name: none }\nspec: { configPatches: [{ applyTo: HTTP_FILTER, match: { context: SIDECAR_INBOUND }, patch: { operation: INSERT_BEFORE, value: { name: any-name, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: x, ${more} } } } }] }\n`,
      );
    for (const [more, problem] of [
      ['token_bucket: { max_tokens: 1, fill_interval: 0.001s }', /fill_interval must be at least 50 ms/],
      ['token_bucket: { max_tokens: 1, fill_interval: 1s }, max_dynamic_descriptors: 5', /max_dynamic_descriptors/],
      ['local_cluster_rate_limit: {}', /local_cluster_rate_limit of LocalRateLimit is not supported/],
    ] as const) {
      const { status, message } = await limit(more);
      assert.equal(status, 422, more);
      assert.match(message, problem);
    }
    const actions = await write(
      mesh,
      '---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: { name: none }\nspec: { configPatches: [{ applyTo: VIRTUAL_HOST, patch: { operation: MERGE, value: { rate_limits: [{ actions: [{ generic_key: { descriptor_value: "%REQ(a)%" } }] }] } } }] }\n',
    );
    assert.equal(actions.status, 422);
    assert.match(actions.message, /command operators in descriptor_value are not supported/);
    const silent = await limit('token_bucket: { max_tokens: 1, fill_interval: 1s }');
    assert.ok(silent.status < 300, silent.message);
    assert.match(silent.warnings.join(), /filter_enabled is absent or 0, so the limit is not counted.*MZ0007/);
    const lua = await filter('envoy.filters.http.lua', 'envoy.extensions.filters.http.lua.v3.Lua');
    assert.ok(lua.status < 300);
    assert.match(lua.warnings.join(), /patch 0 is not in effect/);
  });

  it('warns the writer of a CORS policy by which any site acts with a user’s credentials', async () => {
    const rule = (cors: string) => `{ hosts: [shop], http: [{ corsPolicy: ${cors}, route: [{ destination: { host: shop } }] }] }`;
    const written = async (cors: string) =>
      (await write(mesh, `---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: cors }\nspec: ${rule(cors)}\n`)).warnings.join();
    for (const origins of ['allowOrigins: [{ regex: ".*" }]', 'allowOrigins: [{ prefix: "" }]'])
      assert.match(await written(`{ ${origins}, allowCredentials: true }`), /spec\.http\[0\]\.corsPolicy: every site may make calls/, origins);
    assert.doesNotMatch(await written('{ allowOrigins: [{ exact: "https://a.test" }], allowCredentials: true }'), /every site/);
    assert.doesNotMatch(await written('{ allowOrigins: [{ regex: ".*" }] }'), /every site/);
  });

  it('warns the writer of a Gateway that selects a gateway of another namespace, which serves it with a grant alone', async () => {
    await mesh.apply('apiVersion: v1\nkind: Namespace\nmetadata: { name: edge }\n');
    await mesh.proxy('shared', { type: 'gateway', namespace: 'edge', labels: { app: 'shared' } });
    await until(
      'the gateway is connected',
      async () => mesh.plane.pilot.proxies().some(({ name }) => name === 'shared'),
      (isConnected) => isConnected,
    );
    const gateway = (port: number) =>
      `---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: foreign }\nspec: { selector: { app: shared }, servers: [{ port: { number: ${port}, name: http, protocol: HTTP }, hosts: ["*"] }] }\n`;
    const { warnings } = await write(mesh, gateway(8081));
    assert.match(
      warnings.join(),
      /Gateway default\/foreign selects the gateway edge\/shared of another namespace, which does not serve it without a ReferenceGrant.*MZ0023/,
    );
    const port = await mesh.ports.next();
    await mesh.apply(
      '---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: { name: shared }\nspec: { from: [{ group: mizzen.dev, kind: Workload, namespace: edge }], to: [{ group: networking.istio.io, kind: Gateway }] }\n',
    );
    assert.doesNotMatch((await write(mesh, gateway(port))).warnings.join(), /MZ0023/);
  });

  it('keeps every file of the home to its owner', () => {
    const files = readdirSync(mesh.home, { recursive: true, withFileTypes: true })
      .filter((entry) => !/\.(?:token|access\.log)$/.test(entry.name))
      .map((entry) => join(entry.parentPath, entry.name));
    assert.ok(files.some((file) => file.endsWith('store.sqlite-wal')));
    assert.deepEqual(
      files.filter((file) => (statSync(file).mode & 0o077) !== 0),
      [],
    );
  });

  describe('of clients of a Gateway', () => {
    let authority: TestAuthority;
    let port: number;
    const base64 = (file: string) => Buffer.from(authority.pem(file)).toString('base64');
    const configMap = (name: string, key: string, text: string, namespace = 'default') =>
      `---\n${JSON.stringify({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name, namespace }, data: { [key]: text } })}\n`;
    const gateway = (listenerTls: string, frontend = '') =>
      gatewayApi(
        'Gateway',
        'mutual',
        `{ gatewayClassName: mizzen, ${frontend ? `tls: { frontend: { default: { validation: ${frontend} } } }, ` : ''}listeners: [{ name: https, port: ${port}, protocol: HTTPS, tls: { certificateRefs: [{ name: site }]${listenerTls} } }] }`,
      );
    const listener = async () => {
      await mesh.plane.pilot.statusesWritten();
      const { resource } = await mesh.plane.registry.get(findKind('gateway.networking.k8s.io', 'Gateway')!, 'default', 'mutual');
      const { conditions } = (resource.status as { listeners: { conditions: { type: string; status: string; reason: string }[] }[] }).listeners[0]!;
      return Object.fromEntries(conditions.map(({ type, status, reason }) => [type, `${status} ${reason}`]));
    };
    /** The status of a response, or 'refused' where there is no TLS connection. */
    const ask = (withCertificate: boolean) =>
      new Promise<number | 'refused'>((resolve) => {
        const own = withCertificate ? { cert: authority.pem(client.cert), key: authority.pem(client.key) } : {};
        https
          .get(
            { host: '127.0.0.1', port, path: '/', headers: { host: 'site.test' }, servername: 'site.test', rejectUnauthorized: false, agent: false, ...own },
            (response) => {
              response.resume();
              resolve(response.statusCode ?? 0);
            },
          )
          .on('error', () => resolve('refused'));
      });
    let client: { cert: string; key: string };

    before(async () => {
      authority = new TestAuthority(mesh.home);
      port = await mesh.ports.next();
      const site = authority.issue('site', ['DNS:site.test']);
      client = authority.issue('client', ['DNS:client.test']);
      await mesh.apply(
        `apiVersion: v1\nkind: Secret\nmetadata: { name: site }\ntype: kubernetes.io/tls\ndata: { tls.crt: ${base64(site.cert)}, tls.key: ${base64(site.key)}, ca.crt: ${Buffer.from(readFileSync(authority.certificate)).toString('base64')} }\n---\napiVersion: v1\nkind: Namespace\nmetadata: { name: other }\n${configMap('roots', 'ca.crt', readFileSync(authority.certificate, 'utf8'))}${configMap('roots', 'ca.crt', readFileSync(authority.certificate, 'utf8'), 'other')}${configMap('broken', 'ca.crt', '-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n')}${configMap('no-key', 'other', 'x')}${configMap('no-authority', 'ca.crt', authority.pem(client.cert))}${gateway('')}${gatewayApi('HTTPRoute', 'mutual', '{ parentRefs: [{ name: mutual }], rules: [{ backendRefs: [{ name: shop, port: 9080 }] }] }')}`,
      );
      const running = await mesh.proxy('mutual', { type: 'gateway', labels: { 'gateway.networking.k8s.io/gateway-name': 'mutual' } });
      await running.proxy.ready;
      await mesh.synced();
    });

    it('demands certificates with the terminate mode MUTUAL of Istio, and refuses options that it does not know', async () => {
      assert.equal(await ask(false), 200);
      const option = (value: string) => gateway(`, options: { gateway.istio.io/tls-terminate-mode: ${value} }`);
      await mesh.apply(option('MUTUAL'));
      assert.deepEqual([await ask(false), await ask(true)], ['refused', 200]);
      await mesh.apply(option('OPTIONAL_MUTUAL'));
      assert.deepEqual([await ask(false), await ask(true)], [200, 200]);
      await mesh.apply(option('ISTIO_MUTUAL'));
      assert.deepEqual([await ask(false), await ask(true)], ['refused', 'refused']);
      for (const options of [
        '{ gateway.istio.io/tls-terminate-mode: mutual }',
        '{ example.com/min-version: "1.3" }',
        '{ gateway.istio.io/tls-terminate-mode: MUTUAL, a: b }',
      ]) {
        const { warnings } = await write(mesh, gateway(`, options: ${options}`));
        assert.match(warnings.join(), /is not supported/, options);
        await mesh.synced();
        assert.equal((await listener())['Accepted'], 'False UnsupportedValue', options);
        await until(
          `no listener: ${options}`,
          () => ask(true),
          (status) => status === 'refused',
        );
        assert.equal(await ask(false), 'refused', options);
      }
    });

    it('serves no listener whose clients cannot be verified, and verifies them by all roots that can be used', async () => {
      const roots = (refs: string, mode = '') => gateway('', `{ caCertificateRefs: [${refs}]${mode} }`);
      const good = '{ group: "", kind: ConfigMap, name: roots }';
      await mesh.apply(roots(good));
      await until(
        'the roots',
        () => ask(true),
        (status) => status === 200,
      );
      assert.equal(await ask(false), 'refused');
      for (const [ref, reason] of [
        ['{ group: "", kind: ConfigMap, name: missing }', 'InvalidCACertificateRef'],
        ['{ group: "", kind: ConfigMap, name: broken }', 'InvalidCACertificateRef'],
        ['{ group: "", kind: ConfigMap, name: no-key }', 'InvalidCACertificateRef'],
        ['{ group: "", kind: ConfigMap, name: no-authority }', 'InvalidCACertificateRef'],
        ['{ group: "", kind: Secret, name: roots }', 'InvalidCACertificateKind'],
        ['{ group: example.com, kind: ConfigMap, name: roots }', 'InvalidCACertificateKind'],
        ['{ group: "", kind: ConfigMap, name: roots, namespace: other }', 'RefNotPermitted'],
      ] as const) {
        for (const mode of ['', ', mode: AllowInsecureFallback']) {
          const { warnings } = await write(mesh, roots(ref, mode));
          await mesh.synced();
          assert.ok(warnings.join().includes(reason), ref);
          const { Accepted, ResolvedRefs, Programmed } = await listener();
          assert.deepEqual([Accepted, ResolvedRefs, Programmed], ['False NoValidCACertificate', `False ${reason}`, 'False Invalid'], ref);
          await until(
            `no listener: ${ref}`,
            () => ask(true),
            (status) => status === 'refused',
          );
          assert.equal(await ask(false), 'refused', ref);
        }
        await mesh.apply(roots(`${ref}, ${good}`));
        assert.deepEqual([(await listener())['Accepted'], (await listener())['ResolvedRefs']], ['True Accepted', `False ${reason}`]);
        await until(
          `${ref} beside roots that can be used`,
          () => ask(true),
          (status) => status === 200,
        );
        assert.equal(await ask(false), 'refused', ref);
      }
      const grant =
        '---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: { name: roots, namespace: other }\nspec: { from: [{ group: gateway.networking.k8s.io, kind: Gateway, namespace: default }], to: [{ group: "", kind: ConfigMap }] }\n';
      await mesh.apply(roots('{ group: "", kind: ConfigMap, name: roots, namespace: other }') + grant);
      await until(
        'the granted roots',
        () => ask(true),
        (status) => status === 200,
      );
      assert.equal(await ask(false), 'refused');
      await write(mesh, roots(''));
      await mesh.synced();
      assert.deepEqual([await ask(false), await ask(true)], ['refused', 'refused'], 'no references at all');
    });
  });
});
