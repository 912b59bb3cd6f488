import type { Fields } from '../message/fields.ts';
import { type ErrorCode, errorCodes } from './error-codes.ts';
import { defaultMaxFrameBytes, flags, frameHeaderBytes, frameTypes } from './frames.ts';
import { HpackEncoder } from './hpack/encoder.ts';

/** Where bytes go. */
export interface ByteWriter {
  /** Takes the bytes over, or has sent them already (`pendingBytes`). */
  write(bytes: Buffer): void;
  /** What was written and not taken by the kernel yet: its memory is still needed. */
  readonly pendingBytes: number;
  /** No more than what has to be said should be written now; `onWritable` is called when that is over. */
  readonly isFull: boolean;
  /** What was written still goes out, then the connection ends. */
  end(): void;
}

const blockBytes = 64 * 1024;
/** Blocks that no connection is filling. */
const freeBlocks: Buffer[] = [];
const maxFreeBlocks = 16;
/** Up to this, bytes are rather copied than given away with a whole block. */
const copiedBytes = 16 * 1024;

/**
 * Collects the frames that are to be sent, one behind the other in one piece of memory, until they are written (RFC 9113 section 6). A
 * connection has such a piece only while it has something to say; the next one uses it when the kernel has taken everything.
 */
export class FrameWriter {
  readonly #encoder: HpackEncoder;
  readonly #writer: ByteWriter;
  #block: Buffer | undefined;
  #at: number;
  /** The last write was not taken at once. */
  #wasHeld: boolean;
  /** Where the last frame begins, if it is a DATA frame that may still be made the last of its stream; -1 otherwise. */
  #openDataAt: number;
  #openDataStream: number;
  /** DATA frames that were ever written. */
  dataFrames: number;
  /** Frames that answer what the peer may send at will, since everything was last taken from us. */
  controlFrames: number;

  constructor(writer: ByteWriter) {
    this.#encoder = new HpackEncoder();
    this.#writer = writer;
    this.#block = undefined;
    this.#at = 0;
    this.#wasHeld = false;
    this.#openDataAt = -1;
    this.#openDataStream = 0;
    this.dataFrames = 0;
    this.controlFrames = 0;
  }

  /** Bytes that wait here. */
  get bufferedBytes(): number {
    return this.#at;
  }

  /** Writes what there is. */
  flush(): void {
    const block = this.#block;
    if (block === undefined || this.#at === 0) return;
    const length = this.#at;
    this.#at = 0;
    this.#openDataAt = -1;
    this.#block = undefined;
    // Whoever does not take what it is given at once (TLS never does) is given memory that is just as large.
    const isCopied = this.#wasHeld && length < copiedBytes;
    this.#writer.write(isCopied ? Buffer.from(block.subarray(0, length)) : block.subarray(0, length));
    this.#wasHeld = this.#writer.pendingBytes > 0;
    if (!this.#wasHeld) this.controlFrames = 0;
    if ((isCopied || !this.#wasHeld) && freeBlocks.length < maxFreeBlocks) freeBlocks.push(block);
  }

  /** The peer's SETTINGS_HEADER_TABLE_SIZE. */
  setHeaderTableLimit(bytes: number): void {
    this.#encoder.setLimit(bytes);
  }

  beginHeaders(): HpackEncoder {
    this.#encoder.begin();
    return this.#encoder;
  }

  endHeaders(streamId: number, endsStream: boolean): void {
    const encoded = this.#encoder.end();
    const most = defaultMaxFrameBytes;
    for (let at = 0; at === 0 || at < encoded.length; at += most) {
      const end = Math.min(at + most, encoded.length);
      const isLast = end === encoded.length;
      const own = (isLast ? flags.endHeaders : 0) | (at === 0 && endsStream ? flags.endStream : 0);
      this.#frame(end - at, at === 0 ? frameTypes.headers : frameTypes.continuation, own, streamId);
      encoded.copy(this.#block!, this.#at, at, end);
      this.#at += end - at;
    }
  }

  fields(streamId: number, fields: Fields, endsStream: boolean): void {
    const encoder = this.beginHeaders();
    for (const [name, value] of fields) encoder.add(name, value);
    this.endHeaders(streamId, endsStream);
  }

  /** A DATA frame with a copy of `source` from `start` to `end`, which is at most what any peer takes in one frame. */
  data(streamId: number, source: Buffer, start: number, end: number): void {
    this.#frame(end - start, frameTypes.data, 0, streamId);
    this.dataFrames++;
    this.#openDataAt = this.#at - frameHeaderBytes;
    this.#openDataStream = streamId;
    source.copy(this.#block!, this.#at, start, end);
    this.#at += end - start;
  }

  /** Ends a stream without trailers: its last DATA frame says so, if that has not left yet and nothing came after it. */
  endData(streamId: number): void {
    if (this.#openDataAt >= 0 && this.#openDataStream === streamId) {
      this.#block![this.#openDataAt + 4]! |= flags.endStream;
      this.#openDataAt = -1;
    } else this.#frame(0, frameTypes.data, flags.endStream, streamId);
  }

  reset(streamId: number, code: ErrorCode): void {
    this.#withNumber(frameTypes.rstStream, streamId, code);
    this.controlFrames++;
  }

  windowUpdate(streamId: number, increment: number): void {
    this.#withNumber(frameTypes.windowUpdate, streamId, increment);
  }

  settings(entries: readonly (readonly [id: number, value: number])[]): void {
    this.#frame(entries.length * 6, frameTypes.settings, 0, 0);
    for (const [id, value] of entries) {
      this.#at = this.#block!.writeUInt16BE(id, this.#at);
      this.#at = this.#block!.writeUInt32BE(value, this.#at);
    }
  }

  settingsAck(): void {
    this.#frame(0, frameTypes.settings, flags.ack, 0);
    this.controlFrames++;
  }

  /** `payload`: 8 bytes. */
  ping(payload: Buffer, isAck: boolean): void {
    this.#frame(8, frameTypes.ping, isAck ? flags.ack : 0, 0);
    payload.copy(this.#block!, this.#at, 0, 8);
    this.#at += 8;
    if (isAck) this.controlFrames++;
  }

  goAway(lastStreamId: number, code: ErrorCode = errorCodes.NO_ERROR, debug = ''): void {
    this.#frame(8 + debug.length, frameTypes.goAway, 0, 0);
    this.#at = this.#block!.writeUInt32BE(lastStreamId, this.#at);
    this.#at = this.#block!.writeUInt32BE(code, this.#at);
    this.#at += this.#block!.write(debug, this.#at, 'latin1');
  }

  raw(bytes: Buffer): void {
    this.#reserve(bytes.length);
    bytes.copy(this.#block!, this.#at);
    this.#at += bytes.length;
  }

  #withNumber(type: number, streamId: number, value: number): void {
    this.#frame(4, type, 0, streamId);
    this.#number(value);
  }

  #number(value: number): void {
    const block = this.#block!;
    let at = this.#at;
    block[at++] = value >>> 24;
    block[at++] = value >>> 16;
    block[at++] = value >>> 8;
    block[at++] = value;
    this.#at = at;
  }

  /** A frame's header, with room for its content. */
  #frame(length: number, type: number, own: number, streamId: number): void {
    this.#reserve(frameHeaderBytes + length);
    const block = this.#block!;
    let at = this.#at;
    block[at++] = length >>> 16;
    block[at++] = length >>> 8;
    block[at++] = length;
    block[at++] = type;
    block[at++] = own;
    this.#at = at;
    this.#number(streamId);
    this.#openDataAt = -1;
  }

  #reserve(bytes: number): void {
    if (this.#block !== undefined && this.#at + bytes > this.#block.length) this.flush();
    this.#block ??= freeBlocks.pop() ?? Buffer.allocUnsafeSlow(blockBytes);
  }
}
