import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { parseHeaders, readWireHeaders } from './message-headers.ts';
import { durableName } from './nats.ts';
import { queueOf } from './rabbitmq.ts';

const text = fc.string({ unit: fc.constantFrom(...'ab_.-=/% \n', '\u2028', 'ü', '2', '5', 'f', 'u', '0'), minLength: 1, maxLength: 8 });

describe('what a broker calls the consumer of a topic and a group', () => {
  const names = { 'NATS JetStream': durableName, RabbitMQ: queueOf } as const;

  for (const [broker, nameOf] of Object.entries(names))
    it(`is never what it calls another one: ${broker}`, () => {
      assert.notEqual(nameOf('a.b', 'c'), nameOf('a', 'b.c'));
      assert.notEqual(nameOf('b__c', 'a'), nameOf('c', 'a__b'));
      assert.notEqual(nameOf('\u2028', 'g'), nameOf(' 28', 'g'));
      fc.assert(
        fc.property(text, text, text, text, (topic, group, otherTopic, otherGroup) => {
          if (topic === otherTopic && group === otherGroup) return;
          assert.notEqual(nameOf(topic, group), nameOf(otherTopic, otherGroup));
        }),
        { numRuns: 2_000 },
      );
    });

  it('is what earlier versions called it, for usual names', () => {
    assert.equal(durableName('orders.eu/v1', 'shop_a'), 'shop_a__orders=2eeu=2fv1');
    assert.equal(queueOf('orders.eu', 'shop'), 'mizzen.orders.eu.shop');
  });

  it('is a name that NATS takes', () => {
    fc.assert(fc.property(text, text, (topic, group) => assert.match(durableName(topic, group), /^[\w=-]+$/)));
  });
});

describe('the headers of a message that another program has written to a broker', () => {
  it('are read without an exception, whatever they are', () => {
    for (const [json, headers] of [
      ['', {}],
      ['{', {}],
      ['null', {}],
      ['[1]', {}],
      ['"x"', {}],
      ['{"a":"b","c":1,"d":null}', { a: 'b' }],
    ] as const)
      assert.deepEqual(parseHeaders(json), headers, json);
    const now = 1_000;
    for (const value of ['', 'x', 'NaN', '1e999', '-Infinity']) {
      const read = readWireHeaders({ 'x-mizzen-deliver-at': value, 'x-mizzen-published-at': value, 'x-mizzen-expires': value }, now);
      assert.ok(Number.isFinite(read.deliverAtMs) && Number.isFinite(read.publishedAtMs), value);
    }
  });
});
