import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { clearFaults, injectFault, logErrorsTo, silentLogger } from '@mizzen/common';
import { PeerValidity } from '@mizzen/common/peer-validity';
import { type MessagingConfig, noMessaging, type Subscription, type TopicPolicy } from '@mizzen/envoy-api';
import { ProxyCounters } from '@mizzen/proxy/telemetry/proxy-counters';
import fc from 'fast-check';
import { Broker } from '../broker/broker.ts';
import { BrokerServer } from '../broker/broker-server.ts';
import { defaultLogSettings } from '../log/partition-log.ts';
import { BrokerAccess } from '../policy/broker-access.ts';
import { type AppChannel, type DeliveredEvent, type DeliveryOutcome, retry, success } from './app-channel.ts';
import { MessageMetrics } from './message-metrics.ts';
import { MessageRuntime, maxHeaderBytes, maxKeyBytes, maxMessageBytes, type Publication, type PublishProblem, type StreamEnd } from './message-runtime.ts';
import { maxDeadLetterHops } from './subscriber.ts';

const publication = (more: Partial<Publication> = {}): Publication => ({
  pubsub: 'p',
  topic: 't',
  contentType: 'text/plain',
  body: Buffer.from('x'),
  metadata: {},
  traceparent: '',
  tracestate: '',
  ...more,
});
const subscription = (more: Partial<Subscription> = {}): Subscription => ({
  pubsubname: 'p',
  topic: 't',
  rules: [],
  defaultPath: '/t',
  deadLetterTopic: '',
  bulk: undefined,
  metadata: {},
  type: 'PROGRAMMATIC',
  ...more,
});
const deny = (operation: string, ...topics: string[]): TopicPolicy => ({
  name: 'deny',
  pubsub: 'p',
  action: 'DENY',
  rules: [{ principals: [], namespaces: [], operations: [operation], topics }],
});

describe('the message mesh in a sidecar', () => {
  let folder: string;
  let broker: Broker;
  let server: BrokerServer;
  let runtime: MessageRuntime;
  let config: MessagingConfig;
  let handle: (event: DeliveredEvent, done: (outcome: DeliveryOutcome) => void) => void;
  let handleBulk: (events: readonly { readonly entryId: string }[], done: (outcomes: ReadonlyMap<string, DeliveryOutcome>) => void) => void;
  const delivered: DeliveredEvent[] = [];
  const bulks: number[] = [];
  const channel: AppChannel = {
    deliver: (event, _timeoutMs, done) => {
      delivered.push(event);
      handle(event, done);
    },
    deliverBulk: (_path, _pubsub, _topic, events, _timeoutMs, done) => {
      bulks.push(events.length);
      handleBulk(events, done);
    },
  };
  const publish = (...publications: Publication[]) => new Promise<readonly (PublishProblem | undefined)[]>((resolve) => runtime.publish(publications, resolve));
  const until = async (what: string, holds: () => boolean) => {
    for (let turn = 0; turn < 5_000 && !holds(); turn++) await new Promise((resolve) => setTimeout(resolve, 1));
    assert.ok(holds(), what);
  };
  const configure = (more: Partial<MessagingConfig>) => {
    config = { ...config, ...more };
    runtime.configure(config);
  };
  const lengthOf = (topic: string) =>
    broker
      .stats()
      .find((stats) => stats.topic === `n/p|${topic}`)
      ?.partitions.reduce((sum, { next }) => sum + next, 0) ?? 0;

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-runtime-'));
    delivered.length = 0;
    bulks.length = 0;
    handleBulk = (_events, done) => done(new Map());
    handle = (_event, done) => done(success);
    broker = new Broker({ folder, log: { ...defaultLogSettings, syncs: false }, partitions: 1, maxTopics: 1_000 }, silentLogger);
    server = new BrokerServer({ broker, host: '127.0.0.1', port: 0, logger: silentLogger });
    await server.listen();
    runtime = new MessageRuntime({
      namespace: 'n',
      appId: 'a',
      identity: 'spiffe://td/ns/x/sa/a',
      channel,
      findCluster: () => undefined,
      meshTls: undefined,
      metrics: new MessageMetrics(new ProxyCounters()),
      logger: silentLogger,
    });
    config = {
      ...noMessaging,
      appId: 'a',
      components: [{ name: 'p', type: 'pubsub.mizzen', metadata: { address: `127.0.0.1:${server.port}`, plaintext: 'true' } }],
    };
    runtime.configure(config);
    await until('the broker is connected', () => runtime.problems().length === 0);
  });
  afterEach(async () => {
    await runtime.close();
    await server.close();
    await broker.close();
    rmSync(folder, { recursive: true, force: true });
  });

  it('refuses what does not fit a record by 400, message by message', async () => {
    const key = (bytes: number) => publication({ metadata: { partitionKey: 'k'.repeat(bytes) } });
    assert.deepEqual(
      (await publish(key(maxKeyBytes), key(65_535), key(65_536), key(1_000_000), publication())).map((problem) => problem?.status),
      [undefined, 400, 400, 400, undefined],
    );
    const header = publication({ metadata: { 'x-long': 'ä'.repeat(60_000) } });
    const body = publication({ body: Buffer.alloc(maxMessageBytes), contentType: 'image/png' });
    assert.deepEqual(
      (await publish(header, body)).map((problem) => problem?.status),
      [400, 400],
    );
    // More than one frame takes, in one request.
    const large = publication({ body: Buffer.alloc(7_000_000), metadata: { rawPayload: 'true' } });
    assert.deepEqual(await publish(large, large, large, large), [undefined, undefined, undefined, undefined]);
    assert.equal(lengthOf('t'), 6);
  });

  it('survives every value of every field, answers what it refuses by 4xx, and goes on', { timeout: 60_000 }, async () => {
    const text = fc.oneof(
      fc.constantFrom(
        '',
        '-1',
        'NaN',
        'Infinity',
        '1e309',
        '0x10',
        '99999999999999999999',
        '999999999',
        '.',
        '..',
        '%zz',
        'a\0b',
        '\r\n',
        '\ud800',
        'é',
        '__proto__',
      ),
      fc.string({ unit: 'binary', maxLength: 300 }),
      fc.integer({ min: 65_530, max: 65_540 }).map((length) => 'k'.repeat(length)),
    );
    const names = fc.constantFrom(
      'partitionKey',
      'key',
      'ttlInSeconds',
      'delayInSeconds',
      'rawPayload',
      'x-h',
      'x-mizzen-publisher',
      '__proto__',
      'cloudevent.id',
      'cloudevent.time',
    );
    const json = fc.jsonValue({ maxDepth: 2 });
    const event = fc
      .record({
        id: fc.constant('1'),
        source: fc.constant('s'),
        specversion: fc.constant('1.0'),
        type: fc.constant('t'),
        traceparent: json,
        datacontenttype: json,
        data: json,
      })
      .map((value) => Buffer.from(JSON.stringify(value)));
    await fc.assert(
      fc.asyncProperty(
        text,
        fc.dictionary(names, text, { maxKeys: 3 }),
        fc.oneof(text, fc.constant('application/cloudevents+json')),
        fc.oneof(
          fc.uint8Array({ maxLength: 50 }).map((bytes) => Buffer.from(bytes)),
          event,
        ),
        text,
        async (topic, metadata, contentType, body, traceparent) => {
          for (const name of ['t', topic]) {
            const [problem] = await publish(publication({ topic: name, metadata, contentType, body, traceparent }));
            assert.ok(problem === undefined || (problem.status >= 400 && problem.status < 500), JSON.stringify(problem));
          }
        },
      ),
      { numRuns: 200 },
    );
    assert.deepEqual(await publish(publication()), [undefined]);
    configure({ subscriptions: [subscription()] });
    const expected = lengthOf('t');
    await until('the last one is delivered', () => delivered.length > 0 && delivered.some(({ event: { data } }) => data === 'x'));
    assert.ok(delivered.length <= expected);
  });

  it('ends one message alone when a handler throws', async () => {
    let failures = 0;
    handle = (event, done) => {
      if (event.event['data'] === 'bad' && failures++ < 2) throw new Error('a fault of the channel');
      done(success);
    };
    configure({ subscriptions: [subscription()] });
    await publish(publication({ body: Buffer.from('bad') }), publication({ body: Buffer.from('good') }));
    await until('both are done', () => runtime.subscriptions().length === 1 && broker.stats()[0]!.groups[0]?.lag === 0);
    assert.equal(failures, 3);
  });

  it('publishes no dead letter where the workload may not publish, and keeps the message', async () => {
    handle = (_event, done) => done(retry('no'));
    configure({ topicPolicies: [deny('PUBLISH', 'secret')], subscriptions: [subscription({ deadLetterTopic: 'secret' })] });
    await publish(publication());
    await until('it was tried', () => delivered.length === 1);
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(lengthOf('secret'), 0);
    assert.equal(broker.stats()[0]!.groups[0]!.lag, 1);
  });

  it('answers a publisher, and publishes again, when its own code has thrown before the broker is reached', async () => {
    logErrorsTo(silentLogger);
    injectFault('message.publish', 1);
    // The component is edited: its connection is not there yet.
    configure({ components: [{ ...config.components[0]!, metadata: { ...config.components[0]!.metadata, edited: 'x' } }] });
    const [problem] = await publish(publication());
    clearFaults();
    assert.equal(problem?.status, 500);
    assert.match(problem.message, /internal error/);
    assert.deepEqual(await publish(publication()), [undefined]);
  });

  it('stores the largest message with the largest key and headers, and also as a dead letter', async () => {
    runtime.declare([subscription({ deadLetterTopic: 'dead' })]);
    handle = (_event, done) => done(retry('"\u0000'.repeat(10_000)));
    const largest = publication({
      metadata: { partitionKey: 'k'.repeat(maxKeyBytes), 'x-a': 'h'.repeat(maxHeaderBytes - 200), rawPayload: 'true' },
      body: Buffer.alloc(maxMessageBytes),
    });
    assert.deepEqual(await publish(largest), [undefined]);
    await until('the dead letter', () => lengthOf('dead') === 1);
  });

  it('does not loop where the dead letter topic is the topic itself', async () => {
    handle = (_event, done) => done(retry('no'));
    configure({ subscriptions: [subscription({ deadLetterTopic: 't' })] });
    await publish(publication());
    await until('it was tried again', () => delivered.length === 2);
    assert.equal(lengthOf('t'), 1);
  });

  it('ends a loop of dead letters at the first topic that a message has been on, and keeps the message there', async () => {
    handle = (_event, done) => done(retry('no'));
    configure({
      subscriptions: [
        subscription({ deadLetterTopic: 'b' }),
        subscription({ topic: 'b', defaultPath: '/b', deadLetterTopic: 'c' }),
        subscription({ topic: 'c', defaultPath: '/c', deadLetterTopic: 't' }),
      ],
    });
    await publish(publication());
    await until('it is tried again on the last topic', () => delivered.filter(({ path }) => path === '/c').length === 3);
    assert.deepEqual(['t', 'b', 'c'].map(lengthOf), [1, 1, 1]);
    assert.equal(delivered.length, 5);
    const last = broker.stats().find(({ topic }) => topic === 'n/p|c')!;
    assert.equal(last.groups[0]!.lag, 1);
    // The application takes it in the end.
    handle = (_event, done) => done(success);
    await until('it is done', () => broker.stats().find(({ topic }) => topic === 'n/p|c')!.groups[0]!.lag === 0);
  });

  it('moves a message to no more dead letter topics than maxDeadLetterHops', async () => {
    handle = (_event, done) => done(retry('no'));
    const topics = Array.from({ length: maxDeadLetterHops + 3 }, (_, i) => (i === 0 ? 't' : `d${i}`));
    configure({ subscriptions: topics.slice(0, -1).map((topic, i) => subscription({ topic, deadLetterTopic: topics[i + 1]! })) });
    await publish(publication());
    await until('it has moved as often as it may', () => lengthOf(topics[maxDeadLetterHops]!) === 1 && delivered.length > maxDeadLetterHops + 1);
    assert.equal(lengthOf(topics[maxDeadLetterHops + 1]!), 0);
  });

  it('is not healthy before the Components are known and their broker is connected', async () => {
    const early = new MessageRuntime({
      ...{ namespace: 'n', appId: 'a', identity: 'spiffe://td/ns/x/sa/a', channel: undefined, findCluster: () => undefined, meshTls: undefined },
      ...{ metrics: new MessageMetrics(new ProxyCounters()), logger: silentLogger },
    });
    assert.match(early.problems()[0]!, /has not sent the Components yet/);
    early.configure(config);
    assert.match(early.problems()[0]!, /^p: it is being opened/);
    await until('it is connected', () => early.problems().length === 0);
    assert.deepEqual(await new Promise((resolve) => early.publish([publication()], resolve)), [undefined]);
    await early.close();
  });

  it('ends what the broker ends, a stream with the reason, and subscribes again when access is given back', async () => {
    const access = new BrokerAccess();
    const validity = new PeerValidity({ isRevoked: () => false, isTrustedDomain: () => true });
    const authorization = { identityOf: () => 'spiffe://td/ns/n/sa/a', isOperator: () => false, validity, access };
    const strict = new BrokerServer({ broker, host: '127.0.0.1', port: 0, logger: silentLogger, authorization });
    await strict.listen();
    const policy = (...topicPolicies: TopicPolicy[]) =>
      access.use({
        components: [{ namespace: 'n', name: 'p', type: 'pubsub.mizzen', metadata: {}, scopes: [], topicPolicies }],
        apps: [{ namespace: 'n', serviceAccount: 'a', appId: 'a' }],
      });
    policy();
    const metadata = { address: `127.0.0.1:${strict.port}`, plaintext: 'true' };
    configure({ components: [{ name: 'p', type: 'pubsub.mizzen', metadata }], subscriptions: [subscription({ topic: 'declared' })] });
    await until('connected', () => runtime.problems().length === 0);
    const members = (topic: string) => broker.stats().find((stats) => stats.topic === `n/p|${topic}`)?.groups[0]?.members ?? 0;
    await until('the declared one is open', () => members('declared') === 1);
    const end = new Promise<StreamEnd>((resolve) => void runtime.subscribeStream(subscription({ type: 'STREAMING' }), channel, resolve));
    await until('the stream is open', () => members('t') === 1);
    policy(deny('SUBSCRIBE', 't', 'declared'));
    const { isDenied, message } = await end;
    assert.equal(isDenied, true);
    assert.match(message, /^topic t is not allowed for app a: AuthorizationPolicy deny denies it/);
    await until('the declared one is closed', () => members('declared') === 0 && runtime.subscriptions().length === 0);
    assert.deepEqual(
      (await publish(publication({ topic: 'other' }))).map((problem) => problem?.status),
      [403],
      'the record claims to be of another identity',
    );
    policy();
    await until('it is open again', () => members('declared') === 1);
    await strict.close();
  });

  it('ends a stream when its access is withdrawn, or when its Component is edited, and says which', async () => {
    const open = async () => {
      let resolve!: (reason: StreamEnd) => void;
      const ended = new Promise<StreamEnd>((then) => {
        resolve = then;
      });
      const stream = await runtime.subscribeStream(subscription({ type: 'STREAMING' }), channel, resolve);
      assert.ok(typeof stream !== 'string');
      return { ended, stream };
    };
    const first = await open();
    // A policy about something else changes nothing.
    configure({ topicPolicies: [deny('SUBSCRIBE', 'other')] });
    configure({ topicPolicies: [deny('SUBSCRIBE', 't')] });
    assert.deepEqual((await first.ended).isDenied, true);
    await first.stream.close();
    configure({ topicPolicies: [] });
    const second = await open();
    configure({ components: [{ ...config.components[0]!, metadata: { ...config.components[0]!.metadata, allowedTopics: 't' } }] });
    const { isDenied, message } = await second.ended;
    assert.equal(isDenied, false);
    assert.match(message, /has changed: subscribe again/);
    await second.stream.close();
  });

  it('does not rebuild a subscriber for a policy that does not concern it', async () => {
    let finish: (outcome: DeliveryOutcome) => void = () => {};
    handle = (_event, done) => {
      finish = done;
    };
    configure({ subscriptions: [subscription()] });
    await publish(publication());
    await until('it is with the handler', () => delivered.length === 1);
    configure({ topicPolicies: [deny('SUBSCRIBE', 'other')], resiliency: { other: { timeoutMs: 1, retry: undefined } } });
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(delivered.length, 1);
    finish(success);
    await until('it is done', () => broker.stats()[0]!.groups[0]!.lag === 0);
  });

  it('waits for a running bulk when it stops, and counts what it says', async () => {
    handleBulk = (events, done) => void setTimeout(() => done(new Map(events.map(({ entryId }) => [entryId, success]))), 100);
    configure({ subscriptions: [subscription({ bulk: { maxMessagesCount: 3, maxAwaitDurationMs: 1 } })] });
    await publish(publication(), publication(), publication());
    await until('it is with the handler', () => bulks.length === 1);
    await runtime.close();
    await until('its acknowledgement has come', () => broker.stats()[0]!.groups[0]!.lag === 0);
    assert.deepEqual(bulks, [3]);
  });

  it('waits for running handlers when it stops, and counts what they say', async () => {
    handle = (_event, done) => void setTimeout(() => done(success), 100);
    configure({ subscriptions: [subscription()] });
    await publish(publication());
    await until('it is with the handler', () => delivered.length === 1);
    await runtime.close();
    await until('its acknowledgement has come', () => broker.stats()[0]!.groups[0]!.lag === 0);
    assert.equal(delivered.length, 1);
  });
});
