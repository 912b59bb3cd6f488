import { explainBadHead, type Framing, readFields } from './fields.ts';
import type { HeadLimits } from './head-limits.ts';
import { HeaderList } from './header-list.ts';
import type { Violation } from './violation.ts';

/** A response's head, checked: RFC 9112 sections 4 to 6. */
export class ResponseHead implements Framing {
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

const grammar = /^HTTP\/1\.[01] \d{3}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*$/;

export function readResponseHead(text: string, limits: HeadLimits): ResponseHead | Violation {
  if (!grammar.test(text)) return explainBadHead(text, false);
  const head = new ResponseHead();
  const lineEnd = text.indexOf('\r\n');
  head.isHttp10 = text.charCodeAt(7) === 0x30;
  head.status = (text.charCodeAt(9) - 48) * 100 + (text.charCodeAt(10) - 48) * 10 + (text.charCodeAt(11) - 48);
  if (head.isHttp10) head.reason = lineEnd > 13 ? text.substring(13, lineEnd) : '';
  else head.line = text.substring(0, lineEnd + 2);
  const problem = readFields(text, lineEnd + 2, head.headers, head, limits);
  return problem ?? head;
}
