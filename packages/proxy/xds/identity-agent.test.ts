import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { webcrypto } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { Logger, silentLogger } from '@mizzen/common';
import { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { SecretStore } from '../tls/secret-store.ts';
import { IdentityAgent } from './identity-agent.ts';

/** PEM. */
async function selfSigned(fromMs: number, toMs: number): Promise<string> {
  await import('reflect-metadata');
  const { X509CertificateGenerator } = await import('@peculiar/x509');
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const validity = { notBefore: new Date(fromMs), notAfter: new Date(toMs) };
  return (await X509CertificateGenerator.createSelfSigned({ name: 'CN=web', keys, signingAlgorithm: algorithm, ...validity }, webcrypto)).toString('pem');
}

describe('the identity agent', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-identity-'));
  const [rootCertificateFile, tokenFile] = [join(folder, 'root.pem'), join(folder, 'token')];
  for (const path of [rootCertificateFile, tokenFile]) writeFileSync(path, '');
  after(() => rmSync(folder, { recursive: true, force: true }));

  const config = {
    ...({ type: 'sidecar', name: 'web', namespace: 'default', workload: 'web', serviceAccount: 'web', labels: {}, trustDomain: 'cluster.local' } as const),
    ...{ address: '127.0.0.1', control: '127.0.0.1:1', rootCertificateFile, tokenFile },
  };

  it('reports a certificate out of its time, with the clock of this machine', () => {
    const [keyFile, certificateFile] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
    const request = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '1', '-subj', '/CN=web'];
    execFileSync('openssl', [...request, '-keyout', keyFile, '-out', certificateFile], { stdio: 'ignore' });
    const agent = new IdentityAgent(config, new SecretStore(silentLogger), new ProxyCounters(), silentLogger);
    agent.restore({ cert: readFileSync(certificateFile, 'utf8'), key: readFileSync(keyFile, 'utf8') }, '');
    agent.close();
    const hour = 3_600_000;
    assert.equal(agent.timeProblem(), undefined);
    const whose = /^the certificate of this workload \(spiffe:\/\/cluster\.local\/ns\/default\/sa\/web\) /;
    for (const [nowMs, problem] of [
      [Date.now() + 26 * hour, /has expired on .*: the clock of this machine says .* later\. The control plane at 127\.0\.0\.1:1 has issued no other/],
      [Date.now() - hour, /is not valid before .*: the clock of this machine says .* earlier\. Set the clock that is wrong/],
    ] as const) {
      assert.match(agent.timeProblem(nowMs) ?? '', whose);
      assert.match(agent.timeProblem(nowMs) ?? '', problem);
    }
  });

  it('keeps a certificate that is valid when the control plane issues one that is not valid yet', async () => {
    const issued = [await selfSigned(Date.now() - 60_000, Date.now() + 2_000), await selfSigned(Date.now() + 3_600_000, Date.now() + 7_200_000)];
    let requests = 0;
    const reported = Promise.withResolvers<string>();
    const logger = new Logger('test', 'error', (line) => reported.resolve(line));
    const agent = new IdentityAgent(config, new SecretStore(silentLogger), new ProxyCounters(), logger);
    const createCertificate = async () => ({ certChain: [issued[Math.min(requests++, 1)], issued[0]] });
    agent.client = (() => ({ client: { createCertificate }, headers: {} })) as unknown as typeof agent.client;
    await agent.start();
    assert.match(
      await reported.promise,
      /the new certificate of this workload is not valid before .* earlier\. Set the clock that is wrong\. The certificate before it stays in use until /,
    );
    assert.equal(agent.current()?.pair.cert, issued[0]);
    agent.close();
  });

  it('requests a certificate at once when the control plane is back, whatever pause its failures have earned', async () => {
    let agent: IdentityAgent | undefined;
    const attempts = Promise.withResolvers<void>();
    let failed = 0;
    // Ten failures without the call would take more than a minute.
    const logger = new Logger('test', 'warn', () => {
      if (++failed === 10) attempts.resolve();
      else setImmediate(() => agent?.controlPlaneIsBack());
    });
    agent = new IdentityAgent(config, new SecretStore(silentLogger), new ProxyCounters(), logger);
    const starting = agent.start();
    await attempts.promise;
    agent.close();
    await starting;
  });
});
