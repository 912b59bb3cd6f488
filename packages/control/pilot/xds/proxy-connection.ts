import { createHash, randomUUID } from 'node:crypto';
import { create, fromBinary } from '@bufbuild/protobuf';
import type { Any } from '@bufbuild/protobuf/wkt';
import { messageOf, PushQueue } from '@mizzen/common';
import { type DiscoveryType, discoveryTypes, typeUrls } from '@mizzen/envoy-api';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { type DiscoveryRequest, type DiscoveryResponse, DiscoveryResponseSchema } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import type { Identity } from '../../citadel/spiffe-identity.ts';
import type { TrustBundle } from '../../citadel/trust-bundles.ts';
import { type Patch, patchesFor } from '../envoy-filters/patches.ts';
import { resourcesFor } from '../generate/resources.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { WorkloadBinding, WorkloadBindings } from '../registry/workload-bindings.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { limitResources, type RefusalForm, refusing, type Shortfall, securityOf } from './limit-resources.ts';
import { MissingFeatures } from './missing-features.ts';
import { PatchTrial } from './patch-trial.ts';
import { type ProvenIdentity, proveIdentity, UnprovenIdentity } from './proven-identity.ts';

/** Asked for without names: all that there is of the type. */
const wholeTypes: ReadonlySet<DiscoveryType> = new Set(['cluster', 'listener', 'name-table', 'messaging', 'broker-policy']);

/** Make before break. */
const orderOfTypes: ReadonlyMap<string, number> = new Map(discoveryTypes.map((type, i) => [typeUrls[type], i]));

export interface ShownCertificate {
  readonly serial: string | undefined;
  readonly generation: string | undefined;
}

/**
 * One proxy's ADS stream, state of the world: what it has asked for, what it was sent, and what it said to that. The protocol's rules
 * (versions, nonces, ACK, NACK) are those of Envoy's "xDS REST and gRPC protocol".
 */
export class ProxyConnection {
  /** What its node said. Only `prove` reads it. */
  readonly #claimed: ProxyView;
  #proven: ProvenIdentity;
  readonly identity: Identity | undefined;
  readonly peer: string;
  /** The serial number of the proxy's certificate, hex; undefined: it has come with a token. */
  readonly serial: string | undefined;
  /** The authority's generation that has signed the proxy's certificate; undefined: nobody knows. */
  readonly certificateGeneration: string | undefined;
  readonly connectedAt: Date;
  readonly responses: PushQueue<DiscoveryResponse>;
  readonly #subscriptions: Map<DiscoveryType, Subscription>;
  readonly #failures: Map<DiscoveryType, string>;
  /** Patches of EnvoyFilters that have found their place, as `NAMESPACE/NAME@REVISION#INDEX`. */
  readonly patched: Set<string>;
  /** What it does not know of what is sent to it. */
  readonly #missing: MissingFeatures;
  readonly #shortfalls: Map<DiscoveryType, readonly Shortfall[]>;
  /** Which EnvoyFilters the proxy does not take. */
  readonly #trial: PatchTrial;

  constructor(claimed: ProxyView, proven: ProvenIdentity, identity: Identity | undefined, peer: string, certificate: ShownCertificate, now: Date) {
    this.#claimed = claimed;
    this.#proven = proven;
    this.identity = identity;
    this.peer = peer;
    this.serial = certificate.serial;
    this.certificateGeneration = certificate.generation;
    this.connectedAt = now;
    // State of the world: of a type that waits, only the newest content counts. A proxy that does not read costs one response of each type.
    this.responses = new PushQueue((response) => orderOfTypes.get(response.typeUrl) ?? 0);
    this.#subscriptions = new Map();
    this.#failures = new Map();
    this.patched = new Set();
    this.#missing = new MissingFeatures(claimed.clientFeatures);
    this.#shortfalls = new Map();
    this.#trial = new PatchTrial();
  }

  get view(): ProxyView {
    return this.#proven.view;
  }

  get binding(): WorkloadBinding | undefined {
    return this.#proven.binding;
  }

  /** Decides again what the proxy is, after the objects that say so may have changed. Whether it is another than before. Throws UnprovenIdentity. */
  prove(bindings: WorkloadBindings): boolean {
    const before = this.#proven.binding?.version;
    const now = proveIdentity(this.#claimed, this.identity, this.peer, bindings);
    if (now.view.name !== this.view.name) throw new UnprovenIdentity(`${this.view.namespace}/${this.view.name} is now ${now.view.namespace}/${now.view.name}`);
    this.#proven = now;
    return before !== now.binding?.version;
  }

  /** Takes a request: a subscription, an ACK or a NACK. Returns what a NACK said. */
  handle(type: DiscoveryType, request: DiscoveryRequest, snapshot: MeshSnapshot, trustBundle: TrustBundle): { readonly nack: string } | undefined {
    let subscription = this.#subscriptions.get(type);
    // For the other types no names means that nothing is wanted any more.
    if (request.resourceNames.length === 0 && !wholeTypes.has(type)) {
      this.#subscriptions.delete(type);
      this.#failures.delete(type);
      return request.errorDetail ? { nack: request.errorDetail.message } : undefined;
    }
    if (!subscription) {
      subscription = new Subscription();
      this.#subscriptions.set(type, subscription);
      subscription.names = new Set(request.resourceNames);
      this.#send(type, subscription, snapshot, trustBundle, true);
      return undefined;
    }
    // An answer to a response that has been overtaken says nothing about the one that is under way.
    if (request.responseNonce !== '' && request.responseNonce !== subscription.nonce) return undefined;
    const names = new Set(request.resourceNames);
    const namesChanged = names.size !== subscription.names.size || [...names].some((name) => !subscription.names.has(name));
    subscription.names = names;
    let nack: { readonly nack: string } | undefined;
    if (request.responseNonce !== '') {
      if (request.errorDetail) {
        subscription.error = request.errorDetail.message.slice(0, 4096) || 'refused without a reason';
        nack = { nack: subscription.error };
        if (this.#tryWithoutPatches(type, subscription, snapshot, trustBundle)) return nack;
        if (this.#missing.learn(subscription.error) || this.#close(type, subscription, subscription.error)) {
          this.push(snapshot, trustBundle);
          return nack;
        }
      } else {
        subscription.error = undefined;
        subscription.accepted = subscription.resources;
        subscription.acknowledged = subscription.version;
        subscription.acknowledgedAt = new Date();
        if (this.#trial.accepted(type)) {
          this.push(snapshot, trustBundle);
          return undefined;
        }
      }
    }
    if (namesChanged) this.#send(type, subscription, snapshot, trustBundle, true);
    return nack;
  }

  /** Types that could not be generated, with the reason: the proxy keeps what it was sent before of these, and receives all others. */
  get failures(): ReadonlyMap<DiscoveryType, string> {
    return this.#failures;
  }

  /** Generates a type from another snapshot without sending it. Throws what generation throws. */
  attempt(type: DiscoveryType, snapshot: MeshSnapshot, trustBundle: TrustBundle): void {
    resourcesFor(type, this.#subscriptions.get(type)?.names ?? new Set(), this.view, snapshot, trustBundle, this.#patches(snapshot), () => {});
  }

  /** Sends every subscribed type whose content has changed, in the order that makes before it breaks. Returns how many were sent. */
  push(snapshot: MeshSnapshot, trustBundle: TrustBundle): number {
    let sent = 0;
    for (const type of discoveryTypes) {
      const subscription = this.#subscriptions.get(type);
      if (subscription && this.#send(type, subscription, snapshot, trustBundle, false)) sent++;
    }
    return sent;
  }

  /** What is not sent to this proxy since it does not know it, or has refused it. */
  shortfalls(): Shortfall[] {
    return [...this.#shortfalls.values()].flat();
  }

  /**
   * A resource that the proxy refuses, for a reason that is not a missing feature, stays in its last good version there. Where that version enforces other policies, or
   * is not known, the resource is replaced by one that refuses all traffic, so that no policy is dropped. Whether something was.
   */
  #close(type: DiscoveryType, subscription: Subscription, reason: string): boolean {
    if (type !== 'listener' && type !== 'route') return false;
    const accepted = new Map(subscription.accepted.map((any) => [nameOf(type, any), any]));
    const isNamed = subscription.generated.some((any) => reason.includes(nameOf(type, any)));
    let isClosed = false;
    for (const [i, any] of subscription.generated.entries()) {
      const name = nameOf(type, any);
      if ((isNamed && !reason.includes(name)) || securityOf(type, any) === '') continue;
      const key = keyOf(any);
      const before = subscription.closed.get(name);
      if (before?.key === key) {
        if (before.form === 'close') continue;
      } else {
        const current = accepted.get(name);
        const sent = subscription.resources[i];
        if (current !== undefined && sent !== undefined && securityOf(type, current) === securityOf(type, sent)) continue;
      }
      subscription.closed.set(name, { key, form: before?.key === key ? 'close' : 'http', reason });
      isClosed = true;
    }
    return isClosed;
  }

  /** What the proxy is sent of what was generated for it. */
  #limited(type: DiscoveryType, subscription: Subscription, generated: readonly Any[]): readonly Any[] {
    subscription.generated = generated;
    if (this.#missing.isEmpty && subscription.closed.size === 0) {
      this.#shortfalls.delete(type);
      return generated;
    }
    const { resources, shortfalls } = this.#missing.isEmpty ? { resources: [...generated], shortfalls: [] } : limitResources(type, generated, this.#missing);
    const closed: Shortfall[] = [];
    for (const [i, any] of generated.entries()) {
      const found = subscription.closed.size === 0 ? undefined : subscription.closed.get(nameOf(type, any));
      if (found === undefined || found.key !== keyOf(any)) continue;
      resources[i] = refusing(type, any, found.form);
      closed.push({ resource: `${type} ${nameOf(type, any)}`, feature: found.reason.slice(0, 500), effect: 'refuses' });
    }
    if (closed.length === 0) subscription.closed.clear();
    this.#shortfalls.set(type, [...shortfalls, ...closed]);
    return resources;
  }

  /** EnvoyFilters that are not in effect, since the proxy refuses what comes of them, and what it said. */
  get refusedFilters(): PatchTrial['leftOut'] {
    return this.#trial.leftOut;
  }

  /** Without a filter it may be right: one after the other is left out until the proxy accepts, so that all else goes on. */
  #tryWithoutPatches(type: DiscoveryType, subscription: Subscription, snapshot: MeshSnapshot, trustBundle: TrustBundle): boolean {
    if (type !== 'cluster' && type !== 'listener' && type !== 'route') return false;
    const patches = patchesFor(this.view, snapshot.envoyFilters);
    const reason = subscription.error ?? '';
    while (this.#trial.refused(type, reason, patches)) {
      if (!this.#send(type, subscription, snapshot, trustBundle, false)) continue;
      this.push(snapshot, trustBundle);
      return true;
    }
    // It is not because of a filter: those that were left out for the trial come back.
    return this.push(snapshot, trustBundle) > 0;
  }

  #patches(snapshot: MeshSnapshot): readonly Patch[] {
    if (snapshot.envoyFilters.length === 0) return [];
    return this.#trial.allowed(patchesFor(this.view, snapshot.envoyFilters));
  }

  status(): ProxyStatus {
    const types: Record<string, TypeStatus> = {};
    for (const type of discoveryTypes) {
      const subscription = this.#subscriptions.get(type);
      if (!subscription) continue;
      const state = subscription.error !== undefined ? 'nacked' : subscription.acknowledged === subscription.version ? 'synced' : 'stale';
      types[type] = {
        state,
        version: subscription.version,
        acknowledgedVersion: subscription.acknowledged,
        ...(subscription.error ? { error: subscription.error } : {}),
        sentAt: subscription.sentAt?.toISOString(),
        acknowledgedAt: subscription.acknowledgedAt?.toISOString(),
      };
    }
    const states = Object.values(types).map((status) => status.state);
    return {
      id: this.view.id,
      name: this.view.name,
      namespace: this.view.namespace,
      type: this.view.type,
      workload: this.view.workload,
      serviceAccount: this.view.serviceAccount,
      peer: this.peer,
      admin: this.view.admin,
      certificateGeneration: this.certificateGeneration,
      version: this.view.version,
      connectedAt: this.connectedAt.toISOString(),
      state: states.includes('nacked') ? 'nacked' : states.includes('stale') || states.length === 0 ? 'stale' : 'synced',
      types,
      generationErrors: Object.fromEntries(this.#failures),
      shortfalls: this.shortfalls(),
    };
  }

  /** Whether it has asked for a type. */
  wants(type: DiscoveryType): boolean {
    return this.#subscriptions.has(type);
  }

  /** What was last sent of a type, packed. */
  sent(type: DiscoveryType): readonly Any[] {
    return this.#subscriptions.get(type)?.resources ?? [];
  }

  #send(type: DiscoveryType, subscription: Subscription, snapshot: MeshSnapshot, trustBundle: TrustBundle, always: boolean): boolean {
    let resources: readonly Any[];
    try {
      const generated = resourcesFor(type, subscription.names, this.view, snapshot, trustBundle, this.#patches(snapshot), (patch) =>
        this.patched.add(patchKey(patch)),
      );
      resources = this.#limited(type, subscription, generated);
      this.#failures.delete(type);
    } catch (error) {
      this.#failures.set(type, messageOf(error));
      return false;
    }
    const version = contentVersion(resources);
    if (!always && version === subscription.version) return false;
    subscription.version = version;
    subscription.nonce = randomUUID();
    subscription.error = undefined;
    subscription.acknowledged = undefined;
    subscription.sentAt = new Date();
    subscription.resources = resources;
    this.responses.push(
      create(DiscoveryResponseSchema, {
        versionInfo: version,
        typeUrl: typeUrls[type],
        nonce: subscription.nonce,
        resources: [...resources],
        controlPlane: { identifier: 'mizzen-pilot' },
      }),
    );
    return true;
  }
}

export const patchKey = ({ filter, index }: Patch) => `${filter.namespace}/${filter.name}@${filter.revision}#${index}`;

class Subscription {
  names: ReadonlySet<string> = new Set();
  version = '';
  nonce = '';
  acknowledged: string | undefined = undefined;
  error: string | undefined = undefined;
  sentAt: Date | undefined = undefined;
  acknowledgedAt: Date | undefined = undefined;
  resources: readonly Any[] = [];
  /** As generated, before they were limited to what the proxy knows. */
  generated: readonly Any[] = [];
  /** The newest that the proxy has acknowledged on this stream. */
  accepted: readonly Any[] = [];
  /** By resource: the generated version that refuses all traffic instead. */
  readonly closed: Map<string, { readonly key: string; readonly form: RefusalForm; readonly reason: string }> = new Map();
}

export interface TypeStatus {
  readonly state: 'synced' | 'stale' | 'nacked';
  readonly version: string;
  readonly acknowledgedVersion: string | undefined;
  readonly error?: string;
  readonly sentAt: string | undefined;
  readonly acknowledgedAt: string | undefined;
}

export interface ProxyStatus {
  readonly id: string;
  readonly name: string;
  readonly namespace: string;
  readonly type: 'sidecar' | 'gateway';
  readonly workload: string;
  readonly serviceAccount: string;
  readonly peer: string;
  readonly certificateGeneration: string | undefined;
  readonly admin: string | undefined;
  readonly version: string;
  readonly connectedAt: string;
  readonly state: 'synced' | 'stale' | 'nacked';
  readonly types: Readonly<Record<string, TypeStatus>>;
  /** Types that could not be generated, with the reason. */
  readonly generationErrors: Readonly<Record<string, string>>;
  /** What this proxy does not know or has refused, and what follows from it. */
  readonly shortfalls: readonly Shortfall[];
}

function nameOf(type: DiscoveryType, any: Any): string {
  return type === 'listener' ? fromBinary(ListenerSchema, any.value).name : fromBinary(RouteConfigurationSchema, any.value).name;
}

const keyOf = (any: Any) => createHash('sha256').update(any.value).digest('base64');

/** The version is the content: the same configuration has the same version on every replica and after every restart. */
function contentVersion(resources: readonly Any[]): string {
  const hash = createHash('sha256');
  for (const resource of resources) {
    hash.update(`${resource.value.length}:`);
    hash.update(resource.value);
  }
  return hash.digest('hex').slice(0, 12);
}
