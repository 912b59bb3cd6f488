import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';

const saveDelayMs = 200;

/**
 * How far each group has come, on disk: written whole, aside and renamed, at most five times a second. What a crash takes back of it is delivered
 * again.
 */
export class OffsetStore {
  readonly #path: string;
  /** group -> `topic/partition` -> offset */
  readonly #offsets: Map<string, Map<string, number>>;
  readonly #onProblem: (error: Error) => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(folder: string, onProblem: (error: Error) => void) {
    this.#path = join(folder, 'offsets.json');
    this.#onProblem = onProblem;
    this.#timer = undefined;
    const saved = existsSync(this.#path) ? (JSON.parse(readFileSync(this.#path, 'utf8')) as Record<string, Record<string, number>>) : {};
    this.#offsets = new Map(Object.entries(saved).map(([group, offsets]) => [group, new Map(Object.entries(offsets))]));
  }

  /** undefined: the group has never been at this partition. */
  get(group: string, topic: string, partition: number): number | undefined {
    return this.#offsets.get(group)?.get(`${topic}/${partition}`);
  }

  set(group: string, topic: string, partition: number, offset: number): void {
    let offsets = this.#offsets.get(group);
    if (offsets === undefined) {
      offsets = new Map();
      this.#offsets.set(group, offsets);
    }
    offsets.set(`${topic}/${partition}`, offset);
    this.#timer ??= setTimeout(() => this.save(), saveDelayMs);
  }

  groups(): IterableIterator<string> {
    return this.#offsets.keys();
  }

  save(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const text = JSON.stringify(Object.fromEntries([...this.#offsets].map(([group, offsets]) => [group, Object.fromEntries(offsets)])));
    try {
      const aside = `${this.#path}.new`;
      const fd = openSync(aside, 'w', 0o600);
      try {
        writeSync(fd, text);
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
      renameSync(aside, this.#path);
      const folder = openSync(dirname(this.#path), 'r');
      fsyncSync(folder);
      closeSync(folder);
    } catch (error) {
      // A full disk, most likely: it is tried again with the next change, and nothing is lost but work done twice.
      this.#onProblem(error as Error);
    }
  }

  close(): void {
    if (this.#timer !== undefined) this.save();
  }
}
