import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { keepServingAfterErrors, Logger, type LogLevel, MizzenError, messageOf } from '@mizzen/common';
import {
  checkProxyConfig,
  compileBootstrap,
  defaultDrainMs,
  defaultMaxDrainingProcesses,
  isBootstrap,
  type MessagingSurroundings,
  type ProxyConfig,
  predecessor,
  type StartedProxy,
  startProxy,
  startStaticProxy,
} from '@mizzen/proxy';
import { Generations, type GenerationsOptions } from '../generations.ts';
import { exitWithParent, onDrainRequest } from '../process-life.ts';

export interface ProxyOptions {
  readonly config: string;
  readonly logLevel: LogLevel;
  readonly concurrency?: string;
  readonly drainTime?: string;
  readonly restartDrainTime?: string;
  readonly maxDraining?: string;
}

/** `mizzen proxy`: one sidecar or gateway. */
export async function proxy(options: ProxyOptions): Promise<void> {
  const logger = new Logger('proxy', options.logLevel);
  keepServingAfterErrors(logger, 'proxy');
  const { running, generations: generationsOptions } = await start(options, logger);
  running.ready.catch((error: unknown) => {
    logger.error(messageOf(error));
    process.exit(1);
  });
  const generations = new Generations(running, generationsOptions, logger);
  exitWithParent(() => generations.stopSoon());
  onDrainRequest(() => generations.drain());
}

async function start(options: ProxyOptions, logger: Logger): Promise<{ readonly running: StartedProxy; readonly generations: GenerationsOptions }> {
  let value: unknown;
  try {
    value = await read(readFileSync(options.config, 'utf8'));
  } catch (error) {
    throw new MizzenError('unreadable-config', `the proxy configuration cannot be read: ${messageOf(error)}`, options.config);
  }
  const start = {
    logLevel: options.logLevel,
    predecessor: predecessor(),
    // Only loaded where there is a message mesh.
    messaging: async (surroundings: MessagingSurroundings) => (await import('@mizzen/message')).startMessaging(surroundings),
  };
  const given = {
    ...(options.concurrency === undefined ? {} : { concurrency: wholeNumber(options.concurrency, '--concurrency') }),
    ...(options.drainTime === undefined ? {} : { drainMs: 1000 * wholeNumber(options.drainTime, '--drain-time') }),
    ...(options.restartDrainTime === undefined ? {} : { restartDrainMs: 1000 * wholeNumber(options.restartDrainTime, '--restart-drain-time') }),
    ...(options.maxDraining === undefined ? {} : { maxDrainingProcesses: wholeNumber(options.maxDraining, '--max-draining') }),
  };
  const ofMesh = isBootstrap(value) ? undefined : checkProxyConfig(value, options.config);
  const config: Pick<ProxyConfig, 'drainMs' | 'maxDrainingProcesses'> = { ...ofMesh, ...given };
  const { drainMs = defaultDrainMs, maxDrainingProcesses: maxDraining = defaultMaxDrainingProcesses } = config;
  const running =
    ofMesh === undefined
      ? await startStaticProxy({ ...compileBootstrap(value, options.config), ...given }, logger, start)
      : await startProxy({ ...ofMesh, stateFolder: ofMesh.stateFolder ?? stateFolderOf(options.config), ...given }, logger, start);
  return { running, generations: { drainMs, maxDraining } };
}

/** Beside the configuration file: `reviews.json` has `reviews.state`. */
export function stateFolderOf(configFile: string): string {
  return resolve(configFile.replace(/\.(?:json|ya?ml)$/, '').concat('.state'));
}

/** JSON, or YAML: whose reader is only loaded when the file is YAML. */
async function read(text: string): Promise<unknown> {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (/^\s*[{[]/.test(text)) throw error;
    const { parseYaml } = await import('@mizzen/common/bounded-yaml');
    return parseYaml(text);
  }
}

function wholeNumber(text: string, option: string): number {
  if (!/^\d{1,5}$/.test(text)) throw new MizzenError('invalid-option', `${option} takes a whole number, not ${JSON.stringify(text)}`);
  return Number(text);
}
