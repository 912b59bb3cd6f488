import { setTimeout as sleep } from 'node:timers/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import { errorBoundary, type Logger, messageOf } from '@mizzen/common';
import type { FetchPolicy } from '@mizzen/common/fetch-policy';
import type { DiscoveryType } from '@mizzen/envoy-api';
import type { DiscoveryRequest } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import type { OwnedChallenge } from '../certificates/certificate-controller.ts';
import { JwksResolver } from '../citadel/jwks-resolver.ts';
import type { TrustBundles } from '../citadel/trust-bundles.ts';
import type { Change } from '../galley/config-store.ts';
import type { ResourceRegistry } from '../galley/resource-registry.ts';
import { apiConsumerFindings } from './analysis/api-consumers.ts';
import { envoyFilterFindings } from './analysis/envoy-filters.ts';
import { federationFindings } from './analysis/federation.ts';
import type { Finding } from './analysis/finding.ts';
import { gatewayWorkloadFindings } from './analysis/gateway-workloads.ts';
import { StatusWriter } from './gateway-api/status-writer.ts';
import { servedGateways } from './generate/served-gateways.ts';
import { hasPlainHttp, hostOwner } from './host-owner.ts';
import { Quarantine } from './quarantine.ts';
import { Registration } from './registry/registration.ts';
import { WorkloadBindings } from './registry/workload-bindings.ts';
import type { MeshSnapshot } from './snapshot.ts';
import { SnapshotBuilder } from './snapshot-builder.ts';
import { UnprovenIdentity } from './xds/proven-identity.ts';
import type { ProxyConnection, ProxyStatus } from './xds/proxy-connection.ts';
import { shortfallFindings } from './xds/shortfall-findings.ts';

const boundary = errorBoundary('pilot.push');
/** Before the configuration is built again after an exception. */
const failedBuildPauseMs = 1_000;

/**
 * Discovery: follows the configuration, keeps the newest snapshot, and pushes to every connected proxy what of it has changed for it.
 * Changes that come together are pushed together.
 */
export interface PilotOptions {
  /** Where URLs in configuration may lead; undefined: anywhere. */
  readonly fetchPolicy?: FetchPolicy | undefined;
  readonly registry: ResourceRegistry;
  readonly trustDomain: string;
  readonly trust: Pick<TrustBundles, 'configure' | 'current' | 'status'>;
  readonly logger: Logger;
  /** Wait for this much quiet after a change, in milliseconds... */
  readonly debounceMs?: number;
  /** ...but never longer than this. */
  readonly debounceMaxMs?: number;
  readonly registrationGraceMs?: number;
  /** The folder in which resources may name files (documents, filters); undefined: none. */
  readonly filesRoot?: string | undefined;
  /** `host:port` of the mesh's own broker. */
  readonly brokerAddress?: string | undefined;
}

const syncPollMs = 10;
const mostSyncMs = 10_000;
/** Objects that are excluded one after the other in one build. More are found by the next one. */
const maxIsolationRounds = 100;

export class Pilot {
  readonly trustDomain: string;
  readonly #options: PilotOptions;
  readonly #keySets: JwksResolver;
  readonly #builder: SnapshotBuilder;
  readonly #quarantine: Quarantine;
  /** Why the newest configuration is not in effect; undefined: it is. */
  #buildFailure: string | undefined;
  readonly #registration: Registration;
  readonly #connections: Set<ProxyConnection>;
  #bindings: WorkloadBindings;
  #stopBindings: (() => void) | undefined;
  #snapshot: MeshSnapshot | undefined;
  #stopWatching: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #firstChangeAt: number | undefined;
  #building: Promise<void>;
  #isClosed: boolean;
  #pushes: number;
  #challenges: readonly OwnedChallenge[];
  readonly #statuses: StatusWriter;

  constructor(options: PilotOptions) {
    this.trustDomain = options.trustDomain;
    this.#options = options;
    this.#keySets = new JwksResolver(options.logger, () => this.refreshSoon(), options.fetchPolicy);
    this.#quarantine = new Quarantine(options.registry.store, options.logger);
    this.#builder = new SnapshotBuilder(
      options.trustDomain,
      options.logger,
      options.filesRoot,
      options.brokerAddress,
      this.#keySets,
      options.fetchPolicy?.allowed,
    );
    this.#registration = new Registration({
      registry: options.registry,
      logger: options.logger,
      ...(options.registrationGraceMs === undefined ? {} : { graceMs: options.registrationGraceMs }),
    });
    this.#challenges = [];
    this.#connections = new Set();
    this.#buildFailure = undefined;
    this.#bindings = new WorkloadBindings();
    this.#stopBindings = undefined;
    this.#snapshot = undefined;
    this.#stopWatching = undefined;
    this.#timer = undefined;
    this.#firstChangeAt = undefined;
    this.#building = Promise.resolve();
    this.#isClosed = false;
    this.#pushes = 0;
    this.#statuses = new StatusWriter(options.registry, options.logger);
  }

  async start(): Promise<void> {
    const { bindings, stop } = await WorkloadBindings.follow(this.#options.registry.store);
    this.#bindings = bindings;
    this.#stopBindings = stop;
    this.#snapshot = await this.#build();
    this.#writeStatuses();
    this.#stopWatching = this.#options.registry.store.watch(this.#snapshot.revision, (change) => this.#changed(change));
    await this.#registration.start();
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    this.#stopWatching?.();
    this.#stopBindings?.();
    this.#keySets.close();
    clearTimeout(this.#timer);
    for (const connection of this.#connections) connection.responses.close();
    await this.#building;
    await this.#statuses.settled();
    await this.#registration.close();
  }

  get findings(): readonly Finding[] {
    const own = [
      ...this.#builder.findings,
      ...this.#quarantine.findings(),
      ...this.#failureFindings(),
      ...shortfallFindings([...this.#connections]),
      ...federationFindings(this.#options.trust.status()),
    ];
    if (this.#snapshot === undefined) return own;
    try {
      const views = [...this.#connections].map(({ view }) => view);
      return [
        ...own,
        ...envoyFilterFindings(this.#snapshot, [...this.#connections]),
        ...gatewayWorkloadFindings(this.#snapshot, views),
        ...apiConsumerFindings(this.#snapshot, views),
      ];
    } catch (error) {
      this.#options.logger.error('cannot analyze what connected proxies make of the configuration', { error: messageOf(error) });
      return own;
    }
  }

  /** Objects without effect, or in an older version, since generation fails with them; `failures` counts how often that was found. */
  get isolation(): Pick<Quarantine, 'excluded' | 'failures'> {
    return this.#quarantine;
  }

  #failureFindings(): Finding[] {
    const finding = (object: string, message: string): Finding => ({ code: 'MZ0018', level: 'error', object, path: '', place: '', message });
    return [
      ...(this.#buildFailure === undefined
        ? []
        : [finding('Mesh', `the newest configuration is not in effect, since no snapshot can be built from it: ${this.#buildFailure}.`)]),
      ...[...this.#connections].flatMap(({ view, failures }) =>
        [...failures].map(([type, reason]) => {
          const name = `${view.namespace}/${view.name}`;
          return finding(`Proxy ${name}`, `Proxy ${name}: cannot generate its ${type} resources, so it keeps those before: ${reason}.`);
        }),
      ),
    ];
  }

  /** Which workloads the service accounts are bound to. */
  get bindings(): WorkloadBindings {
    return this.#bindings;
  }

  get pushCount(): number {
    return this.#pushes;
  }

  proxies(): ProxyStatus[] {
    return this.connections().map((connection) => connection.status());
  }

  /** Connected proxies, by name. */
  connections(): ProxyConnection[] {
    return [...this.#connections].sort((a, b) => (`${a.view.namespace}/${a.view.name}` < `${b.view.namespace}/${b.view.name}` ? -1 : 1));
  }

  /** Ends the streams that were opened with these certificates, after what is under way on them: who opened them may come again with others. */
  endStreamsOf(serials: ReadonlySet<string>): void {
    for (const { serial, responses } of this.#connections)
      if (serial !== undefined && serials.has(serial)) responses.fail(new ConnectError('the certificate is revoked', Code.Unauthenticated));
  }

  connected(connection: ProxyConnection): void {
    this.#connections.add(connection);
    this.#writeStatuses();
    this.#registration.connected(connection);
    this.#options.logger.info('proxy connected', {
      proxy: `${connection.view.namespace}/${connection.view.name}`,
      from: connection.peer,
      proxies: this.#connections.size,
    });
  }

  disconnected(connection: ProxyConnection): void {
    if (!this.#connections.delete(connection)) return;
    this.#writeStatuses();
    this.#registration.disconnected(connection);
    this.#options.logger.info('proxy disconnected', { proxy: `${connection.view.namespace}/${connection.view.name}`, proxies: this.#connections.size });
  }

  requested(connection: ProxyConnection, type: DiscoveryType, request: DiscoveryRequest): void {
    const nack = connection.handle(type, request, this.#snapshot!, this.#options.trust.current());
    if (connection.failures.size > 0) this.#schedule();
    if (nack)
      this.#options.logger.warn('a proxy refused its configuration and stays with the version before', {
        proxy: `${connection.view.namespace}/${connection.view.name}`,
        type,
        reason: nack.nack,
      });
  }

  /**
   * Why a Certificate of a namespace cannot be proved for a host; undefined: a connected gateway would answer its challenges. The owner is decided over all Gateways that
   * connected gateways serve.
   */
  proofProblem(namespace: string, host: string): string | undefined {
    const snapshot = this.#snapshot;
    if (snapshot === undefined) return 'the configuration has not been read yet';
    const served = [...this.#connections].map(({ view }) => servedGateways(view, snapshot));
    if (!served.some((gateways) => gateways.some((gateway) => gateway.namespace === namespace && hasPlainHttp(gateway, host))))
      return `${host} cannot be proved: no connected gateway serves it over plain HTTP for a Gateway of namespace ${namespace}`;
    const owner = hostOwner(host, [...new Set(served.flat())], snapshot);
    if (owner === namespace) return undefined;
    return `${host} cannot be proved for namespace ${namespace}: ${owner === undefined ? 'Gateways of several namespaces claim it' : 'it belongs to a Gateway of another namespace'}`;
  }

  /** Has the gateways answer these challenges, and no others; resolves when all that are connected do, or have had time enough. */
  async answerChallenges(challenges: readonly OwnedChallenge[]): Promise<void> {
    this.#challenges = challenges;
    await this.refresh();
    if (challenges.length === 0) return;
    for (let waited = 0; waited < mostSyncMs && this.proxies().some(({ type, state }) => type === 'gateway' && state === 'stale'); waited += syncPollMs)
      await sleep(syncPollMs);
  }

  /** Resolves when all connected proxies have accepted or refused what they were sent, or after so long. */
  async answered(maxMs: number): Promise<void> {
    for (let waited = 0; waited < maxMs && this.proxies().some(({ state }) => state === 'stale'); waited += syncPollMs) await sleep(syncPollMs);
  }

  healthChanged(connection: ProxyConnection, reason: string | undefined): void {
    this.#registration.healthChanged(connection, reason);
  }

  /** Resolves when what is known has been written into the objects' status. */
  async statusesWritten(): Promise<void> {
    await this.#statuses.settled();
  }

  #writeStatuses(): void {
    const { translation } = this.#builder;
    if (translation === undefined || this.#snapshot === undefined) return;
    this.#statuses.write(
      translation,
      this.#snapshot,
      [...this.#connections].map(({ view }) => view),
      this.#quarantine.excluded,
    );
  }

  /** Builds and pushes now, without waiting for quiet. */
  async refresh(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#firstChangeAt = undefined;
    // One build that throws is one push that is missing, not the last one.
    this.#building = this.#building
      .then(() => {
        boundary.enter();
        return this.#buildAndPush();
      })
      .catch((error: unknown) => {
        boundary.caught(error);
        this.#schedule(failedBuildPauseMs);
      });
    await this.#building;
  }

  /** The same for callers that do not wait. */
  refreshSoon(): void {
    boundary.start(() => this.refresh());
  }

  /** The stream of a proxy that is no longer what it was opened as ends; it may come again as what it is now. */
  #prove(connection: ProxyConnection): boolean {
    try {
      if (connection.prove(this.#bindings)) this.#registration.changed(connection);
      return true;
    } catch (error) {
      if (!(error instanceof UnprovenIdentity)) throw error;
      this.#options.logger.warn('ended the stream of a proxy that is no longer what it claims', {
        proxy: `${connection.view.namespace}/${connection.view.name}`,
        reason: error.message,
      });
      connection.responses.fail(new ConnectError(error.message, Code.PermissionDenied));
      return false;
    }
  }

  #changed(change: Change): void {
    if (!affectsProxies(change)) return;
    this.#quarantine.changed(change);
    this.#schedule();
  }

  #schedule(leastMs = 0): void {
    if (this.#isClosed) return;
    const now = Date.now();
    this.#firstChangeAt ??= now;
    const wait = Math.max(leastMs, Math.min(this.#options.debounceMs ?? 25, this.#firstChangeAt + (this.#options.debounceMaxMs ?? 500) - now));
    clearTimeout(this.#timer);
    this.#timer = boundary.after(
      wait,
      () => this.refreshSoon(),
      () => this.#schedule(failedBuildPauseMs),
    );
  }

  /** Builds a snapshot from all objects that one can be built with. Throws when it cannot be built from none. */
  async #build(): Promise<MeshSnapshot> {
    for (let round = 0; ; round++) {
      try {
        return await this.#builder.build(this.#quarantine.reader());
      } catch (error) {
        if (round >= maxIsolationRounds || !(await this.#quarantine.isolate(async (reader) => void (await this.#builder.probe(reader))))) throw error;
      }
    }
  }

  async #buildAndPush(): Promise<void> {
    for (let round = 0; ; round++) {
      let snapshot: MeshSnapshot;
      try {
        snapshot = { ...(await this.#build()), challenges: this.#challenges };
        this.#snapshot = snapshot;
        this.#buildFailure = undefined;
      } catch (error) {
        this.#buildFailure = messageOf(error);
        this.#options.logger.error('the snapshot could not be built; proxies keep the one before', { error: this.#buildFailure });
        return;
      }
      this.#push(snapshot);
      const failed = [...this.#connections].find(({ failures }) => failures.size > 0);
      if (failed === undefined) return this.#quarantine.succeeded();
      if (round >= maxIsolationRounds || !(await this.#isolate(failed))) return;
    }
  }

  /** Finds and excludes the object that a proxy's resources cannot be generated with. False: no object is the cause. */
  async #isolate(connection: ProxyConnection): Promise<boolean> {
    const trustBundle = this.#options.trust.current();
    for (const type of connection.failures.keys())
      if (await this.#quarantine.isolate(async (reader) => connection.attempt(type, await this.#builder.probe(reader), trustBundle))) return true;
    return false;
  }

  #push(snapshot: MeshSnapshot): void {
    this.#writeStatuses();
    this.#options.trust.configure(snapshot.meshConfig.caCertificates);
    const trustBundle = this.#options.trust.current();
    // The broker first: what sidecars are about to be allowed, it shall allow.
    const connections = [...this.#connections].sort((a, b) => Number(b.wants('broker-policy')) - Number(a.wants('broker-policy')));
    for (const connection of connections) {
      if (!this.#prove(connection)) continue;
      try {
        this.#pushes += connection.push(snapshot, trustBundle);
      } catch (error) {
        this.#options.logger.error('the configuration of one proxy could not be sent; it keeps the one before', {
          proxy: `${connection.view.namespace}/${connection.view.name}`,
          error: messageOf(error),
        });
      }
    }
  }
}

/** A write to a status changes no route. */
function affectsProxies(change: Change): boolean {
  if (change.type !== 'modified') return true;
  const { resource } = change.stored;
  const previous = change.previous?.resource;
  return (
    resource.metadata.generation !== previous?.metadata.generation ||
    JSON.stringify([resource.metadata.labels, resource.metadata.annotations]) !== JSON.stringify([previous?.metadata.labels, previous?.metadata.annotations])
  );
}
