import 'reflect-metadata';
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { homeFiles } from '@mizzen/control';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { SvidService } from '@mizzen/envoy-api/gen/mizzen/citadel/v1/svid_pb.js';
import { TokenIssuer as OwnTokens } from '../packages/control/citadel/token-issuer.ts';
import { KnownTokens } from '../packages/control/citadel/workload-tokens.ts';
import { until } from './support/http.ts';
import { citadelTransport, signingRequest } from './support/identities.ts';
import { TestMesh } from './support/mesh.ts';
import { TokenIssuer } from './support/tokens.ts';

/** A mesh that takes tokens of an issuer found by discovery, and of a cluster that has them reviewed (the API server of another mesh, which is Kubernetes-shaped). */
describe('tokens by which a workload proves who it is', () => {
  let mesh: TestMesh;
  let cluster: TestMesh;
  let issuer: TokenIssuer;
  let csr: string;
  const closers: (() => unknown)[] = [];
  before(async () => {
    cluster = await TestMesh.start();
    let jwks = '';
    const server = createServer((request, response) => {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      response.end(request.url === '/keys' ? jwks : JSON.stringify({ issuer: url, jwks_uri: `${url}/keys` }));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    closers.push(() => server.close());
    issuer = await TokenIssuer.create(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    jwks = issuer.jwks;
    const files = homeFiles(cluster.home);
    const kubernetes = { api: `https://127.0.0.1:${cluster.plane.apiPort}`, tokenFile: files.adminToken, caFile: files.rootCertificate };
    mesh = await TestMesh.start({ tokenSources: { issuers: [issuer.issuer], kubernetes } });
    ({ csr } = await signingRequest());
  });
  after(async () => {
    for (const close of closers) close();
    await Promise.all([mesh.close(), cluster.close()]);
  });

  const transport = () => citadelTransport(mesh);
  /** The identity that a token is given a certificate for. */
  const identityBy = async (token: string) => {
    const { certChain } = await createClient(IstioCertificateService, transport()).createCertificate(
      { csr },
      { headers: { authorization: `Bearer ${token}` } },
    );
    return new X509Certificate(certChain[0]!).subjectAltName;
  };
  const refusal = async (token: string) => {
    const error = await identityBy(token).then(
      (identity) => `it was taken for ${identity}`,
      (thrown: unknown) => thrown,
    );
    assert.ok(error instanceof ConnectError && error.code === Code.Unauthenticated, String(error));
    assert.ok(!error.rawMessage.includes(token));
    return error.rawMessage;
  };
  const claims = { sub: 'system:serviceaccount:shop:cart', aud: ['istio-ca'] };

  it('are those of an issuer that the control plane was told of, checked by its keys', async () => {
    const token = await issuer.sign(claims);
    await until(
      'the keys are fetched',
      () => identityBy(token),
      () => true,
    );
    assert.equal(await identityBy(token), 'URI:spiffe://cluster.local/ns/shop/sa/cart');
    assert.equal(await identityBy(await issuer.sign(claims, { alg: 'ES256' })), 'URI:spiffe://cluster.local/ns/shop/sa/cart');
  });

  it('are refused when they are for somebody else, outdated, forged, or of no service account', async () => {
    assert.match(await refusal(await issuer.sign({ ...claims, aud: 'vault' })), /its claim "aud" is wrong.*audience istio-ca/);
    assert.match(await refusal(await issuer.sign({ ...claims, exp: Math.floor(Date.now() / 1000) - 120 })), /it has expired/);
    assert.match(await refusal(await issuer.sign({ ...claims, sub: 'anna' })), /"anna", which is no service account/);
    for (const sub of [
      'system:serviceaccount:shop:cart/sa/admin',
      'system:serviceaccount:a:b:c',
      'system:serviceaccount:shop:',
      'system:serviceaccount:../x:y',
    ])
      assert.match(await refusal(await issuer.sign({ ...claims, sub })), /no service account/, sub);
    for (const [how, token] of Object.entries(issuer.forgeries(claims))) assert.match(await refusal(token), /is not good/, how);
    const other = await TokenIssuer.create(issuer.issuer);
    assert.match(await refusal(await other.sign(claims)), /is not good/);
    assert.match(await refusal(await (await TokenIssuer.create('https://unknown.example')).sign(claims)), /Kubernetes does not know the token/);
  });

  it('are those that a Kubernetes API server says are good, for us', async () => {
    const { token } = await cluster.plane.tokens.issue('shop', 'orders', [], 600);
    assert.equal(await identityBy(token), 'URI:spiffe://cluster.local/ns/shop/sa/orders');
    assert.match(await refusal((await cluster.plane.tokens.issue('shop', 'orders', ['vault'], 600)).token), /Kubernetes does not know the token.*claim "aud"/);
    assert.match(await refusal('nonsense'), /Kubernetes does not know the token/);
  });

  it('prove nothing as long as Kubernetes cannot be asked', async () => {
    const { token } = await cluster.plane.tokens.issue('shop', 'orders', [], 600);
    const { rootCertificate } = homeFiles(cluster.home);
    const wrong = join(mesh.home, 'wrong-token');
    writeFileSync(wrong, 'wrong');
    const api = `https://127.0.0.1:${cluster.plane.apiPort}`;
    for (const [kubernetes, reason] of [
      [{ api: 'https://127.0.0.1:1', tokenFile: wrong, caFile: rootCertificate }, /cannot be asked \(.*ECONNREFUSED/],
      [{ api, tokenFile: wrong, caFile: rootCertificate }, /cannot be asked \(it answers with 401\)/],
      [{ api, tokenFile: join(mesh.home, 'none'), caFile: rootCertificate }, /cannot be asked \(ENOENT/],
      [{ api, tokenFile: wrong, caFile: homeFiles(mesh.home).rootCertificate }, /cannot be asked \(.*(self.signed|unable to)/],
    ] as const)
      await assert.rejects(new KnownTokens(mesh.plane.tokens, { kubernetes }).verify(token), reason);
    assert.throws(() => new KnownTokens(mesh.plane.tokens, { issuers: ['http://keys.example'] }), /has to be an https URL/);
  });

  it('are good for one certificate and nothing else, where they were made so', async () => {
    const { token } = await mesh.plane.tokens.issue('shop', 'once', [], 600, true);
    const svids = createClient(SvidService, transport());
    await assert.rejects(svids.getKeys({}, { headers: { authorization: `Bearer ${token}` } }), /good for one certificate, and for nothing else/);
    const answers = await Promise.allSettled([identityBy(token), identityBy(token), identityBy(token)]);
    assert.equal(answers.filter(({ status }) => status === 'fulfilled').length, 1);
    assert.match(await refusal(token), /was good once, and has been used/);
    const restarted = new OwnTokens(homeFiles(mesh.home).certificates);
    await assert.rejects(restarted.verify(token, true), /was good once, and has been used/, 'also after a restart');
  });

  it('start a sidecar, from the first certificate on without them', async () => {
    const file = join(mesh.home, 'once.token');
    writeFileSync(file, (await mesh.plane.tokens.issue('default', 'starter', [], 600, true)).token);
    const { proxy } = await mesh.proxy('starter', { tokenFile: file, certificateSeconds: 10 });
    await proxy.ready;
    const serials = new Set<string>();
    const log = join(homeFiles(mesh.home).certificates, 'issued.log');
    await until(
      'a renewal',
      async () => {
        for (const line of readFileSync(log, 'utf8').trim().split('\n')) {
          const { identity, serial, by } = JSON.parse(line) as { identity: string; serial: string; by: string };
          if (identity.endsWith('/sa/starter')) serials.add(`${serial} by ${by}`);
        }
        return [...serials].map((text) => text.split(' by ')[1]);
      },
      (by) => by.includes('certificate'),
      60_000,
    );
  });
});
