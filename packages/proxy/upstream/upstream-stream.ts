import type { Fields } from '../message/fields.ts';
import type { RequestHead } from '../message/request-head.ts';
import type { ResponseHead } from '../message/response-head.ts';

/** Who sent a request upstream and receives what comes back. */
export interface ResponseReceiver {
  /** HEAD: the answer has no body whatever its head says. */
  readonly isHeadRequest: boolean;
  /** What it has been given by `onResponseData` and still needs. */
  readonly pendingResponseBytes: number;
  /** The request asked for a tunnel (Upgrade, CONNECT): an answer that agrees is followed by bytes that are nobody's message. */
  readonly isTunnelRequest: 'no' | 'upgrade' | 'connect';
  onInformational(head: ResponseHead): void;
  onResponseHead(head: ResponseHead, hasBody: boolean): void;
  /** The slice is good during the call. */
  onResponseData(slice: Buffer): void;
  /** The answer agreed to a tunnel; what follows comes by `onResponseData`, and `onResponseEnd` says that the peer has closed its side. */
  onTunnel(head: ResponseHead | undefined): void;
  /** The connection may already serve somebody else when this returns. */
  onResponseEnd(trailers: Fields): void;
  /** Everything that one read of the socket brought has been handed over. */
  onResponseFlush(): void;
  onUpstreamDrain(): void;
  onUpstreamFailure(failure: UpstreamFailure): void;
}

export interface UpstreamFailure {
  /** `refused`: the peer has said that it has not looked at the request (REFUSED_STREAM, or GOAWAY before it). */
  readonly kind: 'connect' | 'connectTimeout' | 'reset' | 'refused' | 'protocol';
  readonly detail: string;
  /** Which certificate is out of its time, where that is the reason. */
  readonly certificateProblem?: string | undefined;
  /** The connection had served a request before: the peer may have closed it before it saw this one. */
  readonly wasReused: boolean;
  /** The peer has answered nothing of this request yet. */
  readonly beforeResponse: boolean;
}

/** How a sidecar tells the next one who it is: as lines of HTTP/1.1 and as fields. */
export interface Introduction {
  readonly text: string;
  readonly fields: Fields;
}

/** The server's side of one request, whatever version of HTTP it speaks: a connection of HTTP/1.1 for as long as it lasts, or a stream of HTTP/2. */
export interface UpstreamStream {
  /** false: whoever writes should wait for `onUpstreamDrain`. */
  readonly isWritable: boolean;
  /** Sends the head, and the introduction where there is one. Nothing has to wait for the connection to be ready. */
  begin(receiver: ResponseReceiver, head: RequestHead, introduction: Introduction | undefined): void;
  /** A slice of the body, or of what goes through a tunnel. It is used up, or held as OutputBatch does, when this returns. */
  data(slice: Buffer): void;
  end(trailers: Fields): void;
  /** Sends what was written at the end of this turn of the event loop. */
  flushSoon(): void;
  /** The answer is not wanted for now. */
  pause(): void;
  resume(): void;
  /** The request is given up: nothing more is handed to its receiver. */
  abandon(): void;
  /** Nothing more goes into the tunnel. */
  endTunnel(): void;
}

/** A reason as a part of response details, which are one word of an access log line. */
export function detailText(reason: string): string {
  return reason.replace(/[^\w.:/@-]+/g, '_').slice(0, 400);
}
