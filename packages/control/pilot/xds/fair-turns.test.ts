import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { FairTurns } from './fair-turns.ts';

describe('fair turns', () => {
  it('give each caller one piece of work in turn, however many one of them asks for', async () => {
    const turns = new FairTurns();
    const done: string[] = [];
    const ask = (caller: string) => turns.next(caller).then(() => done.push(caller));
    const flood = Array.from({ length: 1_000 }, () => ask('flood'));
    const others = ['a', 'b', 'c'].flatMap((caller) => [ask(caller), ask(caller)]);
    await Promise.all(others);
    assert.ok(done.length <= 12, `the others have waited for ${done.length - 6} pieces of the flood`);
    await Promise.all(flood);
    assert.equal(done.length, 1_006);
    assert.equal(turns.size, 0);
    await ask('later');
    assert.equal(done.at(-1), 'later');
  });

  it('let the event loop serve others between two pieces of work', async () => {
    const turns = new FairTurns();
    let ticks = 0;
    const tick = setInterval(() => ticks++, 1);
    const work = async () => {
      await turns.next('one');
      const until = performance.now() + 2;
      while (performance.now() < until);
    };
    await Promise.all(Array.from({ length: 10 }, work));
    clearInterval(tick);
    assert.ok(ticks >= 5, `${ticks} timers ran`);
  });
});
