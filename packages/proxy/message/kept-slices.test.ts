import assert from 'node:assert/strict';
import { it } from 'node:test';
import { KeptSlices, pushSlice } from './kept-slices.ts';

it('content that is kept has as many slices as its length needs, whatever its pieces', () => {
  for (const sizes of [[1], [1, 2_000], [1_023, 1, 1_024, 3], [3, 3_000, 2, 2, 2], [0, 1, 0, 7]]) {
    const slices: Buffer[] = [];
    const kept = new KeptSlices();
    const all: Buffer[] = [];
    for (let i = 0; i < 3_000; i++) {
      const slice = Buffer.alloc(sizes[i % sizes.length] ?? 0, i);
      all.push(slice);
      pushSlice(slices, slice);
      kept.push(slice);
    }
    const content = Buffer.concat(all);
    for (const list of [slices, kept.slices]) {
      assert.ok(Buffer.concat(list).equals(content));
      assert.ok(list.length <= 2 + content.length / 512, `${list.length} slices of ${content.length} bytes`);
    }
  }
});
