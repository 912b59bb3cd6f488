import assert from 'node:assert/strict';
import { it } from 'node:test';
import { injectFault, internalErrors, logErrorsTo, silentLogger } from '@mizzen/common';
import { SharedSpending, type Spent } from './shared-spending.ts';
import { TokenBuckets } from './token-buckets.ts';

it('the buckets of several workers give out no more over time than one bucket', async () => {
  const messages: (() => void)[] = [];
  let arrived: (() => void) | undefined;
  const workers: { buckets: TokenBuckets; spending: SharedSpending }[] = Array.from({ length: 4 }, (_, own) => {
    const spending = new SharedSpending((spent: readonly Spent[]) => {
      messages.push(() => workers.forEach((worker, i) => i !== own && worker.spending.receive(structuredClone(spent))));
      arrived?.();
    });
    // 10 in an hour, none of which comes back within the test.
    const buckets = new TokenBuckets(10, 3_600_000, 10, 1_000);
    spending.share('limit', buckets);
    return { buckets, spending };
  });
  const take = (worker: number, key: string) => workers[worker]?.buckets.take(key, performance.now()).isAllowed === true;
  const deliver = async (count: number) => {
    while (messages.length < count) await new Promise<void>((resolve) => (arrived = resolve));
    for (const message of messages.splice(0)) message();
  };

  // An exception in the timer costs an interval, not the count.
  logErrorsTo(silentLogger);
  injectFault('rate-limit.spending', 1);
  for (let i = 0; i < 8; i++) assert.ok(take(0, 'a'));
  await deliver(1);
  assert.equal(internalErrors().get('rate-limit.spending'), 1);
  const allowed = [1, 2, 3].map((worker) => [1, 2, 3, 4].filter(() => take(worker, 'a')).length);
  assert.deepEqual(allowed, [2, 2, 2], 'each knows of the eight');
  await deliver(3);
  for (const worker of [0, 1, 2, 3]) assert.ok(!take(worker, 'a'), 'the bucket is in debt');
  assert.ok(take(3, 'b'), 'another key has a bucket of its own');
  await deliver(1);
  const { remaining, untilNextMs } = workers[0]!.buckets.peek('a', performance.now());
  assert.equal(remaining, 0);
  // Fourteen were given out, four too many: they are paid back at a rate of ten in an hour before there is another.
  assert.ok(untilNextMs > 4.9 * 360_000 && untilNextMs < 5.1 * 360_000, String(untilNextMs));
});
