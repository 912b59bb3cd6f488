import type net from 'node:net';
import { fromBinary } from '@bufbuild/protobuf';
import type { Any } from '@bufbuild/protobuf/wkt';
import { errorBoundary, type Logger, messageOf } from '@mizzen/common';
import type { ResourceType } from '@mizzen/envoy-api';
import { ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { type ClusterLoadAssignment, ClusterLoadAssignmentSchema } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import type { ProxyContext } from '../http/connection-settings.ts';
import type { HeldVisitor } from '../http/http-connection.ts';
import { type CompiledListener, compileListener } from '../net/compile-listener.ts';
import { Listener, type ListenerSurroundings } from '../net/listener.ts';
import { UdpListener } from '../net/udp-listener.ts';
import { type UnixSocketPolicy, unixPathOfServer } from '../net/unix-socket.ts';
import { compileRouteTable } from '../route/compile-routes.ts';
import type { RouteTable } from '../route/route-table.ts';
import { AccessLogFile } from '../telemetry/access-log.ts';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { rootSecretName, workloadSecretName } from '../tls/secret-names.ts';
import type { SecretStore } from '../tls/secret-store.ts';
import type { Cluster } from '../upstream/cluster.ts';
import { type CompiledCluster, compileCluster } from '../upstream/compile-cluster.ts';
import { AwaitedSecrets } from './awaited-secrets.ts';
import { Refusals } from './refusals.ts';

/** A resource as it was accepted, with what it was made of. */
interface Accepted<Compiled> {
  readonly any: Any;
  readonly key: string;
  readonly compiled: Compiled;
}

/** A cluster that has been accepted and waits for its endpoints or secrets; the one of its name before serves until then. */
interface Warming extends Accepted<CompiledCluster> {
  readonly since: number;
}

export type OpenListener = Listener | UdpListener;

export interface ResourceStateOptions {
  readonly secrets: SecretStore;
  readonly counters: ProxyCounters;
  readonly logger: Logger;
  readonly context: Omit<ProxyContext, 'findCluster'>;
  readonly onReady: () => void;
  /** Everything is there but the sockets. */
  readonly onPrepared: () => void;
  /** Stands in for /dev/stdout. */
  readonly accessLogFile?: string | undefined;
  /** false: resources are compiled and kept, but connections are only taken on sockets that were handed over. */
  readonly opensListeners: boolean;
  /** Sockets will be handed over: none is opened before `noMoreSockets`. */
  readonly expectsSockets: boolean;
  /** Other processes listen on the same ports. */
  readonly reusesPort: boolean;
  readonly sessionTicketKeys: Buffer;
  readonly unixSockets: UnixSocketPolicy;
  /** How long connections of listeners that have gone may take to end. */
  readonly drainMs: number;
}

/** Datagrams that were taken have this long to be answered after their listener has stopped. */
const udpReplyMs = 1_000;
/** Without an answer by then a cluster goes without endpoints (config_source.proto `initial_fetch_timeout`). */
const initialFetchTimeoutMs = 15_000;
/** Of what needs a secret that was withdrawn, in the log: of each type. */
const maxNamedUsers = 20;
const sweeping = errorBoundary('timer.sweep.part');
const opening = errorBoundary('listener.open');

/**
 * The configuration in effect: every resource compiled, the last good version of each kept until a better one has come. Resources are accepted
 * or refused one by one: one that cannot be compiled stays in its last good version, or is left out, and the others of its update take effect.
 * What is new takes traffic only when it has all that it needs ("warming"). Longer than other files: listeners, routes, clusters, endpoints and secrets wait for each
 * other, and what one update changes in all of them is decided here.
 */
export class ResourceState {
  readonly #options: ResourceStateOptions;
  readonly #context: ProxyContext;
  readonly #surroundings: ListenerSurroundings;
  readonly #clusters: Map<string, Accepted<CompiledCluster>>;
  readonly #warming: Map<string, Warming>;
  readonly #listeners: Map<string, Accepted<CompiledListener>>;
  readonly #routes: Map<string, Accepted<RouteTable>>;
  /** Route tables that have been accepted and wait for secrets; the one of its name before serves until then. */
  readonly #warmingRoutes: Map<string, Accepted<RouteTable>>;
  readonly #awaited: AwaitedSecrets;
  readonly #assignments: Map<string, Accepted<ClusterLoadAssignment>>;
  readonly #open: Map<string, OpenListener>;
  /** What each open listener was last given. */
  readonly #applied: Map<string, CompiledListener>;
  /** Listeners whose connections are ending, with the time by which they have to; those that are held for another process have no such time. */
  readonly #draining: Map<Listener, number>;
  /** Open TCP listeners by `address|port`. */
  readonly #byAddress: Map<string, Listener>;
  readonly #accessLogs: Map<string, AccessLogFile>;
  readonly #received: Set<ResourceType>;
  /** The clusters that a listener's port waits for: those that had never been warm when it could have been opened first. */
  readonly #awaitedClusters: Map<string, Set<string>>;
  #handedOver: net.Server[];
  #mayOpen: boolean;
  #isPrepared: boolean;
  #isReady: boolean;
  #isClosing: boolean;

  constructor(options: ResourceStateOptions) {
    this.#options = options;
    this.#clusters = new Map();
    this.#warming = new Map();
    this.#listeners = new Map();
    this.#routes = new Map();
    this.#warmingRoutes = new Map();
    this.#awaited = new AwaitedSecrets(options.secrets, options.logger);
    this.#assignments = new Map();
    this.#open = new Map();
    this.#applied = new Map();
    this.#draining = new Map();
    this.#accessLogs = new Map();
    this.#received = new Set();
    this.#awaitedClusters = new Map();
    this.#handedOver = [];
    this.#mayOpen = !options.expectsSockets;
    this.#isPrepared = false;
    this.#isReady = false;
    this.#isClosing = false;
    const clusters = this.#clusters;
    this.#context = { ...options.context, findCluster: (name) => clusters.get(name)?.compiled.cluster };
    const { counters, logger, reusesPort } = options;
    this.#surroundings = { counters, logger, overload: this.#context.overload, reusesPort, listenerFor: (address, port) => this.#listenerFor(address, port) };
    this.#byAddress = new Map();
    options.secrets.onChange((name) => {
      if (!options.secrets.has(name)) this.#withdrawn(name);
      this.#warmUp();
    });
  }

  /** All listeners take connections, with everything that they need. */
  get isReady(): boolean {
    return this.#isReady;
  }

  /** No cluster, listener or route table waits for something. */
  get isSettled(): boolean {
    return this.#warming.size === 0 && this.#warmingRoutes.size === 0 && [...this.#listeners.values()].every(({ compiled }) => compiled.missing().length === 0);
  }

  /** What is still waited for, for people. */
  get notReadyReason(): string {
    if (!this.#received.has('cluster') || !this.#received.has('listener')) return 'the first configuration has not arrived';
    const [warming] = this.#warming.values();
    if (warming !== undefined) return `cluster ${warming.compiled.message.name} waits for ${warming.compiled.missing().join(', ')}`;
    const [table] = this.#warmingRoutes.values();
    if (table !== undefined) return `route table ${table.compiled.name} waits for ${this.#missingSecrets(table.compiled.secretNames).join(', ')}`;
    for (const [name, { compiled }] of this.#listeners) {
      const [missing] = compiled.missing();
      if (missing !== undefined) return `listener ${name} waits for ${missing}`;
      if (this.#options.opensListeners && !this.#open.get(name)?.isListening) return `listener ${name} does not listen yet`;
    }
    return 'starting';
  }

  get listenerCount(): number {
    return this.#listeners.size;
  }

  findCluster(name: string): Cluster | undefined {
    return this.#context.findCluster(name);
  }

  clusters(): Cluster[] {
    return [...this.#clusters.values()].map((accepted) => accepted.compiled.cluster);
  }

  openListeners(): OpenListener[] {
    return [...this.#open.values()];
  }

  /** The route table of this name that is in effect. */
  routeTable(name: string): RouteTable | undefined {
    return this.#routes.get(name)?.compiled;
  }

  hasReceived(type: ResourceType): boolean {
    return this.#received.has(type);
  }

  /** The listening sockets, those included that are held for another process. */
  servers(): net.Server[] {
    return [...this.#open.values(), ...this.#draining.keys()].flatMap((listener) =>
      listener instanceof Listener && listener.config.binds && listener.isListening ? [listener.server] : [],
    );
  }

  /** The resources in effect, packed, for the admin server and for workers. */
  dump(type: ResourceType): Any[] {
    const table: Readonly<Record<ResourceType, Map<string, Accepted<unknown>> | undefined>> = {
      cluster: new Map([...this.#clusters, ...this.#warming]),
      listener: this.#listeners,
      route: new Map([...this.#routes, ...this.#warmingRoutes]),
      endpoint: this.#assignments,
      secret: undefined,
    };
    return [...(table[type]?.values() ?? [])].map((accepted) => accepted.any);
  }

  /** The names to subscribe to; for clusters and listeners, all. */
  wanted(type: ResourceType): string[] {
    switch (type) {
      case 'endpoint':
        return [...new Set([...this.#clusters.values(), ...this.#warming.values()].map((accepted) => accepted.compiled.edsName))]
          .filter((name) => name !== undefined)
          .sort();
      case 'route':
        return [...new Set([...this.#listeners.values()].flatMap((accepted) => accepted.compiled.routeNames))].sort();
      case 'secret':
        return [
          ...new Set([
            rootSecretName,
            ...[...this.#listeners.values()].flatMap((accepted) => accepted.compiled.secretNames),
            ...[...this.#clusters.values(), ...this.#warming.values()].flatMap((accepted) => accepted.compiled.secretNames),
            ...[...this.#routes.values(), ...this.#warmingRoutes.values()].flatMap((accepted) => accepted.compiled.secretNames),
          ]),
        ]
          .filter((name) => name !== workloadSecretName)
          .sort();
      default:
        return [];
    }
  }

  /** Puts an update into effect. Throws MizzenError that names the resources which cannot be used; the others are in effect then. */
  accept(type: ResourceType, resources: readonly Any[]): void {
    const { counters } = this.#options;
    counters.values.config_updates_total++;
    const refusals = new Refusals();
    switch (type) {
      case 'cluster':
        this.#acceptClusters(resources, refusals);
        break;
      case 'endpoint':
        this.#acceptEndpoints(resources, refusals);
        break;
      case 'listener':
        this.#acceptListeners(resources, refusals);
        break;
      case 'route':
        this.#acceptRoutes(resources, refusals);
        break;
      case 'secret':
        this.#acceptSecrets(resources, refusals);
        break;
    }
    if (refusals.reasons.length > 0) counters.values.config_rejected_total++;
    this.#received.add(type);
    this.#warmUp();
    refusals.throwIfAny();
  }

  /** A socket that another process has listened on until now; connections that wait in its queue are served as soon as possible. */
  handOver(server: net.Server): void {
    this.#handedOver.push(server);
    this.#adoptHandedOver();
  }

  /** All sockets that there were have been handed over: what is still missing is opened. */
  noMoreSockets(): void {
    this.#mayOpen = true;
    this.#openListenersThatCan();
    // Sockets that no listener of this configuration is for: whoever connects is told so by the kernel.
    for (const server of this.#handedOver.splice(0)) server.close();
  }

  /** Another process listens on the sockets now. */
  handedOver(): void {
    for (const listener of [...this.#open.values(), ...this.#draining.keys()]) if (listener instanceof Listener) listener.handedOver();
  }

  /** Stops using sockets that are held for other processes, which have them now. */
  passOn(): void {
    for (const [listener] of this.#draining) {
      listener.drain();
      listener.stopListening();
    }
  }

  sweep(now: number): void {
    for (const listener of this.#open.values()) sweeping.run(() => listener.sweep(now));
    for (const [listener, deadline] of this.#draining) {
      listener.sweep(now);
      if (listener.isListening || (listener.activeConnections() > 0 && now < deadline)) continue;
      this.#draining.delete(listener);
      this.#closeListener(listener);
    }
    for (const { compiled } of this.#clusters.values()) sweeping.run(() => compiled.cluster.sweep(now));
    if (this.#warming.size > 0 || this.#awaited.isWaiting) this.#warmUp();
  }

  /** Connections end with the requests that they are serving; new ones are still taken. */
  drain(): void {
    this.#isClosing = true;
    for (const listener of [...this.#open.values(), ...this.#draining.keys()]) if (listener instanceof Listener) listener.drain();
  }

  stopListening(): void {
    this.#isClosing = true;
    for (const listener of [...this.#open.values(), ...this.#draining.keys()])
      if (listener instanceof Listener) listener.stopListening();
      else {
        const close = () => this.#closeListener(listener);
        opening.after(udpReplyMs, close, close).unref();
      }
  }

  activeConnections(): number {
    let sum = 0;
    for (const listener of [...this.#open.values(), ...this.#draining.keys()]) if (listener instanceof Listener) sum += listener.activeConnections();
    return sum;
  }

  /** Visits what waits for slow readers. */
  held(visit: HeldVisitor): void {
    for (const listener of [...this.#open.values(), ...this.#draining.keys()]) if (listener instanceof Listener) listener.held(visit);
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    await Promise.all([...this.#open.values(), ...this.#draining.keys()].map((listener) => listener.close()));
    for (const { compiled } of [...this.#clusters.values(), ...this.#warming.values()]) compiled.cluster.close();
    await Promise.all([...this.#accessLogs.values()].map((file) => file.close()));
  }

  // ---- clusters and endpoints ----

  #acceptClusters(resources: readonly Any[], refusals: Refusals): void {
    const next: Warming[] = [];
    const kept = new Set<string>();
    for (const any of resources) {
      const message = refusals.read('cluster', any, (bytes) => fromBinary(ClusterSchema, bytes));
      if (message === undefined) continue;
      const key = keyOf(any);
      kept.add(message.name);
      if ((this.#warming.get(message.name) ?? this.#clusters.get(message.name))?.key === key) continue;
      const compiled = refusals.compile('cluster', message.name, () => {
        const cluster = compileCluster(message, this.#options.secrets, this.#context.random, this.#options.unixSockets);
        // A cluster that has changed starts with the endpoints it had: it is never empty between CDS and EDS.
        const assignment = cluster.edsName === undefined ? undefined : this.#assignments.get(cluster.edsName)?.compiled;
        if (assignment) cluster.applyAssignment(assignment);
        return cluster;
      });
      if (compiled !== undefined) next.push({ any, key, compiled, since: performance.now() });
    }
    if (refusals.hasUnnamed) for (const name of [...this.#warming.keys(), ...this.#clusters.keys()]) kept.add(name);
    for (const [name, { compiled }] of this.#warming) if (!kept.has(name) && this.#warming.delete(name)) compiled.cluster.close();
    for (const [name, { compiled }] of this.#clusters) if (!kept.has(name) && this.#clusters.delete(name)) compiled.cluster.close();
    for (const warming of next) {
      const { name } = warming.compiled.message;
      this.#warming.get(name)?.compiled.cluster.close();
      this.#warming.set(name, warming);
    }
  }

  #acceptEndpoints(resources: readonly Any[], refusals: Refusals): void {
    for (const any of resources) {
      const assignment = refusals.read('endpoint', any, (bytes) => fromBinary(ClusterLoadAssignmentSchema, bytes));
      if (assignment === undefined) continue;
      const accepted = { any, key: keyOf(any), compiled: assignment };
      const { clusterName } = accepted.compiled;
      if (this.#assignments.get(clusterName)?.key === accepted.key) continue;
      const isApplied = refusals.compile('endpoints of', clusterName, () => {
        for (const { compiled } of [...this.#clusters.values(), ...this.#warming.values()])
          if (compiled.edsName === clusterName) compiled.applyAssignment(accepted.compiled);
        return true;
      });
      if (isApplied === true) this.#assignments.set(clusterName, accepted);
    }
    const used = new Set(this.wanted('endpoint'));
    for (const name of this.#assignments.keys()) if (!used.has(name)) this.#assignments.delete(name);
  }

  /** What has all that it needs takes its place. */
  #warmUp(): void {
    const now = performance.now();
    for (const [name, warming] of this.#warming) {
      if (warming.compiled.missing().length > 0 && now - warming.since < initialFetchTimeoutMs) continue;
      const before = this.#clusters.get(name);
      this.#clusters.set(name, warming);
      this.#warming.delete(name);
      before?.compiled.cluster.close();
    }
    for (const [name, accepted] of this.#warmingRoutes) {
      if (this.#missingSecrets(accepted.compiled.secretNames).length > 0) continue;
      this.#routes.set(name, accepted);
      this.#warmingRoutes.delete(name);
    }
    this.#openListenersThatCan();
  }

  /** The control plane has withdrawn a secret. What needs it fails closed; here it is said what that is. */
  #withdrawn(name: string): void {
    this.#awaited.withdrawn(name);
    const users = (accepted: Iterable<readonly [string, Accepted<{ readonly secretNames: readonly string[] }>]>) =>
      [...new Map(accepted)].flatMap(([user, { compiled }]) => (compiled.secretNames.includes(name) ? [user] : [])).slice(0, maxNamedUsers);
    const listeners = users(this.#listeners);
    const clusters = users([...this.#clusters, ...this.#warming]);
    const routes = users([...this.#routes, ...this.#warmingRoutes]);
    if (listeners.length + clusters.length + routes.length > 0)
      this.#options.logger.error('a secret was withdrawn by the control plane: what needs it is refused', {
        ...{ secret: name, listeners: listeners.join(', '), clusters: clusters.join(', '), routes: routes.join(', ') },
      });
  }

  #missingSecrets(names: readonly string[]): readonly string[] {
    return this.#awaited.missing(names, performance.now());
  }

  // ---- routes and listeners ----

  #acceptRoutes(resources: readonly Any[], refusals: Refusals): void {
    const next = new Map<string, Accepted<RouteTable>>();
    for (const any of resources) {
      const message = refusals.read('route', any, (bytes) => fromBinary(RouteConfigurationSchema, bytes));
      if (message === undefined) continue;
      const key = keyOf(any);
      if ((this.#warmingRoutes.get(message.name) ?? this.#routes.get(message.name))?.key === key) continue;
      const compiled = refusals.compile('route configuration', message.name, () => compileRouteTable(message));
      if (compiled !== undefined) next.set(message.name, { any, key, compiled });
    }
    for (const [name, accepted] of next) this.#warmingRoutes.set(name, accepted);
    const used = new Set([...this.wanted('route'), ...[...this.#applied.values()].flatMap((compiled) => compiled.routeNames)]);
    for (const table of [this.#routes, this.#warmingRoutes]) for (const name of table.keys()) if (!used.has(name)) table.delete(name);
  }

  #acceptSecrets(resources: readonly Any[], refusals: Refusals): void {
    for (const any of resources) {
      const secret = refusals.read('secret', any, (bytes) => fromBinary(SecretSchema, bytes));
      if (secret !== undefined) refusals.compile('secret', secret.name, () => this.#options.secrets.accept(secret));
    }
  }

  #acceptListeners(resources: readonly Any[], refusals: Refusals): void {
    const next = new Map<string, Accepted<CompiledListener>>();
    const { secrets, logger, sessionTicketKeys, unixSockets } = this.#options;
    const environment = {
      context: this.#context,
      secrets,
      logger,
      sessionTicketKeys,
      unixSockets,
      routeTable: (name: string) => this.routeTable(name),
      missingSecrets: (names: readonly string[]) => this.#missingSecrets(names),
      accessLog: (path: string) => this.#accessLog(path),
      onSecretReady: () =>
        opening.soon(
          () => this.#openListenersThatCan(),
          () => this.#openAgain(),
        ),
    };
    for (const any of resources) {
      const message = refusals.read('listener', any, (bytes) => fromBinary(ListenerSchema, bytes));
      if (message === undefined) continue;
      const key = keyOf(any);
      const current = this.#listeners.get(message.name);
      const compiled = current?.key === key ? current.compiled : refusals.compile('listener', message.name, () => compileListener(message, environment));
      if (compiled !== undefined) next.set(message.name, { any, key, compiled });
      // Refused: its last good version stays.
      else if (current !== undefined) next.set(message.name, current);
    }
    if (refusals.hasUnnamed) for (const [name, current] of this.#listeners) if (!next.has(name)) next.set(name, current);
    for (const [name, open] of this.#open) {
      const replacement = next.get(name)?.compiled;
      const isSame = replacement !== undefined && replacement.config.address === open.address && replacement.config.port === open.port;
      if (
        isSame &&
        (replacement.kind === 'tcp'
          ? open instanceof Listener && replacement.config.binds === open.config.binds && replacement.config.unixMode === open.config.unixMode
          : open instanceof UdpListener)
      )
        continue;
      this.#open.delete(name);
      this.#applied.delete(name);
      this.#retire(open);
    }
    this.#listeners.clear();
    for (const [name, accepted] of next) this.#listeners.set(name, accepted);
  }

  /** New connections are no longer taken; those that exist have the drain time to end. */
  #retire(open: OpenListener): void {
    if (open instanceof UdpListener) return this.#closeListener(open);
    open.drain();
    open.stopListening();
    this.#draining.set(open, performance.now() + this.#options.drainMs);
  }

  #openListenersThatCan(): void {
    if (!this.#isClosing) this.#adoptHandedOver();
    for (const [name, { compiled }] of this.#listeners) {
      if (compiled.missing().length > 0) continue;
      const open = this.#open.get(name);
      if (open !== undefined) {
        if (this.#applied.get(name) === compiled) continue;
        this.#applied.set(name, compiled);
        if (open instanceof Listener && compiled.kind === 'tcp') open.update(compiled.config);
        else if (open instanceof UdpListener && compiled.kind === 'udp') open.update(compiled.config);
      } else if (this.#options.opensListeners && this.#mayOpen && !this.#isClosing && this.#hasItsClusters(name)) this.#openListener(name, compiled);
    }
    for (const name of this.#awaitedClusters.keys()) if (!this.#listeners.has(name)) this.#awaitedClusters.delete(name);
    this.#byAddress.clear();
    for (const listener of this.#open.values()) if (listener instanceof Listener) this.#byAddress.set(`${listener.address}|${listener.port}`, listener);
    this.#checkReady();
  }

  /** A port that is open before its clusters are warm would refuse requests that a moment later are served. */
  #hasItsClusters(name: string): boolean {
    if (!this.#received.has('cluster')) return false;
    let awaited = this.#awaitedClusters.get(name);
    if (awaited === undefined) this.#awaitedClusters.set(name, (awaited = new Set(this.#warming.keys())));
    for (const cluster of awaited) if (!this.#warming.has(cluster) || this.#clusters.has(cluster)) awaited.delete(cluster);
    return awaited.size === 0;
  }

  #openListener(name: string, compiled: CompiledListener): void {
    const { logger } = this.#options;
    const listener = compiled.kind === 'udp' ? new UdpListener(compiled.config, logger) : new Listener(compiled.config, this.#surroundings);
    this.#open.set(name, listener);
    this.#applied.set(name, compiled);
    const failed = () => {
      // What listens stays: only what was to follow has failed.
      if (!listener.isListening) {
        if (this.#open.get(name) === listener) this.#open.delete(name);
        this.#applied.delete(name);
        if (listener instanceof UdpListener) this.#closeListener(listener);
      }
      this.#openAgain();
    };
    const refused = (error: unknown) => {
      failed();
      logger.error(messageOf(error));
    };
    opening.start(() => listener.listen().then(() => this.#checkReady(), refused), failed);
  }

  /** Tries until it is closed: a socket that stays open would take a part of its port's connections or datagrams. */
  #closeListener(listener: OpenListener): void {
    opening.start(
      () => listener.close(),
      () => {
        const close = () => this.#closeListener(listener);
        opening.after(1_000, close, close).unref();
      },
    );
  }

  #openAgain(): void {
    opening
      .after(
        1_000,
        () => this.#openListenersThatCan(),
        () => this.#openAgain(),
      )
      .unref();
  }

  /** Exactly for this address, else for all addresses of its family. */
  #listenerFor(address: string, port: number): Listener | undefined {
    return this.#byAddress.get(`${address}|${port}`) ?? this.#byAddress.get(`${address.includes(':') ? '::' : '0.0.0.0'}|${port}`);
  }

  #adoptHandedOver(): void {
    const { logger, opensListeners } = this.#options;
    this.#handedOver = this.#handedOver.filter((server) => {
      const path = unixPathOfServer(server);
      const bound = path === undefined ? server.address() : { address: path, port: 0 };
      if (bound === null || typeof bound === 'string') return false;
      const found = [...this.#listeners].find(([, { compiled }]) => compiled.kind === 'tcp' && isBoundTo(compiled.config, bound));
      if (found === undefined || found[1].compiled.missing().length > 0) return true;
      const [name, { compiled }] = found;
      if (compiled.kind !== 'tcp') return true;
      const listener = new Listener(compiled.config, this.#surroundings);
      const isItsOwn = opensListeners && !this.#open.has(name);
      if (isItsOwn) {
        this.#open.set(name, listener);
        this.#applied.set(name, compiled);
      } else this.#draining.set(listener, Number.POSITIVE_INFINITY);
      const refused = (error: unknown) => logger.error(`a socket that was handed over cannot be used: ${messageOf(error)}`, { listener: name });
      const adopt = () => listener.adopt(server, isItsOwn).then(() => this.#checkReady(), refused);
      // Connections wait in its queue.
      opening.start(adopt, () => (listener.isListening ? this.#openAgain() : opening.start(adopt)));
      return false;
    });
  }

  #checkReady(): void {
    if (this.#isReady || !this.#received.has('cluster') || !this.#received.has('listener') || this.#warming.size > 0) return;
    if ([...this.#listeners.values()].some(({ compiled }) => compiled.missing().length > 0)) return;
    if (!this.#isPrepared) {
      this.#isPrepared = true;
      this.#options.onPrepared();
    }
    if (this.#options.opensListeners && [...this.#listeners.keys()].some((name) => this.#open.get(name)?.isListening !== true)) return;
    this.#isReady = true;
    this.#options.onReady();
  }

  #accessLog(configured: string): AccessLogFile {
    const path = configured === '/dev/stdout' ? (this.#options.accessLogFile ?? configured) : configured;
    let file = this.#accessLogs.get(path);
    if (!file) {
      file = new AccessLogFile(path, this.#options.counters);
      this.#accessLogs.set(path, file);
    }
    return file;
  }
}

function isBoundTo(config: { readonly address: string; readonly port: number }, bound: Pick<net.AddressInfo, 'address' | 'port'>): boolean {
  return config.port === bound.port && config.address === bound.address;
}

function keyOf(any: Any): string {
  return Buffer.from(any.value).toString('latin1');
}
