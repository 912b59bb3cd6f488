import assert from 'node:assert/strict';
import { it } from 'node:test';
import fc from 'fast-check';
import { BulkQueue } from './bulk-queue.ts';

interface Item {
  readonly key: string;
  sequence: number;
  readonly n: number;
}

it('a bulk queue sends every item, in the order of its key over retries, and no more at once than it may', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.constantFrom('', 'a', 'b', 'c'), { minLength: 1, maxLength: 60 }),
      fc.integer({ min: 1, max: 7 }),
      fc.infiniteStream(fc.nat(9)),
      async (keys, maxItems, random) => {
        const next = () => random.next().value ?? 0;
        const finished: Item[] = [];
        const openKeys = new Map<string, number>();
        let isOver: () => void = () => {};
        const over = new Promise<void>((resolve) => {
          isOver = resolve;
        });
        const queue: BulkQueue<Item> = new BulkQueue<Item>({
          maxItems,
          maxWaitMs: 0,
          send: (items) => {
            assert.ok(items.length > 0 && items.length <= maxItems);
            for (const { key, n } of items) {
              // Nothing overtakes an earlier one of its key that is open in an earlier bulk.
              if (key !== '') assert.ok(n >= (openKeys.get(key) ?? n), `${key} ${n}`);
            }
            for (const { key, n } of items) if (key !== '' && !openKeys.has(key)) openKeys.set(key, n);
            setImmediate(() => {
              // From the first failure of a key on, the rest of it in this bulk fails, too.
              const failed = new Set<string>();
              for (const item of items) {
                if (failed.has(item.key) || next() < 3) {
                  if (item.key !== '') failed.add(item.key);
                  setTimeout(() => queue.add(item), next() % 3);
                  continue;
                }
                finished.push(item);
                openKeys.delete(item.key);
                queue.settled(item);
              }
              for (const item of items) if (failed.has(item.key)) openKeys.set(item.key, Math.min(openKeys.get(item.key) ?? item.n, item.n));
              if (finished.length === keys.length) isOver();
            });
          },
        });
        for (const [n, key] of keys.entries()) queue.add({ key, sequence: 0, n });
        await over;
        queue.close();
        for (const key of ['a', 'b', 'c']) {
          const order = finished.filter((item) => item.key === key).map(({ n }) => n);
          assert.deepEqual(
            order,
            [...order].sort((one, other) => one - other),
          );
        }
      },
    ),
    { numRuns: 50 },
  );
});
