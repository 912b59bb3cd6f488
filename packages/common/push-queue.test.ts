import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { PushQueue } from './push-queue.ts';

describe('a push queue with slots', () => {
  it('holds the newest item of each slot, in the order of the slots', async () => {
    const queue = new PushQueue<readonly [slot: number, value: number]>(([slot]) => slot);
    for (let value = 0; value < 1_000; value++) for (const slot of [2, 0, 1]) queue.push([slot, value]);
    assert.equal(queue.length, 3);
    queue.close();
    const read: (readonly [number, number])[] = [];
    for await (const item of queue) read.push(item);
    assert.deepEqual(read, [
      [0, 999],
      [1, 999],
      [2, 999],
    ]);
  });

  it('keeps all items in their order without slots', async () => {
    const queue = new PushQueue<number>();
    for (const item of [3, 1, 2]) queue.push(item);
    queue.close();
    const read: number[] = [];
    for await (const item of queue) read.push(item);
    assert.deepEqual(read, [3, 1, 2]);
  });
});
