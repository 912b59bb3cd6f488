import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { compileCel } from './bounded-cel.ts';

const evaluate = (expression: string, event: unknown) => compileCel(expression)({ event });

describe('a CEL expression over events', () => {
  it('matches by RE2, wherever the call stands', () => {
    assert.equal(evaluate("event.type.matches('^order')", { type: 'orders' }), true);
    assert.equal(evaluate("(event.a + event.b) . matches ( ('^xy$') )", { a: 'x', b: 'y' }), true);
    assert.equal(evaluate("event.l.exists(x, x.matches(event.p)) && !event.type.matches('z')", { l: ['a', 'b'], p: 'b', type: 't' }), true);
    assert.equal(evaluate("'.matches('.matches('[.]matches')", {}), true);
  });

  it('does not take exponential time for a text that a backtracking engine cannot reject', () => {
    const startedAt = performance.now();
    assert.equal(evaluate("event.name.matches('^(a+)+$')", { name: `${'a'.repeat(50_000)}!` }), false);
    assert.equal(evaluate('event.name.matches(event.pattern)', { name: `${'a'.repeat(5_000)}!`, pattern: '^(a|aa)+$' }), false);
    assert.ok(performance.now() - startedAt < 5_000);
    assert.throws(() => evaluate('event.name.matches(event.pattern)', { name: 'a'.repeat(1_000_000), pattern: '^(.{1,500})+$' }), /too long/);
  });

  it('is refused where its cost is quadratic, its pattern is not RE2, or it is too long', () => {
    assert.throws(() => compileCel('event.l.all(x, event.l.all(y, x == y))'), /quadratic/);
    assert.equal(evaluate('event.orders.exists(o, o.items.exists(i, i.id == 2))', { orders: [{ items: [{ id: 2n }] }] }), true);
    assert.throws(() => compileCel("event.a.matches('(?=x)')"), /not a valid RE2/);
    assert.throws(() => compileCel("event.a // .matches(\n .matches('x')"), /matches|CEL/);
    assert.throws(() => compileCel(`event.a == '${'x'.repeat(5_000)}'`), /longer than/);
    assert.throws(() => compileCel('event.'), /not a valid CEL expression/);
  });
});
