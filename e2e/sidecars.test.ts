import assert from 'node:assert/strict';
import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { RawClient } from './support/engine.ts';
import { call } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const sidecar = (spec: string) => `apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: { name: scope }\nspec:\n${spec}`;

describe('what a Sidecar makes of a workload’s mesh', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  before(async () => {
    mesh = await TestMesh.start();
    for (const name of ['shop', 'stock']) {
      await mesh.apply(service(name));
      await mesh.workload(name);
    }
    client = await mesh.proxy('client');
    await client.proxy.ready;
  });
  after(() => mesh.close());

  const statusOf = async (host: string, port = client.outboundPort) => (await call({ port, headers: { host } })).status;

  it('knows only the services that egress names', async () => {
    assert.deepEqual([await statusOf('shop:9080'), await statusOf('stock:9080')], [200, 200]);
    await mesh.apply(sidecar('  workloadSelector: { labels: { app: client } }\n  egress: [{ hosts: ["./shop.default.svc.cluster.local"] }]\n'));
    assert.deepEqual([await statusOf('shop:9080'), await statusOf('stock:9080')], [200, 502]);
    await mesh.apply(sidecar('  egress: [{ hosts: ["other/*"] }]\n'));
    assert.deepEqual([await statusOf('shop:9080'), await statusOf('stock:9080')], [502, 502]);
    await mesh.apply(
      sidecar('  egress: [{ port: { number: 9080, name: http, protocol: HTTP }, hosts: ["*/shop.default.svc.cluster.local"] }, { hosts: ["~/*"] }]\n'),
    );
    assert.deepEqual([await statusOf('shop:9080'), await statusOf('stock:9080')], [200, 502]);
  });

  it('binds listeners for applications that call addresses, HTTP and bytes', async () => {
    const server = net.createServer((socket) => socket.end('bytes\n')).listen(0, '127.0.0.1');
    await once(server, 'listening');
    mesh.onClose(async () => void server.close());
    const [http, tcp] = [await mesh.ports.next(), await mesh.ports.next()];
    const entry = (name: string, port: number, protocol: string, to: number) =>
      `---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: ${name} }\nspec:\n  hosts: [${name}.example]\n  ports: [{ number: ${port}, name: p, protocol: ${protocol} }]\n  resolution: STATIC\n  endpoints: [{ address: 127.0.0.1, ports: { p: ${to} } }]\n`;
    await mesh.apply(
      [
        sidecar(
          `  egress:\n  - { port: { number: ${http}, name: http, protocol: HTTP }, bind: 127.0.0.1, hosts: ["./web.example"] }\n  - { port: { number: ${tcp}, name: tcp, protocol: TCP }, captureMode: NONE, hosts: ["./bytes.example"] }\n  - { hosts: ["./*"] }\n`,
        ),
        entry('web', http, 'HTTP', await mesh.application('web', (_request, response) => void response.end('web'))),
        entry('bytes', tcp, 'TCP', (server.address() as AddressInfo).port),
      ].join(''),
    );
    assert.equal((await call({ port: http, headers: { host: 'web.example' } })).body, 'web');
    assert.equal(await statusOf('shop:9080', http), 502);
    assert.equal(await new RawClient(tcp).closed(), 'bytes\n');
    await mesh.plane.registry.delete(findKind('networking.istio.io', 'Sidecar')!, 'default', 'scope');
    await mesh.plane.pilot.refresh();
    await mesh.synced();
  });

  it('sends what goes to unknown hosts to a proxy for them', async () => {
    await mesh.apply(
      sidecar(
        '  workloadSelector: { labels: { app: client } }\n  egress: [{ hosts: ["./*"] }]\n  outboundTrafficPolicy: { mode: ALLOW_ANY, egressProxy: { host: stock, port: { number: 9080 } } }\n',
      ),
    );
    const answer = await call({ port: client.outboundPort, headers: { host: 'nowhere.example' } });
    assert.deepEqual([answer.status, JSON.parse(answer.body).name, JSON.parse(answer.body).headers.host], [200, 'stock', 'nowhere.example']);
  });

  it('takes for its workload what ingress says, where it says', async () => {
    const other = await mesh.application('the other');
    await mesh.apply(
      `apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: { name: shop }\nspec:\n  workloadSelector: { labels: { app: shop } }\n  ingress: [{ port: { number: 9080, name: http, protocol: HTTP }, defaultEndpoint: "127.0.0.1:${other}", connectionPool: { http: { http2MaxRequests: 50 } } }]\n`,
    );
    assert.equal(JSON.parse((await call({ port: client.outboundPort, headers: { host: 'shop:9080' } })).body).name, 'the other');
  });

  it('tells what makes no sense, and which of two has no effect', async () => {
    const wrong = (spec: string) => assert.rejects(mesh.apply(sidecar(spec)));
    await wrong('  egress: [{ hosts: ["shop"] }]\n');
    await wrong('  egress: [{ hosts: [] }]\n');
    await wrong('  ingress: [{ port: { number: 1 }, defaultEndpoint: "example.com:80" }]\n');
    await wrong('  ingress: [{ port: { number: 1 }, defaultEndpoint: "unix://tmp/x" }]\n');
    await mesh.apply(sidecar('  workloadSelector: { labels: { app: shop } }\n  egress: [{ hosts: ["./*"] }]\n'));
    assert.match(mesh.plane.pilot.findings.find(({ code }) => code === 'IST0110')!.message, /has no effect: Sidecar default\/(shop|scope), which is older/);
  });
});
