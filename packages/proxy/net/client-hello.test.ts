import assert from 'node:assert/strict';
import { once } from 'node:events';
import net from 'node:net';
import { describe, it } from 'node:test';
import tls from 'node:tls';
import fc from 'fast-check';
import { type ClientHello, ClientHelloReader, maxClientHelloBytes, maxClientHelloRecords, readClientHello } from './client-hello.ts';

/** The ClientHello that node:tls sends. */
async function helloOf(options: tls.ConnectionOptions): Promise<Buffer> {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = tls.connect({ ...options, host: '127.0.0.1', port: (server.address() as net.AddressInfo).port });
  client.on('error', () => {});
  const [socket] = (await once(server, 'connection')) as [net.Socket];
  const [bytes] = (await once(socket, 'data')) as [Buffer];
  client.destroy();
  socket.destroy();
  server.close();
  return bytes;
}

describe('the TLS inspector', () => {
  it('reads server name and protocols of a real ClientHello, however it is cut', async () => {
    const bytes = await helloOf({ servername: 'One.Example', ALPNProtocols: ['istio', 'http/1.1'] });
    assert.deepEqual(readClientHello(bytes), { serverName: 'one.example', alpn: ['istio', 'http/1.1'] });
    for (let length = 0; length < bytes.length; length += 7) assert.equal(readClientHello(bytes.subarray(0, length)), 'incomplete', String(length));
  });

  /** The same handshake message in records of so many bytes. */
  const inRecords = (hello: Buffer, bytes: number) => {
    const records: Buffer[] = [];
    for (let at = 5; at < hello.length; at += bytes) {
      const part = hello.subarray(at, at + bytes);
      records.push(Buffer.from([0x16, 3, 1, part.length >> 8, part.length & 0xff]), part);
    }
    return Buffer.concat(records);
  };

  it('reads a ClientHello in a few records that arrive byte by byte, and refuses one in many', async () => {
    const bytes = await helloOf({ servername: 'one.example' });
    const few = inRecords(bytes, Math.ceil((bytes.length - 5) / maxClientHelloRecords));
    const reader = new ClientHelloReader();
    for (let length = 0; length < few.length; length++) assert.equal(reader.read(few.subarray(0, length)), 'incomplete');
    assert.deepEqual(reader.read(few), { serverName: 'one.example', alpn: [] });
    assert.equal(readClientHello(inRecords(bytes, 1)), 'refused');
    assert.equal(readClientHello(inRecords(bytes, 1).subarray(0, 6 * maxClientHelloRecords)), 'refused');
    assert.equal(readClientHello(Buffer.concat([Buffer.from([0x16, 3, 1, 0xff, 0xff]), Buffer.alloc(maxClientHelloBytes)])), 'refused');
  });

  it('takes at most twice the work for twice the bytes, whatever the size of records and reads', () => {
    // Work is what the reader looks at: bytes in calls of `subarray` and `concat`, counted by a buffer that reports its reads.
    const workOf = (bytes: number, recordBytes: number) => {
      const message = Buffer.alloc(bytes, 1);
      message.writeUInt32BE(0x0100_0000 + 0xffff, 0);
      const wire = inRecords(Buffer.concat([Buffer.alloc(5), message]), recordBytes);
      const reader = new ClientHelloReader();
      let reads = 0;
      for (let length = 1; length <= wire.length; length++) {
        const seen = wire.subarray(0, length);
        const { readUInt16BE } = seen;
        seen.readUInt16BE = (at?: number) => {
          reads++;
          return readUInt16BE.call(seen, at);
        };
        if (reader.read(seen) !== 'incomplete') break;
      }
      return reads;
    };
    for (const recordBytes of [1, 16, 400, 4_000])
      assert.ok(workOf(8_000, recordBytes) <= 2 * workOf(4_000, recordBytes) + 2, `records of ${recordBytes} bytes`);
  });

  it('knows plain text, and says nothing of a ClientHello that lies about its lengths', async () => {
    assert.equal(readClientHello(Buffer.from('GET / HTTP/1.1\r\n')), 'plain');
    const bytes = await helloOf({ servername: 'a.b' });
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.nat(255), (at, value) => {
        const copy = Buffer.from(bytes);
        copy[at] = value;
        const hello: ClientHello | string = readClientHello(copy);
        assert.ok(typeof hello === 'object' || hello === 'plain' || hello === 'incomplete' || hello === 'refused');
      }),
      { numRuns: 2_000 },
    );
  });
});
