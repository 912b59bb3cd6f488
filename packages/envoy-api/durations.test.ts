import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { maxTimerMs } from '@mizzen/common';
import { durationToMs, durationToTimerMs } from './durations.ts';

describe('A duration for a timer', () => {
  it('is never longer than a timer of Node.js can wait', () => {
    const of = (seconds: number, nanos = 0) => ({ seconds: BigInt(seconds), nanos });
    assert.equal(durationToTimerMs(of(1, 500_000_000)), 1_500);
    assert.equal(durationToTimerMs(of(2_147_483, 647_000_000)), maxTimerMs);
    for (const seconds of [2_147_484, 315_576_000_000]) assert.equal(durationToTimerMs(of(seconds)), maxTimerMs);
    assert.equal(durationToTimerMs(undefined), undefined);
    assert.equal(durationToMs(of(2_147_484)), 2_147_484_000);
  });
});
