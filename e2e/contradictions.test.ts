import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, before, describe, it, mock } from 'node:test';
import { fileURLToPath } from 'node:url';
import { findKind } from '@mizzen/api';
import type { Finding } from '@mizzen/control';
import { degradations } from '../packages/cli/commands/status.ts';
import type { StoredResource } from '../packages/control/galley/config-store.ts';
import { SqliteStore } from '../packages/control/galley/sqlite-store.ts';
import { get, write } from './support/api.ts';
import { call } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const istio = (kind: string, name: string, spec: string) => `apiVersion: networking.istio.io/v1\nkind: ${kind}\nmetadata: { name: ${name} }\nspec:\n${spec}`;
const serviceEntry = (host: string) =>
  `---\n${istio('ServiceEntry', host, `  hosts: [${host}]\n  resolution: STATIC\n  ports: [{ number: 80, name: http, protocol: HTTP }]\n  endpoints: [{ address: 127.0.0.1 }]\n`)}`;

/** `mizzen status`, as a process of its own. */
function statusCommand(home: string): Promise<{ readonly code: number; readonly output: string }> {
  const command = fileURLToPath(new URL('../packages/cli/bin/mizzen', import.meta.url));
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [command, 'status', '--home', home], (_error, stdout, stderr) =>
      resolve({ code: child.exitCode ?? -1, output: stdout + stderr }),
    );
  });
}

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

  it('objects that generation fails with: one is left out, one stays in its version before, and all that looks at the mesh says so', async () => {
    const { store } = mesh.plane.registry;
    const broken = new Set<string>();
    // An exception is injected into generation: these objects cannot be read further than to their host.
    const list = mock.method(store, 'list', async (group: string, kind: string, namespace?: string) => {
      const listed = await SqliteStore.prototype.list.call(store, group, kind, namespace);
      const poison = (stored: StoredResource): StoredResource => ({
        ...stored,
        resource: {
          ...stored.resource,
          get spec(): never {
            throw new Error(`injected for ${stored.key.name}`);
          },
        } as never,
      });
      return { ...listed, items: listed.items.map((stored) => (broken.has(`${stored.key.kind} ${stored.key.name}`) ? poison(stored) : stored)) };
    });
    try {
      let [asked, failed, isOver] = [0, 0, false];
      const traffic = (async () => {
        while (!isOver) {
          asked++;
          if ((await call({ port: client.outboundPort, headers: { host: 'shop:9080' } })).status !== 200) failed++;
        }
      })();
      const api = (path: string) => get(mesh, path);
      const conditions = async (kind: string, name: string) => {
        await mesh.plane.pilot.statusesWritten();
        const { resource } = await mesh.plane.registry.get(findKind('networking.istio.io', kind)!, 'default', name);
        return ((resource.status as { conditions?: { type: string; status: string; reason: string; message: string }[] } | undefined)?.conditions ?? []).map(
          ({ type, status, reason, message }) => `${type} ${status} ${reason}: ${message}`,
        );
      };
      broken.add('DestinationRule other');
      await mesh.apply(istio('DestinationRule', 'other', '  host: shop\n  trafficPolicy: { connectionPool: { tcp: { maxConnections: 5 } } }\n'), 'other.yaml');
      broken.add('VirtualService shop');
      await mesh.apply(istio('VirtualService', 'shop', '  hosts: [shop]\n  http: [{ directResponse: { status: 418 } }]\n'), 'broken.yaml');
      told('MZ0017', 'other.yaml:1:1', /^DestinationRule default\/other: cannot generate configuration with it: injected for other\. It is left out\.$/);
      told('MZ0017', 'broken.yaml:1:1', /^VirtualService default\/shop: .* injected for shop\. The version before it stays in effect\.$/);
      assert.deepEqual(await conditions('DestinationRule', 'other'), [
        'Reconciled False LeftOut: cannot generate configuration: injected for other; it is left out',
      ]);
      assert.deepEqual(await conditions('VirtualService', 'shop'), [
        'Reconciled False VersionBeforeInEffect: cannot generate configuration: injected for shop; the version before it stays in effect',
      ]);
      const metrics = await api('/metrics');
      assert.match(metrics, /^mizzen_control_excluded_objects\{kind="DestinationRule",effect="left_out"\} 1$/m);
      assert.match(metrics, /^mizzen_control_excluded_objects\{kind="VirtualService",effect="version_before"\} 1$/m);
      assert.match(metrics, /^mizzen_control_findings\{level="error",code="MZ0017"\} 2$/m);
      const { findings } = JSON.parse(await api('/mizzen/v1/findings')) as { findings: Finding[] };
      assert.ok(degradations(mesh.plane.pilot.proxies(), findings).includes('VirtualService default/shop is not in effect as written [MZ0017]'));
      const { code, output } = await statusCommand(mesh.home);
      assert.equal(code, 1);
      assert.match(output, /DestinationRule default\/other is not in effect as written \[MZ0017\]/);
      assert.match(output, /VirtualService default\/shop is not in effect as written \[MZ0017\]/);
      const warned = await write(
        mesh,
        istio('DestinationRule', 'other', '  host: shop\n  trafficPolicy: { connectionPool: { tcp: { maxConnections: 6 } } }\n'),
      );
      assert.match(warned.warnings.join(), /DestinationRule default\/other: cannot generate configuration with it.*MZ0017/);
      // Everything else takes effect.
      await mesh.apply(istio('VirtualService', 'tea', '  hosts: [tea.test]\n  http: [{ directResponse: { status: 418 } }]\n') + serviceEntry('tea.test'));
      assert.equal((await call({ port: client.outboundPort, headers: { host: 'tea.test' } })).status, 418);
      isOver = true;
      await traffic;
      assert.deepEqual([failed, asked > 0], [0, true]);
      broken.clear();
      await mesh.apply(istio('DestinationRule', 'other', '  host: shop\n  trafficPolicy: { connectionPool: { tcp: { maxConnections: 7 } } }\n'));
      await mesh.apply(istio('VirtualService', 'shop', '  hosts: [shop]\n  http: [{ route: [{ destination: { host: shop, subset: v1 } }] }]\n'));
      assert.deepEqual([await conditions('DestinationRule', 'other'), await conditions('VirtualService', 'shop')], [[], []]);
      assert.doesNotMatch(await api('/metrics'), /^mizzen_control_excluded_objects\{/m);
      assert.doesNotMatch((await statusCommand(mesh.home)).output, /MZ0017/);
    } finally {
      list.mock.restore();
      await mesh.plane.registry.delete(findKind('networking.istio.io', 'DestinationRule')!, 'default', 'other');
    }
  });
});
