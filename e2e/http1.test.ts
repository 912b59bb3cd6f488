import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import { after, before, beforeEach, describe, it } from 'node:test';
import { call } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

describe('HTTP/1.1 through client and server sidecar', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  const reached: string[] = [];

  /** Sends bytes to the client's sidecar and returns all that comes back until it closes, or until `enough`. */
  const raw = async (text: string | Buffer, enough?: RegExp, port = client.outboundPort) => {
    const socket = net.connect({ host: '127.0.0.1', port });
    let received = '';
    socket.on('data', (chunk) => {
      received += chunk.toString('latin1');
      if (enough?.test(received)) socket.destroy();
    });
    socket.on('error', () => {});
    socket.write(text);
    await once(socket, 'close');
    return received;
  };

  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('echo'));
    await mesh.workload('echo', {
      answer: (request, response) => {
        reached.push(`${request.method} ${request.url}`);
        switch (request.url) {
          case '/204':
            return void response.writeHead(204).end();
          case '/304':
            return void response.writeHead(304, { etag: '"x"' }).end();
          case '/until-close':
            response.shouldKeepAlive = false;
            response.removeHeader('transfer-encoding');
            response.socket!.end('HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end');
            return;
          case '/early':
            response.writeEarlyHints({ link: '</style.css>; rel=preload' });
            return void response.end('after hints');
          case '/trailers':
            response.writeHead(200, { trailer: 'x-checksum' });
            response.write('body');
            response.addTrailers({ 'x-checksum': '42' });
            return void response.end();
          case '/big': {
            const block = Buffer.alloc(64 * 1024, 'b');
            let left = 160; // 10 MiB
            const more = () => {
              while (left-- > 0) if (!response.write(block)) return void response.once('drain', more);
              response.end();
            };
            return more();
          }
          case '/broken':
            response.writeHead(200, { 'content-length': '100' });
            response.write('only this');
            return void setImmediate(() => request.socket.destroy());
          case '/garbage':
            return void request.socket.end('HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!');
          default: {
            const hash = createHash('sha256');
            let size = 0;
            request.on('data', (chunk: Buffer) => {
              size += chunk.length;
              hash.update(chunk);
            });
            request.on('end', () => response.end(`${request.method} ${size} ${hash.digest('hex')}`));
          }
        }
      },
    });
    client = await mesh.proxy('client');
    await client.proxy.ready;
  });
  after(() => mesh.close());
  beforeEach(() => reached.splice(0));

  const host = 'host: echo:9080\r\n';

  it('carries bodies of all sizes and codings unchanged', async () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    for (const size of [0, 1, 1000, 16 * 1024, 70_000, 1_048_576, 5_000_000]) {
      for (const chunked of [false, true]) {
        const body = randomBytes(size);
        const answer = await call({
          port: client.outboundPort,
          method: 'POST',
          headers: { host: 'echo:9080', ...(chunked ? { 'transfer-encoding': 'chunked' } : { 'content-length': String(size) }) },
          body,
          agent,
        });
        assert.equal(answer.body, `POST ${size} ${createHash('sha256').update(body).digest('hex')}`);
      }
    }
    agent.destroy();
  });

  it('answers HEAD, 204 and 304 without a body, and passes trailers, early hints and bodies that end with the connection', async () => {
    assert.equal((await call({ port: client.outboundPort, method: 'HEAD', headers: { host: 'echo:9080' } })).body, '');
    assert.equal((await call({ port: client.outboundPort, path: '/204', headers: { host: 'echo:9080' } })).status, 204);
    assert.equal((await call({ port: client.outboundPort, path: '/304', headers: { host: 'echo:9080' } })).headers['etag'], '"x"');
    assert.equal((await call({ port: client.outboundPort, path: '/until-close', headers: { host: 'echo:9080' } })).body, 'until the end');
    assert.match(await raw(`GET /trailers HTTP/1.1\r\n${host}connection: close\r\nte: trailers\r\n\r\n`), /4\r\nbody\r\n0\r\nx-checksum: 42\r\n\r\n$/);
    assert.match(await raw(`GET /early HTTP/1.1\r\n${host}connection: close\r\n\r\n`), /^HTTP\/1\.1 103 Early Hints\r\nLink: [^\r]+\r\n\r\nHTTP\/1\.1 200 OK/i);
  });

  it('keeps memory bounded while a client does not read', async () => {
    const socket = net.connect({ host: '127.0.0.1', port: client.outboundPort });
    socket.pause();
    socket.write(`GET /big HTTP/1.1\r\n${host}connection: close\r\n\r\n`);
    let received = 0;
    await once(socket, 'readable');
    socket.on('data', (chunk) => (received += chunk.length));
    socket.resume();
    await once(socket, 'close');
    assert.ok(received > 10 * 1024 * 1024, `${received}`);
  });

  it('answers pipelined requests in their order, and says 100 Continue', async () => {
    const answers = await raw(
      `GET /1 HTTP/1.1\r\n${host}\r\nPOST /2 HTTP/1.1\r\n${host}content-length: 3\r\n\r\nabcHEAD /3 HTTP/1.1\r\n${host}\r\nGET /4 HTTP/1.1\r\n${host}connection: close\r\n\r\n`,
    );
    assert.deepEqual(
      [...answers.matchAll(/(GET|POST) \d+ /g)].map((match) => match[0]),
      ['GET 0 ', 'POST 3 ', 'GET 0 '],
    );
    assert.equal([...answers.matchAll(/HTTP\/1\.1 200/g)].length, 4);
    assert.deepEqual(reached, ['GET /1', 'POST /2', 'HEAD /3', 'GET /4']);
    assert.match(
      await raw(`POST / HTTP/1.1\r\n${host}expect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok`),
      /^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 OK/,
    );
  });

  it('serves HTTP/1.0, and plain HTTP inside CONNECT', async () => {
    const old = await raw(`GET / HTTP/1.0\r\n${host}\r\n`);
    assert.match(old, /connection: close/);
    assert.match(
      await raw(`GET / HTTP/1.0\r\n${host}connection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n${host}\r\n`),
      /keep-alive[\s\S]*HTTP\/1\.1 200[\s\S]*connection: close/,
    );
    assert.match(
      await raw(`CONNECT echo:9080 HTTP/1.1\r\nhost: echo:9080\r\n\r\nGET / HTTP/1.1\r\n${host}connection: close\r\n\r\n`),
      /^HTTP\/1\.1 200 Connection established\r\n\r\nHTTP\/1\.1 200 OK[\s\S]*GET 0/,
    );
  });

  it('breaks off when the server does, and answers 503 or 502 when nothing has been said yet', async () => {
    assert.doesNotMatch(await raw(`GET /broken HTTP/1.1\r\n${host}\r\n`), /HTTP\/1\.1 200[\s\S]*HTTP\/1\.1/);
    assert.equal((await call({ port: client.outboundPort, path: '/garbage', headers: { host: 'echo:9080' } })).status, 502);
  });

  /** Each is refused with this status and never reaches the server: the framing list of request smuggling, one by one. */
  const attacks: readonly (readonly [string, string, number])[] = [
    ['two Content-Lengths', `POST / HTTP/1.1\r\n${host}content-length: 5\r\ncontent-length: 6\r\n\r\nhello!`, 400],
    ['two equal Content-Lengths', `POST / HTTP/1.1\r\n${host}content-length: 5\r\ncontent-length: 5\r\n\r\nhello`, 400],
    ['Content-Length with Transfer-Encoding', `POST / HTTP/1.1\r\n${host}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`, 400],
    ['a Content-Length with a sign', `POST / HTTP/1.1\r\n${host}content-length: +5\r\n\r\nhello`, 400],
    ['a Content-Length in hex', `POST / HTTP/1.1\r\n${host}content-length: 0x5\r\n\r\nhello`, 400],
    ['a Content-Length list', `POST / HTTP/1.1\r\n${host}content-length: 5,5\r\n\r\nhello`, 400],
    ['a Content-Length with a space', `POST / HTTP/1.1\r\n${host}content-length: 5 6\r\n\r\nhello`, 400],
    ['a Content-Length with a control byte', `POST / HTTP/1.1\r\n${host}content-length: 5\x0b\r\n\r\nhello`, 400],
    ['a Content-Length of 20 digits', `POST / HTTP/1.1\r\n${host}content-length: 99999999999999999999\r\n\r\nhello`, 400],
    ['Transfer-Encoding: xchunked', `POST / HTTP/1.1\r\n${host}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n`, 400],
    ['Transfer-Encoding: chunked, identity', `POST / HTTP/1.1\r\n${host}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n`, 400],
    ['Transfer-Encoding: gzip, chunked', `POST / HTTP/1.1\r\n${host}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n`, 501],
    ['Transfer-Encoding with a tab before its value', `POST / HTTP/1.1\r\n${host}transfer-encoding:\tchunked\r\n\r\n0\r\n\r\n`, 400],
    ['chunked that is not last', `POST / HTTP/1.1\r\n${host}transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n`, 400],
    ['Transfer-Encoding: identity', `POST / HTTP/1.1\r\n${host}transfer-encoding: identity\r\n\r\n`, 400],
    ['Content-Length with a tab', `POST / HTTP/1.1\r\n${host}content-length:\t5\r\n\r\nhello`, 400],
    ['a negative Content-Length', `POST / HTTP/1.1\r\n${host}content-length: -1\r\n\r\n`, 400],
    ['an empty Content-Length', `POST / HTTP/1.1\r\n${host}content-length:\r\n\r\n`, 400],
    ['Transfer-Encoding behind a control byte', `POST / HTTP/1.1\r\n${host}transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n`, 400],
    ['a space before the colon', `POST / HTTP/1.1\r\n${host}transfer-encoding : chunked\r\n\r\n0\r\n\r\n`, 400],
    ['two Transfer-Encodings', `POST / HTTP/1.1\r\n${host}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`, 400],
    ['Transfer-Encoding in HTTP/1.0', `POST / HTTP/1.0\r\n${host}transfer-encoding: chunked\r\n\r\n0\r\n\r\n`, 400],
    ['a bare LF', `GET / HTTP/1.1\n${host}\r\n\r\n`, 400],
    ['a bare CR in a value', `GET / HTTP/1.1\r\n${host}x: a\rb\r\n\r\n`, 400],
    ['a bare LF between headers', `GET / HTTP/1.1\r\n${host}x: y\nz: w\r\n\r\n`, 400],
    ['a CR before CRLF', `GET / HTTP/1.1\r\n${host}x: y\r\r\n\r\n`, 400],
    ['a control byte in a name', `GET / HTTP/1.1\r\n${host}x\x01y: z\r\n\r\n`, 400],
    ['a DEL in a value', `GET / HTTP/1.1\r\n${host}x: \x7f\r\n\r\n`, 400],
    ['a line without a colon', `GET / HTTP/1.1\r\n${host}nonsense\r\n\r\n`, 400],
    ['white space before the first header', `GET / HTTP/1.1\r\n ${host}\r\n`, 400],
    ['two spaces in the request line', `GET  / HTTP/1.1\r\n${host}\r\n`, 400],
    ['a tab in the request line', `GET\t/ HTTP/1.1\r\n${host}\r\n`, 400],
    ['a lower-case protocol', `GET / http/1.1\r\n${host}\r\n`, 400],
    ['obsolete folding', `GET / HTTP/1.1\r\n${host}x: a\r\n b\r\n\r\n`, 400],
    ['a NUL in a value', `GET / HTTP/1.1\r\n${host}x: a\x00b\r\n\r\n`, 400],
    ['an empty header name', `GET / HTTP/1.1\r\n${host}: x\r\n\r\n`, 400],
    ['no Host', 'GET / HTTP/1.1\r\nx: y\r\n\r\n', 400],
    ['two Hosts', `GET / HTTP/1.1\r\n${host}host: other\r\n\r\n`, 400],
    ['a Host with a path', 'GET / HTTP/1.1\r\nhost: echo:9080/x\r\n\r\n', 400],
    ['a Host with userinfo', 'GET / HTTP/1.1\r\nhost: me@echo:9080\r\n\r\n', 400],
    ['an absolute form that differs from Host', `GET http://other/ HTTP/1.1\r\n${host}\r\n`, 400],
    ['HTTP/0.9', 'GET /\r\n\r\n', 400],
    ['HTTP/2.0 in the request line', `GET / HTTP/2.0\r\n${host}\r\n`, 505],
    ['HTTP/1.2', `GET / HTTP/1.2\r\n${host}\r\n`, 400],
    ['HTTP/3.0 in the request line', `GET / HTTP/3.0\r\n${host}\r\n`, 505],
    ['an absolute form with userinfo', `GET http://me@echo:9080/ HTTP/1.1\r\n${host}\r\n`, 400],
    ['CONNECT with a path', `CONNECT /x HTTP/1.1\r\n${host}\r\n`, 400],
    ['CONNECT with a body', `CONNECT echo:9080 HTTP/1.1\r\nhost: echo:9080\r\ncontent-length: 3\r\n\r\nabc`, 400],
    ['an Upgrade with a body', `POST / HTTP/1.1\r\n${host}connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 3\r\n\r\nabc`, 400],
    ['a path out of the root', `GET /../x HTTP/1.1\r\n${host}\r\n`, 400],
    ['an encoded NUL in the path', `GET /x%00 HTTP/1.1\r\n${host}\r\n`, 400],
    ['a fragment in the target', `GET /a#b HTTP/1.1\r\n${host}\r\n`, 400],
    ['Connection naming Host', `GET / HTTP/1.1\r\n${host}connection: close, host\r\n\r\n`, 400],
    ['Connection naming Authorization', `GET / HTTP/1.1\r\n${host}connection: authorization\r\n\r\n`, 400],
    ['Connection naming Content-Length', `POST / HTTP/1.1\r\n${host}connection: content-length\r\ncontent-length: 0\r\n\r\n`, 400],
    ['Connection naming x-forwarded-for', `GET / HTTP/1.1\r\n${host}connection: x-forwarded-for\r\n\r\n`, 400],
    ['a head over the limit', `GET / HTTP/1.1\r\n${host}x: ${'a'.repeat(61 * 1024)}\r\n\r\n`, 431],
    ['too many headers', `GET / HTTP/1.1\r\n${host}${'x: y\r\n'.repeat(101)}\r\n`, 431],
    ['a target over the limit', `GET /${'a'.repeat(17 * 1024)} HTTP/1.1\r\n${host}\r\n`, 414],
    ['an unknown expectation', `POST / HTTP/1.1\r\n${host}expect: tea\r\ncontent-length: 0\r\n\r\n`, 417],
  ];
  for (const [name, text, status] of attacks) {
    it(`refuses ${name} with ${status}`, async () => {
      const answer = await raw(text);
      assert.equal(Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1]), status, answer.slice(0, 200));
      assert.match(answer, /connection: close/);
      assert.deepEqual(reached, []);
    });
  }

  const badChunks: readonly (readonly [string, string])[] = [
    ['a signed chunk size', '+5\r\nhello\r\n0\r\n\r\n'],
    ['a 0x chunk size', '0x5\r\nhello\r\n0\r\n\r\n'],
    ['an underscore in a chunk size', '1_0\r\nhello\r\n0\r\n\r\n'],
    ['a space before a chunk size', ' 5\r\nhello\r\n0\r\n\r\n'],
    ['a space after a chunk size', '5 \r\nhello\r\n0\r\n\r\n'],
    ['a chunk size with a tab', '5\t\r\nhello\r\n0\r\n\r\n'],
    ['an empty chunk size', '\r\nhello\r\n0\r\n\r\n'],
    ['a chunk line with CR and no LF', '5\rhello\r\n0\r\n\r\n'],
    ['a chunk extension without a name', '5;\r\nhello\r\n0\r\n\r\n'],
    ['a chunk extension with a control byte', '5;a=\x01\r\nhello\r\n0\r\n\r\n'],
    ['data that ends with LF alone', '5\r\nhello\n0\r\n\r\n'],
    ['a trailer with a bare LF', '0\r\nx: y\n\r\n'],
    ['a trailer with CR and no LF', '0\r\nx: y\r\r\n\r\n'],
    ['a trailer with white space before its colon', '0\r\nx : y\r\n\r\n'],
    ['a trailer that sets Host', '0\r\nhost: other\r\n\r\n'],
    ['a trailer that sets Transfer-Encoding', '0\r\ntransfer-encoding: chunked\r\n\r\n'],
    ['a chunk size of 17 digits', '00000000000000005\r\nhello\r\n0\r\n\r\n'],
    ['a chunk without its CRLF', '5\r\nhello0\r\n\r\n'],
    ['a chunk line that ends with LF', '5\nhello\r\n0\r\n\r\n'],
    ['a chunk extension with CR', '5;a\rb\r\nhello\r\n0\r\n\r\n'],
    ['a chunk extension over 4 KiB', `5;${'a'.repeat(5000)}\r\nhello\r\n0\r\n\r\n`],
    ['a trailer that sets framing', '5\r\nhello\r\n0\r\ncontent-length: 5\r\n\r\n'],
    ['a trailer that sets authorization', '5\r\nhello\r\n0\r\nauthorization: x\r\n\r\n'],
  ];
  for (const [name, body] of badChunks) {
    it(`refuses ${name}, and lets nothing behind it become a request`, async () => {
      const answer = await raw(`POST /chunks HTTP/1.1\r\n${host}transfer-encoding: chunked\r\n\r\n${body}GET /smuggled HTTP/1.1\r\n${host}\r\n`);
      assert.match(answer, /^HTTP\/1\.1 400/);
      assert.ok(!reached.includes('GET /smuggled'));
    });
  }

  it('lets no request behind a broken one pass, nor one behind an error of the framing', async () => {
    const behind = await raw(`GET / HTTP/1.1\r\n${host}bad header\r\n\r\nGET /smuggled HTTP/1.1\r\n${host}\r\n`);
    assert.match(behind, /^HTTP\/1\.1 400/);
    assert.equal([...behind.matchAll(/HTTP\/1\.1 /g)].length, 1);
    const after = await raw(`GET /first HTTP/1.1\r\n${host}\r\nGET / HTTP/1.1\r\n${host}x : y\r\n\r\nGET /smuggled HTTP/1.1\r\n${host}\r\n`);
    assert.deepEqual(
      [...after.matchAll(/HTTP\/1\.1 (\d+)/g)].map((match) => match[1]),
      ['200', '400'],
    );
    assert.deepEqual(reached, ['GET /first']);
  });

  it('passes a body on GET with its framing, and ends the connection of one that broke off', async () => {
    assert.match(await raw(`GET / HTTP/1.1\r\n${host}content-length: 3\r\nconnection: close\r\n\r\nabc`), /GET 3 /);
    assert.match(await raw(`DELETE / HTTP/1.1\r\n${host}transfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n`), /DELETE 3 /);
    // The upstream connection of a request that broke off must not carry the next one.
    const broken = net.connect(client.outboundPort, '127.0.0.1');
    broken.write(`POST /half HTTP/1.1\r\n${host}content-length: 100\r\n\r\nhalf`);
    await once(broken, 'connect');
    await new Promise((resolve) => setTimeout(resolve, 50));
    broken.destroy();
    for (let i = 0; i < 5; i++) assert.match((await call({ port: client.outboundPort, path: `/after${i}`, headers: { host: 'echo:9080' } })).body, /^GET 0 /);
  });

  it('dates the responses of its own: to what is no request, and to a request that no route is for', async () => {
    for (const [request, status] of [
      ['GET / HTTP/1.1\r\n\r\n', 400],
      ['GET / HTTP/1.1\r\nhost: nowhere.example\r\nconnection: close\r\n\r\n', 502],
    ] as const) {
      const response = await raw(request);
      assert.match(response, new RegExp(`^HTTP/1\\.1 ${status} `), response);
      const date = /\r\ndate: ([^\r]+ GMT)\r\n/i.exec(response)?.[1];
      assert.ok(Math.abs(Date.parse(String(date)) - Date.now()) < 60_000, response);
    }
  });

  it('counts what it refused by reason', async () => {
    const { body } = await call({ port: client.adminPort, path: '/stats/prometheus' });
    for (const reason of ['http1.repeated_content_length', 'http1.bad_chunk', 'http1.missing_host', 'http1.space_before_colon'])
      assert.match(body, new RegExp(`mizzen_http_violations_total\\{reason="${reason}"\\} [1-9]`));
  });
});
