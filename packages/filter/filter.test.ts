import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { defineFilter, FilterHeaders, respond } from './index.ts';
import { tryFilter } from './testing.ts';

const filter = defineFilter<{ readonly limit: number }>({
  name: 'limit',
  config(raw) {
    const { limit } = raw as { limit?: unknown };
    if (typeof limit !== 'number') throw new Error('limit is missing');
    return { limit };
  },
  onRequest(request, { limit }) {
    if (Number(request.headers.get('X-Count') ?? 0) > limit) return respond(429, { limit }, { 'retry-after': '1' });
    request.headers.set('x-seen', 'yes');
    return undefined;
  },
  onResponse(response, request) {
    response.headers.append('x-for', request.headers.get('x-seen') ?? 'nobody');
  },
});

describe('the test kit of filters', () => {
  it('runs the phases as a proxy does', async () => {
    const { answer, request, response } = await tryFilter(filter, { config: { limit: 1 }, request: { headers: { 'X-Count': '1' } } });
    assert.equal(answer, undefined);
    assert.equal(request.headers.get('x-seen'), 'yes');
    assert.equal(response!.headers.get('X-For'), 'yes');
  });

  it('shows an answer of the filter’s own, and a configuration that is refused', async () => {
    const { answer, response } = await tryFilter(filter, { config: { limit: 1 }, request: { headers: { 'x-count': '2' } } });
    assert.equal(answer!.status, 429);
    assert.equal(answer!.body, '{"limit":1}');
    assert.equal(response, undefined);
    await assert.rejects(tryFilter(filter, { config: {} }), /limit is missing/);
  });
});

describe('headers of a filter', () => {
  it('are found without regard to case, and take nothing that no header can hold', () => {
    const headers = new FilterHeaders([
      ['Set-Cookie', 'a=1'],
      ['set-cookie', 'b=2'],
    ]);
    assert.deepEqual(headers.getAll('SET-COOKIE'), ['a=1', 'b=2']);
    assert.equal(headers.isChanged, false);
    for (const [name, value] of [
      ['x y', '1'],
      ['', '1'],
      ['x', 'a\r\nb: c'],
      ['x', '\0'],
      ['x', '\ud83d'],
    ] as const)
      assert.throws(() => headers.set(name, value), TypeError);
    headers.set('set-cookie', 'c=3');
    assert.deepEqual([...headers], [['set-cookie', 'c=3']]);
    assert.equal(headers.isChanged, true);
  });
});
