import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Logger, MizzenError } from '@mizzen/common';
import { type LogSettings, PartitionLog } from '../log/partition-log.ts';
import { ConsumerGroup, type GroupMember, GroupPartition } from './consumer-group.ts';
import { OffsetStore } from './offset-store.ts';

export interface BrokerSettings {
  readonly folder: string;
  readonly log: LogSettings;
  /** Of topics that are new. */
  readonly partitions: number;
  readonly maxTopics: number;
}

export interface TopicStats {
  readonly topic: string;
  readonly partitions: readonly { readonly first: number; readonly next: number; readonly bytes: number }[];
  readonly groups: readonly { readonly group: string; readonly lag: number; readonly members: number; readonly committed: readonly number[] }[];
}

const retentionEveryMs = 30_000;
const stickyMs = 10;

class Topic {
  readonly name: string;
  readonly partitions: readonly PartitionLog[];
  readonly groups: Map<string, ConsumerGroup>;
  /** Where messages without a key go for a while: what goes together is written, and synced, together. */
  #sticky: number;
  #stickySince: number;

  constructor(name: string, folder: string, count: number, settings: LogSettings) {
    this.name = name;
    this.groups = new Map();
    this.#sticky = 0;
    this.#stickySince = 0;
    this.partitions = Array.from(
      { length: count },
      (_, i) =>
        new PartitionLog(join(folder, String(i)), settings, () => {
          for (const group of this.groups.values()) group.partitions[i]!.pump();
        }),
    );
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

const topicPattern = /^[\w.:/@-]{1,200}$/;

/** The embedded broker: topics on disk, and groups of consumers. What speaks to sidecars is ./broker-server.ts. */
export class Broker {
  readonly #settings: BrokerSettings;
  readonly #logger: Logger;
  readonly #topics: Map<string, Topic>;
  readonly #offsets: OffsetStore;
  readonly #retention: NodeJS.Timeout;
  #isClosed: boolean;

  constructor(settings: BrokerSettings, logger: Logger) {
    this.#settings = settings;
    this.#logger = logger;
    this.#topics = new Map();
    this.#isClosed = false;
    mkdirSync(join(settings.folder, 'topics'), { recursive: true, mode: 0o700 });
    this.#offsets = new OffsetStore(settings.folder, (error) => logger.error(`how far consumers have come cannot be written: ${error.message}`));
    for (const entry of readdirSync(join(settings.folder, 'topics'))) this.#open(decodeURIComponent(entry));
    this.#retention = setInterval(() => this.#enforceRetention(), retentionEveryMs).unref();
  }

  /** Stores records on a topic. `done` is told once, with what is wrong, or undefined when all of them are on disk. */
  publish(topicName: string, records: readonly Buffer[], keys: readonly string[], done: (problem: string | undefined) => void): void {
    let topic: Topic;
    try {
      topic = this.#topic(topicName);
    } catch (error) {
      return done((error as Error).message);
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

  /** Throws MizzenError for names that no topic can have. */
  join(topicName: string, groupName: string, from: 'earliest' | 'latest', member: GroupMember): Membership {
    const topic = this.#topic(topicName);
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
      leave: () => group.leave(member),
    };
  }

  /** Lets a group begin again: at an offset of all partitions, or at what was appended from a time on. */
  async replay(topicName: string, groupName: string, to: { readonly offset: number } | { readonly timestampMs: number }): Promise<void> {
    const topic = this.#topics.get(topicName);
    if (topic === undefined) throw new MizzenError('unknown-topic', `there is no topic ${JSON.stringify(topicName)}`);
    const group = this.#group(topic, groupName, 'earliest');
    for (const [i, partition] of group.partitions.entries()) partition.seek('offset' in to ? to.offset : await topic.partitions[i]!.offsetAt(to.timestampMs));
  }

  stats(): TopicStats[] {
    return [...this.#topics.values()].map((topic) => ({
      topic: topic.name,
      partitions: topic.partitions.map((log) => ({ first: log.firstOffset, next: log.nextOffset, bytes: log.sizeBytes })),
      groups: [...topic.groups].map(([group, { lag, memberCount, partitions }]) => ({
        group,
        lag,
        members: memberCount,
        committed: partitions.map(({ committed }) => committed),
      })),
    }));
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#retention);
    for (const topic of this.#topics.values()) for (const group of topic.groups.values()) group.close();
    await Promise.all([...this.#topics.values()].flatMap((topic) => topic.partitions.map((log) => log.close())));
    this.#offsets.close();
  }

  #topic(name: string): Topic {
    const known = this.#topics.get(name);
    if (known !== undefined) return known;
    if (!topicPattern.test(name))
      throw new MizzenError('invalid-topic', `${JSON.stringify(name.slice(0, 80))} cannot be the name of a topic: letters, digits and . _ - : / @`);
    if (this.#topics.size >= this.#settings.maxTopics)
      throw new MizzenError('too-many-topics', `there are ${this.#settings.maxTopics} topics already, which is the limit`);
    return this.#open(name);
  }

  #open(name: string): Topic {
    const folder = join(this.#settings.folder, 'topics', encodeURIComponent(name));
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    // How many partitions a topic has is decided once: keys must stay where they are.
    const file = join(folder, 'topic.json');
    if (!existsSync(file)) writeFileSync(file, JSON.stringify({ partitions: this.#settings.partitions }), { mode: 0o600 });
    const { partitions } = JSON.parse(readFileSync(file, 'utf8')) as { readonly partitions: number };
    const topic = new Topic(name, folder, partitions, this.#settings.log);
    this.#topics.set(name, topic);
    // Groups that have been here keep their place, and their lag is known, also while none of their members is here.
    for (const group of this.#offsets.groups())
      if (topic.partitions.some((_, i) => this.#offsets.get(group, name, i) !== undefined)) this.#group(topic, group, 'earliest');
    return topic;
  }

  #group(topic: Topic, name: string, from: 'earliest' | 'latest'): ConsumerGroup {
    let group = topic.groups.get(name);
    if (group === undefined) {
      group = new ConsumerGroup(
        topic.partitions.map((log, i) => {
          const saved = this.#offsets.get(name, topic.name, i);
          const start = saved ?? (from === 'earliest' ? 0 : log.nextOffset);
          if (saved === undefined) this.#offsets.set(name, topic.name, i, start);
          return new GroupPartition(i, log, start, (offset) => this.#offsets.set(name, topic.name, i, offset));
        }),
      );
      topic.groups.set(name, group);
    }
    return group;
  }

  #enforceRetention(): void {
    for (const topic of this.#topics.values())
      for (const [i, log] of topic.partitions.entries()) {
        const gone = log.enforceRetention();
        if (gone > 0) this.#logger.info('old messages were dropped', { topic: topic.name, partition: i, messages: gone });
      }
  }
}

export interface Membership {
  /** `delayMs` -1: done; else it is delivered again after so long. */
  settle(partition: number, offset: number, delayMs: number): void;
  /** The member takes what is sent again. */
  writable(): void;
  leave(): void;
}
