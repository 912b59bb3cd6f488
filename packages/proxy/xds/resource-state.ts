import { fromBinary } from '@bufbuild/protobuf';
import type { Any } from '@bufbuild/protobuf/wkt';
import { type Logger, MizzenError, messageOf } from '@mizzen/common';
import type { ResourceType } from '@mizzen/envoy-api';
import { ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { type ClusterLoadAssignment, ClusterLoadAssignmentSchema } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import type { ProxyContext } from '../http/connection-settings.ts';
import { type CompiledListener, compileListener } from '../net/compile-listener.ts';
import { Listener } from '../net/listener.ts';
import { compileRouteTable } from '../route/compile-routes.ts';
import type { RouteTable } from '../route/route-table.ts';
import { AccessLogFile } from '../telemetry/access-log.ts';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import type { SecretStore } from '../tls/secret-store.ts';
import type { Cluster } from '../upstream/cluster.ts';
import { type CompiledCluster, compileCluster } from '../upstream/compile-cluster.ts';
import { rootSecretName, workloadSecretName } from './identity-agent.ts';

/** A resource as it was accepted, with what it was made of. */
interface Accepted<Compiled> {
  readonly any: Any;
  readonly key: string;
  readonly compiled: Compiled;
}

/**
 * The configuration in effect: every resource compiled, the last good version of each kept until a better one has come. An update is
 * compiled as a whole before any of it takes effect; if one resource cannot be compiled, all of the update is refused.
 */
export class ResourceState {
  readonly #secrets: SecretStore;
  readonly #counters: ProxyCounters;
  readonly #logger: Logger;
  readonly #context: ProxyContext;
  readonly #clusters: Map<string, Accepted<CompiledCluster>>;
  readonly #listeners: Map<string, Accepted<CompiledListener>>;
  readonly #routes: Map<string, Accepted<RouteTable>>;
  readonly #assignments: Map<string, Accepted<ClusterLoadAssignment>>;
  readonly #open: Map<string, Listener>;
  readonly #accessLogs: Map<string, AccessLogFile>;
  readonly #received: Set<ResourceType>;
  readonly #onReady: () => void;
  readonly #accessLogFile: string | undefined;
  #isReady: boolean;

  constructor(options: {
    readonly secrets: SecretStore;
    readonly counters: ProxyCounters;
    readonly logger: Logger;
    readonly context: Omit<ProxyContext, 'findCluster'>;
    readonly onReady: () => void;
    /** Stands in for /dev/stdout. */
    readonly accessLogFile?: string | undefined;
  }) {
    this.#secrets = options.secrets;
    this.#counters = options.counters;
    this.#logger = options.logger;
    this.#clusters = new Map();
    this.#listeners = new Map();
    this.#routes = new Map();
    this.#assignments = new Map();
    this.#open = new Map();
    this.#accessLogs = new Map();
    this.#received = new Set();
    this.#onReady = options.onReady;
    this.#accessLogFile = options.accessLogFile;
    this.#isReady = false;
    const clusters = this.#clusters;
    this.#context = { ...options.context, findCluster: (name) => clusters.get(name)?.compiled.cluster };
  }

  /** All listeners take connections, with everything that they need. */
  get isReady(): boolean {
    return this.#isReady;
  }

  clusters(): Cluster[] {
    return [...this.#clusters.values()].map((accepted) => accepted.compiled.cluster);
  }

  openListeners(): Listener[] {
    return [...this.#open.values()];
  }

  /** The resources in effect, packed, for the admin server. */
  dump(type: ResourceType): Any[] {
    const table: Readonly<Record<ResourceType, Map<string, Accepted<unknown>> | undefined>> = {
      cluster: this.#clusters,
      listener: this.#listeners,
      route: this.#routes,
      endpoint: this.#assignments,
      secret: undefined,
    };
    return [...(table[type]?.values() ?? [])].map((accepted) => accepted.any);
  }

  /** The names to subscribe to; for clusters and listeners, all. */
  wanted(type: ResourceType): string[] {
    switch (type) {
      case 'endpoint':
        return [...this.#clusters.values()]
          .map((accepted) => accepted.compiled.edsName)
          .filter((name) => name !== undefined)
          .sort();
      case 'route':
        return [...new Set([...this.#listeners.values()].flatMap((accepted) => accepted.compiled.routeNames))].sort();
      case 'secret':
        return [...new Set([rootSecretName, ...[...this.#listeners.values()].flatMap((accepted) => accepted.compiled.secretNames)])]
          .filter((name) => name !== workloadSecretName)
          .sort();
      default:
        return [];
    }
  }

  /** Puts an update into effect. Throws MizzenError, with nothing changed, when it cannot be used. */
  accept(type: ResourceType, resources: readonly Any[]): void {
    this.#counters.values.config_updates_total++;
    try {
      switch (type) {
        case 'cluster':
          this.#acceptClusters(resources);
          break;
        case 'endpoint':
          this.#acceptEndpoints(resources);
          break;
        case 'listener':
          this.#acceptListeners(resources);
          break;
        case 'route':
          this.#acceptRoutes(resources);
          break;
        case 'secret':
          for (const any of resources) this.#secrets.accept(fromBinary(SecretSchema, any.value));
          break;
      }
    } catch (error) {
      this.#counters.values.config_rejected_total++;
      throw error instanceof MizzenError ? error : new MizzenError('invalid-resource', `a ${type} resource cannot be read: ${messageOf(error)}`);
    }
    this.#received.add(type);
    this.#openListenersThatCan();
  }

  sweep(now: number): void {
    for (const listener of this.#open.values()) listener.sweep(now);
    for (const { compiled } of this.#clusters.values()) compiled.cluster.sweep(now, upstreamIdleTimeoutMs);
  }

  drain(): void {
    for (const listener of this.#open.values()) listener.drain();
  }

  activeConnections(): number {
    let sum = 0;
    for (const listener of this.#open.values()) sum += listener.activeConnections();
    return sum;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#open.values()].map((listener) => listener.close()));
    for (const { compiled } of this.#clusters.values()) compiled.cluster.close();
    await Promise.all([...this.#accessLogs.values()].map((file) => file.close()));
  }

  #acceptClusters(resources: readonly Any[]): void {
    const next = new Map<string, Accepted<CompiledCluster>>();
    for (const any of resources) {
      const message = fromBinary(ClusterSchema, any.value);
      const key = keyOf(any);
      const current = this.#clusters.get(message.name);
      if (current?.key === key) {
        next.set(message.name, current);
        continue;
      }
      const compiled = compileCluster(message, this.#secrets, this.#context.random);
      // A cluster that has changed starts with the endpoints it had: it is never empty between CDS and EDS.
      const assignment = compiled.edsName === undefined ? undefined : this.#assignments.get(compiled.edsName)?.compiled;
      if (assignment) compiled.applyAssignment(assignment);
      next.set(message.name, { any, key, compiled });
    }
    for (const [name, accepted] of this.#clusters) if (next.get(name) !== accepted) accepted.compiled.cluster.close();
    replace(this.#clusters, next);
  }

  #acceptEndpoints(resources: readonly Any[]): void {
    const next = resources.map((any) => ({ any, key: keyOf(any), compiled: fromBinary(ClusterLoadAssignmentSchema, any.value) }));
    for (const accepted of next) {
      const { clusterName } = accepted.compiled;
      if (this.#assignments.get(clusterName)?.key === accepted.key) continue;
      for (const { compiled } of this.#clusters.values()) if (compiled.edsName === clusterName) compiled.applyAssignment(accepted.compiled);
      this.#assignments.set(clusterName, accepted);
    }
    const used = new Set(this.wanted('endpoint'));
    for (const name of this.#assignments.keys()) if (!used.has(name)) this.#assignments.delete(name);
  }

  #acceptRoutes(resources: readonly Any[]): void {
    const next = new Map<string, Accepted<RouteTable>>();
    for (const any of resources) {
      const message = fromBinary(RouteConfigurationSchema, any.value);
      const key = keyOf(any);
      const current = this.#routes.get(message.name);
      next.set(message.name, current?.key === key ? current : { any, key, compiled: compileRouteTable(message) });
    }
    for (const [name, accepted] of next) this.#routes.set(name, accepted);
    const used = new Set(this.wanted('route'));
    for (const name of this.#routes.keys()) if (!used.has(name)) this.#routes.delete(name);
  }

  #acceptListeners(resources: readonly Any[]): void {
    const next = new Map<string, Accepted<CompiledListener>>();
    const environment = {
      context: this.#context,
      secrets: this.#secrets,
      logger: this.#logger,
      routeTable: (name: string) => this.#routes.get(name)?.compiled,
      accessLog: (path: string) => this.#accessLog(path),
      onSecretReady: () => setImmediate(() => this.#openListenersThatCan()),
    };
    for (const any of resources) {
      const message = fromBinary(ListenerSchema, any.value);
      const key = keyOf(any);
      const current = this.#listeners.get(message.name);
      next.set(message.name, current?.key === key ? current : { any, key, compiled: compileListener(message, environment) });
    }
    for (const [name, accepted] of this.#listeners) {
      const open = this.#open.get(name);
      const replacement = next.get(name);
      if (replacement === accepted) continue;
      if (open && replacement && replacement.compiled.config.address === open.address && replacement.compiled.config.port === open.port)
        open.update(replacement.compiled.config);
      else if (open) {
        this.#open.delete(name);
        void open.close();
      }
    }
    replace(this.#listeners, next);
  }

  #openListenersThatCan(): void {
    for (const [name, { compiled }] of this.#listeners) {
      if (this.#open.has(name) || compiled.missing().length > 0) continue;
      const listener = new Listener(compiled.config, this.#counters, this.#logger);
      this.#open.set(name, listener);
      listener.listen().then(
        () => this.#checkReady(),
        (error: unknown) => {
          if (this.#open.get(name) === listener) this.#open.delete(name);
          this.#logger.error(messageOf(error));
          setTimeout(() => this.#openListenersThatCan(), 1_000).unref();
        },
      );
    }
    this.#checkReady();
  }

  #checkReady(): void {
    if (this.#isReady || !this.#received.has('cluster') || !this.#received.has('listener')) return;
    const allOpen = [...this.#listeners.keys()].every((name) => this.#open.get(name)?.isListening);
    const endpointsCame = this.wanted('endpoint').length === 0 || this.#received.has('endpoint');
    if (!allOpen || !endpointsCame) return;
    this.#isReady = true;
    this.#onReady();
  }

  #accessLog(configured: string): AccessLogFile {
    const path = configured === '/dev/stdout' ? (this.#accessLogFile ?? configured) : configured;
    let file = this.#accessLogs.get(path);
    if (!file) {
      file = new AccessLogFile(path, this.#counters);
      this.#accessLogs.set(path, file);
    }
    return file;
  }
}

/** Idle upstream connections are closed well before most servers would. */
const upstreamIdleTimeoutMs = 60_000;

function keyOf(any: Any): string {
  return Buffer.from(any.value).toString('latin1');
}

function replace<Value>(map: Map<string, Value>, next: Map<string, Value>): void {
  map.clear();
  for (const [name, value] of next) map.set(name, value);
}
