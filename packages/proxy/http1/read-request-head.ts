import type { HeadLimits } from '../message/head-limits.ts';
import { RequestHead } from '../message/request-head.ts';
import { explainBadHead, readFields } from './fields.ts';
import { type Violation, violations } from './violation.ts';

/** request-line and field lines in one linear pass: token SP target SP version, then `token ":" value` lines. */
const grammar = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e\x80-\xff]+ HTTP\/1\.[01]\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*$/;

/** The same with names of letters, digits and `-` only, as nearly all are: a head that fits has no aliases (`owned-headers.ts`). */
const plainGrammar = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e\x80-\xff]+ HTTP\/1\.[01]\r\n(?:[-0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*$/;

/** host [":" port], RFC 3986 section 3.2 without userinfo; IPv6 in brackets. */
const authorityPattern = /^(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?$/;
const absoluteForm = /^https?:\/\/([^/?#]*)([/?].*)?$/i;

/** Reads a request's head: RFC 9112 sections 2 to 6, strictly. What is refused here never reaches a route. */
export function readRequestHead(text: string, limits: HeadLimits): RequestHead | Violation {
  const isPlain = plainGrammar.test(text);
  if (!isPlain && !grammar.test(text)) return explainBadHead(text, true);
  const head = new RequestHead();
  const lineEnd = text.indexOf('\r\n');
  const firstSpace = text.indexOf(' ');
  head.method = text.substring(0, firstSpace);
  const target = text.substring(firstSpace + 1, lineEnd - 9);
  head.isHttp10 = text.charCodeAt(lineEnd - 1) === 0x30;
  if (target.length > limits.maxTargetBytes) return violations.targetTooLong;

  const problem = readFields(text, lineEnd + 2, head.headers, head, limits);
  if (problem) return problem;
  head.headers.hasAliases = !isPlain;
  if (head.hostCount > 1) return violations.repeatedHost;
  if (head.isChunked && head.isHttp10) return violations.transferEncodingInHttp10;
  const host = head.headers.get('host');
  if (host === undefined && !head.isHttp10) return violations.missingHost;
  if (host !== undefined && host !== '' && !authorityPattern.test(host)) return violations.badHost;
  head.authority = host ?? '';

  if (head.method === 'CONNECT') {
    // authority-form, and nothing else, belongs to CONNECT (RFC 9112 section 3.2.3). Whether a tunnel is opened is the connection's affair.
    if (!authorityPattern.test(target) || !/:\d+$/.test(target) || head.hasBody) return violations.badTarget;
    head.authority = target;
    head.target = '';
    return head;
  }
  if (target.charCodeAt(0) === 0x2f) {
    head.target = target;
    if (!head.isHttp10) head.line = text.substring(0, lineEnd + 2);
  } else if (target === '*' && head.method === 'OPTIONS') head.target = target;
  else {
    const absolute = absoluteForm.exec(target);
    if (!absolute || !authorityPattern.test(absolute[1]!)) return violations.badTarget;
    // RFC 9112 section 3.2.2 lets the target win; a request that says two things is refused instead.
    if (host !== undefined && host !== '' && host.toLowerCase() !== absolute[1]!.toLowerCase()) return violations.hostMismatch;
    head.authority = absolute[1]!;
    head.target = absolute[2] === undefined ? '/' : absolute[2].startsWith('?') ? `/${absolute[2]}` : absolute[2];
    head.headers.set('host', head.authority);
  }
  if (head.target.includes('#')) return violations.badTarget;

  const expect = head.headers.get('expect');
  if (expect !== undefined) {
    if (expect.toLowerCase() !== '100-continue') return violations.unexpectedExpectation;
    head.expectsContinue = !head.isHttp10 && head.hasBody;
  }
  return head;
}
