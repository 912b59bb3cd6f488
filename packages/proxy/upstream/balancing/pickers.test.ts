import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { testEndpoint } from './endpoint-for-tests.ts';
import { leastRequest, type Picker, randomChoice, roundRobin, staticWeight, warmingWeight } from './pickers.ts';

const half = () => 0.5;

/** How often each port was taken in so many turns. */
function counts(pick: Picker, turns: number): Record<number, number> {
  const found: Record<number, number> = {};
  for (let i = 0; i < turns; i++) {
    const { port } = pick();
    found[port] = (found[port] ?? 0) + 1;
  }
  return found;
}

describe('load balancing', () => {
  it('takes each in turn, and a heavy one more often but not in a row', () => {
    const pick = roundRobin(staticWeight, () => 0)([testEndpoint(1), testEndpoint(2), testEndpoint(3)]);
    assert.deepEqual(
      Array.from({ length: 6 }, () => pick().port),
      [2, 3, 1, 2, 3, 1],
    );
    const smooth = roundRobin(staticWeight, () => 0)([testEndpoint(1, 3), testEndpoint(2, 3), testEndpoint(3, 1)]);
    const taken = Array.from({ length: 70 }, () => smooth().port);
    assert.deepEqual(counts(roundRobin(staticWeight, half)([testEndpoint(1, 3), testEndpoint(2, 1)]), 400), { 1: 300, 2: 100 });
    for (let i = 1; i < taken.length; i++) assert.notEqual(taken[i], taken[i - 1]);
  });

  it('chooses at random in proportion to the weights', () => {
    const weighted = [testEndpoint(1, 3), testEndpoint(2, 1)];
    assert.deepEqual(
      [0, 0.74, 0.75, 0.99].map((value) => randomChoice(() => value)(weighted)().port),
      [1, 1, 2, 2],
    );
  });

  it('takes the less busy of two, and of unequal ones the one with more weight for each request', () => {
    const [a, b] = [testEndpoint(1), testEndpoint(2)];
    a.activeRequests = 5;
    const values = [0, 0.9];
    assert.equal(leastRequest(2, staticWeight, () => values.shift() ?? 0)([a, b])(), b);
    const [heavy, light] = [testEndpoint(1, 4), testEndpoint(2, 1)];
    const idle = counts(leastRequest(2, staticWeight, half)([heavy, light]), 500);
    assert.deepEqual(idle, { 1: 400, 2: 100 });
    heavy.activeRequests = 7;
    const busy = counts(leastRequest(2, staticWeight, half)([heavy, light]), 300);
    assert.ok(busy[2]! > busy[1]!, JSON.stringify(busy));
  });

  it('gives one that has just come its share little by little', () => {
    let now = 0;
    const [old, fresh] = [testEndpoint(1), testEndpoint(2)];
    old.inServiceSince = -1e6;
    fresh.inServiceSince = 0;
    const weightOf = warmingWeight({ windowMs: 1_000, aggression: 1, minimumShare: 0.1 }, () => now);
    const pick = roundRobin(weightOf, () => 0)([old, fresh]);
    const shareOfFresh = () => (counts(pick, 220)[2] ?? 0) / 220;
    assert.ok(shareOfFresh() < 0.12);
    now = 500;
    assert.ok(Math.abs(shareOfFresh() - 1 / 3) < 0.06);
    now = 1_000;
    counts(pick, 10);
    assert.ok(Math.abs(shareOfFresh() - 0.5) < 0.02);
  });
});
