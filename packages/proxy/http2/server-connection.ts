import { coarseNow } from '@mizzen/common';
import type { RequestHead } from '../message/request-head.ts';
import type { ResponseHead } from '../message/response-head.ts';
import { Http2Connection } from './connection.ts';
import { errorCodes, type Http2Violation } from './error-codes.ts';
import type { ByteWriter } from './frame-writer.ts';
import { connectionPreface, settingIds } from './frames.ts';
import { RequestFields, tooLarge } from './received-fields.ts';
import type { Http2Settings } from './settings.ts';
import { Http2Stream, type StreamHandler } from './stream.ts';

/** Who serves the streams of a connection. */
export interface StreamServer {
  /** A request has begun; who handles the stream from now on. */
  onRequest(stream: Http2Stream, head: RequestHead, endsStream: boolean): StreamHandler;
  onViolation(violation: Http2Violation): void;
  /** The connection is over: it has been drained, or it has failed. */
  onEnd(): void;
}

/** Section 6.8: a client is told first that there will be an end, and after this time, or its sign of life, which stream was the last. */
const drainNoticeMs = 1_000;

/** The server's side of an HTTP/2 connection. */
export class Http2ServerConnection extends Http2Connection {
  readonly #server: StreamServer;
  readonly #request: RequestFields;
  #prefaceRead: number;
  #drainStartedAt: number;
  #isLastKnown: boolean;

  constructor(settings: Http2Settings, writer: ByteWriter, server: StreamServer) {
    super(settings, writer);
    this.#server = server;
    this.#request = new RequestFields(settings.headLimits);
    this.#prefaceRead = 0;
    this.#drainStartedAt = 0;
    this.#isLastKnown = false;
    this.sendOwnSettings([
      [settingIds.maxConcurrentStreams, settings.maxConcurrentStreams],
      [settingIds.enableConnectProtocol, 1],
    ]);
  }

  get isDraining(): boolean {
    return this.#drainStartedAt > 0;
  }

  /** No new streams soon; those under way end in their time (section 6.8). The connection ends with the last. */
  drain(): void {
    if (this.isDraining || this.isClosed) return;
    this.#drainStartedAt = performance.now();
    this.frames.goAway(0x7fff_ffff);
    this.ping();
    this.flushSoon();
  }

  /** The request of an upgrade from HTTP/1.1 (RFC 7540 section 3.2), which is stream 1. `settings`: the payload of HTTP2-Settings. */
  adoptUpgrade(head: RequestHead, settings: Buffer): Http2Violation | undefined {
    // That they have been taken is said by 101 already, not by an acknowledgement.
    const found = this.applySettings(settings);
    if (found !== undefined) return found;
    this.counters.streamOpened();
    this.lastStreamId = 1;
    this.#open(1, head, true);
    return undefined;
  }

  override sweep(now: number): void {
    super.sweep(now);
    if (this.isDraining && !this.#isLastKnown && now - this.#drainStartedAt > drainNoticeMs) this.onPingAck();
  }

  /** Sends a final or, with a status below 200, an interim head. `more` are fields beside those of the head. */
  respond(stream: Http2Stream, head: ResponseHead, serviceTimeMs: number, endsStream: boolean): void {
    if (stream.isLocalClosed || this.isClosed) return;
    const encoder = this.frames.beginHeaders();
    const { headers } = head;
    const { names } = headers;
    encoder.add(':status', statusTexts[head.status] ?? String(head.status));
    for (let i = 0; i < names.length; i++) encoder.add(names[i]!, headers.valueAt(i));
    if (head.status >= 200) {
      if (serviceTimeMs >= 0) encoder.add('x-envoy-upstream-service-time', String(serviceTimeMs));
      if (!headers.has('server')) encoder.add('server', 'mizzen');
    }
    this.frames.endHeaders(stream.id, endsStream);
    stream.lastActivity = coarseNow();
    if (endsStream) this.closeLocal(stream);
    this.flushSoon();
  }

  onHeaders(streamId: number, source: Buffer, start: number, end: number, endsStream: boolean, dependsOn: number): Http2Violation | undefined {
    const early = this.notBeforeSettings();
    if (early !== undefined) return early;
    if (this.streams.size > 0) {
      const known = this.streams.get(streamId);
      if (known !== undefined) return this.readTrailers(known, source, start, end, endsStream);
    }
    this.#request.begin();
    const failure = this.decode(source, start, end, this.#request);
    if (failure !== undefined) return failure;
    if ((streamId & 1) === 0) return this.violation(errorCodes.PROTOCOL_ERROR, 'even_stream_id');
    if (this.wasCut(streamId)) return undefined;
    if (this.wasOpen(streamId)) return this.violation(errorCodes.STREAM_CLOSED, 'headers_on_closed_stream');
    if (streamId <= this.lastStreamId) return this.violation(errorCodes.PROTOCOL_ERROR, 'stream_id_not_increasing');
    this.lastStreamId = streamId;
    if (this.#isLastKnown) return void this.cut(streamId); // the client will learn that nobody has looked at it
    this.counters.streamOpened();
    if (dependsOn === streamId) return this.#refuse(streamId, errorCodes.PROTOCOL_ERROR, 'depends_on_itself');
    if (this.streams.size >= this.settings.maxConcurrentStreams) return this.#refuse(streamId, errorCodes.REFUSED_STREAM, 'too_many_streams');
    const head = this.#request.finish(endsStream);
    if (typeof head === 'string') {
      if (head !== tooLarge) return this.#refuse(streamId, errorCodes.PROTOCOL_ERROR, head);
      this.frames.fields(streamId, tooLargeAnswer, true);
      return this.#refuse(streamId, errorCodes.NO_ERROR, head);
    }
    this.#open(streamId, head, endsStream);
    return undefined;
  }

  onGoAway(): Http2Violation | undefined {
    // A client that accepts no pushed streams sends one at most; its open requests are still served.
    return this.control('goaway');
  }

  protected readBytes(chunk: Buffer): Http2Violation | undefined {
    let at = 0;
    while (this.#prefaceRead < connectionPreface.length) {
      if (at === chunk.length) return undefined;
      if (chunk[at++] !== connectionPreface[this.#prefaceRead++]) return this.violation(errorCodes.PROTOCOL_ERROR, 'no_preface');
    }
    return at === chunk.length ? undefined : this.readFrames(at === 0 ? chunk : chunk.subarray(at));
  }

  protected report(found: Http2Violation): void {
    this.#server.onViolation(found);
  }

  protected onSetting(id: number, value: number): Http2Violation | undefined {
    if (id === settingIds.enablePush && value > 1) return this.violation(errorCodes.PROTOCOL_ERROR, 'setting_enable_push');
    return undefined;
  }

  protected onPeerReset(stream: Http2Stream): Http2Violation | undefined {
    const flood = this.counters.streamReset(this.lastReadAt - stream.openedAt);
    return flood === undefined ? undefined : this.enough(flood);
  }

  protected dataOnEndedStream(streamId: number): Http2Violation | undefined {
    return this.violation(errorCodes.STREAM_CLOSED, 'data_on_closed_stream', streamId);
  }

  protected onLocalEnd(stream: Http2Stream): void {
    // Answered before the request was complete, by somebody who does not want the rest (section 8.1).
    if (stream.handler === undefined) this.resetStream(stream, errorCodes.NO_ERROR);
  }

  protected onIdle(): void {
    if (this.#isLastKnown && this.streams.size === 0) this.end('drained');
  }

  override closed(reason?: string): void {
    if (this.isClosed) return;
    super.closed(reason);
    this.#server.onEnd();
  }

  protected onPingAck(): void {
    if (!this.isDraining || this.#isLastKnown) return;
    this.#isLastKnown = true;
    this.frames.goAway(this.lastStreamId);
    this.flushSoon();
    this.onIdle();
  }

  #open(streamId: number, head: RequestHead, endsStream: boolean): void {
    const stream = new Http2Stream(this, streamId, this.peerStreamWindow, this.settings.streamWindowBytes, this.lastReadAt);
    stream.contentLength = head.contentLength;
    stream.isRemoteClosed = endsStream;
    this.streams.add(stream);
    stream.handler = this.#server.onRequest(stream, head, endsStream);
  }

  /** A stream that does not come to be. */
  #refuse(streamId: number, code: Http2Violation['code'], reason: string): Http2Violation {
    this.remember(streamId);
    return this.violation(code, reason, streamId);
  }
}

const tooLargeAnswer = [
  [':status', '431'],
  ['content-length', '0'],
  ['server', 'mizzen'],
] as const;

const statusTexts: readonly string[] = Array.from({ length: 600 }, (_, status) => String(status));
