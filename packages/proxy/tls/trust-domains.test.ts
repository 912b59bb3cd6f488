import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { packAny } from '@mizzen/envoy-api';
import { SPIFFECertValidatorConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config_pb.js';
import { constrainedRoots, readTrustDomains } from './trust-domains.ts';

describe('roots by trust domain', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-roots-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  const openssl = (...args: readonly string[]) => execFileSync('openssl', args, { cwd: folder, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  const root = (name: string, ...extensions: readonly string[]) => {
    const added = extensions.flatMap((extension) => ['-addext', extension]);
    openssl('req', '-x509', ...curve, '-days', '2', '-subj', `/CN=${name}`, ...added, '-keyout', `${name}.key`, '-out', `${name}.pem`);
    return readFileSync(join(folder, `${name}.pem`), 'utf8');
  };
  /** What OpenSSL says of a certificate for this identity by that root, with these roots trusted. */
  const verdict = (by: string, uri: string, trusted: string, more = '') => {
    writeFileSync(join(folder, 'leaf.ext'), `subjectAltName=URI:${uri}${more}\n`);
    openssl('req', '-new', ...curve, '-subj', '/CN=leaf', '-keyout', 'leaf.key', '-out', 'leaf.csr');
    const issuer = ['-CA', `${by}.pem`, '-CAkey', `${by}.key`, '-CAcreateserial'];
    openssl('x509', '-req', '-in', 'leaf.csr', ...issuer, '-days', '1', '-extfile', 'leaf.ext', '-out', 'leaf.pem');
    writeFileSync(join(folder, 'trusted.pem'), trusted);
    try {
      // With the root as it really is beside it, as a peer may send it.
      openssl('verify', '-CAfile', 'trusted.pem', '-untrusted', `${by}.pem`, 'leaf.pem');
      return 'good';
    } catch (error) {
      return /error \d+ at \d+ depth lookup: (.*)/.exec(String((error as { readonly stderr: string }).stderr))?.[1];
    }
  };
  const violation = 'permitted subtree violation';
  const a = root('a');
  const b = root('b');

  it('are good for identities of their own trust domain alone', () => {
    const trusted = constrainedRoots(
      new Map([
        ['a.example', a],
        ['b.example', b],
      ]),
      'here',
    );
    assert.equal(verdict('a', 'spiffe://a.example/ns/x/sa/y', trusted), 'good');
    assert.equal(verdict('b', 'spiffe://b.example/ns/x/sa/y', trusted), 'good');
    for (const uri of ['spiffe://b.example/ns/x/sa/y', 'spiffe://sub.a.example/ns/x/sa/y', 'spiffe://a.example.evil/ns/x/sa/y'])
      assert.equal(verdict('a', uri, trusted), violation, uri);
    assert.equal(
      verdict('a', 'spiffe://a.example/ns/x/sa/y', trusted, ',URI:spiffe://b.example/ns/x/sa/y'),
      violation,
      'one good name does not make the other good',
    );
  });

  it('stay what they are but for that: the name, the key, and its extensions', () => {
    const [before, after] = [new X509Certificate(a), new X509Certificate(constrainedRoots(new Map([['a.example', a]]), 'here'))];
    assert.deepEqual(
      [after.subject, after.serialNumber, after.ca, after.publicKey.export({ format: 'pem', type: 'spki' })],
      [before.subject, before.serialNumber, true, before.publicKey.export({ format: 'pem', type: 'spki' })],
    );
  });

  it('are good for all trust domains that share them', () => {
    const trusted = constrainedRoots(
      new Map([
        ['a.example', a],
        ['old.example', `${b}\n${a}`],
        ['b.example', b],
      ]),
      'here',
    );
    for (const domain of ['a.example', 'old.example']) assert.equal(verdict('a', `spiffe://${domain}/ns/x/sa/y`, trusted), 'good', domain);
    assert.equal(verdict('a', 'spiffe://b.example/ns/x/sa/y', trusted), violation);
  });

  it('stay constrained to what they were constrained to themselves', () => {
    const narrow = root('narrow', 'nameConstraints=critical,permitted;URI:.example,permitted;DNS:a.example,excluded;URI:bad.example');
    const trusted = constrainedRoots(new Map([['a.example', narrow]]), 'here');
    assert.equal(verdict('narrow', 'spiffe://a.example/ns/x/sa/y', trusted), 'good');
    assert.equal(verdict('narrow', 'spiffe://b.example/ns/x/sa/y', trusted), violation);
    assert.equal(verdict('narrow', 'spiffe://a.example/ns/x/sa/y', trusted, ',DNS:else.example'), violation);
    assert.equal(verdict('narrow', 'spiffe://bad.example/x', constrainedRoots(new Map([['bad.example', narrow]]), 'here')), 'excluded subtree violation');
    assert.throws(
      () => constrainedRoots(new Map([['a.test', narrow]]), 'secret ROOTCA'),
      /secret ROOTCA: the root CN=narrow cannot be used: its own name constraints rule out a\.test/,
    );
  });

  it('are refused where they cannot be used, with the place', () => {
    const read = (trustDomains: readonly { name: string; pem: string }[]) =>
      readTrustDomains(
        {
          name: 'envoy.tls.cert_validator.spiffe',
          typedConfig: packAny(SPIFFECertValidatorConfigSchema, {
            trustDomains: trustDomains.map(({ name, pem }) => ({ name, trustBundle: { specifier: { case: 'inlineString' as const, value: pem } } })),
          }),
        } as never,
        'secret ROOTCA',
      );
    assert.deepEqual([...read([{ name: 'a.example', pem: a }]).keys()], ['a.example']);
    assert.throws(() => read([]), /secret ROOTCA: it names no trust domains/);
    assert.throws(() => read([{ name: 'a.example', pem: 'nothing' }]), /trust domain "a.example"/);
    assert.throws(
      () =>
        read([
          { name: 'a.example', pem: a },
          { name: 'a.example', pem: b },
        ]),
      /each is named once/,
    );
    const leaf = root('leaf-root', 'basicConstraints=critical,CA:FALSE');
    assert.throws(() => constrainedRoots(new Map([['a.example', leaf]]), 'here'), /not the certificate of an authority/);
  });
});
