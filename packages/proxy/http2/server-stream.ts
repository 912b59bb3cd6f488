import type { ErrorCode } from './error-codes.ts';
import type { Fields } from './frame-writer.ts';
import type { Http2ServerConnection } from './server-connection.ts';

/** One request and its answer (RFC 9113 section 5.1). */
export class ServerStream {
  readonly id: number;
  /** The client may send nothing more. */
  isRemoteClosed: boolean;
  /** We shall send nothing more. */
  isLocalClosed: boolean;
  sendWindow: number;
  receiveWindow: number;
  /** Bytes that were used up and that the client has not been told of. */
  unannounced: number;
  /** What content-length says; -1: nothing. */
  contentLength: number;
  contentReceived: number;
  /** What waits for the windows. */
  readonly pending: Buffer[];
  pendingBytes: number;
  /** What ends the stream when `pending` is empty: trailers, or nothing but the flag; undefined: more may be written. */
  ending: Fields | undefined;
  readonly #connection: Http2ServerConnection;

  constructor(connection: Http2ServerConnection, id: number, sendWindow: number, receiveWindow: number) {
    this.id = id;
    this.isRemoteClosed = false;
    this.isLocalClosed = false;
    this.sendWindow = sendWindow;
    this.receiveWindow = receiveWindow;
    this.unannounced = 0;
    this.contentLength = -1;
    this.contentReceived = 0;
    this.pending = [];
    this.pendingBytes = 0;
    this.ending = undefined;
    this.#connection = connection;
  }

  /** Sends a header block: interim, final or, with `endsStream`, all there is. */
  headers(fields: Fields, endsStream: boolean): void {
    this.#connection.sendHeaders(this, fields, endsStream);
  }

  /** Takes the bytes over: they go out as the windows allow, fairly among streams. */
  data(bytes: Buffer): void {
    this.#connection.sendData(this, bytes);
  }

  /** Ends our side, with trailers where there are any. */
  end(trailers: Fields = []): void {
    this.#connection.sendEnd(this, trailers);
  }

  reset(code: ErrorCode): void {
    this.#connection.resetStream(this, code);
  }

  /** So many bytes of the request have been used up: the client may send as many more. */
  consumed(bytes: number): void {
    this.#connection.consumed(this, bytes);
  }
}
