import { findKind, type WorkloadEntrySpec, type WorkloadGroupSpec } from '@mizzen/api';
import { type Logger, messageOf } from '@mizzen/common';
import type { ResourceRegistry } from '../../galley/resource-registry.ts';
import { splitAddress } from '../generate/names.ts';
import type { ProxyView } from '../proxy-view.ts';
import { tlsModeLabel, unhealthyAnnotation, workloadNameAnnotation } from './build-services.ts';

/**
 * Self-registration: a connected sidecar that asks for it has a WorkloadEntry while it is there. The entry outlives a short
 * disconnect, and a restart of the control plane, so that neither takes endpoints away from anybody.
 */
export const registeredAnnotation = 'mizzen.dev/registered-by';
/** By this a sidecar says that it is about to end for good. */
const leavingReason = 'shutting down';
const manager = 'mizzen-registration';
const workloadEntry = findKind('networking.istio.io', 'WorkloadEntry')!;

export interface RegistrationOptions {
  readonly registry: ResourceRegistry;
  readonly logger: Logger;
  /** How long an entry stays after its sidecar has gone, in milliseconds. */
  readonly graceMs?: number;
}

export class Registration {
  readonly #options: RegistrationOptions;
  readonly #graceMs: number;
  readonly #removals: Map<string, NodeJS.Timeout>;
  /** Writes for one entry happen one after another. */
  readonly #queues: Map<string, Promise<void>>;
  readonly #connected: Map<string, number>;
  /** Those that have said they are shutting down. */
  readonly #leaving: Set<string>;
  #isClosed: boolean;

  constructor(options: RegistrationOptions) {
    this.#options = options;
    this.#graceMs = options.graceMs ?? 10_000;
    this.#removals = new Map();
    this.#queues = new Map();
    this.#connected = new Map();
    this.#leaving = new Set();
    this.#isClosed = false;
  }

  /** Gives the entries of an earlier run the grace period to come back. */
  async start(): Promise<void> {
    const { items } = await this.#options.registry.store.list('networking.istio.io', 'WorkloadEntry');
    for (const stored of items) {
      if (stored.resource.metadata.annotations?.[registeredAnnotation]) this.#removeLater(stored.key.namespace, stored.key.name, this.#graceMs * 3);
    }
  }

  connected(view: ProxyView): void {
    if (!view.registers) return;
    const key = `${view.namespace}/${view.name}`;
    this.#connected.set(key, (this.#connected.get(key) ?? 0) + 1);
    clearTimeout(this.#removals.get(key));
    this.#removals.delete(key);
    this.#enqueue(key, () => this.#write(view, undefined));
  }

  disconnected(view: ProxyView): void {
    if (!view.registers) return;
    const key = `${view.namespace}/${view.name}`;
    const left = (this.#connected.get(key) ?? 1) - 1;
    if (left > 0) this.#connected.set(key, left);
    else {
      this.#connected.delete(key);
      // Who has said that it goes will not come back.
      this.#removeLater(view.namespace, view.name, this.#leaving.delete(key) ? 0 : this.#graceMs);
    }
  }

  /** `reason` is why the application is not healthy; undefined when it is. */
  healthChanged(view: ProxyView, reason: string | undefined): void {
    if (!view.registers) return;
    const key = `${view.namespace}/${view.name}`;
    if (reason === leavingReason) this.#leaving.add(key);
    else this.#leaving.delete(key);
    this.#enqueue(`${view.namespace}/${view.name}`, () => this.#write(view, reason));
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    for (const timer of this.#removals.values()) clearTimeout(timer);
    await Promise.all(this.#queues.values());
  }

  #enqueue(key: string, task: () => Promise<void>): void {
    const next = (this.#queues.get(key) ?? Promise.resolve())
      .then(task)
      .catch((error: unknown) => this.#options.logger.error('a workload could not be registered', { workload: key, error: messageOf(error) }));
    this.#queues.set(key, next);
  }

  async #write(view: ProxyView, unhealthyReason: string | undefined): Promise<void> {
    const ports: Record<string, number> = {};
    for (const inbound of view.inbound) {
      const { port } = splitAddress(inbound.listen);
      ports[String(inbound.port)] = port;
      if (inbound.name) ports[inbound.name] = port;
    }
    const group = await this.#groupOf(view);
    const template = group?.template ?? {};
    const locality = view.locality || template.locality;
    const spec: WorkloadEntrySpec = {
      address: view.address,
      ports: { ...template.ports, ...ports },
      labels: { ...group?.metadata?.labels, ...template.labels, ...view.labels, [tlsModeLabel]: 'istio' },
      serviceAccount: view.serviceAccount,
      ...(template.weight ? { weight: template.weight } : {}),
      ...(locality ? { locality } : {}),
    };
    const resource = {
      apiVersion: 'networking.istio.io/v1',
      kind: 'WorkloadEntry',
      metadata: {
        name: view.name,
        namespace: view.namespace,
        annotations: {
          ...group?.metadata?.annotations,
          [registeredAnnotation]: view.id,
          [workloadNameAnnotation]: view.workload,
          ...(unhealthyReason === undefined ? {} : { [unhealthyAnnotation]: unhealthyReason.slice(0, 256) || 'not healthy' }),
        },
      },
      spec,
    };
    await this.#options.registry.apply(workloadEntry, view.namespace, view.name, resource, true, { manager, origin: { source: 'api', name: manager } });
  }

  /** The WorkloadGroup that the sidecar says it is of (Istio's `AUTO_REGISTER_GROUP`): what it has for all of its workloads. */
  async #groupOf(view: ProxyView): Promise<WorkloadGroupSpec | undefined> {
    const name = view.metadata['AUTO_REGISTER_GROUP'];
    if (typeof name !== 'string' || name === '') return undefined;
    const stored = await this.#options.registry.store.get({ group: 'networking.istio.io', kind: 'WorkloadGroup', namespace: view.namespace, name });
    if (!stored)
      this.#options.logger.warn('a sidecar is of a WorkloadGroup that does not exist; it is registered without it', {
        workload: `${view.namespace}/${view.name}`,
        group: name,
      });
    return stored?.resource.spec as WorkloadGroupSpec | undefined;
  }

  #removeLater(namespace: string, name: string, afterMs: number): void {
    if (this.#isClosed) return;
    const key = `${namespace}/${name}`;
    clearTimeout(this.#removals.get(key));
    const timer = setTimeout(() => {
      this.#removals.delete(key);
      this.#enqueue(key, async () => {
        if (this.#connected.has(key)) return;
        if (await this.#options.registry.store.remove({ group: 'networking.istio.io', kind: 'WorkloadEntry', namespace, name }))
          this.#options.logger.info('a workload is gone', { workload: key });
      });
    }, afterMs);
    this.#removals.set(key, timer);
  }
}
