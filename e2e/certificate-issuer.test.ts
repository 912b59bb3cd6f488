import 'reflect-metadata';
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { type CertificateIssuer, homeFiles, IstioCaIssuer } from '@mizzen/control';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { CertificateAuthority } from '../packages/control/citadel/certificate-authority.ts';
import { CheckedIssuer } from '../packages/control/citadel/certificate-issuer.ts';
import { call, until } from './support/http.ts';
import { citadelTransport, signingRequest } from './support/identities.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const forwarder = { namespace: 'istio-system', serviceAccount: 'mizzen-control' };

describe('certificates that another authority signs', () => {
  let upstream: TestMesh;
  let mesh: TestMesh;
  let web: RunningProxy;
  let client: RunningProxy;
  let tokenFile: string;
  before(async () => {
    upstream = await TestMesh.start({ forwarders: [`${forwarder.namespace}/${forwarder.serviceAccount}`] });
    tokenFile = join(upstream.home, 'forwarder.token');
    writeFileSync(tokenFile, (await upstream.plane.tokens.issue(forwarder.namespace, forwarder.serviceAccount, [], 3600)).token);
    const { rootCertificate } = homeFiles(upstream.home);
    mesh = await TestMesh.start({ issuer: new IstioCaIssuer({ address: `localhost:${upstream.plane.xdsPort}`, rootFile: rootCertificate, tokenFile }) });
    await mesh.apply(
      `${service('web')}apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: default, namespace: istio-system }\nspec: { mtls: { mode: STRICT } }\n`,
    );
    web = await mesh.workload('web');
    client = await mesh.proxy('client', { certificateSeconds: 10 });
    await client.proxy.ready;
  });
  after(async () => {
    await mesh.close();
    await upstream.close();
  });

  const issued = (of: TestMesh) =>
    readFileSync(join(homeFiles(of.home).certificates, 'issued.log'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { outcome: string; identity: string; forwarder?: string; serial?: string; reason?: string });
  const ask = (by: { readonly token: string }, metadata: Record<string, string>) =>
    upstreamClient().createCertificate({ csr: 'x', metadata }, { headers: { authorization: `Bearer ${by.token}` } });
  const upstreamClient = () => createClient(IstioCertificateService, citadelTransport(upstream));

  it('carry the mesh: workloads prove themselves by them, and renew them', async () => {
    const asked = () => call({ port: client.outboundPort, headers: { host: 'web:9080' } });
    assert.equal((await asked()).status, 200);
    const headers = (JSON.parse((await asked()).body) as { headers: Record<string, string> }).headers;
    assert.match(headers['x-forwarded-client-cert']!, /URI=spiffe:\/\/cluster\.local\/ns\/default\/sa\/client/);
    const certs = JSON.parse((await call({ port: web.adminPort, path: '/certs' })).body) as { certificates: { ca_cert: { serial_number: string }[] }[] };
    const root = new X509Certificate(upstream.plane.authority.rootCertificate);
    assert.ok(JSON.stringify(certs).toLowerCase().includes(root.serialNumber.toLowerCase()));
    const ofClient = () => issued(mesh).filter(({ identity }) => identity.endsWith('/sa/client'));
    await until(
      'a renewal',
      async () => ofClient().length,
      (count) => count >= 2,
      60_000,
    );
    assert.equal((await asked()).status, 200);
  });

  it('are in the log of both: for whom, and by whom they were asked for', async () => {
    const here = issued(mesh).find(({ identity }) => identity.endsWith('/sa/web'))!;
    const there = issued(upstream).find(({ identity }) => identity.endsWith('/sa/web'))!;
    assert.equal(there.forwarder, 'spiffe://cluster.local/ns/istio-system/sa/mizzen-control');
    assert.equal(here.forwarder, undefined);
    assert.equal(here.serial, there.serial);
  });

  it('are given for others only to those who may ask for others, and of the same trust domain', async () => {
    const anybody = await upstream.plane.tokens.issue('default', 'web', [], 600);
    const other = { ImpersonatedIdentity: 'spiffe://cluster.local/ns/default/sa/admin' };
    await assert.rejects(
      ask(anybody, other),
      (error) => error instanceof ConnectError && error.code === Code.PermissionDenied && /may not ask for identities of others/.test(error.message),
    );
    const trusted = await upstream.plane.tokens.issue(forwarder.namespace, forwarder.serviceAccount, [], 600);
    for (const ImpersonatedIdentity of ['spiffe://else.example/ns/default/sa/admin', 'spiffe://cluster.local/else', 'admin'])
      await assert.rejects(ask(trusted, { ImpersonatedIdentity }), /is no identity of trust domain cluster\.local/, ImpersonatedIdentity);
  });

  it('are waited for while that authority cannot be reached, and what there is goes on', async () => {
    const good = readFileSync(tokenFile, 'utf8');
    writeFileSync(tokenFile, 'wrong');
    const late = await mesh.proxy('late');
    const refused = () => issued(mesh).filter(({ identity, outcome }) => outcome === 'refused' && identity.endsWith('/sa/late'));
    await until(
      'the refusal',
      async () => refused().length,
      (count) => count > 0,
    );
    assert.match(refused()[0]!.reason!, /the issuer localhost:\d+ gives no certificate: .*not issued by this control plane/);
    assert.equal((await call({ port: client.outboundPort, headers: { host: 'web:9080' } })).status, 200);
    writeFileSync(tokenFile, good);
    await late.proxy.ready;
  });
});

describe('a certificate issuer that is somebody else’s code', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-issuer-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  const identity = { trustDomain: 'cluster.local', namespace: 'default', serviceAccount: 'web' };

  it('is believed only where its certificate is what was asked for', async () => {
    const authority = await CertificateAuthority.open(join(folder, 'a'), 'cluster.local');
    const stranger = await CertificateAuthority.open(join(folder, 'b'), 'cluster.local');
    const { csr } = await signingRequest();
    const by = (issue: CertificateIssuer['issue']) => new CheckedIssuer({ name: 'test', roots: authority.rootCertificate, issue }).issue(csr, identity, 600);
    const chainFor = async (who: typeof identity, from = authority, request = csr) => (await from.issue(request, who, 600)).chain;
    const good = await by(() => chainFor(identity));
    assert.equal(good.chain.length, 2);
    assert.equal((await by(async () => [...(await chainFor(identity)), authority.rootCertificate])).chain.length, 2, 'also with its root');
    assert.match(good.serial, /^[0-9a-f]{32}$/);
    for (const [issue, problem] of [
      [async () => [], /there is none/],
      [() => chainFor({ ...identity, serviceAccount: 'admin' }), /it is for URI:spiffe:\/\/cluster\.local\/ns\/default\/sa\/admin, and not for/],
      [async () => chainFor(identity, authority, (await signingRequest()).csr), /it is for another key/],
      [() => chainFor(identity, stranger), /it does not lead to one of its roots/],
      [async () => (await chainFor(identity)).slice(0, 1), /it does not lead to one of its roots/],
      [async () => [(await chainFor(identity))[0]!, (await chainFor(identity, stranger))[1]!], /its chain is broken/],
      [async () => [(await chainFor(identity))[0]!, (await chainFor(identity))[0]!], /its chain is broken/],
      [async () => Promise.reject(new Error('out of paper')), /the issuer test gives no certificate: out of paper/],
    ] as const)
      await assert.rejects(by(issue), problem);
    await assert.rejects(
      new CheckedIssuer({ name: 'test', roots: authority.rootCertificate, issue: () => chainFor(identity) }).issue('no csr', identity, 600),
      /the certificate request cannot be used/,
    );
    assert.throws(() => new CheckedIssuer({ name: 'test', roots: '', issue: async () => [] }), /the issuer test has no roots/);
  });
});
