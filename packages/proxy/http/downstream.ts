import type { Fields } from '../message/fields.ts';
import type { RequestHead } from '../message/request-head.ts';
import type { ResponseHead } from '../message/response-head.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import type { PeerIdentity } from '../tls/peer-identity.ts';

/** Who is at the other end of a connection, whatever it carries. */
export class Client {
  readonly info: ConnectionInfo;
  /** The verified identity of the peer; undefined on plain connections and where no client certificate is asked for. */
  readonly peer: PeerIdentity | undefined;
  /** The element of x-forwarded-client-cert that speaks for this peer; made at the first request. */
  forwardedCert: string | undefined;

  constructor(info: ConnectionInfo, peer: PeerIdentity | undefined) {
    this.info = info;
    this.peer = peer;
    this.forwardedCert = undefined;
  }
}

/**
 * The client's side of one request, whatever version of HTTP it speaks: where its answer goes. Calls come in the order `informational`*,
 * `respond`, `data`*, `end`, then `ended`; or `openTunnel`, `data`*, `endTunnel`, `ended`; `abort` may come at any time, and is the last.
 */
export interface Downstream {
  readonly client: Client;
  /** performance.now() of the bytes that the request began with. */
  readonly lastReadAt: number;
  /** A CONNECT has been answered before it was known what would come through it. */
  readonly saidConnected: boolean;
  /** false: whoever writes should wait for the exchange's `onDownstreamDrain`. */
  readonly isWritable: boolean;
  /** Bytes given by `data` that are still needed where they are. */
  readonly heldBytes: number;
  informational(head: ResponseHead): void;
  /** `serviceTimeMs`: how long the upstream took; -1: the answer is our own. */
  respond(head: ResponseHead, hasBody: boolean, serviceTimeMs: number): void;
  /** The slice is used up, or held (`heldBytes`), when this returns. */
  data(slice: Buffer): void;
  end(trailers: Fields): void;
  /** Sends what was written, at the latest at the end of this turn of the event loop. */
  flushSoon(): void;
  /** The request may be sent no further for now. */
  pauseRequest(): void;
  resumeRequest(): void;
  /** What follows on this connection cannot be trusted, or is not wanted: it ends with this answer, if it serves one request at a time. */
  makeLast(): void;
  /** The request's answer agrees to a tunnel: bytes go through from now on. `head` is the upstream's answer, if there was one. */
  openTunnel(request: RequestHead, head: ResponseHead | undefined): void;
  /** Nothing more comes from the upstream's side of the tunnel. */
  endTunnel(): void;
  /** The exchange is over, and its answer written. */
  ended(): void;
  /** The answer is broken off; the only honest thing left is to break off too. */
  abort(): void;
}
