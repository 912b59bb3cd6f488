import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { GrpcEnvelopes } from './grpc-envelopes.ts';

const envelope = (length: number, fill = 0x61) => {
  const bytes = Buffer.alloc(5 + length, fill);
  bytes[0] = 0;
  bytes.writeUInt32BE(length, 1);
  return bytes;
};

function pushed(envelopes: GrpcEnvelopes, pieces: readonly Buffer[]): Buffer[] {
  return [...pieces.map((piece) => envelopes.push(piece)), envelopes.end()].filter((out) => out !== undefined);
}

describe('gRPC messages in pieces', () => {
  it('come out whole, in order and complete, however they are cut', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(300), { maxLength: 12 }), fc.array(fc.nat(400), { maxLength: 40 }), (lengths, cuts) => {
        const body = Buffer.concat(lengths.map((length, i) => envelope(length, i)));
        const pieces: Buffer[] = [];
        let at = 0;
        for (const cut of [...cuts, body.length]) {
          pieces.push(body.subarray(at, at + cut));
          at += cut;
        }
        const out = pushed(
          new GrpcEnvelopes(1_000),
          pieces.filter((piece) => piece.length > 0),
        );
        assert.deepEqual(Buffer.concat(out), body);
        for (const bytes of out) {
          let end = 0;
          while (end < bytes.length) end += 5 + bytes.readUInt32BE(end + 1);
          assert.equal(end, bytes.length, 'no message is cut');
        }
      }),
    );
  });

  it('pass on a message that is longer than the limit as it comes, for the reader to refuse', () => {
    const body = envelope(2_000);
    const out = pushed(new GrpcEnvelopes(1_000), [body.subarray(0, 3), body.subarray(3, 1_500), body.subarray(1_500)]);
    assert.deepEqual(Buffer.concat(out), body);
    assert.ok(out[0]!.length < 2_000);
  });

  it('leave an incomplete message for the end of the body', () => {
    const body = envelope(100);
    assert.deepEqual(pushed(new GrpcEnvelopes(1_000), [body.subarray(0, 50), body.subarray(50, 60)]), [body.subarray(0, 60)]);
  });

  it('of a byte each cost in proportion to their number', () => {
    const cost = (length: number) => {
      const envelopes = new GrpcEnvelopes(4 * 1024 * 1024);
      const body = envelope(length);
      const before = process.cpuUsage().user;
      for (let i = 0; i < body.length; i++) envelopes.push(body.subarray(i, i + 1));
      return process.cpuUsage().user - before;
    };
    cost(100_000);
    const best = (length: number) => Math.min(...Array.from({ length: 3 }, () => cost(length)));
    assert.ok(best(1_600_000) < 8 * 3 * best(200_000) + 50_000, 'eight times the bytes, eight times the cost');
  });
});
