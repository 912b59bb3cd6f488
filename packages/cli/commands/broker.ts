import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { keepServingAfterErrors, Logger, type LogLevel, MizzenError, parseDurationMs } from '@mizzen/common';
import { Broker } from '@mizzen/message/broker/broker';
import { BrokerServer } from '@mizzen/message/broker/broker-server';
import { checkHome, type HomeFinding, repairHome } from '@mizzen/message/broker/check-home';
import { defaultLogSettings } from '@mizzen/message/log/partition-log';
import { homeOf } from '../home.ts';
import { formatTable, print } from '../output.ts';
import { closeAndExit, exitWithParent, onStopSignal } from '../process-life.ts';

export interface BrokerOptions {
  readonly home?: string;
  readonly data?: string;
  readonly host: string;
  readonly port: string;
  readonly plain?: boolean;
  readonly config?: string;
  readonly partitions: string;
  readonly retention: string;
  readonly retentionBytes: string;
  readonly sync: boolean;
  readonly logLevel: LogLevel;
}

const maxTopics = 10_000;
const maxTopicsOfComponent = 2_000;

/** `mizzen broker`: the embedded broker, durable topics for the message mesh. */
export async function broker(options: BrokerOptions): Promise<void> {
  const logger = new Logger('broker', options.logLevel);
  const folder = options.data ?? join(homeOf(options.home), 'broker');
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const retentionMs = options.retention === '0' ? 0 : parseDurationMs(options.retention);
  if (retentionMs === undefined)
    throw new MizzenError('invalid-option', `--retention takes a duration such as 168h, or 0 for ever, not ${JSON.stringify(options.retention)}`);
  const startedAt = performance.now();
  const store = new Broker(
    {
      folder,
      partitions: wholeNumber(options.partitions, '--partitions', 1, 256),
      maxTopics,
      maxTopicsOfComponent,
      keepsUnadopted: options.config !== undefined,
      log: {
        ...defaultLogSettings,
        retentionMs,
        retentionBytes: wholeNumber(options.retentionBytes, '--retention-bytes', 0, Number.MAX_SAFE_INTEGER),
        syncs: options.sync,
      },
    },
    logger,
  );
  const isLoopback = ['127.0.0.1', '::1', 'localhost'].includes(options.host);
  if (options.config === undefined && !isLoopback)
    throw new MizzenError(
      'invalid-option',
      'without an identity (--config) the broker takes plain connections, and so listens on 127.0.0.1 only',
      options.host,
    );
  const mesh = options.config === undefined ? undefined : new (await import('../broker-mesh.ts')).BrokerMesh(options.config, folder, logger);
  // Nothing is served before it is known what to enforce.
  await mesh?.start();
  const server = new BrokerServer({
    broker: store,
    host: options.host,
    port: wholeNumber(options.port, '--port', 0, 65_535),
    logger,
    ...(mesh === undefined ? {} : { tls: () => mesh.tls(), authorization: mesh }),
  });
  mesh?.onTlsChanged(() => server.renewTls());
  await server.listen();
  logger.info('the broker takes messages', {
    at: `${options.host}:${server.port}`,
    data: folder,
    topics: store.stats().length,
    startMs: Math.round(performance.now() - startedAt),
    ...(options.sync ? {} : { sync: 'off' }),
  });
  const close = async () => {
    await server.close();
    await store.close();
    await mesh?.close();
  };
  keepServingAfterErrors(logger, 'broker');
  exitWithParent(() => closeAndExit(() => close()));
  onStopSignal(close);
}

/** `mizzen broker check`: what is damaged in a broker's directory. Exit code 1 when anything is. */
export function brokerCheck(options: Pick<BrokerOptions, 'home' | 'data'>): void {
  const folder = existingFolder(options);
  const { topics, records, findings } = checkHome(folder);
  if (findings.length > 0) printFindings(findings);
  print(`${topics} topics, ${records} records, ${findings.length === 0 ? 'nothing is damaged' : `${findings.length} findings`} in ${folder}`);
  if (findings.some(({ severity }) => severity !== 'mended')) process.exitCode = 1;
}

/** `mizzen broker repair`: makes a damaged directory usable; what cannot be read is moved to damaged/ in it. */
export async function brokerRepair(options: Pick<BrokerOptions, 'home' | 'data'>): Promise<void> {
  const folder = existingFolder(options);
  for (const line of await repairHome(folder, new Logger('broker', 'warn'))) print(line);
  const { topics, records, findings } = checkHome(folder);
  if (findings.length > 0) printFindings(findings);
  print(`${topics} topics and ${records} records can be used in ${folder}`);
}

function printFindings(findings: readonly HomeFinding[]): void {
  print(
    formatTable(
      ['SEVERITY', 'PROBLEM', 'PATH'],
      findings.map(({ severity, problem, path }) => [severity, problem, path]),
    ),
  );
}

function existingFolder({ home, data }: Pick<BrokerOptions, 'home' | 'data'>): string {
  const folder = data ?? join(homeOf(home), 'broker');
  if (!existsSync(folder)) throw new MizzenError('no-broker', 'there is no broker directory here: name it with --data or --home', folder);
  return folder;
}

function wholeNumber(text: string, option: string, least: number, most: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > most)
    throw new MizzenError('invalid-option', `${option} takes a whole number from ${least} to ${most}, not ${JSON.stringify(text)}`);
  return value;
}
