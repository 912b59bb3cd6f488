import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { findKind } from '@mizzen/api';
import { Logger, MizzenError } from '@mizzen/common';
import { homeFiles } from '@mizzen/control';
import { type ProxyConfig, startProxy } from '@mizzen/proxy';
import { ApiClient, ApiFailure, collectionPath } from '../api-client.ts';
import { controlAccess, homeOf } from '../home.ts';
import { PortAllocator } from '../runner/port-allocator.ts';
import { searchPath } from '../runner/program.ts';

export interface RunOptions {
  readonly home?: string;
  readonly name?: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly label: readonly string[];
  readonly port: readonly string[];
  readonly control?: string;
  readonly tokenFile?: string;
  readonly rootCert?: string;
  readonly verbose?: boolean;
}

/**
 * `mizzen run -- CMD`: an application beside its sidecar, joined to a mesh that runs already. The application starts when the sidecar is
 * ready and its exit code is this command's.
 */
export async function run(command: readonly string[], options: RunOptions): Promise<void> {
  const [program, ...args] = command;
  if (!program) throw new MizzenError('bad-option', 'say what to run: mizzen run [options] -- COMMAND');
  const home = homeOf(options.home);
  const ports = new PortAllocator();
  const name =
    options.name ??
    `${
      program
        .split('/')
        .pop()!
        .toLowerCase()
        .replace(/[^a-z0-9-]+/g, '-')
        .replace(/^-+|-+$/g, '') || 'app'
    }-${process.pid}`;
  const inbound: { name?: string; port: number; protocol?: string; listen: string; app: string }[] = [];
  const env: Record<string, string> = {};
  for (const text of options.port) {
    const match = /^(\d+)(?::([a-z0-9-]+))?(?:=(\d+))?$/.exec(text);
    if (!match) throw new MizzenError('bad-option', `--port ${text} is not understood: write PORT, PORT:NAME or PORT:NAME=APPPORT, for example 9080:http=8000`);
    const appPort = match[3] ? Number(match[3]) : await ports.next();
    inbound.push({ port: Number(match[1]), listen: `127.0.0.1:${await ports.next()}`, app: `127.0.0.1:${appPort}`, ...(match[2] ? { name: match[2] } : {}) });
    env['PORT'] ??= String(appPort);
  }
  const labels = Object.fromEntries(
    options.label.map((text) => {
      const at = text.indexOf('=');
      if (at < 1) throw new MizzenError('bad-option', `--label ${text} is not understood: write NAME=VALUE`);
      return [text.slice(0, at), text.slice(at + 1)];
    }),
  );
  const tokenFile = options.tokenFile ?? (await ownToken(home, options, name));
  const control = options.control ?? controlAccess(home).xds;
  const outboundPort = await ports.next();
  const config: ProxyConfig = {
    type: 'sidecar',
    name,
    namespace: options.namespace,
    workload: name,
    serviceAccount: options.serviceAccount,
    labels: { app: name, ...labels },
    trustDomain: 'cluster.local',
    address: '127.0.0.1',
    control,
    rootCertificateFile: options.rootCert ?? homeFiles(home).rootCertificate,
    tokenFile,
    adminPort: await ports.next(),
    outbound: `127.0.0.1:${outboundPort}`,
    inbound,
    registers: inbound.length > 0,
    drainMs: 2_000,
    ...(inbound[0] ? { probe: { port: Number(inbound[0].app.split(':')[1]) } } : {}),
  };
  const proxy = await startProxy(config, new Logger('sidecar', options.verbose ? 'info' : 'warn'));
  let wanted: NodeJS.Signals | undefined;
  const abort = new AbortController();
  const early = (signal: NodeJS.Signals) => {
    wanted = signal;
    abort.abort();
  };
  process.on('SIGINT', early);
  process.on('SIGTERM', early);
  await Promise.race([proxy.ready, once(abort.signal, 'abort')]);
  process.off('SIGINT', early);
  process.off('SIGTERM', early);
  if (wanted) {
    await proxy.close();
    process.exit(wanted === 'SIGINT' ? 130 : 143);
  }
  const outbound = `http://127.0.0.1:${outboundPort}`;
  const child = spawn(program, args, {
    stdio: 'inherit',
    env: {
      ...process.env,
      PATH: searchPath(),
      HTTP_PROXY: outbound,
      http_proxy: outbound,
      NO_PROXY: 'localhost,127.0.0.1',
      no_proxy: 'localhost,127.0.0.1',
      NODE_USE_ENV_PROXY: '1',
      MIZZEN_OUTBOUND: outbound,
      MIZZEN_OUTBOUND_PORT: String(outboundPort),
      MIZZEN_WORKLOAD: name,
      ...env,
    },
  });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal));
  const code = await new Promise<number>((resolve) => {
    child.once('error', (error: NodeJS.ErrnoException) => {
      process.stderr.write(`mizzen: ${error.code === 'ENOENT' ? `the program ${JSON.stringify(program)} was not found in PATH` : error.message}\n`);
      resolve(127);
    });
    child.once('exit', (exitCode, signal) => resolve(exitCode ?? (signal === 'SIGINT' ? 130 : 143)));
  });
  await proxy.close();
  process.exit(code);
}

/** On the mesh's own machine no token has to be brought: the admin token makes one. */
async function ownToken(home: string, options: RunOptions, name: string): Promise<string> {
  const api = new ApiClient(controlAccess(home));
  const kind = findKind('', 'ServiceAccount')!;
  try {
    if (options.serviceAccount !== 'default') {
      await api
        .call('POST', collectionPath(kind, options.namespace), {
          body: { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: options.serviceAccount } },
        })
        .catch((error: unknown) => {
          if (!(error instanceof ApiFailure) || error.status !== 409) throw error;
        });
    }
    const answer = await api.call('POST', `${collectionPath(kind, options.namespace)}/${options.serviceAccount}/token`, {
      body: { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { expirationSeconds: 24 * 3600 } },
    });
    const folder = join(home, 'tokens', options.namespace);
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const file = join(folder, `${options.serviceAccount}.${name}`);
    writeFileSync(file, (answer.body as { status: { token: string } }).status.token, { mode: 0o600 });
    return file;
  } finally {
    api.close();
  }
}
