import 'reflect-metadata';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { create } from '@bufbuild/protobuf';
import { createClient } from '@connectrpc/connect';
import { clearFaults, injectFault, internalErrors, PushQueue } from '@mizzen/common';
import { homeFiles } from '@mizzen/control';
import { typeUrls } from '@mizzen/envoy-api';
import { AggregatedDiscoveryService } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/ads_pb.js';
import { type DiscoveryRequest, DiscoveryRequestSchema } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
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

  it('ends what it has opened: connections to workloads, and its stream of configuration', async () => {
    const [thief, honest] = [await certificateFor('thief'), await certificateFor('honest')];
    const open = (pair: Pair) => tls.connect({ host: '127.0.0.1', port: web.inboundPort, rejectUnauthorized: false, ALPNProtocols: ['istio'], ...pair });
    const [stolen, others] = [open(thief), open(honest)];
    await Promise.all([once(stolen, 'secureConnect'), once(others, 'secureConnect')]);
    const closed = new Promise<void>((resolve) => {
      stolen.once('error', () => {});
      stolen.once('close', () => resolve());
    });
    const requests = new PushQueue<DiscoveryRequest>();
    requests.push(
      create(DiscoveryRequestSchema, {
        node: { id: 'sidecar~127.0.0.1~thief.default~default.svc.cluster.local', metadata: { SERVICE_ACCOUNT: 'thief' } },
        typeUrl: typeUrls.cluster,
      }),
    );
    const stream = createClient(AggregatedDiscoveryService, citadelTransport(mesh, thief)).streamAggregatedResources(requests)[Symbol.asyncIterator]();
    assert.equal((await stream.next()).value?.typeUrl, typeUrls.cluster);
    await revoke({ identity: 'spiffe://cluster.local/ns/default/sa/thief' });
    await closed;
    await assert.rejects(async () => {
      while (!(await stream.next()).done);
    }, /unauthenticated.* the certificate is revoked/);
    others.write('GET / HTTP/1.1\r\nhost: web\r\n\r\n');
    assert.match(String((await once(others, 'data'))[0]), /^HTTP\/1.1 200/);
    others.destroy();
    requests.close();
  });

  it('ends what it has opened also when the turn that does so throws, in any proxy', async () => {
    for (const at of [1, 2]) {
      const name = `thief-${at}`;
      const socket = tls.connect({
        host: '127.0.0.1',
        port: web.inboundPort,
        rejectUnauthorized: false,
        ALPNProtocols: ['istio'],
        ...(await certificateFor(name)),
      });
      await once(socket, 'secureConnect');
      const closed = new Promise<void>((resolve) => {
        socket.once('error', () => {});
        socket.once('close', () => resolve());
      });
      const expected = (internalErrors().get('tls.revocation') ?? 0) + 1;
      injectFault('tls.revocation', at);
      await revoke({ identity: `spiffe://cluster.local/ns/default/sa/${name}` });
      await closed;
      assert.equal(internalErrors().get('tls.revocation'), expected);
    }
    clearFaults();
  });

  it('loses every connection to the servers of the control plane, and keeps those of others', async () => {
    const [lost, kept] = [await certificateFor('lost'), await certificateFor('kept')];
    const connect = async (port: number, pair: Pair, protocol: string) => {
      const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false, ALPNProtocols: [protocol], ...pair });
      await once(socket, 'secureConnect');
      socket.on('error', () => {});
      socket.resume();
      return socket;
    };
    const servers = [
      [mesh.plane.xdsPort, 'h2'],
      [mesh.plane.apiPort, 'http/1.1'],
    ] as const;
    const theirs = await Promise.all(servers.map(([port, protocol]) => connect(port, lost, protocol)));
    const others = await Promise.all(servers.map(([port, protocol]) => connect(port, kept, protocol)));
    const closed = Promise.all(theirs.map((socket) => new Promise<void>((resolve) => socket.once('close', () => resolve()))));
    await revoke({ identity: 'spiffe://cluster.local/ns/default/sa/lost' });
    await closed;
    assert.deepEqual(
      others.map((socket) => socket.destroyed),
      [false, false],
    );
    for (const socket of others) socket.destroy();
  });

  it('is refused by callers, too, who let go of its connections, until the workload has proved by its token who it is', async () => {
    const { tokenFile } = web.config;
    assert.equal((await call({ port: client.outboundPort, headers: { host: 'web:9080' } })).status, 200);
    renameSync(tokenFile, `${tokenFile}.away`);
    await revoke({ identity: 'spiffe://cluster.local/ns/default/sa/web' });
    const fresh = await mesh.proxy('fresh');
    await fresh.proxy.ready;
    for (const caller of [fresh, client]) {
      const answer = await call({ port: caller.outboundPort, headers: { host: 'web:9080' } });
      assert.deepEqual([answer.status, /revoked/.test(answer.body)], [503, true], answer.body);
    }
    renameSync(`${tokenFile}.away`, tokenFile);
    await until(
      'another certificate',
      async () => (await call({ port: fresh.outboundPort, headers: { host: 'web:9080' } })).status,
      (status) => status === 200,
    );
    const issued = readFileSync(join(homeFiles(mesh.home).certificates, 'issued.log'), 'utf8')
      .trim()
      .split('\n');
    const last = issued.map((line) => JSON.parse(line) as { identity: string; by: string }).findLast(({ identity }) => identity.endsWith('/sa/web'));
    assert.equal(last?.by, 'token');
    await mesh.synced();
  });

  it('is refused by a server after another root', async () => {
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
