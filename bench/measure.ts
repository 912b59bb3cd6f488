import { spawn } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';

/** What a load on one proxy (one or more processes) came to. */
export interface Measurement {
  readonly cpuUsPerRequest: number;
  readonly requestsPerSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly rssMb: number;
  readonly errors: number;
}

export interface Load {
  readonly url: string;
  readonly host: string;
  readonly connections: number;
  readonly seconds: number;
  /** A Lua script for wrk, and headers beside Host. */
  readonly script?: string;
  readonly headers?: readonly string[];
}

/** CPU ticks of a process, user and system (proc(5), /proc/pid/stat fields 14 and 15). */
export function cpuTicks(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

export function rssMb(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024;
}

export const ticksPerSecond = 100;
const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

/** Puts a load on a proxy with wrk, pinned to the CPU that the proxy is not on, after a warm-up that does not count. */
export async function measure(pids: readonly number[], load: Load, loadCpu: number): Promise<Measurement> {
  await wrk({ ...load, seconds: 3 }, loadCpu);
  const before = sum(pids.map(cpuTicks));
  const result = await wrk(load, loadCpu);
  const after = sum(pids.map(cpuTicks));
  return {
    cpuUsPerRequest: (((after - before) / ticksPerSecond) * 1e6) / result.requests,
    requestsPerSecond: result.requestsPerSecond,
    p50Ms: result.p50Ms,
    p99Ms: result.p99Ms,
    rssMb: sum(pids.map(rssMb)),
    errors: result.errors,
  };
}

async function wrk(load: Load, cpu: number): Promise<{ requests: number; requestsPerSecond: number; p50Ms: number; p99Ms: number; errors: number }> {
  const output = await capture('taskset', [
    '-c',
    String(cpu),
    'wrk',
    '-t1',
    `-c${load.connections}`,
    `-d${load.seconds}s`,
    '--latency',
    '-H',
    `Host: ${load.host}`,
    ...(load.headers ?? []).flatMap((header) => ['-H', header]),
    ...(load.script === undefined ? [] : ['-s', load.script]),
    load.url,
  ]);
  const number = (pattern: RegExp) => Number(pattern.exec(output)?.[1] ?? 0);
  const milliseconds = (pattern: RegExp) => {
    const [, value, unit] = pattern.exec(output) ?? [];
    return Number(value ?? 0) * (unit === 'us' ? 0.001 : unit === 's' ? 1000 : 1);
  };
  const socketErrors = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(output);
  const errors = number(/Non-2xx or 3xx responses: (\d+)/) + (socketErrors ? sum(socketErrors.slice(1).map(Number)) : 0);
  return {
    requests: number(/(\d+) requests in/),
    requestsPerSecond: number(/Requests\/sec:\s+([\d.]+)/),
    p50Ms: milliseconds(/50%\s+([\d.]+)(us|ms|s)/),
    p99Ms: milliseconds(/99%\s+([\d.]+)(us|ms|s)/),
    errors,
  };
}

export interface Http2Load {
  readonly url: string;
  readonly host: string;
  readonly connections: number;
  readonly streams: number;
  readonly seconds: number;
  readonly headers: readonly string[];
  /** The file that each request sends. */
  readonly body?: string;
}

/** Puts a load on a proxy with h2load, pinned to the CPU that the proxy is not on, after a warm-up that does not count. */
export async function measureHttp2(pids: readonly number[], load: Http2Load, loadCpu: number): Promise<Measurement> {
  const run = async (seconds: number) => {
    const output = await capture('taskset', [
      '-c',
      String(loadCpu),
      'h2load',
      '-t1',
      `-c${load.connections}`,
      `-m${load.streams}`,
      `-D${seconds}`,
      ...(load.body === undefined ? [] : ['-d', load.body]),
      ...[`:authority: ${load.host}`, ...load.headers].flatMap((header) => ['-H', header]),
      load.url,
    ]);
    const [, total, , , succeeded, failed] = /requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed/.exec(output) ?? [];
    const good = Number(/status codes: (\d+) 2xx/.exec(output)?.[1] ?? 0);
    return { requests: good, errors: Number(failed ?? 0) + Math.max(0, Number(succeeded ?? 0) - good) + (total === undefined ? 1 : 0) };
  };
  await run(3);
  const before = sum(pids.map(cpuTicks));
  const { requests, errors } = await run(load.seconds);
  const after = sum(pids.map(cpuTicks));
  return {
    cpuUsPerRequest: (((after - before) / ticksPerSecond) * 1e6) / requests,
    requestsPerSecond: requests / load.seconds,
    p50Ms: Number.NaN,
    p99Ms: Number.NaN,
    rssMb: sum(pids.map(rssMb)),
    errors,
  };
}

/** Latency at a fixed rate, whatever the proxy can do at most: h2load sends on schedule and logs each request. (Its `-D` never ends with HTTP/1.1.) */
export async function measureLatency(pids: readonly number[], load: Load, requestsPerSecond: number, folder: string, loadCpu: number): Promise<Measurement> {
  const log = join(folder, 'h2load.log');
  const perClient = Math.floor(requestsPerSecond / load.connections);
  const run = async (seconds: number) => {
    rmSync(log, { force: true });
    await capture('taskset', [
      '-c',
      String(loadCpu),
      'h2load',
      '--h1',
      `-c${load.connections}`,
      '-t1',
      `-n${perClient * load.connections * seconds}`,
      `--rps=${perClient}`,
      `--log-file=${log}`,
      ...(load.host === '' ? [] : ['-H', `Host: ${load.host}`]),
      load.url,
    ]);
    return readFileSync(log, 'utf8')
      .split('\n')
      .filter(Boolean)
      .map((line) => line.split('\t').map(Number) as [number, number, number]);
  };
  await run(3);
  const before = sum(pids.map(cpuTicks));
  const lines = await run(load.seconds);
  const after = sum(pids.map(cpuTicks));
  const times = lines.map(([, , microseconds]) => microseconds / 1000).sort((a, b) => a - b);
  return {
    cpuUsPerRequest: (((after - before) / ticksPerSecond) * 1e6) / times.length,
    requestsPerSecond: times.length / load.seconds,
    p50Ms: times[Math.floor(times.length * 0.5)] ?? 0,
    p99Ms: times[Math.floor(times.length * 0.99)] ?? 0,
    rssMb: sum(pids.map(rssMb)),
    errors: lines.filter(([, status]) => status !== 200).length,
  };
}

/** Resident memory with so many idle connections open, in MB. */
export async function rssWithIdleConnections(pid: number, port: number, connections: number): Promise<number> {
  const sockets: net.Socket[] = [];
  for (let i = 0; i < connections; i += 250) {
    await Promise.all(
      Array.from({ length: Math.min(250, connections - i) }, async () => {
        const socket = net.connect({ host: '127.0.0.1', port });
        sockets.push(socket);
        await new Promise<void>((resolve, reject) => {
          socket.once('error', reject);
          // One request each: an idle connection that a client keeps has been used.
          socket.once('connect', () => socket.write('GET /1k HTTP/1.1\r\nhost: plain.bench\r\n\r\n'));
          let received = 0;
          socket.on('data', (chunk: Buffer) => {
            received += chunk.length;
            if (received > 1024) resolve();
          });
        });
      }),
    );
  }
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  const rss = rssMb(pid);
  for (const socket of sockets) socket.destroy();
  return rss;
}

export function capture(program: string, args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    child.once('error', reject);
    child.once('exit', (code) => (code === 0 ? resolve(text) : reject(new Error(`${program} exited with ${code}`))));
  });
}
