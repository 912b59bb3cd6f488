import assert from 'node:assert/strict';
import { once } from 'node:events';
import http2 from 'node:http2';
import net from 'node:net';
import { after, before, describe, it } from 'node:test';
import { checkGrpcHealth } from './grpc-health.ts';

describe("gRPC's health checks", () => {
  const asked: string[] = [];
  const server = http2.createServer();
  let port = 0;
  before(async () => {
    server.on('session', (session) => session.on('error', () => {}));
    server.on('stream', (stream, headers) => {
      const chunks: Buffer[] = [];
      stream.on('error', () => {});
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('end', () => {
        const service = Buffer.concat(chunks).toString('latin1', 7);
        asked.push(`${headers[':path']} ${service}`);
        if (service === 'never') return;
        if (service === 'unknown') return stream.respond({ ':status': 200, 'grpc-status': '5' }, { endStream: true });
        if (service === 'http') return stream.respond({ ':status': 404 }, { endStream: true });
        stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
        stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
        stream.end(Buffer.from([0, 0, 0, 0, 2, 0x08, service === 'broken' ? 2 : 1]));
      });
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    port = (server.address() as net.AddressInfo).port;
  });
  after(() => server.close());

  it('says that a server serves, or why it does not', async () => {
    assert.equal(await checkGrpcHealth('127.0.0.1', port, '', 1_000), undefined);
    assert.equal(await checkGrpcHealth('127.0.0.1', port, 'shop', 1_000), undefined);
    assert.deepEqual(asked, ['/grpc.health.v1.Health/Check ', '/grpc.health.v1.Health/Check shop']);
    assert.match((await checkGrpcHealth('127.0.0.1', port, 'broken', 1_000))!, /said NOT_SERVING/);
    assert.match((await checkGrpcHealth('127.0.0.1', port, 'unknown', 1_000))!, /ended with status 5/);
    assert.match((await checkGrpcHealth('127.0.0.1', port, 'http', 1_000))!, /HTTP 404/);
    assert.match((await checkGrpcHealth('127.0.0.1', port, 'never', 100))!, /did not answer within 100 ms/);
  });

  it('names what is wrong with who speaks no HTTP/2, and with nobody', async () => {
    const plain = net.createServer((socket) =>
      socket
        .on('error', () => {})
        .resume()
        .end('HTTP/1.1 400 Bad Request\r\n\r\n'),
    );
    plain.listen(0, '127.0.0.1');
    await once(plain, 'listening');
    const other = (plain.address() as net.AddressInfo).port;
    assert.ok(await checkGrpcHealth('127.0.0.1', other, '', 1_000));
    plain.close();
    await once(plain, 'close');
    assert.match((await checkGrpcHealth('127.0.0.1', other, '', 1_000))!, /ECONNREFUSED/);
  });
});
