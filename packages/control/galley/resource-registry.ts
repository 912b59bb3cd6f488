import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { decodeObject, type Kind, preferredApiVersion, type Resource } from '@mizzen/api';
import type { Origin } from '@mizzen/common';
import { ApiError, alreadyExists, badRequest, conflict, invalidResource, notFound } from './api-error.ts';
import { type ConfigStore, type ResourceKey, StoreConflict, type StoredResource } from './config-store.ts';
import { withDefaults } from './defaults.ts';
import { applyServerSide, recordUpdate } from './patch/server-side-apply.ts';

/**
 * The rules of the configuration API, whoever calls it (an HTTP client, the directory source, pilot's registration): what is checked,
 * what the server sets, and when a write is a conflict.
 */
export interface WriteContext {
  /** Who writes: the field manager that kubectl names, or a component of Mizzen. */
  readonly manager: string;
  readonly origin: Origin;
  readonly dryRun?: boolean;
  /** Throws when the writer may not bring this object into being. Called with what would be stored, whatever the form of the write. */
  readonly authorize?: ((namespace: string, name: string, object: Resource) => void) | undefined;
}

/** An object as it is stored, with the fields that each manager owns. A body has 3 MiB; patches could let an object grow without end. */
const maxObjectBytes = 6 * 1024 * 1024;

/** Why a well-formed resource is not accepted, given what else is stored; undefined: it is accepted. */
export type Refusal = (resource: Resource, store: ConfigStore) => string | undefined | Promise<string | undefined>;

export class ResourceRegistry {
  readonly store: ConfigStore;
  readonly #refusal: Refusal;
  readonly #now: () => Date;

  /** `refusal` says why a well-formed resource is not taken all the same; undefined when it is. */
  constructor(store: ConfigStore, refusal: Refusal = () => undefined, now: () => Date = () => new Date()) {
    this.store = store;
    this.#refusal = refusal;
    this.#now = now;
  }

  async get(kind: Kind, namespace: string, name: string): Promise<StoredResource> {
    const stored = await this.store.get(keyOf(kind, namespace, name));
    if (!stored) throw notFound(kind, name);
    return stored;
  }

  async create(kind: Kind, namespace: string, value: unknown, context: WriteContext): Promise<StoredResource> {
    const resource = await this.#decode(kind, namespace, withGeneratedName(value));
    await this.#requireNamespace(kind, resource.metadata.namespace ?? '');
    if (resource.metadata.resourceVersion) throw badRequest('resourceVersion should not be set on objects to be created');
    const created = this.#stamp(recordUpdate(undefined, resource, context.manager, this.#time()), undefined);
    return this.#put(kind, created, context, 'absent', () => alreadyExists(kind, resource.metadata.name));
  }

  /** Replaces an object (PUT). With `metadata.resourceVersion`, only if it is still that one. */
  async update(kind: Kind, namespace: string, name: string, value: unknown, context: WriteContext, subresource?: 'status'): Promise<StoredResource> {
    const live = await this.get(kind, namespace, name);
    return this.#replace(kind, live, value, context, subresource);
  }

  /** Reads, changes and writes an object, again from the start when somebody else wrote in between. */
  async change(
    kind: Kind,
    namespace: string,
    name: string,
    change: (live: Resource) => unknown,
    context: WriteContext,
    subresource?: 'status',
  ): Promise<StoredResource> {
    for (let attempt = 0; ; attempt++) {
      const live = await this.get(kind, namespace, name);
      try {
        return await this.#replace(kind, live, change(live.resource), context, subresource);
      } catch (error) {
        const isRace = error instanceof ApiError && error.reason === 'Conflict' && error.cause === raced;
        if (!isRace || attempt >= 5) throw error;
      }
    }
  }

  /** Server-side apply: creates or merges. `created` says which. */
  async apply(
    kind: Kind,
    namespace: string,
    name: string,
    value: Record<string, unknown>,
    force: boolean,
    context: WriteContext,
  ): Promise<{ stored: StoredResource; created: boolean }> {
    const live = await this.store.get(keyOf(kind, namespace, name));
    const metadata = { ...((value['metadata'] ?? {}) as Record<string, unknown>), name, ...(kind.isNamespaced ? { namespace } : {}) };
    const merged = applyServerSide(live?.resource, { ...value, metadata }, context.manager, force, this.#time());
    const resource = await this.#decode(kind, namespace, merged);
    if (live) {
      // Who owns what is part of an apply even when no value changes; where it came from matters when a file says so.
      const unchanged =
        isDeepStrictEqual(withoutBookkeeping(resource), withoutBookkeeping(live.resource)) && isDeepStrictEqual(ownersOf(resource), ownersOf(live.resource));
      const sameOrigin = context.origin.source === 'api' || isDeepStrictEqual(context.origin, live.origin);
      if (unchanged && sameOrigin) return { stored: live, created: false };
      return { stored: await this.#put(kind, this.#stamp(resource, live.resource), context, live.revision, () => conflict(kind, name)), created: false };
    }
    await this.#requireNamespace(kind, namespace);
    return { stored: await this.#put(kind, this.#stamp(resource, undefined), context, 'absent', () => conflict(kind, name)), created: true };
  }

  async delete(
    kind: Kind,
    namespace: string,
    name: string,
    options: { readonly resourceVersion?: string; readonly uid?: string; readonly dryRun?: boolean } = {},
  ): Promise<StoredResource> {
    const live = await this.get(kind, namespace, name);
    if (options.uid && options.uid !== live.resource.metadata.uid) throw conflict(kind, name);
    if (options.resourceVersion && options.resourceVersion !== live.resource.metadata.resourceVersion) throw conflict(kind, name);
    if (options.dryRun) return live;
    return (await this.store.remove(live.key, options.resourceVersion ? live.revision : undefined)) ?? live;
  }

  async #replace(kind: Kind, live: StoredResource, value: unknown, context: WriteContext, subresource?: 'status'): Promise<StoredResource> {
    const { namespace, name } = live.key;
    const decoded = await this.#decode(kind, namespace, value, subresource);
    if (decoded.metadata.name !== name) throw badRequest(`the name of the object (${decoded.metadata.name}) does not match the name on the URL (${name})`);
    const version = decoded.metadata.resourceVersion;
    if (version && version !== live.resource.metadata.resourceVersion) throw conflict(kind, name);
    // A write to the object leaves its status alone, and a write to its status leaves all the rest alone.
    const resource = (subresource === 'status' ? { ...live.resource, status: decoded.status } : keepStatus(decoded, live.resource)) as Resource;
    if (isDeepStrictEqual(withoutBookkeeping(resource), withoutBookkeeping(live.resource))) return live;
    const recorded = recordUpdate(live.resource, resource, context.manager, this.#time(), subresource);
    return this.#put(kind, this.#stamp(recorded, live.resource), subresource === 'status' ? { ...context, origin: live.origin } : context, live.revision, () =>
      Object.assign(conflict(kind, name), { cause: raced }),
    );
  }

  async #decode(kind: Kind, namespace: string, value: unknown, subresource?: 'status'): Promise<Resource> {
    const decoded = decodeObject(value, { defaultNamespace: namespace || 'default' });
    if ('problems' in decoded) {
      const metadata = (value as { metadata?: { name?: unknown } } | null)?.metadata;
      throw invalidResource(kind.kind, String(metadata?.name ?? ''), decoded.problems);
    }
    const { resource } = decoded;
    if (resource.kind !== kind.kind) throw badRequest(`the object is a ${resource.kind}, but the URL is for ${kind.plural}`);
    if (kind.isNamespaced && namespace && resource.metadata.namespace !== namespace)
      throw badRequest(`the namespace of the object (${resource.metadata.namespace}) does not match the namespace on the request (${namespace})`);
    // A status says what has become of an object, also of one that would be refused today.
    const refusal = subresource === 'status' ? undefined : await this.#refusal(resource, this.store);
    if (refusal)
      throw new ApiError(422, 'Invalid', `${resource.kind} "${resource.metadata.name}" is refused: ${refusal}`, {
        name: resource.metadata.name,
        kind: resource.kind,
      });
    return withDefaults({ ...resource, apiVersion: preferredApiVersion(kind) });
  }

  #stamp(resource: Resource, live: Resource | undefined): Resource {
    const specChanged = live === undefined || !isDeepStrictEqual(withoutStatus(resource), withoutStatus(live));
    const { resourceVersion: _, generateName: __, ...metadata } = resource.metadata;
    return {
      ...resource,
      metadata: {
        ...metadata,
        uid: live?.metadata.uid ?? randomUUID(),
        creationTimestamp: live?.metadata.creationTimestamp ?? this.#time(),
        generation: live ? (live.metadata.generation ?? 1) + (specChanged ? 1 : 0) : 1,
      },
    };
  }

  async #put(kind: Kind, resource: Resource, context: WriteContext, expected: number | 'absent', onConflict: () => ApiError): Promise<StoredResource> {
    const key = keyOf(kind, resource.metadata.namespace ?? '', resource.metadata.name);
    const bytes = Buffer.byteLength(JSON.stringify(resource));
    if (bytes > maxObjectBytes)
      throw new ApiError(
        413,
        'RequestEntityTooLarge',
        `${kind.kind} "${key.name}" would have ${bytes} bytes, with its managedFields; the limit is ${maxObjectBytes}`,
      );
    context.authorize?.(key.namespace, key.name, resource);
    if (context.dryRun) {
      const current = await this.store.get(key);
      if (expected === 'absent' ? current : current?.revision !== expected) throw onConflict();
      return { key, resource, origin: context.origin, revision: this.store.revision() };
    }
    try {
      return await this.store.put(key, resource, context.origin, expected);
    } catch (error) {
      if (error instanceof StoreConflict) throw onConflict();
      throw error;
    }
  }

  async #requireNamespace(kind: Kind, namespace: string): Promise<void> {
    if (!kind.isNamespaced) return;
    if (!(await this.store.get({ group: '', kind: 'Namespace', namespace: '', name: namespace }))) {
      throw new ApiError(404, 'NotFound', `namespaces "${namespace}" not found: create it first, by applying a v1 Namespace of this name`, {
        name: namespace,
        kind: 'namespaces',
      });
    }
  }

  #time(): string {
    return `${this.#now().toISOString().slice(0, 19)}Z`;
  }
}

const raced = Symbol('another writer was faster');

export function keyOf(kind: Kind, namespace: string, name: string): ResourceKey {
  return { group: kind.group, kind: kind.kind, namespace: kind.isNamespaced ? namespace : '', name };
}

function keepStatus(resource: Resource, live: Resource): Resource {
  const { status: _, ...rest } = resource;
  return (live.status === undefined ? rest : { ...rest, status: live.status }) as Resource;
}

/** What decides whether a write changes anything: everything but what the server keeps for itself. */
function withoutBookkeeping(resource: Resource): unknown {
  const { resourceVersion: _, managedFields: __, generation: ___, uid: ____, creationTimestamp: _____, ...metadata } = resource.metadata;
  return { ...resource, metadata };
}

/** Which manager owns which fields, without when it said so. */
function ownersOf(resource: Resource): unknown {
  return (resource.metadata.managedFields ?? []).map(({ time: _, ...entry }) => entry);
}

/** What `metadata.generation` counts the changes of. */
function withoutStatus(resource: Resource): unknown {
  const { status: _, metadata: __, ...rest } = resource;
  return rest;
}

function withGeneratedName(value: unknown): unknown {
  const metadata = (value as { metadata?: { name?: unknown; generateName?: unknown } } | null)?.metadata;
  if (!metadata || metadata.name !== undefined || typeof metadata.generateName !== 'string') return value;
  return { ...(value as object), metadata: { ...metadata, name: `${metadata.generateName}${randomUUID().replaceAll('-', '').slice(0, 5)}` } };
}
