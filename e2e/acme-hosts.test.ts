import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { call } from './support/http.ts';
import { TestMesh } from './support/mesh.ts';

/** Two namespaces on one gateway: `shop` was there first, `mallory` lets the gateway serve its own Gateway, too. */
describe('an ACME challenge at a gateway', () => {
  let mesh: TestMesh;
  let port: number;
  const gateway = (name: string, namespace: string, hosts: readonly string[]) =>
    `---\n${JSON.stringify({
      apiVersion: 'networking.istio.io/v1',
      kind: 'Gateway',
      metadata: { name, namespace },
      spec: { selector: { app: 'gateway' }, servers: [{ hosts, port: { number: port, name: 'http', protocol: 'HTTP' } }] },
    })}\n`;
  const grant = (namespace: string) =>
    `---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: { name: gateway, namespace: ${namespace} }\nspec: { from: [{ group: mizzen.dev, kind: Workload, namespace: default }], to: [{ group: networking.istio.io, kind: Gateway }] }\n`;
  /** Which of these namespaces' challenges are answered at the host. */
  const answered = async (host: string) => {
    const namespaces = ['shop', 'mallory'];
    await mesh.plane.pilot.answerChallenges(
      namespaces.map((namespace) => ({ namespace, domain: host, token: `${namespace}-token`, answer: `${namespace}-answer` })),
    );
    const found: string[] = [];
    for (const namespace of namespaces) {
      const { status, body } = await call({ port, path: `/.well-known/acme-challenge/${namespace}-token`, headers: { host } });
      if (status === 200) found.push(body);
    }
    const able = namespaces.filter((namespace) => mesh.plane.pilot.proofProblem(namespace, host) === undefined);
    assert.deepEqual(
      found,
      able.map((namespace) => `${namespace}-answer`),
      'orders are begun exactly where challenges are answered',
    );
    return found;
  };
  before(async () => {
    mesh = await TestMesh.start();
    port = await mesh.ports.next();
    await mesh.apply(['shop', 'mallory'].map((name) => `---\napiVersion: v1\nkind: Namespace\nmetadata: { name: ${name} }\n`).join(''));
    await mesh.apply(gateway('shop', 'shop', ['shop.example', '*.shop.example']) + gateway('edited', 'mallory', ['mallory.example']) + grant('shop'));
    const gateways = await mesh.proxy('gw', { type: 'gateway', labels: { app: 'gateway' } });
    await gateways.proxy.ready;
    await mesh.synced();
  });
  after(() => mesh.close());

  it('is answered for the namespace whose Gateway has the host, and for no other', async () => {
    assert.deepEqual(await answered('shop.example'), ['shop-answer']);
    assert.deepEqual(await answered('mallory.example'), [], 'its Gateway is not served there');
    await mesh.apply(grant('mallory'));
    assert.deepEqual(await answered('mallory.example'), ['mallory-answer']);
    assert.deepEqual(await answered('shop.example'), ['shop-answer']);
    assert.deepEqual(await answered('else.example'), []);
  });

  it('is not answered for a younger Gateway that claims the host of an older one', async () => {
    // Objects have their age in whole seconds.
    await new Promise((resolve) => setTimeout(resolve, 1_001 - (Date.now() % 1_000)));
    for (const hosts of [['shop.example'], ['*'], ['shop/shop.example'], ['SHOP.example'], ['*.shop.example', '*.example']]) {
      await mesh.apply(gateway('younger', 'mallory', hosts));
      assert.deepEqual(await answered('shop.example'), ['shop-answer'], hosts.join());
      assert.deepEqual(await answered('www.shop.example'), ['shop-answer'], hosts.join());
    }
    await mesh.apply(gateway('younger', 'mallory', ['*']));
    assert.deepEqual(await answered('else.example'), ['mallory-answer']);
  });

  it('is answered for no namespace when an old Gateway was edited to claim a host', async () => {
    await mesh.apply(gateway('shop-2', 'shop', ['late.example']));
    assert.deepEqual(await answered('late.example'), ['shop-answer']);
    await mesh.apply(gateway('edited', 'mallory', ['mallory.example', 'late.example']));
    assert.deepEqual(await answered('late.example'), []);
    assert.match(mesh.plane.pilot.proofProblem('shop', 'late.example')!, /Gateways of several namespaces claim it/);
    assert.deepEqual(await answered('shop.example'), ['shop-answer']);
  });
});
