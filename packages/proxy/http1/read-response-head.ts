import type { HeadLimits } from '../message/head-limits.ts';
import { ResponseHead } from '../message/response-head.ts';
import { explainBadHead, readFields } from './fields.ts';
import type { Violation } from './violation.ts';

const grammar = /^HTTP\/1\.[01] [1-9]\d{2}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*$/;

/** Reads a response's head: RFC 9112 sections 4 to 6. */
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
