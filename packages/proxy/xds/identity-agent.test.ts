import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { Logger, silentLogger } from '@mizzen/common';
import { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { SecretStore } from '../tls/secret-store.ts';
import { IdentityAgent } from './identity-agent.ts';

describe('the identity agent', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-identity-'));
  const [rootCertificateFile, tokenFile] = [join(folder, 'root.pem'), join(folder, 'token')];
  for (const path of [rootCertificateFile, tokenFile]) writeFileSync(path, '');
  after(() => rmSync(folder, { recursive: true, force: true }));

  it('requests a certificate at once when the control plane is back, whatever pause its failures have earned', async () => {
    let agent: IdentityAgent | undefined;
    const attempts = Promise.withResolvers<void>();
    let failed = 0;
    // Ten failures without the call would take more than a minute.
    const logger = new Logger('test', 'warn', () => {
      if (++failed === 10) attempts.resolve();
      else setImmediate(() => agent?.controlPlaneIsBack());
    });
    const config = {
      ...({ type: 'sidecar', name: 'web', namespace: 'default', workload: 'web', serviceAccount: 'web', labels: {}, trustDomain: 'cluster.local' } as const),
      ...{ address: '127.0.0.1', control: '127.0.0.1:1', rootCertificateFile, tokenFile },
    };
    agent = new IdentityAgent(config, new SecretStore(silentLogger), new ProxyCounters(), logger);
    const starting = agent.start();
    await attempts.promise;
    agent.close();
    await starting;
  });
});
