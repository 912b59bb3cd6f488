import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { FrameBuilder, FrameReader, maxFrameBytes, textBytes } from './frames.ts';

describe('frames', () => {
  it('are the same wherever the bytes were cut', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.integer({ min: 1, max: 255 }), fc.string(), fc.nat())), fc.array(fc.nat({ max: 40 })), (frames, cuts) => {
        const bytes = Buffer.concat(frames.map(([kind, text, number]) => new FrameBuilder(kind, textBytes(text) + 4).text(text).u32(number).done()));
        const reader = new FrameReader();
        const seen: unknown[] = [];
        let at = 0;
        for (const cut of [...cuts, bytes.length]) {
          const problem = reader.read(bytes.subarray(at, at + cut), (kind, content) => seen.push([kind, content.text(), content.u32()]));
          assert.equal(problem, undefined);
          at += cut;
        }
        assert.deepEqual(
          seen,
          frames.map(([kind, text, number]) => [kind, Buffer.from(text).toString(), number]),
        );
      }),
    );
  });

  it('of other protocols, of absurd lengths, and shorter than they say are refused', () => {
    const problem = (bytes: Buffer) => new FrameReader().read(bytes, (_kind, content) => void content.text());
    assert.match(problem(Buffer.from('GET / HTTP/1.1\r\n\r\n'))!, /a frame of \d+ bytes/);
    assert.match(problem(Buffer.from([0, 0, 0, 0, 1]))!, /a frame of 0 bytes/);
    const long = Buffer.alloc(5);
    long.writeUInt32LE(maxFrameBytes + 1);
    assert.match(problem(long)!, /a frame of/);
    assert.match(problem(new FrameBuilder(1, 2).u16(9).done())!, /shorter than it says/);
  });

  it('never throw, whatever comes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        new FrameReader().read(Buffer.from(bytes), (_kind, content) => {
          content.u8();
          content.text();
          content.f64();
        });
      }),
    );
  });
});
