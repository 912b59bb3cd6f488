import { findKind, type WorkloadEntrySpec } from '@mizzen/api';
import { Backoff, errorBoundary, type Logger, messageOf } from '@mizzen/common';
import { ApiError } from '../../galley/api-error.ts';
import type { ResourceRegistry } from '../../galley/resource-registry.ts';
import { splitAddress } from '../generate/names.ts';
import type { ProxyView } from '../proxy-view.ts';
import { tlsModeLabel, unhealthyAnnotation, workloadNameAnnotation } from './build-services.ts';
import { registeredAnnotation, type WorkloadBinding } from './workload-bindings.ts';

const boundary = errorBoundary('registration');

/**
 * Self-registration: a connected sidecar that asks for it has a WorkloadEntry while it is there. Name, labels, service account and weight are those of the
 * object that binds its service account (workload-bindings.ts); an entry that was not made by registration is never overwritten. The entry outlives a short
 * disconnect and a restart of the control plane, so that neither takes endpoints away.
 */
export { registeredAnnotation };

const defaultRetryMs = 500;
const maxRetryMs = 30_000;

/** By this a sidecar says that it is about to end for good. */
const leavingReason = 'shutting down';
const manager = 'mizzen-registration';
const workloadEntry = findKind('networking.istio.io', 'WorkloadEntry')!;

export interface RegistrationOptions {
  readonly registry: ResourceRegistry;
  readonly logger: Logger;
  /** How long an entry stays after its sidecar has gone, in milliseconds. */
  readonly graceMs?: number;
  /** When a write that has failed is repeated first, in milliseconds; later ones wait up to 30 s. Default: 500. */
  readonly retryMs?: number;
}

/** A proxy's stream, as far as registration needs it. */
export interface Member {
  readonly view: ProxyView;
  readonly binding: WorkloadBinding | undefined;
}

export class Registration {
  readonly #options: RegistrationOptions;
  readonly #graceMs: number;
  readonly #removals: Map<string, NodeJS.Timeout>;
  /** Of entries whose last write has failed: when it is repeated. */
  readonly #retries: Map<string, { readonly backoff: Backoff; timer: NodeJS.Timeout | undefined }>;
  /** Writes for one entry happen one after another. */
  readonly #queues: Map<string, Promise<void>>;
  /** Streams of each registered workload, the newest last. */
  readonly #connected: Map<string, readonly Member[]>;
  /** Those that have said they are shutting down. */
  readonly #leaving: Set<string>;
  /** Why the application of a workload is not healthy. */
  readonly #unhealthy: Map<string, string>;
  #isClosed: boolean;

  constructor(options: RegistrationOptions) {
    this.#options = options;
    this.#graceMs = options.graceMs ?? 10_000;
    this.#removals = new Map();
    this.#retries = new Map();
    this.#queues = new Map();
    this.#connected = new Map();
    this.#leaving = new Set();
    this.#unhealthy = new Map();
    this.#isClosed = false;
  }

  /** Gives the entries of an earlier run the grace period to come back. */
  async start(): Promise<void> {
    const { items } = await this.#options.registry.store.list('networking.istio.io', 'WorkloadEntry');
    for (const stored of items) {
      if (stored.resource.metadata.annotations?.[registeredAnnotation] !== undefined)
        this.#removeLater(stored.key.namespace, stored.key.name, this.#graceMs * 3);
    }
  }

  connected(member: Member): void {
    const { view } = member;
    if (!view.registers) return;
    const key = `${view.namespace}/${view.name}`;
    const members = this.#connected.get(key) ?? [];
    this.#connected.set(key, [...members, member]);
    clearTimeout(this.#removals.get(key));
    this.#removals.delete(key);
    this.#unhealthy.delete(key);
    this.#writeSoon(key);
  }

  disconnected(member: Member): void {
    const { view } = member;
    const key = `${view.namespace}/${view.name}`;
    const members = this.#connected.get(key);
    if (!members?.includes(member)) return;
    const left = members.filter((each) => each !== member);
    if (left.length > 0) {
      this.#connected.set(key, left);
      // Without the newest stream, the entry states what the one before has stated.
      if (members.at(-1) === member) this.#writeSoon(key);
    } else {
      this.#connected.delete(key);
      this.#unhealthy.delete(key);
      // A sidecar that has announced its end will not return.
      this.#removeLater(view.namespace, view.name, this.#leaving.delete(key) ? 0 : this.#graceMs);
    }
  }

  /** The object that binds the workload has changed. */
  changed(member: Member): void {
    const { view } = member;
    const key = `${view.namespace}/${view.name}`;
    if (this.#connected.get(key)?.at(-1) !== member || !view.registers) return;
    this.#writeSoon(key);
  }

  /** `reason` is why the application is not healthy; undefined when it is. */
  healthChanged(member: Member, reason: string | undefined): void {
    const { view } = member;
    if (!view.registers) return;
    const key = `${view.namespace}/${view.name}`;
    if (reason === leavingReason) this.#leaving.add(key);
    else this.#leaving.delete(key);
    if (reason === undefined) this.#unhealthy.delete(key);
    else this.#unhealthy.set(key, reason);
    this.#writeSoon(key);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    for (const timer of this.#removals.values()) clearTimeout(timer);
    for (const { timer } of this.#retries.values()) clearTimeout(timer);
    await Promise.all(this.#queues.values());
  }

  #enqueue(key: string, task: () => Promise<void>): void {
    const next = (this.#queues.get(key) ?? Promise.resolve())
      .then(() => {
        boundary.enter();
        return task();
      })
      .then(() => void this.#retries.delete(key))
      .catch((error: unknown) => {
        if (!(error instanceof ApiError)) boundary.unexpected(error);
        const retryMs = this.#retryLater(key, task);
        this.#options.logger.error('a workload could not be registered; it will be tried again', { workload: key, error: messageOf(error), retryMs });
      });
    this.#queues.set(key, next);
  }

  /** Repeats a task unless a newer one of the entry has succeeded by then. Returns when, in milliseconds. */
  #retryLater(key: string, task: () => Promise<void>): number {
    const retry = this.#retries.get(key) ?? { backoff: new Backoff(this.#options.retryMs ?? defaultRetryMs, maxRetryMs), timer: undefined };
    this.#retries.set(key, retry);
    clearTimeout(retry.timer);
    const delayMs = Math.round(retry.backoff.nextMs());
    const again = () => {
      if (!this.#isClosed && this.#retries.get(key) === retry) this.#enqueue(key, task);
    };
    if (!this.#isClosed) retry.timer = boundary.after(delayMs, again, () => this.#retryLater(key, task)).unref();
    return delayMs;
  }

  /** The entry states what the newest stream of its workload has stated by then. */
  #writeSoon(key: string): void {
    this.#enqueue(key, async () => {
      const member = this.#connected.get(key)?.at(-1);
      if (member?.view.registers) await this.#write(member);
    });
  }

  async #write({ view, binding }: Member): Promise<void> {
    if (binding === undefined) return;
    const unhealthyReason = this.#unhealthy.get(`${view.namespace}/${view.name}`);
    const { registry, logger } = this.#options;
    const existing = await registry.store.get({ group: workloadEntry.group, kind: workloadEntry.kind, namespace: view.namespace, name: view.name });
    if (existing !== undefined && existing.resource.metadata.annotations?.[registeredAnnotation] === undefined) {
      logger.warn('a workload is not registered: a WorkloadEntry of its name exists that registration did not make', {
        workload: `${view.namespace}/${view.name}`,
      });
      return;
    }
    const ports: Record<string, number> = {};
    for (const inbound of view.inbound) {
      const { port } = splitAddress(inbound.listen);
      ports[String(inbound.port)] = port;
      if (inbound.name) ports[inbound.name] = port;
    }
    const { template } = binding;
    const spec: WorkloadEntrySpec = {
      address: view.address,
      ports: { ...template.ports, ...ports },
      labels: { ...binding.labels, [tlsModeLabel]: 'istio' },
      serviceAccount: binding.serviceAccount,
      ...(template.weight ? { weight: template.weight } : {}),
      ...(view.locality ? { locality: view.locality } : {}),
    };
    const resource = {
      apiVersion: 'networking.istio.io/v1',
      kind: 'WorkloadEntry',
      metadata: {
        name: view.name,
        namespace: view.namespace,
        annotations: {
          ...binding.annotations,
          [registeredAnnotation]: view.id,
          [workloadNameAnnotation]: view.workload,
          ...(unhealthyReason === undefined ? {} : { [unhealthyAnnotation]: unhealthyReason.slice(0, 256) || 'not healthy' }),
        },
      },
      spec,
    };
    await registry.apply(workloadEntry, view.namespace, view.name, resource, true, { manager, origin: { source: 'api', name: manager } });
  }

  #removeLater(namespace: string, name: string, afterMs: number): void {
    if (this.#isClosed) return;
    const key = `${namespace}/${name}`;
    clearTimeout(this.#removals.get(key));
    const remove = () => {
      this.#removals.delete(key);
      this.#enqueue(key, async () => {
        if (this.#connected.has(key)) return;
        if (await this.#options.registry.store.remove({ group: 'networking.istio.io', kind: 'WorkloadEntry', namespace, name }))
          this.#options.logger.info('a workload is gone', { workload: key });
      });
    };
    const timer = boundary.after(afterMs, remove, () => this.#removeLater(namespace, name, afterMs));
    this.#removals.set(key, timer);
  }
}
