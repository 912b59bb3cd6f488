import assert from 'node:assert/strict';
import { afterEach, describe, it } from 'node:test';
import { clearFaults, errorBoundary, errorPlaces, injectFault, internalErrors } from './error-boundary.ts';

describe('an error boundary', () => {
  afterEach(clearFaults);

  it('counts an exception under its place and says that the work has failed', () => {
    const boundary = errorBoundary('test.counted');
    const isDone = boundary.run(() => {
      throw new Error('broken');
    });
    assert.equal(isDone, false);
    assert.equal(internalErrors().get('test.counted'), 1);
    assert.ok(errorPlaces().includes('test.counted'));
  });

  it('survives an exception that cannot be described', () => {
    const boundary = errorBoundary('test.hostile');
    const hostile = {
      toString() {
        throw new Error('no text');
      },
    };
    boundary.caught(hostile);
    assert.equal(boundary.errors, 1);
  });

  it('ends the unit of a guarded handler once, and survives an end that throws', () => {
    let ends = 0;
    const boundary = errorBoundary('test.guarded');
    const handler = boundary.guard(
      () => {
        throw new Error('broken');
      },
      () => {
        ends++;
        throw new Error('broken too');
      },
    );
    handler(undefined, undefined);
    assert.equal(ends, 1);
    assert.equal(boundary.errors, 2);
  });

  it('throws once at the entry that a test has asked for', () => {
    injectFault('test.injected', 2);
    const boundary = errorBoundary('test.injected');
    const outcomes = [1, 2, 3].map(() => boundary.run(() => {}));
    assert.deepEqual(outcomes, [true, false, true]);
  });
});
