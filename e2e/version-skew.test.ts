import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { withholdFeatures } from '../packages/proxy/xds/supported-fields.ts';
import { call } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const rbac = 'envoy.filters.http.rbac';
const policy = (spec: string) =>
  `apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: shop }\nspec: { selector: { matchLabels: { app: shop } }, ${spec} }`;
const denyAdmin = policy('action: DENY, rules: [{ to: [{ operation: { paths: [/admin] } }] }]');
const denyMallory = policy('action: DENY, rules: [{ from: [{ source: { principals: [cluster.local/ns/default/sa/mallory] } }] }]');

describe('a proxy that is older than its control plane', () => {
  let mesh: TestMesh;
  let shop: RunningProxy;
  let caller: RunningProxy;

  const statuses = async () =>
    Promise.all(['/', '/admin'].map(async (path) => (await call({ port: caller.outboundPort, path, headers: { host: 'shop:9080' } })).status));
  const removePolicy = async () => {
    await mesh.plane.registry.delete(findKind('security.istio.io', 'AuthorizationPolicy')!, 'default', 'shop', { manager: 'test' } as never);
    await mesh.plane.pilot.refresh();
    await mesh.synced();
  };
  const findings = () => mesh.plane.pilot.findings.filter(({ code }) => code === 'MZ0021');
  /** The proxy of the shop starts again as a version that does not know these features. */
  const withShop = async (missing: readonly string[], use: () => Promise<void>) => {
    withholdFeatures(missing);
    try {
      shop = await mesh.workload('shop');
      await use();
      await removePolicy();
      assert.deepEqual(await statuses(), [200, 200]);
      assert.deepEqual(
        findings().filter(({ level }) => level === 'error'),
        [],
      );
    } finally {
      withholdFeatures([]);
      await shop.proxy.close();
    }
  };

  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('shop'));
    caller = await mesh.proxy('caller');
    await caller.proxy.ready;
  });
  after(() => mesh.close());

  for (const declares of [true, false]) {
    const missing = (name: string) => [name, ...(declares ? [] : ['declaration'])];
    const how = declares ? 'declares that it does not know' : 'declares nothing and refuses';

    it(`refuses what a policy covers when it ${how} the filter of the policy`, () =>
      withShop(missing(rbac), async () => {
        assert.deepEqual(await statuses(), [200, 200]);
        await mesh.apply(denyAdmin);
        assert.deepEqual(await statuses(), [403, 403]);
        const [finding] = findings();
        assert.match(finding?.message ?? '', /Proxy default\/shop \(mizzen\/.*cannot enforce envoy\.filters\.http\.rbac \(listener .*refuses all traffic/);
        assert.equal(finding?.level, 'error');
        assert.ok(mesh.plane.pilot.proxies().every(({ state }) => state === 'synced'));
      }));

    it(`refuses what a policy covers when it ${how} a field of the policy`, () =>
      withShop(missing('envoy.extensions.filters.http.rbac.v3.RBAC.rules'), async () => {
        await mesh.apply(denyAdmin);
        assert.deepEqual(await statuses(), [403, 403]);
        assert.match(findings()[0]?.message ?? '', /RBAC\.rules/);
      }));

    it(`refuses what a policy covers when it ${how} how paths are normalized`, () =>
      withShop(missing('envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.normalizePath'), async () => {
        await mesh.apply(denyAdmin);
        assert.deepEqual(await statuses(), [403, 403]);
        const [finding] = findings();
        assert.match(finding?.message ?? '', /cannot enforce HttpConnectionManager\.normalize_path/);
        assert.equal(finding?.level, 'error');
      }));

    it(`works without a field of no policy when it ${how} it`, () =>
      withShop(missing('envoy.config.route.v3.RouteAction.timeout'), async () => {
        await mesh.apply(denyMallory);
        assert.deepEqual(await statuses(), [200, 200]);
        const [finding] = findings();
        assert.match(finding?.message ?? '', /does not know RouteAction\.timeout/);
        assert.equal(finding?.level, 'warning');
      }));
  }

  it('refuses what a policy covers when it refuses the listener for a reason that names no feature, and serves again when the policy is back', () =>
    withShop(['declaration', 'envoy.config.rbac.v3.Permission.urlPath'], async () => {
      await mesh.apply(denyMallory);
      assert.deepEqual(await statuses(), [200, 200]);
      await mesh.apply(denyAdmin);
      assert.deepEqual(await statuses(), [403, 403]);
      assert.match(findings()[0]?.message ?? '', /a permission of type urlPath is not supported/);
      await mesh.apply(denyMallory);
      assert.deepEqual(await statuses(), [200, 200]);
    }));
});
