import { renameSync, statSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { MizzenError, messageOf } from '@mizzen/common';
import { readTextFile } from '@mizzen/common/durable-file';

/** Result codes of SQLite. */
const busy = 5;
const notADatabase = 26;
const lockFile = 'lock';
const ownerFile = 'lock.owner';

/**
 * The exclusive use of a broker's directory by one process. It is a lock of the operating system, which SQLite takes on an empty file: it ends with its
 * process whatever ends that, so that none is ever stale, and process numbers that are used again mean nothing.
 */
export class HomeLock {
  readonly #database: DatabaseSync;

  /** Throws MizzenError `data-in-use` when another process has the lock. */
  constructor(folder: string) {
    const path = join(folder, lockFile);
    this.#database = lock(path, folder, true);
    try {
      writeFileSync(join(folder, ownerFile), `process ${process.pid} on ${hostname()}, since ${new Date().toISOString()}\n`, { mode: 0o600 });
    } catch {
      // The lock does not depend on the name of its owner.
    }
  }

  release(): void {
    if (this.#database.isOpen) this.#database.close();
  }
}

function lock(path: string, folder: string, isFirst: boolean): DatabaseSync {
  let database: DatabaseSync | undefined;
  try {
    database = new DatabaseSync(path);
    database.exec('PRAGMA busy_timeout = 0; PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE');
    return database;
  } catch (error) {
    if (database?.isOpen) database.close();
    if ((error as { readonly errcode?: number }).errcode === busy)
      throw new MizzenError('data-in-use', `another broker uses this directory (${ownerOf(folder)}). Stop it first, or give this one another --data.`, folder);
    // Only what cannot be anyone's lock is moved away.
    const isForeign = (error as { readonly errcode?: number }).errcode === notADatabase || isFolder(path);
    if (!isFirst || !isForeign) throw new MizzenError('data-unusable', `the directory cannot be locked: ${messageOf(error)}`, path, { cause: error });
    try {
      renameSync(path, `${path}.damaged-${Date.now()}`);
    } catch {
      // The second attempt says why.
    }
    return lock(path, folder, false);
  }
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

function ownerOf(folder: string): string {
  try {
    return readTextFile(join(folder, ownerFile))?.trim().slice(0, 200) || 'unknown process';
  } catch {
    return 'unknown process';
  }
}
