import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { defaultLogSettings, PartitionLog } from '../log/partition-log.ts';
import { encodeRecord, offsetOf } from '../log/record.ts';
import { ConsumerGroup, type GroupMember, GroupPartition } from './consumer-group.ts';

class Member implements GroupMember {
  credit: number;
  readonly isWritable = true;
  readonly had: { partition: number; attempt: number; offset: number }[] = [];
  constructor(credit: number) {
    this.credit = credit;
  }
  deliver(partition: number, attempt: number, record: Buffer): void {
    this.had.push({ partition, attempt, offset: offsetOf(record) });
  }
  get offsets(): number[] {
    return this.had.map(({ offset }) => offset);
  }
}

describe('a group at a partition', () => {
  let folder: string;
  let log: PartitionLog;
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-group-'));
    log = new PartitionLog(folder, { ...defaultLogSettings, syncs: false }, () => {});
    const record = () => encodeRecord({ key: '', headers: '{}', body: Buffer.from('x'), deliverAtMs: 0 });
    await new Promise((resolve) => log.append([record(), record(), record(), record()], resolve));
  });
  after(async () => {
    await log.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const partition = () => new GroupPartition(0, log, { committed: 0, done: [] }, () => {});

  it('gives out no more than there is credit for, and commits how far everything is done', () => {
    const group = partition();
    const member = new Member(2);
    group.assign(member);
    assert.deepEqual(member.offsets, [0, 1]);
    member.credit++;
    group.done(1);
    group.pump();
    assert.deepEqual(group.progress, { committed: 0, done: [1, 2] });
    assert.deepEqual(member.offsets, [0, 1, 2]);
    member.credit++;
    group.done(0);
    assert.deepEqual(group.progress, { committed: 2, done: [] });
    assert.equal(group.lag, 2);
    group.close();
  });

  it('gives what one has had to the one that comes after it, and listens to the old one no more', () => {
    const group = partition();
    const [first, second] = [new Member(10), new Member(10)];
    group.assign(first);
    group.assign(second);
    assert.deepEqual(second.offsets, [0, 1, 2, 3]);
    assert.deepEqual(
      second.had.map(({ attempt }) => attempt),
      [2, 2, 2, 2],
    );
    assert.equal(group.isHeldBy(first, 0), false);
    group.close();
  });

  it('keeps single acknowledgements over a restart, and delivers only what was open', () => {
    const group = partition();
    const member = new Member(10);
    group.assign(member);
    for (const offset of [1, 3]) group.done(offset);
    const saved = group.progress;
    assert.deepEqual(saved, { committed: 0, done: [1, 2, 3, 4] });
    group.close();
    const again = new GroupPartition(0, log, saved, () => {});
    const next = new Member(10);
    again.assign(next);
    assert.deepEqual(next.offsets, [0, 2]);
    again.done(0);
    assert.equal(again.committed, 2);
    again.done(2);
    assert.deepEqual(again.progress, { committed: 4, done: [] });
    again.close();
  });

  it('goes on with new messages where the log is shorter than what was done of it', () => {
    const group = new GroupPartition(0, log, { committed: 900, done: [901, 950] }, () => {});
    assert.deepEqual(group.progress, { committed: 4, done: [] });
    assert.equal(group.lag, 0);
    group.close();
  });

  it('moves a partition to another member only when the one before has settled what it holds', () => {
    const group = partition();
    const [first, second] = [new Member(2), new Member(10)];
    group.assign(first);
    group.assign(second, false);
    assert.equal(group.owner, second);
    assert.deepEqual(second.offsets, []);
    group.done(0);
    assert.deepEqual(second.offsets, []);
    // What is given back comes before what is new.
    group.again(1, 0);
    assert.deepEqual(second.offsets, [1, 2, 3]);
    group.close();
  });

  it('takes a partition from a member that does not settle what it holds in time', async () => {
    const group = new GroupPartition(0, log, { committed: 0, done: [] }, () => {}, Date.now, 5);
    const [first, second] = [new Member(2), new Member(10)];
    group.assign(first);
    group.assign(second, false);
    while (second.had.length < 4) await setImmediate();
    assert.deepEqual(second.offsets, [0, 1, 2, 3]);
    assert.equal(group.isHeldBy(first, 0), false);
    group.close();
  });

  it('gives out again at once what was given back without delay, before what is new', () => {
    const group = partition();
    const member = new Member(1);
    group.assign(member);
    member.credit++;
    group.again(0, 0);
    group.pump();
    assert.deepEqual(member.had, [
      { partition: 0, attempt: 1, offset: 0 },
      { partition: 0, attempt: 2, offset: 0 },
    ]);
    group.close();
  });

  it('gives every partition its turn where a member takes one message at a time', async () => {
    const partitions = Array.from({ length: 2 }, (_, i) => new GroupPartition(i, log, { committed: 0, done: [] }, () => {}));
    const group = new ConsumerGroup(partitions);
    const member = new Member(1);
    group.join(member);
    for (let n = 0; n < 8; n++) {
      const { partition: at, offset } = member.had.at(-1)!;
      partitions[at]!.done(offset);
      member.credit++;
      group.pumpSoon(member);
      await setImmediate();
    }
    assert.equal(member.had.length, 8);
    for (const at of [0, 1]) assert.ok(member.had.slice(0, 4).some((one) => one.partition === at));
    assert.equal(group.lag, 0);
    group.close();
  });

  it('shares partitions out evenly, moves no more than it must, and leaves nobody without who could have one', () => {
    const partitions = Array.from({ length: 4 }, (_, i) => new GroupPartition(i, log, { committed: 4, done: [] }, () => {}));
    const group = new ConsumerGroup(partitions);
    const [a, b, c] = [new Member(1), new Member(1), new Member(1)];
    const owned = () => [a, b, c].map((member) => partitions.filter((one) => one.member === member).length);
    group.join(a);
    assert.deepEqual(owned(), [4, 0, 0]);
    group.join(b);
    assert.deepEqual(owned(), [2, 2, 0]);
    const ofA = partitions.filter((one) => one.member === a);
    group.join(c);
    assert.deepEqual(owned().sort(), [1, 1, 2]);
    assert.ok(ofA.some((one) => one.member === a));
    group.leave(a);
    assert.deepEqual(
      owned().reduce((sum, count) => sum + count),
      4,
    );
    group.leave(b);
    group.leave(c);
    assert.ok(partitions.every((one) => one.member === undefined));
    group.close();
  });
});
