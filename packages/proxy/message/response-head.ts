import { HeaderList } from './header-list.ts';

/** A response's head, whatever version of HTTP it came by. */
export class ResponseHead {
  status: number;
  /** The status line as it came, with its CRLF, when it is of HTTP/1.1; '' otherwise. */
  line: string;
  /** The reason phrase of a status line that cannot be sent on as it is; may be empty. */
  reason: string;
  isHttp10: boolean;
  readonly headers: HeaderList;
  contentLength: number;
  isChunked: boolean;
  keepAlive: boolean | undefined;
  hostCount: number;
  upgrade: string;

  constructor() {
    this.status = 0;
    this.reason = '';
    this.line = '';
    this.isHttp10 = false;
    this.headers = new HeaderList();
    this.contentLength = -1;
    this.isChunked = false;
    this.keepAlive = undefined;
    this.hostCount = 0;
    this.upgrade = '';
  }

  get isPersistent(): boolean {
    return this.keepAlive ?? !this.isHttp10;
  }
}

/** A status that a filter or an authorization service may answer with: final, and one that clients know what to make of (RFC 9110 section 15). */
export function isFinalStatus(status: number): boolean {
  return Number.isInteger(status) && status >= 200 && status <= 599;
}
