import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { CertificateAuthority } from './certificate-authority.ts';
import { bundleDocument, PublishedBundle, readBundleDocument } from './spiffe-bundle.ts';
import { type CaCertificate, TrustBundles } from './trust-bundles.ts';

describe('bundles of trust domains', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-bundles-'));
  const closers: (() => unknown)[] = [];
  let here: CertificateAuthority;
  let there: CertificateAuthority;
  before(async () => {
    here = await CertificateAuthority.open(join(folder, 'here'), 'here.example');
    there = await CertificateAuthority.open(join(folder, 'there'), 'there.example');
  });
  after(() => {
    for (const close of closers) close();
    rmSync(folder, { recursive: true, force: true });
  });
  const jwks = JSON.stringify({ keys: [{ kty: 'EC', crv: 'P-256', x: 'a', y: 'b', kid: '1' }] });

  it('are read as they are published, and counted when they change', async () => {
    let pem = there.trustBundle;
    const published = new PublishedBundle(async () => ({ pem, jwks, refreshSeconds: 60 }));
    const first = await published.document();
    assert.deepEqual(readBundleDocument(first), {
      ...{ pem: there.trustBundle.trimStart().replace(/\n+/g, '\n'), jwks, refreshSeconds: 60 },
      sequence: (JSON.parse(first) as { spiffe_sequence: number }).spiffe_sequence,
    });
    assert.equal(await published.document(), first);
    pem += here.trustBundle;
    const sequence = (text: string) => (JSON.parse(text) as { spiffe_sequence: number }).spiffe_sequence;
    assert.ok(sequence(await published.document()) > sequence(first));
  });

  it('are refused with the reason when they are none', async () => {
    const leaf = await there.issueServer({ dns: ['a.example'], ip: [] }, 600);
    const x5c = [leaf.cert.replace(/-----END[\s\S]*/, '').replace(/-----BEGIN CERTIFICATE-----|\s/g, '')];
    for (const [text, reason] of [
      ['no JSON', /JSON/],
      ['{}', /a JWK set is needed/],
      ['{"keys":[7]}', /a key in it is no object/],
      ['{"keys":[]}', /there is no root in it/],
      ['{"keys":[{"use":"x509-svid"}]}', /has no x5c/],
      [JSON.stringify({ keys: [{ use: 'x509-svid', x5c }] }), /a certificate in it is no authority's/],
      ...['"7"', '-1', '1.5', '1e300', '[]'].map((sequence) => {
        const root = there.trustBundle.replace(/-----END[\s\S]*/, '').replace(/-----BEGIN CERTIFICATE-----|\s/g, '');
        return [`{"keys":[{"use":"x509-svid","x5c":["${root}"]}],"spiffe_sequence":${sequence}}`, /spiffe_sequence is not a whole number/] as const;
      }),
    ] as const)
      assert.throws(() => readBundleDocument(text), reason, text);
  });

  it('come only from who is known to be the trust domain, in no more bytes than make sense, and with no root that has a name of ours', async () => {
    let body = '';
    const names = { dns: ['localhost'], ip: [] };
    const serve = async ({ cert, key }: { readonly cert: string; readonly key: string }) => {
      const server = createServer({ cert, key }, (_request, response) => response.end(body));
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      closers.push(() => server.close());
      return `https://localhost:${(server.address() as AddressInfo).port}/`;
    };
    const problemAt = async (url: string, given: readonly CaCertificate[]) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      const warned = { ...silentLogger, warn: () => resolve() } as unknown as typeof silentLogger;
      const bundles = new TrustBundles({
        ...{ ownRoots: () => here.trustBundle, trustDomain: 'here.example', fetchPolicy: undefined, directory: join(folder, 'kept', String(closers.length)) },
        ...{ logger: warned, onChange: () => resolve() },
      });
      bundles.configure([{ pem: undefined, spiffeBundleUrl: url, trustDomains: ['there.example'] }, ...given]);
      await promise;
      const [status] = bundles.status();
      bundles.close();
      return status!.problem;
    };
    const theirs: CaCertificate = { pem: there.trustBundle, spiffeBundleUrl: undefined, trustDomains: ['there.example'] };
    const url = await serve(await there.issueServer(names, 600));
    body = await new PublishedBundle(async () => ({ pem: there.trustBundle, jwks, refreshSeconds: 60 })).document();
    assert.equal(await problemAt(url, [theirs]), undefined);
    assert.match((await problemAt(url, []))!, /self.signed|unable to/, 'the public web does not know that root');
    const workload = await there.issueServer({ dns: [], ip: [], identity: { trustDomain: 'there.example', namespace: 'a', serviceAccount: 'b' } }, 600);
    assert.match((await problemAt(await serve(workload), [theirs]))!, /altname/i, 'any workload of it may not speak for the trust domain');
    assert.match((await problemAt(await serve(await here.issueServer(names, 600)), [theirs]))!, /self.signed|unable to/);
    body = ' '.repeat(2 * 1024 * 1024);
    assert.match((await problemAt(url, [theirs]))!, /more than 1048576 bytes/);
    const lookalike = await CertificateAuthority.open(join(folder, 'lookalike'), 'here.example');
    body = await new PublishedBundle(async () => ({ pem: lookalike.trustBundle, jwks, refreshSeconds: 60 })).document();
    assert.match((await problemAt(url, [theirs]))!, /a root in it has the name of one of this mesh/);
  });

  it('never go back behind the last good one, also after a restart, and keep it while their endpoint fails', async () => {
    let body: string | undefined;
    const { cert, key } = await there.issueServer({ dns: ['localhost'], ip: [] }, 600);
    const server = createServer({ cert, key }, (_request, response) => (body === undefined ? response.destroy() : response.end(body)));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    closers.push(() => server.close());
    const url = `https://localhost:${(server.address() as AddressInfo).port}/`;
    const directory = join(folder, 'rollback');
    /** What a control plane that starts now makes of the endpoint. */
    const startedWith = async (document: string | undefined) => {
      body = document;
      const bundles = new TrustBundles({
        ...{ ownRoots: () => here.trustBundle, trustDomain: 'here.example', fetchPolicy: undefined, directory },
        ...{ logger: silentLogger, onChange: () => {} },
      });
      const theirs = { pem: there.trustBundle, spiffeBundleUrl: undefined, trustDomains: ['there.example'] };
      bundles.configure([theirs, { pem: undefined, spiffeBundleUrl: url, trustDomains: ['there.example'] }]);
      const status = () => bundles.status()[0]!;
      while (status().problem === undefined && status().fetchedAt === undefined) await new Promise((next) => setTimeout(next, 1));
      const result = { problem: status().problem, keys: bundles.tokenKeys()['there.example'] };
      bundles.close();
      return result;
    };
    const document = (kid: string, sequence: number | undefined) => {
      const bundle = { pem: there.trustBundle, jwks: JSON.stringify({ keys: [{ kty: 'EC', kid }] }), refreshSeconds: 0.001 };
      const value = JSON.parse(bundleDocument(bundle, sequence ?? 0)) as Record<string, unknown>;
      if (sequence === undefined) delete value['spiffe_sequence'];
      return JSON.stringify(value);
    };
    const keys = (kid: string) => JSON.stringify({ keys: [{ kty: 'EC', kid }] });
    assert.deepEqual(await startedWith(document('first', undefined)), { problem: undefined, keys: keys('first') });
    assert.deepEqual(await startedWith(document('second', 7)), { problem: undefined, keys: keys('second') });
    for (const [next, reason] of [
      [document('old', 6), /older than one before: spiffe_sequence is 6, and was 7/],
      [document('old', 0), /older/],
      [document('old', undefined), /has no spiffe_sequence, but one before had 7/],
      [document('other', 7), /content has changed, and its spiffe_sequence is still 7/],
      [document('second', 7).slice(1), /JSON/],
      [undefined, /socket|reset|closed/i],
    ] as const) {
      const { problem, keys: kept } = await startedWith(next);
      assert.match(problem!, reason);
      assert.equal(kept, keys('second'), `the last good one stays beside: ${problem}`);
    }
    assert.deepEqual(await startedWith(document('second', 7)), { problem: undefined, keys: keys('second') });
    assert.deepEqual(await startedWith(document('third', 8)), { problem: undefined, keys: keys('third') });
  });

  it('are published with numbers that grow although the clock was set back', async () => {
    const path = join(folder, 'published.json');
    writeFileSync(path, JSON.stringify({ sequence: 9_000_000_000, digest: 'of another' }), { mode: 0o600 });
    const sequenceOf = async (pem: string) =>
      readBundleDocument(await new PublishedBundle(async () => ({ pem, jwks, refreshSeconds: 60 }), path).document()).sequence;
    assert.equal(await sequenceOf(there.trustBundle), 9_000_000_001);
    assert.equal(await sequenceOf(there.trustBundle), 9_000_000_001, 'the same after a restart');
    assert.equal(await sequenceOf(here.trustBundle), 9_000_000_002);
  });
});
