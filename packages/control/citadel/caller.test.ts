import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createContextValues, type HandlerContext } from '@connectrpc/connect';
import { silentLogger } from '@mizzen/common';
import { PeerValidity } from '@mizzen/common/peer-validity';
import { authenticate, transportPeerKey, transportPeerOf } from './caller.ts';
import { RecentRefusals } from './recent-refusals.ts';
import { TokenIssuer } from './token-issuer.ts';

const hour = 3_600_000;
const holder = 'spiffe://cluster.local/ns/default/sa/web';

describe('a caller of the control plane that is refused', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-caller-'));
  let pem: string;
  /** The clock of the control plane. */
  let now = Date.now();
  const validity = new PeerValidity({ isRevoked: () => false, isTrustedDomain: () => true, clock: 'the clock of the control plane', now: () => now });
  const refusals = new RecentRefusals(silentLogger, () => now);
  const tokens = new TokenIssuer(folder, () => now);

  /** Calls with the certificate, whose chain OpenSSL has refused with this code (undefined: it has accepted it), and with a token. */
  const refusal = async (code: string | undefined, token?: string): Promise<string> => {
    const certificate = token === undefined ? new X509Certificate(pem) : undefined;
    const socket = { encrypted: true, remoteAddress: '192.0.2.1', remotePort: 1234, authorized: code === undefined && token === undefined };
    Object.assign(socket, { authorizationError: code, getPeerX509Certificate: () => certificate });
    const peer = transportPeerOf({ stream: { session: { socket } } } as never, {
      validity,
      refusals,
      authority: { trustDomain: 'cluster.local', roots: () => pem },
    });
    const requestHeader = new Headers(token === undefined ? {} : { authorization: `Bearer ${token}` });
    const context = { values: createContextValues().set(transportPeerKey, peer), requestHeader } as unknown as HandlerContext;
    return authenticate(context, tokens, 'cluster.local').then(
      () => '',
      (error: unknown) => String(error),
    );
  };

  before(() => {
    const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
    const name = ['-subj', '/O=mizzen/CN=other root', '-addext', `subjectAltName=URI:${holder}`];
    execFileSync(
      'openssl',
      ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '1', ...name, '-keyout', key, '-out', cert],
      {
        stdio: 'ignore',
      },
    );
    pem = readFileSync(cert, 'utf8');
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  it('is told whose certificate is out of its time, since when, and by which clock', async () => {
    now = Date.now() + 26 * hour;
    for (const code of [undefined, 'CERT_HAS_EXPIRED'])
      assert.match(
        await refusal(code),
        /the certificate of spiffe:\/\/cluster\.local\/ns\/default\/sa\/web has expired on .*: the clock of the control plane says .* later/,
      );
    now = Date.now() - hour;
    for (const code of [undefined, 'CERT_NOT_YET_VALID'])
      assert.match(await refusal(code), /is not valid before .*: the clock of the control plane says .* earlier\. Set the clock/);
    now = Date.now();
  });

  it('is told that a token is not valid yet, or no longer, and by which clock', async () => {
    const { token } = await tokens.issue('default', 'web', [], 3600);
    now = Date.now() - hour;
    assert.match(
      await refusal(undefined, token),
      /the token of system:serviceaccount:default:web is not valid before .*: the clock of the control plane says .* earlier\. Set the clock/,
    );
    now = Date.now() + 2 * hour;
    assert.match(
      await refusal(undefined, token),
      /the token has expired \(of system:serviceaccount:default:web, on .*: the clock of the control plane says .* later\)\. Get a new one/,
    );
    now = Date.now();
  });

  it('is told that another authority of the same trust domain has issued its certificate', async () => {
    assert.match(
      await refusal('UNABLE_TO_VERIFY_LEAF_SIGNATURE'),
      /issued by another authority of the same trust domain cluster\.local \(issuer .*other root; .*Restore its folder ca/,
    );
    const [newest] = refusals.list();
    assert.equal(newest?.caller, holder);
    assert.match(newest?.reason ?? '', /another authority/);
  });

  it('is remembered within bounds, whatever it claims to be', () => {
    for (let i = 0; i < 500; i++) refusals.add(`spiffe://cluster.local/ns/a/sa/${i}${'x'.repeat(1_000)}`, '192.0.2.1:1', 'y'.repeat(10_000));
    assert.equal(refusals.list().length, 100);
    assert.ok(refusals.list().every(({ caller, reason }) => caller.length <= 300 && reason.length <= 500));
  });
});
