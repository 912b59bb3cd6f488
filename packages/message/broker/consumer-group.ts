import { errorBoundary } from '@mizzen/common';
import type { PartitionLog } from '../log/partition-log.ts';
import { deliverAtOf, offsetOf } from '../log/record.ts';
import type { GroupProgress } from './offset-store.ts';

const boundary = errorBoundary('broker.group');
/** Before a partition is looked at again after an exception. */
const failedPauseMs = 1_000;

/** Somebody who takes a group's messages, as many at a time as it has credit for. */
export interface GroupMember {
  credit: number;
  /** false: it has not taken what was sent. */
  readonly isWritable: boolean;
  deliver(partition: number, attempt: number, record: Buffer): void;
}

const readBytes = 256 * 1024;
/** Messages of one partition that members hold or that wait to be delivered again: beyond it nothing new is begun. */
const maxOpen = 10_000;
/** Messages of one partition that wait for their time: beyond it nothing new is begun. */
const maxDelayed = 200_000;
/** Ranges of one partition that are saved as done; what is beyond them is delivered again after a restart. */
const maxSavedRanges = 10_000;
/** A member that gives a partition up has so long to settle what it holds. */
export const maxHandoverMs = 60_000;
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
  readonly #changed: () => void;
  readonly #now: () => number;
  readonly #maxHandoverMs: number;
  /** Everything below is done. */
  #committed: number;
  /** What is read next. */
  #cursor: number;
  /** Ranges from the cursor on that were done before a restart: pairs of from and before. */
  #doneBefore: readonly number[];
  readonly #open: Map<number, Open>;
  /** How many of the open ones have a holder. */
  #heldCount: number;
  /** How many of the open ones have not reached their time of delivery yet. */
  #delayedCount: number;
  /** Offsets of those that nobody has, by when they are due. */
  #due: number[];
  #member: GroupMember | undefined;
  /** Who gets the partition when its member has settled what it holds; undefined: it is not being handed over. */
  #heir: { readonly member: GroupMember | undefined } | undefined;
  #handover: NodeJS.Timeout | undefined;
  #isReading: boolean;
  /** Grows when what is being read is no longer wanted. */
  #reading: number;
  #timer: NodeJS.Timeout | undefined;

  /** `changed`: the group has come further. */
  constructor(
    partition: number,
    log: PartitionLog,
    start: GroupProgress,
    changed: () => void,
    now: () => number = Date.now,
    handoverMs: number = maxHandoverMs,
  ) {
    this.partition = partition;
    this.#log = log;
    this.#changed = changed;
    this.#now = now;
    this.#maxHandoverMs = handoverMs;
    // A log that is shorter than what was done of it was restored from a copy, or has lost its end: the group goes on with what is new.
    this.#committed = Math.min(log.nextOffset, Math.max(start.committed, log.firstOffset));
    this.#cursor = this.#committed;
    this.#doneBefore = start.committed > log.nextOffset ? [] : rangesWithin(start.done, this.#committed, log.nextOffset);
    this.#open = new Map();
    this.#heldCount = 0;
    this.#delayedCount = 0;
    this.#due = [];
    this.#member = undefined;
    this.#heir = undefined;
    this.#handover = undefined;
    this.#isReading = false;
    this.#reading = 0;
    this.#timer = undefined;
  }

  /** What is done, for the disk. */
  get progress(): GroupProgress {
    const done: number[] = [];
    let from = this.#committed;
    const range = (before: number) => {
      if (before > from && done.length < 2 * maxSavedRanges) done.push(from, before);
    };
    // Open messages stand in the order of their offsets.
    for (const offset of this.#open.keys()) {
      range(offset);
      from = offset + 1;
    }
    range(this.#cursor);
    if (done.length < 2 * maxSavedRanges) done.push(...this.#doneBefore);
    return { committed: this.#committed, done };
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

  /** The member that has the partition, or gets it when the one before has settled what it holds. */
  get owner(): GroupMember | undefined {
    return this.#heir === undefined ? this.#member : this.#heir.member;
  }

  /**
   * Gives the partition to another member, or to none. `isGone`: the one before has left, and what it held is given out again at once. Otherwise it is sent
   * nothing more, and keeps the partition until it has settled what it holds, at most `maxHandoverMs`.
   */
  assign(member: GroupMember | undefined, isGone = true): void {
    if (member === this.#member) {
      if (this.#heir === undefined) return;
      this.#endHandover();
      return this.pump();
    }
    if (!isGone && this.#member !== undefined && this.#heldCount > 0) {
      this.#heir = { member };
      this.#handover ??= boundary.after(this.#maxHandoverMs, () => this.#handOver());
      return;
    }
    this.#heir = { member };
    this.#handOver();
  }

  #endHandover(): void {
    clearTimeout(this.#handover);
    this.#handover = undefined;
    this.#heir = undefined;
  }

  #handOver(): void {
    const member = this.#heir?.member;
    this.#endHandover();
    this.#member = member;
    for (const [offset, open] of this.#open)
      if (open.holder !== undefined) {
        open.holder = undefined;
        open.notBeforeMs = 0;
        this.#due.push(offset);
      }
    this.#heldCount = 0;
    this.pump();
  }

  /** A member has gone; nothing that it says later counts. */
  isHeldBy(member: GroupMember, offset: number): boolean {
    return this.#open.get(offset)?.holder === member;
  }

  /** What else can be given out now is the caller's to say: `pump`. */
  done(offset: number): void {
    const open = this.#open.get(offset);
    if (open === undefined) return;
    this.#open.delete(offset);
    if (open.attempt === 0) this.#delayedCount--;
    // Everything is done below the lowest that is open.
    // They are opened in order, and keep their place when they come back: the first key is the lowest.
    const [first] = this.#open.keys();
    this.#committed = Math.max(this.#committed, first ?? this.#cursor);
    this.#changed();
    this.#released(open);
  }

  /** A message has no holder any more. */
  #released(open: Open): void {
    if (open.holder === undefined) return;
    open.holder = undefined;
    this.#heldCount--;
    if (this.#heldCount === 0 && this.#heir !== undefined) this.#handOver();
  }

  /** As for `done`, the caller pumps. */
  again(offset: number, delayMs: number): void {
    const open = this.#open.get(offset);
    if (open === undefined || open.holder === undefined) return;
    open.notBeforeMs = delayMs > 0 ? this.#now() + delayMs : 0;
    this.#due.push(offset);
    this.#released(open);
  }

  /** Goes to another place: to read again what was done, or to leave out what was not. */
  seek(offset: number): void {
    this.#reading++;
    this.#isReading = false;
    this.#open.clear();
    this.#heldCount = 0;
    this.#delayedCount = 0;
    this.#due = [];
    this.#doneBefore = [];
    this.#committed = Math.max(this.#log.firstOffset, Math.min(offset, this.#log.nextOffset));
    this.#cursor = this.#committed;
    this.#changed();
    if (this.#heir !== undefined) return this.#handOver();
    this.pump();
  }

  /** Gives out what can be given out: first what comes back, then what is new, each in the order of the log. */
  pump(): void {
    const member = this.#member;
    if (member === undefined || this.#heir !== undefined || this.#isReading) return;
    const due = this.#takeDue(member);
    if (due.length > 0) return this.#giveDue(member, due);
    this.#skipDone();
    const isFull = this.#open.size - this.#delayedCount >= maxOpen || this.#delayedCount >= maxDelayed;
    if (member.credit <= 0 || !member.isWritable || isFull || this.#cursor >= this.#log.nextOffset) return this.#setTimer();
    this.#isReading = true;
    const reading = this.#reading;
    // What retention has taken away is gone.
    if (this.#cursor < this.#log.firstOffset) this.#cursor = this.#log.firstOffset;
    const given = (records: readonly Buffer[]) => {
      if (reading !== this.#reading) return;
      this.#isReading = false;
      const now = this.#now();
      for (const record of records) {
        const offset = offsetOf(record);
        this.#skipDone();
        if (offset < this.#cursor) continue;
        if (member !== this.#member || this.#heir !== undefined || member.credit <= 0) break;
        if (this.#open.size - this.#delayedCount >= maxOpen || this.#delayedCount >= maxDelayed) break;
        this.#cursor = offset + 1;
        const deliverAtMs = deliverAtOf(record);
        if (deliverAtMs > now) {
          this.#open.set(offset, { attempt: 0, holder: undefined, notBeforeMs: deliverAtMs });
          this.#delayedCount++;
          this.#due.push(offset);
          continue;
        }
        this.#open.set(offset, { attempt: 1, holder: member, notBeforeMs: 0 });
        this.#heldCount++;
        member.credit--;
        this.#deliver(member, 1, record, offset);
      }
      this.#setTimer();
      if (records.length > 0) this.pump();
    };
    this.#log.read(
      this.#cursor,
      readBytes,
      boundary.wrap(given, () => this.#readFailed(reading)),
    );
  }

  /** Hands out one record. One that cannot be sent is given out again after a pause; those behind it go on. */
  #deliver(member: GroupMember, attempt: number, record: Buffer, offset: number): void {
    try {
      boundary.enter();
      member.deliver(this.partition, attempt, record);
    } catch (error) {
      boundary.caught(error);
      member.credit++;
      this.#heldCount--;
      this.#delayedCount++;
      this.#open.set(offset, { attempt: 0, holder: undefined, notBeforeMs: this.#now() + failedPauseMs });
      this.#due.push(offset);
    }
  }

  /** The partition does not stay as if it were read: it is looked at again. */
  #readFailed(reading: number): void {
    if (reading !== this.#reading) return;
    this.#isReading = false;
    clearTimeout(this.#timer);
    this.#timer = boundary.after(
      failedPauseMs,
      () => this.pump(),
      () => this.#readFailed(reading),
    );
  }

  /** Moves the cursor over what was done before a restart. */
  #skipDone(): void {
    while (this.#doneBefore.length > 0 && this.#doneBefore[0]! <= this.#cursor) {
      this.#cursor = Math.max(this.#cursor, this.#doneBefore[1]!);
      this.#doneBefore = this.#doneBefore.slice(2);
      if (this.#open.size === 0 && this.#cursor > this.#committed) {
        this.#committed = this.#cursor;
        this.#changed();
      }
    }
  }

  /** Takes from the waiting messages those whose time has come, as many as the member has credit for, in the order of the log. */
  #takeDue(member: GroupMember): number[] {
    if (this.#due.length === 0 || member.credit <= 0 || !member.isWritable) return [];
    const now = this.#now();
    const waiting: number[] = [];
    const due: number[] = [];
    for (const offset of this.#due.sort((a, b) => a - b)) {
      const open = this.#open.get(offset);
      if (open === undefined || open.holder !== undefined) continue;
      if (open.notBeforeMs > now || due.length >= member.credit) waiting.push(offset);
      else due.push(offset);
    }
    this.#due = waiting;
    return due;
  }

  /** Delivers one after the other: what is read from memory must not overtake what is read from disk. */
  #giveDue(member: GroupMember, due: readonly number[]): void {
    this.#isReading = true;
    const reading = this.#reading;
    const next = (at: number): void => {
      for (let i = at; i < due.length; i++) {
        const offset = due[i]!;
        const open = this.#open.get(offset);
        if (open === undefined) continue;
        if (member !== this.#member || this.#heir !== undefined || member.credit <= 0) {
          this.#due.push(...due.slice(i));
          break;
        }
        let isBack = false;
        let isSync = true;
        const given = ([record]: readonly Buffer[]) => {
          if (reading !== this.#reading) return;
          isBack = true;
          if (record === undefined || offsetOf(record) !== offset) {
            // Retention has taken it away, or its bytes are damaged, which the log reports.
            this.done(offset);
          } else if (member !== this.#member || this.#heir !== undefined) this.#due.push(offset);
          else {
            if (open.attempt === 0) this.#delayedCount--;
            open.attempt++;
            open.holder = member;
            this.#heldCount++;
            member.credit--;
            this.#deliver(member, open.attempt, record, offset);
          }
          if (!isSync) next(i + 1);
        };
        const failed = () => {
          isBack = true;
          this.#due.push(...due.slice(i));
          this.#readFailed(reading);
        };
        this.#log.read(offset, 1, boundary.wrap(given, failed));
        if (!this.#isReading) return;
        isSync = false;
        if (!isBack) return;
      }
      this.#isReading = false;
      this.#setTimer();
      this.pump();
    };
    next(0);
  }

  #setTimer(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    let next = Number.POSITIVE_INFINITY;
    for (const offset of this.#due) next = Math.min(next, this.#open.get(offset)?.notBeforeMs ?? next);
    if (next === Number.POSITIVE_INFINITY || this.#member === undefined || this.#isReading) return;
    const again = () => {
      this.#timer = boundary.after(failedPauseMs, () => this.pump(), again);
    };
    this.#timer = boundary.after(Math.min(maxTimerMs, Math.max(1, next - this.#now())), () => this.pump(), again);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#endHandover();
    this.#member = undefined;
    this.#reading++;
  }
}

/** The parts of saved ranges that lie between two offsets. */
function rangesWithin(ranges: readonly number[], first: number, before: number): readonly number[] {
  const within: number[] = [];
  for (let i = 0; i + 1 < ranges.length; i += 2) {
    const from = Math.max(first, within.at(-1) ?? first, ranges[i]!);
    const to = Math.min(before, ranges[i + 1]!);
    if (to > from) within.push(from, to);
  }
  return within;
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

  /** The member takes nothing more and settles what it holds; its partitions then go to the others. */
  retire(member: GroupMember): void {
    this.#remove(member);
  }

  leave(member: GroupMember): void {
    this.#remove(member);
    // What it still holds of partitions that it was to hand over is given out again at once.
    for (const partition of this.partitions) if (partition.member === member) partition.assign(partition.owner === member ? undefined : partition.owner);
  }

  #remove(member: GroupMember): void {
    const at = this.#members.indexOf(member);
    if (at < 0) return;
    this.#members.splice(at, 1);
    this.#share();
  }

  /** Every member keeps as much as is fair; only what is too much moves, when its member has settled what it holds of it. */
  #share(): void {
    const count = this.#members.length;
    if (count === 0) {
      for (const partition of this.partitions) partition.assign(undefined, false);
      return;
    }
    const most = Math.ceil(this.partitions.length / count);
    const held = new Map<GroupMember, number>(this.#members.map((member) => [member, 0]));
    const free: GroupPartition[] = [];
    for (const partition of this.partitions) {
      const { owner } = partition;
      const owned = owner === undefined ? undefined : held.get(owner);
      if (owner === undefined || owned === undefined || owned >= most) free.push(partition);
      else held.set(owner, owned + 1);
    }
    for (const partition of free) {
      const [member] = [...held].sort((a, b) => a[1] - b[1])[0]!;
      held.set(member, held.get(member)! + 1);
      partition.assign(member, false);
    }
    // A member without any, while others have two, takes one of them.
    for (const [member, owned] of [...held]) {
      if (owned > 0) continue;
      const [richest, most2] = [...held].sort((a, b) => b[1] - a[1])[0]!;
      if (most2 < 2) break;
      const moved = this.partitions.find((partition) => partition.owner === richest)!;
      held.set(richest, most2 - 1);
      held.set(member, 1);
      moved.assign(member, false);
    }
  }

  /** A member has room again. Its credit counts for all of its partitions: each of them comes first in its turn, so that none starves beside a long one. */
  pumpSoon(member: GroupMember): void {
    if (this.#pumping.size === 0)
      boundary.soon(
        () => this.#pumpAll(),
        () => this.#pumping.clear(),
      );
    this.#pumping.add(member);
  }

  #pumpAll(): void {
    const { length } = this.partitions;
    this.#firstPumped++;
    for (let i = 0; i < length; i++) {
      const partition = this.partitions[(this.#firstPumped + i) % length]!;
      if (partition.member !== undefined && this.#pumping.has(partition.member)) boundary.run(() => partition.pump());
    }
    this.#pumping.clear();
  }

  close(): void {
    for (const partition of this.partitions) partition.close();
  }
}
