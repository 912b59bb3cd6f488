import type dgram from 'node:dgram';
import type net from 'node:net';
import { availableParallelism } from 'node:os';
import type { Any } from '@bufbuild/protobuf/wkt';
import { compactHeap, errorBoundary, type Logger, type LogLevel, messageOf, version } from '@mizzen/common';
import type { LivenessOptions } from '@mizzen/common/grpc-client';
import { type DiscoveryType, type ResourceType, unpackAny } from '@mizzen/envoy-api';
import { NameTableSchema } from '@mizzen/envoy-api/gen/istio/networking/nds/v1/nds_pb.js';
import { MessagingSchema } from '@mizzen/envoy-api/gen/mizzen/message/v1/messaging_pb.js';
import { AdminServer, type AdminServerOptions } from './admin/admin-server.ts';
import { PublicServer } from './admin/public-server.ts';
import type { StaticConfig } from './bootstrap.ts';
import { DnsServer } from './dns/dns-server.ts';
import { NameTable } from './dns/name-table.ts';
import { followedServers, readResolverConfig } from './dns/resolver-config.ts';
import { Engine } from './engine.ts';
import { defaultOverloadSettings } from './overload/overload-manager.ts';
import { defaultDrainMs, type ProxyConfig } from './proxy-config.ts';
import { type PeerMetadata, unknownPeer } from './telemetry/peer-metadata.ts';
import { renderPrometheus } from './telemetry/prometheus.ts';
import type { StatsSnapshot } from './telemetry/stats-snapshot.ts';
import { workloadSecretName } from './tls/secret-names.ts';
import type { SecretStore } from './tls/secret-store.ts';
import { type Predecessor, type Successor, type SuccessorOptions, startSuccessor } from './workers/successor.ts';
import { WorkerPool } from './workers/worker-pool.ts';
import { ConfigurationKeeper, type ConfigurationKeeperOptions } from './xds/configuration-keeper.ts';
import { HealthProber } from './xds/health-prober.ts';
import type { IdentityAgent } from './xds/identity-agent.ts';
import { KeptConfigurationFile } from './xds/kept-configuration.ts';
import { nodeOf } from './xds/node.ts';

const boundary = errorBoundary('proxy');

/** A running proxy: a sidecar or a gateway. */
export interface StartedProxy {
  readonly adminPort: number | undefined;
  /** Resolves when all listeners take connections. */
  readonly ready: Promise<void>;
  /** Process ids of its workers; none when it serves in its own process. */
  workerPids(): readonly number[];
  /**
   * Starts the same command again and gives it the listening sockets. Throws, and goes on, when the new process cannot take over. Resolves
   * when the new process serves. Streams that are open stay here until they end or `restartDrainMs` have passed.
   */
  hotRestart(options: SuccessorOptions): Promise<ReplacedBy>;
  /**
   * The workload is taken out of everybody's lists, and requests under way may end; what still comes is served. Resolves when none is under
   * way, or after the drain time. Idempotent.
   */
  drain(): Promise<void>;
  /** Stops taking connections, lets requests under way end within the drain time, and closes; after a hot restart, streams too. Idempotent. */
  close(): Promise<void>;
}

/** The process that has taken over. */
export interface ReplacedBy extends Successor {
  /** Resolves when the last stream of this process has ended. */
  readonly drained: Promise<void>;
}

export interface StartOptions {
  readonly logLevel?: LogLevel;
  /** The process whose sockets this one takes over. */
  readonly predecessor?: Predecessor | undefined;
  /** Sockets that were opened elsewhere (in another network namespace): the listeners and the DNS proxy of their addresses use them. */
  readonly sockets?: GivenSockets | undefined;
  /** How a control plane that hangs is noticed. */
  readonly controlLiveness?: LivenessOptions | undefined;
  /** Starts the message mesh of a sidecar that is configured to have one. It stands above this package, and is handed in. */
  readonly messaging?: (surroundings: MessagingSurroundings) => Promise<MessagingService>;
}

/** What a sidecar gives to its part of the message mesh. */
export interface MessagingSurroundings {
  readonly config: ProxyConfig;
  readonly engine: Engine;
  readonly logger: Logger;
}

export interface MessagingService {
  /** Opens the local API. */
  listen(): Promise<void>;
  /** Generic secrets that components need. */
  secretNames(): readonly string[];
  /** Takes what the control plane says; throws MizzenError, with nothing changed, when it cannot be used. */
  accept(config: string): void;
  /** The application answers, as far as anybody knows: it may be asked what it subscribes to. */
  applicationIsHealthy(): void;
  close(): Promise<void>;
}

export interface GivenSockets {
  readonly outbound: readonly net.Server[];
  readonly dnsTcp: readonly net.Server[];
  readonly dnsUdp: readonly dgram.Socket[];
}

const defaultRestartDrainMs = 3_600_000;
/** While a proxy drains it still takes connections: those who do not know yet that it is going must not be turned away. */
const acceptWhileDrainingMs = 200;

/** Starts a proxy of a mesh. It has no listeners until the control plane has told it of some. */
export async function startProxy(config: ProxyConfig, logger: Logger, options: StartOptions = {}): Promise<StartedProxy> {
  if (config.outbound !== undefined && options.sockets === undefined)
    logger.info('explicit mode: every local user can call other services as this workload; a network namespace of its own (--isolate) prevents it', {
      outbound: config.outbound,
    });
  const plane = new DataPlane(
    {
      self: selfMetadata(config),
      selfId: `${config.type === 'gateway' ? 'router' : 'sidecar'}~${config.address}~${config.name}.${config.namespace}~${config.namespace}.svc.cluster.local`,
      accessLogFile: config.accessLogFile,
      overload: defaultOverloadSettings,
      drainMs: config.drainMs ?? defaultDrainMs,
      restartDrainMs: config.restartDrainMs ?? defaultRestartDrainMs,
      concurrency: config.concurrency ?? 1,
      socketFolders: config.socketFolders ?? [],
    },
    logger,
    options,
  );
  const { engine } = plane;
  // Only a proxy of a mesh speaks gRPC; others, and workers, do without what that costs in time and memory.
  const [{ IdentityAgent: Agent }, { AdsClient }] = await Promise.all([import('./xds/identity-agent.ts'), import('./xds/ads-client.ts')]);
  const identity = new Agent(config, engine.secrets, engine.counters, logger);
  let ads: InstanceType<typeof AdsClient> | undefined;
  let keeper: ConfigurationKeeper | undefined;
  let prober: HealthProber | undefined;
  let isHealthy = config.probe === undefined;
  await plane.startAdmin(config.adminPort, {
    versions: () => ads?.versions() ?? {},
    notReadyReason: () => (engine.secrets.keyPair(workloadSecretName) ? undefined : 'no certificate yet'),
    notices: () => [keeper?.notice, identity.timeProblem()].filter((notice) => notice !== undefined),
  });
  const { capture } = config;
  const resolver = readResolverConfig();
  const tableOf = (resources: readonly Any[]) =>
    new NameTable(unpackAny(NameTableSchema, resources[0]), config.namespace, [...resolver.searchDomains, `${config.namespace}.svc.cluster.local`]);
  const dns =
    capture?.dnsPort === undefined
      ? undefined
      : new DnsServer({
          port: capture.dnsPort,
          addresses: capture.hasIPv6 ? ['127.0.0.1', '::1'] : ['127.0.0.1'],
          upstreamServers: followedServers(),
          counters: engine.counters,
          logger,
          ...(options.sockets === undefined ? {} : { given: { tcp: options.sockets.dnsTcp, udp: options.sockets.dnsUdp } }),
        });
  const messaging = config.messaging === undefined ? undefined : await options.messaging?.({ config, engine, logger: logger.child('messages') });
  const accept = (type: DiscoveryType, resources: readonly Any[]) => {
    if (type === 'name-table') dns?.use(tableOf(resources));
    else if (type === 'messaging') messaging?.accept(unpackAny(MessagingSchema, resources[0])?.config ?? '');
    else if (type !== 'broker-policy') plane.accept(type, resources);
  };
  const wanted = (type: ResourceType) =>
    type === 'secret' && messaging !== undefined ? [...engine.state.wanted(type), ...messaging.secretNames()] : engine.state.wanted(type);
  keeper = keeperOf(config, { state: engine.state, wanted, identity, accept, control: config.control, counters: engine.counters, logger });
  engine.secrets.onChange((name) => name === workloadSecretName && keeper?.changed());
  const client = new AdsClient({
    control: config.control,
    node: nodeOf(config, plane.adminPort),
    state: {
      wanted,
      accept: (type, resources) => {
        try {
          accept(type, resources);
        } finally {
          keeper?.accepted(type, resources);
        }
      },
    },
    onConnected: () => identity.controlPlaneIsBack(),
    onDisconnected: () => keeper?.controlPlaneIsAway(),
    wholeTypes: ['cluster', 'listener', ...(dns === undefined ? [] : ['name-table' as const]), ...(messaging === undefined ? [] : ['messaging' as const])],
    identity,
    counters: engine.counters,
    logger,
    liveness: options.controlLiveness,
  });
  const workloadApi =
    config.workloadApiSocket === undefined ? undefined : await openWorkloadApi(config, config.workloadApiSocket, identity, engine.secrets, logger);
  ads = client;
  identity.onRenewed(() => client.reconnect());
  // Who takes over from another process takes over its good health too.
  if (!isHealthy && options.predecessor === undefined) client.reportHealth('the application has not been asked yet');
  // A successor finds the ports taken until its predecessor drains.
  if (dns !== undefined) await plane.takePort(() => dns.listen());
  for (const server of plane.publicServers(config)) await plane.takePort(() => server.listen());
  if (messaging !== undefined) await plane.takePort(() => messaging.listen());
  if (config.probe === undefined) messaging?.applicationIsHealthy();
  // The stream needs no certificate: it starts with the token, so that configuration and certificate arrive together.
  client.start();
  // A certificate that is kept on disk need not be requested; neither does its renewal delay the start.
  const starting = (keeper?.start() ?? Promise.resolve()).then(() => identity.start());
  if (config.probe) {
    const { probe } = config;
    const probed = config.inbound?.find(({ app }) => app.endsWith(`:${probe.port}`));
    // A Sidecar may say that the application listens elsewhere.
    const endpoint = () => (probed === undefined ? undefined : engine.findCluster(`inbound|${probed.port}||`)?.endpoints[0]?.unixPath);
    prober = new HealthProber(probe, endpoint, (reason) => {
      isHealthy = reason === undefined;
      if (!plane.isClosing) client.reportHealth(reason);
      if (isHealthy) messaging?.applicationIsHealthy();
      logger.info(isHealthy ? 'the application is healthy' : 'the application is not healthy', reason === undefined ? {} : { reason });
    });
    prober.start();
  }
  return plane.started(starting, {
    async beforeDrain(isReplaced) {
      // Its stream stays, so that policies and certificates reach the streams that are still served here.
      if (isReplaced) client.standBack();
      if (isReplaced) await keeper?.standBack();
      if (isReplaced) await dns?.close();
      prober?.close();
      if (isReplaced) await messaging?.close();
      // First nobody is sent here any more, then nobody is let in, then those inside may finish.
      if (config.registers && !isReplaced) client.reportHealth('shutting down');
    },
    async afterDrain() {
      await messaging?.close();
      await dns?.close();
      identity.close();
      await workloadApi?.close();
      await client.close();
      await keeper?.close();
      await starting;
    },
  });
}

function keeperOf(config: ProxyConfig, dependencies: Omit<ConfigurationKeeperOptions, 'file'>): ConfigurationKeeper | undefined {
  const { stateFolder, maxStateAgeSeconds, trustDomain, namespace, serviceAccount, control } = config;
  if (!stateFolder) return undefined;
  const identity = `spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`;
  // The port of the admin server may be another after each start; the control plane is a part of what the proxy is.
  const binding = { node: nodeOf(config, undefined), identity, version };
  const file = new KeptConfigurationFile(stateFolder, binding, maxStateAgeSeconds === undefined ? undefined : maxStateAgeSeconds * 1000);
  return new ConfigurationKeeper({ ...dependencies, file, control });
}

/** Loaded only where it is wanted. */
async function openWorkloadApi(config: ProxyConfig, socketPath: string, identity: IdentityAgent, secrets: SecretStore, logger: Logger) {
  const [{ WorkloadApi }, { onlyWorkload, ProcessAttestor }] = await Promise.all([import('./spiffe/workload-api.ts'), import('./spiffe/process-attestor.ts')]);
  const { trustDomain, namespace, serviceAccount, workloadEntries: entries } = config;
  const attestor =
    entries === undefined
      ? onlyWorkload(`spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`)
      : new ProcessAttestor({ trustDomain, entries, logger });
  // Where processes are told apart, anybody may come and be told apart.
  const api = new WorkloadApi({ socketPath, ...(entries === undefined ? {} : { socketMode: 0o666 }), attestor, trustDomain, identity, secrets, logger });
  await api.listen();
  return api;
}

/** Starts a proxy that is told everything by an Envoy bootstrap with static resources. */
export async function startStaticProxy(
  config: StaticConfig & Pick<ProxyConfig, 'concurrency' | 'drainMs' | 'restartDrainMs'>,
  logger: Logger,
  options: StartOptions = {},
): Promise<StartedProxy> {
  const plane = new DataPlane(
    {
      self: { ...unknownPeer, workload: config.name },
      selfId: `sidecar~127.0.0.1~${config.name}~`,
      accessLogFile: undefined,
      overload: config.overload,
      drainMs: config.drainMs ?? defaultDrainMs,
      restartDrainMs: config.restartDrainMs ?? defaultRestartDrainMs,
      concurrency: config.concurrency ?? 1,
      socketFolders: undefined,
    },
    logger,
    options,
  );
  await plane.startAdmin(config.adminPort, { versions: () => ({}), notReadyReason: () => undefined, notices: () => [] });
  try {
    for (const [type, resources] of config.resources) plane.accept(type, resources);
  } catch (error) {
    await plane.close(false);
    throw error;
  }
  return plane.started(Promise.resolve(), {});
}

interface DataPlaneOptions {
  readonly self: PeerMetadata;
  readonly selfId: string;
  readonly accessLogFile: string | undefined;
  readonly overload: ConstructorParameters<typeof Engine>[0]['overload'];
  readonly drainMs: number;
  readonly restartDrainMs: number;
  readonly concurrency: number;
  readonly socketFolders: readonly string[] | undefined;
}

interface Hooks {
  /** `isReplaced`: another process goes on in this one's place. */
  beforeDrain?(isReplaced: boolean): Promise<void>;
  afterDrain?(): Promise<void>;
}

/** The parts of a proxy that do not depend on where its configuration comes from: one engine or several workers, admin, life cycle. */
class DataPlane {
  readonly engine: Engine;
  adminPort: number | undefined;
  isClosing: boolean;
  isDraining: boolean;
  readonly #pool: WorkerPool | undefined;
  readonly #options: DataPlaneOptions;
  readonly #logger: Logger;
  readonly #predecessor: Predecessor | undefined;
  readonly #sockets: GivenSockets | undefined;
  #admin: AdminServer | undefined;
  readonly #public: PublicServer[];
  #hooks: Hooks;
  #isReady: boolean;
  #draining: Promise<void> | undefined;
  #closing: Promise<void> | undefined;

  constructor(options: DataPlaneOptions, logger: Logger, { logLevel = 'info', predecessor, sockets }: StartOptions) {
    const count = options.concurrency === 0 ? availableParallelism() : options.concurrency;
    const hasWorkers = count > 1;
    this.#options = options;
    this.#logger = logger;
    this.#predecessor = predecessor;
    this.#sockets = sockets;
    this.#admin = undefined;
    this.#public = [];
    this.#hooks = {};
    this.#isReady = false;
    this.#draining = undefined;
    this.#closing = undefined;
    this.isDraining = false;
    this.adminPort = undefined;
    this.isClosing = false;
    const expectsSockets = predecessor !== undefined || sockets !== undefined;
    const unixSockets = { folders: options.socketFolders, opens: true };
    this.engine = new Engine({ ...options, unixSockets, opensListeners: !hasWorkers, reusesPort: hasWorkers, expectsSockets, logger });
    this.#pool = hasWorkers ? new WorkerPool({ ...options, count, engine: this.engine, logger, logLevel, expectsSockets }) : undefined;
    this.#pool?.start();
  }

  /** Puts an update into effect, here and in the workers. Throws MizzenError, with nothing changed, when it cannot be used. */
  accept(type: ResourceType, resources: readonly Any[]): void {
    try {
      this.engine.accept(type, resources);
    } catch (error) {
      // Workers are sent what is in effect: the accepted resources, and the last good version of the refused ones.
      this.#pool?.broadcast(type, this.engine.state.dump(type));
      throw error;
    }
    this.#pool?.broadcast(type, resources);
  }

  async startAdmin(
    port: number | undefined,
    about: Pick<AdminServerOptions, 'versions' | 'notices'> & { readonly notReadyReason: () => string | undefined },
  ): Promise<void> {
    if (port === undefined) return;
    this.#admin = new AdminServer({
      port,
      state: this.engine.state,
      secrets: this.engine.secrets,
      stats: () => this.#stats(),
      logger: this.#logger,
      versions: about.versions,
      notices: about.notices,
      isReady: () => {
        if (this.isClosing || this.isDraining) return { ready: false, reason: 'draining' };
        const reason = about.notReadyReason();
        if (reason !== undefined) return { ready: false, reason };
        if (this.#pool !== undefined && this.engine.state.isReady && !this.#pool.isReady) return { ready: false, reason: 'not all workers take connections' };
        return { ready: this.#isReady, reason: this.engine.state.notReadyReason };
      },
    });
    if (this.#predecessor === undefined || port === 0) {
      this.adminPort = await this.#admin.listen();
      return;
    }
    this.adminPort = port;
    await this.takePort(() => this.#admin!.listen());
  }

  /** Listens; where another process is replaced, as soon as it gives its port up, which it does when it drains. */
  async takePort(listen: () => Promise<unknown>): Promise<void> {
    if (this.#predecessor === undefined) await listen();
    else {
      const listening = () => this.#listenWhenFree(listen);
      boundary.start(listening, () => boundary.start(listening));
    }
  }

  /** What is open to everybody, where the configuration asks for it. */
  publicServers({ healthPort, metricsPort }: Pick<ProxyConfig, 'healthPort' | 'metricsPort'>): readonly PublicServer[] {
    const text = 'text/plain';
    if (healthPort !== undefined)
      this.#public.push(
        new PublicServer({
          port: healthPort,
          path: '/healthz/ready',
          answer: async () =>
            this.#isReady && !this.isClosing && !this.isDraining
              ? { status: 200, type: text, body: 'ready\n' }
              : { status: 503, type: text, body: 'not ready\n' },
        }),
      );
    if (metricsPort !== undefined)
      this.#public.push(
        new PublicServer({
          port: metricsPort,
          path: '/stats/prometheus',
          answer: async () => ({ status: 200, type: 'text/plain; version=0.0.4', body: renderPrometheus(await this.#stats()) }),
        }),
      );
    return this.#public;
  }

  async #listenWhenFree(listen: () => Promise<unknown>): Promise<void> {
    while (!this.isClosing) {
      try {
        await listen();
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  started(identity: Promise<void>, hooks: Hooks): StartedProxy {
    this.#hooks = hooks;
    const ready = this.#becomeReady(identity);
    return {
      adminPort: this.adminPort,
      ready,
      workerPids: () => this.#pool?.pids ?? [],
      hotRestart: (options) => this.#hotRestart(options),
      drain: () => this.drain(),
      close: () => this.close(false),
    };
  }

  drain(): Promise<void> {
    return (this.#draining ??= this.#drain());
  }

  async #drain(): Promise<void> {
    const deadline = performance.now() + this.#options.drainMs;
    this.isDraining = true;
    await this.#hooks.beforeDrain?.(false);
    this.engine.state.drain();
    // Those who have not heard of it yet are still on their way here.
    await new Promise((resolve) => setTimeout(resolve, Math.min(acceptWhileDrainingMs, this.#options.drainMs)));
    while (performance.now() < deadline && !this.isClosing) {
      const { counters } = await this.#stats();
      if (counters.downstream_requests_active === 0) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** A later call that is not about a replacement shortens the time that streams have to the drain time. */
  close(isReplaced: boolean): Promise<void> {
    const { drainMs, restartDrainMs } = this.#options;
    if (this.#closing === undefined) this.#closing = this.#close(isReplaced ? restartDrainMs : drainMs, isReplaced);
    else if (!isReplaced) {
      const ending = () => this.#endConnections(drainMs, 0);
      boundary.start(ending, () => boundary.start(ending));
    }
    return this.#closing;
  }

  async #becomeReady(identity: Promise<void>): Promise<void> {
    if (this.#predecessor !== undefined) {
      await Promise.all([this.engine.prepared, this.#pool?.prepared(), identity]);
      await this.#predecessor.takeOver((server) => this.engine.handOver(server));
      this.engine.noMoreSockets();
      await this.#pool?.distribute();
    }
    if (this.#sockets !== undefined) {
      await Promise.all([this.engine.prepared, identity]);
      for (const server of this.#sockets.outbound) this.engine.handOver(server);
      this.engine.noMoreSockets();
    }
    await Promise.all([this.engine.ready, this.#pool?.ready(), identity]);
    this.#isReady = true;
    this.#predecessor?.done();
    boundary.soon(compactHeap);
    if (!this.isClosing)
      this.#logger.info('ready', {
        listeners: this.engine.state.listenerCount,
        clusters: this.engine.state.clusters().length,
        workers: this.#pool?.pids.length,
      });
  }

  async #hotRestart(options: SuccessorOptions): Promise<ReplacedBy> {
    // The port of the admin server passes on as soon as the new process asks for it.
    const servers = async () => {
      await this.#pool?.collect();
      return this.engine.state.servers() as readonly net.Server[];
    };
    const successor = await startSuccessor(servers, options, this.#logger).catch((error: unknown) => {
      if (this.#pool !== undefined) this.engine.state.passOn();
      throw error;
    });
    this.engine.state.handedOver();
    this.#logger.info('hot restart: the new process serves; this one drains', { pid: successor.pid, maxMs: this.#options.restartDrainMs });
    const drained = this.close(true).catch((error: unknown) => this.#logger.error(`while draining: ${messageOf(error)}`));
    return { ...successor, drained };
  }

  async #close(drainMs: number, isReplaced: boolean): Promise<void> {
    this.isClosing = true;
    if (isReplaced) await Promise.all([this.#admin?.close(), ...this.#public.map((server) => server.close())]);
    if (!this.isDraining) await this.#hooks.beforeDrain?.(isReplaced);
    // A successor has the sockets: this process has nothing more to take.
    await this.#endConnections(drainMs, isReplaced ? 0 : Math.min(acceptWhileDrainingMs, drainMs));
    await this.#hooks.afterDrain?.();
    await Promise.all([this.#admin?.close(), ...this.#public.map((server) => server.close())]);
  }

  /** Workers use what this process's engine is told until they have ended. */
  async #endConnections(drainMs: number, acceptMs: number): Promise<void> {
    await this.engine.close(drainMs, acceptMs, this.#pool?.close(drainMs, acceptMs));
  }

  async #stats(): Promise<StatsSnapshot> {
    return this.#pool === undefined ? this.engine.stats() : this.#pool.stats();
  }
}

function selfMetadata(config: ProxyConfig): PeerMetadata {
  const app = config.labels['app'] ?? config.workload;
  const version = config.labels['version'] ?? 'latest';
  return {
    workload: config.workload,
    namespace: config.namespace,
    app: config.labels['app'] ?? 'unknown',
    version: config.labels['version'] ?? 'unknown',
    canonicalService: config.labels['service.istio.io/canonical-name'] ?? app,
    canonicalRevision: config.labels['service.istio.io/canonical-revision'] ?? version,
    cluster: 'Kubernetes',
    principal: `spiffe://${config.trustDomain}/ns/${config.namespace}/sa/${config.serviceAccount}`,
  };
}
