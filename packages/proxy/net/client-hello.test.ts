import assert from 'node:assert/strict';
import { once } from 'node:events';
import net from 'node:net';
import { describe, it } from 'node:test';
import tls from 'node:tls';
import fc from 'fast-check';
import { type ClientHello, readClientHello } from './client-hello.ts';

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

  it('knows plain text, and says nothing of a ClientHello that lies about its lengths', async () => {
    assert.equal(readClientHello(Buffer.from('GET / HTTP/1.1\r\n')), 'plain');
    const bytes = await helloOf({ servername: 'a.b' });
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.nat(255), (at, value) => {
        const copy = Buffer.from(bytes);
        copy[at] = value;
        const hello: ClientHello | string = readClientHello(copy);
        assert.ok(typeof hello === 'object' || hello === 'plain' || hello === 'incomplete');
      }),
      { numRuns: 2_000 },
    );
  });
});
