import { type ErrorCode, errorCodes, type Http2Violation } from './error-codes.ts';
import { defaultMaxFrameBytes, flags, frameHeaderBytes, frameTypes } from './frames.ts';

/** Who receives frames, checked as far as a frame alone can be; what they mean to streams is the receiver's affair. Violations end the reading. */
export interface FrameSink {
  /** A piece of a DATA frame's content. It is part of the chunk that was read: whoever keeps it copies it. */
  onData(streamId: number, slice: Buffer): Http2Violation | undefined;
  /** A DATA frame is complete. `flowBytes` is what it counts for in flow control, padding included. */
  onDataEnd(streamId: number, flowBytes: number, endsStream: boolean): Http2Violation | undefined;
  /** A header block, with its CONTINUATION frames. `dependsOn` is the stream that its priority names; -1 without one. */
  onHeaders(streamId: number, block: Buffer, endsStream: boolean, dependsOn: number): Http2Violation | undefined;
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
  readonly #held: Buffer;
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
  /** Where the chunk goes on after `#gather`. */
  #next: number;
  #failure: Http2Violation | undefined;

  constructor(limits: FrameLimits, sink: FrameSink, onStreamViolation: (violation: Http2Violation) => void) {
    this.#limits = limits;
    this.#sink = sink;
    this.#onStreamViolation = onStreamViolation;
    this.#state = 'header';
    this.#held = Buffer.allocUnsafe(defaultMaxFrameBytes);
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
    this.#next = 0;
    this.#failure = undefined;
  }

  /** Reads a chunk to its end. Returns the violation that ends the connection, now and for ever. */
  read(chunk: Buffer): Http2Violation | undefined {
    let at = 0;
    while (this.#failure === undefined && at < chunk.length) {
      switch (this.#state) {
        case 'header': {
          const header = this.#gather(chunk, at, frameHeaderBytes);
          at = this.#next;
          if (header !== undefined) this.#tell(this.#beginFrame(header));
          break;
        }
        case 'payload': {
          const payload = this.#gather(chunk, at, this.#length);
          at = this.#next;
          if (payload !== undefined) this.#endPayload(payload);
          break;
        }
        case 'data': {
          const end = Math.min(chunk.length, at + this.#dataLeft);
          this.#dataLeft -= end - at;
          this.#tell(this.#sink.onData(this.#streamId, chunk.subarray(at, end)));
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

  /** So many bytes in one piece, or undefined until they have come; `#next` is where the chunk goes on. */
  #gather(chunk: Buffer, at: number, wanted: number): Buffer | undefined {
    if (this.#heldBytes === 0 && chunk.length - at >= wanted) {
      this.#next = at + wanted;
      return chunk.subarray(at, at + wanted);
    }
    const end = Math.min(chunk.length, at + wanted - this.#heldBytes);
    chunk.copy(this.#held, this.#heldBytes, at, end);
    this.#heldBytes += end - at;
    this.#next = end;
    if (this.#heldBytes < wanted) return undefined;
    this.#heldBytes = 0;
    return this.#held.subarray(0, wanted);
  }

  #tell(found: Http2Violation | undefined): void {
    if (found === undefined) return;
    if (found.streamId === 0) this.#failure = found;
    else this.#onStreamViolation(found);
  }

  #beginFrame(header: Buffer): Http2Violation | undefined {
    this.#length = header.readUIntBE(0, 3);
    this.#type = header[3]!;
    this.#flags = header[4]!;
    this.#streamId = header.readUInt32BE(5) & 0x7fff_ffff;
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
      this.#state = 'data';
      if (this.#dataLeft === 0) this.#endData();
      return undefined;
    }
    this.#state = 'payload';
    if (this.#length === 0) this.#endPayload(empty);
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

  #endPayload(payload: Buffer): void {
    this.#state = 'header';
    this.#tell(this.#dispatch(payload));
  }

  #endData(): void {
    if (this.#dataLeft > 0 || this.#paddingLeft > 0) {
      this.#state = this.#dataLeft > 0 ? 'data' : 'padding';
      return;
    }
    this.#state = 'header';
    this.#tell(this.#sink.onDataEnd(this.#streamId, this.#flowBytes, (this.#flags & flags.endStream) !== 0));
  }

  #dispatch(payload: Buffer): Http2Violation | undefined {
    const sink = this.#sink;
    const streamId = this.#streamId;
    switch (this.#type) {
      case frameTypes.data: {
        const length = this.#dataLeft;
        const padding = payload[0]!;
        if (padding >= length) return violation(errorCodes.PROTOCOL_ERROR, 'padding_too_long');
        this.#flowBytes = length;
        this.#paddingLeft = padding;
        this.#dataLeft = length - 1 - padding;
        this.#endData();
        return undefined;
      }
      case frameTypes.headers:
        return this.#beginBlock(payload);
      case frameTypes.continuation:
        if (++this.#continuations > this.#limits.maxContinuations) return violation(errorCodes.ENHANCE_YOUR_CALM, 'too_many_continuations');
        return this.#addToBlock(payload);
      case frameTypes.priority:
        if (payload.length !== 5) return violation(errorCodes.FRAME_SIZE_ERROR, 'priority_size', streamId);
        return sink.onPriority(streamId, payload.readUInt32BE(0) & 0x7fff_ffff);
      case frameTypes.rstStream:
        return sink.onRstStream(streamId, payload.readUInt32BE(0));
      case frameTypes.settings:
        return (this.#flags & flags.ack) !== 0 ? sink.onSettingsAck() : sink.onSettings(payload);
      case frameTypes.ping:
        return sink.onPing(payload, (this.#flags & flags.ack) !== 0);
      case frameTypes.goAway:
        return sink.onGoAway(payload.readUInt32BE(0) & 0x7fff_ffff, payload.readUInt32BE(4), payload.subarray(8));
      case frameTypes.windowUpdate: {
        const increment = payload.readUInt32BE(0) & 0x7fff_ffff;
        if (increment === 0) return violation(errorCodes.PROTOCOL_ERROR, 'window_update_zero', streamId);
        return sink.onWindowUpdate(streamId, increment);
      }
      default:
        return undefined;
    }
  }

  #beginBlock(payload: Buffer): Http2Violation | undefined {
    let start = 0;
    let padding = 0;
    if ((this.#flags & flags.padded) !== 0) {
      if (payload.length === 0) return violation(errorCodes.FRAME_SIZE_ERROR, 'padding_missing');
      padding = payload[start++]!;
    }
    let dependsOn = -1;
    if ((this.#flags & flags.priority) !== 0) {
      if (payload.length < start + 5) return violation(errorCodes.FRAME_SIZE_ERROR, 'priority_missing');
      dependsOn = payload.readUInt32BE(start) & 0x7fff_ffff;
      start += 5;
    }
    if (start + padding > payload.length) return violation(errorCodes.PROTOCOL_ERROR, 'padding_too_long');
    this.#blockStreamId = this.#streamId;
    this.#blockEndsStream = (this.#flags & flags.endStream) !== 0;
    this.#blockDependsOn = dependsOn;
    this.#continuations = 0;
    return this.#addToBlock(payload.subarray(start, payload.length - padding));
  }

  #addToBlock(part: Buffer): Http2Violation | undefined {
    this.#blockBytes += part.length;
    // What is not read cannot be decoded, and what is not decoded leaves the table in a state that nobody knows: the connection ends.
    if (this.#blockBytes > this.#limits.maxHeaderBlockBytes) return violation(errorCodes.ENHANCE_YOUR_CALM, 'header_block_too_large');
    const isWhole = (this.#flags & flags.endHeaders) !== 0;
    if (!isWhole) {
      this.#blockParts.push(Buffer.from(part));
      return undefined;
    }
    const block = this.#blockParts.length === 0 ? part : Buffer.concat([...this.#blockParts, part]);
    const streamId = this.#blockStreamId;
    this.#blockStreamId = 0;
    this.#blockParts = [];
    this.#blockBytes = 0;
    return this.#sink.onHeaders(streamId, block, this.#blockEndsStream, this.#blockDependsOn);
  }
}

const empty = Buffer.alloc(0);
