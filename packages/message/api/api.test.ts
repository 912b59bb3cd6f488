import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { PubSubComponent, TopicPolicy } from '@mizzen/envoy-api';
import { refusalOf } from '../policy/topic-access.ts';
import { outcomeOfBody } from './app-channel.ts';
import { dataOf, InvalidEvent, readEvent, wrap } from './cloud-events.ts';
import { EventRouter, routing } from './event-router.ts';
import { isDelivered } from './http-app-channel.ts';

const wrapping = (contentType: string, body: string, metadata: Record<string, string> = {}) => ({
  contentType,
  body: Buffer.from(body),
  source: 'app',
  pubsub: 'p',
  topic: 't',
  traceparent: '',
  tracestate: '',
  metadata,
});

describe('events', () => {
  it('hold JSON as it is, text as text, and everything else in base64', () => {
    const of = (contentType: string, body: string) => JSON.parse(wrap(wrapping(contentType, body)).toString()) as Record<string, unknown>;
    assert.deepEqual(of('application/json; charset=utf-8', '{"a":[1,2.50]}')['data'], { a: [1, 2.5] });
    assert.deepEqual(of('application/vnd.x+json', '1')['data'], 1);
    assert.equal(of('application/json', '{no json')['data'], '{no json');
    assert.equal(of('text/plain', 'ä')['data'], 'ä');
    assert.equal(of('', 'x')['data'], 'x');
    assert.equal(of('image/png', 'x')['data_base64'], 'eA==');
  });

  it('that are CloudEvents already must be ones', () => {
    for (const body of ['', '[]', '1', '{"id":"1"}', '{"id":1,"source":"s","specversion":"1.0","type":"t"}'])
      assert.throws(() => wrap(wrapping('application/cloudevents+json', body)), InvalidEvent);
  });

  it('give their data back as it was', () => {
    for (const [contentType, body] of [
      ['application/json', '{"a":1}'],
      ['text/plain', 'x'],
      ['application/octet-stream', 'x'],
    ] as const)
      assert.equal(dataOf(readEvent(wrap(wrapping(contentType, body)), false, { id: '1', pubsub: 'p', topic: 't', contentType: '' }).event).toString(), body);
  });
});

describe('routes of events', () => {
  const router = (match: string) => new EventRouter({ rules: [{ match, path: '/yes' }], defaultPath: '/no' });
  const event = { type: 'order', data: { amount: 12, price: 1.5, tags: ['a'], name: 'ada', nested: { ok: true } } };

  it('are chosen by CEL', () => {
    for (const match of [
      'event.type == "order"',
      'event.data.amount >= 12',
      'event.data.price < 2.0',
      '"a" in event.data.tags',
      'event.data.name.startsWith("a")',
      'event.data.nested.ok',
      'has(event.data.name) && !has(event.data.missing)',
      'size(event.data.tags) == 1',
    ])
      assert.equal(router(match).pathFor(event), '/yes', match);
    for (const match of ['event.type == "other"', 'event.data.missing > 1', 'event.data.name', '1 / 0 == 1'])
      assert.equal(router(match).pathFor(event), '/no', match);
  });

  it('end with a rule without a condition, which takes everything', () => {
    const rules = [{ match: 'event.type == "a"', path: '/a' }, { match: '', path: '/all' }, { match: 'event.type == "b"', path: '/b' }, { path: '' }];
    assert.deepEqual(routing(rules, '/default'), { rules: [rules[0]], defaultPath: '/all' });
    assert.deepEqual(routing(rules.slice(0, 1), '/default'), { rules: [rules[0]], defaultPath: '/default' });
  });

  it('that are no CEL are refused', () => {
    assert.throws(() => router('event.type =='), /not a valid CEL expression/);
  });
});

describe('what an application answers', () => {
  it('is a success when it says nothing, and is tried again when nobody knows what it says', () => {
    for (const [body, status] of [
      ['', 'SUCCESS'],
      ['{}', 'SUCCESS'],
      ['hello', 'SUCCESS'],
      ['{"status":"SUCCESS"}', 'SUCCESS'],
      ['{"status":"DROP"}', 'DROP'],
      ['{"status":"RETRY"}', 'RETRY'],
      ['{"status":"success"}', 'RETRY'],
      ['{"status":7}', 'RETRY'],
    ])
      assert.equal(outcomeOfBody(Buffer.from(body!)).status, status, body);
  });
});

describe('access to topics', () => {
  const component = (metadata: Record<string, string> = {}): PubSubComponent => ({ name: 'p', type: 'pubsub.mizzen', metadata });
  const ask = (topic: string, more: { operation?: 'PUBLISH' | 'SUBSCRIBE'; appId?: string; principal?: string } = {}) => ({
    operation: 'PUBLISH' as const,
    pubsub: 'p',
    topic,
    appId: 'a',
    principal: 'spiffe://td/ns/x/sa/a',
    ...more,
  });

  it('is given by scopes as Dapr has them', () => {
    assert.equal(refusalOf(ask('t'), component(), []), undefined);
    const scoped = component({ publishingScopes: 'a=t1, t2;b=', allowedTopics: 't1,t3', protectedTopics: 'secret' });
    assert.equal(refusalOf(ask('t1'), scoped, []), undefined);
    for (const [topic, appId] of [
      ['t2', 'a'],
      ['t3', 'a'],
      ['t1', 'b'],
      ['secret', 'c'],
      ['other', 'c'],
    ] as const)
      assert.ok(refusalOf(ask(topic, { appId }), scoped, []), `${appId} ${topic}`);
    assert.equal(refusalOf(ask('t3', { appId: 'c' }), scoped, []), undefined);
  });

  it('is given by policies as Istio has them: DENY first, then ALLOW if there is any, and nothing by an empty list of rules', () => {
    const policy = (action: 'ALLOW' | 'DENY', rules: TopicPolicy['rules'], pubsub = 'p'): TopicPolicy => ({ name: action, pubsub, action, rules });
    const rule = (fields: Partial<TopicPolicy['rules'][number]> = {}) => ({ principals: [], namespaces: [], operations: [], topics: [], ...fields });
    const allows = (policies: TopicPolicy[], request = ask('orders.eu')) => refusalOf(request, component(), policies) === undefined;
    assert.ok(allows([policy('ALLOW', [rule()])]));
    assert.ok(!allows([policy('ALLOW', [])]));
    assert.ok(allows([policy('ALLOW', [], 'other')]));
    assert.ok(allows([policy('ALLOW', [rule({ principals: ['td/ns/x/sa/*'], topics: ['orders*'], operations: ['PUBLISH'] })])]));
    assert.ok(!allows([policy('ALLOW', [rule({ operations: ['SUBSCRIBE'] })])]));
    assert.ok(!allows([policy('ALLOW', [rule({ namespaces: ['y'] })])]));
    assert.ok(!allows([policy('ALLOW', [rule()]), policy('DENY', [rule({ topics: ['*.eu'] })])]));
    assert.ok(!allows([policy('ALLOW', [rule({ principals: ['*'] })])], ask('t', { principal: '' })));
  });
});

describe('headers of a message', () => {
  it('become fields of the request only where their name is the publisher’s to give', () => {
    for (const name of ['x-tenant', 'traceparent', 'tracestate', 'x-mizzen-publisher', 'x-mizzen-original-publisher', 'x-mizzen-dead-letter-reason'])
      assert.ok(isDelivered(name), name);
    for (const name of [
      ...[
        'transfer-encoding',
        'connection',
        'content-length',
        'content-type',
        'host',
        'authorization',
        'cookie',
        'te',
        'upgrade',
        'dapr-api-token',
        'forwarded',
      ],
      ...[
        'x-forwarded-for',
        'x-forwarded-client-cert',
        'x-envoy-original-path',
        'x-mizzen-other',
        'x-request-id',
        'x-real-ip',
        'X-Tenant',
        'x_tenant',
        'x-a b',
        '',
      ],
    ])
      assert.equal(isDelivered(name), false, name);
  });
});
