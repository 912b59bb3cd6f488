// Longer than other files: the behaviour of the message mesh is tested at one mesh with one broker, which is started once.
import assert from 'node:assert/strict';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { CommunicationProtocolEnum, DaprClient, DaprServer } from '@dapr/dapr';
import { Dapr } from '@mizzen/envoy-api/gen/dapr/proto/runtime/v1/dapr_pb.js';
import { call, until } from './support/http.ts';
import { service } from './support/mesh.ts';
import { MessageMesh, type TestApp } from './support/messaging.ts';

const daprOf = (app: TestApp) => createClient(Dapr, createGrpcTransport({ baseUrl: `http://127.0.0.1:${app.sidecar.grpcPort}` }));
const settled = (what: string, ask: () => boolean, ms?: number) => until(what, async () => ask(), Boolean, ms);

describe('the message mesh', () => {
  let messages: MessageMesh;
  let publisher: TestApp;
  const apply = (yaml: string) => messages.mesh.apply(yaml);
  const metrics = async (app: TestApp) =>
    (await call({ port: app.sidecar.adminPort, path: '/stats/prometheus' })).body
      .split('\n')
      .filter((line) => /^mizzen_message/.test(line))
      .join('\n');
  const subscribed = (app: TestApp, topic: string) =>
    until(
      `${topic} is subscribed to`,
      async () => (JSON.parse((await app.ask('/v1.0/metadata')).body) as { subscriptions: { topic: string }[] }).subscriptions,
      (subscriptions) => subscriptions.some((subscription) => subscription.topic === topic),
    );

  before(async () => {
    messages = await MessageMesh.start();
    await apply(messages.component('pubsub'));
    publisher = await messages.app('publisher');
  });
  after(() => messages.mesh.close());

  it('delivers what one application publishes to another, as a CloudEvent, with who published it and its trace', async () => {
    const app = await messages.app('orders', { subscriptions: [{ pubsubname: 'pubsub', topic: 'orders', route: '/orders' }] });
    await subscribed(app, 'orders');
    const traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
    const answer = await publisher.publish('pubsub', 'orders', '{"id":7,"amount":12.5}', {
      headers: { 'content-type': 'application/json', traceparent },
      query: '?metadata.x-tenant=acme',
    });
    assert.equal(answer.status, 204);
    await settled('it arrives', () => app.received.length === 1);
    const [{ path, event, headers }] = app.received as [TestApp['received'][number]];
    assert.equal(path, '/orders');
    assert.equal(headers['content-type'], 'application/cloudevents+json');
    assert.equal(headers['x-mizzen-publisher'], 'spiffe://cluster.local/ns/default/sa/publisher');
    assert.equal(headers['x-tenant'], 'acme');
    assert.equal(headers['traceparent'], traceparent);
    assert.deepEqual(event['data'], { id: 7, amount: 12.5 });
    for (const [name, value] of Object.entries({
      specversion: '1.0',
      type: 'com.dapr.event.sent',
      source: 'publisher',
      topic: 'orders',
      pubsubname: 'pubsub',
      datacontenttype: 'application/json',
      traceparent,
      traceid: traceparent,
    }))
      assert.equal(event[name], value, name);
    assert.match(String(event['id']), /^[0-9a-f-]{36}$/);
    // The same metadata by gRPC.
    const metadata = { 'x-tenant': 'acme', 'cloudevent.type': 'placed', 'x-mizzen-publisher': 'forged' };
    await daprOf(publisher).publishEvent({ pubsubName: 'pubsub', topic: 'orders', data: Buffer.from('{}'), dataContentType: 'application/json', metadata });
    await settled('it arrives', () => app.received.length === 2);
    assert.equal(app.received[1]!.headers['x-tenant'], 'acme');
    assert.equal(app.received[1]!.headers['x-mizzen-publisher'], 'spiffe://cluster.local/ns/default/sa/publisher');
    assert.equal(app.received[1]!.event['type'], 'placed');
    assert.match(await metrics(app), /mizzen_messages_delivered_total\{pubsub="pubsub",topic="orders",group="orders",status="success"\} 2/);
    assert.match(await metrics(publisher), /mizzen_messages_published_total\{pubsub="pubsub",topic="orders",result="stored"\} 2/);
  });

  it('gives a component its secrets by SDS, waits for those that are missing, and connects again when one changes', async () => {
    const address = (port: number) =>
      `apiVersion: v1\nkind: Secret\nmetadata: { name: sealed }\ndata: { at: ${Buffer.from(`127.0.0.1:${port}`).toString('base64')} }\n---\n`;
    await apply(
      `apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: { name: sealed }\nspec: { type: pubsub.mizzen, version: v1, metadata: [{ name: plaintext, value: 'true' }, { name: address, secretKeyRef: { name: sealed, key: at } }] }\n`,
    );
    const publish = () => publisher.publish('sealed', 'sealed', '{}');
    const waiting = await until('the component', publish, ({ status }) => status === 500);
    assert.match(waiting.body, /waits for mizzen:\/\/component\/default\/sealed\/address/);
    await apply(address(messages.brokerPort));
    await until('the secret', publish, ({ status }) => status === 204);
    await apply(address(1));
    await until('the changed secret', publish, ({ status }) => status === 500);
    await messages.mesh.plane.registry.store.remove({ group: 'dapr.io', kind: 'Component', namespace: 'default', name: 'sealed' });
  });

  it('lets nobody say that somebody else has published', async () => {
    const app = await messages.app('audit', { subscriptions: [{ pubsubname: 'pubsub', topic: 'audit', route: '/audit' }] });
    await subscribed(app, 'audit');
    await publisher.publish('pubsub', 'audit', '{}', { query: '?metadata.x-mizzen-publisher=spiffe://cluster.local/ns/default/sa/root' });
    await settled('it arrives', () => app.received.length === 1);
    assert.equal(app.received[0]!.headers['x-mizzen-publisher'], 'spiffe://cluster.local/ns/default/sa/publisher');
  });

  it('wraps text and bytes, passes CloudEvents on, and lets metadata override fields', async () => {
    const app = await messages.app('forms', { subscriptions: [{ pubsubname: 'pubsub', topic: 'forms', route: '/f' }] });
    await subscribed(app, 'forms');
    await publisher.publish('pubsub', 'forms', 'grüß', {
      headers: { 'content-type': 'text/plain' },
      query: '?metadata.cloudevent.type=greeting&metadata.cloudevent.id=g1',
    });
    await publisher.publish('pubsub', 'forms', Buffer.from([0, 255]), { headers: { 'content-type': 'application/octet-stream' } });
    await publisher.publish('pubsub', 'forms', '{"id":"e1","source":"s","specversion":"1.0","type":"t","own":"x","data":{"a":1}}', {
      headers: { 'content-type': 'application/cloudevents+json' },
    });
    await publisher.publish('pubsub', 'forms', 'raw bytes', { headers: { 'content-type': 'text/plain' }, query: '?metadata.rawPayload=true' });
    await settled('all arrive', () => app.received.length === 4);
    const of = (test: (event: Record<string, unknown>) => boolean) => app.received.find(({ event }) => test(event))!.event;
    assert.equal(of(({ id }) => id === 'g1')['data'], 'grüß');
    assert.equal(of(({ id }) => id === 'g1')['type'], 'greeting');
    assert.equal(of(({ datacontenttype }) => datacontenttype === 'application/octet-stream')['data_base64'], 'AP8=');
    assert.equal(of(({ id }) => id === 'e1')['own'], 'x');
    assert.equal(of(({ id }) => id === 'e1')['topic'], 'forms');
    assert.equal(
      Buffer.from(String(of(({ data_base64 }) => data_base64 !== undefined && data_base64 !== 'AP8=')['data_base64']), 'base64').toString(),
      'raw bytes',
    );
  });

  it('chooses the path by rules in CEL, of resources in both versions', async () => {
    const app = await messages.app('router');
    await apply(`apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: { name: routed }
spec:
  pubsubname: pubsub
  topic: routed
  routes:
    rules:
    - { match: 'event.type == "widget"', path: /widgets }
    - { match: 'event.data.amount > 100 && event.data.country in ["de", "at"]', path: /large }
    default: /rest
scopes: [router]
---
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: { name: plain }
spec: { pubsubname: pubsub, topic: plain, route: /plain }
scopes: [router]
`);
    await subscribed(app, 'routed');
    await publisher.publish('pubsub', 'routed', '{"amount":5}', { query: '?metadata.cloudevent.type=widget' });
    await publisher.publish('pubsub', 'routed', '{"amount":101,"country":"de"}');
    await publisher.publish('pubsub', 'routed', '{"amount":101,"country":"fr"}');
    await publisher.publish('pubsub', 'routed', '{}');
    await publisher.publish('pubsub', 'plain', '{}');
    await settled('all arrive', () => app.received.length === 5);
    assert.deepEqual(app.received.map(({ path }) => path).sort(), ['/large', '/plain', '/rest', '/rest', '/widgets']);
  });

  it('tries again what is to be tried again, drops what is to be dropped, and keeps the order of a key over it', async () => {
    let failures = 2;
    const app = await messages.app('fragile', {
      subscriptions: [{ pubsubname: 'pubsub', topic: 'fragile', route: '/x' }],
      answer({ event }, response) {
        const { n } = event['data'] as { n: number };
        if (n === 1 && failures-- > 0) return void (failures % 2 === 0 ? response.writeHead(500).end() : response.writeHead(200).end('{"status":"RETRY"}'));
        response.writeHead(200).end(n === 2 ? '{"status":"DROP"}' : '');
      },
    });
    await subscribed(app, 'fragile');
    for (const n of [1, 2, 3]) await publisher.publish('pubsub', 'fragile', JSON.stringify({ n }), { query: '?metadata.partitionKey=k' });
    await settled('all are done', () => app.received.length === 5);
    assert.deepEqual(
      app.received.map(({ event }) => (event['data'] as { n: number }).n),
      [1, 1, 1, 2, 3],
    );
    const text = await metrics(app);
    assert.match(text, /mizzen_messages_dropped_total\{[^}]*topic="fragile"[^}]*\} 1/);
    assert.match(text, /mizzen_messages_delivered_total\{[^}]*topic="fragile"[^}]*status="retry"\} 2/);
  });

  it('puts what nobody can take on the dead letter topic, after as many tries as a policy says, with the reason', async () => {
    const app = await messages.app('doomed', {
      subscriptions: [
        { pubsubname: 'pubsub2', topic: 'doomed', route: '/fails', deadLetterTopic: 'dead' },
        { pubsubname: 'pubsub2', topic: 'dead', route: '/dead' },
      ],
      answer: ({ path }, response) => void response.writeHead(path === '/fails' ? 500 : 200).end(),
    });
    await apply(`${messages.component('pubsub2')}apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: { name: tries }
spec:
  policies: { retries: { twice: { policy: constant, duration: 10ms, maxRetries: 2 } }, timeouts: { short: 300ms } }
  targets: { components: { pubsub2: { inbound: { retry: twice, timeout: short } } } }
`);
    await subscribed(app, 'dead');
    await publisher.publish('pubsub2', 'doomed', '{"n":1}');
    await settled('the dead letter', () => app.received.some(({ path }) => path === '/dead'));
    assert.equal(app.received.filter(({ path }) => path === '/fails').length, 3);
    const letter = app.received.find(({ path }) => path === '/dead')!;
    assert.equal(letter.headers['x-mizzen-dead-letter-reason'], 'the application answered 500');
    assert.equal(letter.headers['x-mizzen-original-publisher'], 'spiffe://cluster.local/ns/default/sa/publisher');
    assert.deepEqual(letter.event['data'], { n: 1 });
  });

  it('gives up on a consumer that hangs, that dies in the middle, or that answers rubbish, and delivers again', async () => {
    let turn = 0;
    const app = await messages.app('broken', {
      subscriptions: [{ pubsubname: 'pubsub2', topic: 'broken', route: '/b' }],
      answer(_received, response) {
        turn++;
        if (turn === 1) return; // hangs
        if (turn === 2) return void response.socket!.destroy();
        if (turn === 3) return void response.writeHead(200).end('{"status":"MAYBE"}');
        response.writeHead(200).end('not json, but 2xx');
      },
    });
    await subscribed(app, 'broken');
    await apply(`apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: { name: tries }
spec:
  policies: { retries: { often: { policy: constant, duration: 10ms, maxRetries: -1 } }, timeouts: { short: 300ms } }
  targets: { components: { pubsub2: { inbound: { retry: often, timeout: short } } } }
`);
    await publisher.publish('pubsub2', 'broken', '{}');
    await settled('the fourth try', () => app.received.length === 4);
    await until(
      'it is done',
      () => metrics(app),
      (text) => /messages_delivered_total\{[^}]*topic="broken"[^}]*status="success"\} 1/.test(text),
    );
  });

  it('takes the status of an HTTP application for what Dapr takes it for', async () => {
    const answers: Readonly<Record<string, readonly [number, string, 'success' | 'drop' | 'retry']>> = {
      a: [200, '', 'success'],
      b: [204, '', 'success'],
      c: [200, '{"status":"SUCCESS"}', 'success'],
      d: [201, '{"status":""}', 'success'],
      e: [200, '{"status":"DROP"}', 'drop'],
      f: [404, '{"status":"SUCCESS"}', 'drop'],
      g: [200, '{"status":"RETRY"}', 'retry'],
      h: [200, '{"status":"OTHER"}', 'retry'],
      i: [301, '', 'retry'],
      j: [400, '', 'retry'],
      k: [403, '', 'retry'],
      l: [429, '{"status":"DROP"}', 'retry'],
      m: [500, '', 'retry'],
      n: [503, '{"status":"SUCCESS"}', 'retry'],
    };
    const app = await messages.app('statuses', {
      subscriptions: Object.keys(answers).map((name) => ({ pubsubname: 'pubsub', topic: `status-${name}`, route: `/${name}` })),
      answer({ path }, response) {
        const [status, body] = answers[path.slice(1)]!;
        response.writeHead(status).end(body);
      },
    });
    await subscribed(app, 'status-n');
    await Promise.all(Object.keys(answers).map((name) => publisher.publish('pubsub', `status-${name}`, '{}')));
    const count = (name: string) => app.received.filter(({ path }) => path === `/${name}`).length;
    await settled('all have come, and those to be tried again twice', () =>
      Object.entries(answers).every(([name, [, , outcome]]) => count(name) >= (outcome === 'retry' ? 2 : 1)),
    );
    const text = await metrics(app);
    for (const [name, [status, body, outcome]] of Object.entries(answers)) {
      if (outcome !== 'retry') assert.equal(count(name), 1, `${status} ${body}`);
      assert.match(text, new RegExp(`mizzen_messages_delivered_total\\{[^}]*topic="status-${name}"[^}]*status="${outcome}"\\} [1-9]`), `${status} ${body}`);
    }
  });

  it('asks for the token of the API, and shows the application its own, over HTTP', async () => {
    Object.assign(process.env, { DAPR_API_TOKEN: 'secret', APP_API_TOKEN: 'mine' });
    let app: TestApp;
    try {
      app = await messages.app('guarded-api', { subscriptions: [{ pubsubname: 'pubsub', topic: 'tokens', route: '/t' }] });
    } finally {
      delete process.env['DAPR_API_TOKEN'];
      delete process.env['APP_API_TOKEN'];
    }
    const json = { 'content-type': 'application/json' };
    for (const [method, path] of [
      ['POST', '/v1.0/publish/pubsub/tokens'],
      ['PUT', '/v1.0/publish/pubsub/tokens'],
      ['POST', '/v1.0/publish/bulk/pubsub/tokens'],
      ['POST', '/v1.0-alpha1/publish/bulk/pubsub/tokens'],
      ['GET', '/v1.0/metadata'],
      ['PUT', '/v1.0/metadata/a'],
      ['GET', '/v1.0/other'],
      ['POST', '/v1.0/healthz/../publish/pubsub/tokens'],
    ] as const)
      for (const token of [{}, { 'dapr-api-token': '' }, { 'dapr-api-token': 'secre' }, { 'dapr-api-token': 'mine' }] as readonly Readonly<
        Record<string, string>
      >[])
        assert.notEqual((await app.ask(path, { method, body: method === 'GET' ? '' : '{}', headers: { ...json, ...token } })).status, 204, `${method} ${path}`);
    assert.equal((await app.ask('/v1.0/metadata')).status, 401);
    for (const path of ['/v1.0/healthz', '/v1.0/healthz/outbound']) assert.equal((await app.ask(path)).status, 204);
    await until(
      'it is subscribed',
      async () => (await app.ask('/v1.0/metadata', { headers: { 'dapr-api-token': 'secret' } })).body,
      (body) => body.includes('"topic":"tokens"'),
    );
    // What a publisher writes into headers of its message steers nothing at the application.
    const forged = ['x-forwarded-client-cert=By%3Da', 'x-envoy-original-path=%2F', 'dapr-api-token=x', 'x-mizzen-publisher=y', 'x-tenant=t'];
    const query = `?${forged.map((one) => `metadata.${one}`).join('&')}`;
    assert.equal((await app.publish('pubsub', 'tokens', '{}', { query, headers: { ...json, 'dapr-api-token': 'secret' } })).status, 204);
    await settled('it arrives', () => app.received.length === 1);
    const { headers } = app.received[0]!;
    assert.equal(headers['dapr-api-token'], 'mine');
    assert.equal(headers['x-tenant'], 't');
    assert.equal(headers['x-mizzen-publisher'], 'spiffe://cluster.local/ns/default/sa/guarded-api');
    for (const name of ['x-forwarded-client-cert', 'x-envoy-original-path']) assert.equal(headers[name], undefined, name);
    assert.equal(app.askedWith()['dapr-api-token'], 'mine');
  });

  it('takes the status of a gRPC application for what Dapr takes it for, loses nothing to UNIMPLEMENTED, and sends the empty path as it is', async () => {
    const { createServer } = await import('node:http2');
    const { Code, ConnectError } = await import('@connectrpc/connect');
    const { connectNodeAdapter } = await import('@connectrpc/connect-node');
    const { AppCallback } = await import('@mizzen/envoy-api/gen/dapr/proto/runtime/v1/appcallback_pb.js');
    const answers: Readonly<Record<string, readonly [number | InstanceType<typeof ConnectError>, 'success' | 'drop' | 'retry']>> = {
      'grpc-ok': [0, 'success'],
      'grpc-retry': [1, 'retry'],
      'grpc-drop': [2, 'drop'],
      'grpc-other': [77, 'retry'],
      'grpc-unimplemented': [new ConnectError('no handler', Code.Unimplemented), 'retry'],
      'grpc-internal': [new ConnectError('broken', Code.Internal), 'retry'],
      'grpc-not-found': [new ConnectError('none', Code.NotFound), 'retry'],
    };
    const events: { readonly topic: string; readonly path: string; readonly token: string | null; readonly about: readonly unknown[] }[] = [];
    let declaredWith: string | null = null;
    const handler = connectNodeAdapter({
      routes: (router) =>
        router.service(AppCallback, {
          listTopicSubscriptions(_, { requestHeader }) {
            declaredWith = requestHeader.get('dapr-api-token');
            const topics = Object.keys(answers).map((topic) => ({ pubsubName: 'pubsub', topic }));
            return { subscriptions: [...topics.slice(1), { ...topics[0]!, routes: { rules: [{ match: '', path: '/all' }], default: '/other' } }] };
          },
          onTopicEvent({ topic, path, type }, { requestHeader }) {
            const about = [type, ...['x-tenant', 'x-mizzen-publisher', 'x-raw-bin', 'te'].map((name) => requestHeader.get(name))];
            events.push({ topic, path, token: requestHeader.get('dapr-api-token'), about });
            const [answer] = answers[topic]!;
            if (typeof answer === 'number') return { status: answer };
            throw answer;
          },
        }),
    });
    const server = createServer(handler);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { mesh } = messages;
    mesh.onClose(async () => void server.close());
    const httpPort = await mesh.ports.next();
    process.env['APP_API_TOKEN'] = 'mine';
    const running = await mesh
      .proxy('grpc-statuses', {
        registers: true,
        inbound: [],
        messaging: {
          ...{ appId: 'grpc-statuses', httpPort, grpcPort: await mesh.ports.next() },
          app: { port: (server.address() as AddressInfo).port, protocol: 'grpc' },
        },
      })
      .finally(() => delete process.env['APP_API_TOKEN']);
    // 204 says that publishing works: a client waits for it.
    await until(
      'it is healthy',
      async () => (await call({ port: httpPort, path: '/v1.0/healthz/outbound' })).status,
      (status) => status === 204,
    );
    for (const topic of Object.keys(answers))
      assert.equal((await call({ port: httpPort, method: 'POST', path: `/v1.0/publish/pubsub/${topic}`, body: '{}' })).status, 204, topic);
    const count = (topic: string) => events.filter((event) => event.topic === topic).length;
    await settled(
      'all have come, and those to be tried again twice',
      () => Object.entries(answers).every(([topic, [, outcome]]) => count(topic) >= (outcome === 'retry' ? 2 : 1)),
      60_000,
    );
    const text = (await call({ port: running.adminPort, path: '/stats/prometheus' })).body;
    for (const [topic, [, outcome]] of Object.entries(answers)) {
      if (outcome !== 'retry') assert.equal(count(topic), 1, topic);
      assert.match(text, new RegExp(`mizzen_messages_delivered_total\\{[^}]*topic="${topic}"[^}]*status="${outcome}"\\} [1-9]`), topic);
    }
    assert.deepEqual(new Set(events.map(({ topic, path }) => `${topic === 'grpc-ok'}${path}`)), new Set(['true/all', 'false']));
    assert.deepEqual([...new Set(events.map(({ token }) => token)), declaredWith], ['mine', 'mine']);
    assert.doesNotMatch(text, /mizzen_messages_dropped_total\{[^}]*topic="grpc-unimplemented"/);
    // Metadata of both ways to publish is metadata of the call.
    const metadata = { 'x-tenant': 'acme', 'cloudevent.type': 'placed', 'x-mizzen-publisher': 'forged', 'x-raw-bin': '?' };
    events.length = 0;
    const query = Object.entries(metadata).map(([name, value]) => `metadata.${name}=${encodeURIComponent(value)}`);
    await publisher.publish('pubsub', 'grpc-ok', '{}', { query: `?${query.join('&')}` });
    await daprOf(publisher).publishEvent({ pubsubName: 'pubsub', topic: 'grpc-ok', data: Buffer.from('{}'), metadata });
    const ofOk = () => events.filter(({ topic }) => topic === 'grpc-ok');
    await settled('both', () => ofOk().length === 2);
    const identity = 'spiffe://cluster.local/ns/default/sa/publisher';
    for (const { about } of ofOk()) assert.deepEqual(about, ['placed', 'acme', identity, null, 'trailers']);
    // Entries of a bulk are told apart by their ids.
    for (const ids of [[''], ['a', 'a']])
      await assert.rejects(
        daprOf(publisher).bulkPublishEvent({ pubsubName: 'pubsub', topic: 'grpc-ok', entries: ids.map((entryId) => ({ entryId })) }),
        /no entryId|two entries/,
      );
  });

  it('publishes and delivers many at once', async () => {
    const app = await messages.app('bulk', {
      subscriptions: [{ pubsubname: 'pubsub', topic: 'bulk', route: '/bulk', bulkSubscribe: { enabled: true, maxMessagesCount: 10, maxAwaitDurationMs: 50 } }],
      answer(received, response) {
        const { entries } = received.event as { entries: { entryId: string; event: { data: { n: number } } }[] };
        response.writeHead(200).end(
          JSON.stringify({
            statuses: entries.map(({ entryId, event }) => ({ entryId, status: event.data.n === 3 && app.received.length === 1 ? 'RETRY' : 'SUCCESS' })),
          }),
        );
      },
    });
    await subscribed(app, 'bulk');
    const entries = Array.from({ length: 25 }, (_, n) => ({
      entryId: String(n),
      event: { n },
      contentType: 'application/json',
      metadata: { partitionKey: 'k' },
    }));
    const answer = await publisher.ask('/v1.0/publish/bulk/pubsub/bulk', {
      method: 'POST',
      body: JSON.stringify(entries),
      headers: { 'content-type': 'application/json' },
    });
    assert.equal(answer.status, 204, answer.body);
    const numbers = () => app.received.flatMap(({ event }) => (event['entries'] as { event: { data: { n: number } } }[]).map((entry) => entry.event.data.n));
    await settled('all, and one twice', () => numbers().length === 26);
    assert.deepEqual(new Set(numbers()).size, 25);
    assert.ok(app.received.length <= 6);
    for (const [body, reason] of [
      ['{}', /list/],
      ['[{"event":1}]', /entryId/],
      ['[{"entryId":"1"}]', /no event/],
      ['[{"entryId":"1","event":1},{"entryId":"1","event":1}]', /two entries/],
    ] as const) {
      const refused = await publisher.ask('/v1.0/publish/bulk/pubsub/bulk', { method: 'POST', body });
      assert.equal(refused.status, 400);
      assert.match(refused.body, reason);
    }
  });

  it('says clearly what cannot be published', async () => {
    for (const [path, body, status, code] of [
      ['/v1.0/publish/nothere/t', '{}', 404, 'ERR_PUBSUB_NOT_FOUND'],
      ['/v1.0/publish/pubsub/', '{}', 404, 'ERR_PUBSUB_TOPIC_EMPTY'],
      ['/v1.0/publish/pubsub/t?metadata.ttlInSeconds=soon', '{}', 400, 'ERR_PUBSUB_CLOUD_EVENTS_SER'],
      ['/v1.0/nothing', '', 404, 'ERR_NOT_FOUND'],
    ] as const) {
      const answer = await publisher.ask(path, { method: 'POST', body, headers: { 'content-type': 'application/json' } });
      assert.equal(answer.status, status, path);
      assert.equal((JSON.parse(answer.body) as { errorCode: string }).errorCode, code);
    }
    const event = await publisher.publish('pubsub', 't', '{"id":"1"}', { headers: { 'content-type': 'application/cloudevents+json' } });
    assert.equal(event.status, 400);
    assert.match(event.body, /needs \\"source\\"/);
    // Web pages of this machine's user are not its programs.
    for (const headers of [{ origin: 'https://page.test' }, { host: 'rebound.test' }] as Record<string, string>[])
      assert.equal((await publisher.ask('/v1.0/publish/pubsub/t', { method: 'POST', body: '{}', headers })).status, 403);
    assert.equal((await publisher.ask('/v1.0/publish/pubsub/t', { method: 'GET' })).status, 405);
    assert.equal((await publisher.ask('/v1.0/healthz')).status, 204);
  });

  it('lets only those publish and subscribe who may: by scopes, and by AuthorizationPolicies', async () => {
    await apply(`${messages.component('scoped', { publishingScopes: 'publisher=open', protectedTopics: 'secret', subscriptionScopes: 'reader=open' })}
${messages.component('others', {}, 'scopes: [somebody-else]')}
${messages.component('guarded')}
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: topics }
spec:
  targetRefs: [{ group: dapr.io, kind: Component, name: guarded }]
  action: ALLOW
  rules:
  - from: [{ source: { principals: ["cluster.local/ns/default/sa/publisher"] } }]
    to: [{ operation: { methods: [PUBLISH], paths: ["orders*"] } }]
  - from: [{ source: { principals: ["cluster.local/ns/default/sa/reader"] } }]
    to: [{ operation: { methods: [SUBSCRIBE] } }]
`);
    const reader = await messages.app('reader', {
      subscriptions: [
        { pubsubname: 'guarded', topic: 'orders.eu', route: '/g' },
        { pubsubname: 'scoped', topic: 'closed', route: '/c' },
      ],
    });
    const snoop = await messages.app('snoop', { subscriptions: [{ pubsubname: 'guarded', topic: 'orders.eu', route: '/g' }] });
    await subscribed(reader, 'orders.eu');
    assert.equal((await publisher.publish('scoped', 'open', '{}')).status, 204);
    for (const [pubsub, topic] of [
      ['scoped', 'other'],
      ['scoped', 'secret'],
      ['guarded', 'payments'],
    ] as const) {
      const answer = await publisher.publish(pubsub, topic, '{}');
      assert.equal(answer.status, 403);
      assert.equal((JSON.parse(answer.body) as { errorCode: string }).errorCode, 'ERR_PUBSUB_FORBIDDEN');
    }
    assert.equal((await publisher.publish('others', 'x', '{}')).status, 404);
    assert.equal((await reader.publish('guarded', 'orders.eu', '{}')).status, 403);
    assert.equal((await publisher.publish('guarded', 'orders.eu', '{"n":1}')).status, 204);
    await settled('the reader has it', () => reader.received.length === 1);
    assert.equal(snoop.received.length, 0);
    assert.match(await metrics(snoop), /result="subscription_refused"\} 1/);
    assert.equal((JSON.parse((await reader.ask('/v1.0/metadata')).body) as { subscriptions: unknown[] }).subscriptions.length, 1);
    // What cannot be enforced is refused.
    await assert.rejects(
      apply(`apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: bad }
spec: { targetRefs: [{ group: dapr.io, kind: Component, name: guarded }], rules: [{ when: [{ key: source.ip, values: [10.0.0.1] }] }] }
`),
      /rules\.when is not enforced/,
    );
  });

  it('gives a share of the messages, and those that ask for it, to a canary of the subscriber', async () => {
    await apply(`${service('shop')}
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: shop }
spec: { host: shop, subsets: [{ name: v1, labels: { version: v1 } }, { name: v2, labels: { version: v2 } }] }
---
apiVersion: mizzen.dev/v1alpha1
kind: MessageRoute
metadata: { name: shop }
spec:
  pubsub: pubsub
  topic: shop
  subscriber: { service: shop }
  routes: [{ subset: v2, headers: { x-canary: "yes" } }, { subset: v2, weight: 25 }]
`);
    const subscriptions = [{ pubsubname: 'pubsub', topic: 'shop', route: '/shop' }];
    const v1 = await messages.app('shop-v1', { appId: 'shop', labels: { version: 'v1' }, subscriptions });
    const v2 = await messages.app('shop-v2', { appId: 'shop', labels: { version: 'v2' }, subscriptions });
    await subscribed(v1, 'shop');
    for (let n = 0; n < 10; n++) await publisher.publish('pubsub', 'shop', JSON.stringify({ n }), { query: '?metadata.x-canary=yes' });
    await settled('the canary has all that ask for it', () => v2.received.length === 10);
    assert.equal(v1.received.length, 0);
    assert.match(v2.received[0]!.headers['x-forwarded-client-cert'] as string, /sa\/shop-v1/);
    for (let n = 0; n < 200; n++) await publisher.publish('pubsub', 'shop', JSON.stringify({ n }));
    await settled('all arrive', () => v1.received.length + v2.received.length === 210);
    assert.ok(v2.received.length > 30 && v2.received.length < 90, String(v2.received.length));
    assert.match(await metrics(v1), /messages_delivered_total\{[^}]*topic="shop"[^}]*subset="v2"\}/);
  });

  describe('with Dapr’s own SDK', () => {
    for (const protocol of [CommunicationProtocolEnum.HTTP, CommunicationProtocolEnum.GRPC])
      it(`publishes and subscribes over ${protocol === CommunicationProtocolEnum.HTTP ? 'HTTP' : 'gRPC'}, as it is`, async () => {
        const { mesh } = messages;
        const name = protocol === CommunicationProtocolEnum.HTTP ? 'sdk-http' : 'sdk-grpc';
        const [appPort, httpPort, grpcPort] = [await mesh.ports.next(), await mesh.ports.next(), await mesh.ports.next()];
        const running = await mesh.proxy(name, {
          registers: true,
          inbound: [],
          messaging: { appId: name, httpPort, grpcPort, app: { port: appPort, protocol: protocol === CommunicationProtocolEnum.HTTP ? 'http' : 'grpc' } },
        });
        await running.proxy.ready;
        const sidecarPort = String(protocol === CommunicationProtocolEnum.HTTP ? httpPort : grpcPort);
        const clientOptions = { daprHost: '127.0.0.1', daprPort: sidecarPort, communicationProtocol: protocol, logger: { level: 0 as never } };
        const server = new DaprServer({ serverHost: '127.0.0.1', serverPort: String(appPort), communicationProtocol: protocol, clientOptions });
        const seen: unknown[] = [];
        const headersSeen: unknown[] = [];
        await server.pubsub.subscribe('pubsub', `${name}-topic`, async (data: unknown, headers: unknown) => {
          seen.push(data);
          headersSeen.push(headers);
        });
        await server.start();
        mesh.onClose(async () => void (await server.stop()));
        const client = new DaprClient(clientOptions);
        await until(
          'the subscription',
          async () => JSON.parse((await call({ port: httpPort, path: '/v1.0/metadata' })).body) as { subscriptions: unknown[] },
          ({ subscriptions }) => subscriptions.length === 1,
          60_000,
        );
        await client.pubsub.publish('pubsub', `${name}-topic`, { hello: 'world' });
        await settled('the object', () => seen.length === 1);
        assert.deepEqual(seen[0], { hello: 'world' });
        const { failedMessages } = await client.pubsub.publishBulk('pubsub', `${name}-topic`, ['a', { b: 1 }]);
        assert.deepEqual(failedMessages, []);
        await settled('the others', () => seen.length === 3);
        // The SDK rejects over the one protocol, and resolves over the other.
        const failure = await client.pubsub.publish('nothere', 't', {}).catch((error: unknown) => error);
        assert.match(String((failure as { error?: unknown }).error ?? failure), /ERR_PUBSUB_NOT_FOUND/);
        assert.equal((await client.metadata.get()).id, name);
        assert.equal(await client.health.isHealthy(), true);
        await client.stop();
      });
  });

  it('serves a subscription that is a stream (gRPC)', async () => {
    const { PushQueue } = await import('@mizzen/common');
    const { create } = await import('@bufbuild/protobuf');
    const { SubscribeTopicEventsRequestAlpha1Schema: Request } = await import('@mizzen/envoy-api/gen/dapr/proto/runtime/v1/pubsub_pb.js');
    const client = daprOf(publisher);
    const requests = new PushQueue<ReturnType<typeof create<typeof Request>>>();
    requests.push(create(Request, { subscribeTopicEventsRequestType: { case: 'initialRequest', value: { pubsubName: 'pubsub', topic: 'streamed' } } }));
    const seen: string[] = [];
    for await (const { subscribeTopicEventsResponseType: answer } of client.subscribeTopicEventsAlpha1(requests)) {
      if (answer.case === 'initialResponse') await publisher.publish('pubsub', 'streamed', '{"n":1}');
      if (answer.case !== 'eventMessage') continue;
      seen.push(Buffer.from(answer.value.data).toString());
      // The first time it is to come again.
      const status = seen.length === 1 ? 1 : 0;
      requests.push(create(Request, { subscribeTopicEventsRequestType: { case: 'eventProcessed', value: { id: answer.value.id, status: { status } } } }));
      if (seen.length === 2) break;
    }
    assert.deepEqual(seen, ['{"n":1}', '{"n":1}']);
    requests.close();
  });

  it('gives a stream one event of an id at a time, so that each is settled for itself', async () => {
    const { PushQueue } = await import('@mizzen/common');
    const { create } = await import('@bufbuild/protobuf');
    const { SubscribeTopicEventsRequestAlpha1Schema: Request } = await import('@mizzen/envoy-api/gen/dapr/proto/runtime/v1/pubsub_pb.js');
    const requests = new PushQueue<ReturnType<typeof create<typeof Request>>>();
    requests.push(create(Request, { subscribeTopicEventsRequestType: { case: 'initialRequest', value: { pubsubName: 'pubsub', topic: 'same-id' } } }));
    const settle = (status: number) =>
      requests.push(create(Request, { subscribeTopicEventsRequestType: { case: 'eventProcessed', value: { id: 'same', status: { status } } } }));
    const events = daprOf(publisher).subscribeTopicEventsAlpha1(requests)[Symbol.asyncIterator]();
    await events.next();
    const query = '?metadata.cloudevent.id=same';
    for (const n of [1, 2]) assert.equal((await publisher.publish('pubsub', 'same-id', `{"n":${n}}`, { query })).status, 204);
    const next = async () => {
      const { value } = await events.next();
      const { subscribeTopicEventsResponseType: answer } = value as Awaited<ReturnType<typeof events.next>>['value'];
      return answer.case === 'eventMessage' ? Buffer.from(answer.value.data).toString() : undefined;
    };
    const first = await next();
    // The other one has not been sent: what is said about the id is about the first, which comes again.
    settle(1);
    const second = await next();
    assert.notEqual(second, first);
    settle(0);
    assert.equal(await next(), first);
    settle(0);
    await events.return?.();
    requests.close();
  });

  it('tells how far behind a group is', async () => {
    const app = await messages.app('slow', {
      subscriptions: [{ pubsubname: 'pubsub', topic: 'slow', route: '/s', metadata: { maxInFlight: '1' } }],
      answer: () => {},
    });
    await subscribed(app, 'slow');
    for (let n = 0; n < 5; n++) await publisher.publish('pubsub', 'slow', '{}');
    await until(
      'the lag',
      () => metrics(app),
      (text) => /mizzen_message_lag\{pubsub="pubsub",topic="slow",group="slow"\} 5/.test(text),
      60_000,
    );
    assert.match(await metrics(app), /mizzen_message_broker_up\{pubsub="pubsub"\} 1/);
  });
});
