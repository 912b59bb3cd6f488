import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { Logger, silentLogger } from '@mizzen/common';
import fc from 'fast-check';
import { defaultLogSettings } from '../log/partition-log.ts';
import { decodeRecord, encodeRecord } from '../log/record.ts';
import { topicPattern } from '../policy/topic-names.ts';
import { Broker } from './broker.ts';
import { checkHome, repairHome } from './check-home.ts';
import type { GroupMember } from './consumer-group.ts';
import { HomeLock } from './home-lock.ts';
import { folderOfTopic, topicOfFolder } from './topic-folders.ts';

const settings = (folder: string) => ({ folder, log: { ...defaultLogSettings, syncs: false, segmentBytes: 4_000 }, partitions: 2, maxTopics: 1_000 });

function publish(broker: Broker, topic: string, ...bodies: string[]): Promise<string | undefined> {
  const records = bodies.map((body) => encodeRecord({ key: body, headers: '{}', body: Buffer.from(body), deliverAtMs: 0 }));
  return new Promise((resolve) => broker.publish(topic, records, bodies, resolve));
}

/** What a group that is new gets of a topic, until `count` have come or nothing more does. */
async function receive(broker: Broker, topic: string, count: number, group = `g${Math.random()}`): Promise<string[]> {
  const bodies: string[] = [];
  const member: GroupMember = {
    credit: 10_000,
    isWritable: true,
    deliver: (_partition, _attempt, record) => bodies.push(decodeRecord(record).body.toString()),
  };
  const membership = broker.join(topic, group, 'earliest', member);
  for (let turn = 0; turn < 500 && bodies.length < count; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
  membership.leave();
  return bodies.sort();
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? filesBelow(join(folder, entry.name)) : [join(folder, entry.name)],
  );
}

const numbered = (count: number, prefix = 'm') => Array.from({ length: count }, (_, i) => `${prefix}${String(i).padStart(4, '0')} ${'x'.repeat(80)}`);

describe("the broker's directory", () => {
  let folder: string;
  const open: Broker[] = [];
  const start = (logger: Logger = silentLogger) => {
    const broker = new Broker(settings(folder), logger);
    open.push(broker);
    return broker;
  };
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-home-'));
  });
  afterEach(async () => {
    await Promise.all(open.splice(0).map((broker) => broker.close()));
    rmSync(folder, { recursive: true, force: true });
  });

  it('stores topics of every name that is allowed, inside topics/, and opens them again', async () => {
    const names = [
      '.',
      '..',
      '...',
      'a/b',
      '../x',
      'CON',
      'nul',
      'a.',
      'Orders',
      'orders',
      'ORDERS',
      'topic.json',
      '0',
      '-',
      `${'/'.repeat(200)}`,
      'x'.repeat(200),
      '@:_',
    ];
    let broker = start();
    for (const name of names) assert.equal(await publish(broker, name, name), undefined, name);
    await broker.close();
    assert.deepEqual(
      readdirSync(folder).filter((name) => !name.startsWith('lock') && name !== 'topics' && !name.startsWith('groups')),
      [],
    );
    broker = start();
    for (const name of names) assert.deepEqual(await receive(broker, name, 1), [name]);
    assert.equal(broker.stats().length, names.length);
  });

  it('refuses names that no topic can have, and keeps serving', async () => {
    const broker = start();
    for (const name of ['', '%zz', 'a\0b', 'a b', 'ü', 'x'.repeat(201), 'a\nb', '~a', '\ud800'])
      assert.match((await publish(broker, name, 'x'))!, /cannot be the name/);
    assert.equal(await publish(broker, 'good', 'x'), undefined);
  });

  it('gives every topic a folder of its own, by a name that any file system takes and that leads back to it', () => {
    const char = fc.constantFrom(...'abzABZ019_-.:/@');
    const topics = fc.array(char, { minLength: 1, maxLength: 200 }).map((chars) => chars.join(''));
    fc.assert(
      fc.property(topics, topics, (one, other) => {
        assert.match(one, topicPattern);
        const folderName = folderOfTopic(one);
        assert.match(folderName, /^~[a-z0-9_%A-F~-]{1,199}$/);
        if (!folderName.slice(1).includes('~')) assert.equal(topicOfFolder(folderName), one);
        if (one !== other) assert.notEqual(folderName.toLowerCase(), folderOfTopic(other).toLowerCase());
      }),
    );
  });

  it('opens what earlier versions have written, with the progress of groups, and topics . and .. that were stored outside', async () => {
    let broker = start();
    await publish(broker, 'Old/Topic', 'one', 'two');
    await publish(broker, '.', 'dot');
    await publish(broker, '..', 'dots');
    await receive(broker, 'Old/Topic', 2, 'g');
    await broker.close();
    const topics = join(folder, 'topics');
    rmSync(join(folder, 'groups.state'));
    rmSync(join(folder, 'groups.previous'), { force: true });
    renameSync(join(topics, folderOfTopic('Old/Topic')), join(topics, encodeURIComponent('Old/Topic')));
    writeFileSync(join(topics, encodeURIComponent('Old/Topic'), 'topic.json'), '{"partitions":2}');
    for (const [name, place] of [
      ['.', topics],
      ['..', folder],
    ] as const) {
      for (const n of ['0', '1']) renameSync(join(topics, folderOfTopic(name), n), join(place, n));
      rmSync(join(topics, folderOfTopic(name)), { recursive: true });
      writeFileSync(join(place, 'topic.json'), '{"partitions":2}');
    }
    // A start of the earlier version took the partitions of `.` for topics before it failed.
    mkdirSync(join(topics, '0', '0'));
    writeFileSync(join(topics, '0', 'topic.json'), '{"partitions":2}');
    writeFileSync(join(folder, 'offsets.json'), JSON.stringify({ g: { 'Old/Topic/0': 9, 'Old/Topic/1': 1 } }));
    broker = start();
    assert.deepEqual(
      broker
        .stats()
        .map(({ topic }) => topic)
        .sort(),
      ['.', '..', 'Old/Topic'],
    );
    assert.deepEqual(await receive(broker, '.', 1), ['dot']);
    assert.deepEqual(await receive(broker, '..', 1), ['dots']);
    assert.deepEqual(await receive(broker, 'Old/Topic', 2), ['one', 'two']);
    assert.ok(
      broker
        .stats()
        .find(({ topic }) => topic === 'Old/Topic')!
        .groups.some(({ group }) => group === 'g'),
    );
  });

  it('is used by one broker at a time, and is free when its owner has ended in any way', async () => {
    const broker = start();
    assert.throws(() => new Broker(settings(folder), silentLogger), /another broker uses this directory \(process \d+ on .*Stop it first/s);
    assert.throws(() => checkHome(folder), /another broker uses this directory/);
    await broker.close();
    const program = `import { HomeLock } from ${JSON.stringify(join(import.meta.dirname, 'home-lock.ts'))}; new HomeLock(process.argv[1]); process.kill(process.pid, 'SIGKILL');`;
    const owner = spawnSync(process.execPath, ['--input-type=module', '-e', program, folder], { encoding: 'utf8' });
    assert.equal(owner.signal, 'SIGKILL', owner.stderr);
    const lock = new HomeLock(folder);
    const other = spawnSync(process.execPath, ['--input-type=module', '-e', program, folder], { encoding: 'utf8' });
    assert.match(other.stderr, /another broker uses this directory/);
    lock.release();
  });

  it('starts whatever is done to any of its files, and serves every message of the topics that were not touched', { timeout: 120_000 }, async () => {
    const broker = start();
    const bodies = numbered(60);
    for (const topic of ['a', 'b', 'c'])
      for (let i = 0; i < bodies.length; i += 5) assert.equal(await publish(broker, topic, ...bodies.slice(i, i + 5)), undefined);
    await receive(broker, 'a', 60, 'g');
    await receive(broker, 'b', 10, 'g');
    await broker.close();
    const whole = mkdtempSync(join(tmpdir(), 'mizzen-whole-'));
    cpSync(folder, whole, { recursive: true });
    const damages: readonly (readonly [string, (path: string) => void])[] = [
      ['empty', (path) => truncateSync(path, 0)],
      ['cut', (path) => truncateSync(path, Math.floor(statSync(path).size / 2))],
      [
        'one bit',
        (path) => {
          const bytes = readFileSync(path);
          if (bytes.length > 0) bytes[Math.floor(bytes.length / 3)]! ^= 4;
          writeFileSync(path, bytes);
        },
      ],
      ['garbage', (path) => writeFileSync(path, Buffer.from(Array.from({ length: 500 }, (_, i) => (i * 7919 + 13) % 256)))],
      ['missing', (path) => rmSync(path)],
      [
        'a folder in its place',
        (path) => {
          rmSync(path);
          mkdirSync(path);
        },
      ],
      ['a stray file beside it', (path) => writeFileSync(`${path}.DS_Store`, 'x')],
      ['a stray folder beside it', (path) => mkdirSync(`${path}%zz`)],
    ];
    const isLong = process.env['BROKER_DRILL'] === 'long';
    const files = filesBelow(whole)
      .map((file) => relative(whole, file))
      .filter((file, i) => isLong || !/\d{16}/.test(file) || i % 40 === 0);
    for (const file of files)
      for (const [name, damage] of damages) {
        rmSync(folder, { recursive: true, force: true });
        cpSync(whole, folder, { recursive: true });
        damage(join(folder, file));
        const about = `${name}: ${file}`;
        const damaged = start();
        for (const topic of ['a', 'b', 'c']) {
          const isTouched = file.startsWith(join('topics', folderOfTopic(topic)));
          if (!isTouched) {
            assert.deepEqual(await receive(damaged, topic, 60), bodies, about);
            assert.equal(await publish(damaged, topic, 'new'), undefined, about);
          }
        }
        await damaged.close();
        // After a repair every topic takes messages again.
        await repairHome(folder, silentLogger);
        const repaired = start();
        for (const topic of ['a', 'b', 'c']) assert.equal(await publish(repaired, topic, 'after'), undefined, about);
        await repaired.close();
        assert.ok(
          checkHome(folder).findings.every(({ severity }) => severity !== 'unusable'),
          about,
        );
      }
    rmSync(whole, { recursive: true });
  });

  it('names what is damaged at any place of any file, serves the other topics whole, and keeps every record before the damage over a repair', {
    timeout: 120_000,
  }, async () => {
    const topics = ['a', 'b', 'c'];
    const bodies = numbered(60);
    const single = { ...settings(folder), partitions: 1 };
    const broker = new Broker(single, silentLogger);
    for (const topic of topics) for (let i = 0; i < bodies.length; i += 5) assert.equal(await publish(broker, topic, ...bodies.slice(i, i + 5)), undefined);
    for (const topic of topics) await receive(broker, topic, 60, 'g');
    await broker.close();
    const whole = mkdtempSync(join(tmpdir(), 'mizzen-whole-'));
    cpSync(folder, whole, { recursive: true });
    const files = filesBelow(whole).map((file) => relative(whole, file));
    const recordBytes = statSync(join(whole, files.find((file) => file.endsWith('0000000000000000.log'))!)).size;
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...files),
        fc.constantFrom('flip', 'cut', 'empty'),
        fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
        fc.nat(7),
        async (file, how, where, bit) => {
          rmSync(folder, { recursive: true, force: true });
          cpSync(whole, folder, { recursive: true });
          const path = join(folder, file);
          const bytes = readFileSync(path);
          const at = how === 'empty' ? 0 : Math.floor(where * bytes.length);
          if (how === 'flip' && bytes.length > 0) {
            bytes[at]! ^= 1 << bit;
            writeFileSync(path, bytes);
          } else truncateSync(path, at);
          const { findings } = checkHome(folder);
          const touched = topics.find((topic) => file.startsWith(join('topics', folderOfTopic(topic), '/')));
          const serveAll = async (isRepaired: boolean) => {
            const damaged = new Broker(single, silentLogger);
            try {
              for (const topic of topics) {
                const received = await receive(damaged, topic, 60);
                const missing = bodies.flatMap((body, i) => (received.includes(body) ? [] : [i]));
                if (topic !== touched) assert.deepEqual(missing, [], topic);
                else if (isRepaired) {
                  const base = /(\d{16})\.log$/.exec(file)?.[1];
                  // Records of one size: those whose bytes end before the damage.
                  const kept = base === undefined ? 60 : Number(base) + Math.floor(at / (recordBytes / 5));
                  assert.deepEqual(
                    missing.filter((n) => n < kept),
                    [],
                    'before the damage',
                  );
                  const ofTopic = findings.filter((finding) => finding.path.startsWith(join(folder, 'topics', folderOfTopic(topic))));
                  // A log whose last file ends between two records looks like one that never had more.
                  const isLast = !files.some((other) => other > file && other.endsWith('.log') && dirname(other) === dirname(file));
                  const looksWhole = isLast && how !== 'flip' && at % (recordBytes / 5) === 0;
                  assert.ok(missing.length === 0 || looksWhole || ofTopic.length > 0, 'it is named');
                }
                assert.ok(isRepaired || topic !== touched ? (await publish(damaged, topic, 'new')) === undefined : true);
              }
            } finally {
              await damaged.close();
            }
          };
          await serveAll(false);
          await repairHome(folder, silentLogger);
          await serveAll(true);
        },
      ),
      { numRuns: process.env['BROKER_DRILL'] === 'long' ? 100 : 4 },
    );
    rmSync(whole, { recursive: true });
  });

  it('loses one record to one flipped bit, wherever it is, says which, and delivers all others also to new groups', { timeout: 60_000 }, async () => {
    let broker = new Broker({ ...settings(folder), partitions: 1 }, silentLogger);
    const bodies = numbered(20);
    await publish(broker, 't', ...bodies);
    await broker.close();
    const path = join(folder, 'topics', folderOfTopic('t'), '0', '0000000000000000.log');
    const bytes = readFileSync(path);
    const recordBytes = bytes.length / 20;
    const step = process.env['BROKER_DRILL'] === 'long' ? 1 : 331;
    for (let bit = 0; bit < bytes.length * 8 - recordBytes * 8; bit += step) {
      const changed = Buffer.from(bytes);
      changed[bit >> 3]! ^= 1 << (bit & 7);
      writeFileSync(path, changed);
      // Half of them are met at the start, the others when they are read.
      if (bit % 2 === 0) rmSync(path.replace('.log', '.index'), { force: true });
      const lines: string[] = [];
      broker = new Broker({ ...settings(folder), partitions: 1 }, new Logger('t', 'warn', (line) => lines.push(line)));
      open.push(broker);
      const at = Math.floor((bit >> 3) / recordBytes);
      const received = await receive(broker, 't', 19);
      const others = bodies.filter((_, i) => i !== at);
      for (const body of others) assert.ok(received.includes(body), `bit ${bit}`);
      assert.equal(lines.length > 0, true, `bit ${bit} is reported`);
      assert.match(lines[0]!, /damage in the log: .* file="?.*\.log"? position=\d+/);
      await broker.close();
    }
  });

  it('reports a segment that is missing in the middle, and delivers what follows it', async () => {
    let broker = new Broker({ ...settings(folder), partitions: 1 }, silentLogger);
    const bodies = numbered(200);
    for (let i = 0; i < bodies.length; i += 5) await publish(broker, 't', ...bodies.slice(i, i + 5));
    await broker.close();
    const partition = join(folder, 'topics', folderOfTopic('t'), '0');
    const segments = readdirSync(partition)
      .filter((name) => name.endsWith('.log'))
      .sort();
    rmSync(join(partition, segments[2]!));
    const lines: string[] = [];
    broker = new Broker({ ...settings(folder), partitions: 1 }, new Logger('t', 'warn', (line) => lines.push(line)));
    open.push(broker);
    const lost = Number(segments[3]!.slice(0, 16)) - Number(segments[2]!.slice(0, 16));
    assert.deepEqual(
      await receive(broker, 't', 200 - lost),
      bodies.filter((_, i) => i < Number(segments[2]!.slice(0, 16)) || i >= Number(segments[3]!.slice(0, 16))),
    );
    assert.match(lines.join(''), new RegExp(`records are missing at the end of the file.* lost=${lost} `));
  });

  it('says what is damaged, and keeps what it moves aside', async () => {
    const broker = start();
    await publish(broker, 't', 'x');
    await broker.close();
    const topic = join(folder, 'topics', folderOfTopic('t'));
    rmSync(join(topic, '1'), { recursive: true });
    writeFileSync(join(topic, '1'), 'not a folder');
    writeFileSync(join(folder, 'topics', '.DS_Store'), '');
    const { findings } = checkHome(folder);
    assert.ok(findings.some(({ severity, path }) => severity === 'unusable' && path.endsWith('1')));
    assert.match((await publish(start(), 't', 'y'))!, /cannot be used: .*mizzen broker check.*repair/);
    await open[open.length - 1]!.close();
    const done = await repairHome(folder, silentLogger);
    assert.equal(done.length, 2);
    assert.ok(existsSync(join(folder, 'damaged')));
    assert.equal(await publish(start(), 't', 'y'), undefined);
  });

  describe('topics of earlier versions, which belong to no Component', () => {
    const bodies = numbered(10);
    /** A topic of which a group has done the first four messages that it was given. */
    const prepare = async (topic: string) => {
      const broker = new Broker({ ...settings(folder), partitions: 1 }, silentLogger);
      open.push(broker);
      await publish(broker, topic, ...bodies);
      const given: number[] = [];
      const member: GroupMember = { credit: 4, isWritable: true, deliver: (_partition, _attempt, record) => given.push(Number(record.readBigUInt64LE(8))) };
      const membership = broker.join(topic, 'g', 'earliest', member, { identity: 'spiffe://td/ns/a/sa/b', ownershipOf: () => 'own' });
      for (let turn = 0; turn < 500 && given.length < 4; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
      for (const offset of [0, 1, 2, 3]) membership.settle(0, offset, -1);
      membership.leave();
      return broker;
    };

    for (const topic of ['orders', `${'X'.repeat(190)}/long`])
      it(`are adopted by one with all messages and the progress of groups: ${topic.slice(0, 10)}`, async () => {
        let broker = await prepare(topic);
        assert.deepEqual(broker.unadopted(), [topic]);
        assert.match((await publish(broker, `a/c|${topic}`, 'x'))!, /of an earlier version belongs to no Component yet.*mizzen messages adopt/);
        await broker.adopt(topic, 'a/c');
        for (let round = 0; round < 2; round++) {
          assert.deepEqual(broker.unadopted(), []);
          assert.deepEqual(
            broker.stats().map((stats) => [stats.topic, stats.groups.map(({ group, lag }) => [group, lag])]),
            [[`a/c|${topic}`, [['g', 6]]]],
          );
          await broker.close();
          broker = start();
        }
        assert.deepEqual(await receive(broker, `a/c|${topic}`, 6, 'g'), bodies.slice(4));
        assert.deepEqual(await receive(broker, `a/c|${topic}`, 10), bodies);
        assert.equal(await publish(broker, `b/c|${topic}`, 'another space'), undefined);
        assert.deepEqual(await receive(broker, `b/c|${topic}`, 1), ['another space']);
      });

    it('lose nothing when the broker is killed while one adopts them', async () => {
      let broker = await prepare('orders');
      await broker.close();
      const before = join(folder, 'topics', folderOfTopic('orders'));
      // The new name is in topic.json, and the folder has not been renamed.
      const shape = readFileSync(join(before, 'topic.json'), 'utf8');
      writeFileSync(join(before, 'topic.json'), shape.replace('orders', 'a/c|orders'));
      broker = start();
      assert.deepEqual(broker.unadopted(), ['orders']);
      await broker.adopt('orders', 'a/c');
      assert.deepEqual(await receive(broker, 'a/c|orders', 6, 'g'), bodies.slice(4));
    });

    it('are not adopted where that would mix or lose messages', async () => {
      const broker = await prepare('orders');
      const member: GroupMember = { credit: 1, isWritable: true, deliver: () => {} };
      const membership = broker.join('orders', 'g', 'earliest', member);
      await assert.rejects(broker.adopt('orders', 'a/c'), /has consumers/);
      membership.leave();
      await assert.rejects(broker.adopt('none', 'a/c'), /there is no topic/);
      for (const space of ['', 'a', 'A/c', 'a/c|x', '../c', 'a/..']) await assert.rejects(broker.adopt('orders', space), /cannot be given to/, space);
      assert.deepEqual(await receive(broker, 'orders', 6, 'g'), bodies.slice(4));
    });
  });
});
