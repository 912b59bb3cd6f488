import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { compileBootstrap, startStaticProxy } from '@mizzen/proxy';
import { TestAuthority } from './support/certificates.ts';
import { bootstrap, cluster, listener, tcp, typed } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';
import { skipWithout } from './support/requirements.ts';

/** One Api at the edge, then in the sidecars, then in both: with the same client throughout. */
describe('the placement of an API', () => {
  let mesh: TestMesh;
  let authority: TestAuthority;
  let edgePort: number;
  let sidecars: readonly [RunningProxy, RunningProxy];
  let publicPorts: readonly [number, number];

  const client = (port: number, key = 'k', path = '/shop/a') =>
    call({
      port,
      path,
      headers: { host: 'shop.test', 'x-api-key': key },
      tls: { servername: 'shop.test', ca: readFileSync(authority.certificate), agent: false },
    });
  const api = (placement: string, proxyProtocol = false) => `
apiVersion: mizzen.dev/v1alpha1
kind: Api
metadata: { name: shop }
spec:
  hosts: [shop.test]
  paths: [/shop]
  placement: ${placement}
  ${placement === 'sidecar' ? '' : 'gateways: [ingress]'}
  ${placement === 'edge' ? '' : `listener: { port: 8443, tls: { credentialName: shop-cert }, proxyProtocol: ${proxyProtocol} }`}
  upstream: { service: shop }
  policies:
    authentication: { apiKey: {} }
    ipAccess: { deny: [192.0.2.0/24] }
    transform: { path: { replacePrefix: /internal } }
`;

  before(async () => {
    mesh = await TestMesh.start();
    authority = new TestAuthority(mesh.home);
    const { cert, key } = authority.issue('shop', ['DNS:shop.test']);
    edgePort = await mesh.ports.next();
    const sidecar = async (index: number) => {
      const port = await mesh.ports.next();
      const running = await mesh.proxy(`shop-${index}`, {
        labels: { app: 'shop' },
        registers: true,
        inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${await mesh.ports.next()}`, app: `127.0.0.1:${await mesh.application(`shop-${index}`)}` }],
        publicPorts: [{ port: 8443, listen: `127.0.0.1:${port}` }],
      });
      await running.proxy.ready;
      return { running, port };
    };
    const [a, b] = [await sidecar(0), await sidecar(1)];
    sidecars = [a.running, b.running];
    publicPorts = [a.port, b.port];
    const gw = await mesh.proxy('gw', { type: 'gateway', labels: { app: 'gateway' } });
    await mesh.apply(`${service('shop')}
apiVersion: v1
kind: Secret
metadata: { name: shop-cert }
type: kubernetes.io/tls
data: { tls.crt: ${readFileSync(cert).toString('base64')}, tls.key: ${readFileSync(key).toString('base64')} }
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: ingress }
spec:
  selector: { app: gateway }
  servers: [{ port: { number: ${edgePort}, name: https, protocol: HTTPS }, hosts: [shop.test], tls: { mode: SIMPLE, credentialName: shop-cert } }]
---
apiVersion: mizzen.dev/v1alpha1
kind: Consumer
metadata: { name: alice }
spec: {}
---
apiVersion: mizzen.dev/v1alpha1
kind: Credential
metadata: { name: alice }
spec: { consumer: alice, apiKey: { sha256: 8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a } }
---
${api('edge')}`);
    await gw.proxy.ready;
  });
  after(() => mesh.close());

  const check = async (port: number) => {
    const answer = await until(
      'an answer',
      () => client(port),
      ({ status }) => status === 200,
    );
    const { url, headers } = JSON.parse(answer.body) as { url: string; headers: Record<string, string> };
    assert.equal(url, '/internal/a');
    assert.equal(headers['x-mizzen-consumer'], 'default/alice');
    assert.equal((await client(port, 'wrong')).status, 401);
    assert.equal((await client(port, 'k', '/other')).status, 404);
  };

  it('is the edge: a gateway answers, and no sidecar does', async () => {
    await check(edgePort);
    await assert.rejects(client(publicPorts[0]));
  });

  it('is the sidecar: each replica answers for itself, with certificate and policies, and the gateway no more', async () => {
    await mesh.apply(api('sidecar'));
    for (const port of publicPorts) await check(port);
    await until(
      'nothing at the edge',
      () => client(edgePort),
      ({ status }) => status === 404,
    );
  });

  it('is both', async () => {
    await mesh.apply(api('both'));
    for (const port of [edgePort, ...publicPorts]) await check(port);
  });

  it('is the sidecar behind our own TCP proxy, which reads no more than the server name', async () => {
    await mesh.apply(api('sidecar', true));
    const port = await mesh.ports.next();
    const balancer = await startStaticProxy(
      compileBootstrap(
        bootstrap({
          listeners: [
            listener(
              'sni',
              port,
              tcp('shop'),
              { listener_filters: [typed('envoy.filters.listener.tls_inspector', 'extensions.filters.listener.tls_inspector.v3.TlsInspector')] },
              { filter_chain_match: { server_names: ['shop.test'] } },
            ),
          ],
          clusters: [
            cluster('shop', publicPorts, {
              transport_socket: typed(
                'envoy.transport_sockets.upstream_proxy_protocol',
                'extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport',
                {
                  config: { version: 'V2' },
                  transport_socket: typed('envoy.transport_sockets.raw_buffer', 'extensions.transport_sockets.raw_buffer.v3.RawBuffer'),
                },
              ),
            }),
          ],
        }),
        'balancer',
      ),
      silentLogger,
    );
    mesh.onClose(() => balancer.close());
    await balancer.ready;
    await check(port);
    const served = new Set<string>();
    for (let i = 0; i < 10; i++) served.add((JSON.parse((await client(port)).body) as { name: string }).name);
    assert.deepEqual([...served].sort(), ['shop-0', 'shop-1']);
    await assert.rejects(call({ port, tls: { servername: 'other.test', rejectUnauthorized: false } }));
  });

  it('is the sidecar behind haproxy', { skip: skipWithout('haproxy') }, async () => {
    const port = await mesh.ports.next();
    const file = join(mesh.home, 'haproxy.cfg');
    writeFileSync(
      file,
      `defaults
  mode tcp
  timeout connect 2s
  timeout client 30s
  timeout server 30s
frontend public
  bind 127.0.0.1:${port}
  tcp-request inspect-delay 2s
  tcp-request content accept if { req_ssl_hello_type 1 }
  use_backend shop if { req_ssl_sni -i shop.test }
backend shop
${publicPorts.map((publicPort, i) => `  server s${i} 127.0.0.1:${publicPort} send-proxy-v2`).join('\n')}
`,
    );
    const haproxy = spawn('haproxy', ['-f', file, '-db'], {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin` },
    });
    const exited = once(haproxy, 'exit');
    mesh.onClose(async () => {
      haproxy.kill();
      await exited;
    });
    await check(port);
  });

  it('believes the balancer, and nobody else, about where a request comes from', async () => {
    // Without the PROXY header that the listener asks for there is no connection.
    await assert.rejects(client(publicPorts[0]));
    await mesh.apply(api('sidecar'));
    await until(
      'an answer',
      () => client(publicPorts[0]),
      ({ status }) => status === 200,
    );
    const forged = await call({
      port: publicPorts[0],
      path: '/shop/a',
      headers: {
        host: 'shop.test',
        'x-api-key': 'k',
        'x-forwarded-client-cert': 'URI=spiffe://cluster.local/ns/default/sa/root',
        'x-forwarded-for': '192.0.2.1',
      },
      tls: { servername: 'shop.test', ca: readFileSync(authority.certificate), agent: false },
    });
    assert.equal(forged.status, 200);
    assert.equal((JSON.parse(forged.body) as { headers: Record<string, string> }).headers['x-forwarded-client-cert'], undefined);
    assert.equal(sidecars.length, 2);
  });
});
