import dgram from 'node:dgram';
import { mkdirSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { errorBoundary, MizzenError, messageOf } from '@mizzen/common';
import { writeDurably } from '@mizzen/common/durable-file';
import { homeFiles } from '@mizzen/control';
import type { ProxyConfig } from '@mizzen/proxy';
import { ApiClient } from '../api-client.ts';
import { controlAccess, homeOf, knownTrustDomain } from '../home.ts';
import { nameValues } from '../name-value.ts';
import { captureKinds } from '../runner/application-capture.ts';
import { runApplication } from '../runner/application-process.ts';
import { PortAllocator } from '../runner/port-allocator.ts';
import { searchPath } from '../runner/program.ts';
import { type ApplicationPlace, beside, captured, isolated, type WantedPort } from '../runner/run-places.ts';
import { bindWorkload, ownToken, unbindWorkload } from '../service-account-token.ts';

const boundary = errorBoundary('command');

export interface RunOptions {
  readonly home?: string;
  readonly name?: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly label: readonly string[];
  readonly port: readonly string[];
  readonly capture?: boolean;
  readonly captureBy?: string;
  readonly socketFolder: readonly string[];
  readonly outboundPort: boolean;
  readonly isolate?: boolean;
  readonly annotation: readonly string[];
  readonly address?: string;
  readonly control?: string;
  readonly tokenFile?: string;
  readonly rootCert?: string;
  readonly trustDomain?: string;
  readonly drainTime?: string;
  readonly verbose?: boolean;
}

const defaultDrainSeconds = 2;
/** Marks the objects that this command makes. */
const runner = 'mizzen run';

/**
 * `mizzen run -- CMD`: an application beside its sidecar, joined to a mesh that runs already. The application starts when the sidecar is
 * ready; when it is to end it is first no longer called, then what is under way ends, then the application, then the sidecar. Its exit code
 * is this command's.
 */
export async function run(command: readonly string[], options: RunOptions): Promise<void> {
  const [program] = command;
  if (!program) throw new MizzenError('bad-option', 'say what to run: mizzen run [options] -- COMMAND');
  if (options.capture && options.isolate)
    throw new MizzenError('bad-option', '--capture takes what the application sends on this machine, --isolate gives it a network of its own: choose one');
  const captureBy = captureKinds.find((kind) => kind === options.captureBy);
  if (options.captureBy !== undefined && captureBy === undefined)
    throw new MizzenError('bad-option', `--capture-by ${options.captureBy} is not known: ${captureKinds.join(' or ')}`);
  if (captureBy !== undefined && !options.capture) throw new MizzenError('bad-option', '--capture-by is an option of --capture');
  if (!options.outboundPort && (options.capture || options.isolate))
    throw new MizzenError('bad-option', '--no-outbound-port is for a program that calls through Unix sockets: leave --capture and --isolate out');
  const home = homeOf(options.home);
  const name = options.name ?? `${nameOf(program)}-${process.pid}`;
  if (!/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(name))
    throw new MizzenError('bad-option', `--name ${name} is no name: small letters, digits and dashes, at most 63`);
  const wanted = options.port.map(wantedPort);
  const drainSeconds = Number(options.drainTime ?? defaultDrainSeconds);
  if (!(drainSeconds >= 0 && drainSeconds <= 3600)) throw new MizzenError('bad-option', `--drain-time ${options.drainTime} is no number of seconds`);
  const given = process.env['MIZZEN_TOKEN'];
  delete process.env['MIZZEN_TOKEN']; // not the application's
  const isOwnToken = options.tokenFile === undefined;
  const tokenFile = options.tokenFile ?? writeToken(home, options, name, given ?? (await ownToken(home, options.namespace, options.serviceAccount)));
  const labels = { app: name, ...nameValues(options.label, '--label') };
  // Another machine brings a token; the object that allows it to be this workload was made with the token (`mizzen token --workload`).
  const isOwnMachine = isOwnToken && given === undefined;
  const isBound =
    isOwnMachine &&
    (await withApi(home, (api) => bindWorkload(api, { name, namespace: options.namespace, serviceAccount: options.serviceAccount, labels }, runner)));
  const control = options.control ?? controlAccess(home).xds;
  const config: Omit<ProxyConfig, 'address' | 'inbound'> = {
    type: 'sidecar',
    name,
    namespace: options.namespace,
    workload: name,
    serviceAccount: options.serviceAccount,
    labels,
    trustDomain: options.trustDomain ?? knownTrustDomain(home),
    control,
    rootCertificateFile: options.rootCert ?? homeFiles(home).rootCertificate,
    tokenFile,
    registers: wanted.length > 0,
    drainMs: drainSeconds * 1000,
    socketFolders: options.socketFolder.map((folder) => (folder.startsWith('@') ? folder : resolve(folder))),
  };
  const setting = {
    home,
    config,
    wanted,
    ports: new PortAllocator(),
    annotations: nameValues(options.annotation, '--annotation'),
    address: options.address ?? (await addressToward(control)),
    isVerbose: options.verbose === true,
    captureBy,
    hasOutboundPort: options.outboundPort,
  };
  const makePlace = options.isolate ? isolated : options.capture ? captured : beside;
  process.exitCode = await runAt(makePlace(setting), command);
  if (isOwnToken) rmSync(tokenFile, { force: true });
  // The mesh may have ended before this program.
  if (isBound) await withApi(home, (api) => unbindWorkload(api, options.namespace, name)).catch(() => {});
  process.exit();
}

async function withApi<T>(home: string, use: (api: ApiClient) => Promise<T>): Promise<T> {
  const api = new ApiClient(controlAccess(home));
  try {
    return await use(api);
  } finally {
    api.close();
  }
}

async function runAt(starting: Promise<ApplicationPlace>, command: readonly string[]): Promise<number> {
  const abort = new AbortController();
  let wanted: NodeJS.Signals | undefined;
  const early = (signal: NodeJS.Signals) => {
    wanted = signal;
    abort.abort();
  };
  process.on('SIGINT', early);
  process.on('SIGTERM', early);
  const place = await starting;
  try {
    await place.ready(abort.signal).catch((error: unknown) => {
      if (!abort.signal.aborted) throw error;
    });
    if (wanted) return wanted === 'SIGINT' ? 130 : 143;
    const env = { ...process.env, PATH: searchPath(), ...place.env } as Record<string, string>;
    for (const name of place.withoutVariables) delete env[name];
    const running = runApplication(place.command(command), { env, subject: place.subject, beforeStop: () => place.drain() });
    process.off('SIGINT', early);
    process.off('SIGTERM', early);
    return await running;
  } finally {
    await place.close();
  }
}

function nameOf(program: string): string {
  const base = program.split('/').pop()!.toLowerCase();
  return base.replace(/[^a-z0-9-]+/g, '-').replace(/^-+|-+$/g, '') || 'app';
}

function wantedPort(text: string): WantedPort {
  const match = /^(\d+)(?::([a-z0-9-]+))?(?:=(\d+))?$/.exec(text);
  if (!match) throw new MizzenError('bad-option', `--port ${text} is not understood: write PORT, PORT:NAME or PORT:NAME=APPPORT, for example 9080:http=8000`);
  return { port: Number(match[1]), ...(match[2] ? { name: match[2] } : {}), ...(match[3] ? { appPort: Number(match[3]) } : {}) };
}

function writeToken(home: string, options: RunOptions, name: string, token: string): string {
  const folder = join(home, 'tokens', options.namespace);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const file = join(folder, `${options.serviceAccount}.${name}`);
  writeDurably(file, token);
  return file;
}

/** The address of this machine that the control plane, and so the rest of the mesh, would see. */
async function addressToward(control: string): Promise<string> {
  const { address, port } = splitHostPort(control);
  const socket = boundary.own(dgram.createSocket(address.includes(':') ? 'udp6' : 'udp4'));
  try {
    // Nothing is sent: the kernel only chooses a route.
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject);
      socket.connect(port, address, resolve);
    });
    return socket.address().address;
  } catch (error) {
    throw new MizzenError(
      'no-route',
      `the control plane cannot be reached: ${messageOf(error)}. Name it with --control HOST:PORT, or this machine's address with --address.`,
      control,
    );
  } finally {
    socket.close();
  }
}

function splitHostPort(text: string): { readonly address: string; readonly port: number } {
  const [, address, port] = /^(?:\[?([^\]]+?)\]?):(\d{1,5})$/.exec(text) ?? [];
  if (address === undefined || Number(port) > 65_535) throw new MizzenError('bad-option', `--control ${text} is not understood: write HOST:PORT`);
  return { address, port: Number(port) };
}
