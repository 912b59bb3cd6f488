import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { write } from './support/api.ts';
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
});
