import { create, fromBinary } from '@bufbuild/protobuf';
import type { Any } from '@bufbuild/protobuf/wkt';
import { errorBoundary, type Logger, messageOf } from '@mizzen/common';
import { type DiscoveryType, discoveryTypes, type ResourceType, typeUrls } from '@mizzen/envoy-api';
import { SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { DiscoveryResponseSchema } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import type { IdentityAgent } from './identity-agent.ts';
import type { KeptConfigurationFile } from './kept-configuration.ts';
import type { ResourceState } from './resource-state.ts';

const boundary = errorBoundary('configuration.keep');

export interface ConfigurationKeeperOptions {
  readonly file: KeptConfigurationFile;
  readonly state: Pick<ResourceState, 'dump' | 'isSettled'>;
  /** The names that are subscribed to. */
  readonly wanted: (type: ResourceType) => readonly string[];
  readonly identity: Pick<IdentityAgent, 'current' | 'restore'>;
  /** Puts an update into effect. Throws when a part of it cannot be used. */
  readonly accept: (type: DiscoveryType, resources: readonly Any[]) => void;
  /** `host:port`. */
  readonly control: string;
  readonly counters: ProxyCounters;
  readonly logger: Logger;
}

/** A control plane that has not sent a configuration by then is taken for absent: the kept configuration is used. */
const useAfterMs = 300;
/** Changes that come together are written together. */
const writeDelayMs = 100;
/** A write is put off while clusters or listeners wait for something, but not longer. */
const maxUnsettledMs = 3_000;
/** Writing takes at most a tenth of the time. */
const pauseFactor = 10;
const retryMs = 30_000;
/** After an exception of this proxy's own. */
const retryAfterErrorMs = 1_000;
/** A configuration that does not change is written again, so that its age is that of the last contact. */
const refreshMs = 3_600_000;
/** What is named by a resource comes after it, except for clusters: a listener opens when they have all that they need. */
const order: readonly DiscoveryType[] = ['secret', 'cluster', 'endpoint', 'listener', 'route', 'name-table', 'messaging'];

/**
 * Keeps the accepted configuration on disk, and puts it into effect when the proxy starts and the control plane is away. The control plane's own
 * configuration replaces it resource by resource, like every update.
 */
export class ConfigurationKeeper {
  readonly #options: ConfigurationKeeperOptions;
  /** Raw, by name: the state keeps only what is made of them. */
  readonly #secrets: Map<string, Any>;
  /** The types that are kept as they came. */
  readonly #whole: Map<DiscoveryType, readonly Any[]>;
  /** Types that the control plane has sent since the start. */
  readonly #received: Set<DiscoveryType>;
  #useTimer: NodeJS.Timeout | undefined;
  #writeTimer: NodeJS.Timeout | undefined;
  #writing: Promise<void> | undefined;
  #dirtySince: number | undefined;
  /** No write begins before. */
  #notBefore: number;
  #hasFailed: boolean;
  #isRead: boolean;
  readonly #decided: PromiseWithResolvers<void>;
  #isClosed: boolean;
  /** When the configuration in effect was written; undefined: it comes from the control plane. */
  #servesFrom: Date | undefined;

  constructor(options: ConfigurationKeeperOptions) {
    this.#options = options;
    this.#secrets = new Map();
    this.#whole = new Map();
    this.#received = new Set();
    this.#useTimer = undefined;
    this.#writeTimer = undefined;
    this.#writing = undefined;
    this.#dirtySince = undefined;
    this.#notBefore = 0;
    this.#hasFailed = false;
    this.#isRead = false;
    this.#decided = Promise.withResolvers();
    this.#isClosed = false;
    this.#servesFrom = undefined;
  }

  /** For `/ready`; undefined: the configuration comes from the control plane. */
  get notice(): string | undefined {
    if (this.#servesFrom === undefined) return undefined;
    return `serving the configuration kept on disk at ${this.#servesFrom.toISOString()}: the control plane at ${this.#options.control} has sent none since the start`;
  }

  /** Resolves when it is decided where the first configuration comes from; at once where nothing is kept. */
  async start(): Promise<void> {
    if (!this.#options.file.exists) this.#isRead = true;
    else
      this.#useTimer = boundary.after(
        useAfterMs,
        () => this.controlPlaneIsAway(),
        () => {
          boundary.run(() => this.controlPlaneIsAway());
          this.#decided.resolve();
        },
      );
    if (this.#isRead) this.#decided.resolve();
    await this.#decided.promise;
  }

  /** Another process has taken over, and keeps the configuration. */
  async standBack(): Promise<void> {
    this.#isClosed = true;
    this.#decided.resolve();
    clearTimeout(this.#useTimer);
    clearTimeout(this.#writeTimer);
    await this.#writing;
    this.#dirtySince = undefined;
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    this.#decided.resolve();
    clearTimeout(this.#useTimer);
    clearTimeout(this.#writeTimer);
    await this.#writing;
    if (this.#dirtySince !== undefined && this.#isComplete) await this.#write();
  }

  /** The first attempt to connect has failed, or has taken too long. */
  controlPlaneIsAway(): void {
    clearTimeout(this.#useTimer);
    if (this.#isRead || this.#isClosed || this.#isComplete) return;
    this.#isRead = true;
    this.#use();
    this.#decided.resolve();
  }

  #use(): void {
    const { file, identity, accept, control, counters, logger } = this.#options;
    const kept = file.read();
    if (kept.kind === 'none') return;
    if (kept.kind === 'ignored')
      return logger.warn(`the configuration kept on disk is not used: ${kept.reason}. The proxy waits for the control plane.`, {
        folder: file.folder,
        control,
      });
    const { configuration, savedAt } = kept;
    const { certificate: cert, privateKey: key, root } = configuration;
    identity.restore({ cert, key }, root);
    const updates = new Map(configuration.updates.map(({ typeUrl, resources }) => [typeUrl, resources]));
    for (const type of order) {
      const resources = updates.get(typeUrls[type]);
      if (resources === undefined || this.#received.has(type)) continue;
      this.#remember(type, resources);
      try {
        accept(type, resources);
      } catch (error) {
        logger.error(`a part of the configuration kept on disk cannot be used: ${messageOf(error)}`, { type });
      }
    }
    this.#servesFrom = savedAt;
    counters.values.kept_configuration_in_use = 1;
    logger.warn('serving the configuration kept on disk until the control plane is back', { keptAt: savedAt.toISOString(), control });
  }

  /** The control plane has sent resources, and they are in effect as far as they can be used. */
  accepted(type: DiscoveryType, resources: readonly Any[]): void {
    const { counters, logger, control } = this.#options;
    this.#received.add(type);
    this.#decided.resolve();
    this.#remember(type, resources);
    if (this.#isComplete && this.#servesFrom !== undefined) {
      this.#servesFrom = undefined;
      counters.values.kept_configuration_in_use = 0;
      logger.info('the configuration of the control plane has replaced the one kept on disk', { control });
    }
    this.changed();
  }

  /** Something that is kept is another than before. */
  changed(): void {
    if (this.#isClosed) return;
    if (this.#dirtySince === undefined) {
      this.#dirtySince = performance.now();
      clearTimeout(this.#writeTimer);
      this.#writeTimer = undefined;
    }
    this.#schedule(writeDelayMs);
  }

  get #isComplete(): boolean {
    return this.#received.has('cluster') && this.#received.has('listener');
  }

  #remember(type: DiscoveryType, resources: readonly Any[]): void {
    if (type === 'secret') for (const any of resources) this.#rememberSecret(any);
    else if (type === 'name-table' || type === 'messaging') this.#whole.set(type, resources);
  }

  #rememberSecret(any: Any): void {
    try {
      const { name, type } = fromBinary(SecretSchema, any.value);
      // Without content it is withdrawn, on disk too.
      if (type.case === undefined) this.#secrets.delete(name);
      else this.#secrets.set(name, any);
    } catch {
      // The state has refused it with a reason.
    }
  }

  #schedule(delayMs: number): void {
    if (this.#writeTimer !== undefined || this.#writing !== undefined || this.#isClosed) return;
    const write = () => {
      this.#writeTimer = undefined;
      const { state, counters } = this.#options;
      if (!this.#isComplete) return;
      if (this.#dirtySince === undefined && counters.values.control_plane_connected === 0) return this.#schedule(refreshMs);
      if (!state.isSettled && performance.now() - (this.#dirtySince ?? 0) < maxUnsettledMs) return this.#schedule(writeDelayMs);
      const written = () => {
        this.#writing = undefined;
        this.#schedule(this.#dirtySince === undefined ? refreshMs : writeDelayMs);
      };
      this.#writing = this.#write()
        .catch((error: unknown) => boundary.caught(error))
        .then(written);
    };
    const again = () => {
      this.#writeTimer = undefined;
      this.#schedule(retryAfterErrorMs);
    };
    this.#writeTimer = boundary.after(Math.max(delayMs, this.#notBefore - performance.now()), write, again).unref();
  }

  async #write(): Promise<void> {
    const { file, wanted: wantedOf, identity, counters, logger } = this.#options;
    const own = identity.current();
    if (own === undefined) return;
    this.#dirtySince = undefined;
    const wanted = new Set(wantedOf('secret'));
    for (const name of this.#secrets.keys()) if (!wanted.has(name)) this.#secrets.delete(name);
    const startedAt = performance.now();
    try {
      await file.write({
        updates: discoveryTypes.flatMap((type) => {
          const resources = this.#resourcesOf(type);
          return resources === undefined ? [] : [create(DiscoveryResponseSchema, { typeUrl: typeUrls[type], resources: [...resources] })];
        }),
        ...{ certificate: own.pair.cert, privateKey: own.pair.key, root: own.root },
      });
      counters.values.kept_configuration_writes_total++;
      this.#notBefore = performance.now() + pauseFactor * (performance.now() - startedAt);
      if (this.#hasFailed) logger.info('the configuration is kept on disk again', { folder: file.folder });
      this.#hasFailed = false;
    } catch (error) {
      counters.values.kept_configuration_write_failures_total++;
      this.#dirtySince ??= startedAt;
      this.#notBefore = performance.now() + retryMs;
      if (!this.#hasFailed)
        logger.warn(
          `the configuration cannot be kept on disk: ${messageOf(error)}. Until it can, a restart without the control plane uses the version kept before.`,
          {
            ...{ folder: file.folder, retryMs },
          },
        );
      this.#hasFailed = true;
    }
  }

  #resourcesOf(type: DiscoveryType): Iterable<Any> | undefined {
    if (type === 'secret') return this.#secrets.values();
    if (type === 'name-table' || type === 'messaging' || type === 'broker-policy') return this.#whole.get(type);
    return this.#options.state.dump(type);
  }
}
