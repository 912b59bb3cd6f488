import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { openLine, readTextFile, sealLine, syncFolder, writeDurably } from '@mizzen/common/durable-file';
import { segmentBases } from '../log/partition-log.ts';
import { isFullName } from '../policy/topic-names.ts';

const maxFolderBytes = 180;
const newPrefix = '.new-';
export const topicFile = 'topic.json';
const maxPartitions = 256;

/**
 * The name of a topic's folder: `~`, then the name with every byte but `a-z 0-9 _ -` and inner dots as `%XX`. No two topics share a folder on a file system
 * that ignores case, none is special to an operating system, and what is too long ends in a hash.
 */
export function folderOfTopic(topic: string): string {
  let encoded = '~';
  for (const byte of Buffer.from(topic)) {
    const char = String.fromCharCode(byte);
    encoded += /[a-z0-9_-]/.test(char) ? char : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  }
  if (encoded.length <= maxFolderBytes) return encoded;
  return `${encoded.slice(0, 100)}~${createHash('sha256').update(topic).digest('hex').slice(0, 40)}`;
}

/** The topic of a folder, by its name alone; undefined: it is not a topic's folder, or its name is a hash. */
export function topicOfFolder(folder: string): string | undefined {
  const isNew = folder.startsWith('~');
  if (folder.startsWith('.') || (isNew && folder.slice(1).includes('~'))) return undefined;
  try {
    // Folders without `~` are those of earlier versions.
    const topic = decodeURIComponent(isNew ? folder.slice(1) : folder);
    return isFullName(topic) && (isNew ? folderOfTopic(topic) : encodeURIComponent(topic)) === folder ? topic : undefined;
  } catch {
    return undefined;
  }
}

export interface TopicShape {
  readonly name: string;
  readonly partitions: number;
}

/** What `topic.json` says; undefined: it is missing or not what was written. */
export function readTopicFile(folder: string): { readonly name: string | undefined; readonly partitions: number } | undefined {
  let text: string | undefined;
  try {
    text = readTextFile(join(folder, topicFile));
  } catch {
    return undefined;
  }
  if (text === undefined) return undefined;
  // Earlier versions wrote the object alone.
  const json = text.startsWith('{') ? text : openLine(text.trimEnd());
  try {
    const { name, partitions } = JSON.parse(json ?? '') as { readonly name?: unknown; readonly partitions?: unknown };
    if (typeof partitions !== 'number' || !Number.isInteger(partitions) || partitions < 1 || partitions > maxPartitions) return undefined;
    return { name: typeof name === 'string' ? name : undefined, partitions };
  } catch {
    return undefined;
  }
}

export function writeTopicFile(folder: string, shape: TopicShape): void {
  writeDurably(join(folder, topicFile), `${sealLine(JSON.stringify(shape))}\n`);
}

/** Makes the folder of a new topic: whole, or not at all. */
export function createTopicFolder(topics: string, shape: TopicShape): string {
  const folder = join(topics, folderOfTopic(shape.name));
  const early = join(topics, `${newPrefix}${randomBytes(8).toString('hex')}`);
  try {
    mkdirSync(early, { mode: 0o700 });
    for (let i = 0; i < shape.partitions; i++) mkdirSync(join(early, String(i)), { mode: 0o700 });
    writeTopicFile(early, shape);
    renameSync(early, folder);
  } catch (error) {
    rmSync(early, { recursive: true, force: true });
    throw error;
  }
  syncFolder(topics);
  return folder;
}

/** Gives a topic's folder another name. Until the folder has it, its name in `topic.json` does not count. */
export function renameTopicFolder(from: string, to: string, shape: TopicShape): void {
  writeTopicFile(from, shape);
  renameSync(from, to);
  syncFolder(dirname(to));
}

/** How many partitions a folder holds whose `topic.json` is lost; undefined: that cannot be said. 0: nothing was ever stored in it. */
export function countPartitions(folder: string): number | undefined {
  const numbers = readdirSync(folder)
    .filter((name) => /^\d{1,3}$/.test(name) && statSync(join(folder, name)).isDirectory())
    .map(Number)
    .sort((a, b) => a - b);
  const isEmpty = numbers.every((n) => segmentBases(join(folder, String(n))).every((base) => base === 0 && sizeOf(join(folder, String(n))) === 0));
  if (isEmpty) return 0;
  // All folders are made before the first message is taken: without a gap they are all there are.
  return numbers.every((n, i) => n === i) && numbers.length <= maxPartitions ? numbers.length : undefined;
}

const sizeOf = (folder: string) => statSync(join(folder, '0000000000000000.log')).size;

/** What is in `topics/`: folders of topics, and everything else. Removes what an interrupted creation has left. */
export function listTopicFolders(topics: string): {
  readonly found: readonly { readonly folder: string; readonly name: string | undefined }[];
  readonly strays: readonly string[];
} {
  const found: { folder: string; name: string | undefined }[] = [];
  const strays: string[] = [];
  for (const entry of readdirSync(topics, { withFileTypes: true })) {
    const folder = join(topics, entry.name);
    if (entry.name.startsWith(newPrefix)) rmSync(folder, { recursive: true, force: true });
    else if (!entry.isDirectory() || (!entry.name.startsWith('~') && topicOfFolder(entry.name) === undefined)) strays.push(folder);
    else found.push({ folder, name: topicOfFolder(entry.name) ?? readTopicFile(folder)?.name });
  }
  return { found, strays };
}

/**
 * Topics `.` and `..` of earlier versions were stored in `topics/` itself and in the directory above it. They get a folder of their own. Interrupted, it
 * continues at the next start.
 */
export function adoptMisplacedTopics(home: string): void {
  for (const [name, place] of [
    ['.', join(home, 'topics')],
    ['..', home],
  ] as const) {
    const shape = readTopicFile(place);
    if (shape === undefined) continue;
    const folder = join(home, 'topics', folderOfTopic(name));
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    for (let i = 0; i < shape.partitions; i++) {
      const from = join(place, String(i));
      if (!existsSync(from)) continue;
      mkdirSync(join(folder, String(i)), { recursive: true, mode: 0o700 });
      for (const file of readdirSync(from)) if (/^\d{16}\.(?:log|index)$/.test(file)) renameSync(join(from, file), join(folder, String(i), file));
      // What is left is a topic of that name, perhaps made by a start that failed.
      if (countPartitions(from) === 0) rmSync(from, { recursive: true });
    }
    writeTopicFile(folder, { name, partitions: shape.partitions });
    rmSync(join(place, topicFile));
    syncFolder(join(home, 'topics'));
  }
}
