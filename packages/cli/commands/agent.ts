import { existsSync, readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join, resolve } from 'node:path';
import { keepServingAfterErrors, Logger, type LogLevel, MizzenError, messageOf } from '@mizzen/common';
import { parseYaml } from '@mizzen/common/bounded-yaml';
import { writeDurably } from '@mizzen/common/durable-file';
import { homeFiles } from '@mizzen/control';
import { checkProxyConfig, startProxy } from '@mizzen/proxy';
import { controlAccess, homeOf, knownTrustDomain } from '../home.ts';
import { closeAndExit, exitWithParent, onStopSignal } from '../process-life.ts';
import { ownToken } from '../service-account-token.ts';

export interface AgentOptions {
  readonly home?: string;
  readonly entries: string;
  readonly socket: string;
  readonly control?: string;
  readonly tokenFile?: string;
  readonly rootCert?: string;
  readonly trustDomain?: string;
  readonly adminPort?: string;
  readonly logLevel: LogLevel;
}

const namespace = 'istio-system';
/** Who the agent is; the control plane has to trust it with the identities of others. */
const serviceAccount = 'mizzen-agent';

/** `mizzen agent`: the SPIFFE Workload API for the processes of this machine, which are told apart by what the kernel says of them. */
export async function agent(options: AgentOptions): Promise<void> {
  const home = homeOf(options.home);
  const logger = new Logger('agent', options.logLevel);
  const tokenFile = options.tokenFile ?? join(home, 'agent.token');
  if (options.tokenFile === undefined && !existsSync(tokenFile)) writeDurably(tokenFile, await ownToken(home, namespace, serviceAccount));
  const name = `agent-${hostname()
    .toLowerCase()
    .replace(/[^a-z0-9-]+/g, '-')}`;
  const config = checkProxyConfig(
    {
      ...{ type: 'sidecar', name, namespace, workload: name, serviceAccount, labels: { app: 'mizzen-agent' }, address: '127.0.0.1' },
      ...{ trustDomain: options.trustDomain ?? knownTrustDomain(home), control: options.control ?? controlAccess(home).xds, tokenFile },
      ...{ rootCertificateFile: options.rootCert ?? homeFiles(home).rootCertificate, workloadApiSocket: resolve(options.socket) },
      workloadEntries: readEntries(options.entries),
      ...(options.adminPort === undefined ? {} : { adminPort: Number(options.adminPort) }),
    },
    options.entries,
  );
  const running = await startProxy(config, logger);
  running.ready
    .then(() => logger.info('gives identities to the processes of this machine', { SPIFFE_ENDPOINT_SOCKET: `unix://${config.workloadApiSocket}` }))
    .catch((error: unknown) => {
      logger.error(messageOf(error));
      process.exit(1);
    });
  keepServingAfterErrors(logger, 'agent');
  exitWithParent(() => closeAndExit(() => running.close()));
  onStopSignal(() => running.close());
}

function readEntries(file: string): unknown {
  try {
    return (parseYaml(readFileSync(file, 'utf8')) as { readonly entries?: unknown } | null)?.entries;
  } catch (error) {
    throw new MizzenError('unreadable-file', messageOf(error).split('\n')[0]!, file);
  }
}
