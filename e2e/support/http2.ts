import { once } from 'node:events';
import http2 from 'node:http2';
import net from 'node:net';
import type { TestEngine } from './engine.ts';

export interface Http2Answer {
  readonly status: number;
  readonly headers: http2.IncomingHttpHeaders;
  readonly body: string;
  readonly trailers: http2.IncomingHttpHeaders;
}

export interface Http2Call {
  readonly headers?: http2.OutgoingHttpHeaders;
  readonly path?: string;
  readonly method?: string;
  readonly body?: string | Buffer;
  readonly trailers?: http2.OutgoingHttpHeaders;
}

/** A client of HTTP/2 without TLS, by nghttp2. */
export function connectHttp2(port: number, options: http2.ClientSessionOptions = {}): http2.ClientHttp2Session {
  const session = http2.connect(`http://127.0.0.1:${port}`, options);
  session.on('error', () => {});
  return session;
}

/** One request on a session, answered whole. Rejects when the stream is reset. */
export async function ask(session: http2.ClientHttp2Session, call: Http2Call = {}): Promise<Http2Answer> {
  const { path = '/', method = call.body === undefined ? 'GET' : 'POST', body, trailers } = call;
  const stream = session.request(
    { ':path': path, ':method': method, ...call.headers },
    { endStream: body === undefined && trailers === undefined, waitForTrailers: trailers !== undefined },
  );
  return answerOf(stream, body, trailers);
}

export async function answerOf(stream: http2.ClientHttp2Stream, body?: string | Buffer, trailers?: http2.OutgoingHttpHeaders): Promise<Http2Answer> {
  if (trailers !== undefined) stream.on('wantTrailers', () => stream.sendTrailers(trailers));
  const chunks: Buffer[] = [];
  let received: http2.IncomingHttpHeaders = {};
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  stream.on('trailers', (found) => {
    received = found;
  });
  if (body !== undefined || trailers !== undefined) stream.end(body);
  const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
  if (!stream.readableEnded) await once(stream, 'end');
  return { status: Number(headers[':status']), headers, body: Buffer.concat(chunks).toString('latin1'), trailers: received };
}

/** A server of HTTP/2 without TLS on a port of its own. */
export async function http2Server(
  engine: TestEngine,
  onStream: (stream: http2.ServerHttp2Stream, headers: http2.IncomingHttpHeaders) => void,
  options: http2.ServerOptions = {},
): Promise<number> {
  const server = http2.createServer({ maxSessionMemory: 200, ...options });
  const sessions = new Set<http2.ServerHttp2Session>();
  server.on('session', (session) => {
    sessions.add(session);
    session.on('close', () => sessions.delete(session)).on('error', () => {});
  });
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    onStream(stream, headers);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  engine.onClose(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  return (server.address() as net.AddressInfo).port;
}

export const frameTypes = {
  data: 0,
  headers: 1,
  priority: 2,
  reset: 3,
  settings: 4,
  pushPromise: 5,
  ping: 6,
  goAway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;
export const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'latin1');

export function frame(type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

export function number(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** A header block in HPACK without tables: each field a literal that is not indexed. */
export function block(fields: readonly (readonly [string, string])[]): Buffer {
  const text = (value: string) => {
    const bytes = Buffer.from(value, 'latin1');
    if (bytes.length < 127) return Buffer.concat([Buffer.from([bytes.length]), bytes]);
    const length = [127];
    let rest = bytes.length - 127;
    for (; rest >= 128; rest >>>= 7) length.push((rest & 0x7f) | 0x80);
    return Buffer.concat([Buffer.from([...length, rest]), bytes]);
  };
  return Buffer.concat(fields.flatMap(([name, value]) => [Buffer.from([0x00]), text(name), text(value)]));
}

export const getBlock = block([
  [':method', 'GET'],
  [':scheme', 'http'],
  [':path', '/'],
  [':authority', 'a.example'],
]);

export interface Frame {
  readonly type: number;
  readonly flags: number;
  readonly stream: number;
  readonly payload: Buffer;
}

/** A connection on which a test says what it likes, frame by frame, and sees what comes back. */
export class RawHttp2 {
  readonly socket: net.Socket;
  readonly frames: Frame[];
  isClosed: boolean;
  #pending: Buffer;
  #wake: (() => void) | undefined;

  /** `start`: what is said first; the preface and empty SETTINGS unless it says otherwise. */
  constructor(port: number, start: Buffer = Buffer.concat([preface, frame(frameTypes.settings, 0, 0), frame(frameTypes.settings, 1, 0)])) {
    this.frames = [];
    this.isClosed = false;
    this.#pending = Buffer.alloc(0);
    this.socket = net.connect({ port, host: '127.0.0.1' });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.isClosed = true;
      this.#wake?.();
    });
    this.socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    this.socket.write(start);
  }

  send(...frames: readonly Buffer[]): this {
    this.socket.write(Buffer.concat(frames));
    return this;
  }

  /** Resolves with the first frame that is as wanted, among those that have come and those that will. */
  async until(what: string, isWanted: (frame: Frame) => boolean, timeoutMs = 20_000): Promise<Frame> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const found = this.frames.find(isWanted);
      if (found !== undefined) return found;
      if (this.isClosed) throw new Error(`closed before ${what}`);
      if (Date.now() > deadline) throw new Error(`no ${what} within ${timeoutMs} ms`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, deadline - Date.now());
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** The code and the debug data of GOAWAY. */
  async goAway(): Promise<{ code: number; reason: string }> {
    const { payload } = await this.until('GOAWAY', ({ type, payload: bytes }) => type === frameTypes.goAway && bytes.readUInt32BE(4) !== 0);
    return { code: payload.readUInt32BE(4), reason: payload.toString('latin1', 8) };
  }

  async closed(timeoutMs = 30_000): Promise<void> {
    if (!this.isClosed) await once(this.socket, 'close', { signal: AbortSignal.timeout(timeoutMs) });
  }

  destroy(): void {
    this.socket.destroy();
  }

  #onData(chunk: Buffer): void {
    this.#pending = Buffer.concat([this.#pending, chunk]);
    while (this.#pending.length >= 9) {
      const length = this.#pending.readUIntBE(0, 3);
      if (this.#pending.length < 9 + length) break;
      this.frames.push({
        type: this.#pending[3]!,
        flags: this.#pending[4]!,
        stream: this.#pending.readUInt32BE(5),
        payload: Buffer.from(this.#pending.subarray(9, 9 + length)),
      });
      this.#pending = this.#pending.subarray(9 + length);
    }
    this.#wake?.();
  }
}
