import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { isRevoked, readLeafCrls } from './leaf-crl.ts';

describe('lists of revoked certificates', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-crl-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  const openssl = (...args: readonly string[]) => execFileSync('openssl', args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
  const file = (name: string) => readFileSync(join(folder, name), 'utf8');
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  const authority = (name: string) => {
    openssl('req', '-x509', ...curve, '-days', '2', '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', `${name}.pem`);
    writeFileSync(join(folder, `${name}.txt`), '');
    writeFileSync(join(folder, `${name}.number`), '01\n');
    writeFileSync(
      join(folder, `${name}.cnf`),
      `[ca]\ndefault_ca=d\n[d]\ndatabase=${name}.txt\ncrlnumber=${name}.number\ndefault_md=sha256\ncertificate=${name}.pem\nprivate_key=${name}.key\n`,
    );
  };
  const leaf = (name: string, by: string, serial: string) => {
    openssl('req', '-new', ...curve, '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', `${name}.csr`);
    openssl('x509', '-req', '-in', `${name}.csr`, '-CA', `${by}.pem`, '-CAkey', `${by}.key`, '-set_serial', serial, '-days', '1', '-out', `${name}.pem`);
    return new X509Certificate(file(`${name}.pem`)).raw;
  };
  const crl = (by: string, ...revoked: readonly string[]) => {
    for (const name of revoked) openssl('ca', '-config', `${by}.cnf`, '-revoke', `${name}.pem`);
    openssl('ca', '-config', `${by}.cnf`, '-gencrl', '-crldays', '1', '-out', `${by}.crl`);
    return file(`${by}.crl`);
  };

  it('name certificates by their serial numbers and who has issued them', () => {
    for (const name of ['one', 'two']) authority(name);
    const [good, bad, high, other] = [leaf('good', 'one', '0x7f'), leaf('bad', 'one', '0x1234'), leaf('high', 'one', '0xff00'), leaf('other', 'two', '0x1234')];
    const empty = readLeafCrls(crl('two'), 'here');
    assert.equal(isRevoked(other, empty), false);
    const revoked = readLeafCrls(`${crl('one', 'bad', 'high')}\n${file('two.crl')}`, 'here');
    assert.deepEqual(
      [good, bad, high, other].map((certificate) => isRevoked(certificate, revoked)),
      [false, true, true, false],
    );
  });

  it('are refused with the place when they are none', () => {
    assert.throws(() => readLeafCrls('', 'secret ROOTCA'), /secret ROOTCA: crl holds no revocation list/);
    for (const bytes of ['', 'AAAA', 'MIIB', 'MAA=', 'MAIwAA=='])
      assert.throws(() => readLeafCrls(`-----BEGIN X509 CRL-----\n${bytes}\n-----END X509 CRL-----\n`, 'secret ROOTCA'), /secret ROOTCA: /, bytes);
  });
});
