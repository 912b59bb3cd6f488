import { mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { WorkloadSpec } from '@mizzen/api';
import { errorBoundary } from '@mizzen/common';
import { writeDurably } from '@mizzen/common/durable-file';
import type { ProxyConfig } from '@mizzen/proxy';
import { captureFromAnnotations, defaultCapture } from '../capture/capture-settings.ts';
import { type Lab, type Role, sidecarId } from '../lab/lab.ts';
import { hostNameOf, type LabHost } from '../lab/lab-state.ts';
import type { PortAllocator } from './port-allocator.ts';
import { proxyCommand, searchPath } from './program.ts';
import { SidecarProcess } from './sidecar-process.ts';
import { emptySocketFolder, type SocketFolder } from './socket-folder.ts';
import { emptyStateFolder, type StateFolder } from './state-folder.ts';
import { SupervisedProcess } from './supervised-process.ts';
import { type WorkloadApiPlace, workloadApiPlace } from './workload-api.ts';

const boundary = errorBoundary('runner');

/** One replica of a workload: its process and its sidecar, or a gateway proxy alone. */
export interface ReplicaOptions {
  readonly workload: string;
  readonly index: number;
  readonly namespace: string;
  readonly spec: WorkloadSpec;
  readonly labels: Readonly<Record<string, string>>;
  /** The command with `fallback` already decided. */
  readonly command: readonly string[];
  readonly workingDirectory: string;
  readonly home: string;
  readonly trustDomain: string;
  readonly control: string;
  readonly rootCertificateFile: string;
  readonly tokenFile: string;
  readonly ports: PortAllocator;
  /** Replicas are hosts of this lab, and their traffic is captured; undefined: they share this machine's network and call their sidecars. */
  readonly lab: Lab | undefined;
  readonly annotations: Readonly<Record<string, string>>;
  readonly onStarted: (pid: number) => void;
  readonly onLine: (name: string, line: string) => void;
  readonly onNotice: (name: string, text: string) => void;
}

export interface ReplicaAddress {
  readonly name: string;
  readonly workload: string;
  readonly kind: 'sidecar' | 'gateway' | 'process';
  readonly pid: number | undefined;
  readonly ports: readonly { readonly port: number; readonly listen: string; readonly app: string }[];
  readonly outbound: string | undefined;
  readonly adminPort: number | undefined;
  /** Of a host in a lab. */
  readonly address: string | undefined;
  /** Answers 200 when the proxy is ready. */
  readonly readyUrl: string | undefined;
}

const proxyDrainMs = 2_000;
/** A host has all ports for itself: they are Istio's. */
const adminPortOfHost = 15_000;
const healthPort = 15_021;
const metricsPort = 15_090;

/** What others may ask of the sidecar of a host. */
export function hostUrls(address: string): { readonly ready: string; readonly metrics: string } {
  return { ready: `http://${address}:${healthPort}/healthz/ready`, metrics: `http://${address}:${metricsPort}/stats/prometheus` };
}

/** What the sidecar of a host is told beside the rest: where captured connections come, and who may ask it. */
export function captureOnHost(hasIPv6: boolean): Pick<ProxyConfig, 'capture' | 'adminPort' | 'healthPort' | 'metricsPort'> {
  const { outboundPort, inboundPort, dnsPort } = defaultCapture;
  return { adminPort: adminPortOfHost, capture: { outboundPort, inboundPort: inboundPort!, dnsPort: dnsPort!, hasIPv6 }, healthPort, metricsPort };
}

/** A proxy that this machine's programs use is out of a host's reach. */
/** The tokens of Dapr's API and of the application's: what the application has of them, its sidecar has too. */
function messageTokens(env: Readonly<Record<string, string>> = {}): Record<string, string> {
  return Object.fromEntries(['DAPR_API_TOKEN', 'APP_API_TOKEN'].flatMap((name) => (env[name] === undefined ? [] : [[name, env[name]]])));
}

function withoutProxyVariables(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !/^(?:https?|no|all)_proxy$/i.test(name)));
}

export class Replica {
  readonly name: string;
  readonly #options: ReplicaOptions;
  #proxy: SidecarProcess | undefined;
  #process: SupervisedProcess | undefined;
  #ports: {
    readonly name: string | undefined;
    readonly protocol: string | undefined;
    readonly port: number;
    readonly listen: string;
    readonly app: string;
    readonly appPort: number;
  }[];
  #outboundPort: number | undefined;
  #adminPort: number | undefined;
  #messaging: { readonly httpPort: number; readonly grpcPort: number } | undefined;
  #host: LabHost | undefined;
  #workloadApi: WorkloadApiPlace | undefined;
  #state: StateFolder | undefined;
  #sockets: SocketFolder | undefined;

  constructor(options: ReplicaOptions) {
    this.name = `${options.workload}-${options.index}`;
    this.#options = options;
    this.#proxy = undefined;
    this.#process = undefined;
    this.#ports = [];
    this.#outboundPort = undefined;
    this.#adminPort = undefined;
    this.#messaging = undefined;
    this.#host = undefined;
    this.#workloadApi = undefined;
    this.#state = undefined;
    this.#sockets = undefined;
  }

  address(): ReplicaAddress {
    const { spec, workload } = this.#options;
    return {
      name: this.name,
      workload,
      kind: spec.gateway ? 'gateway' : spec.sidecar === false ? 'process' : 'sidecar',
      pid: (this.#process ?? this.#proxy)?.pid,
      ports: this.#ports,
      outbound: this.#outboundPort === undefined ? undefined : `127.0.0.1:${this.#outboundPort}`,
      adminPort: this.#adminPort,
      address: this.#host?.address,
      readyUrl:
        this.#host !== undefined ? hostUrls(this.#host.address).ready : this.#adminPort === undefined ? undefined : `http://127.0.0.1:${this.#adminPort}/ready`,
    };
  }

  async start(): Promise<void> {
    const { spec, home, namespace } = this.#options;
    const hasProxy = spec.sidecar !== false || spec.gateway === true;
    const folder = join(home, 'proxies', namespace);
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    mkdirSync(join(home, 'logs'), { recursive: true, mode: 0o700 });
    await this.#place(hasProxy);
    if (hasProxy && !spec.gateway) this.#workloadApi = workloadApiPlace(home, namespace, this.name, this.#host === undefined ? undefined : sidecarId);
    if (hasProxy) this.#state = emptyStateFolder(home, namespace, this.name, this.#host === undefined ? undefined : sidecarId);
    if (hasProxy && !spec.gateway && this.#host === undefined) this.#sockets = emptySocketFolder(home, namespace, this.name);
    if (hasProxy) this.#startProxy(join(folder, `${this.name}.json`));
    if (!spec.gateway) this.#startProcess();
  }

  /** Decides where everything listens. */
  async #place(hasProxy: boolean): Promise<void> {
    const { spec, ports, lab, workload, namespace, annotations } = this.#options;
    if (lab !== undefined && !spec.gateway) {
      this.#host = await lab.addHost(hostNameOf(this.name, namespace), workload, namespace, hasProxy ? captureFromAnnotations(annotations) : undefined);
      const { address } = this.#host;
      if (hasProxy) this.#adminPort = adminPortOfHost;
      // Dapr's own ports.
      if (hasProxy && spec.messaging) this.#messaging = { httpPort: 3500, grpcPort: 50_001 };
      this.#ports = (spec.ports ?? []).map(({ name, protocol, port }) => ({
        name,
        protocol,
        port,
        listen: `${address}:${port}`,
        app: `127.0.0.1:${port}`,
        appPort: port,
      }));
      return;
    }
    lab?.addOutside(hostNameOf(this.name, namespace), workload);
    if (hasProxy) this.#adminPort = await ports.next();
    if (!spec.gateway) {
      if (hasProxy) this.#outboundPort = await ports.next();
      if (hasProxy && spec.messaging) this.#messaging = { httpPort: await ports.next(), grpcPort: await ports.next() };
      for (const port of spec.ports ?? []) {
        const appPort = await ports.next();
        const listenPort = hasProxy ? await ports.next() : appPort;
        this.#ports.push({
          name: port.name,
          protocol: port.protocol,
          port: port.port,
          listen: `127.0.0.1:${listenPort}`,
          app: `127.0.0.1:${appPort}`,
          appPort,
        });
      }
    }
  }

  /** The application first stops being called, then ends, then its sidecar, through which its last requests went. */
  async stop(): Promise<void> {
    if (this.#process) {
      await this.#proxy?.drain(proxyDrainMs + 1_000);
      await this.#process.stop(5_000);
    }
    await this.#proxy?.stop(proxyDrainMs + 3_000);
    this.#workloadApi?.remove();
    this.#state?.remove();
    this.#sockets?.remove();
    if (this.#host !== undefined) await this.#options.lab!.removeHost(this.#host);
    this.#host = undefined;
  }

  #startProxy(configFile: string): void {
    const { spec, namespace, workload, labels, trustDomain, control, rootCertificateFile, tokenFile, home, lab } = this.#options;
    const probe = this.#probe();
    const config: ProxyConfig = {
      type: spec.gateway ? 'gateway' : 'sidecar',
      name: this.name,
      namespace,
      workload,
      serviceAccount: spec.serviceAccount ?? 'default',
      ...(spec.locality ? { locality: spec.locality } : {}),
      ...(spec.workloadGroup ? { workloadGroup: spec.workloadGroup } : {}),
      labels,
      trustDomain,
      address: this.#host?.address ?? '127.0.0.1',
      control,
      rootCertificateFile,
      tokenFile,
      adminPort: this.#adminPort!,
      drainMs: proxyDrainMs,
      registers: !spec.gateway,
      ...(this.#outboundPort === undefined ? {} : { outbound: `127.0.0.1:${this.#outboundPort}` }),
      inbound: this.#ports.map(({ name, protocol, port, listen, app }) => ({
        port,
        listen,
        app,
        ...(name ? { name } : {}),
        ...(protocol ? { protocol } : {}),
      })),
      ...(probe ? { probe } : {}),
      ...(this.#messaging === undefined ? {} : { messaging: { appId: this.#appId, ...this.#messaging, ...this.#messageTarget() } }),
      ...(spec.publicPorts && this.#host === undefined
        ? { publicPorts: spec.publicPorts.map((port) => ({ port, listen: `127.0.0.1:${port + this.#options.index}` })) }
        : {}),
      ...(spec.filters ? { filters: spec.filters.map((filter) => ({ ...filter, file: resolve(this.#options.workingDirectory, filter.file) })) } : {}),
      ...(this.#host === undefined ? {} : captureOnHost(lab!.hasIPv6)),
      ...this.#workloadApi?.config,
      ...this.#state?.config,
      ...this.#sockets?.config,
    };
    writeDurably(configFile, JSON.stringify(config, null, 2));
    this.#proxy = new SidecarProcess({
      name: `${this.name} (sidecar)`,
      command: this.#onHost([...proxyCommand, '--config', configFile], 'sidecar'),
      env: { ...process.env, ...messageTokens(spec.env), PATH: searchPath(), MIZZEN_RUNNER_PID: String(process.pid) } as Record<string, string>,
      workingDirectory: home,
      logFile: join(home, 'logs', `${this.name}.proxy.log`),
      // Access logs go to the file; what a person should see of a sidecar are its warnings.
      onLine: (line) => {
        const match = /^\S+ (warn|error) +\S+: (.*)$/.exec(line);
        if (match) this.#options.onLine(this.name, `${match[1]}: ${match[2]}`);
      },
      onNotice: (text) => this.#options.onNotice(spec.gateway ? this.name : `${this.name} sidecar`, text),
      hasChannel: true,
    });
    this.#proxy.on('started', boundary.wrap(this.#options.onStarted));
    this.#proxy.start();
  }

  #startProcess(): void {
    const { spec, workingDirectory, home, command } = this.#options;
    const first = this.#ports[0];
    const variables: Record<string, string> = {
      MIZZEN_WORKLOAD: this.name,
      ...this.#workloadApi?.env,
      ...this.#sockets?.env,
      ...(first ? { PORT: String(first.appPort) } : {}),
      ...Object.fromEntries(
        this.#ports.filter((port) => port.name).map((port) => [`PORT_${port.name!.toUpperCase().replaceAll('-', '_')}`, String(port.appPort)]),
      ),
      ...(this.#outboundPort === undefined
        ? {}
        : { MIZZEN_OUTBOUND: `http://127.0.0.1:${this.#outboundPort}`, MIZZEN_OUTBOUND_PORT: String(this.#outboundPort) }),
    };
    if (this.#messaging !== undefined)
      Object.assign(variables, { DAPR_HTTP_PORT: String(this.#messaging.httpPort), DAPR_GRPC_PORT: String(this.#messaging.grpcPort), APP_ID: this.#appId });
    const expand = (text: string) => text.replace(/\$\((\w+)\)/g, (whole, name: string) => variables[name] ?? whole);
    // The variables that HTTP clients of all languages know: an application that heeds them needs to be told nothing else.
    const proxyVariables =
      this.#outboundPort === undefined
        ? {}
        : {
            HTTP_PROXY: variables['MIZZEN_OUTBOUND']!,
            http_proxy: variables['MIZZEN_OUTBOUND']!,
            NO_PROXY: 'localhost,127.0.0.1',
            no_proxy: 'localhost,127.0.0.1',
            NODE_USE_ENV_PROXY: '1',
          };
    const env = Object.fromEntries(Object.entries(spec.env ?? {}).map(([name, value]) => [name, expand(value)]));
    this.#process = new SupervisedProcess({
      name: this.name,
      command: this.#onHost(command.map(expand), 'application'),
      env: {
        ...(this.#host === undefined ? process.env : withoutProxyVariables(process.env)),
        PATH: searchPath(),
        ...proxyVariables,
        ...variables,
        ...env,
      } as Record<string, string>,
      workingDirectory,
      logFile: join(home, 'logs', `${this.name}.log`),
      onLine: (line) => this.#options.onLine(this.name, line),
      onNotice: (text) => this.#options.onNotice(this.name, text),
    });
    this.#process.on('started', boundary.wrap(this.#options.onStarted));
    this.#process.start();
  }

  get #appId(): string {
    const { spec, labels, workload } = this.#options;
    return spec.messaging?.appId ?? labels['app'] ?? workload;
  }

  /** Where messages are delivered to. */
  #messageTarget(): { readonly app?: { readonly port: number; readonly protocol: 'http' | 'grpc' } } {
    const { messaging } = this.#options.spec;
    const port = messaging?.port === undefined ? this.#ports[0] : this.#ports.find(({ name }) => name === messaging.port);
    return port === undefined || messaging?.publishOnly ? {} : { app: { port: port.appPort, protocol: messaging?.protocol ?? 'http' } };
  }

  #onHost(command: readonly string[], role: Role): readonly string[] {
    return this.#host === undefined ? command : this.#options.lab!.command(this.#host, command, role);
  }

  #probe(): ProxyConfig['probe'] {
    const { readinessProbe } = this.#options.spec;
    const wanted = readinessProbe?.httpGet?.port ?? readinessProbe?.tcpSocket?.port ?? readinessProbe?.grpc?.port;
    const port = this.#ports.find((candidate) => candidate.port === wanted) ?? this.#ports[0];
    if (!port) return undefined;
    const seconds = (value: number | undefined) => (value === undefined ? undefined : value * 1000);
    const periodMs = seconds(readinessProbe?.periodSeconds);
    const timeoutMs = seconds(readinessProbe?.timeoutSeconds);
    return {
      port: port.appPort,
      ...(readinessProbe?.httpGet ? { path: readinessProbe.httpGet.path } : {}),
      ...(readinessProbe?.grpc ? { grpcService: readinessProbe.grpc.service ?? '' } : {}),
      ...(periodMs === undefined ? {} : { periodMs }),
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
      ...(readinessProbe?.failureThreshold === undefined ? {} : { failureThreshold: readinessProbe.failureThreshold }),
    };
  }
}
