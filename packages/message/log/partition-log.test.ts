import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import fc from 'fast-check';
import { defaultLogSettings, type LogSettings, PartitionLog } from './partition-log.ts';
import { decodeRecord, encodeRecord, isSound, maxRecordBytes, recordLengthAt, sealRecord } from './record.ts';

describe('a partition of the log', () => {
  let folder: string;
  let now: number;
  const logs: PartitionLog[] = [];
  const open = (settings: Partial<LogSettings> = {}) => {
    const log = new PartitionLog(
      folder,
      { ...defaultLogSettings, syncs: false, ...settings },
      () => {},
      () => now,
    );
    logs.push(log);
    return log;
  };
  const record = (body: string, key = 'k') => encodeRecord({ key, headers: '{"a":"ä"}', body: Buffer.from(body), deliverAtMs: 0 });
  const append = (log: PartitionLog, ...bodies: string[]) =>
    new Promise<number>((resolve, reject) =>
      log.append(
        bodies.map((body) => record(body)),
        (result) => (typeof result === 'number' ? resolve(result) : reject(result)),
      ),
    );
  const read = async (log: PartitionLog, from: number, maxBytes = 1e6) =>
    (await new Promise<readonly Buffer[]>((resolve) => log.read(from, maxBytes, resolve))).map((one) => decodeRecord(one));
  const bodies = async (log: PartitionLog, from = 0) => {
    const all: string[] = [];
    for (let at = from; at < log.nextOffset; ) {
      const records = await read(log, at, 500);
      if (records.length === 0) break;
      all.push(...records.map(({ body }) => body.toString()));
      at = records.at(-1)!.offset + 1;
    }
    return all;
  };
  const file = () =>
    join(
      folder,
      readdirSync(folder)
        .filter((name) => name.endsWith('.log'))
        .sort()
        .at(-1)!,
    );

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-log-'));
    now = 1_000;
  });
  afterEach(async () => {
    await Promise.all(logs.splice(0).map((log) => log.close()));
    rmSync(folder, { recursive: true, force: true });
  });

  it('gives records the next offsets, in order, and reads them from memory and from disk alike', async () => {
    const log = open();
    assert.equal(await append(log, 'a', 'b'), 0);
    assert.equal(await append(log, 'c'), 2);
    assert.deepEqual(await bodies(log), ['a', 'b', 'c']);
    await log.close();
    const again = open();
    assert.equal(again.nextOffset, 3);
    assert.deepEqual(await bodies(again, 1), ['b', 'c']);
    const [first] = await read(again, 0);
    assert.deepEqual({ key: first!.key, headers: first!.headers, timestampMs: first!.timestampMs }, { key: 'k', headers: '{"a":"ä"}', timestampMs: 1_000 });
    assert.deepEqual(await read(again, 3), []);
  });

  it('cuts off what a crash has left half-written, wherever it was cut, and goes on behind it', async () => {
    const log = open();
    await append(log, 'one', 'two', 'three');
    await log.close();
    const whole = readFileSync(file());
    const twoEnd = recordLengthAt(whole, 0)! + recordLengthAt(whole, recordLengthAt(whole, 0)!)!;
    for (let length = twoEnd; length < whole.length; length++) {
      writeFileSync(file(), whole.subarray(0, length));
      const again = open();
      assert.equal(again.nextOffset, 2);
      assert.equal(await append(again, 'new'), 2);
      assert.deepEqual(await bodies(again), ['one', 'two', 'new']);
      await again.close();
    }
  });

  it('cuts off rubbish and records whose bytes have changed', async () => {
    const log = open();
    await append(log, 'one', 'two');
    await log.close();
    appendFileSync(file(), Buffer.alloc(200, 7));
    assert.equal(open().nextOffset, 2);
    const bytes = readFileSync(file());
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(file(), bytes);
    assert.equal(open().nextOffset, 1);
  });

  it('spreads over segments, reads across them, and finds its place in each', async () => {
    const log = open({ segmentBytes: 2_000 });
    for (let i = 0; i < 100; i++) await append(log, `${i} ${'x'.repeat(100)}`);
    assert.ok(readdirSync(folder).filter((name) => name.endsWith('.log')).length > 5);
    assert.equal((await bodies(log)).length, 100);
    await log.close();
    const again = open({ segmentBytes: 2_000 });
    for (const from of [0, 37, 99]) assert.match((await read(again, from))[0]!.body.toString(), new RegExp(`^${from} `));
  });

  it('reads a record that is larger than what is read at once', async () => {
    const log = open();
    await append(log, 'a', 'x'.repeat(3_000_000), 'c');
    await log.close();
    const again = open();
    assert.equal(again.nextOffset, 3);
    assert.equal((await read(again, 1, 100))[0]!.body.length, 3_000_000);
    assert.deepEqual(await bodies(again, 2), ['c']);
  });

  it('drops whole segments that are too old, or too many bytes, and never the newest', async () => {
    const log = open({ segmentBytes: 500, retentionMs: 1_000 });
    for (let i = 0; i < 20; i++) {
      await append(log, 'x'.repeat(100));
      now += 100;
    }
    assert.ok(log.enforceRetention() > 0);
    assert.ok(log.firstOffset > 5 && log.firstOffset < 20);
    // Who asks for what is gone begins with what is there.
    assert.equal((await read(log, 0))[0]!.offset, log.firstOffset);
    now += 1e6;
    log.enforceRetention();
    assert.ok(log.firstOffset < log.nextOffset);
  });

  it('finds what was appended from a time on', async () => {
    const log = open();
    for (const time of [1_000, 2_000, 3_000]) {
      now = time;
      await append(log, String(time));
    }
    assert.equal(await log.offsetAt(1_500), 1);
    assert.equal(await log.offsetAt(0), 0);
    assert.equal(await log.offsetAt(9_000), 3);
  });

  it('says so when the disk does not take what was written, and forgets it', async () => {
    const log = open();
    await append(log, 'a');
    await log.close();
    await assert.rejects(append(log, 'b'), /closed/);
    truncateSync(file(), 10);
    assert.equal(open().nextOffset, 0);
  });
});

describe('a record', () => {
  it('comes back as it went in, and no other bytes are taken for one', () => {
    fc.assert(
      fc.property(fc.string(), fc.uint8Array({ maxLength: 300 }), fc.nat(), fc.nat(), (key, body, offset, at) => {
        const record = encodeRecord({ key: key.slice(0, 1_000), headers: '{}', body, deliverAtMs: 0 });
        sealRecord(record, offset, 5);
        const back = decodeRecord(record);
        assert.equal(back.key, Buffer.from(key.slice(0, 1_000)).toString());
        assert.deepEqual([...back.body], [...body]);
        assert.equal(back.offset, offset);
        assert.ok(isSound(record));
        const changed = Buffer.from(record);
        changed[4 + (at % (record.length - 4))]! ^= 1;
        assert.ok(!isSound(changed));
      }),
    );
    assert.equal(recordLengthAt(Buffer.from([255, 255, 255, 255, ...Buffer.alloc(60)]), 0), undefined);
    assert.ok(maxRecordBytes > 1e6);
  });
});
