import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { PeerValidity } from '@mizzen/common/peer-validity';
import { Broker } from '@mizzen/message/broker/broker';
import { type BrokerAuthorization, BrokerServer } from '@mizzen/message/broker/broker-server';
import type { Delivery } from '@mizzen/message/brokers/driver';
import { EmbeddedDriver } from '@mizzen/message/brokers/embedded';
import { defaultLogSettings } from '@mizzen/message/log/partition-log';
import { BrokerAccess } from '@mizzen/message/policy/broker-access';
import { mizzenCommand } from '../packages/cli/runner/program.ts';
import { BrokerProcess } from './support/brokers.ts';
import { until } from './support/http.ts';

/** `BROKER_CRASHES=200 npm test -- e2e/broker-crash.test.ts` is the long form. */
const rounds = Number(process.env['BROKER_CRASHES'] ?? 4);
/** Runs the command, and returns its exit code with what it has written. */
async function mizzen(...args: string[]): Promise<{ readonly code: number | null; readonly output: string }> {
  const [program, ...before] = mizzenCommand;
  const child = spawn(program!, [...before, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data: Buffer) => {
      output += data.toString();
    });
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, output };
}

const message = (body: string, key = '') => ({ key, headers: {}, body: Buffer.from(body), delayMs: 0, ttlMs: 0 });

describe('the embedded broker', () => {
  it(`loses nothing confirmed and invents nothing when it is killed ${rounds} times at random points`, { timeout: 30_000 + rounds * 20_000 }, async () => {
    const broker = await BrokerProcess.embedded(mizzenCommand);
    const driver = new EmbeddedDriver({ host: '127.0.0.1', port: broker.port, logger: silentLogger });
    const tried = new Set<string>();
    const confirmed = new Set<string>();
    const delivered = new Map<string, number[]>();
    let isOver = false;
    const subscription = await driver.subscribe({ topic: 't', group: 'g', maxInFlight: 200, from: 'earliest' }, (delivery: Delivery) => {
      const body = delivery.body.toString();
      const [key = '', n = ''] = body.split('-');
      delivered.set(key, [...(delivered.get(key) ?? []), Number(n)]);
      delivery.ack();
    });
    // Sixteen publishers, each with a key of its own, each waiting for its confirmation before it goes on.
    const publishers = Array.from({ length: 16 }, async (_, key) => {
      for (let n = 0; !isOver; n++) {
        const body = `${key}-${n}`;
        tried.add(body);
        const [problem] = await driver.publish('t', [message(body, String(key))]);
        if (problem === undefined) confirmed.add(body);
      }
    });
    for (let round = 0; round < rounds; round++) {
      const before = confirmed.size;
      await until(
        'some are confirmed',
        async () => confirmed.size - before,
        (count) => count > 50,
        60_000,
      );
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 100));
      // A second process on the directory ends, and the first goes on.
      if (round === 0) {
        const second = await mizzen('broker', '--plain', '--data', broker.folder, '--port', '0');
        assert.match(second.output, /another broker uses this directory/);
        assert.equal(second.code, 1);
      }
      await broker.kill('SIGKILL');
      await broker.start();
    }
    isOver = true;
    await Promise.all(publishers);
    const have = () => new Set([...delivered].flatMap(([key, numbers]) => numbers.map((n) => `${key}-${n}`)));
    await until(
      'everything that was confirmed',
      async () => {
        const all = have();
        return [...confirmed].filter((body) => !all.has(body)).length;
      },
      (missing) => missing === 0,
      60_000,
    );
    for (const body of have()) assert.ok(tried.has(body), `${body} was never published`);
    // What comes again comes again from where it was; among first times a key's order is kept.
    for (const [key, numbers] of delivered) {
      const first = [...new Set(numbers)];
      assert.deepEqual(
        first,
        [...first].sort((a, b) => a - b),
        `key ${key}`,
      );
    }
    await subscription.close();
    // What the broker stored under a bare name belongs to a Component after `mizzen messages adopt`, with all messages and the progress of groups.
    const where = ['--broker', `127.0.0.1:${broker.port}`];
    const unknown = await mizzen('messages', 'adopt', 'none', 'default/pubsub', ...where);
    assert.match(unknown.output, /there is no topic "none"/);
    assert.equal(unknown.code, 1);
    const adopted = await mizzen('messages', 'adopt', 't', 'default/pubsub', ...where);
    assert.equal(adopted.code, 0, adopted.output);
    await driver.close();
    const component = new EmbeddedDriver({ host: '127.0.0.1', port: broker.port, logger: silentLogger, space: 'default/pubsub' });
    const again = new Set<string>();
    await component.subscribe({ topic: 't', group: 'new', maxInFlight: 200, from: 'earliest' }, (delivery) => {
      again.add(delivery.body.toString());
      delivery.ack();
    });
    await until(
      'every message of the adopted topic',
      async () => [...confirmed].filter((body) => !again.has(body)).length,
      (missing) => missing === 0,
    );
    assert.equal(await component.lag('t', 'g'), 0);
    await component.close();
    await broker.close();
  });

  it('listens on loopback alone without an identity, and does not start with one that it cannot read', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-options-'));
    const [open, missing] = await Promise.all([
      mizzen('broker', '--plain', '--data', join(folder, 'a'), '--host', '0.0.0.0', '--port', '0'),
      mizzen('broker', '--config', join(folder, 'none.json'), '--data', join(folder, 'b'), '--port', '0'),
    ]);
    assert.match(open.output, /without an identity \(--config\) the broker takes plain connections, and so listens on 127\.0\.0\.1 only/);
    assert.match(missing.output, /ENOENT/);
    assert.deepEqual([open.code, missing.code], [1, 1]);
    rmSync(folder, { recursive: true, force: true });
  });

  describe('on a small disk', { skip: process.getuid?.() === 0 ? false : 'needs root, to make a disk' }, () => {
    let folder: string;
    before(() => {
      folder = mkdtempSync(join(tmpdir(), 'mizzen-disk-'));
      mkdirSync(join(folder, 'disk'));
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', join(folder, 'disk')]);
    });
    after(() => {
      execFileSync('umount', [join(folder, 'disk')]);
      rmSync(folder, { recursive: true, force: true });
    });

    it('refuses what does not fit, keeps what it has confirmed, and goes on when there is room', async () => {
      const data = join(folder, 'disk');
      const settings = { folder: data, log: { ...defaultLogSettings, segmentBytes: 64 * 1024, retentionBytes: 0 }, partitions: 1, maxTopics: 10 };
      let broker = new Broker(settings, silentLogger);
      let server = new BrokerServer({ broker, host: '127.0.0.1', port: 0, logger: silentLogger });
      await server.listen();
      const { port } = server;
      const driver = new EmbeddedDriver({ host: '127.0.0.1', port, logger: silentLogger });
      const confirmed: string[] = [];
      let refusal: string | undefined;
      for (let n = 0; n < 400 && refusal === undefined; n++) {
        const body = `${n} ${'x'.repeat(8_000)}`;
        const [problem] = await driver.publish('t', [message(body)]);
        if (problem === undefined) confirmed.push(body);
        else refusal = problem;
      }
      assert.match(refusal!, /cannot be stored.*(ENOSPC|no space)/);
      assert.ok(confirmed.length > 50);
      // The rest of the disk is taken, so that nothing of a new topic fits.
      assert.throws(() => writeFileSync(join(data, 'filler'), Buffer.alloc(1024 * 1024)), /ENOSPC/);
      assert.match((await driver.publish('new', [message('x')]))[0]!, /cannot be (created|stored).*ENOSPC/);
      // Every one that was confirmed is there, also for a broker that starts on the full disk.
      await server.close();
      await broker.close();
      broker = new Broker(settings, silentLogger);
      server = new BrokerServer({ broker, host: '127.0.0.1', port, logger: silentLogger });
      await server.listen();
      const received: string[] = [];
      const subscription = await driver.subscribe({ topic: 't', group: 'g', maxInFlight: 10, from: 'earliest' }, (delivery) => {
        received.push(delivery.body.toString());
        delivery.ack();
      });
      await until(
        'all of them',
        async () => received.length,
        (count) => count === confirmed.length,
      );
      assert.deepEqual(received, confirmed);
      execFileSync('mount', ['-o', 'remount,size=4m', data]);
      const [problem] = await driver.publish('t', [message('there is room again')]);
      assert.equal(problem, undefined);
      assert.equal((await driver.publish('new', [message('x')]))[0], undefined);
      await until(
        'the new one',
        async () => received.at(-1),
        (last) => last === 'there is room again',
      );
      await subscription.close();
      await driver.close();
      await server.close();
      await broker.close();
    });
  });

  const account = (name: string) => `spiffe://td/ns/a/sa/${name}`;
  /** A broker of a mesh whose peers are who the test says: the app of an account has its name, and the Component a/c is for all. */
  const authorized = (identityOf: () => string | undefined, apps: readonly string[]): BrokerAuthorization => {
    const access = new BrokerAccess();
    access.use({
      components: [{ namespace: 'a', name: 'c', type: 'pubsub.mizzen', metadata: {}, scopes: [], topicPolicies: [] }],
      apps: apps.map((appId) => ({ namespace: 'a', serviceAccount: appId, appId })),
    });
    const validity = new PeerValidity({ isRevoked: () => false, isTrustedDomain: () => true });
    return { identityOf, validity, access, isOperator: (name) => name === account('operator') };
  };

  it('stores nothing that claims to be of another publisher than the one who sends it', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-forged-'));
    const broker = new Broker({ folder, log: { ...defaultLogSettings, syncs: false }, partitions: 1, maxTopics: 10 }, silentLogger);
    const authorization = authorized(() => account('b'), ['b']);
    const server = new BrokerServer({ broker, host: '127.0.0.1', port: 0, logger: silentLogger, authorization });
    await server.listen();
    const driver = new EmbeddedDriver({ host: '127.0.0.1', port: server.port, logger: silentLogger, space: 'a/c', appId: 'b' });
    const publish = async (publisher: string) => (await driver.publish('t', [{ ...message('x'), headers: { 'x-mizzen-publisher': publisher } }]))[0];
    assert.equal(await publish(account('b')), undefined);
    assert.match((await publish(account('root')))!, /another publisher/);
    assert.match((await driver.publish('t', [message('x')]))[0]!, /another publisher/);
    assert.match(
      (await driver.publish('not a topic', [{ ...message('x'), headers: { 'x-mizzen-publisher': account('b') } }]))[0]!,
      /cannot be the name of a topic/,
    );
    await driver.close();
    await server.close();
    await broker.close();
    rmSync(folder, { recursive: true, force: true });
  });

  it('lets a workload use, see and replay its own groups alone, also after a restart', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-owner-'));
    const settings = { folder, log: { ...defaultLogSettings, syncs: false }, partitions: 1, maxTopics: 10 };
    for (const round of [1, 2]) {
      const broker = new Broker(settings, silentLogger);
      let identity: string | undefined;
      const authorization = authorized(() => identity, ['owner', 'other', 'late']);
      const server = new BrokerServer({ broker, host: '127.0.0.1', port: 0, logger: silentLogger, authorization });
      await server.listen();
      const connect = async (name: string | undefined) => {
        identity = name === undefined ? undefined : account(name);
        const driver = new EmbeddedDriver({ host: '127.0.0.1', port: server.port, logger: silentLogger, space: 'a/c', appId: name });
        if (name !== undefined)
          await until(
            'connected',
            async () => driver.problem(),
            (problem) => problem === undefined,
          );
        return driver;
      };
      const topic = 'a/c|t';
      const request = { topic: 't', group: 'g', maxInFlight: 10, from: 'earliest' as const };
      const owner = await connect('owner');
      if (round === 1) await (await owner.subscribe(request, (delivery) => delivery.ack())).close();
      const other = await connect('other');
      for (const group of ['g', 'owner', 'late'])
        await assert.rejects(
          other.subscribe({ ...request, group }, () => {}),
          /belongs to another workload/,
        );
      await assert.rejects(other.ask({ what: 'replay', topic, group: 'g', offset: 0 }), /belongs to another workload/);
      await assert.rejects(other.ask({ what: 'adopt', topic: 't', component: 'a/c' }), /only the operator/);
      for (const offset of ['0', -1, null, {}, 1e300])
        await assert.rejects(owner.ask({ what: 'replay', topic, group: 'g', offset: offset ?? [] }), /must be a whole number/);
      assert.deepEqual(await other.ask({ what: 'stats' }), { topics: [] });
      await owner.ask({ what: 'replay', topic, group: 'g', offset: 0 });
      const operator = await connect('operator');
      assert.equal(((await operator.ask({ what: 'stats' })) as { topics: unknown[] }).topics.length, 1);
      await operator.ask({ what: 'replay', topic, group: 'g', offset: 0 });
      const unknown = await connect(undefined);
      await until(
        'refused',
        async () => unknown.problem() ?? '',
        (problem) => /cannot be reached/.test(problem),
      );
      for (const driver of [owner, other, operator, unknown]) await driver.close();
      await server.close();
      await broker.close();
    }
    rmSync(folder, { recursive: true, force: true });
  });

  it('replays to a group what it has had, from an offset or from a time, and drops what is older than it is told to keep', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-replay-'));
    let now = 1_000_000;
    const broker = new Broker({ folder, log: { ...defaultLogSettings, syncs: false }, partitions: 1, maxTopics: 10 }, silentLogger);
    const server = new BrokerServer({ broker, host: '127.0.0.1', port: 0, logger: silentLogger });
    await server.listen();
    const driver = new EmbeddedDriver({ host: '127.0.0.1', port: server.port, logger: silentLogger });
    const received: string[] = [];
    await driver.subscribe({ topic: 't', group: 'g', maxInFlight: 10, from: 'earliest' }, (delivery) => {
      received.push(delivery.body.toString());
      now = Math.max(now, delivery.publishedAtMs);
      delivery.ack();
    });
    for (const body of ['a', 'b', 'c']) await driver.publish('t', [message(body)]);
    await until(
      'three',
      async () => received.length,
      (count) => count === 3,
    );
    await driver.ask({ what: 'replay', topic: 't', group: 'g', offset: 1 });
    await until(
      'two again',
      async () => received.length,
      (count) => count === 5,
    );
    await driver.ask({ what: 'replay', topic: 't', group: 'g', timestampMs: now + 1 });
    await driver.publish('t', [message('d')]);
    await until(
      'only what is new',
      async () => received.at(-1),
      (last) => last === 'd',
    );
    assert.deepEqual(received, ['a', 'b', 'c', 'b', 'c', 'd']);
    await assert.rejects(driver.ask({ what: 'replay', topic: 'none', group: 'g', offset: 0 }), /no topic/);
    await driver.close();
    await server.close();
    await broker.close();
    rmSync(folder, { recursive: true, force: true });
  });
});
