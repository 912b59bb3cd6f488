import assert from 'node:assert/strict';
import { once } from 'node:events';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import type { TLSSocket } from 'node:tls';
import { findKind } from '@mizzen/api';
import { TestAuthority } from './support/certificates.ts';
import { call, until } from './support/http.ts';
import { type RunningProxy, TestMesh } from './support/mesh.ts';

const entry = (name: string, spec: string) => `---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: ${name} }\nspec:\n${spec}`;

describe('services outside of the mesh', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  let app: number;
  before(async () => {
    mesh = await TestMesh.start();
    app = await mesh.application('outside');
    client = await mesh.proxy('client');
    await client.proxy.ready;
  });
  after(() => mesh.close());

  const hostOf = async (host: string) => {
    const { status, body } = await call({ port: client.outboundPort, headers: { host } });
    return status === 200 ? (JSON.parse(body) as { headers: Record<string, string> }).headers['host'] : status;
  };
  const endpointsOf = async (cluster: string) => {
    const { body } = await call({ port: client.adminPort, path: '/clusters' });
    const found = (JSON.parse(body).clusters as { name: string; endpoints: { address: string }[] }[]).find(({ name }) => name === cluster);
    return found?.endpoints.map(({ address }) => address);
  };

  it('are found by name: all addresses of it, or whichever a connection is given', async () => {
    const of = (name: string, resolution: string) =>
      entry(
        name,
        `  hosts: [${name}.example]\n  ports: [{ number: 80, name: http, protocol: HTTP }]\n  resolution: ${resolution}\n  endpoints: [{ address: localhost, ports: { http: ${app} } }]\n`,
      );
    await mesh.apply(of('all', 'DNS') + of('one', 'DNS_ROUND_ROBIN'));
    assert.deepEqual([await hostOf('all.example'), await hostOf('one.example')], ['all.example', 'one.example']);
    const resolved = await until(
      'the name is resolved',
      () => endpointsOf('outbound|80||all.example'),
      (endpoints) => !endpoints?.some((address) => address.startsWith('localhost')),
    );
    assert.deepEqual(resolved, [`127.0.0.1:${app}`]);
    assert.deepEqual(await endpointsOf('outbound|80||one.example'), [`localhost:${app}`]);
  });

  it('are where the request says, for hosts that are let through', async () => {
    await mesh.apply(entry('dynamic', `  hosts: ["*.0.0.1"]\n  ports: [{ number: ${app}, name: http, protocol: HTTP }]\n  resolution: DYNAMIC_DNS\n`));
    assert.equal(await hostOf(`127.0.0.1:${app}`), `127.0.0.1:${app}`);
    assert.equal(await hostOf('127.0.0.1:1'), 502);
  });

  it('are shown a certificate from a secret, and must show one that its roots know', async () => {
    const [servers, clients] = [new TestAuthority(mesh.home, 'servers'), new TestAuthority(mesh.home, 'clients')];
    const own = servers.issue('bank', ['DNS:bank.example']);
    const server = https
      .createServer(
        { cert: servers.pem(own.cert), key: servers.pem(own.key), ca: clients.pem(clients.certificate), requestCert: true, rejectUnauthorized: true },
        (request, response) => response.end((request.socket as TLSSocket).getPeerCertificate().subjectaltname),
      )
      .listen(0, '127.0.0.1');
    await once(server, 'listening');
    mesh.onClose(async () => {
      server.closeAllConnections();
      server.close();
    });
    const mine = clients.issue('client', ['DNS:client.example']);
    const base64 = (text: string | Buffer) => Buffer.from(text).toString('base64');
    await mesh.apply(
      [
        `apiVersion: v1\nkind: Secret\nmetadata: { name: bank-client }\ndata: { tls.crt: ${base64(clients.pem(mine.cert))}, tls.key: ${base64(clients.pem(mine.key))}, ca.crt: ${base64(servers.pem(servers.certificate))} }\n`,
        entry(
          'bank',
          `  hosts: [bank.example]\n  ports: [{ number: 80, name: http, protocol: HTTP }]\n  resolution: STATIC\n  endpoints: [{ address: 127.0.0.1, ports: { http: ${(server.address() as AddressInfo).port} } }]\n`,
        ),
        '---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: bank }\nspec:\n  host: bank.example\n  workloadSelector: { matchLabels: { app: client } }\n  trafficPolicy: { tls: { mode: MUTUAL, credentialName: bank-client } }\n',
      ].join(''),
    );
    const answer = await until(
      'the secret has come',
      () => call({ port: client.outboundPort, headers: { host: 'bank.example' } }),
      ({ status }) => status === 200,
    );
    assert.equal(answer.body, 'DNS:client.example');
  });

  it('are workloads of the mesh that register by a WorkloadGroup: its labels, weight and ports are theirs', async () => {
    await mesh.apply(
      `apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: { name: machines }\nspec:\n  metadata: { labels: { team: a } }\n  template: { labels: { app: machine }, weight: 7, locality: eu/1, ports: { admin: 9999 } }\n`,
    );
    await mesh.workload('machine', { fields: { workloadGroup: 'machines', labels: { version: 'v1' } } });
    const { resource } = await mesh.plane.registry.get(findKind('networking.istio.io', 'WorkloadEntry')!, 'default', 'machine');
    const spec = resource.spec as { labels: Record<string, string>; weight: number; locality: string; ports: Record<string, number> };
    assert.deepEqual(
      [spec.labels['app'], spec.labels['team'], spec.labels['version'], spec.weight, spec.locality, spec.ports['admin']],
      ['machine', 'a', 'v1', 7, 'eu/1', 9999],
    );
  });
});
