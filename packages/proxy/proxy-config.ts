import { MizzenError, maxTimerMs } from '@mizzen/common';
import { readWorkloadEntries, type WorkloadEntry } from './spiffe/workload-entries.ts';

/** What a proxy is told when it starts: who it is, where its control plane is, where it listens. Everything else comes by xDS. */
export interface ProxyConfig {
  readonly type: 'sidecar' | 'gateway';
  /** Unique in its namespace, `reviews-v1-0`. */
  readonly name: string;
  readonly namespace: string;
  readonly workload: string;
  readonly serviceAccount: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly trustDomain: string;
  /** The address at which other proxies reach this one. */
  readonly address: string;
  /** `region/zone/sub-zone`. */
  readonly locality?: string;
  /** The WorkloadGroup that it registers by. */
  readonly workloadGroup?: string;
  /** `host:port` of the control plane's xDS and CA port. */
  readonly control: string;
  /** PEM file with the roots that the control plane's certificate must lead to. */
  readonly rootCertificateFile: string;
  /** File with the bootstrap token; read again whenever it is needed, so that it may be renewed. */
  readonly tokenFile: string;
  /** `host:port` of the outbound listener. */
  readonly outbound?: string;
  readonly inbound?: readonly { readonly name?: string; readonly port: number; readonly protocol?: string; readonly listen: string; readonly app: string }[];
  /** The kernel redirects the workload's connections to these ports; absent: it is called explicitly. */
  readonly capture?: {
    readonly outboundPort: number;
    /** Absent: only what the workload sends is captured. */
    readonly inboundPort?: number;
    /** Absent: names are resolved as before. */
    readonly dnsPort?: number;
    readonly hasIPv6?: boolean;
  };
  /** Answers `/healthz/ready` to everybody (Istio: 15021). */
  readonly healthPort?: number;
  /** Answers `/stats/prometheus` to everybody (Envoy of Istio: 15090). */
  readonly metricsPort?: number;
  readonly gatewayBind?: string;
  /** The message mesh: the local API (Dapr's), and the application that messages are delivered to. Absent: there is none. */
  readonly messaging?: {
    readonly appId: string;
    readonly httpPort: number;
    readonly grpcPort: number;
    /** Absent: the application only publishes. */
    readonly app?: { readonly port: number; readonly protocol: 'http' | 'grpc' };
  };
  /** Where the workload takes its identity by the SPIFFE Workload API: the path of a Unix socket, in a folder that only the workload's user may enter. Absent: nowhere. */
  readonly workloadApiSocket?: string;
  /** The processes of this machine that are given identities at that socket, by what they are. Absent: whoever may open it is this proxy's workload. */
  readonly workloadEntries?: readonly WorkloadEntry[];
  /** Where the sidecar listens for public ports of APIs, where that is another place than the port itself. */
  readonly publicPorts?: readonly { readonly port: number; readonly listen: string }[];
  /** Filters of the workload's own, with whole paths. */
  readonly filters?: readonly { readonly file: string; readonly config?: Readonly<Record<string, unknown>>; readonly timeout?: string }[];
  /** Loopback port of the admin server; 0 chooses one, undefined: none. */
  readonly adminPort?: number;
  readonly registers?: boolean;
  readonly probe?: {
    /** Where the application is; 127.0.0.1. */
    readonly address?: string;
    readonly path?: string;
    /** Asked for by gRPC's health checks instead; '': the server as a whole. */
    readonly grpcService?: string;
    readonly port: number;
    readonly periodMs?: number;
    readonly timeoutMs?: number;
    readonly failureThreshold?: number;
  };
  /** Folders in which configuration may name Unix sockets for this proxy, and `@PREFIX` for abstract names; none. Only direct entries of a folder may be used. */
  readonly socketFolders?: readonly string[];
  /** Lifetime to ask for, in seconds; 0: what the CA gives. */
  readonly certificateSeconds?: number;
  /** Where access log lines go that configuration sends to standard output; absent: there. */
  readonly accessLogFile?: string;
  /**
   * The folder where the last accepted configuration and certificate are kept (mode 0700), to serve after a restart while the control plane is away; ''
   * keeps none. `mizzen proxy` takes CONFIG.state beside its configuration file by default.
   */
  readonly stateFolder?: string;
  /** A kept configuration that is older is ignored, in seconds; 604800 (7 days). */
  readonly maxStateAgeSeconds?: number;
  /** How long connections may take to end when the proxy stops, in milliseconds; 5000. */
  readonly drainMs?: number;
  /** How long streams may go on in this process after another has taken over (hot restart), in milliseconds; one hour. */
  readonly restartDrainMs?: number;
  /** How many replaced processes may still have streams; beyond it the oldest ends them. 24. */
  readonly maxDrainingProcesses?: number;
  /** Event loops, each a process of its own; 1 (the default) serves in this process, 0 takes as many as there are cores. */
  readonly concurrency?: number;
}

/** Linux and macOS know no longer paths of sockets (sockaddr_un), in bytes. */
export const maxSocketPathLength = 103;

const required = ['type', 'name', 'namespace', 'workload', 'serviceAccount', 'trustDomain', 'address', 'control', 'rootCertificateFile', 'tokenFile'] as const;

export const defaultDrainMs = 5_000;
export const defaultMaxDrainingProcesses = 24;
const numbers = [
  ['drainMs', 0, maxTimerMs - 10_000],
  ['restartDrainMs', 0, maxTimerMs - 10_000],
  ['maxDrainingProcesses', 0, 1_000],
] as const;

const isPort = (value: unknown, least: number) => Number.isInteger(value) && (value as number) >= least && (value as number) <= 65_535;

/** Checks a configuration read from a file. */
export function checkProxyConfig(value: unknown, place: string): ProxyConfig {
  if (typeof value !== 'object' || value === null) throw new MizzenError('invalid-proxy-config', 'the proxy configuration must be a JSON object', place);
  const config = value as Record<string, unknown>;
  for (const name of required)
    if (typeof config[name] !== 'string' || config[name] === '') throw new MizzenError('invalid-proxy-config', `"${name}" is missing or no string`, place);
  if (config['type'] !== 'sidecar' && config['type'] !== 'gateway') throw new MizzenError('invalid-proxy-config', '"type" must be sidecar or gateway', place);
  const { concurrency, capture } = config;
  for (const [name, least, most] of numbers)
    if (config[name] !== undefined && !(Number.isInteger(config[name]) && (config[name] as number) >= least && (config[name] as number) <= most))
      throw new MizzenError('invalid-proxy-config', `"${name}" must be a whole number from ${least} to ${most}`, place);
  const { socketFolders } = config;
  if (
    socketFolders !== undefined &&
    !(Array.isArray(socketFolders) && socketFolders.every((folder) => typeof folder === 'string' && /^(?:\/.*[^/]|@.+)$/.test(folder)))
  )
    throw new MizzenError('invalid-proxy-config', '"socketFolders" must be a list of absolute paths without a slash at the end, or @PREFIX', place);
  const { stateFolder, maxStateAgeSeconds } = config;
  if (stateFolder !== undefined && typeof stateFolder !== 'string') throw new MizzenError('invalid-proxy-config', '"stateFolder" must be a path', place);
  if (maxStateAgeSeconds !== undefined && !(typeof maxStateAgeSeconds === 'number' && maxStateAgeSeconds > 0))
    throw new MizzenError('invalid-proxy-config', '"maxStateAgeSeconds" must be a number above 0', place);
  for (const name of ['adminPort', 'healthPort', 'metricsPort'] as const)
    if (config[name] !== undefined && !isPort(config[name], 0)) throw new MizzenError('invalid-proxy-config', `"${name}" must be a port`, place);
  if (capture !== undefined) {
    if (typeof capture !== 'object' || capture === null || !isPort((capture as Record<string, unknown>)['outboundPort'], 1))
      throw new MizzenError('invalid-proxy-config', '"capture" must be an object with a port as "outboundPort"', place);
    for (const name of ['inboundPort', 'dnsPort'] as const)
      if ((capture as Record<string, unknown>)[name] !== undefined && !isPort((capture as Record<string, unknown>)[name], 1))
        throw new MizzenError('invalid-proxy-config', `"capture.${name}" must be a port`, place);
  }
  if (config['workloadApiSocket'] !== undefined && (typeof config['workloadApiSocket'] !== 'string' || config['workloadApiSocket'] === ''))
    throw new MizzenError('invalid-proxy-config', '"workloadApiSocket" must be a path', place);
  const entries = config['workloadEntries'] === undefined ? {} : { workloadEntries: readWorkloadEntries(config['workloadEntries'], place) };
  if (concurrency !== undefined && !(Number.isInteger(concurrency) && (concurrency as number) >= 0 && (concurrency as number) <= 256))
    throw new MizzenError('invalid-proxy-config', '"concurrency" must be a whole number from 0 (all cores) to 256', place);
  return { ...config, ...entries, labels: (config['labels'] ?? {}) as Record<string, string> } as unknown as ProxyConfig;
}
