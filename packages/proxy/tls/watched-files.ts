import { type FSWatcher, watch } from 'node:fs';
import { basename, dirname } from 'node:path';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('tls.files');

/** Files are written in several steps, and certificate and key one after the other: a change counts when it has been quiet this long. */
const settleMs = 100;

/**
 * Tells when files have changed. Their directories are watched, so that a file that is replaced by renaming, or by a symbolic link that
 * points elsewhere (as Kubernetes mounts secrets), is seen too.
 */
export class WatchedFiles {
  readonly #watchers: Map<string, FSWatcher>;
  readonly #interested: Map<string, Set<(name: string | null) => void>>;
  readonly #timers: Set<NodeJS.Timeout>;

  constructor() {
    this.#watchers = new Map();
    this.#interested = new Map();
    this.#timers = new Set();
  }

  /** Calls `changed` when one of `paths`, or anything in `directory`, has changed. */
  watch(paths: readonly string[], directory: string | undefined, changed: () => void): void {
    let timer: NodeJS.Timeout | undefined;
    const soon = () => {
      if (timer !== undefined) {
        clearTimeout(timer);
        this.#timers.delete(timer);
      }
      timer = boundary.after(settleMs, changed).unref();
      this.#timers.add(timer);
    };
    for (const folder of new Set(directory ? [directory] : paths.map(dirname))) {
      const names = directory ? undefined : new Set(paths.map((path) => basename(path)));
      this.#listen(folder, (name) => (names === undefined || name === null || names.has(name) || name.startsWith('..data')) && soon());
    }
  }

  close(): void {
    for (const watcher of this.#watchers.values()) watcher.close();
    for (const timer of this.#timers) clearTimeout(timer);
    this.#watchers.clear();
    this.#interested.clear();
  }

  #listen(folder: string, onEvent: (name: string | null) => void): void {
    const known = this.#interested.get(folder) ?? new Set<(name: string | null) => void>();
    this.#interested.set(folder, known);
    known.add(onEvent);
    if (this.#watchers.has(folder)) return;
    // An error: the folder is gone, and what was read from it stays in effect.
    const watcher = boundary.own(
      watch(folder, { persistent: false }, (_event, name) => {
        for (const listener of known) listener(name);
      }),
      () => {},
    );
    this.#watchers.set(folder, watcher);
  }
}
