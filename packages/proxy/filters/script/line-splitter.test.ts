import assert from 'node:assert/strict';
import { it } from 'node:test';
import { LineSplitter } from './line-splitter.ts';

it('a line splitter ends a line at LF and at no other character, wherever the bytes are cut', () => {
  const lines = ['{"a":"\u2028\u2029\u0085\r\f\v"}', '', 'č\u2028'];
  const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''));
  for (let length = 1; length <= bytes.length; length++) {
    const splitter = new LineSplitter();
    const read: string[] = [];
    for (let at = 0; at < bytes.length; at += length) splitter.read(bytes.subarray(at, at + length), (line) => read.push(line));
    assert.deepEqual(read, lines);
    assert.equal(splitter.pendingBytes, 0);
  }
});
