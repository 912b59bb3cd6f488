import 'reflect-metadata';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createClient } from '@connectrpc/connect';
import { homeFiles } from '@mizzen/control';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { Revocations } from '../packages/control/citadel/revocations.ts';
import { takeStep } from '../packages/control/root-rotation.ts';
import { call, until } from './support/http.ts';
import { citadelTransport, type Pair, signingRequest, statusFor } from './support/identities.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

describe('a certificate that is revoked', () => {
  let mesh: TestMesh;
  let web: RunningProxy;
  let client: RunningProxy;
  let intruder: Pair;
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(
      `${service('web')}apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: default, namespace: istio-system }\nspec: { mtls: { mode: STRICT } }\n`,
    );
    web = await mesh.workload('web');
    client = await mesh.proxy('client');
    await client.proxy.ready;
    intruder = await certificateFor('intruder');
  });
  after(() => mesh.close());

  const authorityBy = (pair: Pair | undefined) => createClient(IstioCertificateService, citadelTransport(mesh, pair));
  /** By the service that writes the log: what is not in it cannot be revoked. */
  const certificateFor = async (serviceAccount: string) => {
    const { csr, key } = await signingRequest();
    const { token } = await mesh.plane.tokens.issue('default', serviceAccount, [], 600);
    const { certChain } = await authorityBy(undefined).createCertificate({ csr }, { headers: { authorization: `Bearer ${token}` } });
    return { cert: certChain.slice(0, -1).join('\n'), key };
  };
  const isTaken = async (pair: Pair) => (await statusFor(web.inboundPort, pair)) !== undefined;
  const api = (method: string, path: string, body?: object, pair?: Pair) =>
    call({
      ...{ port: mesh.plane.apiPort, path, method, tls: { rejectUnauthorized: false, ...pair } },
      headers: pair ? {} : { authorization: `Bearer ${readFileSync(homeFiles(mesh.home).adminToken, 'utf8').trim()}`, 'content-type': 'application/json' },
      ...(body ? { body: JSON.stringify(body) } : {}),
    });
  const revoke = async (which: object) => {
    const answer = await api('POST', '/mizzen/v1/ca/revoke', which);
    await mesh.synced();
    return { code: answer.status, ...(JSON.parse(answer.body) as { revoked?: { serial: string; identity: string }[]; message?: string }) };
  };

  it('is taken until then, and nobody looks for lists', async () => {
    assert.equal(await isTaken(intruder), true);
    assert.equal(existsSync(join(homeFiles(mesh.home).certificates, 'revoked.json')), false);
  });

  it('is refused by workloads, by the authority, and at the API; a new one for the same identity is not', async () => {
    const { revoked } = await revoke({ identity: 'spiffe://cluster.local/ns/default/sa/intruder' });
    assert.deepEqual(
      revoked!.map(({ identity }) => identity),
      ['spiffe://cluster.local/ns/default/sa/intruder'],
    );
    assert.equal(await isTaken(intruder), false);
    await assert.rejects(authorityBy(intruder).createCertificate({ csr: (await signingRequest()).csr }), /the certificate is revoked/);
    const answer = await api('GET', '/api/v1/namespaces/default/services', undefined, intruder);
    assert.deepEqual([answer.status, answer.body.includes('the certificate is revoked')], [401, true]);
    assert.equal(await isTaken(await certificateFor('intruder')), true);
    assert.equal((await call({ port: client.outboundPort, headers: { host: 'web:9080' } })).status, 200, 'others are not meant');
  });

  it('is revoked once, by its serial number as it is written anywhere, and only if it was issued here', async () => {
    const { revoked } = await revoke({ identity: 'spiffe://cluster.local/ns/default/sa/intruder' });
    const { serial } = revoked![0]!;
    assert.deepEqual((await revoke({ serial: serial.toUpperCase().replace(/..(?=.)/g, '$&:') })).revoked, []);
    const unknown = await revoke({ serial: '12' });
    assert.deepEqual([unknown.code, /no certificate with the serial number 12 has been issued here/.test(unknown.message!)], [409, true]);
    assert.equal((await revoke({})).code, 409);
  });

  it('is refused by callers, too, and by a server after another root', async () => {
    await revoke({ identity: 'spiffe://cluster.local/ns/default/sa/web' });
    const fresh = await mesh.proxy('fresh');
    await fresh.proxy.ready;
    const answer = await call({ port: fresh.outboundPort, headers: { host: 'web:9080' } });
    assert.deepEqual([answer.status, /revoked/.test(answer.body)], [503, true]);
    const before = await certificateFor('late');
    await takeStep(mesh.plane.authority, mesh.plane.pilot.proxies(), 'prepare', true);
    await takeStep(mesh.plane.authority, mesh.plane.pilot.proxies(), 'switch', true);
    await revoke({ identity: 'spiffe://cluster.local/ns/default/sa/late' });
    assert.equal(await isTaken(before), false, 'of the root before');
    assert.equal(await isTaken(await certificateFor('late')), true, 'of the one that signs now');
  });

  it('stays revoked over restarts, until it has ended', async () => {
    const { certificates } = homeFiles(mesh.home);
    const options = { path: join(certificates, 'revoked.json'), logPath: join(certificates, 'issued.log') };
    const known = new Revocations(options).list();
    assert.ok(known.length >= 3);
    const folder = mesh.home;
    writeFileSync(join(folder, 'crl.pem'), await mesh.plane.authority.revocationLists(known, 600));
    writeFileSync(join(folder, 'signer.pem'), readFileSync(join(certificates, 'ca-cert.pem')));
    const said = execFileSync('openssl', ['crl', '-in', 'crl.pem', '-CAfile', 'signer.pem', '-text', '-noout'], {
      cwd: folder,
      encoding: 'utf8',
      stdio: 'pipe',
    });
    assert.ok(known.filter(({ generation }) => generation === 'first').every(({ serial }) => said.toLowerCase().includes(serial)));
    assert.ok(known.every(({ serial }) => new Revocations(options).isRevoked(serial)));
    assert.deepEqual(new Revocations({ ...options, now: () => Date.now() + 91 * 86_400_000 }).list(), []);
    await until('all proxies agree', async () => mesh.plane.pilot.proxies().every(({ state }) => state === 'synced'), Boolean);
  });
});
