import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { silentLogger } from '@mizzen/common';
import { checkProxyConfig } from '@mizzen/proxy';
import { ProxyCounters } from '@mizzen/proxy/telemetry/proxy-counters';
import { SecretStore } from '@mizzen/proxy/tls/secret-store';
import { IdentityAgent } from '@mizzen/proxy/xds/identity-agent';
import { TokenIssuer } from '../packages/control/citadel/token-issuer.ts';

/** Many workloads that do nothing but keep their certificates: `node rotation-agents.ts HOME CONTROL COUNT SECONDS`. Tells its parent of each certificate. */
const [home = '', control = '', count = '', seconds = ''] = process.argv.slice(2);
const tokens = new TokenIssuer(join(home, 'ca'));
const agents = await Promise.all(
  Array.from({ length: Number(count) }, async (_, i) => {
    const name = `w${i}`;
    const tokenFile = join(home, `${name}.token`);
    writeFileSync(tokenFile, (await tokens.issue('default', name, [], 3600)).token, { mode: 0o600 });
    const config = checkProxyConfig(
      {
        ...{ type: 'sidecar', name, namespace: 'default', workload: name, serviceAccount: name, trustDomain: 'cluster.local', address: '127.0.0.1' },
        ...{ control, rootCertificateFile: join(home, 'root-cert.pem'), tokenFile, certificateSeconds: Number(seconds) },
      },
      name,
    );
    const agent = new IdentityAgent(config, new SecretStore(), new ProxyCounters(), silentLogger);
    agent.onRenewed(() => process.send!('renewed'));
    return agent;
  }),
);
await Promise.all(agents.map((agent) => agent.start()));
// What they wait for keeps no process alive.
setInterval(() => {}, 60_000);
process.on('disconnect', () => process.exit());
process.send!('started');
