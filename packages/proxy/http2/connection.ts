// Longer than other files: the state machine of a connection (RFC 9113 sections 3 to 6), which client and server extend.

import { coarseNow } from '@mizzen/common';
import { type Fields, noFields, verifiedTrailers } from '../message/fields.ts';
import { pushSlice } from '../message/kept-slices.ts';
import { type Flushable, flushAtTurnEnd } from '../net/turn-end.ts';
import { DefenceCounters } from './defence-counters.ts';
import { type ErrorCode, errorCodes, type Http2Violation } from './error-codes.ts';
import { FrameReader, type FrameSink } from './frame-reader.ts';
import { type ByteWriter, FrameWriter } from './frame-writer.ts';
import { defaultMaxFrameBytes, defaultWindowBytes, maxWindowBytes, settingIds } from './frames.ts';
import { type FieldSink, HpackDecoder } from './hpack/decoder.ts';
import { TrailerFields } from './received-fields.ts';
import { RecentStreams } from './recent-streams.ts';
import type { Http2Settings } from './settings.ts';
import { type Http2Stream, noBuffers } from './stream.ts';
import { StreamTable } from './stream-table.ts';

/** A stream that was held back may be written again from here on. */
const lowWaterBytes = 16 * 1024;
/** SETTINGS that are not acknowledged for this long will not be. */
const settingsTimeoutMs = 15_000;

/**
 * What both sides of an HTTP/2 connection have in common (RFC 9113): a state machine over bytes, which knows no sockets. Many frames of one
 * read are handled before what they lead to is written, in one piece, at the end of the turn of the event loop. Longer than other files,
 * since windows, streams and frames change each other, and read best in one place.
 */
export abstract class Http2Connection implements FrameSink, Flushable {
  protected readonly settings: Http2Settings;
  protected readonly frames: FrameWriter;
  protected readonly streams: StreamTable;
  /** The largest identifier of the streams that the peer has opened (server), or that we have (client). */
  protected lastStreamId: number;
  /** SETTINGS_INITIAL_WINDOW_SIZE of the peer. */
  protected peerStreamWindow: number;
  /** performance.now() of the last bytes that were read. */
  lastReadAt: number;
  /** When a header block began that has not ended yet; 0: there is none. */
  partialSince: number;
  /** Round trip time by the last PING, in milliseconds; -1: none was measured. */
  rttMs: number;
  readonly #writer: ByteWriter;
  readonly #reader: FrameReader;
  readonly #decoder: HpackDecoder;
  readonly #trailers: TrailerFields;
  readonly #ended: RecentStreams;
  readonly #cut: RecentStreams;
  /** Streams with something to send and a window to send it; served in turn. Those with `isQueued` are in it. */
  #sending: Http2Stream[];
  #isFlushPlanned: boolean;
  #hasSettings: boolean;
  /** When our SETTINGS were sent; 0: they have been acknowledged. */
  #settingsSentAt: number;
  #pingSentAt: number;
  #sendWindow: number;
  #receiveWindow: number;
  #unannounced: number;
  #isClosed: boolean;
  protected readonly counters: DefenceCounters;

  constructor(settings: Http2Settings, writer: ByteWriter) {
    const now = performance.now();
    this.settings = settings;
    this.frames = new FrameWriter(writer);
    this.streams = new StreamTable();
    this.lastStreamId = 0;
    this.peerStreamWindow = defaultWindowBytes;
    this.lastReadAt = now;
    this.partialSince = 0;
    this.rttMs = -1;
    this.#writer = writer;
    this.#reader = new FrameReader(
      { maxHeaderBlockBytes: 2 * settings.headLimits.maxHeadBytes, maxContinuations: settings.defences.maxContinuations },
      this,
      (found) => this.endStream(found),
    );
    this.#decoder = new HpackDecoder(settings.headerTableBytes);
    this.#trailers = new TrailerFields(settings.headLimits);
    this.#ended = new RecentStreams();
    this.#cut = new RecentStreams();
    this.#sending = [];
    this.#isFlushPlanned = false;
    this.#hasSettings = false;
    this.#settingsSentAt = now;
    this.#pingSentAt = 0;
    this.#sendWindow = defaultWindowBytes;
    this.#receiveWindow = settings.connectionWindowBytes;
    this.#unannounced = 0;
    this.#isClosed = false;
    this.counters = new DefenceCounters(settings.defences, now);
  }

  get streamCount(): number {
    return this.streams.size;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  get hasSettings(): boolean {
    return this.#hasSettings;
  }

  openStreams(): Iterable<Http2Stream> {
    return this.streams;
  }

  /** Reads what came from the peer. */
  read(chunk: Buffer): void {
    if (this.#isClosed) return;
    this.lastReadAt = performance.now();
    const failure = this.readBytes(chunk);
    this.partialSince = this.#reader.isInHeaderBlock ? this.partialSince || this.lastReadAt : 0;
    if (failure !== undefined) this.fail(failure);
    else if (this.frames.bufferedBytes > 0) this.flushSoon();
  }

  /** The connection is gone. */
  closed(reason = 'connection_closed'): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const stream of this.streams) {
      this.forget(stream);
      stream.handler?.onStreamReset({ code: errorCodes.CANCEL, by: 'connection', reason });
    }
  }

  /** The socket has taken what was written. */
  onWritable(): void {
    if (!this.#isClosed) this.flush();
  }

  /** The connection closes, and its streams with it. */
  flushFailed(): void {
    this.closed('internal_error');
    this.#writer.end();
  }

  /** Writes what windows and the socket allow. */
  flush(): void {
    this.#isFlushPlanned = false;
    if (this.#isClosed) return;
    if (this.#sending.length > 0) this.#pump();
    if (this.#isClosed) return;
    this.frames.flush();
  }

  /** Looks after keepalive; `now` in the milliseconds of performance.now(). */
  sweep(now: number): void {
    if (this.#isClosed) return;
    const { keepaliveIntervalMs, keepaliveTimeoutMs } = this.settings;
    if (this.#settingsSentAt > 0 && now - this.#settingsSentAt > settingsTimeoutMs && this.#hasSettings)
      return this.fail(this.violation(errorCodes.SETTINGS_TIMEOUT, 'settings_timeout'));
    if (keepaliveIntervalMs === 0) return;
    if (this.#pingSentAt > 0) {
      if (now - this.#pingSentAt > keepaliveTimeoutMs) this.fail(this.violation(errorCodes.NO_ERROR, 'keepalive_timeout'));
    } else if (now - this.lastReadAt > keepaliveIntervalMs) this.ping();
  }

  /** Asks for a sign of life, which also measures the round trip. */
  ping(): void {
    if (this.#pingSentAt > 0) return;
    this.#pingSentAt = performance.now();
    this.frames.ping(pingPayload, false);
    this.flushSoon();
  }

  // ---- what streams send ----

  sendData(stream: Http2Stream, bytes: Buffer): void {
    if (stream.isLocalClosed || stream.ending !== undefined || this.#isClosed || bytes.length === 0) return;
    let at = 0;
    if (stream.pendingBytes === 0) {
      while (at < bytes.length && !this.#writer.isFull) {
        const length = Math.min(bytes.length - at, this.#sendWindow, stream.sendWindow, defaultMaxFrameBytes);
        if (length <= 0) break;
        stream.sendWindow -= length;
        this.#sendWindow -= length;
        this.frames.data(stream.id, bytes, at, at + length);
        at += length;
      }
    }
    if (at < bytes.length) {
      if (stream.pending === noBuffers) stream.pending = [];
      pushSlice(stream.pending, Buffer.from(bytes.subarray(at)));
      stream.pendingBytes += bytes.length - at;
      this.#mayGoOn(stream);
    }
    stream.lastActivity = coarseNow();
    this.flushSoon();
  }

  sendEnd(stream: Http2Stream, trailers: Fields): void {
    if (stream.isLocalClosed || stream.ending !== undefined || this.#isClosed) return;
    if (stream.pendingBytes > 0) stream.ending = trailers;
    else this.#finish(stream, trailers);
    this.flushSoon();
  }

  resetStream(stream: Http2Stream, code: ErrorCode): void {
    if (!this.streams.has(stream.id) || this.#isClosed) return;
    this.frames.reset(stream.id, code);
    this.cut(stream.id);
    this.forget(stream);
    this.onIdle();
    this.flushSoon();
  }

  consumed(stream: Http2Stream, bytes: number): void {
    // A stream that is over has given back everything already.
    const counted = Math.min(bytes, stream.unconsumed);
    if (this.#isClosed || counted === 0) return;
    this.#announce(counted);
    stream.unannounced += counted;
    stream.unconsumed -= counted;
    if (!stream.isRemoteClosed && stream.unannounced * 2 >= this.settings.streamWindowBytes) {
      this.frames.windowUpdate(stream.id, stream.unannounced);
      stream.receiveWindow += stream.unannounced;
      stream.unannounced = 0;
    }
    if (this.frames.bufferedBytes > 0) this.flushSoon();
  }

  // ---- what the frames say ----

  onData(streamId: number, chunk: Buffer, start: number, end: number): Http2Violation | undefined {
    const stream = this.streams.get(streamId);
    if (stream === undefined || stream.isRemoteClosed || start === end) return undefined;
    const length = end - start;
    stream.contentReceived += length;
    if (stream.contentLength >= 0 && stream.contentReceived > stream.contentLength)
      return this.violation(errorCodes.PROTOCOL_ERROR, 'content_length_differs', streamId);
    // What a peer sends beyond its windows is not looked at, even before the frame is complete.
    if (stream.unconsumed + length > this.settings.streamWindowBytes) return this.violation(errorCodes.FLOW_CONTROL_ERROR, 'stream_window_exceeded', streamId);
    stream.unconsumed += length;
    stream.lastActivity = this.lastReadAt;
    stream.handler?.onStreamData(chunk.subarray(start, end));
    return undefined;
  }

  onDataEnd(streamId: number, flowBytes: number, paddingBytes: number, endsStream: boolean): Http2Violation | undefined {
    const early = this.notBeforeSettings();
    if (early !== undefined) return early;
    this.#receiveWindow -= flowBytes;
    if (this.#receiveWindow < 0) return this.violation(errorCodes.FLOW_CONTROL_ERROR, 'connection_window_exceeded');
    const stream = this.streams.get(streamId);
    if (stream === undefined) {
      // Nobody will use it up: the connection's window is given back at once.
      this.#announce(flowBytes);
      if (streamId > this.lastStreamId) return this.violation(errorCodes.PROTOCOL_ERROR, 'data_on_idle_stream');
      return this.wasCut(streamId) ? undefined : this.dataOnEndedStream(streamId);
    }
    if (stream.isRemoteClosed) {
      this.#announce(flowBytes);
      return this.violation(errorCodes.STREAM_CLOSED, 'data_after_end', streamId);
    }
    if (flowBytes === 0 && !endsStream) {
      const flood = this.counters.emptyData();
      if (flood !== undefined) return this.enough(flood);
    } else this.counters.contentReceived();
    stream.receiveWindow -= flowBytes;
    if (stream.receiveWindow < 0) return this.violation(errorCodes.FLOW_CONTROL_ERROR, 'stream_window_exceeded', streamId);
    if (paddingBytes > 0) {
      stream.unconsumed += paddingBytes;
      this.consumed(stream, paddingBytes);
    }
    return endsStream ? this.endRemote(stream, noFields) : undefined;
  }

  abstract onHeaders(streamId: number, source: Buffer, start: number, end: number, endsStream: boolean, dependsOn: number): Http2Violation | undefined;

  onPriority(streamId: number, dependsOn: number): Http2Violation | undefined {
    const early = this.notBeforeSettings();
    if (early !== undefined) return early;
    const flood = this.counters.priority();
    if (flood !== undefined) return this.enough(flood);
    // Priorities are deprecated and not acted upon (section 5.3.2); what contradicts itself is refused all the same.
    return dependsOn === streamId ? this.violation(errorCodes.PROTOCOL_ERROR, 'depends_on_itself', streamId) : undefined;
  }

  onRstStream(streamId: number, code: number): Http2Violation | undefined {
    if (streamId > this.lastStreamId || (streamId & 1) === 0) return this.violation(errorCodes.PROTOCOL_ERROR, 'reset_of_idle_stream');
    const stream = this.streams.get(streamId);
    if (stream === undefined) return this.control('reset');
    this.forget(stream);
    const found = this.onPeerReset(stream);
    stream.handler?.onStreamReset({ code, by: 'peer', reason: 'reset_by_peer' });
    this.onIdle();
    return found;
  }

  onSettings(entries: Buffer): Http2Violation | undefined {
    this.#hasSettings = true;
    const flood = this.control('settings');
    if (flood !== undefined) return flood;
    const found = this.applySettings(entries);
    if (found !== undefined) return found;
    this.frames.settingsAck();
    return this.#queuedTooMuch();
  }

  onSettingsAck(): Http2Violation | undefined {
    this.#settingsSentAt = 0;
    return this.notBeforeSettings();
  }

  onPing(payload: Buffer, isAck: boolean): Http2Violation | undefined {
    const early = this.notBeforeSettings();
    if (early !== undefined) return early;
    if (isAck) {
      if (this.#pingSentAt > 0) this.rttMs = this.lastReadAt - this.#pingSentAt;
      this.#pingSentAt = 0;
      this.onPingAck();
      return undefined;
    }
    const flood = this.control('ping');
    if (flood !== undefined) return flood;
    this.frames.ping(payload, true);
    return this.#queuedTooMuch();
  }

  abstract onGoAway(lastStreamId: number, code: number, debugData: Buffer): Http2Violation | undefined;

  onWindowUpdate(streamId: number, increment: number): Http2Violation | undefined {
    const flood = this.counters.windowUpdate(this.frames.dataFrames);
    if (flood !== undefined) return this.enough(flood);
    if (streamId === 0) {
      this.#sendWindow += increment;
      if (this.#sendWindow > maxWindowBytes) return this.violation(errorCodes.FLOW_CONTROL_ERROR, 'connection_window_overflow');
      for (const stream of this.streams) this.#mayGoOn(stream);
      return undefined;
    }
    if (streamId > this.lastStreamId) return this.violation(errorCodes.PROTOCOL_ERROR, 'window_update_on_idle_stream');
    const stream = this.streams.get(streamId);
    if (stream === undefined) return undefined;
    stream.sendWindow += increment;
    if (stream.sendWindow > maxWindowBytes) return this.violation(errorCodes.FLOW_CONTROL_ERROR, 'stream_window_overflow', streamId);
    this.#mayGoOn(stream);
    return undefined;
  }

  // ---- what the two sides do in their own way ----

  protected abstract readBytes(chunk: Buffer): Http2Violation | undefined;
  protected abstract report(found: Http2Violation): void;
  protected abstract onSetting(id: number, value: number): Http2Violation | undefined;
  /** The peer has ended a stream before its time. */
  protected abstract onPeerReset(stream: Http2Stream): Http2Violation | undefined;
  protected abstract dataOnEndedStream(streamId: number): Http2Violation | undefined;
  /** We have said all we had to say on a stream that is not over. */
  protected abstract onLocalEnd(stream: Http2Stream): void;
  /** A stream is over. */
  protected abstract onIdle(): void;
  protected abstract onPingAck(): void;

  // ---- for both ----

  protected readFrames(chunk: Buffer): Http2Violation | undefined {
    return this.#reader.read(chunk);
  }

  /** Whatever becomes of the stream, the block is decoded: the table is the connection's. */
  protected decode(source: Buffer, start: number, end: number, sink: FieldSink): Http2Violation | undefined {
    const failure = this.#decoder.decode(source, start, end, sink);
    return failure === undefined ? undefined : this.violation(errorCodes.COMPRESSION_ERROR, `hpack_${failure}`);
  }

  protected applySettings(entries: Buffer): Http2Violation | undefined {
    if (entries.length > 6 * this.settings.defences.maxSettingsEntries) return this.enough('too_many_settings');
    const windowBefore = this.peerStreamWindow;
    for (let at = 0; at < entries.length; at += 6) {
      const found = this.#onSetting(entries.readUInt16BE(at), entries.readUInt32BE(at + 2));
      if (found !== undefined) return found;
    }
    return this.#changeWindows(this.peerStreamWindow - windowBefore);
  }

  /** Once for a frame, whatever it says how often: only the last value holds when the frame has been read (section 6.5.3). */
  #changeWindows(change: number): Http2Violation | undefined {
    if (change === 0) return undefined;
    for (const stream of this.streams) {
      stream.sendWindow += change;
      if (stream.sendWindow > maxWindowBytes) return this.violation(errorCodes.FLOW_CONTROL_ERROR, 'setting_initial_window_size');
      this.#mayGoOn(stream);
    }
    return undefined;
  }

  protected readTrailers(stream: Http2Stream, source: Buffer, start: number, end: number, endsStream: boolean): Http2Violation | undefined {
    this.#trailers.begin();
    const failure = this.decode(source, start, end, this.#trailers);
    if (failure !== undefined) return failure;
    if (stream.isRemoteClosed) return this.violation(errorCodes.STREAM_CLOSED, 'headers_after_end', stream.id);
    if (!endsStream) return this.violation(errorCodes.PROTOCOL_ERROR, 'trailers_without_end', stream.id);
    const trailers = this.#trailers.finish();
    if (typeof trailers === 'string') return this.violation(errorCodes.PROTOCOL_ERROR, trailers, stream.id);
    return this.endRemote(stream, trailers);
  }

  protected endRemote(stream: Http2Stream, trailers: Fields): Http2Violation | undefined {
    if (stream.contentLength >= 0 && stream.contentLength !== stream.contentReceived)
      return this.violation(errorCodes.PROTOCOL_ERROR, 'content_length_differs', stream.id);
    stream.isRemoteClosed = true;
    stream.lastActivity = this.lastReadAt;
    const isOver = stream.isLocalClosed;
    if (isOver) this.forget(stream);
    stream.handler?.onStreamEnd(trailers);
    if (isOver) this.onIdle();
    return undefined;
  }

  protected violation(code: ErrorCode, reason: string, streamId = 0): Http2Violation {
    return { code, reason: `http2.${reason}`, streamId };
  }

  /** The peer has done too much of something. */
  protected enough(reason: string): Http2Violation {
    return this.violation(errorCodes.ENHANCE_YOUR_CALM, reason);
  }

  /** Section 3.4: a peer's first frame is SETTINGS. */
  protected notBeforeSettings(): Http2Violation | undefined {
    return this.#hasSettings ? undefined : this.violation(errorCodes.PROTOCOL_ERROR, 'settings_missing');
  }

  /** We have ended the stream before its time: what still comes was on its way (section 5.1, closed). */
  protected wasCut(streamId: number): boolean {
    return this.#cut.has(streamId);
  }

  protected wasOpen(streamId: number): boolean {
    return this.#ended.has(streamId);
  }

  /** A stream ends by what its peer did; the connection goes on. */
  protected endStream(found: Http2Violation): void {
    this.report(found);
    this.frames.reset(found.streamId, found.code);
    this.cut(found.streamId);
    const stream = this.streams.get(found.streamId);
    if (stream === undefined) return;
    this.forget(stream);
    const flood = this.onPeerReset(stream);
    stream.handler?.onStreamReset({ code: found.code, by: 'violation', reason: found.reason });
    if (flood !== undefined) this.fail(flood);
    else this.onIdle();
  }

  /** The connection ends: GOAWAY says why (section 5.4.1). */
  protected fail(found: Http2Violation): void {
    if (this.#isClosed) return;
    this.report(found);
    this.frames.goAway(this.lastStreamId, found.code, found.reason);
    this.end(found.reason);
  }

  /** What was written still goes out. */
  protected end(reason: string): void {
    if (this.#isClosed) return;
    this.frames.flush();
    this.#writer.end();
    this.closed(reason);
  }

  protected forget(stream: Http2Stream): void {
    this.streams.delete(stream.id);
    // What came and was never used up has no one left to use it up.
    if (stream.unconsumed > 0) this.#announce(stream.unconsumed);
    stream.unconsumed = 0;
    stream.pending = noBuffers;
    stream.pendingBytes = 0;
    stream.isLocalClosed = true;
    stream.isRemoteClosed = true;
    this.remember(stream.id);
  }

  protected remember(streamId: number): void {
    this.#ended.add(streamId);
  }

  protected cut(streamId: number): void {
    this.#cut.add(streamId);
  }

  protected closeLocal(stream: Http2Stream): void {
    stream.isLocalClosed = true;
    if (stream.isRemoteClosed) {
      this.forget(stream);
      this.onIdle();
    } else this.onLocalEnd(stream);
  }

  protected flushSoon(): void {
    if (this.#isFlushPlanned) return;
    this.#isFlushPlanned = true;
    flushAtTurnEnd(this);
  }

  protected sendOwnSettings(entries: readonly (readonly [id: number, value: number])[]): void {
    const { streamWindowBytes, connectionWindowBytes, headerTableBytes, headLimits } = this.settings;
    this.frames.settings([
      [settingIds.initialWindowSize, streamWindowBytes],
      [settingIds.maxHeaderListSize, headLimits.maxHeadBytes],
      ...(headerTableBytes === 4096 ? [] : ([[settingIds.headerTableSize, headerTableBytes]] as const)),
      ...entries,
    ]);
    if (connectionWindowBytes > defaultWindowBytes) this.frames.windowUpdate(0, connectionWindowBytes - defaultWindowBytes);
    this.flushSoon();
  }

  // ---- inside ----

  #onSetting(id: number, value: number): Http2Violation | undefined {
    switch (id) {
      case settingIds.headerTableSize:
        this.frames.setHeaderTableLimit(value);
        return undefined;
      case settingIds.initialWindowSize: {
        if (value > maxWindowBytes) return this.violation(errorCodes.FLOW_CONTROL_ERROR, 'setting_initial_window_size');
        this.peerStreamWindow = value;
        return undefined;
      }
      case settingIds.maxFrameSize:
        if (value < defaultMaxFrameBytes || value > 0xff_ffff) return this.violation(errorCodes.PROTOCOL_ERROR, 'setting_max_frame_size');
        return undefined;
      default:
        return this.onSetting(id, value);
    }
  }

  protected control(kind: 'settings' | 'ping' | 'reset' | 'goaway'): Http2Violation | undefined {
    const flood = this.counters.control(kind, this.lastReadAt);
    return flood === undefined ? undefined : this.enough(flood);
  }

  #queuedTooMuch(): Http2Violation | undefined {
    const flood = this.counters.queuedAnswers(this.frames.controlFrames);
    return flood === undefined ? undefined : this.enough(flood);
  }

  #announce(bytes: number): void {
    this.#unannounced += bytes;
    if (this.#unannounced * 2 < this.settings.connectionWindowBytes) return;
    this.frames.windowUpdate(0, this.#unannounced);
    this.#receiveWindow += this.#unannounced;
    this.#unannounced = 0;
  }

  #mayGoOn(stream: Http2Stream): void {
    if (stream.pendingBytes > 0 && stream.sendWindow > 0 && this.#sendWindow > 0 && !stream.isQueued) {
      stream.isQueued = true;
      this.#sending.push(stream);
      this.flushSoon();
    }
  }

  /** A frame of each stream in turn, until windows, content or the socket's patience are used up. */
  #pump(): void {
    const relieved: Http2Stream[] = [];
    while (this.#sending.length > 0 && this.#sendWindow > 0 && !this.#writer.isFull) {
      const round = this.#sending;
      this.#sending = [];
      for (const stream of round) {
        stream.isQueued = false;
        if (this.#sendWindow > 0 && !this.#writer.isFull) this.#sendOneFrame(stream, relieved);
        this.#mayGoOn(stream);
      }
    }
    for (const stream of relieved) if (!stream.isLocalClosed) stream.handler?.onStreamDrain();
  }

  #sendOneFrame(stream: Http2Stream, relieved: Http2Stream[]): void {
    const length = Math.min(this.#sendWindow, stream.sendWindow, defaultMaxFrameBytes, stream.pendingBytes);
    if (length > 0) this.#writePending(stream, length);
    if (stream.isHeldBack && stream.pendingBytes < lowWaterBytes) {
      stream.isHeldBack = false;
      relieved.push(stream);
    }
    if (stream.pendingBytes === 0 && stream.ending !== undefined && !stream.isLocalClosed) this.#finish(stream, stream.ending);
  }

  #writePending(stream: Http2Stream, length: number): void {
    const first = stream.pending[0]!;
    const taken = Math.min(length, first.length);
    this.frames.data(stream.id, first, 0, taken);
    if (taken === first.length) stream.pending.shift();
    else stream.pending[0] = first.subarray(taken);
    stream.sendWindow -= taken;
    this.#sendWindow -= taken;
    stream.pendingBytes -= taken;
    stream.lastActivity = coarseNow();
  }

  #finish(stream: Http2Stream, trailers: Fields): void {
    const verified = verifiedTrailers(trailers);
    if (verified.length > 0) this.frames.fields(stream.id, verified, true);
    else this.frames.endData(stream.id);
    this.closeLocal(stream);
  }
}

const pingPayload = Buffer.from('mizzen\0\0', 'latin1');
