import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { Code, ConnectError } from '@connectrpc/connect';
import { workloadApi } from '../e2e/support/identities.ts';
import { service, TestMesh } from '../e2e/support/mesh.ts';
import { skipWithout } from '../e2e/support/requirements.ts';
import { takeStep } from '../packages/control/root-rotation.ts';

const python = join(import.meta.dirname, '../.tools/grpcio/bin/python3');
const clientId = 'spiffe://cluster.local/ns/default/sa/client';

describe('the SPIFFE Workload API', () => {
  let mesh: TestMesh;
  let socketPath: string;
  let serverPort: number;
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('web'));
    const server = await mesh.workload('web');
    serverPort = server.inboundPort;
    socketPath = join(mesh.home, 'spiffe', 'api.sock');
    await (await mesh.proxy('client', { workloadApiSocket: socketPath })).proxy.ready;
    await mesh.apply('apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: default }\nspec: { mtls: { mode: STRICT } }\n');
    await mesh.synced();
  });
  after(() => mesh.close());

  const client = () => workloadApi(socketPath);
  const headers = { 'workload.spiffe.io': 'true' };
  const refusal = async (what: Promise<unknown>) => {
    const error = await what.then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    assert.ok(error instanceof ConnectError, 'is refused');
    return [error.code, error.rawMessage] as const;
  };
  const first = async <T>(stream: AsyncIterable<T>) => {
    for await (const one of stream) return one;
    throw new Error('nothing came');
  };

  it('is for the user of the workload alone, and for those who mean it', async () => {
    assert.equal(statSync(socketPath).mode & 0o777, 0o600);
    assert.equal(statSync(join(socketPath, '..')).mode & 0o777, 0o700);
    const api = client();
    const noHeader = [Code.InvalidArgument, 'the metadata workload.spiffe.io: true is missing (SPIFFE Workload Endpoint, section 3.1)'];
    assert.deepEqual(await refusal(first(api.fetchX509SVID({}))), noHeader);
    assert.deepEqual(await refusal(first(api.fetchX509Bundles({}))), noHeader);
    assert.deepEqual(await refusal(first(api.fetchJWTBundles({}))), noHeader);
    assert.deepEqual(await refusal(api.fetchJWTSVID({ audience: ['shop'] })), noHeader);
    assert.deepEqual(await refusal(api.validateJWTSVID({ audience: 'shop', svid: 'x' })), noHeader);
  });

  it('says what is wrong with a request', async () => {
    const api = client();
    assert.deepEqual(await refusal(api.fetchJWTSVID({ audience: [] }, { headers })), [Code.InvalidArgument, 'for whom is the token? An audience is needed']);
    assert.deepEqual(await refusal(api.fetchJWTSVID({ audience: ['shop'], spiffeId: 'spiffe://cluster.local/ns/default/sa/admin' }, { headers })), [
      Code.PermissionDenied,
      `this workload is ${clientId}, not spiffe://cluster.local/ns/default/sa/admin`,
    ]);
    const [code, message] = await refusal(api.validateJWTSVID({ audience: 'shop', svid: 'x.y.z' }, { headers }));
    assert.equal(code, Code.InvalidArgument);
    assert.match(message, /^the token is not good: /);
  });

  it("gives SPIFFE's own library certificates, tokens and bundles, and new ones when the roots change", { skip: skipWithout('spiffe-python') }, async () => {
    const folder = join(mesh.home, 'workload');
    mkdirSync(folder);
    const child: ChildProcess = spawn(python, [join(import.meta.dirname, 'spiffe_client.py'), folder], {
      env: { ...process.env, SPIFFE_ENDPOINT_SOCKET: `unix://${socketPath}` },
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const ended = once(child, 'exit');
    const lines = createInterface(child.stdout!)[Symbol.asyncIterator]();
    const next = async () => {
      const { value, done } = await lines.next();
      if (done) throw new Error('the client ended early');
      return JSON.parse(value) as Record<string, unknown>;
    };
    assert.deepEqual(await next(), { id: clientId, roots: 1, own: 1 });

    // The workload, with nobody's help, at the door of a sidecar that takes mutual TLS only.
    const socket = tls.connect({
      host: '127.0.0.1',
      port: serverPort,
      ca: readFileSync(join(folder, 'bundle.pem')),
      cert: readFileSync(join(folder, 'svid.pem')),
      key: readFileSync(join(folder, 'key.pem')),
      ALPNProtocols: ['istio'],
      checkServerIdentity: (_host, { subjectaltname }) =>
        subjectaltname === 'URI:spiffe://cluster.local/ns/default/sa/web' ? undefined : new Error(subjectaltname),
    });
    await once(socket, 'secureConnect');
    socket.write('GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n');
    const [answer] = (await once(socket, 'data')) as [Buffer];
    assert.match(String(answer), /^HTTP\/1\.1 200 /);
    socket.destroy();

    const tokens = await next();
    assert.deepEqual([tokens['id'], tokens['validated']], [clientId, clientId]);
    assert.match(String(tokens['audience']), /audience/);
    assert.match(String(tokens['changed']), /the token is not good/);
    assert.match(String(tokens['other']), /this workload is spiffe:.*\/client, not spiffe:.*\/admin/);

    const begun = await next();
    assert.equal(BigInt(`0x${new X509Certificate(readFileSync(join(folder, 'svid.pem'))).serialNumber}`), BigInt(`0x${begun['serial']}`));
    await takeStep(mesh.plane.authority, mesh.plane.pilot.proxies(), 'prepare', true);
    const changed = await next();
    assert.equal(changed['roots'], 2);
    assert.notEqual(changed['serial'], begun['serial']);
    child.stdin!.end();
    assert.deepEqual(await ended, [0, null]);
  });
});
