import { existsSync, mkdirSync, readdirSync, renameSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { type Logger, messageOf } from '@mizzen/common';
import { readTextFile } from '@mizzen/common/durable-file';
import { defaultLogSettings, segmentBases } from '../log/partition-log.ts';
import { Segment } from '../log/segment.ts';
import { Broker } from './broker.ts';
import { HomeLock } from './home-lock.ts';
import { groupsFile, readGroupLines } from './offset-store.ts';
import { countPartitions, listTopicFolders, readTopicFile, topicFile, writeTopicFile } from './topic-folders.ts';

export interface HomeFinding {
  /** `lost`: records are gone; `unusable`: a topic or group is not served until it is repaired; `mended`: the next start or repair mends it without loss. */
  readonly severity: 'lost' | 'unusable' | 'mended';
  readonly path: string;
  readonly problem: string;
}

export interface HomeReport {
  readonly topics: number;
  readonly records: number;
  readonly findings: readonly HomeFinding[];
}

/** Reads everything in a broker's directory and says what is damaged. Changes nothing. Throws MizzenError `data-in-use` while a broker runs on it. */
export function checkHome(folder: string): HomeReport {
  const lock = new HomeLock(folder);
  try {
    return inspect(folder);
  } finally {
    lock.release();
  }
}

/**
 * Makes a damaged directory usable: what cannot be read is moved to `damaged/`, nothing is deleted, and what can be derived is written again. Returns what
 * was done. Throws MizzenError `data-in-use` while a broker runs on it.
 */
export async function repairHome(folder: string, logger: Logger): Promise<string[]> {
  const done: string[] = [];
  const lock = new HomeLock(folder);
  try {
    moveAside(folder, done);
  } finally {
    lock.release();
  }
  // A start mends the rest: indexes, torn ends, the progress of groups.
  const broker = new Broker({ folder, log: defaultLogSettings, partitions: 4, maxTopics: Number.MAX_SAFE_INTEGER }, logger);
  await broker.close();
  return done;
}

function inspect(folder: string): HomeReport {
  const findings: HomeFinding[] = [];
  let records = 0;
  const topics = join(folder, 'topics');
  const found = attempt(findings, topics, () => (existsSync(topics) ? listTopicFolders(topics) : { found: [], strays: [] })) ?? { found: [], strays: [] };
  for (const path of found.strays) findings.push({ severity: 'mended', path, problem: 'not a topic; it is left alone' });
  for (const { folder: topic, name } of found.found) {
    if (name === undefined) findings.push({ severity: 'unusable', path: topic, problem: 'the name of the topic is lost with its topic.json' });
    const shape = readTopicFile(topic);
    const counted = attempt(findings, topic, () => countPartitions(topic));
    if (shape === undefined && counted === undefined)
      findings.push({ severity: 'unusable', path: join(topic, topicFile), problem: 'damaged, and a partition is missing' });
    else if (shape === undefined)
      findings.push({ severity: 'mended', path: join(topic, topicFile), problem: 'damaged; it is written again from the folders of the partitions' });
    const partitions = shape?.partitions ?? counted ?? 0;
    for (let i = 0; i < partitions; i++) records += inspectPartition(join(topic, String(i)), findings);
  }
  const groups = join(folder, groupsFile);
  const text = attempt(findings, groups, () => readTextFile(groups));
  if (text !== undefined && !readGroupLines(text).isWhole)
    findings.push({ severity: 'lost', path: groups, problem: 'damaged: groups that are also missing in the previous file begin their topics again' });
  return { topics: found.found.length, records, findings };
}

function inspectPartition(folder: string, findings: HomeFinding[]): number {
  if (!existsSync(folder)) {
    findings.push({ severity: 'lost', path: folder, problem: 'the partition is missing; it begins again, empty' });
    return 0;
  }
  let records = 0;
  let expected: number | undefined;
  for (const base of attempt(findings, folder, () => segmentBases(folder)) ?? []) {
    if (expected !== undefined && base > expected)
      findings.push({ severity: 'lost', path: folder, problem: `${base - expected} records from offset ${expected} on are missing` });
    const path = join(folder, `${String(base).padStart(16, '0')}.log`);
    attempt(findings, path, () => {
      const segment = new Segment(folder, base, ({ position, bytes, from, to, reason }) =>
        findings.push({
          severity: to > from ? 'lost' : 'mended',
          path,
          problem: `${reason} (position ${position}, ${bytes} bytes${to > from ? `, ${to - from} records from offset ${from} on are lost` : ''})`,
        }),
      );
      try {
        const read = segment.verify();
        records += read.records;
        expected = read.offset;
        if (read.position < segment.sizeBytes)
          findings.push({
            severity: 'lost',
            path,
            problem: `no sound record follows position ${read.position} (${segment.sizeBytes - read.position} bytes); after a crash these were not acknowledged`,
          });
      } finally {
        segment.close();
      }
    });
  }
  return records;
}

/** What cannot be read at all is a finding. */
function attempt<T>(findings: HomeFinding[], path: string, action: () => T): T | undefined {
  try {
    return action();
  } catch (error) {
    findings.push({ severity: 'unusable', path, problem: messageOf(error) });
    return undefined;
  }
}

function moveAside(folder: string, done: string[]): void {
  const aside = (path: string, reason: string) => {
    const damaged = join(folder, 'damaged', new Date().toISOString().replaceAll(':', '-'));
    mkdirSync(damaged, { recursive: true, mode: 0o700 });
    const target = join(damaged, `${done.length}-${basename(path)}`);
    renameSync(path, target);
    done.push(`moved ${path} to ${target}: ${reason}`);
  };
  const topics = join(folder, 'topics');
  if (existsSync(topics) && !statSync(topics).isDirectory()) aside(topics, 'not a folder');
  if (!existsSync(topics)) return;
  const { found, strays } = listTopicFolders(topics);
  for (const path of strays) aside(path, 'not a topic');
  for (const { folder: topic, name } of found) {
    if (name === undefined) {
      aside(topic, 'the name of the topic is lost');
      continue;
    }
    for (const entry of readdirSync(topic, { withFileTypes: true })) {
      const path = join(topic, entry.name);
      const isPartition = /^\d{1,3}$/.test(entry.name);
      if (isPartition !== entry.isDirectory()) {
        if (isPartition || entry.isDirectory()) aside(path, isPartition ? 'a partition that is not a folder' : 'a folder where none belongs');
        continue;
      }
      if (!isPartition) continue;
      for (const part of readdirSync(path, { withFileTypes: true })) if (part.isDirectory()) aside(join(path, part.name), 'a folder where none belongs');
    }
    if (readTopicFile(topic) !== undefined || countPartitions(topic) !== undefined) continue;
    // The highest number that is there: keys of a topic whose last partition is lost too may change their place.
    const highest = Math.max(
      ...readdirSync(topic)
        .filter((entry) => /^\d{1,3}$/.test(entry))
        .map(Number),
    );
    writeTopicFile(topic, { name, partitions: highest + 1 });
    done.push(`wrote ${join(topic, topicFile)} again with ${highest + 1} partitions: the missing ones begin empty`);
  }
}
