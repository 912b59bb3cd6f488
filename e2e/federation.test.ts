import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { bundlePath } from '@mizzen/control';
import { TrustBundles } from '../packages/control/citadel/trust-bundles.ts';
import { takeStep } from '../packages/control/root-rotation.ts';
import { call, until } from './support/http.ts';
import { statusFor, workloadApi } from './support/identities.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

/** What the mesh trusts beside its own roots, as Istio's mesh config says it. */
const trusts = (entries: readonly object[]) =>
  `apiVersion: v1\nkind: ConfigMap\nmetadata: { name: istio, namespace: istio-system }\ndata:\n  mesh: '${JSON.stringify({ caCertificates: entries }).replaceAll("'", "''")}'\n`;

const headers = { 'workload.spiffe.io': 'true' };

/** Two meshes, `here` and `there`, with control planes and roots of their own. */
describe('a federation of trust domains', () => {
  let here: TestMesh;
  let there: TestMesh;
  let client: RunningProxy;
  let web: RunningProxy;
  let socketPath: string;
  const bundleUrl = () => `https://localhost:${there.plane.apiPort}${bundlePath}`;
  const ask = async () => (await call({ port: client.outboundPort, headers: { host: 'web.there.example' } })).status;
  const bundles = async () => {
    for await (const answer of workloadApi(socketPath).fetchX509Bundles({}, { headers })) return answer.bundles;
    throw new Error('nothing came');
  };
  const becomes = (what: string, status: number) => until(what, ask, (found) => found === status);
  /** Whether a certificate by the authority of one mesh, for an identity of a trust domain, is taken by the server. */
  const isTaken = async (by: TestMesh, trustDomain: string) => {
    const pair = await by.plane.authority.issueServer({ dns: [], ip: [], identity: { trustDomain, namespace: 'default', serviceAccount: 'client' } }, 600);
    return (await statusFor(web.inboundPort, pair)) !== undefined;
  };
  before(async () => {
    here = await TestMesh.start({ trustDomain: 'here.example', bundleRefreshSeconds: 0.1 });
    there = await TestMesh.start({ trustDomain: 'there.example', bundleRefreshSeconds: 0.1 });
    await there.apply(`${service('web')}
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: STRICT } }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: web }
spec:
  rules:
  - from: [{ source: { principals: [here.example/ns/default/sa/client] } }]
`);
    web = await there.workload('web', { fields: { certificateSeconds: 20 } });
    socketPath = join(here.home, 'spiffe', 'api.sock');
    client = await here.proxy('client', { workloadApiSocket: socketPath });
    await client.proxy.ready;
    await here.apply(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: web-there }
spec:
  hosts: [web.there.example]
  ports: [{ number: 80, name: http, protocol: HTTP }]
  resolution: STATIC
  endpoints: [{ address: 127.0.0.1, ports: { http: ${web.inboundPort} } }]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: web-there }
spec:
  host: web.there.example
  trafficPolicy:
    tls: { mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://there.example/ns/default/sa/web] }
`);
  });
  after(() => Promise.all([here.close(), there.close()]));

  it('is none as long as nobody has said so', async () => {
    assert.equal(await ask(), 503);
  });

  it('begins when each is given the roots of the other, and policies tell the two apart', async () => {
    await there.apply(trusts([{ pem: here.plane.authority.trustBundle, trustDomains: ['here.example'] }]));
    assert.equal(await ask(), 503, 'one of the two is not enough');
    await here.apply(trusts([{ pem: there.plane.authority.trustBundle, trustDomains: ['there.example'] }]));
    await becomes('let in', 200);
    assert.equal((await call({ port: client.outboundPort, headers: { host: 'web.there.example' } })).status, 200);
  });

  it('lets no root speak for another trust domain', async () => {
    assert.equal(await isTaken(here, 'here.example'), true);
    assert.equal(await isTaken(there, 'there.example'), true);
    assert.equal(await isTaken(here, 'there.example'), false, 'the other mesh makes identities of ours');
    assert.equal(await isTaken(there, 'here.example'), false, 'ours makes identities of the other mesh');
    assert.equal(await isTaken(here, 'else.example'), false);
  });

  it('gives applications the bundles of both, and checks tokens of both by the keys of their own', async () => {
    await here.apply(
      trusts([
        { pem: there.plane.authority.rootCertificate, trustDomains: ['there.example'] },
        { spiffeBundleUrl: bundleUrl(), trustDomains: ['there.example'] },
      ]),
    );
    const federation = async () => JSON.parse((await api(here, '/mizzen/v1/ca')).body) as { federation: { fetchedAt?: string; problem?: string }[] };
    await until('the bundle is fetched', federation, ({ federation: [one] }) => one?.fetchedAt !== undefined && one.problem === undefined);
    await here.synced();
    const workload = workloadApi(socketPath);
    assert.deepEqual(Object.keys(await bundles()).sort(), ['spiffe://here.example', 'spiffe://there.example']);
    for await (const { svids, federatedBundles } of workload.fetchX509SVID({}, { headers })) {
      assert.deepEqual(
        [svids.map(({ spiffeId }) => spiffeId), Object.keys(federatedBundles)],
        [['spiffe://here.example/ns/default/sa/client'], ['spiffe://there.example']],
      );
      break;
    }
    const theirSocket = join(there.home, 'spiffe', 'api.sock');
    await (await there.proxy('other', { workloadApiSocket: theirSocket, certificateSeconds: 20 })).proxy.ready;
    const theirs = workloadApi(theirSocket);
    const { svids } = await theirs.fetchJWTSVID({ audience: ['billing'] }, { headers });
    const { spiffeId } = await workload.validateJWTSVID({ audience: 'billing', svid: svids[0]!.svid }, { headers });
    assert.equal(spiffeId, 'spiffe://there.example/ns/default/sa/other');
    await assert.rejects(
      theirs.validateJWTSVID({ audience: 'billing', svid: (await workload.fetchJWTSVID({ audience: ['billing'] }, { headers })).svids[0]!.svid }, { headers }),
    );
  });

  it('follows the other mesh through a change of its root', async () => {
    const ready = () =>
      until(
        'all are ready',
        async () => takeStep(there.plane.authority, there.plane.pilot.proxies(), there.plane.authority.phase === 'prepared' ? 'switch' : 'finish', false),
        () => true,
        60_000,
      );
    const length = async () => (await bundles())['spiffe://there.example']!.length;
    const before = await length();
    await takeStep(there.plane.authority, there.plane.pilot.proxies(), 'prepare', false);
    await until('the next root is known here', length, (bytes) => bytes > before);
    await ready();
    await ready();
    assert.equal(there.plane.authority.phase, 'steady');
    assert.equal(await ask(), 200);
  });

  it('says what is wrong when a bundle cannot be had, and stays with what it knew', async () => {
    await here.apply(trusts([{ spiffeBundleUrl: `https://localhost:${there.plane.xdsPort}/nothing`, trustDomains: ['there.example'] }]));
    const status = JSON.parse(
      (
        await until(
          'a problem',
          () => api(here, '/mizzen/v1/ca'),
          ({ body }) => body.includes('problem'),
        )
      ).body,
    ) as {
      federation: { trustDomain: string; problem: string }[];
    };
    assert.equal(status.federation[0]!.trustDomain, 'there.example');
    assert.equal(await ask(), 200, 'what was kept is in effect');
    const kept = new TrustBundles({
      ...{ ownRoots: () => here.plane.authority.trustBundle, fetchPolicy: undefined, trustDomain: 'here.example', directory: join(here.home, 'ca', 'bundles') },
      ...{ logger: silentLogger, onChange: () => {} },
    });
    kept.configure([{ pem: undefined, spiffeBundleUrl: 'https://127.0.0.1:1/', trustDomains: ['there.example'] }]);
    assert.match(kept.current().others.get('there.example')!, /BEGIN CERTIFICATE/);
    kept.close();
  });

  it('is taken back with the line that said so', async () => {
    await there.apply(trusts([]));
    assert.equal(await isTaken(here, 'here.example'), false);
    assert.equal(await isTaken(there, 'there.example'), true);
  });
});

const api = (mesh: TestMesh, path: string) =>
  call({
    port: mesh.plane.apiPort,
    path,
    headers: { authorization: `Bearer ${readFileSync(join(mesh.home, 'admin-token'), 'utf8').trim()}` },
    tls: { rejectUnauthorized: false },
  });
