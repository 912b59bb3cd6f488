import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { cluster, http as httpFilter, listener, TestEngine } from '../e2e/support/engine.ts';

/** Other people's HTTP/1.1 clients, before a server that is not ours either: curl, Python's http.client, Node's fetch and WebSocket. */
describe("other people's HTTP/1.1 clients", () => {
  const engine = new TestEngine();
  const run = promisify(execFile);
  let port: number;
  let base: string;
  const body = Buffer.alloc(3_000_000, 'conformance ');
  const digest = createHash('sha256').update(body).digest('hex');

  before(async () => {
    const server = http.createServer((request, response) => {
      const hash = createHash('sha256');
      let size = 0;
      request.on('data', (chunk: Buffer) => {
        size += chunk.length;
        hash.update(chunk);
      });
      request.on('end', () => {
        if (request.url === '/large') return response.writeHead(200, { 'content-length': body.length }).end(body);
        if (request.url === '/none') return response.writeHead(204).end();
        response.setHeader('trailer', 'x-sum');
        response.write(`${request.method} ${size} ${hash.digest('hex')} ${request.headers['transfer-encoding'] ?? '-'}`);
        response.addTrailers({ 'x-sum': 'ok' });
        response.end();
      });
    });
    server.on('upgrade', (request, socket) => {
      const accept = createHash('sha1').update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
      socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
      socket.on('error', () => {});
      socket.once('data', (frame: Buffer) => {
        // One short masked text frame (RFC 6455 section 5.2), answered in upper case.
        const length = frame[1]! & 0x7f;
        const mask = frame.subarray(2, 6);
        const text = Buffer.from(frame.subarray(6, 6 + length).map((byte, i) => byte ^ mask[i % 4]!))
          .toString()
          .toUpperCase();
        socket.write(Buffer.concat([Buffer.from([0x81, text.length]), Buffer.from(text)]));
      });
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    engine.onClose(() => {
      server.closeAllConnections();
      server.close();
    });
    port = await engine.ports.next();
    base = `http://127.0.0.1:${port}`;
    await engine.start({
      listeners: [listener('in', port, httpFilter('app', { upgrade_configs: [{ upgrade_type: 'websocket' }] }))],
      clusters: [cluster('app', [(server.address() as AddressInfo).port])],
    });
    writeFileSync(join(engine.folder, 'body'), body);
  });
  after(() => engine.close());

  it('serves curl: uploads with 100-continue, chunked uploads, HTTP/1.0, HEAD, several requests on one connection', async () => {
    const file = join(engine.folder, 'body');
    const curl = async (...args: string[]) => (await run('curl', ['-sS', ...args], { maxBuffer: 16 * 1024 * 1024 })).stdout;
    assert.match(await curl('--data-binary', `@${file}`, '-H', 'Expect: 100-continue', `${base}/`), new RegExp(`^POST 3000000 ${digest} -`));
    assert.match(await curl('-T', file, '-H', 'Transfer-Encoding: chunked', `${base}/`), new RegExp(`^PUT 3000000 ${digest} chunked`));
    assert.match(await curl('-0', `${base}/`), /^GET 0 /);
    assert.match(await curl('-I', `${base}/large`), /^HTTP\/1\.1 200 OK\r\n[\s\S]*content-length: 3000000/i);
    assert.equal(
      createHash('sha256')
        .update(await curl(`${base}/large`))
        .digest('hex'),
      digest,
    );
    const several = await curl('-w', '%{num_connects} ', `${base}/none`, `${base}/none`, `${base}/none`);
    assert.equal(several.trim(), '1 0 0');
  });

  it("serves Python's http.client: chunked iterables, kept connections", async () => {
    const program = `
import http.client, hashlib
c = http.client.HTTPConnection('127.0.0.1', ${port})
for i in range(3):
    c.request('POST', '/', body=(b'chunk%d' % n for n in range(1000)), encode_chunked=True, headers={'Transfer-Encoding': 'chunked'})
    r = c.getresponse()
    print(r.status, r.read().decode())
c.request('GET', '/none'); r = c.getresponse(); print(r.status, r.read())
c.request('HEAD', '/large'); r = c.getresponse(); print(r.status, len(r.read()), r.headers['content-length'])
`;
    const child = spawn('python3', ['-c', program], { stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.on('data', (chunk) => (output += chunk));
    assert.deepEqual(await once(child, 'exit'), [0, null]);
    const lines = output.trim().split('\n');
    assert.match(lines[0]!, /^200 POST 7890 [0-9a-f]{64} chunked$/);
    assert.deepEqual(new Set(lines.slice(0, 3)).size, 1);
    assert.deepEqual(lines.slice(3), ["204 b''", '200 0 3000000']);
  });

  it("serves Node's fetch, streaming both ways, and its WebSocket", async () => {
    const stream = new ReadableStream({
      start(controller) {
        for (let at = 0; at < body.length; at += 50_000) controller.enqueue(body.subarray(at, at + 50_000));
        controller.close();
      },
    });
    const answer = await fetch(`${base}/`, { method: 'POST', body: stream, duplex: 'half' } as RequestInit);
    assert.match(await answer.text(), new RegExp(`^POST 3000000 ${digest} chunked`));
    assert.equal(Buffer.from(await (await fetch(`${base}/large`)).arrayBuffer()).equals(body), true);
    const socket = new WebSocket(`ws://127.0.0.1:${port}/ws`);
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = () => reject(new Error('the WebSocket was refused'));
    });
    const message = new Promise((resolve) => {
      socket.onmessage = (event) => resolve(event.data);
    });
    socket.send('hello');
    assert.equal(await message, 'HELLO');
    socket.close();
  });
});
