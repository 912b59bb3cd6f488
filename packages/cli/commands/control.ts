import { Logger, type LogLevel } from '@mizzen/common';
import { startControlPlane } from '@mizzen/control';
import { homeOf } from '../home.ts';
import { exitWithParent, onStopSignal } from '../process-life.ts';

export interface ControlOptions {
  readonly home?: string;
  readonly dir?: string;
  readonly host: string;
  readonly xdsHost?: string;
  readonly apiPort: string;
  readonly xdsPort: string;
  readonly xdsPlainPort?: string;
  readonly trustDomain: string;
  readonly broker?: string;
  readonly rateLimitRedis?: string;
  readonly workloadIssuer: readonly string[];
  readonly kubernetesApi?: string;
  readonly kubernetesTokenFile: string;
  readonly kubernetesCaFile: string;
  readonly logLevel: LogLevel;
}

/** `mizzen control`: the control plane alone. */
export async function control(options: ControlOptions): Promise<void> {
  const logger = new Logger('control', options.logLevel);
  const plane = await startControlPlane({
    home: homeOf(options.home),
    host: options.host,
    xdsHost: options.xdsHost,
    apiPort: Number(options.apiPort),
    xdsPort: Number(options.xdsPort),
    trustDomain: options.trustDomain,
    brokerAddress: options.broker,
    rateLimitRedis: options.rateLimitRedis,
    logger,
    tokenSources: {
      issuers: options.workloadIssuer,
      kubernetes:
        options.kubernetesApi === undefined
          ? undefined
          : { api: options.kubernetesApi, tokenFile: options.kubernetesTokenFile, caFile: options.kubernetesCaFile },
    },
    ...(options.xdsPlainPort === undefined ? {} : { xdsPlainPort: Number(options.xdsPlainPort) }),
    ...(options.dir === undefined
      ? {}
      : {
          directory: options.dir,
          onDirectoryProblems: (problems: readonly string[]) => problems.forEach((problem) => process.stderr.write(`error: ${problem}\n`)),
        }),
  });
  logger.info('the control plane is up', { api: `https://${options.host}:${plane.apiPort}`, xds: `${options.xdsHost ?? options.host}:${plane.xdsPort}` });
  exitWithParent(() => void plane.close().then(() => process.exit(0)));
  onStopSignal(async () => {
    await plane.close();
  });
}
