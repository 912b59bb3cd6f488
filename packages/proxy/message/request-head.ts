import { HeaderList } from './header-list.ts';

/** A request's head, whatever version of HTTP it came by: checked before it became one of these. */
export class RequestHead {
  method: string;
  /** The request line of HTTP/1.1 as it came, with its CRLF, where it can be sent on as it is; '' otherwise. Whoever changes the target clears it. */
  line: string;
  /** Path and query, starting with `/`; `*` for OPTIONS. */
  target: string;
  /** The authority as the client wrote it: of the absolute-form target or `:authority`, else of Host. */
  authority: string;
  isHttp10: boolean;
  isHttp2: boolean;
  /** `host` among them, also where HTTP/2 has no such field. */
  readonly headers: HeaderList;
  /** Bytes of the body by Content-Length; -1 when there is none. */
  contentLength: number;
  /** There is a body whose length nobody has said: chunks, or DATA frames. */
  isChunked: boolean;
  /** What the Connection field says: undefined when it says nothing. */
  keepAlive: boolean | undefined;
  hostCount: number;
  /** The protocol that is asked for instead of HTTP: by Upgrade, or by `:protocol` of an extended CONNECT (RFC 8441). */
  upgrade: string;
  expectsContinue: boolean;

  constructor() {
    this.method = '';
    this.line = '';
    this.target = '';
    this.authority = '';
    this.isHttp10 = false;
    this.isHttp2 = false;
    this.headers = new HeaderList();
    this.contentLength = -1;
    this.isChunked = false;
    this.keepAlive = undefined;
    this.hostCount = 0;
    this.upgrade = '';
    this.expectsContinue = false;
  }

  get hasBody(): boolean {
    return this.isChunked || this.contentLength > 0;
  }

  /** Whether a connection of HTTP/1 may be used for another request after this one (RFC 9112 section 9.3). */
  get isPersistent(): boolean {
    return this.keepAlive ?? !this.isHttp10;
  }
}
