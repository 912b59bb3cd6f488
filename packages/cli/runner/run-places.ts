import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Logger, MizzenError, printableLines, printableText } from '@mizzen/common';
import { writeDurably } from '@mizzen/common/durable-file';
import { type ProxyConfig, startProxy } from '@mizzen/proxy';
import { type CaptureSubject, captureFromAnnotations, defaultCapture } from '../capture/capture-settings.ts';
import { runProgram } from '../capture/run-program.ts';
import { Lab, sidecarId } from '../lab/lab.ts';
import { hostNameOf, readLab } from '../lab/lab-state.ts';
import { type CaptureKind, captureApplication, removeDeadCaptures, runTablePrefix } from './application-capture.ts';
import { type HandedOutSockets, makeOwnNamespace } from './own-namespace.ts';
import type { PortAllocator } from './port-allocator.ts';
import { proxyCommand, searchPath } from './program.ts';
import { captureOnHost, hostUrls } from './replica.ts';
import { SidecarProcess, untilReady } from './sidecar-process.ts';
import { emptySocketFolder } from './socket-folder.ts';
import { emptyStateFolder } from './state-folder.ts';
import { workloadApiPlace } from './workload-api.ts';

/** Where `mizzen run` runs an application: what stands beside it, and how its traffic gets there. */
export interface ApplicationPlace {
  /** Resolves when the application may start. */
  ready(signal: AbortSignal): Promise<void>;
  readonly env: Readonly<Record<string, string>>;
  /** Variables of this process that would lead the application astray. */
  readonly withoutVariables: readonly string[];
  /** How the kernel's rules recognize the application, where only its traffic is captured. */
  readonly subject: CaptureSubject | undefined;
  /** The command that runs `command` there. */
  command(command: readonly string[]): readonly string[];
  /** Nobody calls the application any more, and what is under way has ended. */
  drain(): Promise<void>;
  close(): Promise<void>;
}

export interface WantedPort {
  readonly port: number;
  readonly name?: string;
  readonly appPort?: number;
}

export interface PlaceSetting {
  readonly home: string;
  readonly config: Omit<ProxyConfig, 'address' | 'inbound'>;
  readonly wanted: readonly WantedPort[];
  readonly ports: PortAllocator;
  /** Istio's annotations of capture. */
  readonly annotations: Readonly<Record<string, string>>;
  /** Where others reach the sidecar. */
  readonly address: string;
  readonly isVerbose: boolean;
  readonly captureBy: CaptureKind | undefined;
  /** False: no port on 127.0.0.1 leads to other services; only sockets that a Sidecar object names do. */
  readonly hasOutboundPort: boolean;
}

const proxyVariables = ['HTTP_PROXY', 'http_proxy', 'HTTPS_PROXY', 'https_proxy', 'ALL_PROXY', 'all_proxy', 'NO_PROXY', 'no_proxy'];

/** On this machine, without privileges: the application calls its sidecar, which it finds in HTTP_PROXY. */
export async function beside(setting: PlaceSetting): Promise<ApplicationPlace> {
  if (!setting.hasOutboundPort) {
    const { sidecar, env } = await besideSidecar(setting, {});
    return { ...sidecar, env, withoutVariables: proxyVariables, subject: undefined, command: (command) => command };
  }
  const outboundPort = await setting.ports.next();
  const { sidecar, env } = await besideSidecar(setting, { outbound: `127.0.0.1:${outboundPort}` });
  const outbound = `http://127.0.0.1:${outboundPort}`;
  return {
    ...sidecar,
    env: {
      ...env,
      HTTP_PROXY: outbound,
      http_proxy: outbound,
      NO_PROXY: 'localhost,127.0.0.1',
      no_proxy: 'localhost,127.0.0.1',
      NODE_USE_ENV_PROXY: '1',
      MIZZEN_OUTBOUND: outbound,
      MIZZEN_OUTBOUND_PORT: String(outboundPort),
    },
    withoutVariables: [],
    subject: undefined,
    command: (command) => command,
  };
}

/**
 * On this machine, with what the application sends captured, and nothing else: it runs in a cgroup of its own, by which the kernel's rules recognize
 * it (or as a group of its own, where cgroups cannot be matched). What it serves is reached as in `beside`.
 */
export async function captured(setting: PlaceSetting): Promise<ApplicationPlace> {
  await removeDeadCaptures();
  await mustHaveRoute();
  const [outboundPort, dnsPort] = [await setting.ports.next(), await setting.ports.next()];
  const settings = captureFromAnnotations(setting.annotations, {
    ...defaultCapture,
    table: `${runTablePrefix}${process.pid}`,
    outboundPort,
    inboundPort: undefined,
    dnsPort,
    proxyUids: [],
    proxyGids: [],
  });
  const capture = await captureApplication(settings, setting.captureBy);
  try {
    const { sidecar, env } = await besideSidecar(setting, { capture: { outboundPort, dnsPort } });
    const close = async () => {
      // What the application has left running still needs its sidecar.
      await capture.end();
      await sidecar.close();
      await capture.remove();
    };
    return { ...sidecar, env, withoutVariables: proxyVariables, subject: capture.subject, command: capture.command, close };
  } catch (error) {
    await capture.end();
    await capture.remove();
    throw error;
  }
}

/** In a network of its own: a host of the lab, where there is one, else a namespace whose sidecar stays on this machine. */
export async function isolated(setting: PlaceSetting): Promise<ApplicationPlace> {
  const network = readLab(setting.home);
  return network === undefined ? besideNamespace(setting) : onHost(setting, Lab.join(setting.home, network));
}

async function besideNamespace(setting: PlaceSetting): Promise<ApplicationPlace> {
  const { config, wanted, annotations } = setting;
  const settings = captureFromAnnotations(annotations, { ...defaultCapture, inboundPort: undefined });
  const namespace = await makeOwnNamespace(settings);
  try {
    const inside = wanted.map((port) => ({ ...port, appPort: port.appPort ?? port.port }));
    const { sidecar, env } = await besideSidecar(
      { ...setting, wanted: inside },
      { capture: { outboundPort: settings.outboundPort, dnsPort: settings.dnsPort! } },
      { address: namespace.address, sockets: namespace.sockets },
    );
    const setUp = [
      'ip',
      'netns',
      'exec',
      namespace.name,
      'unshare',
      '--uts',
      '--',
      'sh',
      '-ec',
      'echo "$0" > /proc/sys/kernel/hostname; exec "$@"',
      config.name,
    ];
    const close = async () => {
      await sidecar.close();
      await namespace.close();
    };
    return { ...sidecar, env, withoutVariables: proxyVariables, subject: undefined, command: (command) => [...setUp, ...command], close };
  } catch (error) {
    await namespace.close();
    throw error;
  }
}

async function onHost(setting: PlaceSetting, lab: Lab): Promise<ApplicationPlace> {
  const { home, config, wanted, annotations, isVerbose } = setting;
  const host = await lab.addHost(hostNameOf(config.name, config.namespace), config.workload, config.namespace, captureFromAnnotations(annotations));
  const configFile = join(home, 'proxies', config.namespace, `${config.name}.json`);
  const inbound = wanted.map(({ port, name, appPort }) => ({
    port,
    listen: `${host.address}:${port}`,
    app: `127.0.0.1:${appPort ?? port}`,
    ...(name ? { name } : {}),
  }));
  const workloadApi = workloadApiPlace(home, config.namespace, config.name, sidecarId);
  const state = emptyStateFolder(home, config.namespace, config.name, sidecarId);
  const complete: ProxyConfig = {
    ...config,
    ...workloadApi.config,
    ...state.config,
    address: host.address,
    inbound,
    ...probeOf(inbound),
    ...captureOnHost(lab.hasIPv6),
  };
  mkdirSync(join(configFile, '..'), { recursive: true, mode: 0o700 });
  mkdirSync(join(home, 'logs'), { recursive: true, mode: 0o700 });
  writeDurably(configFile, JSON.stringify(complete, null, 2));
  const proxy = new SidecarProcess({
    name: `${config.name} (sidecar)`,
    command: lab.command(host, [...proxyCommand, '--config', configFile], 'sidecar'),
    env: { ...process.env, PATH: searchPath(), MIZZEN_RUNNER_PID: String(process.pid) } as Record<string, string>,
    workingDirectory: home,
    logFile: join(home, 'logs', `${config.name}.proxy.log`),
    onLine: (line) => isVerbose && process.stderr.write(`${printableText(line)}\n`),
    onNotice: (text) => process.stderr.write(`mizzen: sidecar: ${printableLines(text)}\n`),
    hasChannel: true,
  });
  proxy.start();
  const drainMs = config.drainMs ?? 0;
  return {
    ready: (signal) => untilReady(hostUrls(host.address).ready, signal),
    env: { MIZZEN_WORKLOAD: config.name, ...workloadApi.env, ...portVariable(inbound) },
    withoutVariables: proxyVariables,
    subject: undefined,
    command: (command) => lab.command(host, command, 'application'),
    drain: () => proxy.drain(drainMs + 1_000),
    async close() {
      await proxy.stop(drainMs + 3_000);
      workloadApi.remove();
      state.remove();
      await lab.removeHost(host);
      rmSync(configFile, { force: true });
    },
  };
}

/** A sidecar in this very process. */
async function besideSidecar(
  { home, config, wanted, ports, address, isVerbose }: PlaceSetting,
  fields: Pick<ProxyConfig, 'outbound' | 'capture'>,
  application: { readonly address: string; readonly sockets: HandedOutSockets | undefined } = { address: '127.0.0.1', sockets: undefined },
) {
  const inbound: NonNullable<ProxyConfig['inbound']>[number][] = [];
  for (const { port, name, appPort } of wanted)
    inbound.push({
      port,
      listen: `${address.includes(':') ? `[${address}]` : address}:${await ports.next()}`,
      app: `${application.address}:${appPort ?? (await ports.next())}`,
      ...(name ? { name } : {}),
    });
  mkdirSync(join(home, 'logs'), { recursive: true, mode: 0o700 });
  // Standard output is the application's.
  const accessLogFile = join(home, 'logs', `${config.name}.proxy.log`);
  const workloadApi = workloadApiPlace(home, config.namespace, config.name);
  const sockets = emptySocketFolder(home, config.namespace, config.name, config.socketFolders);
  const proxy = await startProxy(
    { ...config, ...workloadApi.config, ...sockets.config, accessLogFile, address, inbound, adminPort: await ports.next(), ...probeOf(inbound), ...fields },
    new Logger('sidecar', isVerbose ? 'info' : 'warn'),
    { sockets: application.sockets },
  );
  return {
    sidecar: {
      async ready(signal: AbortSignal) {
        const aborted = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
        await Promise.race([proxy.ready, aborted]);
      },
      drain: () => proxy.drain(),
      async close() {
        await proxy.close();
        workloadApi.remove();
        sockets.remove();
      },
    },
    env: { MIZZEN_WORKLOAD: config.name, ...workloadApi.env, ...sockets.env, ...portVariable(inbound) },
  };
}

type Inbound = readonly { readonly app: string }[];

const portOf = (address: string) => Number(address.slice(address.lastIndexOf(':') + 1));

function portVariable([first]: Inbound): Record<string, string> {
  return first === undefined ? {} : { PORT: String(portOf(first.app)) };
}

function probeOf([first]: Inbound): Pick<ProxyConfig, 'probe'> {
  return first === undefined ? {} : { probe: { address: first.app.slice(0, first.app.lastIndexOf(':')), port: portOf(first.app) } };
}

/** What has no route is refused before any rule sees it. */
async function mustHaveRoute(): Promise<void> {
  const { code } = await runProgram(['ip', 'route', 'get', '240.240.0.1']);
  if (code === 0) return;
  throw new MizzenError(
    'no-route',
    'this machine has no default route, so that the addresses of mesh services (240.240.0.0/16) lead nowhere. Give them one: ip route add 240.240.0.0/16 dev lo',
  );
}
