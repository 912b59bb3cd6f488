import { type ErrorCode, errorCodes, type Http2Violation } from './error-codes.ts';
import { type FrameLimits, FrameReader, type FrameSink } from './frame-reader.ts';
import { type Fields, FrameWriter } from './frame-writer.ts';
import { connectionPreface, defaultMaxFrameBytes, defaultWindowBytes, maxWindowBytes, settingIds } from './frames.ts';
import { fieldBytes, HpackDecoder } from './hpack/decoder.ts';
import { type RequestFields, readRequestFields, trailersProblem } from './request-fields.ts';
import { ServerStream } from './server-stream.ts';

export interface Http2ServerSettings {
  /** SETTINGS_MAX_CONCURRENT_STREAMS. */
  readonly maxConcurrentStreams: number;
  /** SETTINGS_INITIAL_WINDOW_SIZE: what a client may send on a stream before it has been read. */
  readonly streamWindowBytes: number;
  /** The same for all streams together. */
  readonly connectionWindowBytes: number;
  /** SETTINGS_MAX_HEADER_LIST_SIZE. */
  readonly maxHeaderListBytes: number;
  readonly frames: FrameLimits;
}

/** Where bytes go. */
export interface ByteWriter {
  write(bytes: Buffer): void;
  /** What was written still goes out, then the connection ends. */
  end(): void;
}

/** Who serves the streams of a connection. */
export interface StreamServer {
  onRequest(stream: ServerStream, request: RequestFields, endsStream: boolean): void;
  /** The slice is good during the call; who has used it up says so with `stream.consumed`. */
  onData(stream: ServerStream, slice: Buffer): void;
  onRequestEnd(stream: ServerStream, trailers: readonly (readonly [string, string])[]): void;
  /** The stream has ended before its time: by the client, or by a violation. */
  onReset(stream: ServerStream, code: number): void;
  /** Everything that was written on the stream has been sent. */
  onDrain(stream: ServerStream): void;
  onViolation(violation: Http2Violation): void;
}

/** How many streams that have ended are remembered, to tell what is late from what never was. */
const rememberedStreams = 128;

/**
 * The server's side of an HTTP/2 connection: a state machine over bytes, which knows no sockets and no HTTP beyond RFC 9113. What one read
 * leads to is written at once, when it is over.
 */
export class Http2ServerConnection implements FrameSink {
  readonly #settings: Http2ServerSettings;
  readonly #writer: ByteWriter;
  readonly #server: StreamServer;
  readonly #reader: FrameReader;
  readonly #decoder: HpackDecoder;
  readonly #frames: FrameWriter;
  readonly #streams: Map<number, ServerStream>;
  readonly #ended: Set<number>;
  /** Streams with something to send and a window to send it; served in turn. */
  readonly #sending: Set<ServerStream>;
  #isReading: boolean;
  #isFlushPlanned: boolean;
  #prefaceRead: number;
  #hasSettings: boolean;
  #lastStreamId: number;
  #sendWindow: number;
  #receiveWindow: number;
  #unannounced: number;
  #peerStreamWindow: number;
  #isDraining: boolean;
  #isClosed: boolean;

  constructor(settings: Http2ServerSettings, writer: ByteWriter, server: StreamServer) {
    this.#settings = settings;
    this.#writer = writer;
    this.#server = server;
    this.#reader = new FrameReader(settings.frames, this, (found) => this.#endStream(found));
    this.#decoder = new HpackDecoder();
    this.#frames = new FrameWriter();
    this.#streams = new Map();
    this.#ended = new Set();
    this.#sending = new Set();
    this.#isReading = false;
    this.#isFlushPlanned = false;
    this.#prefaceRead = 0;
    this.#hasSettings = false;
    this.#lastStreamId = 0;
    this.#sendWindow = defaultWindowBytes;
    this.#receiveWindow = settings.connectionWindowBytes;
    this.#unannounced = 0;
    this.#peerStreamWindow = defaultWindowBytes;
    this.#isDraining = false;
    this.#isClosed = false;
    this.#sendSettings();
  }

  get streamCount(): number {
    return this.#streams.size;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Reads what came from the client. */
  read(chunk: Buffer): void {
    if (this.#isClosed) return;
    this.#isReading = true;
    const failure = this.#readPreface(chunk);
    this.#isReading = false;
    if (failure !== undefined) return this.#fail(failure);
    this.#flush();
  }

  /** No new streams; those under way end in their time (section 6.8). The connection ends with the last. */
  drain(): void {
    if (this.#isDraining || this.#isClosed) return;
    this.#isDraining = true;
    this.#frames.goAway(this.#lastStreamId);
    this.#endWhenIdle();
    this.#flushSoon();
  }

  /** The connection is gone. */
  closed(): void {
    this.#isClosed = true;
    for (const stream of [...this.#streams.values()]) {
      this.#forget(stream);
      this.#server.onReset(stream, errorCodes.CANCEL);
    }
  }

  // ---- what the streams send ----

  sendHeaders(stream: ServerStream, fields: Fields, endsStream: boolean): void {
    if (stream.isLocalClosed || this.#isClosed) return;
    this.#frames.headers(stream.id, fields, endsStream);
    if (endsStream) this.#closeLocal(stream);
    this.#flushSoon();
  }

  sendData(stream: ServerStream, bytes: Buffer): void {
    if (stream.isLocalClosed || stream.ending !== undefined || this.#isClosed || bytes.length === 0) return;
    stream.pending.push(bytes);
    stream.pendingBytes += bytes.length;
    this.#sending.add(stream);
    this.#flushSoon();
  }

  sendEnd(stream: ServerStream, trailers: Fields): void {
    if (stream.isLocalClosed || stream.ending !== undefined || this.#isClosed) return;
    stream.ending = trailers;
    this.#sending.add(stream);
    this.#flushSoon();
  }

  resetStream(stream: ServerStream, code: ErrorCode): void {
    if (!this.#streams.has(stream.id) || this.#isClosed) return;
    this.#frames.reset(stream.id, code);
    this.#forget(stream);
    this.#endWhenIdle();
    this.#flushSoon();
  }

  consumed(stream: ServerStream, bytes: number): void {
    if (this.#isClosed) return;
    this.#announce(bytes);
    stream.unannounced += bytes;
    if (!stream.isRemoteClosed && this.#streams.has(stream.id) && stream.unannounced * 2 >= this.#settings.streamWindowBytes) {
      this.#frames.windowUpdate(stream.id, stream.unannounced);
      stream.receiveWindow += stream.unannounced;
      stream.unannounced = 0;
    }
    this.#flushSoon();
  }

  // ---- what the frames say ----

  onData(streamId: number, slice: Buffer): Http2Violation | undefined {
    const stream = this.#streams.get(streamId);
    if (stream === undefined || stream.isRemoteClosed) return undefined;
    stream.contentReceived += slice.length;
    this.#server.onData(stream, slice);
    return undefined;
  }

  onDataEnd(streamId: number, flowBytes: number, endsStream: boolean): Http2Violation | undefined {
    const early = this.#notBeforeSettings();
    if (early !== undefined) return early;
    this.#receiveWindow -= flowBytes;
    if (this.#receiveWindow < 0) return this.#violation(errorCodes.FLOW_CONTROL_ERROR, 'connection_window_exceeded');
    const stream = this.#streams.get(streamId);
    if (stream === undefined) {
      // Nobody will use it up: the connection's window is given back at once.
      this.#announce(flowBytes);
      if (streamId > this.#lastStreamId) return this.#violation(errorCodes.PROTOCOL_ERROR, 'data_on_idle_stream');
      return this.#violation(errorCodes.STREAM_CLOSED, 'data_on_closed_stream', streamId);
    }
    if (stream.isRemoteClosed) {
      this.#announce(flowBytes);
      return this.#violation(errorCodes.STREAM_CLOSED, 'data_after_end', streamId);
    }
    stream.receiveWindow -= flowBytes;
    if (stream.receiveWindow < 0) return this.#violation(errorCodes.FLOW_CONTROL_ERROR, 'stream_window_exceeded', streamId);
    if (endsStream) return this.#endRequest(stream, []);
    return undefined;
  }

  onHeaders(streamId: number, block: Buffer, endsStream: boolean, dependsOn: number): Http2Violation | undefined {
    const early = this.#notBeforeSettings();
    if (early !== undefined) return early;
    // Whatever becomes of the stream, the block is decoded: the table is the connection's.
    const received: [name: string, value: string][] = [];
    let bytes = 0;
    const { maxHeaderListBytes } = this.#settings;
    const failure = this.#decoder.decode(block, {
      onField(name, value) {
        bytes += fieldBytes(name, value);
        if (bytes <= maxHeaderListBytes) received.push([name, value]);
      },
    });
    if (failure !== undefined) return this.#violation(errorCodes.COMPRESSION_ERROR, `hpack_${failure}`);
    if ((streamId & 1) === 0) return this.#violation(errorCodes.PROTOCOL_ERROR, 'even_stream_id');
    const known = this.#streams.get(streamId);
    if (known !== undefined) return this.#trailers(known, received, endsStream);
    if (this.#ended.has(streamId)) return this.#violation(errorCodes.STREAM_CLOSED, 'headers_on_closed_stream');
    if (streamId <= this.#lastStreamId) return this.#violation(errorCodes.PROTOCOL_ERROR, 'stream_id_not_increasing');
    this.#lastStreamId = streamId;
    if (dependsOn === streamId) return this.#refuse(streamId, errorCodes.PROTOCOL_ERROR, 'depends_on_itself');
    if (this.#isDraining || this.#streams.size >= this.#settings.maxConcurrentStreams)
      return this.#refuse(streamId, errorCodes.REFUSED_STREAM, 'too_many_streams');
    if (bytes > maxHeaderListBytes) return this.#refuse(streamId, errorCodes.ENHANCE_YOUR_CALM, 'header_list_too_large');
    const request = readRequestFields(received);
    if (typeof request === 'string') return this.#refuse(streamId, errorCodes.PROTOCOL_ERROR, request);
    if (endsStream && request.contentLength > 0) return this.#refuse(streamId, errorCodes.PROTOCOL_ERROR, 'content_length_without_content');
    const stream = new ServerStream(this, streamId, this.#peerStreamWindow, this.#settings.streamWindowBytes);
    stream.contentLength = request.contentLength;
    stream.isRemoteClosed = endsStream;
    this.#streams.set(streamId, stream);
    this.#server.onRequest(stream, request, endsStream);
    return undefined;
  }

  onPriority(streamId: number, dependsOn: number): Http2Violation | undefined {
    const early = this.#notBeforeSettings();
    if (early !== undefined) return early;
    // Priorities are deprecated and not acted upon (section 5.3.2); what contradicts itself is refused all the same.
    return dependsOn === streamId ? this.#violation(errorCodes.PROTOCOL_ERROR, 'depends_on_itself', streamId) : undefined;
  }

  onRstStream(streamId: number, code: number): Http2Violation | undefined {
    if (streamId > this.#lastStreamId) return this.#violation(errorCodes.PROTOCOL_ERROR, 'reset_of_idle_stream');
    const stream = this.#streams.get(streamId);
    if (stream === undefined) return undefined;
    this.#forget(stream);
    this.#server.onReset(stream, code);
    this.#endWhenIdle();
    return undefined;
  }

  onSettings(entries: Buffer): Http2Violation | undefined {
    this.#hasSettings = true;
    for (let at = 0; at < entries.length; at += 6) {
      const value = entries.readUInt32BE(at + 2);
      switch (entries.readUInt16BE(at)) {
        case settingIds.headerTableSize:
          this.#frames.setHeaderTableLimit(value);
          break;
        case settingIds.enablePush:
          if (value > 1) return this.#violation(errorCodes.PROTOCOL_ERROR, 'setting_enable_push');
          break;
        case settingIds.initialWindowSize: {
          if (value > maxWindowBytes) return this.#violation(errorCodes.FLOW_CONTROL_ERROR, 'setting_initial_window_size');
          const change = value - this.#peerStreamWindow;
          this.#peerStreamWindow = value;
          for (const stream of this.#streams.values()) {
            stream.sendWindow += change;
            if (stream.sendWindow > maxWindowBytes) return this.#violation(errorCodes.FLOW_CONTROL_ERROR, 'setting_initial_window_size');
            this.#mayGoOn(stream);
          }
          break;
        }
        case settingIds.maxFrameSize:
          if (value < defaultMaxFrameBytes || value > 0xff_ffff) return this.#violation(errorCodes.PROTOCOL_ERROR, 'setting_max_frame_size');
          this.#frames.maxFrameBytes = Math.min(value, 4 * defaultMaxFrameBytes);
          break;
      }
    }
    this.#frames.settingsAck();
    return undefined;
  }

  onSettingsAck(): Http2Violation | undefined {
    return this.#notBeforeSettings();
  }

  onPing(payload: Buffer, isAck: boolean): Http2Violation | undefined {
    const early = this.#notBeforeSettings();
    if (early !== undefined || isAck) return early;
    this.#frames.pingAck(payload);
    return undefined;
  }

  onGoAway(): Http2Violation | undefined {
    return undefined; // a client that takes no pushed streams has nothing more to ask; what it has asked is answered
  }

  onWindowUpdate(streamId: number, increment: number): Http2Violation | undefined {
    if (streamId === 0) {
      this.#sendWindow += increment;
      if (this.#sendWindow > maxWindowBytes) return this.#violation(errorCodes.FLOW_CONTROL_ERROR, 'connection_window_overflow');
      for (const stream of this.#streams.values()) this.#mayGoOn(stream);
      return undefined;
    }
    if (streamId > this.#lastStreamId) return this.#violation(errorCodes.PROTOCOL_ERROR, 'window_update_on_idle_stream');
    const stream = this.#streams.get(streamId);
    if (stream === undefined) return undefined;
    stream.sendWindow += increment;
    if (stream.sendWindow > maxWindowBytes) return this.#violation(errorCodes.FLOW_CONTROL_ERROR, 'stream_window_overflow', streamId);
    this.#mayGoOn(stream);
    return undefined;
  }

  // ---- inside ----

  #readPreface(chunk: Buffer): Http2Violation | undefined {
    let at = 0;
    while (this.#prefaceRead < connectionPreface.length) {
      if (at === chunk.length) return undefined;
      if (chunk[at++] !== connectionPreface[this.#prefaceRead++]) return this.#violation(errorCodes.PROTOCOL_ERROR, 'no_preface');
    }
    return at === chunk.length ? undefined : this.#reader.read(at === 0 ? chunk : chunk.subarray(at));
  }

  #violation(code: ErrorCode, reason: string, streamId = 0): Http2Violation {
    return { code, reason: `http2.${reason}`, streamId };
  }

  /** Section 3.4: a client's first frame is SETTINGS. */
  #notBeforeSettings(): Http2Violation | undefined {
    return this.#hasSettings ? undefined : this.#violation(errorCodes.PROTOCOL_ERROR, 'settings_missing');
  }

  #trailers(stream: ServerStream, received: Fields, endsStream: boolean): Http2Violation | undefined {
    if (stream.isRemoteClosed) return this.#violation(errorCodes.STREAM_CLOSED, 'headers_after_end', stream.id);
    if (!endsStream) return this.#violation(errorCodes.PROTOCOL_ERROR, 'trailers_without_end', stream.id);
    const problem = trailersProblem(received);
    if (problem !== undefined) return this.#violation(errorCodes.PROTOCOL_ERROR, problem, stream.id);
    return this.#endRequest(stream, received);
  }

  #endRequest(stream: ServerStream, trailers: Fields): Http2Violation | undefined {
    if (stream.contentLength >= 0 && stream.contentLength !== stream.contentReceived)
      return this.#violation(errorCodes.PROTOCOL_ERROR, 'content_length_differs', stream.id);
    stream.isRemoteClosed = true;
    this.#server.onRequestEnd(stream, trailers);
    if (stream.isLocalClosed) this.#forget(stream);
    return undefined;
  }

  /** A stream that does not come to be. */
  #refuse(streamId: number, code: ErrorCode, reason: string): Http2Violation {
    this.#remember(streamId);
    return this.#violation(code, reason, streamId);
  }

  #endStream(found: Http2Violation): void {
    this.#server.onViolation(found);
    this.#frames.reset(found.streamId, found.code);
    const stream = this.#streams.get(found.streamId);
    if (stream === undefined) return;
    this.#forget(stream);
    this.#server.onReset(stream, found.code);
    this.#endWhenIdle();
  }

  #fail(found: Http2Violation): void {
    this.#server.onViolation(found);
    this.#frames.goAway(this.#lastStreamId, found.code);
    this.#flush();
    this.#writer.end();
    this.closed();
  }

  #forget(stream: ServerStream): void {
    this.#streams.delete(stream.id);
    this.#sending.delete(stream);
    stream.pending.length = 0;
    stream.pendingBytes = 0;
    stream.isLocalClosed = true;
    stream.isRemoteClosed = true;
    this.#remember(stream.id);
  }

  #remember(streamId: number): void {
    this.#ended.add(streamId);
    if (this.#ended.size > rememberedStreams) this.#ended.delete(this.#ended.values().next().value!);
  }

  #closeLocal(stream: ServerStream): void {
    stream.isLocalClosed = true;
    this.#sending.delete(stream);
    if (stream.isRemoteClosed) {
      this.#forget(stream);
      this.#endWhenIdle();
    }
  }

  #endWhenIdle(): void {
    if (!this.#isDraining || this.#streams.size > 0 || this.#isClosed) return;
    this.#flush();
    this.#writer.end();
    this.#isClosed = true;
  }

  #mayGoOn(stream: ServerStream): void {
    if (stream.pendingBytes > 0 && stream.sendWindow > 0) this.#sending.add(stream);
  }

  #announce(bytes: number): void {
    this.#unannounced += bytes;
    if (this.#unannounced * 2 < this.#settings.connectionWindowBytes) return;
    this.#frames.windowUpdate(0, this.#unannounced);
    this.#receiveWindow += this.#unannounced;
    this.#unannounced = 0;
  }

  #flushSoon(): void {
    if (this.#isReading || this.#isFlushPlanned) return;
    this.#isFlushPlanned = true;
    queueMicrotask(() => this.#flush());
  }

  /** Writes everything that the windows allow, in one piece. */
  #flush(): void {
    this.#isFlushPlanned = false;
    if (this.#isClosed) return;
    const drained = this.#fillFrames();
    const bytes = this.#frames.take();
    if (bytes !== undefined) this.#writer.write(bytes);
    for (const stream of drained) this.#server.onDrain(stream);
  }

  /** A frame of each stream in turn, until windows or content are used up. Returns the streams that have nothing left. */
  #fillFrames(): ServerStream[] {
    const drained: ServerStream[] = [];
    while (this.#sending.size > 0) {
      let hasSent = false;
      for (const stream of this.#sending) {
        if (stream.pendingBytes === 0) {
          this.#sending.delete(stream);
          if (stream.ending !== undefined) this.#finish(stream, stream.ending);
          else drained.push(stream);
          hasSent = true;
          continue;
        }
        const room = Math.min(this.#sendWindow, stream.sendWindow, this.#frames.maxFrameBytes);
        if (room <= 0) {
          this.#sending.delete(stream);
          continue;
        }
        this.#writeData(stream, Math.min(room, stream.pendingBytes));
        hasSent = true;
      }
      if (!hasSent) break;
    }
    return drained;
  }

  #finish(stream: ServerStream, trailers: Fields): void {
    if (trailers.length > 0) this.#frames.headers(stream.id, trailers, true);
    else this.#frames.data(stream.id, stream.pending, 0, true);
    this.#closeLocal(stream);
  }

  #writeData(stream: ServerStream, length: number): void {
    stream.sendWindow -= length;
    this.#sendWindow -= length;
    stream.pendingBytes -= length;
    const isLast = stream.pendingBytes === 0 && stream.ending?.length === 0;
    this.#frames.data(stream.id, stream.pending, length, isLast);
    if (isLast) this.#closeLocal(stream);
  }

  #sendSettings(): void {
    const { maxConcurrentStreams, streamWindowBytes, connectionWindowBytes, maxHeaderListBytes } = this.#settings;
    const entries = [
      [settingIds.maxConcurrentStreams, maxConcurrentStreams],
      [settingIds.initialWindowSize, streamWindowBytes],
      [settingIds.maxHeaderListSize, maxHeaderListBytes],
    ] as const;
    this.#frames.settings(entries);
    if (connectionWindowBytes > defaultWindowBytes) this.#frames.windowUpdate(0, connectionWindowBytes - defaultWindowBytes);
    this.#flushSoon();
  }
}
