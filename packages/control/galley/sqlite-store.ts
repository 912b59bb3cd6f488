import { chmodSync, closeSync, existsSync, openSync } from 'node:fs';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import type { Resource } from '@mizzen/api';
import { errorBoundary, MizzenError, messageOf, type Origin } from '@mizzen/common';
import { type Change, type ConfigStore, keyText, type ResourceKey, RevisionTooOld, StoreConflict, type StoredResource } from './config-store.ts';

const watching = errorBoundary('store.watcher');
/** What the changes that a watch may still ask for hold in memory. A client that missed older ones lists again. */
const maxHistoryBytes = 64 * 1024 * 1024;

/**
 * The embedded store: every resource in memory, every write through to one SQLite file before it is acknowledged (WAL with full
 * synchronisation). Made for one control plane and some ten thousand objects.
 */
export class SqliteStore implements ConfigStore {
  readonly #database: DatabaseSync;
  readonly #resources: Map<string, StoredResource>;
  readonly #listeners: Set<(change: Change) => void>;
  readonly #history: Change[];
  readonly #historyLimit: number;
  readonly #maxHistoryBytes: number;
  /** The size of each change in the history, and of all. */
  readonly #historySizes: number[];
  #historyBytes: number;
  readonly #upsert: StatementSync;
  readonly #delete: StatementSync;
  readonly #setRevision: StatementSync;
  #revision: number;
  /** Changes up to and including this revision are not in the history. */
  #forgotten: number;

  constructor(path: string, options: { readonly historyLimit?: number; readonly maxHistoryBytes?: number } = {}) {
    let database: DatabaseSync | undefined;
    try {
      if (path !== ':memory:') makePrivate(path);
      database = new DatabaseSync(path);
      database.exec(`
        PRAGMA journal_mode = WAL;
        PRAGMA synchronous = FULL;
        PRAGMA busy_timeout = 2000;
        CREATE TABLE IF NOT EXISTS resources (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, resource TEXT NOT NULL, origin TEXT NOT NULL) STRICT;
        CREATE TABLE IF NOT EXISTS revision (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL) STRICT;
        INSERT OR IGNORE INTO revision VALUES (1, 1);
      `);
      mustBeIntact(database);
      this.#database = database;
      this.#upsert = database.prepare(
        'INSERT INTO resources VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, resource = excluded.resource, origin = excluded.origin',
      );
      this.#delete = database.prepare('DELETE FROM resources WHERE key = ?');
      this.#setRevision = database.prepare('UPDATE revision SET value = ? WHERE id = 1');
      this.#resources = readResources(database);
      this.#revision = Number(database.prepare('SELECT value FROM revision WHERE id = 1').get()?.['value']);
      if (!Number.isSafeInteger(this.#revision)) throw new Error('it has no revision');
    } catch (error) {
      if (database?.isOpen) database.close();
      throw new MizzenError(
        'store-unusable',
        `the configuration store cannot be used (${messageOf(error)}). Restore the file from a backup while the control plane is stopped, with the files -wal and -shm beside it removed. ` +
          'Without a backup move the file away: the mesh then starts without configuration, and running proxies receive none.',
        path,
        { cause: error },
      );
    }
    this.#forgotten = this.#revision;
    this.#listeners = new Set();
    this.#history = [];
    this.#historyLimit = options.historyLimit ?? 10_000;
    this.#maxHistoryBytes = options.maxHistoryBytes ?? maxHistoryBytes;
    this.#historySizes = [];
    this.#historyBytes = 0;
  }

  revision(): number {
    return this.#revision;
  }

  async get(key: ResourceKey): Promise<StoredResource | undefined> {
    return this.#resources.get(keyText(key));
  }

  async list(group: string, kind: string, namespace?: string): Promise<{ items: StoredResource[]; revision: number }> {
    const prefix = namespace === undefined ? `${group}/${kind}/` : `${group}/${kind}/${namespace}/`;
    const items: StoredResource[] = [];
    for (const [text, stored] of this.#resources) if (text.startsWith(prefix)) items.push(stored);
    items.sort((a, b) => (keyText(a.key) < keyText(b.key) ? -1 : 1));
    return { items, revision: this.#revision };
  }

  async put(key: ResourceKey, resource: Resource, origin: Origin, expected: number | 'absent'): Promise<StoredResource> {
    const text = keyText(key);
    const previous = this.#resources.get(text);
    if (expected === 'absent' ? previous !== undefined : previous?.revision !== expected) throw new StoreConflict(previous);
    const revision = this.#revision + 1;
    const stored: StoredResource = { key, revision, origin, resource: { ...resource, metadata: { ...resource.metadata, resourceVersion: String(revision) } } };
    const json = JSON.stringify(stored.resource);
    this.#write(revision, () => this.#upsert.run(text, revision, json, JSON.stringify(origin)));
    this.#resources.set(text, stored);
    this.#announce({ type: previous ? 'modified' : 'added', stored, previous }, json.length);
    return stored;
  }

  async remove(key: ResourceKey, expected?: number): Promise<StoredResource | undefined> {
    const text = keyText(key);
    const previous = this.#resources.get(text);
    if (!previous) return undefined;
    if (expected !== undefined && previous.revision !== expected) throw new StoreConflict(previous);
    const revision = this.#revision + 1;
    this.#write(revision, () => this.#delete.run(text));
    this.#resources.delete(text);
    const stored = {
      ...previous,
      revision,
      resource: { ...previous.resource, metadata: { ...previous.resource.metadata, resourceVersion: String(revision) } },
    };
    this.#announce({ type: 'deleted', stored, previous }, JSON.stringify(stored.resource).length);
    return stored;
  }

  watch(since: number, listener: (change: Change) => void): () => void {
    if (since < this.#forgotten) throw new RevisionTooOld(this.#forgotten);
    for (const change of this.#history) if (change.stored.revision > since) listener(change);
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async close(): Promise<void> {
    this.#listeners.clear();
    if (this.#database.isOpen) this.#database.close();
  }

  #write(revision: number, change: () => void): void {
    try {
      this.#database.exec('BEGIN IMMEDIATE');
      change();
      this.#setRevision.run(revision);
      this.#database.exec('COMMIT');
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw new MizzenError(
        'store-write-failed',
        `the configuration store could not be written (${messageOf(error)}). Nothing was changed.`,
        this.#database.location() ?? '',
        { cause: error },
      );
    }
    this.#revision = revision;
  }

  #announce(change: Change, bytes: number): void {
    this.#history.push(change);
    this.#historySizes.push(bytes);
    this.#historyBytes += bytes;
    while (this.#history.length > this.#historyLimit || (this.#historyBytes > this.#maxHistoryBytes && this.#history.length > 1)) {
      this.#forgotten = this.#history.shift()!.stored.revision;
      this.#historyBytes -= this.#historySizes.shift() ?? 0;
    }
    // The change is stored: a listener that throws concerns neither its writer nor the other listeners.
    for (const listener of [...this.#listeners]) watching.run(() => listener(change));
  }
}

/** A damaged page would else be met later, at a write. Takes milliseconds for ten thousand objects. */
function mustBeIntact(database: DatabaseSync): void {
  const [first] = database.prepare('PRAGMA quick_check(1)').all();
  const found = String(first?.['quick_check']);
  if (found !== 'ok') throw new Error(`it is damaged: ${found.slice(0, 200)}`);
}

function readResources(database: DatabaseSync): Map<string, StoredResource> {
  const resources = new Map<string, StoredResource>();
  for (const row of database.prepare('SELECT key, revision, resource, origin FROM resources ORDER BY key').all()) {
    const key = keyFromText(String(row['key']));
    try {
      resources.set(keyText(key), {
        key,
        revision: Number(row['revision']),
        resource: JSON.parse(String(row['resource'])) as Resource,
        origin: JSON.parse(String(row['origin'])) as Origin,
      });
    } catch (error) {
      throw new Error(`it is damaged: the object ${String(row['key']).slice(0, 300)} cannot be read: ${messageOf(error)}`);
    }
  }
  return resources;
}

function keyFromText(text: string): ResourceKey {
  const parts = text.split('/');
  const [name, namespace, kind] = [parts.pop(), parts.pop(), parts.pop()];
  if (name === undefined || namespace === undefined || kind === undefined) throw new Error(`it is damaged: ${JSON.stringify(text.slice(0, 300))} is not a key`);
  return { group: parts.join('/'), kind, namespace, name };
}

/** The store holds keys. SQLite gives its journal files the mode of the database, so that this is set before there is one. */
function makePrivate(path: string): void {
  closeSync(openSync(path, 'a', 0o600));
  for (const file of [path, `${path}-wal`, `${path}-shm`]) if (existsSync(file)) chmodSync(file, 0o600);
}
