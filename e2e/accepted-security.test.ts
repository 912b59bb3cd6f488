import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import https from 'node:https';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { write } from './support/api.ts';
import { TestAuthority } from './support/certificates.ts';
import { call } from './support/http.ts';
import { service, TestMesh } from './support/mesh.ts';

const gatewayApi = (kind: string, name: string, spec: string) =>
  `---\napiVersion: gateway.networking.k8s.io/v1\nkind: ${kind}\nmetadata: { name: ${name} }\nspec: ${spec}\n`;
const policy = (name: string, spec: string, annotations = '{}') =>
  `---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: ${name}, annotations: ${annotations} }\nspec: ${spec}\n`;

describe('security that is accepted', () => {
  let mesh: TestMesh;
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('shop'));
    await mesh.workload('shop');
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
    assert.match(warnings.join(), /in .*a\*b.* the \* in the middle is not a wildcard/);
    assert.match(warnings.join(), /write it without spiffe:/);
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
        assert.deepEqual([await ask(false), await ask(true)], ['refused', 'refused'], options);
      }
    });

    it('serves no listener whose clients cannot be verified, and verifies them by all roots that can be used', async () => {
      const roots = (refs: string, mode = '') => gateway('', `{ caCertificateRefs: [${refs}]${mode} }`);
      const good = '{ group: "", kind: ConfigMap, name: roots }';
      await mesh.apply(roots(good));
      assert.deepEqual([await ask(false), await ask(true)], ['refused', 200]);
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
          assert.deepEqual([await ask(false), await ask(true)], ['refused', 'refused'], ref);
        }
        await mesh.apply(roots(`${ref}, ${good}`));
        assert.deepEqual([(await listener())['Accepted'], (await listener())['ResolvedRefs']], ['True Accepted', `False ${reason}`]);
        assert.deepEqual([await ask(false), await ask(true)], ['refused', 200], `${ref} beside roots that can be used`);
      }
      const grant =
        '---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: { name: roots, namespace: other }\nspec: { from: [{ group: gateway.networking.k8s.io, kind: Gateway, namespace: default }], to: [{ group: "", kind: ConfigMap }] }\n';
      await mesh.apply(roots('{ group: "", kind: ConfigMap, name: roots, namespace: other }') + grant);
      assert.deepEqual([await ask(false), await ask(true)], ['refused', 200]);
      await write(mesh, roots(''));
      await mesh.synced();
      assert.deepEqual([await ask(false), await ask(true)], ['refused', 'refused'], 'no references at all');
    });
  });
});
