import { readFileSync } from 'node:fs';
import { Logger, type LogLevel, MizzenError, messageOf } from '@mizzen/common';
import { checkProxyConfig, startProxy } from '@mizzen/proxy';
import { exitWithParent, onStopSignal } from '../process-life.ts';

export interface ProxyOptions {
  readonly config: string;
  readonly logLevel: LogLevel;
}

/** `mizzen proxy`: one sidecar or gateway. */
export async function proxy(options: ProxyOptions): Promise<void> {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(options.config, 'utf8'));
  } catch (error) {
    throw new MizzenError('unreadable-config', `the proxy configuration cannot be read: ${messageOf(error)}`, options.config);
  }
  const config = checkProxyConfig(value, options.config);
  const running = await startProxy(config, new Logger('proxy', options.logLevel));
  exitWithParent(() => void running.close().then(() => process.exit(0)));
  onStopSignal(() => running.close());
}
