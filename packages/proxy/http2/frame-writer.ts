import { type ErrorCode, errorCodes } from './error-codes.ts';
import { defaultMaxFrameBytes, flags, frameHeaderBytes, frameTypes } from './frames.ts';
import { HpackEncoder } from './hpack/encoder.ts';

export type Fields = readonly (readonly [name: string, value: string])[];

/** Collects the frames that are to be sent, until they are taken in one piece (RFC 9113 section 6). */
export class FrameWriter {
  readonly #encoder: HpackEncoder;
  #output: Buffer[];
  /** What the peer takes in one frame (SETTINGS_MAX_FRAME_SIZE), as far as we make use of it. */
  maxFrameBytes: number;

  constructor() {
    this.#encoder = new HpackEncoder();
    this.#output = [];
    this.maxFrameBytes = defaultMaxFrameBytes;
  }

  /** Everything since the last time; undefined when there is nothing. */
  take(): Buffer | undefined {
    const output = this.#output;
    if (output.length === 0) return undefined;
    this.#output = [];
    return output.length === 1 ? output[0]! : Buffer.concat(output);
  }

  /** The peer's SETTINGS_HEADER_TABLE_SIZE. */
  setHeaderTableLimit(bytes: number): void {
    this.#encoder.setLimit(bytes);
  }

  headers(streamId: number, fields: Fields, endsStream: boolean): void {
    this.#encoder.begin();
    for (const [name, value] of fields) this.#encoder.add(name, value);
    const block = Buffer.from(this.#encoder.end());
    const most = this.maxFrameBytes;
    for (let at = 0; at === 0 || at < block.length; at += most) {
      const part = block.subarray(at, at + most);
      const isLast = at + most >= block.length;
      const own = (isLast ? flags.endHeaders : 0) | (at === 0 && endsStream ? flags.endStream : 0);
      this.#frame(part.length, at === 0 ? frameTypes.headers : frameTypes.continuation, own, streamId);
      this.#output.push(part);
    }
  }

  /** A DATA frame of `length` bytes from the beginning of `slices`, which are taken out as they are used up. */
  data(streamId: number, slices: Buffer[], length: number, endsStream: boolean): void {
    this.#frame(length, frameTypes.data, endsStream ? flags.endStream : 0, streamId);
    let left = length;
    while (left > 0) {
      const slice = slices[0]!;
      if (slice.length <= left) {
        this.#output.push(slice);
        slices.shift();
        left -= slice.length;
      } else {
        this.#output.push(slice.subarray(0, left));
        slices[0] = slice.subarray(left);
        left = 0;
      }
    }
  }

  reset(streamId: number, code: ErrorCode): void {
    this.#withNumber(frameTypes.rstStream, streamId, code);
  }

  windowUpdate(streamId: number, increment: number): void {
    this.#withNumber(frameTypes.windowUpdate, streamId, increment);
  }

  settings(entries: readonly (readonly [id: number, value: number])[]): void {
    const payload = Buffer.alloc(entries.length * 6);
    for (const [i, [id, value]] of entries.entries()) {
      payload.writeUInt16BE(id, i * 6);
      payload.writeUInt32BE(value, i * 6 + 2);
    }
    this.#frame(payload.length, frameTypes.settings, 0, 0);
    this.#output.push(payload);
  }

  settingsAck(): void {
    this.#frame(0, frameTypes.settings, flags.ack, 0);
  }

  pingAck(payload: Buffer): void {
    this.#frame(8, frameTypes.ping, flags.ack, 0);
    this.#output.push(Buffer.from(payload));
  }

  goAway(lastStreamId: number, code: ErrorCode = errorCodes.NO_ERROR): void {
    const payload = Buffer.allocUnsafe(8);
    payload.writeUInt32BE(lastStreamId, 0);
    payload.writeUInt32BE(code, 4);
    this.#frame(8, frameTypes.goAway, 0, 0);
    this.#output.push(payload);
  }

  #withNumber(type: number, streamId: number, value: number): void {
    const payload = Buffer.allocUnsafe(4);
    payload.writeUInt32BE(value, 0);
    this.#frame(4, type, 0, streamId);
    this.#output.push(payload);
  }

  #frame(length: number, type: number, own: number, streamId: number): void {
    const head = Buffer.allocUnsafe(frameHeaderBytes);
    head.writeUIntBE(length, 0, 3);
    head[3] = type;
    head[4] = own;
    head.writeUInt32BE(streamId, 5);
    this.#output.push(head);
  }
}
