import assert from 'node:assert/strict';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { rootCertificates } from 'node:tls';
import { create } from '@bufbuild/protobuf';
import { CommonTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { SecretStore } from './secret-store.ts';
import { TlsSources } from './tls-sources.ts';

describe('TlsSources', () => {
  const secrets = new SecretStore();
  after(() => secrets.close());
  const file = join(mkdtempSync(join(tmpdir(), 'mizzen-crl-')), 'list.pem');
  const list = (text: string) => `-----BEGIN X509 CRL-----\n${text}\n-----END X509 CRL-----\n`;
  const sources = (crl: string) =>
    new TlsSources(
      create(CommonTlsContextSchema, {
        validationContextType: {
          case: 'combinedValidationContext',
          value: {
            defaultValidationContext: { crl: { specifier: { case: 'filename', value: crl } } },
            validationContextSdsSecretConfig: { name: 'roots', sdsConfig: { configSourceSpecifier: { case: 'ads', value: {} } } },
          },
        },
      }),
      secrets,
      'test',
    );

  it('holds the revocation list of a combined context beside roots that come by SDS', () => {
    writeFileSync(file, list('AAAA'));
    const both = sources(file);
    assert.equal(both.roots(), undefined, 'nothing is trusted before the roots are there');
    secrets.setRoots('roots', { pem: rootCertificates[0]! });
    const roots = both.roots();
    assert.deepEqual(roots, { pem: rootCertificates[0], crl: list('AAAA') });
    assert.equal(both.roots(), roots, 'the same object until it changes, since contexts are made of it');
    secrets.setRoots('roots', { pem: rootCertificates[1]! });
    assert.deepEqual(both.roots(), { pem: rootCertificates[1], crl: list('AAAA') });
  });

  it('refuses a combined context whose revocation list cannot be read', () => {
    assert.throws(() => sources('/nonexistent/list.pem'), /nonexistent/);
  });
});
