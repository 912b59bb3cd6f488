import { once } from 'node:events';
import http2 from 'node:http2';
import net from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import { HpackEncoder } from '../packages/proxy/http2/hpack/encoder.ts';
import { Http2ServerConnection } from '../packages/proxy/http2/server-connection.ts';
import { defaultHttp2Settings } from '../packages/proxy/http2/settings.ts';
import type { Fields } from '../packages/proxy/message/fields.ts';
import { defaultHeadLimits } from '../packages/proxy/message/head-limits.ts';
import type { RequestHead } from '../packages/proxy/message/request-head.ts';
import { type FuzzResult, Random } from './http1-differential.ts';

/**
 * Differential fuzz of the HTTP/2 codec: connections that are valid, and connections that were damaged, read by ours, cut into random pieces,
 * and by Node's (nghttp2). Two promises: how the bytes are cut changes nothing; and a request that we take, nghttp2 takes too and reads
 * as the same. That we refuse more is intended.
 */
interface Request {
  readonly stream: number;
  readonly method: string;
  readonly path: string;
  readonly authority: string;
  /** `name: value`, in their order; `host`, `cookie` and pseudo-headers left out. */
  readonly fields: readonly string[];
  readonly body: string;
  readonly trailers: readonly string[];
}

const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
const names = [
  'x-a',
  'x-long-name',
  'accept',
  'user-agent',
  'content-type',
  'te',
  'cookie',
  'authorization',
  'X-Capital',
  'x a',
  '',
  'connection',
  'x_under',
  ':path',
  'host',
];
const values = [
  '1',
  'text/plain; charset=utf-8',
  'a b c',
  'trailers',
  ' leading',
  'trailing ',
  'tab\tinside',
  '\u00e9',
  '',
  'x'.repeat(300),
  'a\r\nb: c',
  '\0',
  'a.example',
];

function frame(type: number, flags: number, stream: number, payload: Uint8Array): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

function number(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

/** The bytes of a connection. Most fields, frames and numbers are as they should be. */
function makeConnection(random: Random): Buffer {
  const encoder = new HpackEncoder();
  const frames: Buffer[] = [preface, frame(4, 0, 0, random.chance(20) ? Buffer.concat([Buffer.from([0, 4]), number(random.below(200_000))]) : Buffer.alloc(0))];
  let next = 1;
  const open: number[] = [];
  const block = (fields: Fields) => {
    encoder.begin();
    for (const [name, value] of fields) encoder.add(name, value);
    return Buffer.from(encoder.end());
  };
  const fields = (count: number): [string, string][] =>
    Array.from({ length: random.below(count + 1) }, () => [
      random.pick(random.chance(85) ? names.slice(0, 5) : names),
      random.pick(random.chance(85) ? values.slice(0, 3) : values),
    ]);
  const headers = (stream: number, content: Buffer, endsStream: boolean) => {
    const end = endsStream ? 1 : 0;
    const padding = random.chance(20) ? random.below(20) : -1;
    const padded = padding < 0 ? content : Buffer.concat([Buffer.from([padding]), content, Buffer.alloc(padding)]);
    const cut = random.chance(25) ? random.below(content.length + 1) : -1;
    if (cut < 0 || padding >= 0) return frames.push(frame(1, 0x4 | end | (padding < 0 ? 0 : 0x8), stream, padded));
    frames.push(frame(1, end, stream, content.subarray(0, cut)), frame(9, 0x4, stream, content.subarray(cut)));
  };
  for (let i = random.below(12) + 1; i > 0; i--) {
    const stream = random.chance(90) && open.length > 0 ? random.pick(open) : random.below(20);
    switch (random.below(random.chance(80) ? 4 : 10)) {
      case 0:
      case 1: {
        const pseudo: [string, string][] = [
          [':method', random.pick(['GET', 'POST', 'OPTIONS', 'M-SEARCH'])],
          [':scheme', 'http'],
          [':path', random.pick(random.chance(90) ? ['/', '/a?b=c', '/long/'.repeat(20)] : ['*', '', 'x', '/a b'])],
          [':authority', random.pick(['a.example', 'a.example:80', 'b'])],
        ];
        if (random.chance(5)) pseudo.splice(random.below(pseudo.length), 1);
        if (random.chance(5)) pseudo.push(random.pick(pseudo));
        const endsStream = random.chance(50);
        const id = random.chance(95) ? next : random.below(20);
        headers(id, block([...pseudo, ...fields(5)]), endsStream);
        next = Math.max(next, id) + 2;
        if (!endsStream) open.push(id);
        break;
      }
      case 2: {
        const content = Buffer.alloc(random.below(random.chance(90) ? 200 : 20_000), 0x61);
        const padding = random.chance(20) ? random.below(30) : -1;
        const payload = padding < 0 ? content : Buffer.concat([Buffer.from([padding]), content, Buffer.alloc(padding)]);
        frames.push(frame(0, (random.chance(30) ? 1 : 0) | (padding < 0 ? 0 : 0x8), stream, payload));
        break;
      }
      case 3:
        headers(stream, block(fields(2)), random.chance(90));
        break;
      case 4:
        // Not as an acknowledgement: Node ends the session of whoever acknowledges what it has not sent.
        frames.push(frame(6, 0, 0, Buffer.alloc(8)));
        break;
      case 5:
        frames.push(frame(2, 0, random.below(20), Buffer.concat([number(random.below(20)), Buffer.from([1])])));
        break;
      case 6:
        frames.push(frame(8, 0, random.chance(50) ? 0 : stream, number(random.chance(90) ? random.below(100_000) : 0x7fff_ffff)));
        break;
      case 7:
        frames.push(frame(3, 0, stream, number(8)));
        break;
      case 8:
        frames.push(frame(random.below(256), random.below(256), random.below(20), Buffer.alloc(random.below(40), random.below(256))));
        break;
      case 9:
        frames.push(frame(4, random.below(2), 0, Buffer.concat([Buffer.from([0, random.below(8)]), number(random.below(70_000))])));
        break;
    }
  }
  const bytes = Buffer.concat(frames);
  if (random.chance(30)) for (let i = random.below(3) + 1; i > 0; i--) bytes[preface.length + random.below(bytes.length - preface.length)] = random.below(256);
  return bytes;
}

const line = ([name, value]: readonly [string, string]) => `${name}: ${value}`;
const isComparable = (name: string) => name !== 'host' && name !== 'cookie' && !name.startsWith(':');

/** What our codec makes of it: the requests that are complete and were not refused. */
function readOurs(bytes: Buffer, cuts: readonly number[]): { requests: Request[]; violations: string[]; resets: number[] } {
  const requests: Request[] = [];
  const violations: string[] = [];
  const resets: number[] = [];
  const connection = new Http2ServerConnection(
    { ...defaultHttp2Settings, maxConcurrentStreams: 100, headLimits: defaultHeadLimits },
    { write: () => {}, pendingBytes: 0, isFull: false, end: () => {} },
    {
      onRequest(stream, head: RequestHead, endsStream) {
        const chunks: Buffer[] = [];
        const done = (trailers: Fields) =>
          requests.push({
            stream: stream.id,
            method: head.method,
            path: head.target,
            authority: head.authority,
            fields: head.headers.names
              .map((name, i) => [name, head.headers.valueAt(i)] as const)
              .filter(([name]) => isComparable(name))
              .map(line),
            body: Buffer.concat(chunks).toString('latin1'),
            trailers: trailers.map(line),
          });
        if (endsStream) done([]);
        return {
          onStreamData(slice) {
            chunks.push(Buffer.from(slice));
            stream.consumed(slice.length);
          },
          onStreamEnd: done,
          onStreamReset: () => resets.push(stream.id),
          onStreamDrain: () => {},
        };
      },
      onViolation: ({ reason }) => violations.push(reason),
      onEnd: () => {},
    },
  );
  let at = 0;
  for (const cut of [...cuts, bytes.length]) {
    connection.read(bytes.subarray(at, cut));
    at = cut;
  }
  connection.flush();
  return { requests, violations, resets };
}

/** node:http2 on a socket of its own; answers nothing, so that nothing but what it reads matters. */
class NodeReader {
  readonly #server: http2.Http2Server;
  /** By the port of the client, which tells one case from the next. */
  readonly #requests: Map<number, Request[]>;

  constructor() {
    this.#requests = new Map();
    this.#server = http2.createServer({ settings: { enableConnectProtocol: true }, maxSessionInvalidFrames: 100_000 });
    this.#server.on('session', (session) => session.on('error', () => {}));
    this.#server.on('stream', (stream, headers, _flags, raw) => {
      const chunks: Buffer[] = [];
      const trailers: string[] = [];
      const requests = this.#requests.get(stream.session?.socket.remotePort ?? 0);
      stream.on('error', () => {});
      stream.on('trailers', (_found, _trailerFlags, rawTrailers: string[]) => {
        // It may come after the end.
        for (const pair of pairs(rawTrailers)) if (!dropped.includes(pair[0])) trailers.push(line(pair));
      });
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('end', () =>
        requests?.push({
          stream: stream.id!,
          method: String(headers[':method'] ?? ''),
          path: String(headers[':path'] ?? ''),
          authority: String(headers[':authority'] ?? headers.host ?? ''),
          fields: pairs(raw)
            .filter(([name]) => isComparable(name))
            .map(line),
          body: Buffer.concat(chunks).toString('latin1'),
          trailers,
        }),
      );
    });
  }

  async listen(): Promise<void> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
  }

  async read(bytes: Buffer): Promise<Request[]> {
    const requests: Request[] = [];
    const socket = net.connect((this.#server.address() as net.AddressInfo).port, '127.0.0.1');
    socket.on('error', () => {});
    await once(socket, 'connect');
    const port = socket.localPort!;
    this.#requests.set(port, requests);
    let received = Buffer.alloc(0);
    const over = new Promise<void>((resolve) => {
      socket.on('close', resolve);
      socket.on('data', (chunk: Buffer) => {
        received = Buffer.concat([received, chunk]);
        // The answer to the PING behind everything, or GOAWAY.
        if (received.includes(marker)) resolve();
      });
    });
    const timer = setTimeout(() => socket.destroy(), 2_000);
    socket.write(Buffer.concat([bytes, frame(6, 0, 0, marker)]));
    await over;
    clearTimeout(timer);
    // What was read is told by events of streams, which come a little later.
    for (let i = 0; i < 3; i++) await new Promise((resolve) => setImmediate(resolve));
    socket.destroy();
    this.#requests.delete(port);
    return requests;
  }

  close(): void {
    this.#server.close();
  }
}

/** Fields that mean nothing in trailers: we leave them out. */
const dropped = ['content-type', 'te', 'cookie', 'authorization', 'host'];
const marker = Buffer.from('the end!');

function pairs(raw: readonly string[]): [string, string][] {
  return Array.from({ length: raw.length / 2 }, (_, i) => [raw[2 * i]!, raw[2 * i + 1]!]);
}

export async function fuzzHttp2({ seed, cases, untilMs = Number.POSITIVE_INFINITY }: { seed: number; cases: number; untilMs?: number }): Promise<FuzzResult> {
  const random = new Random(seed);
  const reader = new NodeReader();
  await reader.listen();
  const findings: string[] = [];
  let accepted = 0;
  let done = 0;
  for (; done < cases && Date.now() < untilMs && findings.length < 10; done++) {
    const bytes = makeConnection(random);
    const whole = readOurs(bytes, []);
    const cuts = Array.from({ length: random.below(8) }, () => random.below(bytes.length)).sort((a, b) => a - b);
    const inPieces = readOurs(bytes, cuts);
    if (!isDeepStrictEqual(whole, inPieces))
      findings.push(`cut at ${cuts}, it reads differently: ${bytes.toString('base64')}\n${JSON.stringify([whole, inPieces])}`);
    if (whole.requests.length === 0) continue;
    const theirs = await reader.read(bytes);
    for (const request of whole.requests) {
      // Ours answers it with 400 later.
      // What its client gives up in the end Node may not tell of.
      if (request.authority === '' || whole.resets.includes(request.stream)) continue;
      const other = theirs.find(({ stream }) => stream === request.stream);
      // After a violation of the whole connection nghttp2 may have told of less than it has read.
      if (other === undefined && whole.violations.length > 0) continue;
      if (other === undefined || !isDeepStrictEqual(request, other))
        findings.push(`seed ${seed}, case ${done}: ${JSON.stringify(request)} is to nghttp2 ${JSON.stringify(other)}: ${bytes.toString('base64')}`);
      else accepted++;
    }
  }
  reader.close();
  return { cases: done, accepted, findings };
}
