import type { HeadLimits } from '../message/head-limits.ts';
import type { HeaderList } from '../message/header-list.ts';
import { type Violation, violations } from './violation.ts';

/** The field lines of a head, read once, with what they say about framing (RFC 9112 section 6) and the connection (section 9). */
export interface Framing {
  /** Bytes of the body by Content-Length; -1 when there is none. */
  contentLength: number;
  isChunked: boolean;
  /** What the Connection field says: undefined when it says nothing. */
  keepAlive: boolean | undefined;
  hostCount: number;
  /** What the Upgrade field asks for or agrees to, once Connection names it too; '' when there is none (RFC 9110 section 7.8). */
  upgrade: string;
}

/** Headers that a Connection field must not be able to take away: the next hop relies on them. */
const protectedNames = /^(?:host|authorization|content-length|content-type|transfer-encoding|cookie|forwarded|x-forwarded-.*|x-envoy-.*|x-request-id|:.*)$/;

/**
 * Reads the lines of `text` from `start` into `headers`, leaving out what belongs to this hop only. The caller has checked with a
 * regular expression that every line is `token ":" field-value CRLF`.
 */
export function readFields(text: string, start: number, headers: HeaderList, framing: Framing, limits: HeadLimits): Violation | undefined {
  headers.begin(text);
  let connection: string | undefined;
  let hasTransferEncoding = false;
  let lengthText: string | undefined;
  let count = 0;
  for (let at = start; at < text.length; ) {
    const end = text.indexOf('\r\n', at);
    const colon = text.indexOf(':', at);
    if (++count > limits.maxHeaderCount) return violations.tooManyHeaders;
    const name = text.substring(at, colon).toLowerCase();
    if (limits.underscores !== 'allow' && name.includes('_')) {
      if (limits.underscores === 'reject') return violations.underscoreInName;
      at = end + 2;
      continue;
    }
    // OWS around the value is not part of it (RFC 9112 section 5.1).
    let from = colon + 1;
    let to = end;
    while (from < to && isSpace(text.charCodeAt(from))) from++;
    while (to > from && isSpace(text.charCodeAt(to - 1))) to--;
    switch (name) {
      case 'host':
        framing.hostCount++;
        headers.addReceived(name, from, to, at, end + 2);
        break;
      case 'content-length':
        if (lengthText !== undefined) return violations.repeatedContentLength;
        lengthText = text.substring(colon, end).includes('\t') ? 'tab' : text.substring(from, to);
        headers.addReceived(name, from, to, at, end + 2);
        break;
      case 'transfer-encoding': {
        if (hasTransferEncoding) return violations.badTransferEncoding;
        hasTransferEncoding = true;
        const value = text.substring(from, to);
        // A tab around the value is white space too, but not to everybody: those who do not trim it would not see chunks.
        if (value.toLowerCase() !== 'chunked' || text.substring(colon, end).includes('\t')) return explainTransferEncoding(value);
        framing.isChunked = true;
        break;
      }
      case 'connection':
        connection = connection === undefined ? text.substring(from, to) : `${connection},${text.substring(from, to)}`;
        break;
      case 'keep-alive':
      case 'proxy-connection':
      case 'proxy-authenticate':
      case 'proxy-authorization':
        break;
      case 'upgrade':
        framing.upgrade = framing.upgrade === '' ? text.substring(from, to) : `${framing.upgrade},${text.substring(from, to)}`;
        break;
      case 'te':
        // The only member that means something beyond one hop.
        if (/(?:^|,)\s*trailers\s*(?:,|$)/i.test(text.substring(from, to))) headers.add('te', 'trailers');
        break;
      default:
        headers.addReceived(name, from, to, at, end + 2);
    }
    at = end + 2;
  }
  if (lengthText !== undefined) {
    if (hasTransferEncoding) return violations.lengthWithTransferEncoding;
    if (!/^\d{1,15}$/.test(lengthText)) return violations.badContentLength;
    framing.contentLength = Number(lengthText);
  }
  if (connection === undefined) {
    framing.upgrade = '';
    return undefined;
  }
  return applyConnection(connection, headers, framing);
}

function applyConnection(connection: string, headers: HeaderList, framing: Framing): Violation | undefined {
  if (connection === 'keep-alive') {
    framing.keepAlive = true;
    framing.upgrade = '';
    return undefined;
  }
  let namesUpgrade = false;
  let namesHttp2Settings = false;
  for (const part of connection.split(',')) {
    const option = part.trim().toLowerCase();
    if (option === 'close') framing.keepAlive = false;
    else if (option === 'keep-alive') framing.keepAlive ??= true;
    else if (option === 'upgrade') namesUpgrade = true;
    else if (option === 'http2-settings') namesHttp2Settings = true;
    else if (option !== '' && option !== 'te') {
      if (protectedNames.test(option)) return violations.protectedConnectionOption;
      headers.remove(option);
    }
  }
  if (!namesUpgrade) framing.upgrade = '';
  // Of use only for an upgrade to HTTP/2 of this connection (RFC 7540 section 3.2.1).
  if (namesHttp2Settings && framing.upgrade === '') headers.remove('http2-settings');
  return undefined;
}

function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x09;
}

/** A coding that exists and is not supported is told apart (501) from a list that makes no sense (400). */
function explainTransferEncoding(value: string): Violation {
  const codings = value.split(',').map((coding) => coding.trim());
  if (codings.length > 1 && codings.at(-1) === '') codings.pop();
  const isList = codings.every((coding) => /^[!#$%&'*+\-.^_`|~0-9a-z]+$/i.test(coding));
  const isNonsense = /(?:^|,)\s*chunked\s*,/i.test(value) || /^x?identity$|^xchunked$/i.test(value);
  return isList && !isNonsense && value.toLowerCase() !== 'chunked' ? violations.unsupportedTransferEncoding : violations.badTransferEncoding;
}

/** Which rule a head broke that did not fit the grammar; only for heads that are refused, so it may be slow. */
export function explainBadHead(text: string, isRequest: boolean): Violation {
  if (/(?:^|[^\r])\n|\r(?!\n)/.test(text)) return violations.bareLineBreak;
  if (/[^\t\x20-\x7e\x80-\xff\r\n]/.test(text)) return violations.controlByte;
  const firstLine = text.slice(0, text.indexOf('\r\n'));
  if (isRequest) {
    const version = / HTTP\/(\d)\.(\d)$/.exec(firstLine);
    if (version && version[1] !== '1') return violations.unsupportedVersion;
    if (!/^[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e\x80-\xff]+ HTTP\/1\.[01]$/.test(firstLine)) return violations.badRequestLine;
  } else if (!/^HTTP\/1\.[01] [1-9]\d{2}(?: |$)/.test(firstLine)) return violations.badStatusLine;
  const fields = text.slice(firstLine.length + 2);
  if (/(?:^|\n)[ \t]/.test(fields)) return violations.obsoleteFolding;
  if (/(?:^|\n)[!#$%&'*+\-.^_`|~0-9A-Za-z]+[ \t]+:/.test(fields)) return violations.spaceBeforeColon;
  return violations.badHeaderLine;
}
