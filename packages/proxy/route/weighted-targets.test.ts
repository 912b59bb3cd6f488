import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { WeightedTargets } from './weighted-targets.ts';

function choices(count: number, targets: WeightedTargets<{ name: string; weight: number }>): string[] {
  return Array.from({ length: count }, () => targets.pick(Math.random)!.name);
}
const targets = (weights: Record<string, number>) => new WeightedTargets(Object.entries(weights).map(([name, weight]) => ({ name, weight })));
const share = (found: string[], name: string) => found.filter((each) => each === name).length;

describe('weighted targets', () => {
  it('get their weight of all choices, and of any few of them', () => {
    const canary = targets({ stable: 90, canary: 10, none: 0 });
    for (let i = 0; i < 200; i++) {
      const found = share(choices(64, canary), 'canary');
      assert.ok(found === 6 || found === 7, `${found} of 64`);
    }
    const many = choices(64_000, canary);
    assert.ok(Math.abs(share(many, 'canary') - 6_400) <= 5 * Math.sqrt(1_000 * 0.24), `${share(many, 'canary')} of 64000`);
    assert.equal(share(many, 'none'), 0);
    assert.equal(share(choices(64, targets({ a: 50, b: 50 })), 'a'), 32);
  });

  it('come in random order, and not in step with those of another', () => {
    const [one, other] = [targets({ a: 50, b: 50 }), targets({ a: 50, b: 50 })];
    const [first, second] = [choices(20_000, one), choices(20_000, other)];
    const isNearHalf = (count: number, of: number) => assert.ok(Math.abs(count - of / 2) <= 5 * Math.sqrt(of / 4), `${count} of ${of}`);
    isNearHalf(first.filter((name, i) => name === second[i]).length, 20_000);
    // What comes every second time (a client that alternates between two kinds of requests) gets its share, too.
    isNearHalf(
      share(
        first.filter((_, i) => i % 2 === 0),
        'a',
      ),
      10_000,
    );
    isNearHalf(first.slice(1).filter((name, i) => name === first[i]).length, 19_999);
  });

  it('are the last one where rounding leaves none, and none where there are none', () => {
    assert.equal(targets({ only: 0 }).pick(Math.random)?.name, 'only');
    assert.equal(targets({}).pick(Math.random), undefined);
  });
});
