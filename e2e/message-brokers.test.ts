import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { injectFault, internalErrors, logErrorsTo, silentLogger } from '@mizzen/common';
import type { BrokerDriver, Delivery, OutgoingMessage } from '@mizzen/message/brokers/driver';
import { EmbeddedDriver } from '@mizzen/message/brokers/embedded';
import { NatsDriver } from '@mizzen/message/brokers/nats';
import { RabbitDriver } from '@mizzen/message/brokers/rabbitmq';
import { RedisDriver } from '@mizzen/message/brokers/redis';
import { mizzenCommand } from '../packages/cli/runner/program.ts';
import { BrokerProcess } from './support/brokers.ts';
import { until } from './support/http.ts';
import { driverPlaces } from './support/injected-places.ts';
import { skipWithout } from './support/requirements.ts';

const takeOverMs = 1_500;
const logger = silentLogger;

interface Kind {
  readonly name: string;
  readonly program: string;
  start(): Promise<BrokerProcess>;
  driver(broker: BrokerProcess): BrokerDriver;
  /** Messages are kept for groups that come later. */
  readonly keepsForLater: boolean;
  readonly restartMs: number;
  /** Boundaries of its driver. */
  readonly places: readonly string[];
}

const kinds: readonly Kind[] = [
  {
    name: 'the embedded broker',
    program: '',
    start: () => BrokerProcess.embedded(mizzenCommand),
    driver: ({ port }) => new EmbeddedDriver({ host: '127.0.0.1', port, logger }),
    keepsForLater: true,
    restartMs: 10_000,
    places: ['driver.embedded'],
  },
  {
    name: 'NATS JetStream',
    program: 'nats-server',
    start: () => BrokerProcess.nats(),
    driver: ({ port }) => new NatsDriver({ url: `nats://127.0.0.1:${port}`, stream: 'mizzen', takeOverMs, logger }),
    keepsForLater: true,
    restartMs: 20_000,
    places: driverPlaces.nats,
  },
  {
    name: 'Redis Streams',
    program: 'redis-server',
    start: () => BrokerProcess.redis(),
    driver: ({ port }) => new RedisDriver({ address: `127.0.0.1:${port}`, maxLength: 0, takeOverMs, logger }),
    keepsForLater: true,
    restartMs: 10_000,
    places: driverPlaces.redis,
  },
  {
    name: 'RabbitMQ',
    program: 'rabbitmq-server',
    start: () => BrokerProcess.rabbitmq(),
    driver: ({ port }) => new RabbitDriver({ url: `amqp://guest:guest@127.0.0.1:${port}`, logger }),
    keepsForLater: false,
    restartMs: 60_000,
    places: driverPlaces.rabbitmq,
  },
];

/** What every driver has to do, tried with the broker's own program; side by side, since most of it is waiting for them. */
describe('messages', { concurrency: true }, () => {
  const unattributed: unknown[] = [];
  const notice = (error: unknown) => void unattributed.push(error);
  before(() => {
    logErrorsTo(silentLogger);
    for (const event of ['uncaughtException', 'unhandledRejection']) process.on(event, notice);
  });
  after(() => {
    for (const event of ['uncaughtException', 'unhandledRejection']) process.off(event, notice);
  });

  for (const kind of kinds)
    describe(`over ${kind.name}`, { concurrency: 1, skip: kind.program === '' ? false : skipWithout(kind.program) }, () => {
      let broker: BrokerProcess;
      let driver: BrokerDriver;
      let topics = 0;
      const topic = () => `t${++topics}.orders/eu`;
      const message = (body: string, more: Partial<OutgoingMessage> = {}): OutgoingMessage => ({
        key: '',
        headers: { n: body },
        body: Buffer.from(body),
        delayMs: 0,
        ttlMs: 0,
        ...more,
      });
      const publish = async (to: string, ...messages: OutgoingMessage[]) => {
        for (const problem of await driver.publish(to, messages)) assert.equal(problem, undefined);
      };
      const collect = async (
        to: string,
        group: string,
        more: { maxInFlight?: number; take?: (message: Delivery) => void; from?: 'earliest' | 'latest'; by?: BrokerDriver } = {},
      ) => {
        const received: Delivery[] = [];
        const subscription = await (more.by ?? driver).subscribe(
          { topic: to, group, maxInFlight: more.maxInFlight ?? 100, from: more.from ?? 'earliest' },
          (delivery) => {
            received.push(delivery);
            if (more.take === undefined) delivery.ack();
            else more.take(delivery);
          },
        );
        return { received, subscription, bodies: () => received.map(({ body }) => body.toString()) };
      };
      const settled = (what: string, ask: () => boolean, ms = 15_000) => until(what, async () => ask(), Boolean, ms);

      before(async () => {
        broker = await kind.start();
        driver = kind.driver(broker);
      });
      after(async () => {
        await driver.close();
        await broker.close();
      });

      it('delivers what was published, with its key, headers and content, to every group once', async () => {
        const to = topic();
        const a = await collect(to, 'a');
        const b = await collect(to, 'b');
        const bytes = Buffer.from([0, 255, 10, 13, 128]);
        await publish(to, message('1', { key: 'k', headers: { n: 'ä', 'x-a': '%41 b' } }), message('2', { body: bytes }), message('3'));
        await settled('three messages twice', () => a.received.length >= 3 && b.received.length >= 3);
        const first = a.received.find(({ body }) => body.toString() === '1')!;
        assert.equal(first.key, 'k');
        assert.deepEqual({ ...first.headers }, { n: 'ä', 'x-a': '%41 b' });
        assert.equal(first.attempt, 1);
        assert.ok(Math.abs(first.publishedAtMs - Date.now()) < 10_000);
        assert.ok(a.received.some(({ body }) => body.equals(bytes)));
        assert.equal(new Set(b.bodies()).size, 3);
        await a.subscription.close();
        await b.subscription.close();
      });

      it('keeps the order of messages of one key', async () => {
        const to = topic();
        const { received, subscription } = await collect(to, 'g');
        const wanted = Array.from({ length: 50 }, (_, i) => i);
        for (const i of wanted) await publish(to, ...['a', 'b', 'c'].map((key) => message(`${key}${i}`, { key })));
        await settled('all', () => received.length >= 150);
        for (const key of ['a', 'b', 'c'])
          assert.deepEqual(
            received.filter((one) => one.key === key).map(({ body }) => Number(body.toString().slice(1))),
            wanted,
          );
        await subscription.close();
      });

      it('gives each message to one member of a group', async () => {
        const to = topic();
        const members = [await collect(to, 'g'), await collect(to, 'g')];
        await publish(to, ...Array.from({ length: 200 }, (_, i) => message(String(i), { key: `k${i}` })));
        await settled('all', () => members[0]!.received.length + members[1]!.received.length >= 200);
        assert.equal(new Set(members.flatMap(({ bodies }) => bodies())).size, 200);
        assert.equal(members[0]!.received.length + members[1]!.received.length, 200);
        for (const { subscription } of members) await subscription.close();
      });

      if (kind.keepsForLater)
        it('keeps messages for a group that comes later, unless it wants only what is new', async () => {
          const to = topic();
          await publish(to, message('old'));
          const all = await collect(to, 'all');
          const fresh = await collect(to, 'fresh', { from: 'latest' });
          await settled('the old one', () => all.received.length === 1);
          await publish(to, message('new'));
          await settled('the new one', () => all.received.length === 2 && fresh.received.length === 1);
          assert.deepEqual(fresh.bodies(), ['new']);
          await all.subscription.close();
          await fresh.subscription.close();
        });

      it('delivers again what was given back, after the time that was asked for, and says how often', async () => {
        const to = topic();
        const at: number[] = [];
        const { received, subscription } = await collect(to, 'g', {
          take(delivery) {
            if (delivery.body.toString() !== 'again') return delivery.ack();
            at.push(Date.now());
            if (at.length < 3) delivery.nack(200);
            else delivery.ack();
          },
        });
        await publish(to, message('again'), message('other'));
        await settled('three attempts', () => at.length === 3);
        assert.ok(at[1]! - at[0]! >= 190 && at[2]! - at[1]! >= 190, String(at));
        assert.deepEqual(
          received.filter(({ body }) => body.toString() === 'again').map(({ attempt }) => attempt),
          [1, 2, 3],
        );
        assert.ok(received.some(({ body }) => body.toString() === 'other'));
        await subscription.close();
      });

      it('holds back what is to come later, and drops what has come too late', async () => {
        const to = topic();
        const startedAt = Date.now();
        const times = new Map<string, number>();
        const { subscription } = await collect(to, 'g', {
          take(delivery) {
            times.set(delivery.body.toString(), Date.now() - startedAt);
            delivery.ack();
          },
        });
        await publish(to, message('late', { delayMs: 600 }), message('now'), message('gone', { delayMs: 300, ttlMs: 100 }));
        await settled('both', () => times.size === 2);
        assert.ok(times.get('late')! >= 590, String([...times]));
        assert.ok(times.get('now')! < times.get('late')!);
        await subscription.close();
      });

      it('gives a consumer no more at a time than it has asked for', async () => {
        const to = topic();
        const open: Delivery[] = [];
        let most = 0;
        const { received, subscription } = await collect(to, 'g', {
          maxInFlight: 5,
          take(delivery) {
            open.push(delivery);
            most = Math.max(most, open.length);
          },
        });
        await publish(to, ...Array.from({ length: 40 }, (_, i) => message(String(i))));
        while (received.length < 40) {
          await settled('some', () => open.length > 0);
          open.shift()!.ack();
        }
        for (const delivery of open) delivery.ack();
        assert.ok(most <= 5, `${most} at a time`);
        await subscription.close();
      });

      it('gives what a consumer had that has gone to another one', async () => {
        const to = topic();
        const gone = kind.driver(broker);
        const first = await collect(to, 'g', { take: () => {}, by: gone });
        await publish(to, message('1'), message('2'));
        await settled('both are taken', () => first.received.length >= 2);
        await first.subscription.close();
        await gone.close();
        const second = await collect(to, 'g');
        await settled('both come again', () => new Set(second.bodies()).size === 2, 20_000);
        await second.subscription.close();
      });

      it('tells how many messages a group has not done', async () => {
        const to = topic();
        const { received, subscription } = await collect(to, 'g', { maxInFlight: 10, take: () => {} });
        if (kind.name === 'RabbitMQ') await subscription.close();
        await publish(to, ...Array.from({ length: 7 }, (_, i) => message(String(i))));
        await until(
          'a lag of 7',
          () => driver.lag(to, 'g'),
          (lag) => lag === 7,
        );
        for (const delivery of received) delivery.ack();
        if (kind.name !== 'RabbitMQ') {
          await until(
            'a lag of 0',
            () => driver.lag(to, 'g'),
            (lag) => {
              for (const delivery of received) delivery.ack();
              return lag === 0;
            },
          );
          await subscription.close();
        }
      });

      for (const place of kind.places)
        it(`loses nothing that it has confirmed to an exception at ${place}, whenever it comes, and goes on`, async () => {
          const drivers: BrokerDriver[] = [];
          const checks: (() => boolean)[] = [];
          for (const n of [1, 2, 5, 9]) {
            const to = topic();
            const before = internalErrors().get(place) ?? 0;
            injectFault(place, n);
            // Connecting is a part of it.
            const own = kind.driver(broker);
            drivers.push(own);
            const bodies = new Set<string>();
            await until(
              'a subscription',
              () =>
                own
                  .subscribe({ topic: to, group: 'g', maxInFlight: 100, from: 'earliest' }, (delivery) => {
                    // Given back once, so that it is held.
                    if (bodies.has(delivery.body.toString())) return delivery.ack();
                    bodies.add(delivery.body.toString());
                    delivery.nack(10);
                  })
                  .then(
                    () => true,
                    () => false,
                  ),
              Boolean,
            );
            const confirmed: string[] = [];
            const publishSome = async () => {
              const some = Array.from({ length: 5 }, () => `${Math.random()}`);
              const problems = await own.publish(
                to,
                some.map((body) => message(body)),
              );
              for (const [i, problem] of problems.entries()) if (problem === undefined) confirmed.push(some[i]!);
            };
            const count = () => internalErrors().get(place) ?? 0;
            await until(
              'the fault',
              async () => void (await publishSome()),
              () => count() > before,
            );
            const accepted = confirmed.length;
            await until(
              'messages are accepted again',
              async () => void (await publishSome()),
              () => confirmed.length >= accepted + 10,
            );
            assert.equal(count(), before + 1, `${n}`);
            checks.push(() => own.problem() === undefined && confirmed.every((body) => bodies.has(body)));
          }
          await settled('everything that was confirmed', () => checks.every((check) => check()));
          await Promise.all(drivers.map((one) => one.close()));
          assert.deepEqual(unattributed, []);
        });

      it('loses nothing that it has confirmed when it is killed and comes back', async () => {
        const to = topic();
        const consumer = await collect(to, 'g');
        const confirmed: string[] = [];
        let isOver = false;
        const publishing = (async () => {
          for (let i = 0; !isOver; i++) {
            const [problem] = await driver.publish(to, [message(String(i), { key: 'k' })]);
            if (problem === undefined) confirmed.push(String(i));
          }
        })();
        await settled('it runs', () => confirmed.length > 20);
        await broker.kill('SIGKILL');
        await broker.start();
        const before = confirmed.length;
        await settled('it runs again', () => confirmed.length > before + 20, kind.restartMs);
        isOver = true;
        await publishing;
        await settled(
          'everything that was confirmed',
          () => {
            const have = new Set(consumer.bodies());
            return confirmed.every((body) => have.has(body));
          },
          kind.restartMs,
        );
        assert.equal(driver.problem(), undefined);
        await consumer.subscription.close();
      });

      it('tells publishers within seconds that it is away', async () => {
        await broker.kill('SIGKILL');
        const startedAt = Date.now();
        const [problem] = await driver.publish('t.away', [message('1')]);
        assert.ok(problem !== undefined);
        assert.ok(Date.now() - startedAt < 25_000);
        assert.ok(driver.problem() !== undefined);
      });
    });
});
