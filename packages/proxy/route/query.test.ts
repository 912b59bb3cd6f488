import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { changedQuery } from './query.ts';

describe('query parameters that an authorization service changes', () => {
  it('sets each in the place of all of its name, and removes afterwards', () => {
    assert.equal(changedQuery('/a?x=1&y=2&x=3', [['x', '9']], []), '/a?y=2&x=9');
    assert.equal(changedQuery('/a', [['x', '9']], []), '/a?x=9');
    assert.equal(changedQuery('/a?x=1&y=2', [['z', '3']], ['x', 'z']), '/a?y=2');
    assert.equal(changedQuery('/a?x=1', [], ['x']), '/a');
    assert.equal(changedQuery('/a?xx=1&x', [], ['x']), '/a?xx=1');
  });

  it('lets no key or value end its parameter, the query or the request line', () => {
    for (const text of ['a&b=c', 'a#b', 'a b', 'a\r\nb: c', '\u010d\u010a', '\0'])
      assert.match(changedQuery('/a', [[text, text]], []), /^\/a\?[^&#\x00-\x20\x7f-\uffff]+$/);
    assert.equal(changedQuery('/a', [['k', 'M\u00fcnchen%20']], []), '/a?k=M%C3%BCnchen%20');
  });
});
