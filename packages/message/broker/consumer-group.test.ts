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
  const partition = (commits: number[] = []) => new GroupPartition(0, log, 0, (offset) => commits.push(offset));

  it('gives out no more than there is credit for, and commits how far everything is done', () => {
    const commits: number[] = [];
    const group = partition(commits);
    const member = new Member(2);
    group.assign(member);
    assert.deepEqual(member.offsets, [0, 1]);
    member.credit++;
    group.done(1);
    group.pump();
    assert.deepEqual(commits, []);
    assert.deepEqual(member.offsets, [0, 1, 2]);
    member.credit++;
    group.done(0);
    assert.deepEqual(commits, [2]);
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
    const partitions = Array.from({ length: 2 }, (_, i) => new GroupPartition(i, log, 0, () => {}));
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
    const partitions = Array.from({ length: 4 }, (_, i) => new GroupPartition(i, log, 4, () => {}));
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
