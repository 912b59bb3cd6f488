import type { PartitionLog } from '../log/partition-log.ts';
import { deliverAtOf, offsetOf } from '../log/record.ts';

/** Somebody who takes a group's messages, as many at a time as it has credit for. */
export interface GroupMember {
  credit: number;
  /** false: it has not taken what was sent. */
  readonly isWritable: boolean;
  deliver(partition: number, attempt: number, record: Buffer): void;
}

const readBytes = 256 * 1024;
/** Messages of one partition that are neither done nor at their end: beyond it nothing new is begun. */
const maxOpen = 10_000;
const maxTimerMs = 60_000;

/** A message that somebody has, or that waits for its time. */
interface Open {
  attempt: number;
  /** undefined: nobody has it; it is given out when its time has come. */
  holder: GroupMember | undefined;
  notBeforeMs: number;
}

/**
 * What one group has of one partition: what comes next, what is under way, and how far everything is done. Messages are begun in order; each is done
 * for itself, and those that come back are given out before new ones.
 */
export class GroupPartition {
  readonly partition: number;
  readonly #log: PartitionLog;
  readonly #commit: (offset: number) => void;
  readonly #now: () => number;
  /** Everything below is done. */
  #committed: number;
  /** What is read next. */
  #cursor: number;
  readonly #open: Map<number, Open>;
  /** Offsets of those that nobody has, by when they are due. */
  #due: number[];
  #member: GroupMember | undefined;
  #isReading: boolean;
  /** Grows when what is being read is no longer wanted. */
  #reading: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(partition: number, log: PartitionLog, start: number, commit: (offset: number) => void, now: () => number = Date.now) {
    this.partition = partition;
    this.#log = log;
    this.#commit = commit;
    this.#now = now;
    this.#committed = Math.max(start, log.firstOffset);
    this.#cursor = this.#committed;
    this.#open = new Map();
    this.#due = [];
    this.#member = undefined;
    this.#isReading = false;
    this.#reading = 0;
    this.#timer = undefined;
  }

  get committed(): number {
    return this.#committed;
  }

  get member(): GroupMember | undefined {
    return this.#member;
  }

  /** Messages that are not done. */
  get lag(): number {
    return Math.max(0, this.#log.nextOffset - Math.max(this.#committed, this.#log.firstOffset));
  }

  /** Gives the partition to somebody else, or to nobody. What the one before had is given out again. */
  assign(member: GroupMember | undefined): void {
    if (member === this.#member) return;
    this.#member = member;
    for (const [offset, open] of this.#open)
      if (open.holder !== undefined) {
        open.holder = undefined;
        open.notBeforeMs = 0;
        this.#due.push(offset);
      }
    this.pump();
  }

  /** A member has gone; nothing that it says later counts. */
  isHeldBy(member: GroupMember, offset: number): boolean {
    return this.#open.get(offset)?.holder === member;
  }

  /** What else can be given out now is the caller's to say: `pump`. */
  done(offset: number): void {
    if (!this.#open.delete(offset)) return;
    // How far everything is done is the lowest that is open.
    // They are opened in order, and keep their place when they come back: the first key is the lowest.
    const [first] = this.#open.keys();
    const lowest = first ?? this.#cursor;
    if (lowest > this.#committed) {
      this.#committed = lowest;
      this.#commit(lowest);
    }
  }

  /** As for `done`, the caller pumps. */
  again(offset: number, delayMs: number): void {
    const open = this.#open.get(offset);
    if (open === undefined) return;
    open.holder = undefined;
    open.notBeforeMs = delayMs > 0 ? this.#now() + delayMs : 0;
    this.#due.push(offset);
  }

  /** Goes to another place: to read again what was done, or to leave out what was not. */
  seek(offset: number): void {
    this.#reading++;
    this.#isReading = false;
    this.#open.clear();
    this.#due = [];
    this.#committed = Math.max(this.#log.firstOffset, Math.min(offset, this.#log.nextOffset));
    this.#cursor = this.#committed;
    this.#commit(this.#committed);
    this.pump();
  }

  /** Gives out what can be given out. */
  pump(): void {
    const member = this.#member;
    if (member === undefined) return;
    this.#giveDue(member);
    if (member.credit <= 0 || !member.isWritable || this.#isReading || this.#open.size >= maxOpen || this.#cursor >= this.#log.nextOffset) return;
    this.#isReading = true;
    const reading = this.#reading;
    // What retention has taken away is gone.
    if (this.#cursor < this.#log.firstOffset) this.#cursor = this.#log.firstOffset;
    this.#log.read(this.#cursor, readBytes, (records) => {
      if (reading !== this.#reading) return;
      this.#isReading = false;
      const now = this.#now();
      for (const record of records) {
        const offset = offsetOf(record);
        if (offset < this.#cursor) continue;
        if (member !== this.#member || member.credit <= 0 || this.#open.size >= maxOpen) break;
        this.#cursor = offset + 1;
        const deliverAtMs = deliverAtOf(record);
        if (deliverAtMs > now) {
          this.#open.set(offset, { attempt: 0, holder: undefined, notBeforeMs: deliverAtMs });
          this.#due.push(offset);
          continue;
        }
        this.#open.set(offset, { attempt: 1, holder: member, notBeforeMs: 0 });
        member.credit--;
        member.deliver(this.partition, 1, record);
      }
      this.#setTimer();
      if (records.length > 0) this.pump();
    });
  }

  #giveDue(member: GroupMember): void {
    if (this.#due.length === 0) return;
    const now = this.#now();
    const waiting: number[] = [];
    // The order in which they were published is kept among those that are due.
    for (const offset of this.#due.sort((a, b) => a - b)) {
      const open = this.#open.get(offset);
      if (open === undefined || open.holder !== undefined) continue;
      if (open.notBeforeMs > now || member.credit <= 0) {
        waiting.push(offset);
        continue;
      }
      open.holder = member;
      open.attempt++;
      member.credit--;
      this.#log.read(offset, 1, ([record]) => {
        // Taken away by retention, or given up meanwhile.
        if (this.#open.get(offset) !== open || open.holder !== member) return;
        if (record === undefined || offsetOf(record) !== offset) {
          member.credit++;
          this.done(offset);
          return this.pump();
        }
        member.deliver(this.partition, open.attempt, record);
      });
    }
    this.#due = waiting;
    this.#setTimer();
  }

  #setTimer(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    let next = Number.POSITIVE_INFINITY;
    for (const offset of this.#due) next = Math.min(next, this.#open.get(offset)?.notBeforeMs ?? next);
    if (next === Number.POSITIVE_INFINITY || this.#member === undefined) return;
    this.#timer = setTimeout(() => this.pump(), Math.min(maxTimerMs, Math.max(1, next - this.#now())));
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#member = undefined;
    this.#reading++;
  }
}

/** A group of consumers of one topic: every partition belongs to one member at a time, shared out evenly. */
export class ConsumerGroup {
  readonly partitions: readonly GroupPartition[];
  readonly #members: GroupMember[];
  /** Members that may be given more when this turn of the event loop is over. */
  readonly #pumping: Set<GroupMember>;
  #firstPumped: number;

  constructor(partitions: readonly GroupPartition[]) {
    this.partitions = partitions;
    this.#members = [];
    this.#pumping = new Set();
    this.#firstPumped = 0;
  }

  get memberCount(): number {
    return this.#members.length;
  }

  get lag(): number {
    return this.partitions.reduce((sum, partition) => sum + partition.lag, 0);
  }

  join(member: GroupMember): void {
    this.#members.push(member);
    this.#share();
  }

  leave(member: GroupMember): void {
    const at = this.#members.indexOf(member);
    if (at < 0) return;
    this.#members.splice(at, 1);
    this.#share();
  }

  /** Everybody keeps as much as is fair; only what is too much moves. */
  #share(): void {
    const count = this.#members.length;
    if (count === 0) {
      for (const partition of this.partitions) partition.assign(undefined);
      return;
    }
    const most = Math.ceil(this.partitions.length / count);
    const held = new Map<GroupMember, number>(this.#members.map((member) => [member, 0]));
    const free: GroupPartition[] = [];
    for (const partition of this.partitions) {
      const owned = partition.member === undefined ? undefined : held.get(partition.member);
      if (owned === undefined || owned >= most) free.push(partition);
      else held.set(partition.member!, owned + 1);
    }
    for (const partition of free) {
      const [member] = [...held].sort((a, b) => a[1] - b[1])[0]!;
      held.set(member, held.get(member)! + 1);
      partition.assign(member);
    }
    // Who has none, while others have two, takes one of them.
    for (const [member, owned] of [...held]) {
      if (owned > 0) continue;
      const [richest, most2] = [...held].sort((a, b) => b[1] - a[1])[0]!;
      if (most2 < 2) break;
      const moved = this.partitions.find((partition) => partition.member === richest)!;
      held.set(richest, most2 - 1);
      held.set(member, 1);
      moved.assign(member);
    }
  }

  /** A member has room again. Its credit counts for all of its partitions: each of them comes first in its turn, so that none starves beside a long one. */
  pumpSoon(member: GroupMember): void {
    if (this.#pumping.size === 0) setImmediate(() => this.#pumpAll());
    this.#pumping.add(member);
  }

  #pumpAll(): void {
    const { length } = this.partitions;
    this.#firstPumped++;
    for (let i = 0; i < length; i++) {
      const partition = this.partitions[(this.#firstPumped + i) % length]!;
      if (partition.member !== undefined && this.#pumping.has(partition.member)) partition.pump();
    }
    this.#pumping.clear();
  }

  close(): void {
    for (const partition of this.partitions) partition.close();
  }
}
