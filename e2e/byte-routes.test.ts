import assert from 'node:assert/strict';
import { once } from 'node:events';
import https from 'node:https';
import net, { type AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { TestAuthority } from './support/certificates.ts';
import { RawClient } from './support/engine.ts';
import { call } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const virtualService = (name: string, spec: string) =>
  `---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: ${name} }\nspec:\n${spec}`;

describe('routes for bytes', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  let gateway: RunningProxy;
  let ports: { tcp: number; tls: number; own: number; egress: number };
  let authority: TestAuthority;
  before(async () => {
    mesh = await TestMesh.start();
    authority = new TestAuthority(mesh.home);
    await mesh.apply(service('ledger', 'tcp', 7000));
    for (const version of ['v1', 'v2']) {
      const server = net.createServer((socket) => socket.end(`ledger ${version}\n`)).listen(0, '127.0.0.1');
      await once(server, 'listening');
      mesh.onClose(async () => void server.close());
      await mesh.sidecar('ledger', (server.address() as AddressInfo).port, { name: 'tcp', port: 7000 }, { version });
    }
    client = await mesh.proxy('client');
    await client.proxy.ready;
    ports = { tcp: await mesh.ports.next(), tls: await mesh.ports.next(), own: await mesh.ports.next(), egress: await mesh.ports.next() };
    await mesh.apply(
      `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: ledger }\nspec:\n  host: ledger\n  subsets:\n  - { name: v1, labels: { version: v1 } }\n  - { name: v2, labels: { version: v2 } }\n`,
    );
  });
  after(() => mesh.close());

  const bySidecar = async (host: string) => {
    const socket = new RawClient(client.outboundPort).write(`CONNECT ${host} HTTP/1.1\r\nhost: ${host}\r\n\r\n`);
    return (await socket.closed()).replace(/^HTTP\/1\.1 200 OK\r\n\r\n/, '');
  };
  const counts = async (ask: () => Promise<string>, times: number) => {
    const found = new Map<string, number>();
    for (let i = 0; i < times; i++) {
      const text = (await ask()).trim();
      found.set(text, (found.get(text) ?? 0) + 1);
    }
    return found;
  };

  it('in the sidecar, by weight and to the first match that fits', async () => {
    await mesh.apply(
      virtualService(
        'ledger',
        '  hosts: [ledger]\n  tcp:\n  - match: [{ sourceLabels: { app: somebody-else } }]\n    route: [{ destination: { host: ledger, subset: v1 } }]\n  - match: [{ port: 7000 }]\n    route:\n    - { destination: { host: ledger, subset: v1 }, weight: 25 }\n    - { destination: { host: ledger, subset: v2 }, weight: 75 }\n',
      ),
    );
    const found = await counts(() => bySidecar('ledger:7000'), 80);
    const first = found.get('ledger v1') ?? 0;
    assert.equal(first + (found.get('ledger v2') ?? 0), 80, JSON.stringify([...found]));
    assert.ok(first > 5 && first < 40, `${first} of 80 to v1`);
  });

  it('at a gateway: TCP by its port, TLS by the name that it asks for, and TLS that is ended there', async () => {
    const secure = ['one', 'two'].map((name) => {
      const { cert, key } = authority.issue(name, [`DNS:${name}.test`]);
      return https
        .createServer({ cert: authority.pem(cert), key: authority.pem(key) }, (_request, response) => response.end(`this is ${name}`))
        .listen(0, '127.0.0.1');
    });
    await Promise.all(secure.map((server) => once(server, 'listening')));
    for (const server of secure) {
      mesh.onClose(async () => {
        server.closeAllConnections();
        server.close();
      });
    }
    const entry = (name: string, port: number) =>
      `---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: ${name} }\nspec:\n  hosts: [${name}.test]\n  ports: [{ number: 443, name: tls, protocol: TLS }]\n  resolution: STATIC\n  endpoints: [{ address: 127.0.0.1, ports: { tls: ${port} } }]\n`;
    const { cert, key } = authority.issue('ended', ['DNS:ledger.test']);
    const base64 = (file: string) => Buffer.from(authority.pem(file)).toString('base64');
    await mesh.apply(
      [
        `apiVersion: v1\nkind: Secret\nmetadata: { name: ledger-cert }\ndata: { tls.crt: ${base64(cert)}, tls.key: ${base64(key)} }\n`,
        entry('one', (secure[0]!.address() as AddressInfo).port),
        entry('two', (secure[1]!.address() as AddressInfo).port),
        `---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: edge }\nspec:\n  selector: { istio: edge }\n  servers:\n  - { port: { number: ${ports.tcp}, name: tcp, protocol: TCP }, hosts: ["*"] }\n  - { port: { number: ${ports.tls}, name: tls, protocol: TLS }, hosts: ["*.test"], tls: { mode: PASSTHROUGH } }\n  - { port: { number: ${ports.own}, name: own, protocol: TLS }, hosts: [ledger.test], tls: { mode: SIMPLE, credentialName: ledger-cert } }\n`,
        virtualService(
          'edge',
          `  hosts: ["*.test"]\n  gateways: [edge]\n  tcp:\n  - match: [{ port: ${ports.tcp} }, { port: ${ports.own} }]\n    route: [{ destination: { host: ledger, port: { number: 7000 }, subset: v2 } }]\n  tls:\n  - match: [{ port: ${ports.tls}, sniHosts: [one.test] }]\n    route: [{ destination: { host: one.test } }]\n  - match: [{ port: ${ports.tls}, sniHosts: ["*.test"] }]\n    route: [{ destination: { host: two.test } }]\n`,
        ),
      ].join(''),
    );
    gateway = await mesh.proxy('edge', { type: 'gateway', labels: { istio: 'edge' } });
    await gateway.proxy.ready;
    await mesh.synced();
    assert.equal(await new RawClient(ports.tcp).closed(), 'ledger v2\n');
    const over = (servername: string) =>
      new Promise<string>((resolve, reject) => {
        https
          .get(
            { port: ports.tls, host: '127.0.0.1', servername, ca: authority.pem(authority.certificate), checkServerIdentity: () => undefined },
            (response) => {
              let text = '';
              response.on('data', (chunk) => (text += chunk));
              response.on('end', () => resolve(text));
            },
          )
          .on('error', reject);
      });
    assert.deepEqual([await over('one.test'), await over('two.test'), await over('three.test')], ['this is one', 'this is two', 'this is two']);
    await assert.rejects(over('other.example'), /ECONNRESET|socket hang up|disconnected/);
    const ended = tls.connect({ port: ports.own, host: '127.0.0.1', servername: 'ledger.test', ca: authority.pem(authority.certificate) });
    const [data] = (await once(ended, 'data')) as [Buffer];
    assert.equal(data.toString(), 'ledger v2\n');
    ended.destroy();
  });

  it('out of the mesh by an egress gateway, with mutual TLS on the way to it', async () => {
    const outside = await mesh.application('outside');
    const egress = await mesh.proxy('egress', { type: 'gateway', labels: { istio: 'egress' }, serviceAccount: 'egress' });
    await mesh.apply(
      [
        `apiVersion: v1\nkind: Service\nmetadata: { name: egress }\nspec: { selector: { istio: egress }, ports: [{ name: https, port: ${ports.egress} }] }\n`,
        '---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: { name: egress }\nspec: { address: 127.0.0.1, labels: { istio: egress }, serviceAccount: egress }\n',
        `---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: outside }\nspec:\n  hosts: [outside.example]\n  ports: [{ number: 80, name: http, protocol: HTTP }]\n  resolution: STATIC\n  endpoints: [{ address: 127.0.0.1, ports: { http: ${outside} } }]\n`,
        `---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: egress }\nspec:\n  selector: { istio: egress }\n  servers: [{ port: { number: ${ports.egress}, name: https, protocol: HTTPS }, hosts: [outside.example], tls: { mode: ISTIO_MUTUAL } }]\n`,
        `---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: egress }\nspec:\n  host: egress\n  subsets: [{ name: outside, trafficPolicy: { tls: { mode: ISTIO_MUTUAL, sni: outside.example } } }]\n`,
        virtualService(
          'outside',
          `  hosts: [outside.example]\n  gateways: [mesh, egress]\n  http:\n  - match: [{ gateways: [mesh], port: 80 }]\n    route: [{ destination: { host: egress, subset: outside, port: { number: ${ports.egress} } } }]\n  - match: [{ gateways: [egress] }]\n    headers: { request: { set: { x-way: egress } } }\n    route: [{ destination: { host: outside.example, port: { number: 80 } } }]\n`,
        ),
      ].join(''),
    );
    await egress.proxy.ready;
    await mesh.synced();
    const { status, body } = await call({ port: client.outboundPort, path: '/x', headers: { host: 'outside.example' } });
    assert.equal(status, 200, body);
    const { headers } = JSON.parse(body) as { headers: Record<string, string> };
    assert.deepEqual([headers['x-way'], headers['host']], ['egress', 'outside.example']);
  });

  it('through a forward proxy that is asked for a tunnel', async () => {
    const asked: string[] = [];
    const forward = net
      .createServer((socket) =>
        socket.once('data', (chunk: Buffer) => {
          const [line = ''] = chunk.toString().split('\r\n');
          asked.push(line);
          if (asked.length > 1) return socket.end('HTTP/1.1 403 Forbidden\r\n\r\n');
          socket.write('HTTP/1.1 200 OK\r\n\r\nfirst words ');
          socket.on('data', (more: Buffer) => socket.end(`and ${more}`));
        }),
      )
      .listen(0, '127.0.0.1');
    await once(forward, 'listening');
    mesh.onClose(async () => void forward.close());
    await mesh.apply(
      [
        `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: forward }\nspec:\n  hosts: [forward.example]\n  ports: [{ number: 3128, name: tcp, protocol: TCP }]\n  resolution: STATIC\n  endpoints: [{ address: 127.0.0.1, ports: { tcp: ${(forward.address() as AddressInfo).port} } }]\n`,
        '---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: forward }\nspec:\n  host: forward.example\n  trafficPolicy: { tunnel: { protocol: CONNECT, targetHost: far.example, targetPort: 443 } }\n',
        `---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: tunnel }\nspec: { selector: { istio: edge }, servers: [{ port: { number: ${ports.tcp + 1_000}, name: tcp, protocol: TCP }, hosts: ["*"] }] }\n`,
        virtualService(
          'tunnel',
          '  hosts: [far.example]\n  gateways: [tunnel]\n  tcp: [{ route: [{ destination: { host: forward.example, port: { number: 3128 } } }] }]\n',
        ),
      ].join(''),
    );
    const socket = new RawClient(ports.tcp + 1_000).write('mine');
    assert.equal(await socket.closed(), 'first words and mine');
    assert.deepEqual(asked, ['CONNECT far.example:443 HTTP/1.1']);
    assert.equal(await new RawClient(ports.tcp + 1_000).write('mine').closed(), '', 'a tunnel that is refused carries nothing');
    await assert.rejects(
      mesh.apply(
        'apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: forward }\nspec: { host: a.b, trafficPolicy: { tunnel: { protocol: POST, targetHost: x.y, targetPort: 1 } } }\n',
      ),
    );
  });
});
