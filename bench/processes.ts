import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import type { Certificates } from './peers.ts';

/** The processes of one run: started pinned to a CPU, ended together. */
export class Processes {
  readonly #children: ChildProcess[];

  constructor() {
    this.#children = [];
  }

  /** Starts a program on a CPU (or a list of them, as taskset has it) and waits until it listens on a port. Returns its process id. */
  async start(cpu: number | string, command: readonly string[], port: number): Promise<number> {
    const child = spawn('taskset', ['-c', String(cpu), ...command], { stdio: ['ignore', 'ignore', 'ignore'] });
    this.#children.push(child);
    const deadline = Date.now() + 20_000;
    for (;;) {
      if (child.exitCode !== null) throw new Error(`${command[0]} exited with ${child.exitCode}`);
      if (await accepts(port)) return child.pid!;
      if (Date.now() > deadline) throw new Error(`${command[0]} does not listen on ${port}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  async end(pid: number): Promise<void> {
    const child = this.#children.find((candidate) => candidate.pid === pid);
    if (!child || child.exitCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }

  async close(): Promise<void> {
    for (const child of this.#children) child.kill('SIGTERM');
    await Promise.all(this.#children.map((child) => (child.exitCode === null && child.signalCode === null ? once(child, 'exit') : undefined)));
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ host: '127.0.0.1', port });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** nginx's work is done by its worker, a child of the process that was started. */
export function workersOf(pid: number): number[] {
  try {
    const workers = execFileSync('ps', ['-o', 'pid=', '--ppid', String(pid)], { encoding: 'utf8' })
      .split('\n')
      .map(Number)
      .filter((value) => value > 0);
    return workers.length > 0 ? workers : [pid];
  } catch {
    return [pid];
  }
}

export function inPath(program: string): boolean {
  return (process.env['PATH'] ?? '').split(':').some((directory) => existsSync(join(directory, program)));
}

/** A root and one certificate with the names that the cases ask for. */
export function makeCertificates(folder: string): Certificates {
  const at = (name: string) => join(folder, name);
  const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: 'ignore' });
  const curve = ['ec', '-pkeyopt', 'ec_paramgen_curve:P-256'];
  openssl('req', '-x509', '-newkey', ...curve, '-nodes', '-days', '2', '-subj', '/CN=root', '-keyout', at('root.key'), '-out', at('root.pem'));
  openssl('req', '-new', '-newkey', ...curve, '-nodes', '-subj', '/CN=proxy', '-keyout', at('proxy.key'), '-out', at('proxy.csr'));
  writeFileSync(at('proxy.ext'), 'subjectAltName=DNS:server.bench,URI:spiffe://bench/ns/default/sa/proxy\n');
  openssl(
    'x509',
    '-req',
    '-in',
    at('proxy.csr'),
    '-CA',
    at('root.pem'),
    '-CAkey',
    at('root.key'),
    '-CAcreateserial',
    '-days',
    '2',
    '-extfile',
    at('proxy.ext'),
    '-out',
    at('proxy.pem'),
  );
  return { root: at('root.pem'), cert: at('proxy.pem'), key: at('proxy.key') };
}
