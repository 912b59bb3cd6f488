import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { decodeYaml, findKind, groupOf } from '@mizzen/api';
import { AcmeServer } from './support/acme-server.ts';
import { call, until } from './support/http.ts';
import { service, TestMesh } from './support/mesh.ts';
import { skipWithout } from './support/requirements.ts';

/** Certificates for gateways from a real ACME server, which asks the gateway itself whether the names are its own. */
describe('certificates by ACME', { skip: skipWithout('pebble') }, () => {
  let mesh: TestMesh;
  let acme: AcmeServer;
  let httpPort: number;
  let httpsPort: number;
  before(async () => {
    mesh = await TestMesh.start({ certificateRetryMs: 200 });
    httpPort = await mesh.ports.next();
    httpsPort = await mesh.ports.next();
    acme = await AcmeServer.start({ httpPort, validitySeconds: 30, blocked: 'blocked.example' });
    await mesh.apply(service('web'));
    await mesh.workload('web');
    await mesh.proxy('gw', { type: 'gateway', labels: { app: 'gateway' } });
    await mesh.apply(`apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: shop }
spec:
  selector: { app: gateway }
  servers:
  - { hosts: ["*"], port: { number: ${httpPort}, name: http, protocol: HTTP }, tls: { httpsRedirect: true } }
  - { hosts: [shop.example, www.shop.example], port: { number: ${httpsPort}, name: https, protocol: HTTPS }, tls: { mode: SIMPLE, credentialName: shop-tls } }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: shop }
spec:
  hosts: [shop.example, www.shop.example]
  gateways: [shop]
  http: [{ route: [{ destination: { host: web, port: { number: 9080 } } }] }]
`);
  });
  after(async () => {
    acme?.close();
    await mesh.close();
  });

  const issuer = (name: string, { kind = 'Issuer', server = acme.directory, more = '' } = {}) => `apiVersion: cert-manager.io/v1
kind: ${kind}
metadata: { name: ${name} }
spec:
  acme:
    server: ${server}
    email: ops@shop.example
    caBundle: ${Buffer.from(acme.roots).toString('base64')}
    privateKeySecretRef: { name: ${name}-account }
    solvers: [{ http01: { ingress: {} } }]
${more}---
`;
  const certificate = (name: string, fields: object) =>
    `apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: { name: ${name} }\nspec: ${JSON.stringify({ secretName: `${name}-tls`, issuerRef: { name: 'pebble' }, ...fields })}\n---\n`;
  const find = async (kindName: string, name: string, namespace = 'default') => {
    const kind = kindName === 'Secret' ? findKind('', 'Secret')! : findKind('cert-manager.io', kindName)!;
    return (await mesh.plane.registry.get(kind, namespace, name)).resource as never as {
      data: Record<string, string>;
      metadata: { annotations?: Record<string, string> };
      status?: {
        notAfter?: string;
        renewalTime?: string;
        conditions: { type: string; status: string; reason: string; message: string }[];
        acme?: { uri: string };
      };
    };
  };
  const conditionOf = async (kind: string, name: string, namespace?: string) => (await find(kind, name, namespace)).status?.conditions[0];
  const failure = (name: string) =>
    until(
      `${name} fails`,
      () => conditionOf('Certificate', name),
      (condition) => condition?.reason === 'Failed',
      60_000,
    );
  const shown = (servername: string) =>
    new Promise<X509Certificate | undefined>((resolve) => {
      const socket = tls.connect({ host: '127.0.0.1', port: httpsPort, servername, rejectUnauthorized: false });
      socket.once('secureConnect', () => {
        resolve(socket.getPeerX509Certificate());
        socket.destroy();
      });
      socket.once('error', () => resolve(undefined));
    });

  it('are had for a gateway that redirects everything to TLS, and renewed before they end', async () => {
    await mesh.apply(
      issuer('pebble') +
        certificate('shop', { dnsNames: ['shop.example', 'www.shop.example'], renewBefore: '26s', privateKey: { algorithm: 'ECDSA', size: 256 } }),
    );
    const first = (await until(
      'a certificate is shown',
      () => shown('shop.example'),
      (found) => found !== undefined,
      60_000,
    ))!;
    assert.equal(first.subjectAltName, 'DNS:shop.example, DNS:www.shop.example');
    assert.match(first.issuer, /Pebble/);
    const answer = await call({ port: httpsPort, headers: { host: 'shop.example' }, tls: { servername: 'shop.example', rejectUnauthorized: false } });
    assert.equal(answer.status, 200);
    const condition = (await until(
      'it is ready',
      () => conditionOf('Certificate', 'shop'),
      (one) => one?.status === 'True',
    ))!;
    assert.deepEqual([condition.type, condition.reason], ['Ready', 'Ready']);
    const { status } = await find('Certificate', 'shop');
    assert.ok(Date.parse(status!.renewalTime!) < Date.parse(status!.notAfter!));
    assert.equal((await find('Secret', 'shop-tls')).metadata.annotations!['cert-manager.io/certificate-name'], 'shop');
    assert.equal((await conditionOf('Issuer', 'pebble'))!.reason, 'ACMEAccountRegistered');
    assert.match((await find('Issuer', 'pebble')).status!.acme!.uri, /^https:\/\/localhost:\d+\/my-account\//);
    const redirected = await call({ port: httpPort, path: '/.well-known/acme-challenge/none', headers: { host: 'shop.example' } });
    assert.deepEqual([redirected.status, redirected.headers['location']], [301, 'https://shop.example/.well-known/acme-challenge/none']);
    const newer = await until(
      'another is shown',
      () => shown('www.shop.example'),
      (found) => found !== undefined && found.serialNumber !== first.serialNumber,
      60_000,
    );
    assert.notDeepEqual(newer!.publicKey.export({ format: 'jwk' }), first.publicKey.export({ format: 'jwk' }), 'with a key of its own');
  });

  it('come from a ClusterIssuer, too, with RSA keys, and under several names', async () => {
    await mesh.apply(
      issuer('all', { kind: 'ClusterIssuer' }) +
        certificate('rsa', { dnsNames: ['rsa.example'], commonName: 'rsa.example', issuerRef: { name: 'all', kind: 'ClusterIssuer' } }),
    );
    await until(
      'it is ready',
      () => conditionOf('Certificate', 'rsa'),
      (one) => one?.status === 'True',
      60_000,
    );
    const { data } = await find('Secret', 'rsa-tls');
    const leaf = new X509Certificate(Buffer.from(data['tls.crt']!, 'base64'));
    assert.deepEqual([leaf.publicKey.asymmetricKeyType, leaf.publicKey.asymmetricKeyDetails!.modulusLength], ['rsa', 2048]);
    assert.ok((await find('Secret', 'all-account', 'mizzen-system')).data['tls.key']);
  });

  it('say why there is none: a name that is refused, one that is not ours, an issuer that is not there, a server that is not there', async () => {
    await mesh.apply(certificate('blocked', { dnsNames: ['blocked.example'] }));
    assert.match((await failure('blocked'))!.message, /rejectedIdentifier/);
    const elsewhere = issuer('elsewhere', { server: 'https://localhost:1/dir' });
    await mesh.apply(
      elsewhere +
        certificate('lost', { dnsNames: ['a.example'], issuerRef: { name: 'elsewhere' } }) +
        certificate('orphan', { dnsNames: ['a.example'], issuerRef: { name: 'none' } }),
    );
    assert.match((await failure('lost'))!.message, /localhost:1: .*ECONNREFUSED/);
    assert.match((await conditionOf('Issuer', 'elsewhere'))!.message, /ECONNREFUSED/);
    assert.match((await failure('orphan'))!.message, /there is no Issuer none in namespace default/);
    const nowhere = await AcmeServer.start({ httpPort: await mesh.ports.next() });
    try {
      await mesh.apply(
        issuer('nowhere', { server: nowhere.directory }).replace(/caBundle: .*/, `caBundle: ${Buffer.from(nowhere.roots).toString('base64')}`) +
          certificate('unproved', { dnsNames: ['u.example'], issuerRef: { name: 'nowhere' } }),
      );
      assert.match((await failure('unproved'))!.message, /u\.example was not proved: .*connection/);
    } finally {
      nowhere.close();
    }
  });

  it('take an account that belongs to another one, where the server wants that', async () => {
    const key = Buffer.from('a key of at least thirty-two bytes!!').toString('base64url');
    const bound = await AcmeServer.start({ httpPort, bindings: { 'kid-1': key } });
    const secret = (value: string) => `apiVersion: v1\nkind: Secret\nmetadata: { name: binding }\nstringData: { secret: ${value} }\n---\n`;
    const more = '    externalAccountBinding: { keyID: kid-1, keySecretRef: { name: binding, key: secret } }\n';
    try {
      const given = issuer('bound', { server: bound.directory, more }).replace(/caBundle: .*/, `caBundle: ${Buffer.from(bound.roots).toString('base64')}`);
      await mesh.apply(secret(key) + given + certificate('member', { dnsNames: ['m.example'], issuerRef: { name: 'bound' } }));
      await until(
        'it is ready',
        () => conditionOf('Certificate', 'member'),
        (one) => one?.status === 'True',
        60_000,
      );
    } finally {
      bound.close();
    }
  });

  it('touch no Secret of somebody else', async () => {
    await mesh.apply(
      'apiVersion: v1\nkind: Secret\nmetadata: { name: theirs-tls }\nstringData: { tls.crt: theirs }\n---\n' +
        certificate('theirs', { dnsNames: ['t.example'] }),
    );
    assert.match((await failure('theirs'))!.message, /the Secret theirs-tls is there already and was not made for this Certificate/);
    assert.equal(Buffer.from((await find('Secret', 'theirs-tls')).data['tls.crt']!, 'base64').toString(), 'theirs');
  });

  it('are refused at once where they ask for what ACME over HTTP cannot give', () => {
    const problems = (yaml: string) => {
      const { problems: found, resources } = decodeYaml(yaml, 'x.yaml');
      assert.ok(resources.every(({ resource }) => groupOf(resource.apiVersion) === 'cert-manager.io'));
      return found.map(({ path, message }) => `${path}: ${message}`).join('\n');
    };
    assert.match(problems(certificate('a', { dnsNames: ['*.shop.example'] })), /spec\.dnsNames\[0\]: wildcards need the challenge dns01/);
    assert.match(problems(certificate('a', { dnsNames: [] })), /spec\.dnsNames: at least one name/);
    assert.match(problems(certificate('a', { dnsNames: ['a.example'], isCA: true })), /spec\.isCA/);
    assert.match(
      problems(certificate('a', { dnsNames: ['a.example'], privateKey: { algorithm: 'RSA', size: 1024 } })),
      /spec\.privateKey\.size: must be one of 2048/,
    );
    assert.match(problems(issuer('a').replace('http01: { ingress: {} }', 'dns01: {}')), /solvers\[0\]: only http01 is served/);
    assert.match(problems(issuer('a', { server: 'http://acme.example' })), /must be the https URL/);
    assert.match(
      problems('apiVersion: cert-manager.io/v1\nkind: Issuer\nmetadata: { name: a }\nspec: { selfSigned: {} }\n'),
      /spec\.selfSigned: issuers of this type are not served/,
    );
  });
});
