import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';

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
}

/** CPU ticks of a process, user and system (proc(5), /proc/pid/stat fields 14 and 15). */
function cpuTicks(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

function rssMb(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024;
}

const ticksPerSecond = 100;

/** Puts a load on a proxy with wrk, pinned to the CPU that the proxy is not on, after a warm-up that does not count. */
export async function measure(pids: readonly number[], load: Load, loadCpu: number): Promise<Measurement> {
  await wrk(load, loadCpu, 2);
  const before = pids.reduce((sum, pid) => sum + cpuTicks(pid), 0);
  const result = await wrk(load, loadCpu, load.seconds);
  const after = pids.reduce((sum, pid) => sum + cpuTicks(pid), 0);
  return {
    cpuUsPerRequest: (((after - before) / ticksPerSecond) * 1e6) / result.requests,
    requestsPerSecond: result.requestsPerSecond,
    p50Ms: result.p50Ms,
    p99Ms: result.p99Ms,
    rssMb: pids.reduce((sum, pid) => sum + rssMb(pid), 0),
    errors: result.errors,
  };
}

async function wrk(
  load: Load,
  cpu: number,
  seconds: number,
): Promise<{ requests: number; requestsPerSecond: number; p50Ms: number; p99Ms: number; errors: number }> {
  const output = await capture('taskset', [
    '-c',
    String(cpu),
    'wrk',
    '-t1',
    `-c${load.connections}`,
    `-d${seconds}s`,
    '--latency',
    '-H',
    `Host: ${load.host}`,
    load.url,
  ]);
  const number = (pattern: RegExp) => Number(pattern.exec(output)?.[1] ?? 0);
  const milliseconds = (pattern: RegExp) => {
    const [, value, unit] = pattern.exec(output) ?? [];
    return Number(value ?? 0) * (unit === 'us' ? 0.001 : unit === 's' ? 1000 : 1);
  };
  const socketErrors = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(output);
  const errors = number(/Non-2xx or 3xx responses: (\d+)/) + (socketErrors ? socketErrors.slice(1).reduce((sum, text) => sum + Number(text), 0) : 0);
  return {
    requests: number(/(\d+) requests in/),
    requestsPerSecond: number(/Requests\/sec:\s+([\d.]+)/),
    p50Ms: milliseconds(/50%\s+([\d.]+)(us|ms|s)/),
    p99Ms: milliseconds(/99%\s+([\d.]+)(us|ms|s)/),
    errors,
  };
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
