import 'reflect-metadata';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createPrivateKey, webcrypto } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { homeFiles } from '@mizzen/control';
import * as x509 from '@peculiar/x509';
import { exportKey, serialNumber } from '../packages/control/citadel/ca-generation.ts';
import { type Pair, statusFor } from './support/identities.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const hour = 3_600_000;

interface Leaf {
  readonly names?: readonly { readonly type: 'url' | 'dns'; readonly value: string }[];
  readonly from?: number;
  readonly until?: number;
  readonly usages?: readonly string[];
  /** Signed by an intermediate below the mesh's, with these extensions. */
  readonly below?: readonly x509.Extension[];
  readonly isCa?: boolean;
}

/** Certificates that the mesh's own authority would not make, signed by it all the same: what a peer must not be taken in by. */
describe('certificates that are not as they should be', () => {
  let mesh: TestMesh;
  let server: RunningProxy;
  let issuer: x509.X509Certificate;
  let issuerKey: webcrypto.CryptoKey;
  let issuerPem: string;
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('web'));
    server = await mesh.workload('web');
    await mesh.apply('apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: default }\nspec: { mtls: { mode: STRICT } }\n');
    const { certificates } = homeFiles(mesh.home);
    issuerPem = readFileSync(join(certificates, 'ca-cert.pem'), 'utf8');
    issuer = new x509.X509Certificate(issuerPem);
    const der = createPrivateKey(readFileSync(join(certificates, 'ca-key.pem'))).export({ format: 'der', type: 'pkcs8' });
    issuerKey = await webcrypto.subtle.importKey('pkcs8', der, algorithm, true, ['sign']);
  });
  after(() => mesh.close());

  const makeKeys = () => webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const make = async ({ names = [good], from = -hour, until = hour, usages, below, isCa = false }: Leaf): Promise<{ cert: string; key: string }> => {
    const keys = await makeKeys();
    let [signer, signingKey, chain] = [issuer, issuerKey, issuerPem];
    if (below !== undefined) {
      const between = await makeKeys();
      signer = await x509.X509CertificateGenerator.create({
        ...{
          serialNumber: serialNumber(),
          subject: 'CN=below',
          issuer: issuer.subjectName.toJSON(),
          publicKey: between.publicKey,
          signingKey: issuerKey,
          signingAlgorithm: algorithm,
        },
        ...{ notBefore: new Date(Date.now() - hour), notAfter: new Date(Date.now() + hour), extensions: [...below] },
      });
      signingKey = between.privateKey;
      chain = `${signer.toString('pem')}\n${issuerPem}`;
    }
    const leaf = await x509.X509CertificateGenerator.create({
      ...{
        serialNumber: serialNumber(),
        subject: 'O=test',
        issuer: signer.subjectName.toJSON(),
        publicKey: keys.publicKey,
        signingKey,
        signingAlgorithm: algorithm,
      },
      ...{ notBefore: new Date(Date.now() + from), notAfter: new Date(Date.now() + until) },
      extensions: [
        new x509.BasicConstraintsExtension(isCa, undefined, true),
        ...(usages ? [new x509.ExtendedKeyUsageExtension([...usages])] : []),
        new x509.SubjectAlternativeNameExtension([...names]),
      ],
    });
    return { cert: `${leaf.toString('pem')}\n${chain}`, key: await exportKey(keys.privateKey) };
  };
  const isTaken = async (pair: Pair) => (await statusFor(server.inboundPort, pair)) === 200;
  const uri = (value: string) => ({ type: 'url' as const, value });
  const good = uri('spiffe://cluster.local/ns/default/sa/client');
  const { clientAuth, serverAuth } = x509.ExtendedKeyUsage;
  const mayIssue = (length?: number) => new x509.BasicConstraintsExtension(true, length, true);

  it('are taken as long as they are right', async () => {
    assert.equal(await isTaken(await make({})), true);
    assert.equal(await isTaken(await make({ usages: [clientAuth, serverAuth] })), true);
    assert.equal(await isTaken(await make({ from: 30_000 })), false, 'OpenSSL lets no clock be behind');
  });

  for (const [what, leaf] of Object.entries({
    'expired an hour ago': { from: -3 * hour, until: -hour },
    'not valid before an hour from now': { from: hour, until: 2 * hour },
    'for servers only': { usages: [serverAuth] },
    'for signing code': { usages: [x509.ExtendedKeyUsage.codeSigning] },
    'of two identities': { names: [good, uri('spiffe://cluster.local/ns/default/sa/admin')] },
    'of another trust domain': { names: [uri('spiffe://elsewhere.example/ns/default/sa/client')] },
    'of a trust domain that begins like ours': { names: [uri('spiffe://cluster.local.evil/ns/default/sa/client')] },
    'of ours in another case': { names: [uri('spiffe://CLUSTER.LOCAL/ns/default/sa/client')] },
    'of a DNS name': { names: [{ type: 'dns' as const, value: 'client.default.svc.cluster.local' }] },
    'of a DNS name that looks like an identity': { names: [{ type: 'dns' as const, value: 'spiffe://cluster.local/ns/default/sa/client' }] },
    'of an identity with a NUL in it': { names: [uri('spiffe://cluster.local/ns/default/sa/client\0.evil')] },
    'of an identity with a comma in it': { names: [uri('spiffe://cluster.local/ns/default/sa/a, URI:spiffe://cluster.local/ns/default/sa/client')] },
    'from an intermediate below one that may have none': { below: [mayIssue()] },
    'from somebody who may not issue': { below: [new x509.BasicConstraintsExtension(false, undefined, true)] },
  } satisfies Record<string, Leaf>))
    it(`are refused: ${what}`, async () => {
      assert.equal(await isTaken(await make(leaf)), false);
    });

  it('of another trust domain are taken where the mesh is known by it', async () => {
    await mesh.apply(
      'apiVersion: v1\nkind: ConfigMap\nmetadata: { name: istio, namespace: istio-system }\ndata: { mesh: "trustDomainAliases: [elsewhere.example]" }\n',
    );
    assert.equal(await isTaken(await make({ names: [uri('spiffe://elsewhere.example/ns/default/sa/client')] })), true);
    assert.equal(await isTaken(await make({ names: [uri('spiffe://another.example/ns/default/sa/client')] })), false);
    await mesh.apply(
      'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: web }\nspec: { rules: [{ from: [{ source: { principals: [cluster.local/ns/default/sa/client] } }] }] }\n',
    );
    assert.equal(await isTaken(await make({ names: [uri('spiffe://elsewhere.example/ns/default/sa/client')] })), true, 'policies mean both');
    assert.equal(await isTaken(await make({ names: [uri('spiffe://elsewhere.example/ns/default/sa/other')] })), false);
  });

  it('are held to the name constraints of every authority on the way', async () => {
    const openssl = (...args: readonly string[]) => execFileSync('openssl', args, { cwd: mesh.home, stdio: ['ignore', 'pipe', 'pipe'] });
    const file = (name: string) => readFileSync(join(mesh.home, name), 'utf8');
    const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
    const issue = (name: string, by: string, ...extensions: readonly string[]) => {
      writeFileSync(join(mesh.home, `${name}.ext`), `${extensions.join('\n')}\n`);
      openssl('req', '-new', ...curve, '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', `${name}.csr`);
      openssl(
        'x509',
        '-req',
        '-in',
        `${name}.csr`,
        '-CA',
        `${by}.pem`,
        '-CAkey',
        `${by}.key`,
        '-CAcreateserial',
        '-days',
        '1',
        '-extfile',
        `${name}.ext`,
        '-out',
        `${name}.pem`,
      );
    };
    openssl('req', '-x509', ...curve, '-days', '2', '-subj', '/CN=their root', '-keyout', 'theirs.key', '-out', 'theirs.pem');
    const config = JSON.stringify({ caCertificates: [{ pem: file('theirs.pem') }] });
    await mesh.apply(`apiVersion: v1\nkind: ConfigMap\nmetadata: { name: istio, namespace: istio-system }\ndata:\n  mesh: '${config}'\n`);
    const isTakenUnder = (constraints: string) => {
      issue(
        'between',
        'theirs',
        'basicConstraints=critical,CA:TRUE',
        'keyUsage=keyCertSign',
        ...(constraints === '' ? [] : [`nameConstraints=critical,${constraints}`]),
      );
      issue('leaf', 'between', 'subjectAltName=URI:spiffe://cluster.local/ns/default/sa/client');
      return isTaken({ cert: file('leaf.pem') + file('between.pem'), key: file('leaf.key') });
    };
    assert.equal(await isTakenUnder(''), true);
    assert.equal(await isTakenUnder('permitted;URI:cluster.local'), true);
    assert.equal(await isTakenUnder('permitted;URI:elsewhere.example'), false);
    assert.equal(await isTakenUnder('excluded;URI:cluster.local'), false);
  });
});
