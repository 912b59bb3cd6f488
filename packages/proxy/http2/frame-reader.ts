import { type ErrorCode, errorCodes, type Http2Violation } from './error-codes.ts';
import { defaultMaxFrameBytes, flags, frameHeaderBytes, frameTypes } from './frames.ts';

/** Who receives frames, checked as far as a frame alone can be; what they mean to streams is the receiver's affair. Violations end the reading. */
export interface FrameSink {
  /** A piece of a DATA frame's content. It is a part of the chunk that was read: whoever keeps it copies it. */
  onData(streamId: number, chunk: Buffer, start: number, end: number): Http2Violation | undefined;
  /** A DATA frame is complete. `flowBytes` is what it counts for in flow control, `paddingBytes` what of that was no content. */
  onDataEnd(streamId: number, flowBytes: number, paddingBytes: number, endsStream: boolean): Http2Violation | undefined;
  /** A header block, with its CONTINUATION frames: `source` from `start` to `end`. `dependsOn` is the stream that its priority names; -1 without one. */
  onHeaders(streamId: number, source: Buffer, start: number, end: number, endsStream: boolean, dependsOn: number): Http2Violation | undefined;
  onPriority(streamId: number, dependsOn: number): Http2Violation | undefined;
  onRstStream(streamId: number, code: number): Http2Violation | undefined;
  /** `entries`: six bytes each, identifier and value. */
  onSettings(entries: Buffer): Http2Violation | undefined;
  onSettingsAck(): Http2Violation | undefined;
  onPing(payload: Buffer, isAck: boolean): Http2Violation | undefined;
  onGoAway(lastStreamId: number, code: number, debugData: Buffer): Http2Violation | undefined;
  /** `streamId` 0: of the connection. */
  onWindowUpdate(streamId: number, increment: number): Http2Violation | undefined;
}

export interface FrameLimits {
  /** Compressed bytes of one header block, CONTINUATION frames included. */
  readonly maxHeaderBlockBytes: number;
  /** CONTINUATION frames of one block: small ones cost more than their bytes. */
  readonly maxContinuations: number;
}

type State = 'header' | 'payload' | 'data' | 'padding';

const violation = (code: ErrorCode, reason: string, streamId = 0): Http2Violation => ({ code, reason: `http2.${reason}`, streamId });

/**
 * Cuts what a socket brings into frames (RFC 9113 section 4). It may be cut anywhere. DATA is handed on as it comes; other frames are held until
 * they are whole, which is at most one frame, or one header block within its limit. After a violation of the connection nothing is read any
 * more; one of a stream is told and passed over.
 */
export class FrameReader {
  readonly #limits: FrameLimits;
  readonly #sink: FrameSink;
  readonly #onStreamViolation: (violation: Http2Violation) => void;
  #state: State;
  /** A frame header, or a payload, that has not come whole yet. */
  #held: Buffer;
  #heldBytes: number;
  #length: number;
  #type: number;
  #flags: number;
  #streamId: number;
  /** Bytes of DATA, then of its padding, that are still to come. */
  #dataLeft: number;
  #paddingLeft: number;
  /** The header block under way: CONTINUATION frames of this stream, and nothing else, must follow. */
  #blockStreamId: number;
  #blockParts: Buffer[];
  #blockBytes: number;
  #blockEndsStream: boolean;
  #blockDependsOn: number;
  #continuations: number;
  /** What the DATA frame under way counts for in flow control. */
  #flowBytes: number;
  /** How much of that is padding, with the byte that says how much there is. */
  #overheadBytes: number;
  /** Where the chunk goes on after `#gather`. */
  #next: number;
  #failure: Http2Violation | undefined;

  constructor(limits: FrameLimits, sink: FrameSink, onStreamViolation: (violation: Http2Violation) => void) {
    this.#limits = limits;
    this.#sink = sink;
    this.#onStreamViolation = onStreamViolation;
    this.#state = 'header';
    this.#held = Buffer.allocUnsafe(64);
    this.#heldBytes = 0;
    this.#length = 0;
    this.#type = 0;
    this.#flags = 0;
    this.#streamId = 0;
    this.#dataLeft = 0;
    this.#paddingLeft = 0;
    this.#blockStreamId = 0;
    this.#blockParts = [];
    this.#blockBytes = 0;
    this.#blockEndsStream = false;
    this.#blockDependsOn = -1;
    this.#continuations = 0;
    this.#flowBytes = 0;
    this.#overheadBytes = 0;
    this.#next = 0;
    this.#failure = undefined;
  }

  get isInHeaderBlock(): boolean {
    return this.#blockStreamId !== 0;
  }

  /** Reads a chunk to its end. Returns the violation that ends the connection, now and for ever. */
  read(chunk: Buffer): Http2Violation | undefined {
    let at = 0;
    while (this.#failure === undefined && at < chunk.length) {
      switch (this.#state) {
        case 'header': {
          if (this.#heldBytes === 0 && chunk.length - at >= frameHeaderBytes) {
            const start = at;
            at += frameHeaderBytes;
            this.#tell(this.#beginFrame(chunk, start));
            break;
          }
          const isWhole = this.#gather(chunk, at, frameHeaderBytes);
          at = this.#next;
          if (isWhole) this.#tell(this.#beginFrame(this.#held, 0));
          break;
        }
        case 'payload': {
          if (this.#heldBytes === 0 && chunk.length - at >= this.#length) {
            const start = at;
            at += this.#length;
            this.#endPayload(chunk, start, at);
            break;
          }
          const isWhole = this.#gather(chunk, at, this.#length);
          at = this.#next;
          if (isWhole) this.#endPayload(this.#held, 0, this.#length);
          break;
        }
        case 'data': {
          const end = Math.min(chunk.length, at + this.#dataLeft);
          this.#dataLeft -= end - at;
          this.#tell(this.#sink.onData(this.#streamId, chunk, at, end));
          at = end;
          if (this.#dataLeft === 0) this.#endData();
          break;
        }
        case 'padding': {
          const end = Math.min(chunk.length, at + this.#paddingLeft);
          this.#paddingLeft -= end - at;
          at = end;
          if (this.#paddingLeft === 0) this.#endData();
          break;
        }
      }
    }
    return this.#failure;
  }

  /** Holds bytes until there are so many; `#next` is where the chunk goes on. */
  #gather(chunk: Buffer, at: number, wanted: number): boolean {
    // Nothing is held yet when the frame is longer than what there is room for: most connections never need more than a header's.
    if (this.#held.length < wanted) this.#held = Buffer.allocUnsafe(Math.max(wanted, 1024));
    const end = Math.min(chunk.length, at + wanted - this.#heldBytes);
    chunk.copy(this.#held, this.#heldBytes, at, end);
    this.#heldBytes += end - at;
    this.#next = end;
    if (this.#heldBytes < wanted) return false;
    this.#heldBytes = 0;
    return true;
  }

  #tell(found: Http2Violation | undefined): void {
    if (found === undefined) return;
    if (found.streamId === 0) this.#failure = found;
    else this.#onStreamViolation(found);
  }

  #beginFrame(source: Buffer, at: number): Http2Violation | undefined {
    this.#length = (source[at]! << 16) | (source[at + 1]! << 8) | source[at + 2]!;
    this.#type = source[at + 3]!;
    this.#flags = source[at + 4]!;
    this.#streamId = uint31(source, at + 5);
    const type = this.#type;
    if (this.#length > defaultMaxFrameBytes) return violation(errorCodes.FRAME_SIZE_ERROR, 'frame_too_large');
    // Section 6.10: a header block is not interrupted.
    if (this.#blockStreamId !== 0 && (type !== frameTypes.continuation || this.#streamId !== this.#blockStreamId))
      return violation(errorCodes.PROTOCOL_ERROR, 'header_block_interrupted');
    const wrong = this.#checkPlace(type, this.#streamId, this.#length);
    if (wrong !== undefined) return wrong;
    if (type === frameTypes.data) {
      const isPadded = (this.#flags & flags.padded) !== 0;
      if (isPadded && this.#length === 0) return violation(errorCodes.FRAME_SIZE_ERROR, 'padding_missing');
      if (isPadded) {
        // One byte says how much padding there is: it is read as a payload of its own.
        this.#state = 'payload';
        this.#dataLeft = this.#length;
        this.#length = 1;
        return undefined;
      }
      this.#dataLeft = this.#length;
      this.#paddingLeft = 0;
      this.#flowBytes = this.#length;
      this.#overheadBytes = 0;
      this.#state = 'data';
      if (this.#dataLeft === 0) this.#endData();
      return undefined;
    }
    this.#state = 'payload';
    if (this.#length === 0) this.#endPayload(empty, 0, 0);
    return undefined;
  }

  /** Which frames belong to streams and which to the connection, and how long they are. */
  #checkPlace(type: number, streamId: number, length: number): Http2Violation | undefined {
    switch (type) {
      case frameTypes.data:
      case frameTypes.headers:
        return streamId === 0 ? violation(errorCodes.PROTOCOL_ERROR, 'frame_without_stream') : undefined;
      case frameTypes.continuation:
        return this.#blockStreamId === 0 ? violation(errorCodes.PROTOCOL_ERROR, 'continuation_without_headers') : undefined;
      case frameTypes.priority:
        return streamId === 0 ? violation(errorCodes.PROTOCOL_ERROR, 'frame_without_stream') : undefined;
      case frameTypes.rstStream:
        if (streamId === 0) return violation(errorCodes.PROTOCOL_ERROR, 'frame_without_stream');
        return length === 4 ? undefined : violation(errorCodes.FRAME_SIZE_ERROR, 'rst_stream_size');
      case frameTypes.settings:
        if (streamId !== 0) return violation(errorCodes.PROTOCOL_ERROR, 'frame_on_stream');
        if ((this.#flags & flags.ack) !== 0 && length !== 0) return violation(errorCodes.FRAME_SIZE_ERROR, 'settings_size');
        return length % 6 === 0 ? undefined : violation(errorCodes.FRAME_SIZE_ERROR, 'settings_size');
      case frameTypes.ping:
        if (streamId !== 0) return violation(errorCodes.PROTOCOL_ERROR, 'frame_on_stream');
        return length === 8 ? undefined : violation(errorCodes.FRAME_SIZE_ERROR, 'ping_size');
      case frameTypes.goAway:
        if (streamId !== 0) return violation(errorCodes.PROTOCOL_ERROR, 'frame_on_stream');
        return length >= 8 ? undefined : violation(errorCodes.FRAME_SIZE_ERROR, 'goaway_size');
      case frameTypes.windowUpdate:
        return length === 4 ? undefined : violation(errorCodes.FRAME_SIZE_ERROR, 'window_update_size');
      case frameTypes.pushPromise:
        // We are a server, which nobody may push to, or a client that has said it takes no push (section 8.4).
        return violation(errorCodes.PROTOCOL_ERROR, 'push_promise');
      default:
        return undefined; // section 5.5: what nobody knows is passed over
    }
  }

  #endPayload(source: Buffer, start: number, end: number): void {
    this.#state = 'header';
    this.#tell(this.#dispatch(source, start, end));
  }

  #endData(): void {
    if (this.#dataLeft > 0 || this.#paddingLeft > 0) {
      this.#state = this.#dataLeft > 0 ? 'data' : 'padding';
      return;
    }
    this.#state = 'header';
    this.#tell(this.#sink.onDataEnd(this.#streamId, this.#flowBytes, this.#overheadBytes, (this.#flags & flags.endStream) !== 0));
  }

  #dispatch(source: Buffer, start: number, end: number): Http2Violation | undefined {
    const sink = this.#sink;
    const streamId = this.#streamId;
    switch (this.#type) {
      case frameTypes.data: {
        const length = this.#dataLeft;
        const padding = source[start]!;
        if (padding >= length) return violation(errorCodes.PROTOCOL_ERROR, 'padding_too_long');
        this.#flowBytes = length;
        this.#paddingLeft = padding;
        this.#dataLeft = length - 1 - padding;
        this.#overheadBytes = 1 + padding;
        this.#endData();
        return undefined;
      }
      case frameTypes.headers:
        return this.#beginBlock(source, start, end);
      case frameTypes.continuation:
        if (++this.#continuations > this.#limits.maxContinuations) return violation(errorCodes.ENHANCE_YOUR_CALM, 'too_many_continuations');
        return this.#addToBlock(source, start, end);
      case frameTypes.priority:
        if (end - start !== 5) return violation(errorCodes.FRAME_SIZE_ERROR, 'priority_size', streamId);
        return sink.onPriority(streamId, uint31(source, start));
      case frameTypes.rstStream:
        return sink.onRstStream(streamId, source.readUInt32BE(start));
      case frameTypes.settings:
        return (this.#flags & flags.ack) !== 0 ? sink.onSettingsAck() : sink.onSettings(source.subarray(start, end));
      case frameTypes.ping:
        return sink.onPing(source.subarray(start, end), (this.#flags & flags.ack) !== 0);
      case frameTypes.goAway:
        return sink.onGoAway(uint31(source, start), source.readUInt32BE(start + 4), source.subarray(start + 8, end));
      case frameTypes.windowUpdate: {
        const increment = uint31(source, start);
        if (increment === 0) return violation(errorCodes.PROTOCOL_ERROR, 'window_update_zero', streamId);
        return sink.onWindowUpdate(streamId, increment);
      }
      default:
        return undefined;
    }
  }

  #beginBlock(source: Buffer, from: number, to: number): Http2Violation | undefined {
    let start = from;
    let padding = 0;
    if ((this.#flags & flags.padded) !== 0) {
      if (to === from) return violation(errorCodes.FRAME_SIZE_ERROR, 'padding_missing');
      padding = source[start++]!;
    }
    let dependsOn = -1;
    if ((this.#flags & flags.priority) !== 0) {
      if (to < start + 5) return violation(errorCodes.FRAME_SIZE_ERROR, 'priority_missing');
      dependsOn = uint31(source, start);
      start += 5;
    }
    if (start + padding > to) return violation(errorCodes.PROTOCOL_ERROR, 'padding_too_long');
    this.#blockStreamId = this.#streamId;
    this.#blockEndsStream = (this.#flags & flags.endStream) !== 0;
    this.#blockDependsOn = dependsOn;
    this.#continuations = 0;
    return this.#addToBlock(source, start, to - padding);
  }

  #addToBlock(source: Buffer, start: number, end: number): Http2Violation | undefined {
    this.#blockBytes += end - start;
    // What is not read cannot be decoded, and what is not decoded leaves the table in a state that nobody knows: the connection ends.
    if (this.#blockBytes > this.#limits.maxHeaderBlockBytes) return violation(errorCodes.ENHANCE_YOUR_CALM, 'header_block_too_large');
    const isWhole = (this.#flags & flags.endHeaders) !== 0;
    if (!isWhole) {
      this.#blockParts.push(Buffer.from(source.subarray(start, end)));
      return undefined;
    }
    const streamId = this.#blockStreamId;
    this.#blockStreamId = 0;
    this.#blockBytes = 0;
    if (this.#blockParts.length === 0) return this.#sink.onHeaders(streamId, source, start, end, this.#blockEndsStream, this.#blockDependsOn);
    const block = Buffer.concat([...this.#blockParts, source.subarray(start, end)]);
    this.#blockParts = [];
    return this.#sink.onHeaders(streamId, block, 0, block.length, this.#blockEndsStream, this.#blockDependsOn);
  }
}

function uint31(source: Buffer, at: number): number {
  return ((source[at]! & 0x7f) << 24) | (source[at + 1]! << 16) | (source[at + 2]! << 8) | source[at + 3]!;
}

const empty = Buffer.alloc(0);
