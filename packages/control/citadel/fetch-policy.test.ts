import assert from 'node:assert/strict';
import dns, { type LookupAddress } from 'node:dns';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { syncBuiltinESMExports } from 'node:module';
import type { AddressInfo } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { FetchPolicy } from '@mizzen/common/fetch-policy';
import { callHttps } from '@mizzen/common/https-call';
import { JwksResolver } from './jwks-resolver.ts';
import { TrustBundles } from './trust-bundles.ts';

const ownAddresses = Object.values(networkInterfaces()).flatMap((all) =>
  (all ?? []).filter(({ address }) => !address.includes('%')).map(({ address, family }) => (family === 'IPv6' ? `[${address}]` : address)),
);

describe('URLs in configuration', () => {
  it('do not lead to this machine or to link-local addresses, however the address is written', async () => {
    for (const host of [
      ...['127.0.0.1', '127.1', '0x7f000001', '2130706433', '0.0.0.0', '[::1]', '[::]', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]'],
      ...['169.254.169.254', '[fe80::1]', '[fd00:ec2::254]', '255.255.255.255', 'localhost', 'LOCALHOST.'],
      ...['0177.0.0.1', '127.0.0.1.', '0x7f.1', '127.000.000.001', '%31%32%37.0.0.1', '１２７.0.0.1', '127。0。0。1', '0', '[0:0:0:0:0:0:0:1]'],
      // An IPv4 address within an IPv6 address: compatible, translated, NAT64, 6to4, Teredo.
      ...['[::127.0.0.1]', '[::ffff:0:127.0.0.1]', '[64:ff9b::7f00:1]', '[64:ff9b:1::a9fe:a9fe]', '[2002:7f00:1::]', '[2002:a9fe:a9fe::1]', '[2001::1]'],
      ...['0xa9fea9fe', '2852039166', '[::ffff:a9fe:a9fe]', '[fec0::1]', '224.0.0.1', '[ff02::1]', ...ownAddresses],
    ]) {
      const call = (async () => callHttps(`http://${host}:1/`, { policy: new FetchPolicy(), signal: AbortSignal.timeout(2_000), maxBytes: 10 }))();
      await assert.rejects(call, /may not lead there|ENOTFOUND|EAI_AGAIN/, host);
    }
  });

  it('lead to what the administrator allows', async () => {
    const call = callHttps('http://127.0.0.1:1/', { policy: new FetchPolicy(['127.0.0.1']), signal: AbortSignal.timeout(2_000), maxBytes: 10 });
    await assert.rejects(call, /ECONNREFUSED/);
    assert.equal(typeof new FetchPolicy(['127.0.0.1']).lookupFor('https://issuer.example/keys'), 'function');
  });

  it('lead to addresses that are not of this machine, whatever form they have', async () => {
    for (const address of ['93.184.216.34', '10.1.2.3', '[2606:2800::1]', '[64:ff9b::5db8:d822]', '[2002:5db8:d822::1]', '[fd12:3456::1]'])
      assert.equal(typeof new FetchPolicy().lookupFor(`https://${address}/`), 'function', address);
  });

  it('use the address that was verified, although the name has another one a moment later', async (test) => {
    const answers: LookupAddress[][] = [
      [{ address: '93.184.216.34', family: 4 }],
      [{ address: '127.0.0.1', family: 4 }],
      [
        { address: '93.184.216.34', family: 4 },
        { address: '::ffff:127.0.0.1', family: 6 },
      ],
    ];
    let asked = 0;
    test.mock.method(dns, 'lookup', ((_name: string, _options: object, callback: (error: null, addresses: LookupAddress[]) => void) => {
      callback(null, answers[asked++] ?? []);
    }) as never);
    syncBuiltinESMExports();
    try {
      const lookup = new FetchPolicy().lookupFor('https://rebinds.example/')!;
      const found = () => new Promise((resolve) => lookup('rebinds.example', { all: true }, (error, addresses) => resolve(error?.message ?? addresses)));
      assert.deepEqual(await found(), [{ address: '93.184.216.34', family: 4 }], 'the connection uses what was verified');
      assert.equal(asked, 1, 'and the name is resolved once');
      assert.match(String(await found()), /may not lead there/);
      assert.match(String(await found()), /may not lead there/, 'one bad address among good ones');
    } finally {
      test.mock.restoreAll();
      syncBuiltinESMExports();
    }
  });

  it('are refused by everything that fetches them, and no error quotes what a server sent', async () => {
    let requests = 0;
    let answer: { status: number; headers?: Record<string, string>; body: string } = { status: 200, body: '' };
    const server = createServer((_request, response) => {
      requests++;
      response.writeHead(answer.status, answer.headers).end(answer.body);
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as AddressInfo;
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-fetches-'));
    /** What the key resolver says about a source. */
    const keys = async (source: { issuer: string; jwksUri: string | undefined }, policy: FetchPolicy) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      const resolver = new JwksResolver(silentLogger, resolve, policy);
      resolver.want([{ ...source, timeoutMs: 2_000 }]);
      await promise;
      const problem = resolver.problemOf({ ...source, timeoutMs: 2_000 });
      resolver.close();
      return String(problem);
    };
    const bundle = async (url: string, policy: FetchPolicy) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      const warned = { ...silentLogger, warn: () => resolve() } as unknown as typeof silentLogger;
      const bundles = new TrustBundles({
        ...{ ownRoots: () => '', trustDomain: 'here.example', fetchPolicy: policy, directory: folder, logger: warned, onChange: resolve },
      });
      bundles.configure([{ pem: undefined, spiffeBundleUrl: url, trustDomains: ['there.example'] }]);
      await promise;
      const { problem } = bundles.status()[0]!;
      bundles.close();
      return String(problem);
    };
    try {
      for (const host of ['127.0.0.1', '127.1', 'localhost', '[::ffff:127.0.0.1]', '0x7f000001', '[64:ff9b::7f00:1]']) {
        const url = `http://${host}:${port}/`;
        assert.match(await keys({ issuer: 'https://issuer.example', jwksUri: url }, new FetchPolicy()), /may not lead there/, host);
        assert.match(await keys({ issuer: url, jwksUri: undefined }, new FetchPolicy()), /may not lead there/, host);
        assert.match(await bundle(`https://${host}:${port}/`, new FetchPolicy()), /may not lead there/, host);
      }
      assert.equal(requests, 0, 'no request was sent');
      const allowed = new FetchPolicy(['127.0.0.1']);
      const source = { issuer: 'https://issuer.example', jwksUri: `http://127.0.0.1:${port}/` };
      for (const body of ['root:x:0:0:secret', '"secret"', '{"keys":"secret"}', '{"secret":1}']) {
        answer = { status: 200, body };
        assert.doesNotMatch(await keys(source, allowed), /secret/, body);
      }
      answer = { status: 500, body: 'secret' };
      assert.doesNotMatch(await keys(source, allowed), /secret/);
      answer = { status: 200, body: JSON.stringify({ issuer: 'secret', jwks_uri: 'http://169.254.169.254/' }) };
      assert.doesNotMatch(await keys({ issuer: `http://127.0.0.1:${port}`, jwksUri: undefined }, allowed), /secret/);
      answer = { status: 200, body: JSON.stringify({ issuer: `http://127.0.0.1:${port}`, jwks_uri: 'http://169.254.169.254/latest/meta-data' }) };
      assert.match(await keys({ issuer: `http://127.0.0.1:${port}`, jwksUri: undefined }, allowed), /169\.254\.169\.254 is an address/, 'what discovery names');
      for (const location of ['http://169.254.169.254/', `http://localhost:${port}/`, 'file:///etc/passwd', '//127.0.0.2/', 'http://['])
        for (const status of [301, 302, 307, 308]) {
          answer = { status, headers: { location }, body: 'secret' };
          assert.match(await keys(source, allowed), /redirects to another origin/, `${status} ${location}`);
        }
      answer = { status: 302, headers: { location: '/again' }, body: '' };
      assert.match(await keys(source, allowed), /too often/);
    } finally {
      server.close();
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
