import assert from 'node:assert/strict';
import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const rule = (policy: string, more = '') =>
  `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: shop }\nspec:\n  host: shop\n${more}  trafficPolicy:\n${policy}`;

/** Three replicas of one service in three places, and a client that stands beside the first. */
describe('what a DestinationRule says of balancing', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  const failing = new Set<string>();
  const replicas = [
    ['shop-near', 'eu/eu-1/a'],
    ['shop-zone', 'eu/eu-1/b'],
    ['shop-far', 'us/us-1/a'],
  ] as const;
  const ask = async (path = '/', headers: Record<string, string> = {}) => call({ port: client.outboundPort, path, headers: { host: 'shop:9080', ...headers } });
  const spread = async (count: number, headers?: (i: number) => Record<string, string>, path = '/') => {
    const counts = new Map<string, number>();
    for (let i = 0; i < count; i++) {
      const { body } = await ask(path, headers?.(i));
      counts.set(body, (counts.get(body) ?? 0) + 1);
    }
    return counts;
  };
  const remove = async (kind: string) => {
    await mesh.plane.registry.delete(findKind('networking.istio.io', kind)!, 'default', 'shop');
    await mesh.plane.pilot.refresh();
    await mesh.synced();
  };
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('shop'));
    for (const [name, locality] of replicas)
      await mesh.workload(name, {
        labels: { app: 'shop', place: name },
        fields: { locality },
        answer: (_request, response) => void response.writeHead(failing.has(name) ? 503 : 200).end(name),
      });
    client = await mesh.proxy('client', { locality: 'eu/eu-1/a', labels: { app: 'client', tier: 'web' } });
    await client.proxy.ready;
  });
  after(() => mesh.close());

  it('keeps what a header, a query parameter or a cookie names at one replica', async () => {
    await mesh.apply(rule('    loadBalancer: { consistentHash: { httpHeaderName: x-user } }\n'));
    const byUser = new Map<string, string>();
    for (let i = 0; i < 60; i++) {
      const user = `user-${i % 20}`;
      const { body } = await ask('/', { 'x-user': user });
      assert.equal(byUser.get(user) ?? body, body, user);
      byUser.set(user, body);
    }
    assert.equal(new Set(byUser.values()).size, 3);

    await mesh.apply(rule('    loadBalancer: { consistentHash: { httpQueryParameterName: cart, maglev: { tableSize: 251 } } }\n'));
    assert.equal((await spread(20, undefined, '/?cart=7')).size, 1);

    await mesh.apply(rule('    loadBalancer: { consistentHash: { httpCookie: { name: session, path: /, ttl: 60s } } }\n'));
    const first = await ask();
    const cookie = String(first.headers['set-cookie']).split(';')[0]!;
    assert.match(cookie, /^session="[0-9a-f]{16}"$/);
    const later = await spread(10, () => ({ cookie }));
    assert.deepEqual([...later.keys()], [first.body]);
  });

  it('hashes for subsets and through VirtualServices alike', async () => {
    await mesh.apply(
      rule(
        '    loadBalancer: { simple: ROUND_ROBIN }\n',
        '  subsets:\n  - { name: all, labels: { app: shop }, trafficPolicy: { loadBalancer: { consistentHash: { httpHeaderName: x-user } } } }\n',
      ),
    );
    await mesh.apply(
      'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: shop }\nspec:\n  hosts: [shop]\n  http:\n  - match: [{ uri: { prefix: /sticky } }]\n    route: [{ destination: { host: shop, subset: all } }]\n  - route: [{ destination: { host: shop } }]\n',
    );
    assert.equal((await spread(12, () => ({ 'x-user': 'bob' }), '/sticky')).size, 1);
    assert.equal((await spread(12, () => ({ 'x-user': 'bob' }))).size, 3);
    await remove('VirtualService');
  });

  it('distributes by locality', async () => {
    await mesh.apply(rule('    loadBalancer: { localityLbSetting: { distribute: [{ from: "eu/*", to: { "eu/eu-1/b": 80, "us/*": 20 } }] } }\n'));
    const counts = await spread(200);
    assert.equal(counts.get('shop-near'), undefined);
    const far = counts.get('shop-far') ?? 0;
    assert.ok(far > 15 && far < 70, `${far} of 200 go to us`);
  });

  it('stays near while what is near works, and goes farther step by step when it is ejected', async () => {
    await mesh.apply(
      rule(
        '    outlierDetection: { consecutive5xxErrors: 3, interval: 100ms, baseEjectionTime: 600s, maxEjectionPercent: 100 }\n    connectionPool: { http: { maxRetries: 1 } }\n',
      ),
    );
    assert.deepEqual([...(await spread(30)).keys()], ['shop-near']);
    failing.add('shop-near');
    await until(
      'the near replica is ejected',
      () => ask(),
      ({ body, status }) => status === 200 && body === 'shop-zone',
      60_000,
    );
    assert.deepEqual([...(await spread(20)).keys()], ['shop-zone']);
    failing.add('shop-zone');
    await until(
      'the whole region is ejected',
      () => ask(),
      ({ body, status }) => status === 200 && body === 'shop-far',
      60_000,
    );
    const { body } = await call({ port: client.adminPort, path: '/clusters' });
    const clusters = JSON.parse(body).clusters as { name: string; endpoints: { workload: string; ejected?: boolean }[] }[];
    const shop = clusters.find(({ name }) => name === 'outbound|9080||shop.default.svc.cluster.local')!;
    assert.deepEqual(
      shop.endpoints.filter(({ ejected }) => ejected).map(({ workload }) => workload),
      ['shop-near', 'shop-zone'],
    );
    const stats = await call({ port: client.adminPort, path: '/stats/prometheus' });
    assert.match(stats.body, /envoy_cluster_outlier_detection_ejections_active\{[^}]*shop[^}]*\} 2/);
    failing.clear();
  });

  it('orders replicas by labels that the client shares', async () => {
    await mesh.apply(
      rule(
        '    outlierDetection: { consecutive5xxErrors: 3, interval: 100ms }\n    loadBalancer: { localityLbSetting: { failoverPriority: ["place=shop-far", "topology.kubernetes.io/region"] } }\n',
      ),
    );
    assert.deepEqual([...(await spread(20)).keys()], ['shop-far']);
  });

  it('heeds trafficDistribution of the Service, and a rule for some workloads only', async () => {
    await remove('DestinationRule');
    await mesh.apply(service('shop').replace('spec:', 'spec:\n  trafficDistribution: PreferClose'));
    const close = await spread(40);
    assert.deepEqual([...close.keys()].sort(), ['shop-near', 'shop-zone']);
    await mesh.apply(service('shop'));
    const selective = (tier: string) =>
      rule('    loadBalancer: { consistentHash: { httpHeaderName: x-user } }\n', `  workloadSelector: { matchLabels: { tier: ${tier} } }\n`);
    await mesh.apply(selective('batch'));
    assert.equal((await spread(20, () => ({ 'x-user': 'bob' }))).size, 3);
    await mesh.apply(selective('web'));
    assert.equal((await spread(20, () => ({ 'x-user': 'bob' }))).size, 1);
    await remove('DestinationRule');
  });

  it('does not fall back to replicas that are not well, unless minHealthPercent says so', async () => {
    // One of three is left: below Envoy's own threshold of half, which Istio's clusters do not have.
    await mesh.apply(
      'apiVersion: v1\nkind: Service\nmetadata: { name: few }\nspec: { ports: [{ name: http, port: 80 }] }\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: { name: few, labels: { kubernetes.io/service-name: few } }\naddressType: IPv4\nports: [{ name: http, port: PORT }]\nendpoints:\n- { addresses: [127.0.0.1], conditions: { ready: true } }\n- { addresses: [127.0.0.2], conditions: { ready: false } }\n- { addresses: [127.0.0.3], conditions: { ready: false } }\n'.replace(
        'PORT',
        String(await mesh.application('few', (_request, response) => void response.end('few'))),
      ),
    );
    for (let i = 0; i < 20; i++) assert.equal((await call({ port: client.outboundPort, headers: { host: 'few' } })).status, 200);
  });

  it('begins connections with the PROXY protocol where told to', async () => {
    const lines: string[] = [];
    const server = net.createServer((socket) =>
      socket.once('data', (chunk: Buffer) => {
        lines.push(chunk.toString('latin1').split('\r\n')[0]!);
        socket.end('HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok');
      }),
    );
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    mesh.onClose(async () => void server.close());
    await mesh.apply(
      `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: old }\nspec:\n  hosts: [old.example]\n  ports: [{ number: 80, name: http, protocol: HTTP }]\n  resolution: STATIC\n  endpoints: [{ address: 127.0.0.1, ports: { http: ${(server.address() as AddressInfo).port} } }]\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: old }\nspec: { host: old.example, trafficPolicy: { proxyProtocol: { version: V1 } } }\n`,
    );
    assert.equal((await call({ port: client.outboundPort, headers: { host: 'old.example' } })).body, 'ok');
    assert.match(lines[0]!, /^PROXY TCP4 127\.0\.0\.1 127\.0\.0\.1 \d+ \d+$/);
  });
});
