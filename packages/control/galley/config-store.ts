import type { Resource } from '@mizzen/api';
import type { Origin } from '@mizzen/common';

/**
 * Where resources are kept: a keyed table with one revision counter for all of them, as etcd has it. Galley's registry gives meaning
 * to what is stored; a store only keeps, orders and announces. Implementations: ./sqlite-store.ts.
 */
export interface ConfigStore {
  /** The revision of the newest change. Revisions grow by one with each change and are never used twice. */
  revision(): number;
  get(key: ResourceKey): Promise<StoredResource | undefined>;
  /** All resources of a kind, or those of one namespace, ordered by namespace and name, as of the returned revision. */
  list(group: string, kind: string, namespace?: string): Promise<{ readonly items: readonly StoredResource[]; readonly revision: number }>;
  /**
   * Writes a resource if the stored one still has revision `expected` (`absent`: if there is none). Its `metadata.resourceVersion` is
   * set to the new revision. Throws `StoreConflict` otherwise. Durable when the promise resolves.
   */
  put(key: ResourceKey, resource: Resource, origin: Origin, expected: number | 'absent'): Promise<StoredResource>;
  /** Removes a resource if it still has revision `expected`; without `expected`, whatever is there. Resolves to what was removed. */
  remove(key: ResourceKey, expected?: number): Promise<StoredResource | undefined>;
  /**
   * Announces every change after `since` in order: first the ones already made, synchronously, then each as it happens.
   * Throws `RevisionTooOld` when the changes since then are no longer known. Returns the function that ends the watch.
   */
  watch(since: number, listener: (change: Change) => void): () => void;
  close(): Promise<void>;
}

export interface ResourceKey {
  readonly group: string;
  readonly kind: string;
  /** Empty for cluster-scoped kinds. */
  readonly namespace: string;
  readonly name: string;
}

export interface StoredResource {
  readonly key: ResourceKey;
  readonly resource: Resource;
  readonly origin: Origin;
  readonly revision: number;
}

export interface Change {
  readonly type: 'added' | 'modified' | 'deleted';
  /** The resource after the change; for `deleted`, the last one, carrying the revision of the deletion. */
  readonly stored: StoredResource;
  /** What was stored before; absent for `added`. */
  readonly previous: StoredResource | undefined;
}

export class StoreConflict extends Error {
  readonly current: StoredResource | undefined;
  constructor(current: StoredResource | undefined) {
    super('the stored resource has changed');
    this.current = current;
  }
}

export class RevisionTooOld extends Error {
  readonly oldest: number;
  constructor(oldest: number) {
    super('the revision is too old');
    this.oldest = oldest;
  }
}

export function keyText(key: ResourceKey): string {
  return `${key.group}/${key.kind}/${key.namespace}/${key.name}`;
}
