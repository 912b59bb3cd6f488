import { create } from '@bufbuild/protobuf';
import type { Any } from '@bufbuild/protobuf/wkt';
import { createClient } from '@connectrpc/connect';
import { Backoff, errorBoundary, type Logger, messageOf, PushQueue } from '@mizzen/common';
import { GrpcConnection, type LivenessOptions } from '@mizzen/common/grpc-client';
import { type DiscoveryType, discoveryTypes, type ResourceType, typeUrls } from '@mizzen/envoy-api';
import type { Node } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { AggregatedDiscoveryService } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/ads_pb.js';
import { type DiscoveryRequest, DiscoveryRequestSchema, type DiscoveryResponse } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { explain, type IdentityAgent, isUnauthenticated } from './identity-agent.ts';

const boundary = errorBoundary('ads.stream');
const receiving = errorBoundary('ads.resources');

/** Where updates go, and what they are asked for by. */
export interface ResourceSink {
  wanted(type: ResourceType): string[];
  /** Throws when resources of the update cannot be used: it becomes a NACK. The others are in effect. */
  accept(type: DiscoveryType, resources: readonly Any[]): void;
}

/**
 * The client of the control plane's ADS (state of the world). It keeps what it has when the control plane goes away, and comes back with
 * jittered backoff, so that a thousand proxies do not come back at once.
 */
export interface AdsClientOptions {
  /** `host:port`. */
  readonly control: string;
  readonly node: Node;
  readonly state: ResourceSink;
  /** Types that are asked for as a whole, beside those that `state.wanted` names: a proxy has listeners and clusters, the broker what it enforces. */
  readonly wholeTypes: readonly DiscoveryType[];
  readonly identity: IdentityAgent;
  readonly counters: ProxyCounters;
  readonly logger: Logger;
  /** How a control plane that hangs is noticed. */
  readonly liveness?: LivenessOptions | undefined;
  /** A stream is open: the control plane has sent its first response. */
  readonly onConnected?: (() => void) | undefined;
  /** A stream could not be opened, or has ended. */
  readonly onDisconnected?: (() => void) | undefined;
}

interface Subscription {
  version: string;
  nonce: string;
  names: readonly string[];
}

const healthTypeUrl = 'type.googleapis.com/istio.v1.HealthInformation';
const typeByUrl = new Map<string, DiscoveryType>(discoveryTypes.map((type) => [typeUrls[type], type]));

export class AdsClient {
  readonly #options: AdsClientOptions;
  readonly #backoff: Backoff;
  readonly #abort: AbortController;
  #requests: PushQueue<DiscoveryRequest> | undefined;
  /** Ends the stream, which is then opened anew. */
  #renewal: AbortController;
  #subscriptions: Map<DiscoveryType, Subscription>;
  #running: Promise<void> | undefined;
  /** undefined: healthy. */
  #unhealthyReason: string | undefined;
  /** The certificate by which the stream was opened last. */
  #shown: string | undefined;
  #hasConnectedOnce: boolean;
  #node: Node;

  constructor(options: AdsClientOptions) {
    this.#options = options;
    this.#backoff = new Backoff(100, 2_000);
    this.#abort = new AbortController();
    this.#requests = undefined;
    this.#renewal = new AbortController();
    this.#subscriptions = new Map();
    this.#running = undefined;
    this.#unhealthyReason = undefined;
    this.#shown = undefined;
    this.#hasConnectedOnce = false;
    this.#node = options.node;
  }

  start(): void {
    this.#running = this.#run().catch((error: unknown) => boundary.caught(error));
  }

  async close(): Promise<void> {
    this.#abort.abort();
    this.#requests?.close();
    await this.#running;
  }

  /** Opens the stream anew, with the credentials that there are now. Nothing of the configuration is given up meanwhile. */
  reconnect(): void {
    this.#renewal.abort();
  }

  /** Versions in effect, by type; what the admin server shows. */
  versions(): Record<string, string> {
    return Object.fromEntries([...this.#subscriptions].map(([type, { version }]) => [type, version]));
  }

  /** Tells the control plane whether the application is healthy; told again after each reconnect. */
  reportHealth(unhealthyReason: string | undefined): void {
    this.#unhealthyReason = unhealthyReason;
    this.#sendHealth();
  }

  /** Another process represents the workload now: this one receives its configuration and does not register it. */
  standBack(): void {
    this.#node = { ...this.#node, metadata: { ...this.#node.metadata, MIZZEN_REGISTER: false } };
  }

  async #run(): Promise<void> {
    while (!this.#abort.signal.aborted) {
      try {
        boundary.enter();
        await this.#connectOnce();
      } catch (error) {
        boundary.caught(error);
        await this.#sleep(this.#backoff.nextMs());
      }
    }
  }

  /** One stream, and the pause after it. */
  async #connectOnce(): Promise<void> {
    const { logger, counters, control } = this.#options;
    counters.values.control_plane_connection_attempts_total++;
    const startedAt = Date.now();
    let reason = 'the stream ended.';
    try {
      await this.#stream();
    } catch (error) {
      reason = explain(error);
      boundary.unexpected(error);
      if (isUnauthenticated(error)) this.#options.identity.refused(this.#shown, reason);
    }
    const wasConnected = counters.values.control_plane_connected === 1;
    counters.values.control_plane_connected = 0;
    if (this.#abort.signal.aborted) return;
    this.#options.onDisconnected?.();
    if (this.#renewal.signal.aborted) {
      this.#renewal = new AbortController();
      if (wasConnected) return;
    }
    if (wasConnected && Date.now() - startedAt > 5_000) this.#backoff.reset();
    const wait = this.#backoff.nextMs();
    const keeps = this.#hasConnectedOnce ? ' The last good configuration stays in effect.' : '';
    logger.warn(`not connected to the control plane at ${control}: ${reason}${keeps} Trying again in ${(wait / 1000).toFixed(1)} s.`);
    const problem = this.#options.identity.timeProblem();
    if (problem !== undefined) logger.error(problem);
    await this.#sleep(wait);
  }

  async #stream(): Promise<void> {
    const { control, identity, counters, logger } = this.#options;
    const { tls, token } = identity.credentials();
    this.#shown = tls.cert;
    const connection = new GrpcConnection({
      ...{ address: control, tls, serverName: 'mizzen-control', callTimeoutMs: undefined, idleTimeoutMs: Number.POSITIVE_INFINITY },
      liveness: this.#options.liveness,
    });
    const client = createClient(AggregatedDiscoveryService, connection.transport);
    const requests = new PushQueue<DiscoveryRequest>();
    this.#requests = requests;
    this.#subscriptions = new Map();
    try {
      // What is already known is asked for at once: after a reconnect nothing has to be discovered in steps.
      for (const type of ['cluster', 'listener', 'endpoint', 'route', 'secret'] as const) {
        const names = this.#options.state.wanted(type);
        if (names.length > 0 || this.#options.wholeTypes.includes(type)) this.#subscribe(type, names);
      }
      for (const type of ['name-table', 'messaging', 'broker-policy'] as const) if (this.#options.wholeTypes.includes(type)) this.#subscribe(type, []);
      this.#sendHealth();
      const responses = client.streamAggregatedResources(requests, {
        signal: AbortSignal.any([this.#abort.signal, this.#renewal.signal]),
        headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
      });
      for await (const response of responses) {
        if (counters.values.control_plane_connected === 0) {
          counters.values.control_plane_connected = 1;
          logger.info('connected to the control plane', { at: control });
          this.#hasConnectedOnce = true;
          this.#options.onConnected?.();
        }
        this.#receive(response);
      }
    } finally {
      requests.close();
      this.#requests = undefined;
      connection.close();
    }
  }

  #receive(response: DiscoveryResponse): void {
    const { state, logger } = this.#options;
    const type = typeByUrl.get(response.typeUrl);
    const subscription = type && this.#subscriptions.get(type);
    if (!type || !subscription) return;
    subscription.nonce = response.nonce;
    let error: string | undefined;
    try {
      receiving.enter();
      state.accept(type, response.resources);
      subscription.version = response.versionInfo;
    } catch (problem) {
      error = messageOf(problem);
      receiving.unexpected(problem);
      logger.error(`refused ${type} resources; their last good versions stay in effect`, { version: response.versionInfo, reason: error });
    }
    // What has come may name what to ask for next. It is asked for before the ACK: what is acknowledged has no request outstanding that the control plane does
    // not know of.
    for (const dependent of ['endpoint', 'route', 'secret'] as const) {
      const names = state.wanted(dependent);
      const current = this.#subscriptions.get(dependent);
      if (!current) {
        if (names.length > 0) this.#subscribe(dependent, names);
      } else if (!sameNames(names, current.names)) {
        current.names = names;
        if (dependent !== type) this.#send(dependent, current, undefined);
      }
    }
    this.#send(type, subscription, error);
  }

  #subscribe(type: DiscoveryType, names: readonly string[]): void {
    const subscription: Subscription = { version: '', nonce: '', names };
    this.#subscriptions.set(type, subscription);
    this.#send(type, subscription, undefined);
  }

  #send(type: DiscoveryType, subscription: Subscription, error: string | undefined): void {
    const isFirst = this.#requests !== undefined && !this.#requests.hasStarted;
    this.#requests?.push(
      create(DiscoveryRequestSchema, {
        ...(isFirst ? { node: this.#node } : {}),
        typeUrl: typeUrls[type],
        versionInfo: subscription.version,
        responseNonce: subscription.nonce,
        resourceNames: [...subscription.names],
        ...(error === undefined ? {} : { errorDetail: { code: 3, message: error } }),
      }),
    );
  }

  #sendHealth(): void {
    this.#requests?.push(
      create(DiscoveryRequestSchema, {
        ...(this.#requests.hasStarted ? {} : { node: this.#node }),
        typeUrl: healthTypeUrl,
        ...(this.#unhealthyReason === undefined ? {} : { errorDetail: { code: 14, message: this.#unhealthyReason } }),
      }),
    );
  }

  async #sleep(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const finish = () => {
        clearTimeout(timer);
        this.#abort.signal.removeEventListener('abort', finish);
        resolve();
      };
      const timer = setTimeout(finish, ms);
      this.#abort.signal.addEventListener('abort', finish);
    });
  }
}

function sameNames(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((name) => b.includes(name));
}
