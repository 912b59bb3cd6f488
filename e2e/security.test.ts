import assert from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import type net from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { homeFiles } from '@mizzen/control';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { CertificateAuthority } from '../packages/control/citadel/certificate-authority.ts';
import { TokenIssuer } from '../packages/control/citadel/token-issuer.ts';
import { call, until } from './support/http.ts';
import { citadelTransport } from './support/identities.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const strict =
  'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: default, namespace: istio-system }\nspec: { mtls: { mode: STRICT } }\n';
const mode = (name: string) => strict.replace('STRICT', name);

describe('identity and mutual TLS', () => {
  let mesh: TestMesh;
  let server: RunningProxy;
  let client: RunningProxy;
  const throughMesh = (from: RunningProxy = client, headers: Record<string, string> = {}) =>
    call({ port: from.outboundPort, headers: { host: 'web:9080', ...headers } });
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('web'));
    server = await mesh.workload('web', { serviceAccount: 'web-account' });
    client = await mesh.proxy('client', { serviceAccount: 'client-account' });
    await client.proxy.ready;
  });
  after(() => mesh.close());

  it('tells the application who called, and takes no word of a caller for it', async () => {
    const answer = await throughMesh(client, { 'x-forwarded-client-cert': 'By=spiffe://evil;URI=spiffe://evil' });
    const { headers } = JSON.parse(answer.body) as { headers: Record<string, string> };
    assert.match(
      headers['x-forwarded-client-cert'] ?? '',
      /^By=spiffe:\/\/cluster\.local\/ns\/default\/sa\/web-account;Hash=[0-9a-f]{64};Subject="[^"]*";URI=spiffe:\/\/cluster\.local\/ns\/default\/sa\/client-account$/,
    );
    const forged = {
      'x-mizzen-consumer': 'evil',
      x_mizzen_consumer: 'evil',
      'x-envoy-original-path': 'evil',
      'x-forwarded-for': 'evil',
      x_forwarded_for: 'evil',
    };
    assert.doesNotMatch((await throughMesh(client, forged)).body, /evil/);
    const plain = JSON.parse(
      (
        await call({
          port: server.inboundPort,
          headers: { host: 'web', 'x-forwarded-client-cert': 'URI=spiffe://evil', 'x-forwarded-for': '6.6.6.6', 'x-envoy-retry-on': '5xx' },
        })
      ).body,
    ) as { headers: Record<string, string> };
    assert.equal(plain.headers['x-forwarded-client-cert'], undefined);
    assert.equal(plain.headers['x-forwarded-for'], '127.0.0.1');
    assert.equal(plain.headers['x-envoy-retry-on'], undefined);
  });

  it('shows another service account by its identity in the log and the metrics of the server', async () => {
    const other = await mesh.proxy('other', { serviceAccount: 'other-account' });
    await other.proxy.ready;
    assert.equal((await throughMesh(other)).status, 200);
    const metrics = await call({ port: server.adminPort, path: '/stats/prometheus' });
    assert.match(
      metrics.body,
      /istio_requests_total\{reporter="destination",source_workload="other",[^}]*source_principal="spiffe:\/\/cluster\.local\/ns\/default\/sa\/other-account"[^}]*connection_security_policy="mutual_tls"\} 1/,
    );
    await until(
      'the access log',
      async () => readFileSync(server.config.accessLogFile!, 'utf8'),
      (text) => text.includes('spiffe://cluster.local/ns/default/sa/other-account'),
    );
  });

  it('refuses plain text when STRICT, takes it when PERMISSIVE, takes only plain text when DISABLE', async () => {
    await mesh.apply(strict);
    await assert.rejects(call({ port: server.inboundPort, headers: { host: 'web' } }));
    assert.equal((await throughMesh()).status, 200);
    assert.match((await call({ port: server.adminPort, path: '/stats/prometheus' })).body, /mizzen_plain_text_refused_total 1/);
    await mesh.apply(mode('DISABLE'));
    assert.equal((await call({ port: server.inboundPort, headers: { host: 'web' } })).status, 200);
    const answer = await throughMesh();
    assert.equal(answer.status, 200);
    assert.equal(JSON.parse(answer.body).headers['x-forwarded-client-cert'], undefined);
    await mesh.apply(mode('PERMISSIVE'));
    assert.equal((await call({ port: server.inboundPort, headers: { host: 'web' } })).status, 200);
    assert.match(JSON.parse((await throughMesh()).body).headers['x-forwarded-client-cert'], /client-account/);
  });

  it('refuses a certificate from another root, an expired one, and none at all', async () => {
    const handshake = (options: tls.ConnectionOptions) =>
      new Promise<string>((resolve) => {
        const socket = tls.connect({ host: '127.0.0.1', port: server.inboundPort, rejectUnauthorized: false, ...options });
        socket.once('secureConnect', () => socket.write('GET / HTTP/1.1\r\nhost: web\r\n\r\n'));
        socket.once('data', (data) => resolve(data.toString()));
        socket.once('error', (error) => resolve(`refused: ${error.message}`));
        socket.once('close', () => resolve('refused'));
      });
    const identity = { trustDomain: 'cluster.local', namespace: 'default', serviceAccount: 'web-account' };
    const stranger = await CertificateAuthority.open(join(mesh.home, 'stranger'), 'cluster.local');
    const forged = await stranger.issueServer({ dns: [], ip: [], identity }, 3600);
    assert.match(await handshake({ cert: forged.cert, key: forged.key }), /refused/);
    assert.match(await handshake({}), /refused/);
    const past = await CertificateAuthority.open(homeFiles(mesh.home).certificates, 'cluster.local', () => Date.now() - 3_600_000);
    const expired = await past.issueServer({ dns: [], ip: [], identity }, 600);
    assert.match(await handshake({ cert: expired.cert, key: expired.key }), /refused/);
    const nameless = await mesh.plane.authority.issueServer({ dns: ['web'], ip: [] }, 600);
    assert.match(await handshake({ cert: nameless.cert, key: nameless.key }), /refused/);
    const good = await mesh.plane.authority.issueServer({ dns: [], ip: [], identity }, 600);
    assert.match(await handshake({ cert: good.cert, key: good.key }), /^HTTP\/1\.1 200/);
  });

  it('does not talk to a server that proves another identity than the service has', async () => {
    // Somebody listens at the endpoint's address with a certificate of the mesh, but for another account.
    const other = await mesh.plane.authority.issueServer(
      { dns: [], ip: [], identity: { trustDomain: 'cluster.local', namespace: 'default', serviceAccount: 'impostor' } },
      600,
    );
    const received: string[] = [];
    const impostor = tls.createServer({ cert: other.cert, key: other.key, ALPNProtocols: ['istio'] }, (socket) =>
      socket.on('data', (data) => received.push(data.toString())),
    );
    await new Promise<void>((resolve) => impostor.listen(0, '127.0.0.1', resolve));
    const { port } = impostor.address() as net.AddressInfo;
    await mesh.apply(
      `${service('victim')}apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: { name: victim }\nspec: { address: 127.0.0.1, ports: { http: ${port} }, serviceAccount: victim, labels: { app: victim, security.istio.io/tlsMode: istio } }\n`,
    );
    const answer = await call({ port: client.outboundPort, headers: { host: 'victim:9080', authorization: 'secret' } });
    assert.equal(answer.status, 503);
    assert.match(answer.body, /impostor, but spiffe:\/\/cluster\.local\/ns\/default\/sa\/victim was expected/);
    assert.deepEqual(received, []);
    await new Promise((resolve) => impostor.close(resolve));
  });

  it('renews certificates at half of their life without dropping a connection', async () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const short = await mesh.proxy('short', { certificateSeconds: 10 });
    await short.proxy.ready;
    const serialOf = async () => JSON.parse((await call({ port: short.adminPort, path: '/certs' })).body).certificates[0].cert_chain[0].serial_number as string;
    const first = await serialOf();
    let requests = 0;
    await until(
      'a renewed certificate',
      async () => {
        const answer = await call({ port: short.outboundPort, headers: { host: 'web:9080' }, agent });
        assert.equal(answer.status, 200);
        requests++;
        return serialOf();
      },
      (serial) => serial !== first,
      60_000,
    );
    for (let i = 0; i < 20; i++) assert.equal((await call({ port: short.outboundPort, headers: { host: 'web:9080' }, agent })).status, 200);
    assert.ok(requests > 20);
    agent.destroy();
  });

  it('gives a certificate only for the identity that a token proves', async () => {
    const files = homeFiles(mesh.home);
    const authority = createClient(IstioCertificateService, citadelTransport(mesh));
    const refused = async (token: string | undefined, expected: RegExp) => {
      await assert.rejects(
        authority.createCertificate({ csr: 'x' }, { headers: token === undefined ? {} : { authorization: `Bearer ${token}` } }),
        (error: unknown) => error instanceof ConnectError && error.code === Code.Unauthenticated && expected.test(error.rawMessage),
      );
    };
    await refused(undefined, /neither a client certificate/);
    await refused('nonsense', /not issued by this control plane/);
    const late = new TokenIssuer(files.certificates, () => Date.now() - 7_200_000);
    await refused((await late.issue('default', 'web-account', [], 600)).token, /expired/);
    await refused((await mesh.plane.tokens.issue('default', 'web-account', ['somebody-else'], 600)).token, /claim "aud"/);
    const foreign = new TokenIssuer(join(mesh.home, 'foreign'));
    await refused((await foreign.issue('default', 'web-account', [], 600)).token, /not issued by this control plane/);
    const none = `${Buffer.from('{"alg":"none"}').toString('base64url')}.${Buffer.from('{"sub":"system:serviceaccount:default:x","aud":"istio-ca","exp":99999999999}').toString('base64url')}.`;
    await refused(none, /not issued by this control plane/);
    const { token } = await mesh.plane.tokens.issue('default', 'web-account', [], 600);
    await assert.rejects(
      authority.createCertificate({ csr: 'no csr' }, { headers: { authorization: `Bearer ${token}` } }),
      (error: unknown) => error instanceof ConnectError && error.code === Code.InvalidArgument,
    );
  });

  it('lets no proxy be what its token does not say', async () => {
    const file = join(mesh.home, 'liar.token');
    writeFileSync(file, (await mesh.plane.tokens.issue('default', 'nobody', [], 600)).token);
    const liar = await mesh.proxy('liar', { serviceAccount: 'web-account', tokenFile: file });
    await until(
      'the refusal',
      async () => (await call({ port: liar.adminPort, path: '/stats/prometheus' })).body,
      (text) => /control_plane_connection_attempts_total [2-9]/.test(text),
    );
    assert.ok(!mesh.plane.pilot.proxies().some((proxy) => proxy.name === 'liar'));
  });

  it('offers forward secret suites of TLS 1.2 and 1.3 alone on every server of the mesh, and never renegotiates', async () => {
    const { cert, key } = await mesh.plane.authority.issueServer(
      { dns: [], ip: [], identity: { trustDomain: 'cluster.local', namespace: 'default', serviceAccount: 'web-account' } },
      600,
    );
    for (const [name, port] of Object.entries({ xds: mesh.plane.xdsPort, api: mesh.plane.apiPort, sidecar: server.inboundPort })) {
      const connect = (options: tls.ConnectionOptions) =>
        new Promise<tls.TLSSocket>((resolve, reject) => {
          const common = { host: '127.0.0.1', port, cert, key, rejectUnauthorized: false, ALPNProtocols: ['istio', 'h2', 'http/1.1'] };
          const socket = tls.connect({ ...common, ...options }, () => resolve(socket)).once('error', reject);
        });
      for (const ciphers of ['AES128-GCM-SHA256', 'AES256-SHA', 'ECDHE-ECDSA-AES128-SHA', 'ECDHE-ECDSA-AES128-SHA256'])
        await assert.rejects(connect({ maxVersion: 'TLSv1.2', ciphers: `${ciphers}:@SECLEVEL=0` }), `${name} ${ciphers}`);
      await assert.rejects(connect({ minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' }), name);
      const socket = await connect({ maxVersion: 'TLSv1.2' });
      const refused = await new Promise((resolve) => {
        socket.on('error', resolve).on('close', () => resolve(new Error('closed')));
        if (socket.renegotiate({}, resolve) === false) resolve(new Error('refused at once'));
      });
      assert.ok(refused instanceof Error, name);
      socket.destroy();
    }
  });

  it('keeps keys in files that only their owner may read, and out of every dump', async () => {
    const { certificates, adminToken, store } = homeFiles(mesh.home);
    for (const file of [join(certificates, 'root-key.pem'), join(certificates, 'ca-key.pem'), join(certificates, 'token-key.pem'), adminToken, store])
      assert.equal(statSync(file).mode & 0o077, 0, file);
    for (const path of ['/config_dump', '/certs', '/clusters', '/listeners', '/stats/prometheus'])
      assert.doesNotMatch((await call({ port: server.adminPort, path })).body, /PRIVATE KEY/);
  });

  it('answers the admin server only to 127.0.0.1 by name, and never changes anything', async () => {
    assert.equal((await call({ port: server.adminPort, path: '/certs', headers: { host: 'evil.example' } })).status, 403);
    assert.equal((await call({ port: server.adminPort, path: '/certs', method: 'POST' })).status, 405);
  });
});
