import { type FSWatcher, watch } from 'node:fs';
import { basename, dirname } from 'node:path';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('tls.files');

/** Files are written in several steps, and certificate and key one after the other: a change counts when it has been quiet this long. */
const settleMs = 100;
/** After an exception of this proxy's own. */
const retryMs = 1_000;

/**
 * Tells when files have changed. Their directories are watched, so that a file that is replaced by renaming, or by a symbolic link that
 * points elsewhere (as Kubernetes mounts secrets), is seen too.
 */
export class WatchedFiles {
  readonly #watchers: Map<string, FSWatcher>;
  readonly #interested: Map<string, Set<(name: string | null) => void>>;
  readonly #timers: Set<NodeJS.Timeout>;
  #isClosed: boolean;

  constructor() {
    this.#watchers = new Map();
    this.#interested = new Map();
    this.#timers = new Set();
    this.#isClosed = false;
  }

  /** Calls `changed` when one of `paths`, or anything in `directory`, has changed. */
  watch(paths: readonly string[], directory: string | undefined, changed: () => void): void {
    let timer: NodeJS.Timeout | undefined;
    const after = (delayMs: number) => {
      if (timer !== undefined) {
        clearTimeout(timer);
        this.#timers.delete(timer);
      }
      if (this.#isClosed) return;
      timer = boundary.after(delayMs, changed, () => after(retryMs)).unref();
      this.#timers.add(timer);
    };
    const soon = () => after(settleMs);
    for (const folder of new Set(directory ? [directory] : paths.map(dirname))) {
      const names = directory ? undefined : new Set(paths.map((path) => basename(path)));
      this.#listen(folder, (name) => (names === undefined || name === null || names.has(name) || name.startsWith('..data')) && soon());
    }
  }

  close(): void {
    this.#isClosed = true;
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
    const tell = (name: string | null) => {
      for (const listener of known) listener(name);
    };
    // An error: the folder is gone, and what was read from it stays in effect.
    const watcher = boundary.own(
      watch(folder, { persistent: false }, (_event, name) => tell(name)),
      () => tell(null),
    );
    this.#watchers.set(folder, watcher);
  }
}
