import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { errorCodes, type Http2Violation } from './error-codes.ts';
import { FrameReader, type FrameSink } from './frame-reader.ts';
import { frameTypes } from './frames.ts';

/** Writes down what it is told, as text. */
class Recorder implements FrameSink {
  readonly said: string[] = [];
  #data = '';
  #say(text: string): undefined {
    this.said.push(text);
  }
  onData(_streamId: number, chunk: Buffer, start: number, end: number): undefined {
    this.#data += chunk.toString('hex', start, end);
  }
  onDataEnd(streamId: number, flowBytes: number, _paddingBytes: number, endsStream: boolean): undefined {
    this.#say(`data ${streamId} ${this.#data} (${flowBytes})${endsStream ? ' end' : ''}`);
    this.#data = '';
  }
  onHeaders(streamId: number, source: Buffer, start: number, end: number, endsStream: boolean, dependsOn: number): undefined {
    this.#say(`headers ${streamId} ${source.toString('hex', start, end)}${endsStream ? ' end' : ''}${dependsOn < 0 ? '' : ` on ${dependsOn}`}`);
  }
  onPriority(streamId: number, dependsOn: number): undefined {
    this.#say(`priority ${streamId} on ${dependsOn}`);
  }
  onRstStream(streamId: number, code: number): undefined {
    this.#say(`reset ${streamId} ${code}`);
  }
  onSettings(entries: Buffer): undefined {
    this.#say(`settings ${entries.toString('hex')}`);
  }
  onSettingsAck(): undefined {
    this.#say('settings ack');
  }
  onPing(payload: Buffer, isAck: boolean): undefined {
    this.#say(`ping ${payload.toString('hex')}${isAck ? ' ack' : ''}`);
  }
  onGoAway(lastStreamId: number, code: number, debugData: Buffer): undefined {
    this.#say(`goaway ${lastStreamId} ${code} ${debugData.toString('latin1')}`);
  }
  onWindowUpdate(streamId: number, increment: number): undefined {
    this.#say(`window ${streamId} ${increment}`);
  }
}

const limits = { maxHeaderBlockBytes: 1000, maxContinuations: 4 };

function frame(type: number, flagBits: number, streamId: number, payload: Buffer | string = ''): Buffer {
  const body = typeof payload === 'string' ? Buffer.from(payload, 'hex') : payload;
  const head = Buffer.alloc(9);
  head.writeUIntBE(body.length, 0, 3);
  head[3] = type;
  head[4] = flagBits;
  head.writeUInt32BE(streamId, 5);
  return Buffer.concat([head, body]);
}

function read(bytes: Buffer, cuts: readonly number[] = []): { said: string[]; failure: Http2Violation | undefined; streams: Http2Violation[] } {
  const recorder = new Recorder();
  const streams: Http2Violation[] = [];
  const reader = new FrameReader(limits, recorder, (found) => streams.push(found));
  let failure: Http2Violation | undefined;
  let from = 0;
  for (const cut of [...[...cuts].sort((a, b) => a - b), bytes.length]) {
    failure = reader.read(bytes.subarray(from, cut));
    from = cut;
  }
  return { said: recorder.said, failure, streams };
}

const conversation = Buffer.concat([
  frame(frameTypes.settings, 0, 0, '000300000064'),
  frame(frameTypes.settings, 1, 0),
  frame(frameTypes.headers, 0x4 | 0x20 | 0x8, 1, '02' + '00000003ff' + '8286' + '0000'),
  frame(frameTypes.data, 0x8, 1, '03' + 'abcdef' + '000000'),
  frame(frameTypes.data, 0x1, 1),
  frame(frameTypes.headers, 0x1, 3, '82'),
  frame(frameTypes.continuation, 0, 3, '86'),
  frame(frameTypes.continuation, 0x4, 3, '84'),
  frame(frameTypes.ping, 0, 0, '0102030405060708'),
  frame(frameTypes.windowUpdate, 0, 0, '000000ff'),
  frame(frameTypes.windowUpdate, 0, 1, '800000ff'),
  frame(frameTypes.priority, 0, 5, '0000000010'),
  frame(0xfa, 0xff, 7, 'abcd'),
  frame(frameTypes.rstStream, 0, 1, '00000008'),
  frame(frameTypes.goAway, 0, 0, Buffer.concat([Buffer.from('0000000300000000', 'hex'), Buffer.from('bye')])),
]);
const told = [
  'settings 000300000064',
  'settings ack',
  'headers 1 8286 on 3',
  'data 1 abcdef (7)',
  'data 1  (0) end',
  'headers 3 828684 end',
  'ping 0102030405060708',
  'window 0 255',
  'window 1 255',
  'priority 5 on 0',
  'reset 1 8',
  'goaway 3 0 bye',
];

describe('reading frames', () => {
  it('tells what each says, without padding, with CONTINUATION joined, and passes over what nobody knows', () => {
    const result = read(conversation);
    assert.deepEqual([result.said, result.failure, result.streams], [told, undefined, []]);
  });

  it('wherever the bytes are cut', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(conversation.length), { maxLength: 40 }), (cuts) => {
        assert.deepEqual(read(conversation, cuts).said, told);
      }),
      { numRuns: 1_000 },
    );
    assert.deepEqual(
      read(
        conversation,
        Array.from({ length: conversation.length }, (_, i) => i),
      ).said,
      told,
    );
  });

  it('ends the connection for what breaks it, and only the stream for what breaks that', () => {
    const { PROTOCOL_ERROR, FRAME_SIZE_ERROR, ENHANCE_YOUR_CALM } = errorCodes;
    for (const [bytes, code, reason] of [
      [frame(frameTypes.data, 0, 0, '00'), PROTOCOL_ERROR, 'http2.frame_without_stream'],
      [frame(frameTypes.headers, 4, 0, '82'), PROTOCOL_ERROR, 'http2.frame_without_stream'],
      [frame(frameTypes.rstStream, 0, 0, '00000000'), PROTOCOL_ERROR, 'http2.frame_without_stream'],
      [frame(frameTypes.rstStream, 0, 1, '000000'), FRAME_SIZE_ERROR, 'http2.rst_stream_size'],
      [frame(frameTypes.settings, 0, 1), PROTOCOL_ERROR, 'http2.frame_on_stream'],
      [frame(frameTypes.settings, 1, 0, '000300000064'), FRAME_SIZE_ERROR, 'http2.settings_size'],
      [frame(frameTypes.settings, 0, 0, '0003000064'), FRAME_SIZE_ERROR, 'http2.settings_size'],
      [frame(frameTypes.ping, 0, 0, '00'), FRAME_SIZE_ERROR, 'http2.ping_size'],
      [frame(frameTypes.goAway, 0, 0, '00000000'), FRAME_SIZE_ERROR, 'http2.goaway_size'],
      [frame(frameTypes.windowUpdate, 0, 0, '00000000'), PROTOCOL_ERROR, 'http2.window_update_zero'],
      [frame(frameTypes.windowUpdate, 0, 1, '000000'), FRAME_SIZE_ERROR, 'http2.window_update_size'],
      [frame(frameTypes.pushPromise, 4, 1, '0000000282'), PROTOCOL_ERROR, 'http2.push_promise'],
      [frame(frameTypes.continuation, 4, 1, '82'), PROTOCOL_ERROR, 'http2.continuation_without_headers'],
      [frame(frameTypes.data, 8, 1), FRAME_SIZE_ERROR, 'http2.padding_missing'],
      [frame(frameTypes.data, 8, 1, '02ff'), PROTOCOL_ERROR, 'http2.padding_too_long'],
      [frame(frameTypes.headers, 0xc, 1, '0282'), PROTOCOL_ERROR, 'http2.padding_too_long'],
      [frame(frameTypes.headers, 0x24, 1, '000000'), FRAME_SIZE_ERROR, 'http2.priority_missing'],
      [frame(frameTypes.data, 0, 1, Buffer.alloc(16_385)), FRAME_SIZE_ERROR, 'http2.frame_too_large'],
      [Buffer.concat([frame(frameTypes.headers, 0, 1, '82'), frame(frameTypes.data, 0, 1)]), PROTOCOL_ERROR, 'http2.header_block_interrupted'],
      [Buffer.concat([frame(frameTypes.headers, 0, 1, '82'), frame(frameTypes.continuation, 0, 3)]), PROTOCOL_ERROR, 'http2.header_block_interrupted'],
      [
        Buffer.concat([frame(frameTypes.headers, 0, 1, Buffer.alloc(600)), frame(frameTypes.continuation, 4, 1, Buffer.alloc(600))]),
        ENHANCE_YOUR_CALM,
        'http2.header_block_too_large',
      ],
      [
        Buffer.concat([frame(frameTypes.headers, 0, 1), ...Array<Buffer>(5).fill(frame(frameTypes.continuation, 0, 1))]),
        ENHANCE_YOUR_CALM,
        'http2.too_many_continuations',
      ],
    ] as const)
      assert.deepEqual(
        read(Buffer.concat([bytes, frame(frameTypes.ping, 0, 0, '0000000000000000')])),
        { said: [], failure: { code, reason, streamId: 0 }, streams: [] },
        reason,
      );
    const result = read(
      Buffer.concat([frame(frameTypes.windowUpdate, 0, 3, '00000000'), frame(frameTypes.priority, 0, 5, '00'), frame(frameTypes.settings, 1, 0)]),
    );
    assert.deepEqual(result.said, ['settings ack']);
    assert.deepEqual(
      result.streams.map(({ code, streamId }) => [code, streamId]),
      [
        [PROTOCOL_ERROR, 3],
        [FRAME_SIZE_ERROR, 5],
      ],
    );
  });

  it('never throws and says the same however it is cut, whatever comes', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.tuple(fc.integer({ min: 0, max: 11 }), fc.integer({ min: 0, max: 255 }), fc.integer({ min: 0, max: 4 }), fc.uint8Array({ maxLength: 30 })),
          { maxLength: 10 },
        ),
        fc.array(fc.nat(400), { maxLength: 10 }),
        (frames, cuts) => {
          const bytes = Buffer.concat(frames.map(([type, flagBits, streamId, payload]) => frame(type, flagBits, streamId, Buffer.from(payload))));
          const whole = read(bytes);
          assert.deepEqual(
            read(
              bytes,
              cuts.filter((cut) => cut < bytes.length),
            ),
            whole,
          );
        },
      ),
      { numRuns: 3_000 },
    );
  });
});
