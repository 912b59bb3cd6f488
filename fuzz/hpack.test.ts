import assert from 'node:assert/strict';
import { once } from 'node:events';
import http2 from 'node:http2';
import net from 'node:net';
import { it } from 'node:test';
import fc from 'fast-check';
import { HpackDecoder } from '../packages/proxy/http2/hpack/decoder.ts';
import { HpackEncoder } from '../packages/proxy/http2/hpack/encoder.ts';

/** Beside nghttp2 (node:http2): many requests on one connection, so that both sides' tables fill and evict. */
const token = fc.string({ unit: fc.constantFrom(...'abcdefghijklmnopqrstuvwxyz0123456789-_.'), minLength: 1, maxLength: 12 }).map((name) => `x-${name}`);
const value = fc.string({ unit: fc.integer({ min: 0x21, max: 0x7e }).map((code) => String.fromCharCode(code)), minLength: 1, maxLength: 300 });
const names = fc.oneof(token, fc.constantFrom('accept', 'user-agent', 'cache-control', 'x-request-id', 'authorization', 'te-x'));
const request = fc.array(fc.tuple(names, fc.oneof(value, fc.constantFrom('a', 'b', 'gzip, deflate'))), { maxLength: 15 }).map((fields) => new Map(fields));

const frame = (type: number, flags: number, stream: number, payload: Buffer) => {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
};
const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
const requests = fc.sample(request, { numRuns: 300, seed: 7 });

it('nghttp2 reads the header blocks that we write', async () => {
  const server = http2.createServer();
  const received: Map<string, string>[] = [];
  server.on('stream', (stream, headers) => {
    received.push(new Map(Object.entries(headers).filter(([name]) => !name.startsWith(':')) as [string, string][]));
    stream.respond({ ':status': 204 }, { endStream: true });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  socket.write(Buffer.concat([preface, frame(4, 0, 0, Buffer.alloc(0)), frame(4, 1, 0, Buffer.alloc(0))]));
  socket.resume();
  const encoder = new HpackEncoder();
  for (const [i, fields] of requests.entries()) {
    encoder.begin();
    for (const [name, text] of [[':method', 'GET'], [':scheme', 'http'], [':path', `/${i}`], [':authority', 'a.example'], ...fields] as const)
      encoder.add(name, text);
    socket.write(frame(1, 0x5, 2 * i + 1, encoder.end()));
    while (received.length <= i) await once(server, 'stream', { signal: AbortSignal.timeout(5_000) });
    assert.deepEqual(received[i], fields);
  }
  socket.destroy();
  server.close();
});

it('we read the header blocks that nghttp2 writes', async () => {
  const blocks: Buffer[] = [];
  let socketOfServer: net.Socket | undefined;
  const server = net.createServer((socket) => {
    socketOfServer = socket;
    socket.write(frame(4, 0, 0, Buffer.alloc(0)));
    let pending = Buffer.alloc(0);
    let isPrefaceRead = false;
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      pending = Buffer.concat([pending, chunk]);
      if (!isPrefaceRead) {
        if (pending.length < preface.length) return;
        pending = pending.subarray(preface.length);
        isPrefaceRead = true;
      }
      while (pending.length >= 9) {
        const length = pending.readUIntBE(0, 3);
        if (pending.length < 9 + length) return;
        const [type, flags, stream] = [pending[3], pending[4]!, pending.readUInt32BE(5)];
        if (type === 4 && (flags & 1) === 0) socket.write(frame(4, 1, 0, Buffer.alloc(0)));
        if (type === 1) {
          const start = 9 + ((flags & 0x20) !== 0 ? 5 : 0);
          blocks.push(Buffer.from(pending.subarray(start, 9 + length)));
          // :status 204 from the static table
          socket.write(frame(1, 0x5, stream, Buffer.from([0x89])));
        }
        pending = pending.subarray(9 + length);
      }
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = http2.connect(`http://127.0.0.1:${(server.address() as net.AddressInfo).port}`);
  const decoder = new HpackDecoder();
  for (const [i, fields] of requests.entries()) {
    const stream = client.request({ ':path': `/${i}`, ...Object.fromEntries(fields) });
    stream.resume();
    await once(stream, 'response', { signal: AbortSignal.timeout(5_000) });
    const read = new Map<string, string>();
    assert.equal(decoder.decode(blocks[i]!, 0, blocks[i]!.length, { onField: (field) => read.set(field.name, field.value) }), undefined);
    assert.equal(read.get(':path'), `/${i}`);
    assert.deepEqual(new Map([...read].filter(([name]) => !name.startsWith(':'))), fields);
  }
  client.destroy();
  socketOfServer?.destroy();
  server.close();
});
