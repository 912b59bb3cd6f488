import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { readDeclared } from './declared-subscriptions.ts';

const good = {
  pubsubname: 'p',
  topic: 'good',
  routes: { rules: [{ match: 'event.type == "a"', path: '/a' }], default: '/d' },
  deadLetterTopic: 'dead',
  bulkSubscribe: { enabled: true, maxMessagesCount: 5, maxAwaitDurationMs: 7 },
  metadata: { rawPayload: 'true' },
};
const read = {
  pubsubname: 'p',
  topic: 'good',
  rules: [{ match: 'event.type == "a"', path: '/a' }],
  defaultPath: '/d',
  deadLetterTopic: 'dead',
  bulk: { maxMessagesCount: 5, maxAwaitDurationMs: 7 },
  metadata: { rawPayload: 'true' },
  type: 'PROGRAMMATIC',
};
const odd: readonly unknown[] = [null, {}, [], '', 'text', 0, -1, Number.POSITIVE_INFINITY, true, [null], { a: null }, { toString: 5, valueOf: 5 }];

/** Paths to all members of a value. */
function pathsOf(value: unknown): string[][] {
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([name, member]) => [[name], ...pathsOf(member).map((path) => [name, ...path])]);
}

function replaced(value: unknown, [name, ...rest]: readonly string[], by: unknown): unknown {
  if (name === undefined) return by;
  const copy = structuredClone(value) as Record<string, unknown>;
  copy[name] = replaced(copy[name], rest, by);
  return copy;
}

describe('the subscriptions that an application declares', () => {
  it('are read whatever one of them is, and the others are as they were', () => {
    for (const path of [[], ...pathsOf(good)])
      for (const value of odd) {
        const { subscriptions, problems } = readDeclared([good, replaced(good, path, value), good]);
        const about = `${path.join('.')} = ${JSON.stringify(value)}`;
        assert.equal(subscriptions.length + problems.length, 3, about);
        assert.deepEqual([subscriptions[0], subscriptions.at(-1)], [read, read], about);
        for (const one of subscriptions) {
          for (const text of [one.pubsubname, one.topic, one.defaultPath, one.deadLetterTopic, ...Object.values(one.metadata)])
            assert.equal(typeof text, 'string');
          for (const rule of one.rules) assert.ok(rule.path !== '' && typeof rule.match === 'string', about);
          if (one.bulk !== undefined)
            assert.ok(one.bulk.maxMessagesCount >= 1 && one.bulk.maxMessagesCount <= 10_000 && one.bulk.maxAwaitDurationMs > 0, about);
        }
      }
  });

  it('are what Dapr reads where fields are null or absent', () => {
    const nulls = { pubsubname: 'p', topic: 't', route: '/t', routes: null, deadLetterTopic: null, bulkSubscribe: null, metadata: null };
    assert.deepEqual(readDeclared([nulls]), readDeclared([{ pubsubname: 'p', topic: 't', route: '/t' }]));
    assert.deepEqual(readDeclared(null), { subscriptions: [], problems: [] });
  });

  it('are read or refused with an error for any JSON', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        if (value === null || Array.isArray(value)) readDeclared(value);
        else assert.throws(() => readDeclared(value), /it is not a list/);
      }),
    );
  });
});
