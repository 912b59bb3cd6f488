import type { Fields } from '../message/fields.ts';
import type { Http2Connection } from './connection.ts';
import type { ErrorCode } from './error-codes.ts';

/** Who sends and receives on a stream. */
export interface StreamHandler {
  /** The slice is good during the call; who has used it up says so with `stream.consumed`. */
  onStreamData(slice: Buffer): void;
  /** The peer has said all it had to say. */
  onStreamEnd(trailers: Fields): void;
  /** What was held back has been sent: more may be written. */
  onStreamDrain(): void;
  /** The stream has ended before its time. */
  onStreamReset(end: StreamReset): void;
}

export interface StreamReset {
  readonly code: number;
  /** Who ended it: the peer, a violation that we found, or the connection, which is gone. */
  readonly by: 'peer' | 'violation' | 'connection';
  readonly reason: string;
}

/** A stream that is written beyond this is not writable until most of it has gone. */
const highWaterBytes = 64 * 1024;

/** One request and its answer (RFC 9113 section 5.1), on either side. */
export class Http2Stream {
  readonly id: number;
  handler: StreamHandler | undefined;
  /** The peer may send nothing more. */
  isRemoteClosed: boolean;
  /** We shall send nothing more. */
  isLocalClosed: boolean;
  sendWindow: number;
  receiveWindow: number;
  /** Bytes that were used up and that the peer has not been told of. */
  unannounced: number;
  /** Bytes that have come and that nobody has used up. */
  unconsumed: number;
  /** What content-length says; -1: nothing. */
  contentLength: number;
  contentReceived: number;
  /** The final head of the answer has come (client). */
  hasHead: boolean;
  /** What waits for the windows, or for the socket. */
  pending: Buffer[];
  pendingBytes: number;
  /** What ends the stream when `pending` is empty: trailers, or nothing but the flag; undefined: more may be written. */
  ending: Fields | undefined;
  /** It stands in the queue of those that have something to send. */
  isQueued: boolean;
  /** The writer waits for `onStreamDrain`. */
  isHeldBack: boolean;
  /** performance.now(), to a tenth of a second. */
  lastActivity: number;
  readonly openedAt: number;
  readonly #connection: Http2Connection;

  constructor(connection: Http2Connection, id: number, sendWindow: number, receiveWindow: number, now: number) {
    this.id = id;
    this.handler = undefined;
    this.isRemoteClosed = false;
    this.isLocalClosed = false;
    this.sendWindow = sendWindow;
    this.receiveWindow = receiveWindow;
    this.unannounced = 0;
    this.unconsumed = 0;
    this.contentLength = -1;
    this.contentReceived = 0;
    this.hasHead = false;
    this.pending = noBuffers;
    this.pendingBytes = 0;
    this.ending = undefined;
    this.isQueued = false;
    this.isHeldBack = false;
    this.lastActivity = now;
    this.openedAt = now;
    this.#connection = connection;
  }

  /** false: the writer should wait for `onStreamDrain`. */
  get isWritable(): boolean {
    if (this.pendingBytes < highWaterBytes) return true;
    this.isHeldBack = true;
    return false;
  }

  /** Takes a copy of the bytes: they go out as the windows allow, fairly among streams. */
  data(bytes: Buffer): void {
    this.#connection.sendData(this, bytes);
  }

  /** Ends our side, with trailers where there are any. */
  end(trailers: Fields): void {
    this.#connection.sendEnd(this, trailers);
  }

  reset(code: ErrorCode): void {
    this.#connection.resetStream(this, code);
  }

  /** So many bytes of what came have been used up: the peer may send as many more. */
  consumed(bytes: number): void {
    this.#connection.consumed(this, bytes);
  }
}

export const noBuffers: Buffer[] = [];
