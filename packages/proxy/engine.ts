import { randomBytes } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import type net from 'node:net';
import type { Any } from '@bufbuild/protobuf/wkt';
import { errorBoundary, isUnixPath, type Logger } from '@mizzen/common';
import type { ResourceType } from '@mizzen/envoy-api';
import { type LocalService, localServiceState } from './filters/local-service.ts';
import { type SharedSpending, sharedSpendingState } from './filters/rate-limit/shared-spending.ts';
import { Listener } from './net/listener.ts';
import { anyUnixSocket, type UnixSocketPolicy } from './net/unix-socket.ts';
import { OverloadManager, type OverloadSettings } from './overload/overload-manager.ts';
import { OverloadState } from './overload/overload-state.ts';
import { introductionOf, type PeerMetadata, PeerMetadataReader } from './telemetry/peer-metadata.ts';
import { ProxyCounters } from './telemetry/proxy-counters.ts';
import { RequestMetricsTable } from './telemetry/request-metrics.ts';
import { type ListenerStats, type StatsSnapshot, takeSnapshot } from './telemetry/stats-snapshot.ts';
import { TcpMetricsTable } from './telemetry/tcp-metrics.ts';
import { SecretStore } from './tls/secret-store.ts';
import type { Cluster } from './upstream/cluster.ts';
import { ResourceState } from './xds/resource-state.ts';

const sweeping = errorBoundary('timer.sweep');

export interface EngineOptions {
  readonly self: PeerMetadata;
  /** `sidecar~10.0.0.1~name.namespace~...`: how it is called by other proxies. */
  readonly selfId: string;
  readonly accessLogFile?: string | undefined;
  readonly overload: OverloadSettings;
  readonly opensListeners: boolean;
  readonly reusesPort: boolean;
  /** Sockets come from a proxy that this one replaces: none is opened before `noMoreSockets`. */
  readonly expectsSockets: boolean;
  /** 48 bytes; made when there are none. */
  readonly sessionTicketKeys?: Buffer | undefined;
  readonly drainMs: number;
  /** Which Unix sockets configuration may name; absent: all. */
  readonly unixSockets?: UnixSocketPolicy | undefined;
  readonly logger: Logger;
  /** What requests to mizzen.filters.http.local_service are answered by. */
  readonly localService?: LocalService;
  /** By which the limits of several workers are one. */
  readonly spending?: SharedSpending;
}

/** Timeouts of connections and idle limits are looked at this often. */
const sweepIntervalMs = 250;
const drainCheckMs = 20;

/**
 * The data plane of one event loop: it is given xDS resources and secrets, and serves. Where they come from (a control plane, a file, the
 * main process of a worker) is not its affair.
 */
export class Engine {
  readonly counters: ProxyCounters;
  readonly secrets: SecretStore;
  readonly sessionTicketKeys: Buffer;
  readonly state: ResourceState;
  /** Resolves when all listeners take connections, with everything that they need. */
  readonly ready: Promise<void>;
  /** Resolves when everything is there but the sockets. */
  readonly prepared: Promise<void>;
  readonly #metrics: RequestMetricsTable;
  readonly #tcpMetrics: TcpMetricsTable;
  readonly #overload: OverloadManager;
  readonly #sweeper: NodeJS.Timeout;
  readonly #filterStates: Map<string, object>;
  /** In the milliseconds of performance.now(): connections that are still open then are closed. */
  #closeBy: number;
  #closing: Promise<void> | undefined;

  constructor(options: EngineOptions) {
    const { self, logger } = options;
    this.counters = new ProxyCounters();
    this.secrets = new SecretStore(logger);
    this.sessionTicketKeys = options.sessionTicketKeys ?? randomBytes(48);
    this.#filterStates = new Map<string, object>();
    if (options.localService !== undefined) this.#filterStates.set(localServiceState, options.localService);
    if (options.spending !== undefined) this.#filterStates.set(sharedSpendingState, options.spending);
    this.#metrics = new RequestMetricsTable();
    this.#tcpMetrics = new TcpMetricsTable();
    const overload = new OverloadState(Number.POSITIVE_INFINITY);
    this.#overload = new OverloadManager(options.overload, overload, {
      held: (visit) => this.state.held(visit),
      onReset: () => void this.counters.values.streams_overload_reset_total++,
      logger,
    });
    const events = new EventEmitter();
    this.ready = once(events, 'ready').then(() => undefined);
    this.prepared = once(events, 'prepared').then(() => undefined);
    this.state = new ResourceState({
      secrets: this.secrets,
      counters: this.counters,
      logger,
      context: {
        self,
        introduction: introductionOf(self, options.selfId),
        peers: new PeerMetadataReader(),
        metrics: this.#metrics,
        tcpMetrics: this.#tcpMetrics,
        overload,
        counters: this.counters,
        random: Math.random,
        logger,
        filterStates: this.#filterStates,
        genericSecret: (name) => this.secrets.generic(name),
      },
      accessLogFile: options.accessLogFile,
      onReady: () => events.emit('ready'),
      onPrepared: () => events.emit('prepared'),
      expectsSockets: options.expectsSockets,
      opensListeners: options.opensListeners,
      reusesPort: options.reusesPort,
      sessionTicketKeys: this.sessionTicketKeys,
      drainMs: options.drainMs,
      unixSockets: options.unixSockets ?? anyUnixSocket,
    });
    this.#overload.start();
    this.#sweeper = sweeping.every(sweepIntervalMs, () => this.state.sweep(performance.now()));
    this.#closeBy = Number.POSITIVE_INFINITY;
    this.#closing = undefined;
  }

  /** Puts an update into effect. Throws MizzenError that names the resources which cannot be used; the others are in effect then. */
  accept(type: ResourceType, resources: readonly Any[]): void {
    this.state.accept(type, resources);
  }

  handOver(server: net.Server): void {
    this.state.handOver(server);
  }

  noMoreSockets(): void {
    this.state.noMoreSockets();
  }

  findCluster(name: string): Cluster | undefined {
    return this.state.findCluster(name);
  }

  stats(): StatsSnapshot {
    return takeSnapshot({
      counters: this.counters,
      requests: this.#metrics,
      tcp: this.#tcpMetrics,
      clusters: this.state.clusters(),
      listeners: this.state.openListeners().map(describeListener),
    });
  }

  /**
   * Ends in order: connections are told to end with their request and new ones still taken for `acceptMs`, then nobody is let in, and
   * those inside may finish until `drainMs` have passed. A later call can shorten that time. `working`: others that use this engine's secrets and
   * configuration until then.
   */
  close(drainMs: number, acceptMs: number, working: Promise<unknown> = Promise.resolve()): Promise<void> {
    this.#closeBy = Math.min(this.#closeBy, performance.now() + drainMs);
    return (this.#closing ??= this.#close(acceptMs, working));
  }

  async #close(acceptMs: number, working: Promise<unknown>): Promise<void> {
    this.state.drain();
    if (acceptMs > 0) await sleep(acceptMs);
    this.state.stopListening();
    while (this.state.activeConnections() > 0 && performance.now() < this.#closeBy) await sleep(drainCheckMs);
    await working;
    clearInterval(this.#sweeper);
    this.#overload.close();
    await this.state.close();
    for (const state of this.#filterStates.values()) if ('close' in state && typeof state.close === 'function') state.close();
    this.secrets.close();
  }
}

function describeListener(listener: ReturnType<ResourceState['openListeners']>[number]): ListenerStats {
  const isTcp = listener instanceof Listener;
  return {
    name: listener.config.name,
    address: isUnixPath(listener.address) ? listener.address : `${listener.address}:${listener.port}`,
    protocol: isTcp ? 'tcp' : 'udp',
    listening: listener.isListening,
    connections: listener.activeConnections(),
    filterChains: isTcp
      ? listener.config.chains.map(({ name, match }) => ({ name, transportProtocol: match.transportProtocol, serverNames: match.serverNames }))
      : [],
  };
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
