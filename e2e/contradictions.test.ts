import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { call } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const istio = (kind: string, name: string, spec: string) => `apiVersion: networking.istio.io/v1\nkind: ${kind}\nmetadata: { name: ${name} }\nspec:\n${spec}`;

/** Configuration that contradicts itself or other configuration: told on the object, with its line, and what works goes on. */
describe('contradictions', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  const works = async () => {
    const { status, body } = await call({ port: client.outboundPort, headers: { host: 'shop:9080' } });
    assert.deepEqual([status, (JSON.parse(body) as { name: string }).name], [200, 'shop-v1']);
  };
  const told = (code: string, place: string, message: RegExp) => {
    const found = mesh.plane.pilot.findings.filter((finding) => finding.code === code && finding.place === place);
    assert.ok(
      found.some((finding) => message.test(finding.message)),
      `${code} at ${place} is not among ${JSON.stringify(mesh.plane.pilot.findings, undefined, 1)}`,
    );
  };
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('shop'));
    await mesh.apply(istio('DestinationRule', 'shop', '  host: shop\n  subsets: [{ name: v1, labels: { version: v1 } }]\n'));
    await mesh.apply(istio('VirtualService', 'shop', '  hosts: [shop]\n  http: [{ route: [{ destination: { host: shop, subset: v1 } }] }]\n'), 'shop.yaml');
    await mesh.workload('shop-v1', { labels: { app: 'shop', version: 'v1' } });
    client = await mesh.proxy('client');
    await client.proxy.ready;
  });
  after(() => mesh.close());

  it('routes that nothing comes to, and weights that do not add up', async () => {
    const two = `  hosts: [shop]
  http:
  - route: [{ destination: { host: shop, subset: v1 } }]
  - route: [{ destination: { host: shop } }]
  - match: [{ uri: { prefix: /a } }]
    route:
    - { destination: { host: shop }, weight: 50 }
    - { destination: { host: shop, subset: v1 }, weight: 20 }
`;
    await mesh.apply(istio('VirtualService', 'shop', two), 'two-defaults.yaml');
    told('IST0130', 'two-defaults.yaml:8', /http\[1\]: this route gets no requests, since http\[0\] before it takes all/);
    told('MZ0001', 'two-defaults.yaml:9', /http\[2\]\.route: the weights add up to 70; they count as shares of 70/);
    await works();
    await assert.rejects(
      mesh.apply(
        istio(
          'VirtualService',
          'shop',
          '  hosts: [shop]\n  http:\n  - route: [{ destination: { host: shop }, weight: 0 }, { destination: { host: shop }, weight: 0 }]\n',
        ),
      ),
      /test\.yaml:7:\d+: spec\.http\[0\]\.route: several destinations need weights/,
    );
    await works();
  });

  it('hosts that two objects hold, and subsets of nothing in particular', async () => {
    await mesh.apply(
      istio('VirtualService', 'the-other', '  hosts: [shop.default.svc.cluster.local]\n  http: [{ directResponse: { status: 418 } }]\n'),
      'other.yaml',
    );
    told(
      'IST0109',
      'other.yaml:5',
      /VirtualService default\/the-other: VirtualService default\/shop holds host "shop\.default\.svc\.cluster\.local" for the mesh already/,
    );
    await mesh.apply(
      istio(
        'DestinationRule',
        'shop',
        '  host: shop\n  subsets:\n  - { name: v1, labels: { version: v1 } }\n  - { name: all }\n  - { name: v9, labels: { version: v9 } }\n',
      ),
      'rule.yaml',
    );
    told('MZ0002', 'rule.yaml:8', /subset "all" has neither labels nor a trafficPolicy, so it holds all workloads of "shop"/);
    told('IST0173', 'rule.yaml:9', /no workload of "shop" has the labels of subset "v9"/);
    await works();
  });

  it('delegates that lead in a circle', async () => {
    const delegate = (name: string, to: string) => istio('VirtualService', name, `  http: [{ match: [{ uri: { prefix: /x } }], delegate: { name: ${to} } }]\n`);
    await assert.rejects(mesh.apply(delegate('one', 'two')), /test\.yaml:5:\d+: spec\.http\[0\]\.delegate: a delegate has no delegates: one level only/);
    await mesh.apply(
      istio(
        'VirtualService',
        'shop',
        '  hosts: [shop]\n  http:\n  - match: [{ uri: { prefix: /x } }]\n    delegate: { name: shop }\n  - route: [{ destination: { host: shop, subset: v1 } }]\n',
      ),
      'itself.yaml',
    );
    told('IST0101', 'itself.yaml:7', /leaves a route to the VirtualService default\/shop, which has hosts of its own/);
    await works();
  });

  it('regexes that RE2 refuses', async () => {
    await assert.rejects(
      mesh.apply(
        istio('VirtualService', 'shop', '  hosts: [shop]\n  http:\n  - match: [{ uri: { regex: "/(?=a)b" } }]\n    route: [{ destination: { host: shop } }]\n'),
      ),
      /test\.yaml:7:\d+: spec\.http\[0\]\.match\[0\]\.uri\.regex: "\/\(\?=a\)b" is not a valid RE2 expression/,
    );
    await works();
  });
});
