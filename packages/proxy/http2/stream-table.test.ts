import assert from 'node:assert/strict';
import { it } from 'node:test';
import fc from 'fast-check';
import type { Http2Stream } from './stream.ts';
import { StreamTable } from './stream-table.ts';

it('the table of streams holds what a Map would, whatever comes and goes', () => {
  const id = fc.integer({ min: 0, max: 200 }).map((number) => 2 * number + 1);
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.boolean(), id), { maxLength: 300 }), (steps) => {
      const table = new StreamTable();
      const expected = new Map<number, Http2Stream>();
      for (const [isAdded, streamId] of steps) {
        if (isAdded && !expected.has(streamId)) {
          const stream = { id: streamId } as Http2Stream;
          table.add(stream);
          expected.set(streamId, stream);
        } else if (!isAdded) {
          table.delete(streamId);
          expected.delete(streamId);
        }
        assert.equal(table.size, expected.size);
        assert.equal(table.get(streamId), expected.get(streamId));
      }
      assert.deepEqual([...table].map((stream) => stream.id).sort(), [...expected.keys()].sort());
    }),
    { numRuns: 300 },
  );
});
