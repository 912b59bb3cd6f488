import type { Fields } from '../message/fields.ts';
import { verifiedTarget } from '../message/header-bytes.ts';
import type { RequestHead } from '../message/request-head.ts';
import type { ResponseHead } from '../message/response-head.ts';
import { Http2Connection } from './connection.ts';
import { errorCodes, type Http2Violation } from './error-codes.ts';
import type { ByteWriter } from './frame-writer.ts';
import { connectionPreface, settingIds } from './frames.ts';
import { ResponseFields } from './received-fields.ts';
import type { Http2Settings } from './settings.ts';
import { Http2Stream, type StreamHandler } from './stream.ts';

/** Who has asked and hears the answer. */
export interface ResponseHandler extends StreamHandler {
  /** HEAD: the answer has no content whatever its head says. */
  readonly isHeadRequest: boolean;
  onStreamInformational(head: ResponseHead): void;
  onStreamHead(head: ResponseHead, endsStream: boolean): void;
}

/** Who has opened a connection. */
export interface ConnectionOwner {
  onViolation(violation: Http2Violation): void;
  /** There may be room for another stream, or there will be none any more: see `freeStreams`. */
  onChange(): void;
  onEnd(reason: string): void;
}

/** Streams on a connection whose server has not said yet how many it takes: what RFC 9113 section 6.5.2 recommends it to take at least. */
const assumedStreams = 100;
const maxStreamId = 0x7fff_ffff;

/** The client's side of an HTTP/2 connection. */
export class Http2ClientConnection extends Http2Connection {
  readonly #owner: ConnectionOwner;
  readonly #response: ResponseFields;
  #nextStreamId: number;
  #peerMaxStreams: number;
  /** The server answers no streams beyond this one. */
  #isGoingAway: boolean;
  /** RFC 8441: the server takes extended CONNECT. */
  takesExtendedConnect: boolean;

  constructor(settings: Http2Settings, writer: ByteWriter, owner: ConnectionOwner) {
    super(settings, writer);
    this.#owner = owner;
    this.#response = new ResponseFields(settings.headLimits);
    this.#nextStreamId = 1;
    this.#peerMaxStreams = assumedStreams;
    this.#isGoingAway = false;
    this.takesExtendedConnect = false;
    this.frames.raw(connectionPreface);
    this.sendOwnSettings([[settingIds.enablePush, 0]]);
  }

  /** How many more streams may be opened now. */
  get freeStreams(): number {
    if (this.#isGoingAway || this.isClosed) return 0;
    return Math.min(this.#peerMaxStreams, this.settings.maxConcurrentStreams) - this.streams.size;
  }

  /** Opens a stream. The caller has seen that there is one free. `more` are fields beside those of the head. */
  request(head: RequestHead, scheme: string, more: Fields, endsStream: boolean, handler: ResponseHandler): Http2Stream {
    const id = this.#nextStreamId;
    this.#nextStreamId += 2;
    if (this.#nextStreamId > maxStreamId) this.#isGoingAway = true; // its numbers are used up: another connection is next
    this.lastStreamId = id;
    this.counters.streamOpened();
    const stream = new Http2Stream(this, id, this.peerStreamWindow, this.settings.streamWindowBytes, performance.now());
    stream.handler = handler;
    this.streams.add(stream);
    const encoder = this.frames.beginHeaders();
    const isUpgrade = head.upgrade !== '';
    encoder.add(':method', isUpgrade ? 'CONNECT' : head.method);
    if (head.method !== 'CONNECT') {
      encoder.add(':scheme', scheme);
      encoder.add(':path', verifiedTarget(head.target));
    }
    encoder.add(':authority', verifiedTarget(head.authority));
    if (isUpgrade) encoder.add(':protocol', head.upgrade);
    const { names } = head.headers;
    for (let i = 0; i < names.length; i++) {
      const name = names[i]!;
      // `host` is `:authority` here; the key of RFC 6455 has no meaning in an extended CONNECT (RFC 8441 section 5).
      if (name !== 'host' && (!isUpgrade || name !== 'sec-websocket-key')) encoder.add(name, head.headers.valueAt(i));
    }
    for (const [name, value] of more) encoder.add(name, value);
    this.frames.endHeaders(id, endsStream);
    if (endsStream) stream.isLocalClosed = true;
    this.flushSoon();
    return stream;
  }

  onHeaders(streamId: number, source: Buffer, start: number, end: number, endsStream: boolean): Http2Violation | undefined {
    const early = this.notBeforeSettings();
    if (early !== undefined) return early;
    const stream = this.streams.get(streamId);
    if (stream?.hasHead === true) return this.readTrailers(stream, source, start, end, endsStream);
    this.#response.begin();
    const failure = this.decode(source, start, end, this.#response);
    if (failure !== undefined) return failure;
    if ((streamId & 1) === 0 || streamId > this.lastStreamId) return this.violation(errorCodes.PROTOCOL_ERROR, 'headers_on_idle_stream');
    if (stream === undefined)
      return this.wasOpen(streamId) && !this.wasCut(streamId) ? this.violation(errorCodes.STREAM_CLOSED, 'headers_on_closed_stream') : undefined;
    if (stream.isRemoteClosed) return this.violation(errorCodes.STREAM_CLOSED, 'headers_after_end', streamId);
    const head = this.#response.finish();
    if (typeof head === 'string') return this.violation(errorCodes.PROTOCOL_ERROR, head, streamId);
    const handler = stream.handler as ResponseHandler;
    stream.lastActivity = this.lastReadAt;
    if (head.status < 200) {
      if (endsStream) return this.violation(errorCodes.PROTOCOL_ERROR, 'interim_response_ends_stream', streamId);
      handler.onStreamInformational(head);
      return undefined;
    }
    stream.hasHead = true;
    const hasNoContent = handler.isHeadRequest || head.status === 204 || head.status === 304;
    stream.contentLength = hasNoContent ? 0 : head.contentLength;
    if (!endsStream) {
      handler.onStreamHead(head, false);
      return undefined;
    }
    if (stream.contentLength > 0) return this.violation(errorCodes.PROTOCOL_ERROR, 'content_length_without_content', streamId);
    stream.isRemoteClosed = true;
    const isOver = stream.isLocalClosed;
    if (isOver) this.forget(stream);
    handler.onStreamHead(head, true);
    if (isOver) this.onIdle();
    return undefined;
  }

  override onData(streamId: number, chunk: Buffer, start: number, end: number): Http2Violation | undefined {
    const stream = this.streams.get(streamId);
    if (stream !== undefined && !stream.hasHead) return this.violation(errorCodes.PROTOCOL_ERROR, 'data_before_head', streamId);
    return super.onData(streamId, chunk, start, end);
  }

  /** Streams beyond the last one that the server has looked at may be asked again elsewhere (section 6.8). */
  onGoAway(lastStreamId: number, code: number, debugData: Buffer): Http2Violation | undefined {
    const early = this.notBeforeSettings();
    if (early !== undefined) return early;
    // Each is a pass over all streams.
    const flood = this.control('goaway');
    if (flood !== undefined) return flood;
    this.#isGoingAway = true;
    const reason = `GOAWAY ${code}${debugData.length > 0 ? `, ${debugData.toString('latin1', 0, 100).replace(/[^\x20-\x7e]/g, '?')}` : ''}`;
    for (const stream of this.streams) {
      if (stream.id <= lastStreamId) continue;
      this.forget(stream);
      stream.handler?.onStreamReset({ code: errorCodes.REFUSED_STREAM, by: 'peer', reason });
    }
    this.onIdle();
    this.#owner.onChange();
    return undefined;
  }

  /** No new streams; the connection ends with the last one. */
  drain(): void {
    this.#isGoingAway = true;
    this.onIdle();
  }

  override closed(reason = 'connection_closed'): void {
    if (this.isClosed) return;
    super.closed(reason);
    this.#owner.onEnd(reason);
  }

  protected readBytes(chunk: Buffer): Http2Violation | undefined {
    // The usual reason why a server's first frame is none.
    if (!this.hasSettings && chunk.length >= 5 && chunk.toString('latin1', 0, 5) === 'HTTP/')
      return this.violation(errorCodes.PROTOCOL_ERROR, 'server_speaks_http1');
    return this.readFrames(chunk);
  }

  protected report(found: Http2Violation): void {
    this.#owner.onViolation(found);
  }

  protected onSetting(id: number, value: number): Http2Violation | undefined {
    switch (id) {
      case settingIds.maxConcurrentStreams:
        this.#peerMaxStreams = value;
        this.#owner.onChange();
        return undefined;
      case settingIds.enablePush:
        return value === 0 ? undefined : this.violation(errorCodes.PROTOCOL_ERROR, 'setting_enable_push');
      case settingIds.enableConnectProtocol:
        if (value > 1) return this.violation(errorCodes.PROTOCOL_ERROR, 'setting_enable_connect_protocol');
        this.takesExtendedConnect = value === 1;
        return undefined;
      default:
        return undefined;
    }
  }

  protected onPeerReset(): Http2Violation | undefined {
    return undefined;
  }

  protected dataOnEndedStream(streamId: number): Http2Violation | undefined {
    return this.violation(errorCodes.STREAM_CLOSED, 'data_on_closed_stream', streamId);
  }

  protected onLocalEnd(): void {}

  protected onIdle(): void {
    if (this.#isGoingAway && this.streams.size === 0) {
      if (this.isClosed) return;
      this.frames.goAway(0);
      this.end('drained');
    } else this.#owner.onChange();
  }

  protected onPingAck(): void {}
}
