import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import { type LogSettings, PartitionLog } from '../log/partition-log.ts';
import type { Damage } from '../log/segment.ts';
import { checkTopicName, fullNameOf, isFullName, splitFullName } from '../policy/topic-names.ts';
import { ConsumerGroup, type GroupMember, GroupPartition } from './consumer-group.ts';
import { HomeLock } from './home-lock.ts';
import { OffsetStore } from './offset-store.ts';
import {
  adoptMisplacedTopics,
  countPartitions,
  createTopicFolder,
  folderOfTopic,
  listTopicFolders,
  readTopicFile,
  renameTopicFolder,
  writeTopicFile,
} from './topic-folders.ts';

const boundary = errorBoundary('broker.topic');

export interface BrokerSettings {
  readonly folder: string;
  readonly log: LogSettings;
  /** Of topics that are new. */
  readonly partitions: number;
  readonly maxTopics: number;
  /** Topics of one Component; absent: as many as of all. One application cannot take all topics of the broker. */
  readonly maxTopicsOfComponent?: number;
  /** Topics of earlier versions, which belong to no Component yet, are kept whatever their age. */
  readonly keepsUnadopted?: boolean;
  /** How often old messages are dropped; 30 s. */
  readonly retentionEveryMs?: number;
}

/** Who uses a group. */
export interface GroupCaller {
  /** Proven; what a group without an owner belongs to from now on. */
  readonly identity: string;
  /** `owner`: the identity that the group belongs to; '': none. */
  ownershipOf(topic: string, group: string, owner: string): 'own' | 'free' | 'foreign';
}

export interface TopicStats {
  readonly topic: string;
  readonly partitions: readonly { readonly first: number; readonly next: number; readonly bytes: number }[];
  /** Why the topic cannot be used; undefined: it can. */
  readonly problem: string | undefined;
  readonly groups: readonly { readonly group: string; readonly lag: number; readonly members: number; readonly committed: readonly number[] }[];
}

const defaultRetentionEveryMs = 30_000;
const stickyMs = 10;
/** A topic that could not be opened is tried again when it is asked for, so long after the last attempt. */
const reopenAfterMs = 1_000;
const remedy = 'run `mizzen broker check` and `mizzen broker repair` while the broker is stopped';

class Topic {
  readonly name: string;
  readonly partitions: readonly PartitionLog[];
  readonly groups: Map<string, ConsumerGroup>;
  /** Where messages without a key go for a while: what goes together is written, and synced, together. */
  #sticky: number;
  #stickySince: number;

  /** Throws the error of the file system; nothing stays open. */
  constructor(name: string, folder: string, count: number, settings: LogSettings, onDamage: (damage: Damage) => void) {
    this.name = name;
    this.groups = new Map();
    this.#sticky = 0;
    this.#stickySince = 0;
    const partitions: PartitionLog[] = [];
    this.partitions = partitions;
    try {
      for (let i = 0; i < count; i++) {
        const pump = () => {
          for (const group of this.groups.values()) group.partitions[i]?.pump();
        };
        partitions.push(new PartitionLog(join(folder, String(i)), settings, pump, Date.now, onDamage));
      }
    } catch (error) {
      for (const partition of partitions) boundary.start(() => partition.close());
      throw error;
    }
  }

  partitionOf(key: string): number {
    const { length } = this.partitions;
    if (length === 1) return 0;
    if (key === '') return this.#sticky;
    // FNV-1a.
    let hash = 0x811c9dc5;
    for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193);
    return (hash >>> 0) % length;
  }

  /** Messages without a key go to the next partition when they have gone to one for long enough. */
  moveOn(): void {
    const now = performance.now();
    if (now - this.#stickySince < stickyMs) return;
    this.#stickySince = now;
    this.#sticky = (this.#sticky + 1) % this.partitions.length;
  }
}

/** A topic that is on disk and cannot be opened. */
interface UnusableTopic {
  readonly folder: string;
  readonly reason: string;
  readonly triedAtMs: number;
}

/** The embedded broker: topics on disk, and groups of consumers. What speaks to sidecars is ./broker-server.ts. */
export class Broker {
  readonly #settings: BrokerSettings;
  readonly #logger: Logger;
  readonly #lock: HomeLock;
  readonly #topicsFolder: string;
  readonly #topics: Map<string, Topic>;
  /** By name. One damaged topic does not keep the others down. */
  readonly #unusable: Map<string, UnusableTopic>;
  readonly #offsets: OffsetStore;
  readonly #retention: NodeJS.Timeout;
  #isClosed: boolean;

  /** Throws MizzenError `data-in-use` when another process has the directory. Damage of what is in it is reported, and does not keep it from starting. */
  constructor(settings: BrokerSettings, logger: Logger) {
    this.#settings = settings;
    this.#logger = logger;
    this.#topics = new Map();
    this.#unusable = new Map();
    this.#isClosed = false;
    this.#topicsFolder = join(settings.folder, 'topics');
    mkdirSync(settings.folder, { recursive: true, mode: 0o700 });
    this.#lock = new HomeLock(settings.folder);
    this.#offsets = new OffsetStore(settings.folder, (problem) => logger.error(problem));
    this.#openAll();
    this.#retention = boundary.every(settings.retentionEveryMs ?? defaultRetentionEveryMs, () => this.#enforceRetention()).unref();
  }

  #openAll(): void {
    try {
      mkdirSync(this.#topicsFolder, { recursive: true, mode: 0o700 });
      adoptMisplacedTopics(this.#settings.folder);
    } catch (error) {
      this.#logger.error(`the folder of topics cannot be prepared: ${messageOf(error)}; ${remedy}`, { folder: this.#topicsFolder });
    }
    let list: ReturnType<typeof listTopicFolders>;
    try {
      list = listTopicFolders(this.#topicsFolder);
    } catch (error) {
      return this.#logger.error(`the folder of topics cannot be read: ${messageOf(error)}; ${remedy}`, { folder: this.#topicsFolder });
    }
    for (const stray of list.strays) this.#logger.warn('not a topic, left alone', { file: stray });
    for (const { folder, name } of list.found) {
      if (name === undefined) this.#logger.error(`a topic cannot be used: its name is lost with its topic.json; ${remedy}`, { folder });
      else if (this.#topics.has(name)) this.#logger.error(`a topic has two folders, and the second is left alone; ${remedy}`, { topic: name, folder });
      else this.#tryOpen(name, folder);
    }
  }

  /** Stores records on a topic. `done` is told once, with what is wrong, or undefined when all of them are on disk. */
  publish(topicName: string, records: readonly Buffer[], keys: readonly string[], done: (problem: string | undefined) => void): void {
    let topic: Topic;
    try {
      topic = this.#topic(topicName);
    } catch (error) {
      return done(messageOf(error));
    }
    topic.moveOn();
    const byPartition = new Map<number, Buffer[]>();
    for (const [i, record] of records.entries()) {
      const partition = topic.partitionOf(keys[i]!);
      const list = byPartition.get(partition);
      if (list === undefined) byPartition.set(partition, [record]);
      else list.push(record);
    }
    let open = byPartition.size;
    let problem: string | undefined;
    for (const [partition, list] of byPartition)
      topic.partitions[partition]!.append(list, (result) => {
        if (result instanceof Error) problem = result.message;
        if (--open === 0) done(problem);
      });
  }

  /**
   * Throws MizzenError for names that no topic can have, and for a group of another workload. A group belongs to its first caller. `caller` undefined: whose
   * groups they are is not checked.
   */
  join(topicName: string, groupName: string, from: 'earliest' | 'latest', member: GroupMember, caller?: GroupCaller): Membership {
    const topic = this.#topic(topicName);
    if (caller !== undefined) {
      const owner = this.#offsets.ownerOf(groupName, topicName);
      if (caller.ownershipOf(topicName, groupName, owner) === 'foreign') throw notOwned(topicName, groupName);
      if (owner !== caller.identity) this.#offsets.claim(groupName, topicName, caller.identity);
    }
    const group = this.#group(topic, groupName, from);
    group.join(member);
    return {
      settle: (partition, offset, delayMs) => {
        const held = group.partitions[partition];
        if (held === undefined || !held.isHeldBy(member, offset)) return;
        member.credit++;
        if (delayMs < 0) held.done(offset);
        else held.again(offset, delayMs);
        group.pumpSoon(member);
      },
      writable: () => group.pumpSoon(member),
      retire: () => group.retire(member),
      leave: () => group.leave(member),
    };
  }

  /** Lets a group begin again: at an offset of all partitions, or at what was appended from a time on. */
  async replay(topicName: string, groupName: string, to: { readonly offset: number } | { readonly timestampMs: number }, caller?: GroupCaller): Promise<void> {
    if (caller !== undefined && !this.#isOwn(caller, topicName, groupName)) throw notOwned(topicName, groupName);
    const topic = this.#topics.get(topicName);
    if (topic === undefined) throw new MizzenError('unknown-topic', `there is no topic ${JSON.stringify(topicName)}`);
    const group = this.#group(topic, groupName, 'earliest');
    for (const [i, partition] of group.partitions.entries()) partition.seek('offset' in to ? to.offset : await topic.partitions[i]!.offsetAt(to.timestampMs));
  }

  /** `caller`: only topics with groups of its own, and these. */
  stats(caller?: GroupCaller): TopicStats[] {
    if (caller === undefined) return this.#allStats();
    return this.#allStats().flatMap((stats) => {
      const groups = stats.groups.filter(({ group }) => this.#isOwn(caller, stats.topic, group));
      return groups.length === 0 ? [] : [{ ...stats, groups }];
    });
  }

  /** Whether a group that there is belongs to the caller. */
  #isOwn(caller: GroupCaller, topic: string, group: string): boolean {
    return this.#offsets.has(group, topic) && caller.ownershipOf(topic, group, this.#offsets.ownerOf(group, topic)) === 'own';
  }

  /** Topics of earlier versions, which belong to no Component yet. */
  unadopted(): string[] {
    return [...this.#topics.keys()].filter((name) => splitFullName(name).space === '');
  }

  /**
   * Gives a topic of an earlier version, with all that is stored and its groups' progress, to a Component. A crash leaves it where it was, or where it is to
   * be. Throws MizzenError with what is in the way.
   */
  async adopt(topicName: string, space: string): Promise<void> {
    const fullName = fullNameOf(space, topicName);
    if (splitFullName(topicName).space !== '' || !isFullName(fullName) || space === '')
      throw new MizzenError(
        'invalid-topic',
        `${JSON.stringify(topicName)} cannot be given to ${JSON.stringify(space)}: name a topic without a Component, and NAMESPACE/COMPONENT`,
      );
    const topic = this.#topics.get(topicName);
    if (topic === undefined) throw new MizzenError('unknown-topic', `there is no topic ${JSON.stringify(topicName)} without a Component`);
    if (this.#topics.has(fullName) || this.#unusable.has(fullName)) throw new MizzenError('topic-exists', `${space} has a topic ${topicName} already`);
    if ([...topic.groups.values()].some(({ memberCount }) => memberCount > 0))
      throw new MizzenError('topic-in-use', `the topic ${topicName} has consumers: stop them first`);
    const from = join(this.#topicsFolder, folderOfTopic(topicName));
    const folder = existsSync(from) ? from : join(this.#topicsFolder, encodeURIComponent(topicName));
    const reason = `it is being given to ${space}`;
    this.#topics.delete(topicName);
    for (const name of [topicName, fullName]) this.#unusable.set(name, { folder, reason, triedAtMs: Number.POSITIVE_INFINITY });
    let place = folder;
    try {
      for (const group of topic.groups.values()) group.close();
      await Promise.all(topic.partitions.map((log) => log.close()));
      // First the progress under the new name, then the folder: what a crash leaves is delivered again at most.
      this.#offsets.copyTopic(topicName, fullName);
      place = join(this.#topicsFolder, folderOfTopic(fullName));
      renameTopicFolder(folder, place, { name: fullName, partitions: topic.partitions.length });
      this.#offsets.forgetTopic(topicName);
      this.#logger.info('a topic of an earlier version belongs to a Component now', { topic: topicName, component: space });
    } catch (error) {
      place = folder;
      throw new MizzenError('topic-unusable', `the topic ${topicName} cannot be given to ${space}: ${messageOf(error)}`);
    } finally {
      this.#unusable.delete(topicName);
      this.#unusable.delete(fullName);
      this.#tryOpen(place === folder ? topicName : fullName, place);
    }
  }

  #allStats(): TopicStats[] {
    const unusable = [...this.#unusable].map(([topic, { reason }]) => ({ topic, problem: reason, partitions: [], groups: [] }));
    const usable = [...this.#topics.values()].map((topic) => ({
      topic: topic.name,
      problem: undefined,
      partitions: topic.partitions.map((log) => ({ first: log.firstOffset, next: log.nextOffset, bytes: log.sizeBytes })),
      groups: [...topic.groups].map(([group, { lag, memberCount, partitions }]) => ({
        group,
        lag,
        members: memberCount,
        committed: partitions.map(({ committed }) => committed),
      })),
    }));
    return [...usable, ...unusable];
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#retention);
    for (const topic of this.#topics.values()) for (const group of topic.groups.values()) group.close();
    await Promise.all([...this.#topics.values()].flatMap((topic) => topic.partitions.map((log) => log.close())));
    this.#offsets.close();
    this.#lock.release();
  }

  /** Throws MizzenError for names that no topic can have, and for a topic that cannot be opened or created. */
  #topic(name: string): Topic {
    const known = this.#topics.get(name);
    if (known !== undefined) return known;
    checkTopicName(name);
    const unusable = this.#unusable.get(name);
    if (unusable !== undefined) {
      const isDue = performance.now() - unusable.triedAtMs > reopenAfterMs;
      const topic = isDue ? this.#tryOpen(name, unusable.folder) : undefined;
      if (topic !== undefined) return topic;
      throw new MizzenError('topic-unusable', `the topic cannot be used: ${this.#unusable.get(name)?.reason ?? unusable.reason}; ${remedy}`);
    }
    const { space, topic } = splitFullName(name);
    if (space !== '' && (this.#topics.has(topic) || this.#unusable.has(topic)))
      throw new MizzenError(
        'topic-not-adopted',
        `a topic ${topic} of an earlier version belongs to no Component yet: give it to one with \`mizzen messages adopt ${topic} NAMESPACE/COMPONENT\``,
      );
    if (this.#topics.size + this.#unusable.size >= this.#settings.maxTopics)
      throw new MizzenError('too-many-topics', `there are ${this.#settings.maxTopics} topics already, which is the limit`);
    const { maxTopicsOfComponent = this.#settings.maxTopics } = this.#settings;
    if (space !== '' && this.#countOf(space) >= maxTopicsOfComponent)
      throw new MizzenError(
        'too-many-topics',
        `the Component ${space} has ${maxTopicsOfComponent} topics already, which is the limit (maxTopicsOfComponent): use another Component`,
      );
    const shape = { name, partitions: this.#settings.partitions };
    try {
      const folder = join(this.#topicsFolder, folderOfTopic(name));
      // It is there when its files could not be opened after it was created.
      if (!existsSync(folder)) createTopicFolder(this.#topicsFolder, shape);
      return this.#open(name, folder);
    } catch (error) {
      throw new MizzenError('topic-unusable', `the topic cannot be created: ${messageOf(error)}`);
    }
  }

  #countOf(space: string): number {
    let count = 0;
    for (const names of [this.#topics.keys(), this.#unusable.keys()]) for (const name of names) if (splitFullName(name).space === space) count++;
    return count;
  }

  #tryOpen(name: string, folder: string): Topic | undefined {
    try {
      const topic = this.#open(name, folder);
      this.#unusable.delete(name);
      return topic;
    } catch (error) {
      const reason = messageOf(error);
      this.#unusable.set(name, { folder, reason, triedAtMs: performance.now() });
      this.#logger.error(`a topic cannot be used: ${reason}; ${remedy}`, { topic: name, folder });
      return undefined;
    }
  }

  /** Throws the error of the file system, or Error that says what is damaged. */
  #open(name: string, folder: string): Topic {
    const count = this.#partitionsOf(name, folder);
    const topic = new Topic(name, folder, count, this.#settings.log, ({ file, position, bytes, from, to, reason }) =>
      this.#logger[to > from ? 'error' : 'warn'](`damage in the log: ${reason}`, {
        topic: name,
        file,
        position,
        bytes,
        ...(to > from ? { lost: to - from, from, to: to - 1 } : {}),
      }),
    );
    this.#topics.set(name, topic);
    // Groups that have been here keep their place, and their lag is known, also while none of their members is here.
    for (const group of this.#offsets.groupsOf(name)) this.#group(topic, group, 'earliest');
    return topic;
  }

  /** How many partitions a topic has is decided once: keys must stay where they are. */
  #partitionsOf(name: string, folder: string): number {
    const shape = readTopicFile(folder);
    if (shape !== undefined) {
      for (let i = 0; i < shape.partitions; i++)
        if (!existsSync(join(folder, String(i))))
          this.#logger.error('a partition is missing, and what it held is lost: it begins again, empty', { topic: name, folder: join(folder, String(i)) });
      return shape.partitions;
    }
    const counted = countPartitions(folder);
    if (counted === undefined) throw new Error('its topic.json is damaged, and a partition is missing');
    const partitions = counted || this.#settings.partitions;
    this.#logger.warn('a damaged topic.json was written again', { topic: name, folder, partitions });
    try {
      writeTopicFile(folder, { name, partitions });
    } catch (error) {
      // On a full disk the topic serves without it.
      this.#logger.warn(`a topic.json cannot be written: ${messageOf(error)}`, { topic: name });
    }
    return partitions;
  }

  #group(topic: Topic, name: string, from: 'earliest' | 'latest'): ConsumerGroup {
    let group = topic.groups.get(name);
    if (group === undefined) {
      const changed = () => this.#offsets.changed(name, topic.name);
      const isKnown = topic.partitions.some((_, i) => this.#offsets.get(name, topic.name, i) !== undefined);
      group = new ConsumerGroup(
        topic.partitions.map((log, i) => {
          const saved = this.#offsets.get(name, topic.name, i);
          const start = saved ?? { committed: isKnown || from === 'earliest' ? 0 : log.nextOffset, done: [] };
          if (start.committed > log.nextOffset)
            this.#logger.warn('the log is shorter than what a group has done of it, as after a restored copy: the group goes on with new messages', {
              topic: topic.name,
              partition: i,
              group: name,
              done: start.committed,
              end: log.nextOffset,
            });
          return new GroupPartition(i, log, start, changed);
        }),
      );
      for (const partition of group.partitions) this.#offsets.track(name, topic.name, partition.partition, () => partition.progress);
      topic.groups.set(name, group);
    }
    return group;
  }

  #enforceRetention(): void {
    for (const topic of this.#topics.values()) {
      // What waits for its Component is kept.
      if (this.#settings.keepsUnadopted === true && splitFullName(topic.name).space === '') continue;
      for (const [i, log] of topic.partitions.entries()) {
        let gone = 0;
        try {
          gone = log.enforceRetention();
        } catch (error) {
          this.#logger.error(`old messages cannot be dropped: ${messageOf(error)}`, { topic: topic.name, partition: i });
        }
        if (gone > 0) this.#logger.info('old messages were dropped', { topic: topic.name, partition: i, messages: gone });
      }
    }
  }
}

function notOwned(topic: string, group: string): MizzenError {
  return new MizzenError('group-not-owned', `group ${JSON.stringify(group)} of topic ${topic} belongs to another workload`);
}

export interface Membership {
  /** `delayMs` -1: done; else it is delivered again after so long. */
  settle(partition: number, offset: number, delayMs: number): void;
  /** The member is sent nothing more, and may settle what it holds before it leaves. */
  retire(): void;
  /** The member takes what is sent again. */
  writable(): void;
  leave(): void;
}
