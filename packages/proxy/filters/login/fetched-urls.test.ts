import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import dns, { type LookupAddress } from 'node:dns';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { syncBuiltinESMExports } from 'node:module';
import type { AddressInfo } from 'node:net';
import { it } from 'node:test';
import { FetchPolicy } from '@mizzen/common/fetch-policy';
import { RemoteKeys } from '../../jwt/remote-keys.ts';
import { OpenIdProvider } from './openid-provider.ts';

it('a gateway fetches from no address of its own machine, whatever a name resolves to and whatever metadata names', async (test) => {
  const asked: string[] = [];
  let metadata: Record<string, unknown> = {};
  const keys = JSON.stringify({ keys: [generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' })] });
  const server = createServer((request, response) => {
    asked.push(request.url ?? '');
    if (request.url === '/moved') response.writeHead(302, { location: '/keys' });
    response.end(request.url === '/keys' ? keys : JSON.stringify(metadata));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const addresses: Record<string, LookupAddress[]> = {
    'rebinds.example': [{ address: '127.0.0.1', family: 4 }],
    'mapped.example': [{ address: '::ffff:127.0.0.1', family: 6 }],
    'metadata.example': [{ address: '169.254.169.254', family: 4 }],
  };
  test.mock.method(dns, 'lookup', ((name: string, _options: object, callback: (error: null, found: LookupAddress[]) => void) => {
    callback(null, addresses[name] ?? []);
  }) as never);
  syncBuiltinESMExports();
  try {
    const hosts = ['127.0.0.1', 'localhost', '[::ffff:7f00:1]', '2130706433', 'rebinds.example', 'mapped.example', 'metadata.example'];
    for (const host of hosts) {
      assert.equal(await new RemoteKeys(`http://${host}:${port}/keys`, new FetchPolicy()).get(false), undefined, host);
      const provider = new OpenIdProvider({ issuer: `http://${host}:${port}`, id: 'c', secret: () => '', policy: new FetchPolicy() });
      await assert.rejects(provider.authorizationUrl({}), /may not lead there/, host);
    }
    assert.deepEqual(asked, [], 'nothing was connected to');

    const allowed = new FetchPolicy(['127.0.0.1']);
    assert.ok(await new RemoteKeys(`http://127.0.0.1:${port}/keys`, allowed).get(false));
    assert.equal(await new RemoteKeys(`http://127.0.0.1:${port}/moved`, allowed).get(false), undefined, 'a redirect is not followed');
    const issuer = `http://127.0.0.1:${port}`;
    for (const host of hosts.slice(4)) {
      const at = (path: string) => `http://${host}:${port}/${path}`;
      metadata = {
        issuer,
        authorization_endpoint: `${issuer}/authorize`,
        token_endpoint: at('token'),
        jwks_uri: at('keys'),
        revocation_endpoint: at('revoke'),
      };
      const provider = new OpenIdProvider({ issuer, id: 'c', secret: () => '', policy: allowed });
      assert.match(await provider.authorizationUrl({}), /authorize/);
      asked.length = 0;
      await assert.rejects(provider.exchange('code', 'verifier', `${issuer}/callback`, 'nonce', []), /may not lead there/, host);
      await assert.rejects(provider.revoke('token', 'access_token'), /may not lead there/, host);
      assert.deepEqual(asked, [], host);
    }
  } finally {
    test.mock.restoreAll();
    syncBuiltinESMExports();
    server.close();
  }
});
