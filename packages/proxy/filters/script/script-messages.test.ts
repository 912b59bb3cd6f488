import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { maxBodyBytes, maxFieldBytes, maxPathBytes, readFromProcess, validatedResult } from './script-messages.ts';

const answer = { kind: 'answer', status: 200, body: '', headers: [] as unknown };
const unchanged = { kind: 'continue' };

describe('messages from the process of a filter', () => {
  it('are refused when they are not messages', () => {
    for (const line of ['', 'null', '5', '[]', '{', '"result"', '{}', '{"kind":"result"}', '{"kind":"result","id":1.5}', '{"kind":"running","id":"1"}'])
      assert.equal(readFromProcess(line), undefined, line);
  });

  it('become errors of their calls when a value cannot be part of a message', () => {
    const wrong: unknown[] = [null, undefined, 5, [], {}, { kind: 'other' }, { kind: 'answer', body: '' }, { ...answer, body: 5 }];
    for (const status of [99, 101, 199, 600, 1e9, 200.5, Number.NaN, '200', null, {}]) wrong.push({ ...answer, status }, { ...unchanged, status });
    for (const path of [5, null, '', 'a', '/a b', '/\r\n', '/é', '/'.repeat(maxPathBytes + 1)]) wrong.push({ ...unchanged, path });
    for (const headers of [5, null, {}, [5], [['a']], [['a', 5]], [['', 'b']], [['A', 'b']], [['a b', 'c']], [['a', 'b\r\nc: d']], [['a', '\0']]])
      wrong.push({ ...unchanged, headers }, { ...answer, headers });
    wrong.push({ ...answer, body: 'a'.repeat(maxBodyBytes + 1) }, { ...answer, headers: [['a', 'b'.repeat(maxFieldBytes)]] });
    for (const value of wrong) assert.equal(validatedResult(value).kind, 'error', JSON.stringify(value)?.slice(0, 200));
  });

  it('pass when they are valid, up to the limits', () => {
    const valid = [
      { ...answer, body: 'a'.repeat(maxBodyBytes) },
      { ...answer, status: 599, headers: [['a', ' é ']] },
      unchanged,
      { ...unchanged, path: '/a?b' },
    ];
    for (const value of valid) assert.equal(validatedResult(value).kind, value.kind);
  });
});
