import { readFileSync } from 'node:fs';
import { keepServingAfterErrors, Logger, type LogLevel, MizzenError, messageOf } from '@mizzen/common';
import {
  checkProxyConfig,
  compileBootstrap,
  isBootstrap,
  type MessagingSurroundings,
  predecessor,
  type StartedProxy,
  startProxy,
  startStaticProxy,
} from '@mizzen/proxy';
import { exitWithParent, isSupervised, onDrainRequest, onStopSignal } from '../process-life.ts';

export interface ProxyOptions {
  readonly config: string;
  readonly logLevel: LogLevel;
  readonly concurrency?: string;
  readonly drainTime?: string;
}

/** `mizzen proxy`: one sidecar or gateway. */
export async function proxy(options: ProxyOptions): Promise<void> {
  const logger = new Logger('proxy', options.logLevel);
  const running = await start(options, logger);
  keepServingAfterErrors(logger);
  running.ready.catch((error: unknown) => {
    logger.error(messageOf(error));
    process.exit(1);
  });
  exitWithParent(() => void running.close().then(() => process.exit(0)));
  onStopSignal(() => running.close());
  onDrainRequest(() => running.drain());
  restartOnSignal(running, logger);
}

async function start(options: ProxyOptions, logger: Logger): Promise<StartedProxy> {
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
  };
  if (isBootstrap(value)) return startStaticProxy({ ...compileBootstrap(value, options.config), ...given }, logger, start);
  return startProxy({ ...checkProxyConfig(value, options.config), ...given }, logger, start);
}

/** JSON, or YAML: whose reader is only loaded for those who write it. */
async function read(text: string): Promise<unknown> {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (/^\s*[{[]/.test(text)) throw error;
    // A package in CommonJS: in the bundle its exports are those of the default export alone.
    const module = await import('yaml');
    return (module.default ?? module).parse(text, { maxAliasCount: 100 });
  }
}

function wholeNumber(text: string, option: string): number {
  if (!/^\d{1,5}$/.test(text)) throw new MizzenError('invalid-option', `${option} takes a whole number, not ${JSON.stringify(text)}`);
  return Number(text);
}

/** SIGUSR2: hot restart, as nginx has it. */
function restartOnSignal(running: StartedProxy, logger: Logger): void {
  let successor: number | undefined;
  let isRestarting = false;
  process.on('SIGUSR2', () => {
    // This process only stands in for the one that serves, where whoever started it knows no other.
    if (successor !== undefined) return void process.kill(successor, 'SIGUSR2');
    if (isRestarting) return;
    isRestarting = true;
    running.hotRestart().then(
      async ({ pid, exited }) => {
        successor = pid;
        for (const signal of ['SIGINT', 'SIGTERM'] as const) {
          process.removeAllListeners(signal);
          process.on(signal, () => process.kill(pid, signal));
        }
        await running.close();
        if (!isSupervised()) process.exit(0);
        process.exit(await exited);
      },
      (error: unknown) => {
        isRestarting = false;
        logger.error(messageOf(error));
      },
    );
  });
}
