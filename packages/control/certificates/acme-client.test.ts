import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { CertificateAuthority } from '../citadel/certificate-authority.ts';
import { AcmeClient } from './acme-client.ts';

describe('an ACME client at a hostile server', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-acme-client-'));
  let server: Server;
  let at: string;
  let roots: string;
  let identifier: unknown;
  let status = 'pending';
  before(async () => {
    const authority = await CertificateAuthority.open(folder, 'acme.example');
    roots = authority.trustBundle;
    server = createServer({ ...(await authority.issueServer({ dns: ['localhost'], ip: [] }, 600)) }, (request, response) => {
      response.setHeader('replay-nonce', 'nonce');
      response.setHeader('location', `${at}${request.url}/1`);
      request.resume();
      const bodies: Readonly<Record<string, object>> = {
        '/dir': { newNonce: `${at}/nonce`, newAccount: `${at}/account`, newOrder: `${at}/order` },
        '/order': { status: 'pending', authorizations: [`${at}/authorization`], finalize: `${at}/finalize` },
        '/authorization': { status, identifier, challenges: [{ type: 'http-01', url: `${at}/challenge`, token: 'token' }] },
      };
      response.end(JSON.stringify(bodies[request.url ?? ''] ?? {}));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    at = `https://localhost:${(server.address() as AddressInfo).port}`;
  });
  after(() => {
    server.close();
    server.closeAllConnections();
    rmSync(folder, { recursive: true, force: true });
  });
  const proved = async () => {
    const { privateKey: key } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const signal = AbortSignal.timeout(10_000);
    const client = new AcmeClient({ server: `${at}/dir`, email: undefined, key, roots, signal, policy: undefined });
    const domains: string[] = [];
    const stop = new Error('proved');
    await client
      .certificate(['Shop.example'], Buffer.alloc(0), async (challenges) => {
        domains.push(...challenges.map(({ domain }) => domain));
        throw stop;
      })
      .catch((error: unknown) => {
        if (error !== stop) throw error;
      });
    return domains;
  };

  it('proves the names that it ordered, in whatever case the server writes them', async () => {
    identifier = { type: 'dns', value: 'SHOP.example' };
    assert.deepEqual(await proved(), ['shop.example']);
  });

  it('proves no name that it did not order', async () => {
    for (const value of ['victim.example', 'www.shop.example', '*.shop.example', 'shop.example.', '*', '', 7, null, ['shop.example', 'victim.example']]) {
      identifier = { type: 'dns', value };
      await assert.rejects(proved(), /the server requests a proof of .*, which is not in the order for Shop\.example/, String(value));
    }
    for (const other of [undefined, null, 7, { type: 'ip', value: 'shop.example' }, { value: 'shop.example' }]) {
      identifier = other;
      await assert.rejects(proved(), /not in the order/, JSON.stringify(other));
    }
    status = 'valid';
    identifier = { type: 'dns', value: 'victim.example' };
    await assert.rejects(proved(), /not in the order/, 'a proof from before');
  });
});
