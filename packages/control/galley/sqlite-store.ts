import type { Resource } from '@mizzen/api';
import { errorBoundary, type Logger, MizzenError, messageOf, type Origin, silentLogger } from '@mizzen/common';
import { type Change, type ConfigStore, keyText, type ResourceKey, RevisionTooOld, StoreConflict, type StoredResource } from './config-store.ts';
import { isAccessProblem, isShortage, replaceStoreFile, type StoreContents, StoreFile } from './store-file.ts';

const watching = errorBoundary('store.watcher');
/** What the changes that a watch may still ask for hold in memory. A client that missed older ones lists again. */
const maxHistoryBytes = 64 * 1024 * 1024;

export interface SqliteStoreOptions {
  /** Changes that watches can begin with. */
  readonly historyLimit?: number | undefined;
  readonly maxHistoryBytes?: number | undefined;
  readonly logger?: Logger | undefined;
}

/** What is wrong with the store's file: an error while writes are refused. */
export interface StoreProblem {
  readonly level: 'error' | 'warning';
  readonly message: string;
}

/**
 * The embedded store: every resource in memory, every write through to one SQLite file before it is acknowledged. Made for one control plane and some ten
 * thousand objects. While it is open, memory is the configuration: a file that is found damaged is written again from memory, by `check` or by the next
 * change.
 */
export class SqliteStore implements ConfigStore {
  readonly #path: string;
  readonly #logger: Logger;
  readonly #resources: Map<string, StoredResource>;
  readonly #listeners: Set<(change: Change) => void>;
  readonly #history: Change[];
  readonly #historyLimit: number;
  readonly #maxHistoryBytes: number;
  /** The size of each change in the history, and of all. */
  readonly #historySizes: number[];
  #historyBytes: number;
  #file: StoreFile;
  #isClosed: boolean;
  #revision: number;
  /** Changes up to and including this revision are not in the history. */
  #forgotten: number;
  /** Why the newest attempt to write has failed; undefined: it has not. */
  #refusal: string | undefined;
  /** The newest damage that was mended. */
  #mended: string | undefined;

  constructor(path: string, options: SqliteStoreOptions = {}) {
    this.#path = path;
    this.#logger = options.logger ?? silentLogger;
    let file: StoreFile | undefined;
    try {
      file = new StoreFile(path);
      const contents = file.read();
      this.#file = file;
      this.#resources = resourcesOf(contents);
      this.#revision = contents.revision;
      this.#completeChecksums(contents);
    } catch (error) {
      file?.close();
      throw new MizzenError('store-unusable', `the configuration store cannot be used (${messageOf(error)}). ${remedyOf(error)}`, path, { cause: error });
    }
    this.#isClosed = false;
    this.#refusal = undefined;
    this.#mended = undefined;
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
    this.#write(revision, (file) => file.put({ key: text, revision, resource: json, origin: JSON.stringify(origin) }));
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
    this.#write(revision, (file) => file.remove(text, revision));
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

  /**
   * Compares the file with memory, and mends it where it is damaged. After a refused write it finds out whether the file can be written again. Call it from
   * time to time: SQLite does not notice damage to pages that it has in its cache.
   */
  check(): void {
    if (this.#isClosed) return;
    const damage = this.#damage();
    try {
      if (damage !== undefined) this.#mend(damage);
      else if (this.#refusal !== undefined) this.#file.tryToWrite(this.#revision);
      else return this.#file.checkpoint();
      if (this.#refusal !== undefined) this.#logger.info('the configuration store can be written again', { path: this.#path });
      this.#refusal = undefined;
    } catch (error) {
      this.#refused(error, damage);
    }
  }

  /** What is wrong with the file; nothing where it is sound. */
  problems(): StoreProblem[] {
    const found: StoreProblem[] = [];
    if (this.#refusal !== undefined) found.push({ level: 'error', message: this.#refusal });
    if (this.#mended !== undefined) found.push({ level: 'warning', message: this.#mended });
    return found;
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    // Closing moves the journal into the file, with any damage in it.
    this.check();
    this.#isClosed = true;
    this.#listeners.clear();
    this.#file.close();
  }

  #write(revision: number, change: (file: StoreFile) => void): void {
    try {
      change(this.#file);
    } catch (error) {
      const damage = isShortage(error) ? undefined : this.#damage();
      try {
        if (damage === undefined) throw error;
        this.#mend(damage);
        change(this.#file);
      } catch (again) {
        throw new MizzenError('store-write-failed', this.#refused(again, damage), this.#path, { cause: again });
      }
    }
    this.#refusal = undefined;
    this.#revision = revision;
  }

  #damage(): string | undefined {
    return this.#file.damage({ revision: this.#revision, count: this.#resources.size });
  }

  /** Writes the file again from memory. Throws where the new file cannot be written. */
  #mend(damage: string): void {
    const rows = [...this.#resources].map(([key, { revision, resource, origin }]) => {
      return { key, revision, resource: JSON.stringify(resource), origin: JSON.stringify(origin) };
    });
    const kept = replaceStoreFile(this.#path, { revision: this.#revision, rows }, () => this.#file.close());
    this.#file = new StoreFile(this.#path);
    const place = kept === undefined ? 'The damaged file could not be kept.' : `The damaged file is ${kept}; remove it when it has been examined.`;
    this.#mended = `the configuration store ${this.#path} was damaged (${damage}) and was written again from memory at ${new Date().toISOString()}, with nothing lost. ${place} Check the disk`;
    this.#logger.error(this.#mended);
  }

  /** Remembers and returns why a write is refused. */
  #refused(error: unknown, damage: string | undefined): string {
    const what =
      damage === undefined
        ? 'Make space on the disk, or give this user the right to write the file'
        : `The file is damaged (${damage}), and could not be replaced: make space on its disk, or check the disk`;
    const before = this.#refusal;
    this.#refusal = `the configuration store could not be written (${messageOf(error)}). Nothing was changed. ${what}: ${this.#path}. The control plane serves the configuration that it has in memory, and tries again`;
    if (before === undefined) this.#logger.error(this.#refusal);
    return `${this.#refusal}.`;
  }

  /** Rows of a release without checksums. A full disk puts them off until the next start. */
  #completeChecksums(contents: StoreContents): void {
    try {
      this.#file.completeChecksums(contents);
    } catch (error) {
      this.#logger.warn('the checksums of the configuration store could not be completed', { path: this.#path, error: messageOf(error) });
    }
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

function remedyOf(error: unknown): string {
  if (isAccessProblem(error)) return 'Make space on its disk, make the file and its folder writable for this user, and start again.';
  return (
    'Restore the file from a backup while the control plane is stopped, with the files -wal and -shm beside it removed. ' +
    'Without a backup move the file away: the mesh then starts without configuration, and running proxies receive none.'
  );
}

function resourcesOf({ rows }: StoreContents): Map<string, StoredResource> {
  const resources = new Map<string, StoredResource>();
  for (const row of rows) {
    const key = keyFromText(row.key);
    try {
      resources.set(keyText(key), { key, revision: row.revision, resource: JSON.parse(row.resource) as Resource, origin: JSON.parse(row.origin) as Origin });
    } catch (error) {
      throw new Error(`it is damaged: the object ${row.key.slice(0, 300)} cannot be read: ${messageOf(error)}`);
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
