import { existsSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { errorBoundary, messageOf } from '@mizzen/common';
import { openLine, readTextFile, sealLine, writeDurably } from '@mizzen/common/durable-file';

const boundary = errorBoundary('broker.offsets');

/** What a group has done of a partition: everything below `committed`, and the ranges of offsets in `done` (pairs: from, before). */
export interface GroupProgress {
  readonly committed: number;
  readonly done: readonly number[];
}

const saveDelayMs = 200;
export const groupsFile = 'groups.state';
const previousFile = 'groups.previous';
const oldFile = 'offsets.json';

interface Entry {
  readonly group: string;
  readonly topic: string;
  readonly partitions: Map<number, GroupProgress | (() => GroupProgress)>;
  /** The identity of the workload that the group belongs to; '': none has claimed it. */
  owner: string;
  /** As it stands in the file; undefined: it has changed. */
  line: string | undefined;
}

/**
 * The progress of each group, on disk: a line with its checksum for each group and topic, written as a whole at most five times a second. The file before
 * it is kept: what is damaged in one is taken from the other. What a crash takes back is delivered again.
 */
export class OffsetStore {
  readonly #folder: string;
  readonly #entries: Map<string, Entry>;
  readonly #onProblem: (problem: string) => void;
  #timer: NodeJS.Timeout | undefined;
  #isFailing: boolean;

  /** Never throws: what cannot be read is reported and left out. */
  constructor(folder: string, onProblem: (problem: string) => void) {
    this.#folder = folder;
    this.#entries = new Map();
    this.#onProblem = onProblem;
    this.#timer = undefined;
    this.#isFailing = false;
    const isWhole = this.#load(groupsFile);
    if (isWhole !== true) {
      const isOlderWhole = this.#load(previousFile);
      if (isWhole === undefined && isOlderWhole === undefined) this.#loadOld();
    }
  }

  /** undefined: the group has never been at this partition. */
  get(group: string, topic: string, partition: number): GroupProgress | undefined {
    const progress = this.#entries.get(keyOf(group, topic))?.partitions.get(partition);
    return typeof progress === 'function' ? progress() : progress;
  }

  /** From now on `progress` is asked whenever this group's line is written. */
  track(group: string, topic: string, partition: number, progress: () => GroupProgress): void {
    this.#entry(group, topic).partitions.set(partition, progress);
    this.changed(group, topic);
  }

  /** The group has come further. */
  changed(group: string, topic: string): void {
    this.#entry(group, topic).line = undefined;
    this.#timer ??= this.#saveAfter(saveDelayMs);
  }

  /** The identity that a group belongs to; '': none. */
  ownerOf(group: string, topic: string): string {
    return this.#entries.get(keyOf(group, topic))?.owner ?? '';
  }

  claim(group: string, topic: string, owner: string): void {
    this.#entry(group, topic).owner = owner;
    this.changed(group, topic);
  }

  has(group: string, topic: string): boolean {
    return this.#entries.has(keyOf(group, topic));
  }

  /** Gives a topic the groups of another, with their progress and owners, on disk. */
  copyTopic(from: string, to: string): void {
    for (const { group, topic, partitions, owner } of [...this.#entries.values()]) {
      if (topic !== from) continue;
      const entry = this.#entry(group, to);
      entry.owner = owner;
      entry.line = undefined;
      for (const [partition, progress] of partitions) entry.partitions.set(partition, typeof progress === 'function' ? progress() : progress);
    }
    this.save();
  }

  forgetTopic(topic: string): void {
    for (const [key, entry] of [...this.#entries]) if (entry.topic === topic) this.#entries.delete(key);
    this.save();
  }

  /** Groups that have been at a topic. */
  groupsOf(topic: string): string[] {
    return [...this.#entries.values()].filter((entry) => entry.topic === topic).map(({ group }) => group);
  }

  #saveAfter(delayMs: number): NodeJS.Timeout {
    const again = () => {
      this.#timer = this.#saveAfter(5 * saveDelayMs);
    };
    return boundary.after(delayMs, () => this.save(), again);
  }

  save(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const lines = [...this.#entries.values()].map((entry) => {
      entry.line ??= lineOf(entry);
      return entry.line;
    });
    const text = `${[sealLine(JSON.stringify({ format: 1, lines: lines.length })), ...lines].join('\n')}\n`;
    const path = join(this.#folder, groupsFile);
    try {
      // The new file is whole before it takes the place of the one that becomes the previous one.
      writeDurably(`${path}.next`, text);
      if (existsSync(path)) renameSync(path, join(this.#folder, previousFile));
      renameSync(`${path}.next`, path);
      rmSync(join(this.#folder, oldFile), { force: true });
      if (this.#isFailing) this.#onProblem('the progress of consumers is saved again');
      this.#isFailing = false;
    } catch (error) {
      // Until it succeeds a restart delivers again what has been done since: nothing is lost.
      if (!this.#isFailing) this.#onProblem(`the progress of consumers cannot be saved, trying again: ${messageOf(error)}`);
      this.#isFailing = true;
      this.#timer ??= this.#saveAfter(5 * saveDelayMs);
    }
  }

  close(): void {
    if (this.#timer !== undefined) this.save();
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #entry(group: string, topic: string): Entry {
    let entry = this.#entries.get(keyOf(group, topic));
    if (entry === undefined) {
      entry = { group, topic, partitions: new Map(), owner: '', line: undefined };
      this.#entries.set(keyOf(group, topic), entry);
    }
    return entry;
  }

  /** Adds what a file has and nothing has been read of yet. undefined: there is no file; false: it is damaged. */
  #load(name: string): boolean | undefined {
    const path = join(this.#folder, name);
    let text: string | undefined;
    try {
      text = readTextFile(path);
    } catch (error) {
      this.#onProblem(`the progress of consumers cannot be read: ${messageOf(error)} (file=${path})`);
      // What stands in its place must not stop the next file from being written.
      try {
        renameSync(path, `${path}.damaged-${Date.now()}`);
      } catch {
        // It is reported when the file is saved.
      }
      return false;
    }
    if (text === undefined) return undefined;
    const read = readGroupLines(text);
    for (const { group, topic, partitions, owner } of read.entries) {
      const key = keyOf(group, topic);
      if (this.#entries.has(key)) continue;
      this.#entries.set(key, { group, topic, partitions: new Map(partitions), owner, line: undefined });
    }
    if (!read.isWhole)
      this.#onProblem(`the progress of consumers is damaged: what is missing is taken from ${previousFile}, else those groups begin again (file=${path})`);
    return read.isWhole;
  }

  /** The form of earlier versions: one JSON object without a checksum. */
  #loadOld(): void {
    const path = join(this.#folder, oldFile);
    try {
      const text = readTextFile(path);
      if (text === undefined) return;
      for (const [group, offsets] of Object.entries(JSON.parse(text) as Record<string, Record<string, unknown>>))
        for (const [place, offset] of Object.entries(offsets)) {
          const cut = place.lastIndexOf('/');
          const partition = Number(place.slice(cut + 1));
          if (cut > 0 && Number.isSafeInteger(partition) && isOffset(offset))
            this.#entry(group, place.slice(0, cut)).partitions.set(partition, { committed: offset, done: [] });
        }
    } catch (error) {
      this.#onProblem(`the progress of consumers is damaged: all groups begin again (file=${path}): ${messageOf(error)}`);
      try {
        renameSync(path, `${path}.damaged-${Date.now()}`);
      } catch {
        // It stays, and is replaced by the new form.
      }
    }
  }
}

interface GroupLines {
  readonly entries: readonly {
    readonly group: string;
    readonly topic: string;
    readonly owner: string;
    readonly partitions: readonly (readonly [number, GroupProgress])[];
  }[];
  readonly isWhole: boolean;
}

/** Reads the file's text; lines that are not what was written are left out. */
export function readGroupLines(text: string): GroupLines {
  const [first = '', ...lines] = text.split('\n');
  const entries = lines.flatMap((line) => {
    const opened = openLine(line);
    const entry = opened === undefined ? undefined : readLine(opened);
    return entry === undefined ? [] : [entry];
  });
  const head = openLine(first);
  let count: unknown;
  try {
    count = head === undefined ? undefined : (JSON.parse(head) as { readonly lines?: unknown } | null)?.lines;
  } catch {
    count = undefined;
  }
  return { entries, isWhole: count === entries.length };
}

function readLine(text: string): GroupLines['entries'][number] | undefined {
  try {
    const [group, topic, progress, owner] = JSON.parse(text) as [unknown, unknown, unknown, unknown];
    if (typeof group !== 'string' || typeof topic !== 'string' || !Array.isArray(progress)) return undefined;
    return {
      group,
      topic,
      owner: typeof owner === 'string' ? owner : '',
      partitions: progress.flatMap((numbers: unknown, i) => {
        if (!Array.isArray(numbers) || !numbers.every(isOffset)) return [];
        const [committed, ...done] = numbers as number[];
        return committed === undefined ? [] : [[i, { committed, done }] as const];
      }),
    };
  } catch {
    return undefined;
  }
}

function lineOf({ group, topic, partitions, owner }: Entry): string {
  const progress: (readonly number[] | null)[] = [];
  for (let i = 0; i <= Math.max(-1, ...partitions.keys()); i++) {
    const known = partitions.get(i);
    const now = typeof known === 'function' ? known() : known;
    progress.push(now === undefined ? null : [now.committed, ...now.done]);
  }
  return sealLine(JSON.stringify([group, topic, progress, owner]));
}

const isOffset = (value: unknown): value is number => typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
const keyOf = (group: string, topic: string) => `${group}\0${topic}`;
