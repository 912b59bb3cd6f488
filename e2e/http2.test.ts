import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import http2 from 'node:http2';
import type net from 'node:net';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { cluster, http as httpManager, listener, metric, RawClient, TestEngine } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { answerOf, ask, block, connectHttp2, frame, frameTypes, getBlock, http2Server, preface, RawHttp2 } from './support/http2.ts';

const run = promisify(execFile);
const large = 5 * 1024 * 1024;

/** What both origins do, in their own version of HTTP: tell what they received, in the answer's body and trailers. */
function describeRequest(headers: http2.IncomingHttpHeaders, body: Buffer, trailers: http2.IncomingHttpHeaders): string {
  const fields = Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith(':')));
  return JSON.stringify({
    method: headers[':method'],
    path: headers[':path'],
    authority: headers[':authority'] ?? headers.host,
    fields,
    bytes: body.length,
    trailers,
  });
}

async function http1Origin(engine: TestEngine): Promise<number> {
  const server = http.createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      if (request.url === '/hints') response.writeEarlyHints({ link: '</a.css>; rel=preload' });
      if (request.url === '/empty') return response.writeHead(204).end();
      if (request.url === '/large') return response.end(Buffer.alloc(large, 'x'));
      if (request.url === '/breaks') return response.write('half', () => response.destroy());
      if (request.method === 'HEAD') return response.end();
      response.writeHead(200, { 'content-type': 'application/json', trailer: 'x-end', connection: 'x-private', 'x-private': '1' });
      response.write(describeRequest({ ':method': request.method, ':path': request.url, ...request.headers }, Buffer.concat(chunks), request.trailers));
      response.addTrailers({ 'x-end': 'yes' });
      response.end();
    });
    request.on('error', () => {});
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  engine.onClose(() => {
    server.closeAllConnections();
    server.close();
  });
  return (server.address() as net.AddressInfo).port;
}

function http2Origin(engine: TestEngine): Promise<number> {
  return http2Server(engine, (stream, headers) => {
    const chunks: Buffer[] = [];
    let trailers: http2.IncomingHttpHeaders = {};
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    stream.on('trailers', (found) => {
      trailers = found;
    });
    stream.on('end', () => {
      const path = headers[':path'];
      if (path === '/hints') stream.additionalHeaders({ ':status': 103, link: '</a.css>; rel=preload' });
      if (path === '/empty') return stream.respond({ ':status': 204 }, { endStream: true });
      if (path === '/large' || path === '/breaks') stream.respond({ ':status': 200 });
      if (path === '/large') return void stream.end(Buffer.alloc(large, 'x'));
      if (path === '/breaks') return void stream.write('half', () => stream.destroy(new Error('broken')));
      stream.respond({ ':status': 200, 'content-type': 'application/json' }, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-end': 'yes' }));
      stream.end(describeRequest(headers, Buffer.concat(chunks), trailers));
    });
  });
}

describe('any version of HTTP to any other', () => {
  const engine = new TestEngine();
  const ports: Record<'http1' | 'http2', number> = { http1: 0, http2: 0 };
  let admin = 0;
  before(async () => {
    const [one, two] = [await http1Origin(engine), await http2Origin(engine)];
    ports.http1 = await engine.ports.next();
    ports.http2 = await engine.ports.next();
    const proxy = await engine.start({
      listeners: [listener('one', ports.http1, httpManager('one')), listener('two', ports.http2, httpManager('two'))],
      clusters: [cluster('one', [one]), cluster('two', [two], { http2_protocol_options: {} })],
    });
    admin = proxy.adminPort!;
  });
  after(() => engine.close());

  for (const origin of ['http1', 'http2'] as const) {
    it(`HTTP/2 -> ${origin}: heads are mapped, content and trailers arrive both ways`, async () => {
      const session = connectHttp2(ports[origin]);
      const answer = await ask(session, {
        path: '/a/b?c=d',
        headers: { ':authority': 'shop.example:80', 'x-mine': '1', te: 'trailers', cookie: ['a=1', 'b=2'] },
        body: 'hello',
        trailers: { 'x-checksum': '42' },
      });
      const seen = JSON.parse(answer.body);
      assert.equal(answer.status, 200);
      assert.deepEqual([seen.method, seen.path, seen.authority, seen.bytes], ['POST', '/a/b?c=d', 'shop.example:80', 5]);
      assert.equal(seen.fields['x-mine'], '1');
      assert.equal(seen.fields.cookie, 'a=1; b=2', 'one field, as HTTP/1.1 wants it');
      assert.equal(seen.fields['x-forwarded-proto'], 'http');
      assert.match(seen.fields['x-request-id'], /^[0-9a-f-]{36}$/);
      assert.equal(seen.trailers['x-checksum'], '42');
      assert.equal(answer.trailers['x-end'], 'yes');
      assert.equal(answer.headers['x-private'], undefined, 'what belongs to one connection stays there');
      assert.equal(answer.headers['server'], 'mizzen');
      session.close();
    });

    it(`HTTP/1.1 -> ${origin}: the same`, async () => {
      const answer = await new Promise<{ status: number; body: string; trailers: NodeJS.Dict<string>; headers: http.IncomingHttpHeaders }>(
        (resolve, reject) => {
          const request = http.request({
            port: ports[origin],
            method: 'POST',
            path: '/a/b?c=d',
            headers: { host: 'shop.example:80', 'transfer-encoding': 'chunked', trailer: 'x-checksum', te: 'trailers' },
          });
          request.on('response', (response) => {
            let body = '';
            response.on('data', (chunk) => (body += chunk));
            response.on('end', () => resolve({ status: response.statusCode!, body, trailers: response.trailers, headers: response.headers }));
          });
          request.on('error', reject);
          request.write('hello');
          request.addTrailers({ 'x-checksum': '42' });
          request.end();
        },
      );
      const seen = JSON.parse(answer.body);
      assert.deepEqual([answer.status, seen.method, seen.path, seen.authority, seen.bytes], [200, 'POST', '/a/b?c=d', 'shop.example:80', 5]);
      assert.equal(seen.trailers['x-checksum'], '42');
      assert.equal(answer.trailers['x-end'], 'yes');
    });

    it(`-> ${origin}: interim answers, answers without content, HEAD`, async () => {
      const session = connectHttp2(ports[origin]);
      const stream = session.request({ ':path': '/hints' });
      const hints = once(stream, 'headers');
      await answerOf(stream);
      const [interim] = (await hints) as [http2.IncomingHttpHeaders];
      assert.deepEqual([interim[':status'], interim.link], [103, '</a.css>; rel=preload']);
      const empty = await ask(session, { path: '/empty' });
      assert.deepEqual([empty.status, empty.body], [204, '']);
      const head = await ask(session, { path: '/x', method: 'HEAD' });
      assert.deepEqual([head.status, head.body], [200, '']);
      session.close();
    });

    it(`-> ${origin}: more than all windows hold, many at once, in both directions`, async () => {
      const session = connectHttp2(ports[origin]);
      const downloads = await Promise.all(Array.from({ length: 8 }, () => ask(session, { path: '/large' })));
      for (const { body } of downloads) assert.equal(body.length, large, body.slice(0, 200));
      const uploads = await Promise.all(Array.from({ length: 4 }, () => ask(session, { body: Buffer.alloc(large, 'y') })));
      for (const { body } of uploads) assert.equal(JSON.parse(body).bytes, large);
      const [one, two] = await Promise.all([
        call({ port: ports[origin], path: '/large' }),
        call({ port: ports[origin], method: 'POST', body: Buffer.alloc(large) }),
      ]);
      assert.deepEqual([one.body.length, JSON.parse(two.body).bytes], [large, large]);
      session.close();
    });

    it(`-> ${origin}: an answer that breaks off is broken off, and the connection goes on`, async () => {
      const session = connectHttp2(ports[origin]);
      const stream = session.request({ ':path': '/breaks' });
      stream.on('error', () => {});
      stream.resume();
      await new Promise((resolve) => stream.on('close', resolve));
      assert.equal(stream.rstCode, http2.constants.NGHTTP2_INTERNAL_ERROR);
      assert.equal((await ask(session)).status, 200);
      session.close();
    });

    it(`-> ${origin}: a request that its client gives up is given up upstream`, async () => {
      const session = connectHttp2(ports[origin]);
      const stream = session.request({ ':path': '/large' });
      await once(stream, 'response');
      stream.close(http2.constants.NGHTTP2_CANCEL);
      assert.equal((await ask(session)).status, 200);
      session.close();
      await until(
        'no request is under way',
        () => engine.metrics(admin),
        (text) => metric(text, 'mizzen_downstream_requests_active') === 0,
      );
    });
  }

  it('one connection to a server of HTTP/2 carries what many clients ask', async () => {
    const opened = async () => metric(await engine.metrics(admin), 'envoy_cluster_upstream_cx_total', 'cluster_name="two"');
    const before = await opened();
    await Promise.all(Array.from({ length: 40 }, () => call({ port: ports.http2 })));
    const after = await opened();
    assert.ok(after - before <= 1, `${after - before} connections were opened`);
  });

  it('mirrors requests over HTTP/2, and tells nobody what became of the copy', async () => {
    const copies: string[] = [];
    const shadow = await http2Server(engine, (stream, headers) => {
      let bytes = 0;
      stream.on('data', (chunk: Buffer) => {
        bytes += chunk.length;
      });
      stream.on('end', () => {
        copies.push(`${headers[':method']} ${headers[':path']} ${headers[':authority']} ${bytes}`);
        stream.respond({ ':status': 500 }, { endStream: true });
      });
    });
    const [real, port] = [await http1Origin(engine), await engine.ports.next()];
    await engine.start({
      listeners: [listener('in', port, httpManager('real', {}, { request_mirror_policies: [{ cluster: 'shadow' }] }))],
      clusters: [cluster('real', [real]), cluster('shadow', [shadow], { http2_protocol_options: {} })],
    });
    const session = connectHttp2(port);
    const [over2, over1] = [
      await ask(session, { path: '/a', headers: { ':authority': 'shop:80' }, body: 'x'.repeat(100_000) }),
      await call({ port, path: '/b', headers: { host: 'shop' } }),
    ];
    assert.deepEqual([over2.status, over1.status], [200, 200]);
    session.close();
    await until(
      'both copies',
      async () => [...copies].sort(),
      (found) => JSON.stringify(found) === JSON.stringify(['GET /b shop-shadow 0', 'POST /a shop-shadow:80 100000']),
    );
  });

  it('HTTP/2 inside the CONNECT of a client that takes its sidecar for a proxy, however its first bytes are cut', async () => {
    const start = Buffer.concat([preface, frame(frameTypes.settings, 0, 0), frame(frameTypes.headers, 0x5, 1, getBlock)]);
    for (const cut of [0, 1, 3, 4, 30]) {
      const client = new RawClient(ports.http1).write('CONNECT a.example:80 HTTP/1.1\r\nhost: a.example:80\r\n\r\n');
      await client.until(/200 Connection established\r\n\r\n$/);
      client.text = '';
      client.write(start.subarray(0, cut));
      await new Promise(setImmediate);
      client.write(start.subarray(cut));
      await client.until(/"method":"GET","path":"\/","authority":"a\.example"/);
      client.destroy();
    }
  });

  it('curl upgrades by prior knowledge, and is not upgraded by asking unless that is configured', async () => {
    const url = `http://127.0.0.1:${ports.http1}/x`;
    const version = async (...args: string[]) => (await run('curl', ['-sS', '-o', '/dev/null', '-w', '%{http_version} %{http_code}', ...args, url])).stdout;
    assert.equal(await version('--http2-prior-knowledge'), '2 200');
    assert.equal(await version('--http2'), '1.1 200');
    assert.equal(await version('--http1.1'), '1.1 200');
  });

  it('a PING is answered, and unknown frames are passed over', async () => {
    const raw = new RawHttp2(ports.http1);
    raw.send(frame(0x42, 0xff, 0, Buffer.from('what is this')), frame(frameTypes.ping, 0, 0, Buffer.from('12345678')));
    const pong = await raw.until('PING', ({ type, flags }) => type === frameTypes.ping && flags === 1);
    assert.equal(pong.payload.toString(), '12345678');
    raw.destroy();
  });
});

describe('limits and ends of connections over HTTP/2', () => {
  const engine = new TestEngine();
  after(() => engine.close());

  async function start(manager: object, onStream: Parameters<typeof http2Server>[1], clusterOptions: object = {}, options: http2.ServerOptions = {}) {
    const origin = await http2Server(engine, onStream, options);
    const port = await engine.ports.next();
    const proxy = await engine.start(
      {
        listeners: [listener('in', port, httpManager('out', manager as never))],
        clusters: [cluster('out', [origin], { http2_protocol_options: {}, ...clusterOptions })],
      },
      { drainMs: 2_000 },
    );
    return { port, admin: proxy.adminPort!, proxy };
  }
  const answerAtOnce: Parameters<typeof http2Server>[1] = (stream) => stream.respond({ ':status': 200 }, { endStream: true });

  it('a connection that is drained says so, ends what is under way, and takes no more', async () => {
    let release: (() => void) | undefined;
    const { port, proxy } = await start({}, (stream) => {
      release = () => stream.respond({ ':status': 200 }, { endStream: true });
    });
    const session = connectHttp2(port);
    const answer = ask(session);
    await until(
      'the request is at the origin',
      async () => release,
      (found) => found !== undefined,
    );
    const goAway = once(session, 'goaway');
    const closing = proxy.close();
    assert.equal(((await goAway) as [number])[0], http2.constants.NGHTTP2_NO_ERROR);
    release!();
    assert.equal((await answer).status, 200);
    if (!session.destroyed) await once(session, 'close');
    await closing;
  });

  it('a server that refuses a stream is asked again; one that goes away fails nobody', async () => {
    let refused = 0;
    const { port } = await start({}, (stream) => {
      if (refused++ === 0) return stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
      stream.respond({ ':status': 200 }, { endStream: true });
      if (refused % 20 === 0) stream.session?.close();
    });
    const session = connectHttp2(port);
    const answers = await Promise.all(Array.from({ length: 50 }, (_, i) => ask(session, { path: `/${i}` })));
    for (const { status, body } of answers) assert.equal(status, 200, body);
    assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([200]));
    session.close();
  });

  it('a server takes no more streams at once than it has said', async () => {
    let active = 0;
    let most = 0;
    const { port } = await start(
      {},
      (stream) => {
        most = Math.max(most, ++active);
        setImmediate(() => {
          active--;
          stream.respond({ ':status': 200 }, { endStream: true });
        });
      },
      { circuit_breakers: { thresholds: [{ max_connections: 1 }] } },
      { settings: { maxConcurrentStreams: 3 } },
    );
    const session = connectHttp2(port);
    const answers = await Promise.all(Array.from({ length: 40 }, () => ask(session)));
    assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([200]));
    assert.ok(most <= 3, `${most} at once`);
    session.close();
  });

  it('100 streams are open at most, unless configured; those beyond are refused', async () => {
    const { port, admin } = await start({}, () => {});
    const raw = new RawHttp2(port);
    for (let i = 0; i < 101; i++) raw.send(frame(frameTypes.headers, 0x5, 2 * i + 1, getBlock));
    const reset = await raw.until('RST_STREAM', ({ type }) => type === frameTypes.reset);
    assert.deepEqual([reset.stream, reset.payload.readUInt32BE(0)], [201, http2.constants.NGHTTP2_REFUSED_STREAM]);
    assert.equal(metric(await engine.metrics(admin), 'mizzen_http_violations_total', 'too_many_streams'), 1);
    raw.destroy();
  });

  it('a header list over the limit is answered with 431', async () => {
    const { port } = await start({ max_request_headers_kb: 8 }, answerAtOnce);
    const session = connectHttp2(port);
    const stream = session.request({ ':path': '/', 'x-large': 'x'.repeat(10_000) });
    stream.on('error', () => {});
    const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
    assert.equal(headers[':status'], 431);
    assert.equal((await ask(session)).status, 200);
    session.destroy();
  });

  it('keepalive: a client that does not answer a PING has gone', async () => {
    const { port, admin } = await start({ http2_protocol_options: { connection_keepalive: { interval: '0.3s', timeout: '1s' } } }, answerAtOnce);
    const alive = connectHttp2(port);
    const raw = new RawHttp2(port);
    await raw.closed();
    assert.equal(metric(await engine.metrics(admin), 'mizzen_http_violations_total', 'keepalive_timeout'), 1);
    assert.equal((await ask(alive)).status, 200, 'one that answers stays');
    alive.destroy();
  });

  it('keepalive to a server: the round trip is measured, and one that does not answer a PING is left', async () => {
    const keepalive = { http2_protocol_options: { connection_keepalive: { interval: '0.1s', timeout: '0.4s' } } };
    const { port, admin } = await start({}, answerAtOnce, keepalive);
    assert.equal((await call({ port })).status, 200);
    await until(
      'a round trip',
      async () => JSON.parse((await call({ port: admin, path: '/clusters' })).body).clusters[0].endpoints[0],
      (endpoint) => endpoint.http2_connections === 1 && endpoint.round_trip_ms >= 0,
    );
    // This one answers the first request, and then nothing any more.
    const silent = await engine.server((socket) => {
      socket.write(Buffer.concat([frame(frameTypes.settings, 0, 0), frame(frameTypes.settings, 1, 0)]));
      socket.once('data', () => socket.write(frame(frameTypes.headers, 0x5, 1, block([[':status', '200']]))));
    });
    const other = await engine.ports.next();
    const proxy = await engine.start({ listeners: [listener('in', other, httpManager('out'))], clusters: [cluster('out', [silent], keepalive)] });
    assert.equal((await call({ port: other })).status, 200);
    await until(
      'the connection is left',
      () => engine.metrics(proxy.adminPort!),
      (text) => metric(text, 'mizzen_upstream_http_violations_total', 'http2.keepalive_timeout') === 1,
    );
  });

  it('a connection without a request ends after its idle timeout, politely', async () => {
    const { port } = await start({ common_http_protocol_options: { idle_timeout: '0.3s' } }, answerAtOnce);
    const session = connectHttp2(port);
    await ask(session);
    const goAway = once(session, 'goaway');
    const closed = once(session, 'close');
    await goAway;
    await closed;
  });

  it('a stream on which nothing moves ends after its idle timeout; the connection and its other streams go on', async () => {
    const { port } = await start({ stream_idle_timeout: '1s' }, (stream, headers) => {
      if (headers[':path'] === '/never') return;
      stream.respond({ ':status': 200 });
      const timer = setInterval(() => stream.write('tick'), 100);
      stream.on('close', () => clearInterval(timer));
      setTimeout(() => stream.end(), 2_500);
    });
    const session = connectHttp2(port);
    const [never, ticking] = await Promise.all([ask(session, { path: '/never' }), ask(session, { path: '/ticks' })]);
    assert.deepEqual([never.status, ticking.status], [408, 200]);
    assert.ok(ticking.body.length >= 4 * 15);
    session.destroy();
  });

  it('an upgrade from HTTP/1.1 is accepted where it is configured (h2c)', async () => {
    const { port } = await start({ upgrade_configs: [{ upgrade_type: 'h2c' }] }, answerAtOnce);
    const { stdout } = await run('curl', ['-sS', '-o', '/dev/null', '-w', '%{http_version} %{http_code}', '--http2', `http://127.0.0.1:${port}/x`]);
    assert.equal(stdout, '2 200');
  });

  it('a header block that never ends is not waited for', async () => {
    const { port, admin } = await start({ request_headers_timeout: '0.4s' }, answerAtOnce);
    const raw = new RawHttp2(port);
    raw.send(frame(frameTypes.headers, 0x1, 1, block([[':method', 'GET']])));
    await raw.closed();
    assert.ok(metric(await engine.metrics(admin), 'mizzen_timeouts_total') >= 1);
  });
});
