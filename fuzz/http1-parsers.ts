import http from 'node:http';
import { Duplex } from 'node:stream';
import { BodyReader } from '../packages/proxy/http1/body-reader.ts';
import { HeadReader } from '../packages/proxy/http1/head-reader.ts';
import { readRequestHead } from '../packages/proxy/http1/read-request-head.ts';
import { readResponseHead } from '../packages/proxy/http1/read-response-head.ts';
import { defaultHeadLimits } from '../packages/proxy/message/head-limits.ts';
import { RequestHead } from '../packages/proxy/message/request-head.ts';
import { ResponseHead } from '../packages/proxy/message/response-head.ts';

/** Two readers of HTTP/1.1: our codec, and Node's own, which is built on llhttp. Both tell what they have read in the same form. */
export interface ReadMessage {
  /** `GET /x`, or a status. */
  readonly start: string;
  readonly body: string;
  readonly isComplete: boolean;
}

export interface Outcome {
  readonly messages: readonly ReadMessage[];
  /** Why reading ended before the input did; undefined when all of it was read. */
  readonly refusal: string | undefined;
}

/** What our codec makes of a client's bytes, read as they come: the loop of a connection without the connection. */
export function readOurs(pieces: readonly Buffer[], kind: 'request' | 'response', isHead = false): Outcome {
  const heads = new HeadReader(defaultHeadLimits);
  const body = new BodyReader();
  const messages: { start: string; body: string; isComplete: boolean }[] = [];
  let inBody = false;
  for (const piece of pieces) {
    let at = 0;
    while (at < piece.length) {
      if (inBody) {
        const current = messages.at(-1)!;
        const next = body.read(piece, at, { onBodyData: (slice) => (current.body += slice.toString('latin1')) });
        if (typeof next !== 'number') return { messages, refusal: next.reason };
        at = next;
        if (body.isDone) {
          current.isComplete = true;
          inBody = false;
        }
        continue;
      }
      if (kind === 'request' && !heads.hasPartialHead) {
        while (at < piece.length && (piece[at] === 0x0d || piece[at] === 0x0a)) at++;
        if (at === piece.length) break;
      }
      if (kind === 'response' && messages.some((message) => message.isComplete && !message.start.startsWith('1')))
        return { messages, refusal: 'bytes that nobody asked for' };
      const found = heads.read(piece, at);
      if (found === false) break;
      if (found !== true) return { messages, refusal: found.reason };
      at = heads.bodyStart;
      const head = kind === 'request' ? readRequestHead(heads.text, defaultHeadLimits) : readResponseHead(heads.text, defaultHeadLimits);
      if (!(head instanceof RequestHead || head instanceof ResponseHead)) return { messages, refusal: head.reason };
      if (head instanceof RequestHead) {
        if (head.method === 'CONNECT' || head.upgrade !== '') return { messages, refusal: 'tunnel' };
        messages.push({ start: `${head.method} ${heads.text.split(' ')[1]}`, body: '', isComplete: false });
        if (head.isChunked) body.startChunked();
        else if (head.contentLength > 0) body.startLength(head.contentLength);
        else body.startNone();
      } else {
        messages.push({ start: String(head.status), body: '', isComplete: false });
        if (head.status === 101) return { messages: messages.slice(0, -1), refusal: 'tunnel' };
        if (isHead || head.status < 200 || head.status === 204 || head.status === 304) body.startNone();
        else if (head.isChunked) body.startChunked();
        else if (head.contentLength >= 0) body.startLength(head.contentLength);
        else body.startUntilClose();
      }
      inBody = !body.isDone;
      if (!inBody) messages.at(-1)!.isComplete = true;
    }
  }
  if (inBody && body.end()) messages.at(-1)!.isComplete = true;
  return { messages, refusal: undefined };
}

/** A socket without a network: what is fed comes out of it, what is written to it is gone. */
class Wire extends Duplex {
  override _read(): void {}
  override _write(_chunk: Buffer, _encoding: string, done: () => void): void {
    done();
  }
  setTimeout(): this {
    return this;
  }
  setNoDelay(): this {
    return this;
  }
  setKeepAlive(): this {
    return this;
  }
  ref(): this {
    return this;
  }
  unref(): this {
    return this;
  }
}

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

async function feed(wire: Wire, pieces: readonly Buffer[]): Promise<void> {
  for (const piece of pieces) {
    if (wire.destroyed) return;
    wire.push(piece);
    await turn();
  }
  if (!wire.destroyed) wire.push(null);
  for (let i = 0; i < 4; i++) await turn();
}

/** What Node's parser makes of the same bytes. */
export async function readNodeRequests(pieces: readonly Buffer[]): Promise<Outcome> {
  const messages: { start: string; body: string; isComplete: boolean }[] = [];
  let refusal: string | undefined;
  const server = http.createServer({ maxHeaderSize: 64 * 1024, keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0 }, (request, response) => {
    const message = { start: `${request.method} ${request.url}`, body: '', isComplete: false };
    messages.push(message);
    request.on('data', (chunk: Buffer) => (message.body += chunk.toString('latin1')));
    request.on('end', () => (message.isComplete = request.complete));
    request.on('error', () => {});
    response.on('error', () => {});
    response.end();
  });
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    refusal ??= error.code ?? error.message;
    socket.destroy();
  });
  server.on('upgrade', (_request, socket) => {
    refusal ??= 'tunnel';
    socket.destroy();
  });
  server.on('connect', (_request, socket) => {
    refusal ??= 'tunnel';
    socket.destroy();
  });
  const wire = new Wire();
  wire.on('error', () => {});
  server.emit('connection', wire);
  await feed(wire, pieces);
  wire.destroy();
  return { messages, refusal };
}

export async function readNodeResponse(pieces: readonly Buffer[], isHead: boolean): Promise<Outcome> {
  const messages: { start: string; body: string; isComplete: boolean }[] = [];
  let refusal: string | undefined;
  const wire = new Wire();
  wire.on('error', () => {});
  const agent = new http.Agent();
  // The agent's way to a connection: this one leads nowhere.
  agent.createConnection = () => wire;
  const request = http.request({ method: isHead ? 'HEAD' : 'GET', maxHeaderSize: 64 * 1024, agent });
  request.on('information', (info) => messages.push({ start: String(info.statusCode), body: '', isComplete: true }));
  request.on('continue', () => {});
  request.on('response', (response) => {
    const message = { start: String(response.statusCode), body: '', isComplete: false };
    messages.push(message);
    response.on('data', (chunk: Buffer) => (message.body += chunk.toString('latin1')));
    response.on('end', () => (message.isComplete = response.complete));
    response.on('error', (error: NodeJS.ErrnoException) => (refusal ??= error.code ?? error.message));
  });
  request.on('upgrade', (_response, socket) => {
    refusal ??= 'tunnel';
    socket.destroy();
  });
  request.on('error', (error: NodeJS.ErrnoException) => (refusal ??= error.code ?? error.message));
  request.end();
  await turn();
  await feed(wire, pieces);
  wire.destroy();
  return { messages, refusal };
}
