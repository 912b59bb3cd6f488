import { createHash } from 'node:crypto';
import { chmodSync, closeSync, existsSync, fsyncSync, linkSync, openSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { messageOf } from '@mizzen/common';

/** A resource as the file holds it: JSON texts under the text of its key. */
export interface StoreRow {
  readonly key: string;
  readonly revision: number;
  readonly resource: string;
  readonly origin: string;
}

export interface StoreContents {
  readonly revision: number;
  readonly rows: readonly StoreRow[];
}

const probeBytes = 64 * 1024;

const tables = `
  CREATE TABLE IF NOT EXISTS resources (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, resource TEXT NOT NULL, origin TEXT NOT NULL) STRICT;
  CREATE TABLE IF NOT EXISTS revision (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL) STRICT;
  INSERT OR IGNORE INTO revision VALUES (1, 1);
  CREATE TABLE IF NOT EXISTS checksums (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, sha256 TEXT NOT NULL) STRICT;
  CREATE TABLE IF NOT EXISTS checked (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL) STRICT;
  INSERT OR IGNORE INTO checked VALUES (1, 0);
`;

/**
 * The store's SQLite file: one transaction for each change (WAL with full synchronisation), and a checksum of each resource. SQLite verifies the
 * structure of its pages, not the values in them; the checksums cover the values. Rows that a release without checksums has written are newer than
 * the revision in `checked`; they receive theirs when the file is opened.
 */
export class StoreFile {
  readonly path: string;
  readonly #database: DatabaseSync;
  readonly #upsert: StatementSync;
  readonly #delete: StatementSync;
  readonly #upsertChecksum: StatementSync;
  readonly #deleteChecksum: StatementSync;
  readonly #setRevision: StatementSync;
  readonly #setChecked: StatementSync;

  /** Throws what SQLite throws. */
  constructor(path: string) {
    this.path = path;
    if (path !== ':memory:') makePrivate(path);
    const database = new DatabaseSync(path);
    try {
      database.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 2000; ${tables}`);
      this.#database = database;
      this.#upsert = database.prepare(
        'INSERT INTO resources VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, resource = excluded.resource, origin = excluded.origin',
      );
      this.#delete = database.prepare('DELETE FROM resources WHERE key = ?');
      this.#upsertChecksum = database.prepare(
        'INSERT INTO checksums VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, sha256 = excluded.sha256',
      );
      this.#deleteChecksum = database.prepare('DELETE FROM checksums WHERE key = ?');
      this.#setRevision = database.prepare('UPDATE revision SET value = ? WHERE id = 1');
      this.#setChecked = database.prepare('UPDATE checked SET revision = ? WHERE id = 1');
    } catch (error) {
      database.close();
      throw error;
    }
  }

  /** All that the file holds. Throws an Error that says what is damaged. */
  read(): StoreContents {
    return contentsOf(this.#database);
  }

  /** Gives a checksum to rows that have none. */
  completeChecksums({ revision, rows }: StoreContents): void {
    const checked = Number(this.#database.prepare('SELECT revision FROM checked WHERE id = 1').get()?.['revision']);
    if (checked === revision) return;
    this.#transact(() => {
      for (const row of rows) this.#upsertChecksum.run(row.key, row.revision, checksumOf(row));
      this.#setChecked.run(revision);
    });
  }

  /** Makes an empty file hold these contents. */
  fill({ revision, rows }: StoreContents): void {
    this.#transact(() => {
      for (const row of rows) {
        this.#upsert.run(row.key, row.revision, row.resource, row.origin);
        this.#upsertChecksum.run(row.key, row.revision, checksumOf(row));
      }
      this.#setRevision.run(revision);
      this.#setChecked.run(revision);
    });
  }

  put(row: StoreRow): void {
    this.#transact(() => {
      this.#upsert.run(row.key, row.revision, row.resource, row.origin);
      this.#upsertChecksum.run(row.key, row.revision, checksumOf(row));
      this.#setRevision.run(row.revision);
      this.#setChecked.run(row.revision);
    });
  }

  remove(key: string, revision: number): void {
    this.#transact(() => {
      this.#delete.run(key);
      this.#deleteChecksum.run(key);
      this.#setRevision.run(revision);
      this.#setChecked.run(revision);
    });
  }

  /** Writes what is there already: throws where the file cannot be written, or its disk has no space. */
  tryToWrite(revision: number): void {
    const probe = `${this.path}.probe`;
    try {
      if (this.path !== ':memory:') writeFileSync(probe, Buffer.alloc(probeBytes), { mode: 0o600, flush: true });
    } finally {
      rmSync(probe, { force: true });
    }
    this.#transact(() => this.#setRevision.run(revision));
  }

  /** Why a process that opens the file now would not find these contents; undefined: it would. Past the cache of this connection. */
  damage(expected: { readonly revision: number; readonly count: number }): string | undefined {
    if (this.path === ':memory:') return undefined;
    let reader: DatabaseSync | undefined;
    try {
      reader = new DatabaseSync(this.path, { readOnly: true });
      const { revision, rows } = contentsOf(reader);
      if (revision < expected.revision) return `its newest changes are missing: its revision is ${revision} instead of ${expected.revision}`;
      if (revision === expected.revision && rows.length !== expected.count) return `it has ${rows.length} objects instead of ${expected.count}`;
      return undefined;
    } catch (error) {
      return messageOf(error);
    } finally {
      if (reader?.isOpen) reader.close();
    }
  }

  /** Moves what the journal holds into the file, where a start after a crash does not depend on an intact journal. */
  checkpoint(): void {
    if (this.path !== ':memory:') this.#database.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  }

  close(): void {
    if (this.#database.isOpen) this.#database.close();
  }

  #transact(change: () => void): void {
    try {
      this.#database.exec('BEGIN IMMEDIATE');
      change();
      this.#database.exec('COMMIT');
    } catch (error) {
      try {
        if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      } catch {
        // The first error is the reason.
      }
      throw error;
    }
  }
}

/** The disk is full or the file is busy: another file in its place would not help. */
export function isShortage(error: unknown): boolean {
  const { errcode } = error as { readonly errcode?: unknown };
  return typeof errcode === 'number' && errcode !== shortRead && shortages.has(errcode & 0xff);
}

/** SQLITE_PERM, SQLITE_BUSY, SQLITE_LOCKED, SQLITE_NOMEM, SQLITE_IOERR, SQLITE_FULL. */
const shortages = new Set([3, 5, 6, 7, 10, 13]);
/** SQLITE_IOERR_SHORT_READ: the file was cut off. */
const shortRead = 522;

/** Neither the content of the file nor its place is the reason: it cannot be opened or written. */
export function isAccessProblem(error: unknown): boolean {
  const { errcode } = error as { readonly errcode?: unknown };
  return isShortage(error) || errcode === 8 || errcode === 14;
}

/**
 * Writes contents to a new file in the place of a damaged one, which stays beside it as `PATH.damaged` where the file system can link files. Throws, with
 * the damaged file still in its place, where the new one cannot be written. `close` closes the connection to the damaged file.
 */
export function replaceStoreFile(path: string, contents: StoreContents, close: () => void): string | undefined {
  const next = `${path}.next`;
  const removeNext = () => {
    for (const suffix of ['', '-wal', '-shm', '-journal']) rmSync(`${next}${suffix}`, { force: true });
  };
  removeNext();
  try {
    const file = new StoreFile(next);
    try {
      file.fill(contents);
      file.checkpoint();
    } finally {
      file.close();
    }
  } catch (error) {
    removeNext();
    throw error;
  }
  try {
    close();
  } catch {
    // What it could not write is in the new file.
  }
  const kept = `${path}.damaged`;
  let isKept = false;
  try {
    rmSync(kept, { force: true });
    linkSync(path, kept);
    isKept = true;
  } catch {
    // It is gone, or its file system has no links.
  }
  // A journal of the old file must not be applied to the new one.
  for (const suffix of ['-wal', '-shm']) rmSync(`${path}${suffix}`, { force: true });
  renameSync(next, path);
  const folder = openSync(dirname(path), 'r');
  fsyncSync(folder);
  closeSync(folder);
  return isKept ? kept : undefined;
}

/** A damaged page would else be met later, at a write. Takes milliseconds for a thousand objects. */
function contentsOf(database: DatabaseSync): StoreContents {
  const [first] = database.prepare('PRAGMA quick_check(1)').all();
  const found = String(first?.['quick_check']);
  if (found !== 'ok') throw new Error(`it is damaged: ${found.replaceAll(/\s+/g, ' ').slice(0, 200)}`);
  const revision = Number(database.prepare('SELECT value FROM revision WHERE id = 1').get()?.['value']);
  if (!Number.isSafeInteger(revision)) throw new Error('it has no revision');
  const checked = Number(database.prepare('SELECT revision FROM checked WHERE id = 1').get()?.['revision'] ?? 0);
  const rows: StoreRow[] = [];
  const select =
    'SELECT resources.key, resources.revision, resource, origin, checksums.revision AS checked, sha256 FROM resources LEFT JOIN checksums ON checksums.key = resources.key ORDER BY resources.key';
  for (const found of database.prepare(select).iterate()) {
    const row = {
      ...{ key: String(found['key']), revision: Number(found['revision']) },
      ...{ resource: String(found['resource']), origin: String(found['origin']) },
    };
    if (row.revision <= checked && (found['checked'] !== row.revision || found['sha256'] !== checksumOf(row)))
      throw new Error(`it is damaged: the object ${row.key.slice(0, 300)} does not match its checksum`);
    rows.push(row);
  }
  return { revision, rows };
}

function checksumOf({ key, revision, resource, origin }: StoreRow): string {
  return createHash('sha256').update(`${key}\0${revision}\0${resource}\0${origin}`).digest('base64');
}

/** The store holds keys. SQLite gives its journal files the mode of the database, so that this is set before there is one. */
function makePrivate(path: string): void {
  // SQLite would take it for a new store.
  if (statSync(path, { throwIfNoEntry: false })?.size === 0) throw new Error('it is damaged: the file is empty');
  closeSync(openSync(path, 'a', 0o600));
  for (const file of [path, `${path}-wal`, `${path}-shm`]) if (existsSync(file)) chmodSync(file, 0o600);
}
