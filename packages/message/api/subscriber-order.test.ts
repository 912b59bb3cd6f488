import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { ProxyCounters } from '@mizzen/proxy/telemetry/proxy-counters';
import { Broker } from '../broker/broker.ts';
import { BrokerServer } from '../broker/broker-server.ts';
import { EmbeddedDriver } from '../brokers/embedded.ts';
import { defaultLogSettings } from '../log/partition-log.ts';
import { type AppChannel, type DeliveryOutcome, retry, success } from './app-channel.ts';
import { MessageMetrics } from './message-metrics.ts';
import { Subscriber } from './subscriber.ts';

const keys = ['a', 'b', 'c', 'd', 'e'];
const perKey = 60;

/** Numbers from a seed (mulberry32): a failure can be repeated. */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

for (const { isBulk, seed } of [
  { isBulk: false, seed: 1 },
  { isBulk: false, seed: 2 },
  { isBulk: true, seed: 3 },
])
  it(`replicas that come, go and die handle the messages of a key in their order, each after the one before it (${isBulk ? 'bulk' : 'single'}, seed ${seed})`, async () => {
    const random = randomFrom(seed);
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-order-'));
    const broker = new Broker({ folder, log: { ...defaultLogSettings, syncs: false }, partitions: 3, maxTopics: 10 }, silentLogger);
    const server = new BrokerServer({ broker, host: '127.0.0.1', port: 0, logger: silentLogger });
    await server.listen();
    const connect = () => new EmbeddedDriver({ host: '127.0.0.1', port: server.port, logger: silentLogger });
    /** By key: the numbers whose handler has succeeded at least once. */
    const done = new Map(keys.map((key) => [key, new Set<number>()]));
    const violations: string[] = [];
    const start = (body: string) => {
      const [key = '', n = ''] = body.split('-');
      const known = done.get(key)!;
      for (let before = 0; before < Number(n); before++) if (!known.has(before)) violations.push(`${body} before ${key}-${before}`);
    };
    const finish = (body: string) => {
      const [key = '', n = ''] = body.split('-');
      done.get(key)!.add(Number(n));
    };
    const channel = (): AppChannel => ({
      deliver({ event }, _timeoutMs, settle) {
        const body = String(event['data']);
        start(body);
        setTimeout(() => {
          if (random() < 0.05) return settle(retry('no'));
          finish(body);
          settle(success);
        }, random() * 6);
      },
      deliverBulk(_path, _pubsub, _topic, events, _timeoutMs, settle) {
        const seen = new Set<string>();
        // The application works on a bulk from its first to its last entry.
        for (const { event } of events) {
          const body = String(event['data']);
          if (!seen.has(body.split('-')[0]!)) start(body);
          seen.add(body.split('-')[0]!);
        }
        setTimeout(() => {
          const failed = new Set<string>();
          const outcomes = new Map<string, DeliveryOutcome>();
          for (const { entryId, event } of events) {
            const body = String(event['data']);
            const key = body.split('-')[0]!;
            if (failed.has(key) || random() < 0.05) {
              failed.add(key);
              outcomes.set(entryId, retry('no'));
            } else {
              finish(body);
              outcomes.set(entryId, success);
            }
          }
          settle(outcomes);
        }, random() * 6);
      },
    });
    const replicas: { driver: EmbeddedDriver; subscriber: Subscriber }[] = [];
    const join_ = () => {
      const driver = connect();
      const subscriber = new Subscriber({
        subscription: {
          ...{ pubsubname: 'p', topic: 't', rules: [], defaultPath: '/t', deadLetterTopic: '', metadata: { maxInFlight: '40' }, type: 'PROGRAMMATIC' as const },
          bulk: isBulk ? { maxMessagesCount: 7, maxAwaitDurationMs: 2 } : undefined,
        },
        ...{ group: 'g', driver, channel: channel(), canaryChannel: () => undefined, canaries: [], deadLetter: () => {} },
        resiliency: { timeoutMs: undefined, retry: { policy: 'constant', durationMs: 3, maxIntervalMs: 3, maxRetries: -1 } },
        ...{ onRefused: (reason) => violations.push(reason), metrics: new MessageMetrics(new ProxyCounters()), logger: silentLogger, random },
      });
      subscriber.open();
      replicas.push({ driver, subscriber });
    };
    const publisher = connect();
    join_();
    const publishing = Promise.all(
      keys.map(async (key) => {
        for (let n = 0; n < perKey; n++) {
          const event = { specversion: '1.0', id: `${key}${n}`, source: 's', type: 't', data: `${key}-${n}` };
          await publisher.publish('t', [{ key, headers: {}, body: Buffer.from(JSON.stringify(event)), delayMs: 0, ttlMs: 0 }]);
        }
      }),
    );
    const isAll = () => [...done.values()].every(({ size }) => size === perKey);
    const deadline = Date.now() + 20_000;
    while (!isAll() && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 5 + random() * 20));
      const chosen = Math.floor(random() * replicas.length);
      if (replicas.length < 3 && random() < 0.6) join_();
      else if (replicas.length > 1) {
        const [{ driver, subscriber }] = replicas.splice(chosen, 1) as [(typeof replicas)[number]];
        // It drains, or it dies with all that it holds.
        if (random() < 0.5) void subscriber.close(5_000).then(() => driver.close());
        else void driver.close().then(() => subscriber.close(0));
      }
    }
    await publishing;
    await Promise.all(replicas.map(({ driver, subscriber }) => subscriber.close(1_000).then(() => driver.close())));
    await publisher.close();
    await server.close();
    await broker.close();
    rmSync(folder, { recursive: true, force: true });
    assert.deepEqual(violations.slice(0, 5), []);
    assert.ok(isAll(), JSON.stringify([...done].map(([key, { size }]) => [key, size])));
  });
