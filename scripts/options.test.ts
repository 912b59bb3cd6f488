import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { parse } from './options.ts';

const known = { numbers: { seconds: 5 }, lists: { case: ['http1-1k', 'tcp-1m'] }, switches: ['json'] } as const;

describe('the options of benches and fuzz runs', () => {
  it('are numbers, lists and switches with their defaults', () => {
    assert.deepEqual(parse(known, []), { seconds: 5, case: new Set(['http1-1k', 'tcp-1m']), json: false });
    assert.deepEqual(parse(known, ['--seconds', '2', '--case=tcp-1m', '--json']), { seconds: 2, case: new Set(['tcp-1m']), json: true });
  });

  for (const [args, message] of [
    [['--cases', 'http1-1k'], /--cases/],
    [['--case', 'http-1k'], /--case http-1k is not known; it takes http1-1k, tcp-1m/],
    [['--seconds', 'two'], /--seconds takes a number, not 'two'/],
    [['--seconds'], /--seconds/],
    [['http1-1k'], /http1-1k/],
  ] as const) {
    it(`refuse ${args.join(' ')}`, () => {
      assert.throws(() => parse(known, args), message);
    });
  }
});
