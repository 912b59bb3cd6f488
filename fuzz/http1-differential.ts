import { isDeepStrictEqual } from 'node:util';
import { type Outcome, readNodeRequests, readNodeResponse, readOurs } from './http1-parsers.ts';

/**
 * Differential fuzz of the HTTP/1.1 codec: messages that are valid, and messages that were damaged, cut into random pieces, read by our
 * codec and by Node's (llhttp). Two promises: how the bytes are cut changes nothing; and what we accept, Node reads as the same messages:
 * whoever stands behind us sees what we saw. That we refuse more is intended.
 */
export interface FuzzResult {
  readonly cases: number;
  readonly accepted: number;
  /** What is wrong, with the input that shows it. */
  readonly findings: readonly string[];
}

export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0 || 1;
  }
  /** Uniform in [0, bound). mulberry32. */
  below(bound: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % bound;
  }
  pick<Item>(items: readonly Item[]): Item {
    return items[this.below(items.length)]!;
  }
  chance(percent: number): boolean {
    return this.below(100) < percent;
  }
}

const words = ['a', 'x-long-name', 'Accept', 'cookie', 'X_under', 'content-type', 'te', 'keep-alive', 'Date', 'x1'];
const values = ['1', 'text/plain; charset=utf-8', 'a b c', '"quoted, string"', '\t tab', 'é', '', 'x'.repeat(300), ':', 'chunked'];
/** Pieces that have broken parsers. */
const nasty = [
  '\r\n',
  '\n',
  '\r',
  '\0',
  ' ',
  '\t',
  ':',
  ';',
  ',',
  '\x0b',
  '\x7f',
  '\r\n\r\n',
  '\r\n ',
  'Content-Length: 5\r\n',
  'content-length:0\r\n',
  'Transfer-Encoding: chunked\r\n',
  'transfer-encoding: xchunked\r\n',
  'Transfer-Encoding : chunked\r\n',
  'Content-Length: +3\r\n',
  'Content-Length: 3, 3\r\n',
  '0x',
  '+',
  '-',
  '_',
  '5\r\nhello\r\n',
  '0\r\n\r\n',
  'ffffffffffffffff',
  'GET / HTTP/1.1\r\n',
  'HTTP/1.0',
  'HTTP/0.9',
  'Host: b\r\n',
  'Connection: close\r\n',
  'Connection: content-length\r\n',
  'Expect: 100-continue\r\n',
  '\xff',
  '%00',
  '#',
];

function headers(random: Random): string {
  let text = '';
  for (let i = random.below(5); i > 0; i--) text += `${random.pick(words)}:${random.pick(['', ' ', '  '])}${random.pick(values)}${random.pick(['', ' '])}\r\n`;
  return text;
}

function chunks(random: Random): string {
  let text = '';
  for (let i = random.below(4); i > 0; i--) {
    const data = 'd'.repeat(1 + random.below(40));
    const size = data.length.toString(16);
    text += `${random.pick([size, size.toUpperCase(), `0${size}`])}${random.pick(['', '', ';x', ';a=b', ';q="z"'])}\r\n${data}\r\n`;
  }
  return `${text}0\r\n${random.chance(20) ? 'x-trailer: 1\r\n' : ''}\r\n`;
}

function framed(random: Random): { readonly header: string; readonly body: string } {
  const kind = random.below(4);
  if (kind === 0) return { header: 'Transfer-Encoding: chunked\r\n', body: chunks(random) };
  if (kind === 1) {
    const body = 'b'.repeat(random.below(60));
    return { header: `Content-Length: ${body.length}\r\n`, body };
  }
  return { header: '', body: '' };
}

function requestText(random: Random): string {
  const { header, body } = framed(random);
  const method = random.pick(['GET', 'POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS', 'PATCH']);
  const target = random.pick(['/', '/a/b?c=d', '/x%20y', '/é', 'http://a/abs', '/;p', '/?']);
  return `${method} ${target} HTTP/1.${random.chance(90) ? 1 : 0}\r\nHost: a\r\n${headers(random)}${header}${random.chance(10) ? 'Connection: close\r\n' : ''}\r\n${body}`;
}

function responseText(random: Random): string {
  const { header, body } = framed(random);
  const status = random.pick(['200 OK', '204 No Content', '304 Not Modified', '404 Not Found', '500 ', '200', '299 x y']);
  const interim = random.chance(15) ? 'HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n' : '';
  return `${interim}HTTP/1.${random.chance(90) ? 1 : 0} ${status}\r\n${headers(random)}${header}${random.chance(20) ? 'Connection: close\r\n' : ''}\r\n${body}${header === '' && random.chance(50) ? 'until the end' : ''}`;
}

function damage(text: string, random: Random): string {
  let damaged = text;
  for (let i = random.below(3); i > 0; i--) {
    const at = random.below(damaged.length + 1);
    const how = random.below(4);
    if (how === 0) damaged = damaged.slice(0, at) + random.pick(nasty) + damaged.slice(at);
    else if (how === 1) damaged = damaged.slice(0, at) + damaged.slice(at + 1 + random.below(3));
    else if (how === 2) damaged = damaged.slice(0, at) + String.fromCharCode(random.below(256)) + damaged.slice(at + 1);
    else {
      // At a line's start, where headers stand.
      const line = damaged.indexOf('\r\n', at);
      if (line >= 0) damaged = damaged.slice(0, line + 2) + random.pick(nasty) + damaged.slice(line + 2);
    }
  }
  return damaged;
}

function cut(bytes: Buffer, random: Random): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const size = random.chance(30) ? 1 + random.below(3) : 1 + random.below(bytes.length);
    pieces.push(Buffer.from(bytes.subarray(at, at + size)));
    at += size;
  }
  return pieces;
}

const show = (bytes: Buffer) => JSON.stringify(bytes.toString('latin1').slice(0, 600));

/** Runs until one of the limits is reached. */
export async function fuzzHttp1(options: { readonly seed: number; readonly cases: number; readonly untilMs?: number }): Promise<FuzzResult> {
  const findings: string[] = [];
  let accepted = 0;
  let cases = 0;
  for (; cases < options.cases && (options.untilMs === undefined || Date.now() < options.untilMs) && findings.length < 20; cases++) {
    const random = new Random(options.seed + cases);
    const isRequest = random.chance(60);
    const isHead = random.chance(10);
    const text = isRequest ? Array.from({ length: 1 + random.below(3) }, () => requestText(random)).join('') : responseText(random);
    const bytes = Buffer.from(random.chance(70) ? damage(text, random) : text, 'latin1');
    const kind = isRequest ? 'request' : 'response';
    const whole = readOurs([bytes], kind, isHead);
    const pieces = cut(bytes, random);
    const inPieces = readOurs(pieces, kind, isHead);
    if (!isDeepStrictEqual(whole, inPieces))
      findings.push(
        `seed ${options.seed + cases}: cut differently, read differently: ${show(bytes)}\n  ${JSON.stringify(whole)}\n  ${JSON.stringify(inPieces)}`,
      );
    const ours = whole.messages.filter((message) => message.isComplete);
    if (ours.length === 0) continue;
    accepted++;
    const node = isRequest ? await readNodeRequests([bytes]) : await readNodeResponse([bytes], isHead);
    const difference = compare({ ...whole, messages: ours }, node, isRequest);
    if (difference !== undefined)
      findings.push(`seed ${options.seed + cases}: ${difference}: ${show(bytes)}\n  ours ${JSON.stringify(whole)}\n  node ${JSON.stringify(node)}`);
  }
  return { cases, accepted, findings };
}

/** Where Node refuses what we accept for a reason of taste, not of framing; each with the reason. */
const tastes: readonly (readonly [RegExp, string])[] = [
  [
    /HPE_INVALID_METHOD|HPE_CLOSED_CONNECTION|HPE_INVALID_CONSTANT/,
    'llhttp knows a list of methods and takes nothing after Connection: close; we forward any token, and end the connection',
  ],
  [/HPE_INVALID_URL/, 'llhttp refuses some bytes of a target that we forward as they are'],
  [/HPE_UNEXPECTED_CONTENT_LENGTH|HPE_INVALID_CONTENT_LENGTH/, 'llhttp refuses it later than we do'],
];

function compare(ours: Outcome, node: Outcome, isRequest: boolean): string | undefined {
  for (const [i, message] of ours.messages.entries()) {
    const other = node.messages[i];
    if (other === undefined) {
      if (node.refusal !== undefined && tastes.some(([pattern]) => pattern.test(node.refusal!))) return undefined;
      // Node ends a connection with the request that asks for it; ours does so one layer above the codec.
      if (isRequest && node.refusal === undefined && i > 0) return undefined;
      return `message ${i + 1} is not there for Node`;
    }
    if (other.start !== message.start) return `message ${i + 1} starts differently`;
    if (other.isComplete && other.body !== message.body) return `message ${i + 1} has another body`;
    if (!other.isComplete && node.refusal === undefined && !isRequest) return `message ${i + 1} is not complete for Node`;
  }
  return undefined;
}
