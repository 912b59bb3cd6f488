import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { write } from './support/api.ts';
import { call } from './support/http.ts';
import { type RunningProxy, TestMesh } from './support/mesh.ts';

const namespaced = (name: string, namespace: string) =>
  `---\napiVersion: v1\nkind: Service\nmetadata: { name: ${name}, namespace: ${namespace} }\nspec: { selector: { app: ${name} }, ports: [{ name: http, port: 9080 }] }\n`;
const settings = (data: object) =>
  `---\n${JSON.stringify({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'mizzen', namespace: 'mizzen-system' }, data })}\n`;

describe('a VirtualService of one namespace for a service of another', () => {
  let mesh: TestMesh;
  let victim: RunningProxy;
  let own: RunningProxy;
  const hijack = (host = 'shop.store.svc.cluster.local') =>
    `---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: hijack, namespace: mallory }\nspec:\n  hosts: ["${host}"]\n  http: [{ route: [{ destination: { host: evil.mallory.svc.cluster.local, port: { number: 9080 } } }] }]\n`;
  const ask = async (from: RunningProxy) =>
    (JSON.parse((await call({ port: from.outboundPort, headers: { host: 'shop.store:9080' } })).body) as { name: string }).name;

  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(['store', 'mallory', 'buyers'].map((name) => `---\napiVersion: v1\nkind: Namespace\nmetadata: { name: ${name} }\n`).join(''));
    await mesh.apply(namespaced('shop', 'store') + namespaced('evil', 'mallory'));
    await mesh.workload('shop', { fields: { namespace: 'store' } });
    await mesh.workload('evil', { fields: { namespace: 'mallory' } });
    victim = await mesh.proxy('victim', { namespace: 'buyers' });
    own = await mesh.proxy('own', { namespace: 'mallory' });
    await Promise.all([victim.proxy.ready, own.proxy.ready]);
  });
  after(() => mesh.close());

  it('routes only the calls of its own namespace in a new mesh, and its writer is told', async () => {
    const { warnings } = await write(mesh, hijack());
    await mesh.synced();
    assert.match(warnings.join(), /routes shop\.store\.svc\.cluster\.local of namespace store for callers of namespace mallory only/);
    assert.deepEqual([await ask(victim), await ask(own)], ['shop', 'evil']);
    await mesh.apply(hijack('*.store.svc.cluster.local'));
    assert.deepEqual([await ask(victim), await ask(own)], ['shop', 'evil']);
  });

  it('routes the calls of all where its namespace is listed, or where the mesh keeps the rule of Istio', async () => {
    await mesh.apply(settings({ crossNamespaceRoutes: 'OWNERS', routeNamespaces: 'platform, mallory' }));
    assert.equal(await ask(victim), 'evil');
    await mesh.apply(settings({ crossNamespaceRoutes: 'OWNERS', routeNamespaces: 'platform' }));
    assert.equal(await ask(victim), 'shop');
    await mesh.apply(settings({ crossNamespaceRoutes: 'ANY' }));
    assert.equal(await ask(victim), 'evil');
    await mesh.apply(settings({ crossNamespaceRoutes: 'any' }));
    assert.equal(await ask(victim), 'shop', 'a mode that is not known restricts');
  });
});
