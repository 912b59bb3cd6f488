import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { keepServingAfterErrors, Logger, type LogLevel, MizzenError, printableLines } from '@mizzen/common';
import { type CertificateIssuer, IstioCaIssuer, startControlPlane } from '@mizzen/control';
import { homeOf } from '../home.ts';
import { closeAndExit, exitWithParent, onStopSignal } from '../process-life.ts';

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
  readonly issuer?: string;
  readonly caAddress?: string;
  readonly caRootFile?: string;
  readonly caTokenFile?: string;
  readonly caCertFile?: string;
  readonly caKeyFile?: string;
  readonly caForwarder: readonly string[];
  readonly workloadIssuer: readonly string[];
  readonly kubernetesApi?: string;
  readonly allowFetch: readonly string[];
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
    issuer: await issuerOf(options),
    forwarders: options.caForwarder,
    allowedFetchHosts: options.allowFetch,
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
          onDirectoryProblems: (problems: readonly string[]) => problems.forEach((problem) => process.stderr.write(`error: ${printableLines(problem)}\n`)),
        }),
  });
  keepServingAfterErrors(logger, 'control');
  logger.info('the control plane is up', { api: `https://${options.host}:${plane.apiPort}`, xds: `${options.xdsHost ?? options.host}:${plane.xdsPort}` });
  exitWithParent(() => closeAndExit(() => plane.close()));
  onStopSignal(async () => {
    await plane.close();
  });
}

/** Who signs for workloads, if not the control plane's own authority. */
async function issuerOf(options: ControlOptions): Promise<CertificateIssuer | undefined> {
  const { issuer, caAddress, caRootFile, caCertFile, caKeyFile, caTokenFile } = options;
  if (issuer !== undefined) {
    if (caAddress !== undefined) throw new MizzenError('bad-option', '--issuer and --ca-address: only one can sign');
    const { default: found } = (await import(pathToFileURL(resolve(issuer)).href)) as { readonly default?: Partial<CertificateIssuer> };
    if (typeof found?.name !== 'string' || typeof found.roots !== 'string' || typeof found.issue !== 'function')
      throw new MizzenError('bad-option', 'its default export is no CertificateIssuer: { name, roots, issue(csr, identity, validitySeconds) }', issuer);
    return found as CertificateIssuer;
  }
  if (caAddress === undefined) return undefined;
  if (caRootFile === undefined) throw new MizzenError('bad-option', '--ca-address needs --ca-root-file: the roots by which it is known');
  if (caTokenFile === undefined && (caCertFile === undefined || caKeyFile === undefined))
    throw new MizzenError('bad-option', '--ca-address needs --ca-token-file, or --ca-cert-file and --ca-key-file: who asks there?');
  return new IstioCaIssuer({ address: caAddress, rootFile: caRootFile, certFile: caCertFile, keyFile: caKeyFile, tokenFile: caTokenFile });
}
