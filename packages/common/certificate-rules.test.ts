import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import tls from 'node:tls';
import { authorityProblem, peerProblem, usableRoots, verifyServerCertificate, vetServer } from './certificate-rules.ts';

describe('the rules for certificates', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-rules-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  const openssl = (...args: readonly string[]) => execFileSync('openssl', args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
  const text = (name: string) => readFileSync(join(folder, name), 'utf8');
  const p256 = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256'];
  const root = (name: string, options: readonly string[] = p256) => {
    openssl('req', '-x509', '-nodes', '-days', '2', '-subj', `/CN=${name}`, ...options, '-keyout', `${name}.key`, '-out', `${name}.pem`);
    return new X509Certificate(text(`${name}.pem`));
  };
  const constrained = (constraint: string) => root('constrained', [...p256, '-addext', `nameConstraints=critical,${constraint}`]);
  const issue = (name: string, by: string, extensions: string, key: readonly string[] = p256, options: readonly string[] = []) => {
    writeFileSync(join(folder, 'ext'), `${extensions}\n`);
    openssl('req', '-new', '-nodes', '-subj', `/CN=${name}`, ...key, '-keyout', `${name}.key`, '-out', 'csr');
    const issuer = ['-CA', `${by}.pem`, '-CAkey', `${by}.key`, '-CAcreateserial'];
    openssl('x509', '-req', '-in', 'csr', ...issuer, '-days', '1', '-extfile', 'ext', ...options, '-out', `${name}.pem`);
    return new X509Certificate(text(`${name}.pem`));
  };
  const good = root('good');

  it('accept keys of RSA with 2,048 bits, P-256, P-384, P-521 and Ed25519', () => {
    assert.equal(authorityProblem(good), undefined);
    for (const key of [
      ['-newkey', 'rsa:2048'],
      ['-newkey', 'ed25519'],
      ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-384'],
      ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-521'],
    ]) {
      assert.equal(authorityProblem(root('other', key)), undefined, key.join(' '));
      assert.equal(peerProblem(issue('leaf', 'other', 'subjectAltName=DNS:a', key)), undefined, key.join(' '));
    }
  });

  it('refuse a server whose certificate cannot be read, without an exception in the callback of the runtime', () => {
    const unreadable = () => {
      throw new Error('bad encoding');
    };
    const socket = vetServer({ getPeerX509Certificate: unreadable, prependOnceListener() {} } as unknown as tls.TLSSocket);
    assert.match(String(verifyServerCertificate('a', socket.getPeerCertificate())), /cannot be verified: bad encoding/);
  });

  it('refuse short RSA keys, DSA, other curves and Ed448, of roots and of peers', () => {
    openssl('dsaparam', '-out', 'dsa.params', '2048');
    for (const [key, problem] of [
      [['-newkey', 'rsa:1024'], /RSA key of 1024 bits: use 2048/],
      [['-newkey', 'dsa:dsa.params'], /key of type dsa/],
      [['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:secp256k1'], /curve secp256k1/],
      [['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-224'], /curve secp224r1/],
      [['-newkey', 'ed448'], /key of type ed448/],
    ] as const) {
      assert.match(String(authorityProblem(root('weak', key))), problem);
      assert.match(String(peerProblem(issue('leaf', 'good', 'subjectAltName=DNS:a', key))), problem);
    }
    root('dsa', ['-newkey', 'dsa:dsa.params']);
    assert.match(String(peerProblem(issue('leaf', 'dsa', 'subjectAltName=DNS:a'))), /weak or unknown algorithm/);
  });

  it('refuse signatures with SHA-1 or MD5 of peers, also in RSASSA-PSS, and do not look at those of roots', () => {
    root('rsa', ['-newkey', 'rsa:2048', '-sha1']);
    assert.equal(authorityProblem(new X509Certificate(text('rsa.pem'))), undefined);
    const pss = (digest: string) => [`-${digest}`, '-sigopt', 'rsa_padding_mode:pss', '-sigopt', 'rsa_pss_saltlen:digest'];
    for (const options of [['-sha1'], ['-md5'], pss('sha1')])
      assert.match(String(peerProblem(issue('leaf', 'rsa', 'subjectAltName=DNS:a', p256, options))), /weak or unknown algorithm/, options.join(' '));
    for (const options of [['-sha256'], ['-sha512'], pss('sha256'), pss('sha512')])
      assert.equal(peerProblem(issue('leaf', 'rsa', 'subjectAltName=DNS:a', p256, options)), undefined, options.join(' '));
  });

  it('refuse authorities with name constraints that OpenSSL would compare as other than they are meant', () => {
    for (const constraint of [
      ...[
        'permitted;DNS:*.example.com',
        'excluded;DNS:*.example.com',
        'excluded;DNS:a b',
        'excluded;DNS:example..com',
        'permitted;DNS:example.com.',
        'excluded;DNS:-a.com',
      ],
      ...[
        'permitted;email:*@example.com',
        'permitted;email:**@example.com',
        'permitted;email:user*@example.com',
        'permitted;email:a@b@example.com',
        'excluded;email:*.example.com',
      ],
      ...[
        'permitted;email:@example.com',
        'permitted;email:a@.example.com',
        'excluded;URI:*.example.com',
        'excluded;URI:https://example.com',
        'excluded;URI:example.com:443',
      ],
      ...['permitted;IP:10.0.0.0/255.0.255.0', 'excluded;RID:1.2.3.4', 'excluded;otherName:1.2.3.4;UTF8:x'],
    ])
      assert.match(String(authorityProblem(constrained(constraint))), /name constraint/, constraint);
  });

  it('accept name constraints of hosts, domains, addresses, mailboxes and directory names', () => {
    for (const constraint of [
      ...[
        'permitted;DNS:example.com',
        'permitted;DNS:.example.com',
        'excluded;DNS:a_b.example.com',
        'permitted;URI:cluster.local',
        'permitted;URI:.cluster.local',
      ],
      ...[
        'permitted;email:example.com',
        'permitted;email:.example.com',
        'permitted;email:a.b@example.com',
        'permitted;IP:10.0.0.0/255.0.0.0',
        'excluded;IP:fd00::/ff00::',
      ],
    ])
      assert.equal(authorityProblem(constrained(constraint)), undefined, constraint);
  });

  it('leave bad roots out of a text, and the others in', () => {
    constrained('permitted;DNS:*.example.com');
    const { roots, leftOut } = usableRoots(`# both\n${text('constrained.pem')}${text('good.pem')}`);
    assert.deepEqual(roots, [text('good.pem').trim()]);
    assert.match(leftOut.join(), /^CN=constrained has the DNS name constraint "\*\.example\.com"/);
  });

  it('hold for the whole chain of a server, also where OpenSSL accepts it and Node.js would crash', async () => {
    const authority = 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash';
    issue('between', 'good', authority);
    issue('wild', 'good', `${authority}\nnameConstraints=excluded;DNS:*.example.com`);
    issue('k1', 'good', authority, ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:secp256k1']);
    for (const [by, expected] of [
      ['between', undefined],
      ['wild', /the certificate of its authority has the DNS name constraint/],
      ['k1', /the certificate of its authority has a key on the curve secp256k1/],
    ] as const) {
      issue('server', by, 'subjectAltName=DNS:a.example.com');
      const server = tls.createServer({ cert: text('server.pem') + text(`${by}.pem`), key: text('server.key') }, (socket) =>
        socket.on('error', () => {}).end(),
      );
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      const connect = (checkServerIdentity: NonNullable<tls.ConnectionOptions['checkServerIdentity']>) =>
        new Promise<Error | undefined>((resolve) => {
          const { port } = server.address() as AddressInfo;
          const socket = vetServer(
            tls.connect({ host: '127.0.0.1', port, servername: 'a.example.com', ca: usableRoots(text('good.pem')).roots, checkServerIdentity }),
          );
          let failure: Error | undefined;
          socket.on('error', (error) => (failure ??= error));
          socket.once('secureConnect', () => socket.end());
          socket.once('close', () => resolve(failure));
          socket.resume();
        });
      assert.equal(await connect(() => undefined), undefined, 'OpenSSL accepts it');
      const error = await connect(verifyServerCertificate);
      if (expected === undefined) assert.equal(error, undefined, by);
      else assert.match(String(error), expected, by);
      server.close();
    }
  });
});
