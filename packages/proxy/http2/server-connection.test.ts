import assert from 'node:assert/strict';
import { once } from 'node:events';
import http2 from 'node:http2';
import net from 'node:net';
import { after, before, describe, it } from 'node:test';
import type { Fields } from '../message/fields.ts';
import { defaultHeadLimits } from '../message/head-limits.ts';
import { ResponseHead } from '../message/response-head.ts';
import { errorCodes, type Http2Violation } from './error-codes.ts';
import { Http2ServerConnection } from './server-connection.ts';
import { defaultHttp2Settings } from './settings.ts';
import type { Http2Stream } from './stream.ts';

const settings = { ...defaultHttp2Settings, maxConcurrentStreams: 10, streamWindowBytes: 65_535, headLimits: { ...defaultHeadLimits, maxHeadBytes: 8 * 1024 } };

function headOf(status: number, fields: Fields = []): ResponseHead {
  const head = new ResponseHead();
  head.status = status;
  for (const [name, value] of fields) head.headers.add(name, value);
  return head;
}

/** Answers with what it was asked, by path. */
class TestServer {
  readonly server: net.Server;
  readonly connections: Http2ServerConnection[];
  readonly violations: Http2Violation[];
  readonly resets: number[];
  /** Streams whose content is not used up. */
  readonly held: Http2Stream[];

  constructor() {
    this.connections = [];
    this.violations = [];
    this.resets = [];
    this.held = [];
    this.server = net.createServer((socket) => {
      const connection: Http2ServerConnection = new Http2ServerConnection(
        settings,
        {
          write: (bytes) => socket.write(Buffer.from(bytes)),
          get pendingBytes() {
            return socket.writableLength;
          },
          get isFull() {
            return socket.writableNeedDrain;
          },
          end: () => socket.end(),
        },
        {
          onRequest: (stream, { target: path }, endsStream) => {
            let bytes = 0;
            const answer = (trailers: Fields) => {
              const size = Number(/^\/size\/(\d+)/.exec(path)?.[1] ?? 0);
              connection.respond(stream, headOf(103), -1, false);
              const fields = [
                ['x-path', path],
                ['x-received', String(bytes)],
                ['x-trailers', JSON.stringify(trailers)],
              ] as const;
              connection.respond(stream, headOf(200, fields), -1, false);
              if (size > 0) stream.data(Buffer.alloc(size, 'a'));
              stream.end(path.startsWith('/trailers') ? [['x-end', 'yes']] : []);
            };
            if (endsStream && path !== '/never') answer([]);
            return {
              onStreamData: (slice) => {
                bytes += slice.length;
                if (path === '/hold') this.held.push(stream);
                else stream.consumed(slice.length);
              },
              onStreamEnd: answer,
              onStreamReset: ({ code }) => this.resets.push(code),
              onStreamDrain: () => {},
            };
          },
          onViolation: (violation) => this.violations.push(violation),
          onEnd: () => {},
        },
      );
      this.connections.push(connection);
      socket.on('data', (chunk) => connection.read(chunk));
      socket.on('drain', () => connection.onWritable());
      socket.on('error', () => {});
      socket.on('close', () => connection.closed());
    });
  }
}

describe('the server side of HTTP/2, with nghttp2 as its client', () => {
  let test: TestServer;
  let port: number;
  let client: http2.ClientHttp2Session;
  const get = async (headers: http2.OutgoingHttpHeaders, body?: Buffer, trailers?: http2.OutgoingHttpHeaders) => {
    const stream = client.request(headers, { endStream: body === undefined, waitForTrailers: trailers !== undefined });
    if (trailers !== undefined) stream.on('wantTrailers', () => stream.sendTrailers(trailers));
    let bytes = 0;
    let end: http2.IncomingHttpHeaders | undefined;
    stream.on('data', (chunk: Buffer) => (bytes += chunk.length));
    stream.on('trailers', (found) => (end = found));
    if (body !== undefined) stream.end(body);
    const [response] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
    if (!stream.readableEnded) await once(stream, 'end');
    return { response, bytes, trailers: end };
  };

  before(async () => {
    test = new TestServer();
    test.server.listen(0, '127.0.0.1');
    await once(test.server, 'listening');
    port = (test.server.address() as net.AddressInfo).port;
    client = http2.connect(`http://127.0.0.1:${port}`);
    await once(client, 'remoteSettings');
  });
  after(() => {
    client.destroy();
    test.server.close();
  });

  it('answers, with interim responses, content and trailers', async () => {
    const plain = await get({ ':path': '/a?b=c' });
    assert.deepEqual([plain.response[':status'], plain.response['x-path'], plain.bytes], [200, '/a?b=c', 0]);
    const ended = await get({ ':path': '/trailers' });
    assert.equal(ended.trailers?.['x-end'], 'yes');
    const sent = await get({ ':path': '/x', ':method': 'POST' }, Buffer.from('content'), { 'grpc-status': '0' });
    assert.deepEqual([sent.response['x-received'], sent.response['x-trailers']], ['7', '[["grpc-status","0"]]']);
  });

  it('carries more than all windows hold, in both directions and many at once', async () => {
    const size = 3 * 1024 * 1024;
    const results = await Promise.all(Array.from({ length: 8 }, () => get({ ':path': `/size/${size}`, ':method': 'POST' }, Buffer.alloc(size))));
    for (const { response, bytes } of results) assert.deepEqual([response['x-received'], bytes], [String(size), size]);
  });

  it('shares the connection fairly: a small answer does not wait for a large one', async () => {
    const large = get({ ':path': `/size/${20 * 1024 * 1024}` });
    const small = await get({ ':path': '/size/1000' });
    assert.equal(small.bytes, 1000);
    let isLargeDone = false;
    void large.then(() => (isLargeDone = true));
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(isLargeDone, false);
    assert.equal((await large).bytes, 20 * 1024 * 1024);
  });

  it('holds back a client whose content nobody takes, at the window of its stream', async () => {
    const stream = client.request({ ':path': '/hold', ':method': 'POST' });
    stream.write(Buffer.alloc(1024 * 1024));
    while (test.held.length === 0) await new Promise((resolve) => setImmediate(resolve));
    const other = await get({ ':path': '/y', ':method': 'POST' }, Buffer.alloc(300_000));
    assert.equal(other.response['x-received'], '300000', 'others go on');
    assert.equal(test.held[0]!.receiveWindow, 0);
    stream.close(http2.constants.NGHTTP2_CANCEL);
    while (!test.resets.includes(errorCodes.CANCEL)) await new Promise((resolve) => setImmediate(resolve));
  });

  it('refuses streams beyond the limit, and takes them when there is room again', async () => {
    const other = http2.connect(`http://127.0.0.1:${port}`);
    // nghttp2 keeps to our limit itself once it knows of it: these are sent before.
    const streams = Array.from({ length: 12 }, () => other.request({ ':path': '/never' }));
    const refused: number[] = [];
    for (const stream of streams) stream.on('error', () => {}).on('close', () => stream.rstCode === errorCodes.REFUSED_STREAM && refused.push(stream.id!));
    await once(other, 'remoteSettings');
    const ping = new Promise((resolve) => other.ping(resolve));
    await ping;
    const { streamCount } = test.connections.at(-1)!;
    assert.ok(streamCount <= 10, `${streamCount} streams`);
    for (const stream of streams.slice(0, 5)) stream.close();
    const next = other.request({ ':path': '/after' });
    const [response] = (await once(next, 'response')) as [http2.IncomingHttpHeaders];
    assert.equal(response[':status'], 200);
    other.destroy();
  });

  it('drains: what is under way ends, then the connection', async () => {
    const other = http2.connect(`http://127.0.0.1:${port}`);
    await once(other, 'remoteSettings');
    const stream = other.request({ ':path': '/x', ':method': 'POST' });
    stream.write('half');
    await new Promise((resolve) => other.ping(resolve));
    const goAway = once(other, 'goaway');
    test.connections.at(-1)!.drain();
    const [code] = (await goAway) as [number];
    assert.equal(code, errorCodes.NO_ERROR);
    stream.end('the rest');
    const [response] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
    assert.equal(response['x-received'], '12');
    stream.resume();
    await once(other, 'close');
    assert.equal(test.connections.at(-1)!.isClosed, true);
  });

  it('resets what is malformed and goes on with the rest', async () => {
    const before = test.violations.length;
    const large = client.request({ ':path': '/large', 'x-large': 'a'.repeat(9_000) });
    let status: unknown;
    large.on('error', () => {}).on('response', (head) => (status = head[':status']));
    await new Promise((resolve) => large.on('close', resolve));
    assert.equal(status, 431);
    assert.equal(test.violations[before]!.reason, 'http2.header_list_too_large');
    assert.equal((await get({ ':path': '/still' })).response['x-path'], '/still');
  });

  it('ends a connection that sends a SETTINGS frame of too many entries, and takes one of the most', async () => {
    const settingsFrame = (entries: number) => {
      const frame = Buffer.alloc(9 + 6 * entries);
      frame.writeUIntBE(6 * entries, 0, 3);
      frame[3] = 4;
      for (let i = 0; i < entries; i++) {
        frame.writeUInt16BE(4, 9 + 6 * i);
        frame.writeUInt32BE(65_535 + (i % 2), 11 + 6 * i);
      }
      return frame;
    };
    for (const [entries, expected] of [
      [32, undefined],
      [33, 'http2.too_many_settings'],
      [2_730, 'http2.too_many_settings'],
    ] as const) {
      const before = test.violations.length;
      const socket = net.connect(port, '127.0.0.1');
      socket.write(Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), settingsFrame(entries)]));
      // The acknowledgement of our SETTINGS, or GOAWAY with ENHANCE_YOUR_CALM.
      await once(socket, 'data');
      if (expected !== undefined) await once(socket.resume(), 'close');
      assert.equal(test.violations[before]?.reason, expected);
      socket.destroy();
    }
  });

  it('ends a connection that does not begin as one', async () => {
    const socket = net.connect(port, '127.0.0.1');
    socket.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n');
    socket.resume();
    await once(socket, 'close');
    assert.equal(test.violations.at(-1)!.reason, 'http2.no_preface');
  });
});
