import { existsSync, readdirSync, readFileSync, statSync, watch } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { StringDecoder } from 'node:string_decoder';
import { closestName, errorBoundary, MizzenError, messageOf } from '@mizzen/common';
import { homeOf } from '../home.ts';
import { outputFormat, printData, printLog } from '../output.ts';

const boundary = errorBoundary('command');

export interface LogsOptions {
  readonly home?: string;
  readonly output?: string;
  readonly proxy?: boolean;
  readonly follow?: boolean;
  readonly tail: string;
}

/** `mizzen logs NAME`: the output of a workload, or with --proxy the access log and messages of its sidecar. */
export async function logs(name: string, options: LogsOptions): Promise<void> {
  const folder = join(homeOf(options.home), 'logs');
  const files = existsSync(folder) ? readdirSync(folder).filter((file) => file.endsWith('.log')) : [];
  const wanted = (base: string) => `${base}${options.proxy ? '.proxy' : ''}.log`;
  // A gateway has no process but its proxy.
  const candidates = [wanted(name), wanted(`${name}-0`), `${name}.proxy.log`, `${name}-0.proxy.log`];
  const file = candidates.find((candidate) => files.includes(candidate));
  if (!file) {
    const names = [...new Set(files.map((candidate) => candidate.replace(/(\.proxy)?\.log$/, '')))];
    const near = closestName(name, names);
    throw new MizzenError('no-such-log', `there is no log of "${name}"${near ? `: did you mean "${near}"?` : `. There are: ${names.join(', ') || 'none'}.`}`);
  }
  const path = join(folder, file);
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  const shown = lines.slice(-Number(options.tail));
  const format = outputFormat(options.output);
  if (format !== 'table') return printData({ name, file: path, lines: shown }, format);
  if (shown.join('') !== '') printLog(`${shown.join('\n')}\n`);
  if (options.follow) await follow(path);
}

async function follow(path: string): Promise<void> {
  let at = statSync(path).size;
  let reading = Promise.resolve();
  const decoder = new StringDecoder('utf8');
  const read = async () => {
    const { size } = statSync(path);
    if (size < at) at = 0;
    if (size === at) return;
    const handle = await open(path);
    try {
      const { buffer, bytesRead } = await handle.read(Buffer.alloc(size - at), 0, size - at, at);
      at += bytesRead;
      printLog(decoder.write(buffer.subarray(0, bytesRead)));
    } finally {
      await handle.close();
    }
  };
  const follow = () => {
    reading = reading.then(read).catch((error: unknown) => void process.stderr.write(`${messageOf(error)}\n`));
  };
  const watcher = boundary.own(watch(path, follow));
  await new Promise<void>((resolve) => process.once('SIGINT', () => resolve()));
  watcher.close();
}
