import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { derElement, derElements } from './der.ts';

describe('DER', () => {
  it('is read as it is written, of any length', () => {
    for (const length of [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000]) {
      const content = Buffer.alloc(length, 7);
      assert.deepEqual(
        derElements(Buffer.concat([derElement(0x04, content), derElement(0x30)])).map(({ tag, content: found }) => [tag, found.length]),
        [
          [0x04, length],
          [0x30, 0],
        ],
      );
    }
  });

  it('is refused when it ends too early or lies about its length', () => {
    for (const hex of ['30', '3005', '300301', '3080', '308500000000010a', '3082', '30820001'])
      assert.throws(() => derElements(Buffer.from(hex, 'hex')), Error, hex);
  });
});
