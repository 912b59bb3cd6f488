import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import type { StartedProxy } from '@mizzen/proxy';
import { cluster, http as httpFilter, type Json, listener, metric, RawClient, TestEngine, typed } from './support/engine.ts';
import { call, until } from './support/http.ts';

const get = (path = '/', more = '') => `GET ${path} HTTP/1.1\r\nhost: a\r\n${more}\r\n`;

describe('the HTTP/1.1 engine', () => {
  const engine = new TestEngine();
  let echo: number;
  const seen: string[] = [];
  const heads: Record<string, string[]> = {};

  /** A proxy of its own for each test; `port` is its listener's. */
  const proxy = async (
    options: {
      readonly manager?: Json;
      readonly route?: Json;
      readonly routes?: readonly Json[];
      readonly upstream?: Json;
      readonly listener?: Json;
      readonly overload?: Json;
      readonly ports?: readonly number[];
      readonly drainMs?: number;
    } = {},
  ): Promise<{ proxy: StartedProxy; port: number; metrics: () => Promise<string> }> => {
    const port = await engine.ports.next();
    const started = await engine.start(
      {
        listeners: [listener('in', port, httpFilter('app', options.manager, options.route, options.routes), options.listener)],
        clusters: [cluster('app', options.ports ?? [echo], options.upstream)],
        ...(options.overload ? { overload: options.overload } : {}),
      },
      options.drainMs === undefined ? {} : { drainMs: options.drainMs },
    );
    return { proxy: started, port, metrics: () => engine.metrics(started.adminPort!) };
  };

  before(async () => {
    const server = http.createServer((request, response) => {
      seen.push(`${request.method} ${request.url}`);
      heads[request.url ?? ''] = request.rawHeaders;
      if (request.url === '/never') return;
      if (request.url === '/slow') return void setTimeout(() => response.end('slow'), 300);
      if (request.url === '/headers')
        return void response
          .writeHead(200, [
            ['X-CamelCase', 'a'],
            ['x_under', 'b'],
          ] as never)
          .end('ok');
      if (request.url === '/continue') {
        request.resume().on('end', () => response.end('continued'));
        return;
      }
      request.resume().on('end', () => response.end(`${request.method} ${request.url}`));
    });
    server.keepAliveTimeout = 60_000;
    server.on('upgrade', (request, socket) => {
      seen.push(`upgrade ${request.url}`);
      if (request.url === '/refuse') return void socket.end('HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno');
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello ');
      socket.on('data', (chunk: Buffer) => socket.write(chunk.toString().toUpperCase()));
      socket.on('end', () => socket.end('bye'));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    echo = (server.address() as AddressInfo).port;
    engine.onClose(() => {
      server.closeAllConnections();
      server.close();
    });
  });
  after(() => engine.close());

  describe('tunnels', () => {
    const websocket = 'connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n';

    it('carries a WebSocket in both directions, and the end of each', async () => {
      const { port, metrics } = await proxy({ manager: { upgrade_configs: [{ upgrade_type: 'websocket' }] } });
      const client = new RawClient(port, { allowHalfOpen: true });
      client.write(get('/ws', websocket));
      await client.until(/^HTTP\/1\.1 101 Switching Protocols\r\n[\s\S]*connection: upgrade\r\nupgrade: websocket\r\n\r\nhello $/i);
      client.write('abc');
      await client.until(/hello ABC$/);
      client.socket.end();
      assert.match(await client.closed(), /hello ABCbye$/);
      assert.equal(metric(await metrics(), 'mizzen_tunnels_total'), 1);
      await until('no connection is left', metrics, (text) => metric(text, 'mizzen_downstream_connections_active') === 0);
    });

    it('passes on an answer that refuses, refuses what is not enabled, and an upgrade with a body', async () => {
      const { port } = await proxy({ manager: { upgrade_configs: [{ upgrade_type: 'websocket' }] } });
      const client = new RawClient(port);
      client.write(get('/refuse', websocket));
      await client.until(/^HTTP\/1\.1 426 [\s\S]*no$/);
      const other = new RawClient(port);
      other.write(get('/x', 'connection: upgrade\r\nupgrade: spdy/3\r\n'));
      await other.until(/^HTTP\/1\.1 403 /);
      const withBody = new RawClient(port);
      withBody.write(`POST /body HTTP/1.1\r\nhost: a\r\n${websocket}content-length: 3\r\n\r\nabc`);
      await withBody.until(/^HTTP\/1\.1 400 [\s\S]*upgrade_with_body/);
      const h2c = new RawClient(port);
      h2c.write(get('/h2c', 'connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n'));
      await h2c.until(/GET \/h2c$/);
      assert.ok(!seen.includes('POST /body') && !seen.includes('upgrade /body') && !seen.includes('GET /x'));
      for (const each of [client, other, withBody, h2c]) each.destroy();
    });

    it('ends a CONNECT here where the route says so, and carries bytes to the cluster', async () => {
      const banner = await engine.server((socket) => {
        socket.write('220 ready\r\n');
        socket.on('data', (chunk: Buffer) => socket.end(`got ${chunk}`));
      });
      const { port } = await proxy({
        ports: [banner],
        manager: { upgrade_configs: [{ upgrade_type: 'CONNECT' }] },
        routes: [{ match: { connect_matcher: {} }, route: { cluster: 'app', upgrade_configs: [{ upgrade_type: 'CONNECT', connect_config: {} }] } }],
      });
      const client = new RawClient(port);
      client.write('CONNECT mail:25 HTTP/1.1\r\nhost: mail:25\r\n\r\n');
      await client.until(/^HTTP\/1\.1 200 OK\r\n\r\n220 ready\r\n$/);
      client.write('EHLO');
      assert.match(await client.closed(), /got EHLO$/);
    });

    it('sends a CONNECT on to a proxy behind it, and its refusal back', async () => {
      const behind = await engine.server((socket) => {
        let text = '';
        socket.on('data', (chunk: Buffer) => {
          text += chunk.toString();
          if (text.startsWith('CONNECT good:1 HTTP/1.1\r\n') && text.endsWith('\r\n\r\n')) socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
          else if (text.startsWith('CONNECT bad:1 ') && text.endsWith('\r\n\r\n')) socket.write('HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno');
          else if (text.endsWith('ping')) socket.end('pong');
        });
      });
      const { port } = await proxy({
        ports: [behind],
        manager: { upgrade_configs: [{ upgrade_type: 'CONNECT' }] },
        routes: [{ match: { connect_matcher: {} }, route: { cluster: 'app' } }],
      });
      const good = new RawClient(port);
      good.write('CONNECT good:1 HTTP/1.1\r\nhost: good:1\r\n\r\n');
      await good.until(/^HTTP\/1\.1 200 OK\r\n\r\n$/);
      good.write('ping');
      assert.match(await good.closed(), /pong$/);
      const bad = new RawClient(port);
      bad.write('CONNECT bad:1 HTTP/1.1\r\nhost: bad:1\r\n\r\n');
      await bad.until(/^HTTP\/1\.1 403 [\s\S]*no$/);
      bad.destroy();
    });
  });

  describe('header options', () => {
    it('keeps the case of names, or writes them as asked, in both directions', async () => {
      const kept = await proxy();
      const answer = new RawClient(kept.port).write(get('/headers', 'X-MiXed: 1\r\n'));
      await answer.until(/X-CamelCase: a/);
      assert.ok(heads['/headers']?.includes('X-MiXed'));
      answer.destroy();
      const lower = { stateful_formatter: typed('mizzen.header_formatters.lower_case', 'extensions.transport_sockets.raw_buffer.v3.RawBuffer') };
      const lowered = await proxy({
        manager: { http_protocol_options: { header_key_format: lower } },
        upstream: { http_protocol_options: { header_key_format: { proper_case_words: {} } } },
      });
      const client = new RawClient(lowered.port).write(get('/headers', 'X-MiXed: 1\r\n'));
      await client.until(/x-camelcase: a/);
      assert.ok(heads['/headers']?.includes('X-Mixed'), `${heads['/headers']}`);
      client.destroy();
    });

    it('refuses or drops names with underscores when told to', async () => {
      const reject = await proxy({ manager: { common_http_protocol_options: { headers_with_underscores_action: 'REJECT_REQUEST' } } });
      const refused = new RawClient(reject.port).write(get('/u', 'x_y: 1\r\n'));
      await refused.until(/^HTTP\/1\.1 400 /);
      const drop = await proxy({ manager: { common_http_protocol_options: { headers_with_underscores_action: 'DROP_HEADER' } } });
      const dropped = new RawClient(drop.port).write(get('/dropped', 'x_y: 1\r\n'));
      await dropped.until(/^HTTP\/1\.1 200 /);
      assert.ok(!heads['/dropped']?.includes('x_y'));
      for (const each of [refused, dropped]) each.destroy();
    });

    it('leaves 100-continue to the server when told to', async () => {
      const { port } = await proxy({ manager: { proxy_100_continue: true } });
      const client = new RawClient(port).write('POST /continue HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n');
      await client.until(/^HTTP\/1\.1 100 Continue\r\n\r\n/);
      assert.ok(heads['/continue']?.includes('expect'));
      client.write('ok');
      await client.until(/continued$/);
      client.destroy();
    });
  });

  describe('limits and timeouts', () => {
    it('takes max_request_headers_kb and max_headers_count from the configuration', async () => {
      const { port } = await proxy({ manager: { max_request_headers_kb: 4, common_http_protocol_options: { max_headers_count: 5 } } });
      const large = new RawClient(port).write(get('/', `x: ${'a'.repeat(5000)}\r\n`));
      await large.until(/^HTTP\/1\.1 431 /);
      const many = new RawClient(port).write(get('/', 'a: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\ne: 1\r\n'));
      await many.until(/^HTTP\/1\.1 431 /);
      for (const each of [large, many]) each.destroy();
    });

    it('ends a head that trickles in, and a body that does', async () => {
      const { port, metrics } = await proxy({ manager: { request_headers_timeout: '0.3s', request_timeout: '0.6s' } });
      const head = new RawClient(port).write('GET / HTTP/1.1\r\nhos');
      await head.closed();
      assert.match(head.text, /^HTTP\/1\.1 408 /);
      const body = new RawClient(port).write('POST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc');
      const trickle = setInterval(() => body.write('x'), 400);
      await body.closed();
      clearInterval(trickle);
      assert.match(body.text, /^HTTP\/1\.1 408 [\s\S]*request timeout/);
      assert.equal(metric(await metrics(), 'mizzen_timeouts_total'), 2);
    });

    it('ends streams and connections on which nothing moves, and streams that last too long', async () => {
      const idle = await proxy({ manager: { stream_idle_timeout: '0.3s', common_http_protocol_options: { idle_timeout: '0.3s' } } });
      const stream = new RawClient(idle.port).write(get('/never'));
      await stream.closed();
      assert.match(stream.text, /^HTTP\/1\.1 408 [\s\S]*stream timeout/);
      const connection = new RawClient(idle.port).write(get('/x'));
      await connection.until(/GET \/x$/);
      await connection.closed();
      const long = await proxy({ manager: { common_http_protocol_options: { max_stream_duration: '0.3s' } } });
      const client = new RawClient(long.port).write(get('/never'));
      await client.until(/^HTTP\/1\.1 504 [\s\S]*duration timeout/);
      client.destroy();
    });

    it('carries no more requests on a connection, and for no longer, than it may', async () => {
      const few = await proxy({ manager: { common_http_protocol_options: { max_requests_per_connection: 2 } } });
      const client = new RawClient(few.port).write(get('/1') + get('/2') + get('/3'));
      const text = await client.closed();
      assert.equal([...text.matchAll(/HTTP\/1\.1 200/g)].length, 2);
      assert.match(text, /GET \/1HTTP[\s\S]*connection: close[\s\S]*GET \/2$/);
      const short = await proxy({ manager: { common_http_protocol_options: { max_connection_duration: '0.4s' } } });
      const aged = new RawClient(short.port).write(get('/a'));
      await aged.until(/GET \/a$/);
      await aged.closed();
    });

    it('gives up on an answer that does not come, and on a server that is not there', async () => {
      const { port } = await proxy({ route: { timeout: '0.3s' } });
      const client = new RawClient(port).write(get('/never'));
      await client.until(/^HTTP\/1\.1 504 [\s\S]*upstream request timeout/);
      client.destroy();
      const refused = await proxy({ ports: [await engine.ports.next()] });
      const answer = await call({ port: refused.port, headers: { host: 'a' } });
      assert.equal(answer.status, 503);
      assert.match(answer.body, /connection failure/);
    });

    it('half-closes after the last answer, and ends the connection after delayed_close_timeout', async () => {
      const { port, metrics } = await proxy({ manager: { delayed_close_timeout: '0.3s' } });
      const client = new RawClient(port, { allowHalfOpen: true }).write(get('/', 'connection: close\r\n'));
      await once(client.socket, 'end');
      assert.match(client.text, /GET \/$/);
      // Our side stays open, and the proxy ends the connection all the same.
      await until('the proxy has gone', metrics, (text) => metric(text, 'mizzen_downstream_connections_active') === 0);
      client.destroy();
    });

    it('lets a slow reader take the last answer to its end, however short the delayed close is', async () => {
      const size = 30 * 1024 * 1024;
      const large = await engine.server((socket) => {
        socket.once('data', () => {
          socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${size}\r\n\r\n`);
          socket.write(Buffer.alloc(size, 'x'));
        });
      });
      const { port } = await proxy({ ports: [large], manager: { delayed_close_timeout: '0.2s' } });
      const client = net.connect(port, '127.0.0.1');
      client.write(get('/', 'connection: close\r\n'));
      await once(client, 'readable');
      client.pause();
      // Longer than the delayed close: the proxy has long handed over what it had.
      await new Promise((resolve) => setTimeout(resolve, 900));
      let received = 0;
      client.on('data', (chunk: Buffer) => (received += chunk.length));
      client.resume();
      await once(client, 'close');
      assert.ok(received > size, `${received} of ${size} bytes`);
    });

    it('refuses connections beyond the global limit and says so in its metrics', async () => {
      const { port, metrics } = await proxy({
        overload: {
          resource_monitors: [
            typed(
              'envoy.resource_monitors.global_downstream_max_connections',
              'extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig',
              {
                max_active_downstream_connections: '2',
              },
            ),
          ],
        },
      });
      const clients = [new RawClient(port), new RawClient(port)];
      for (const client of clients) {
        client.write(get('/in'));
        await client.until(/GET \/in$/);
      }
      const third = new RawClient(port).write(get('/out'));
      assert.equal(await third.closed(), '');
      assert.equal(metric(await metrics(), 'mizzen_downstream_connections_overload_rejected_total'), 1);
      clients[0]!.destroy();
      await until('a place is free', metrics, (text) => metric(text, 'mizzen_downstream_connections_active') === 1);
      const fourth = new RawClient(port).write(get('/in'));
      await fourth.until(/GET \/in$/);
      for (const each of [...clients, fourth]) each.destroy();
    });

    it('first ends keep-alive and then refuses requests when memory runs out', async () => {
      const monitor = typed('envoy.resource_monitors.fixed_heap', 'extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig', { max_heap_size_bytes: '1' });
      const trigger = [{ name: 'envoy.resource_monitors.fixed_heap', threshold: { value: 0.9 } }];
      const close = await proxy({
        overload: {
          refresh_interval: '0.05s',
          resource_monitors: [monitor],
          actions: [{ name: 'envoy.overload_actions.disable_http_keepalive', triggers: trigger }],
        },
      });
      await until(
        'connections end with their request',
        async () => (await call({ port: close.port, headers: { host: 'a', connection: 'keep-alive' } })).headers['connection'],
        (connection) => connection === 'close',
      );
      const refuse = await proxy({
        overload: {
          refresh_interval: '0.05s',
          resource_monitors: [monitor],
          actions: [{ name: 'envoy.overload_actions.stop_accepting_requests', triggers: trigger }],
        },
      });
      const answer = await until(
        'requests are refused',
        () => call({ port: refuse.port, headers: { host: 'a' } }),
        ({ status }) => status === 503,
      );
      assert.equal(answer.headers['x-envoy-overloaded'], 'true');
      assert.ok(metric(await refuse.metrics(), 'mizzen_downstream_requests_overload_rejected_total') > 0);
    });
  });

  describe('connection pools', () => {
    const limits = (thresholds: Json) => ({ circuit_breakers: { thresholds: [thresholds] } });

    it('lets requests wait for a connection, as many as max_pending_requests, and refuses the rest', async () => {
      const { port, metrics } = await proxy({ upstream: limits({ max_connections: 1, max_pending_requests: 2 }) });
      const answers = await Promise.all(Array.from({ length: 5 }, () => call({ port, path: '/slow', headers: { host: 'a' }, agent: new http.Agent() })));
      assert.deepEqual(answers.map((answer) => answer.status).sort(), [200, 200, 200, 503, 503]);
      const text = await metrics();
      assert.equal(metric(text, 'envoy_cluster_upstream_rq_pending_overflow'), 2);
      assert.equal(metric(text, 'envoy_cluster_upstream_cx_total'), 1);
      assert.equal(metric(text, 'envoy_cluster_upstream_rq_pending_active'), 0);
    });

    it('takes a request out of the queue when its client goes', async () => {
      const { port, metrics } = await proxy({ upstream: limits({ max_connections: 1, max_pending_requests: 1 }) });
      const first = new RawClient(port).write(get('/slow'));
      await until('the first is under way', metrics, (text) => metric(text, 'envoy_cluster_upstream_rq_active') === 1);
      const second = new RawClient(port).write(get('/gone'));
      await until('the second waits', metrics, (text) => metric(text, 'envoy_cluster_upstream_rq_pending_active') === 1);
      second.destroy();
      await until('nobody waits', metrics, (text) => metric(text, 'envoy_cluster_upstream_rq_pending_active') === 0);
      await first.until(/slow$/);
      assert.ok(!seen.includes('GET /gone'));
      first.destroy();
    });

    it('opens its circuit exactly at max_requests', async () => {
      const { port } = await proxy({ upstream: limits({ max_requests: 3 }) });
      const answers = await Promise.all(Array.from({ length: 8 }, () => call({ port, path: '/slow', headers: { host: 'a' }, agent: new http.Agent() })));
      assert.deepEqual(answers.map((answer) => answer.status).filter((status) => status === 200).length, 3);
    });

    it('sends a request again, once, when the connection that it was given had been closed by the server', async () => {
      let connections = 0;
      const closing = await engine.server((socket) => {
        connections++;
        let requests = 0;
        socket.on('data', () => {
          // Answers the first request of a connection, and is gone when the second comes.
          if (++requests === 1) socket.write('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok');
          else socket.destroy();
        });
      });
      const { port, metrics } = await proxy({ ports: [closing] });
      const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      for (let i = 0; i < 5; i++) assert.equal((await call({ port, headers: { host: 'a' }, agent })).body, 'ok');
      assert.equal(connections, 5);
      // A POST may have done its work: it is not repeated.
      assert.equal((await call({ port, method: 'POST', headers: { host: 'a' }, agent })).status, 503);
      assert.equal(metric(await metrics(), 'envoy_cluster_upstream_rq_total') >= 10, true);
      agent.destroy();
    });

    it('closes idle connections after the idle timeout, and connections that are too old', async () => {
      const { port, metrics } = await proxy({ upstream: { common_http_protocol_options: { idle_timeout: '0.3s' } } });
      await call({ port, headers: { host: 'a' } });
      await until('the connection is open', metrics, (text) => metric(text, 'envoy_cluster_upstream_cx_active') <= 1);
      await until('it is gone', metrics, (text) => metric(text, 'envoy_cluster_upstream_cx_active') === 0);
      const old = await proxy({ upstream: { common_http_protocol_options: { max_requests_per_connection: 1 } } });
      for (let i = 0; i < 3; i++) await call({ port: old.port, headers: { host: 'a' } });
      assert.equal(metric(await old.metrics(), 'envoy_cluster_upstream_cx_total'), 3);
    });

    it('opens connections ahead of need when told to', async () => {
      const { port, metrics } = await proxy({ upstream: { preconnect_policy: { per_upstream_preconnect_ratio: 2.5 } } });
      await call({ port, headers: { host: 'a' } });
      await until('connections are there', metrics, (text) => metric(text, 'envoy_cluster_upstream_cx_active') === 3);
    });

    it('takes no answer for a request that was not sent yet', async () => {
      const eager = await engine.server((socket) => {
        socket.on('data', () => socket.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npoisoned'));
      });
      const { port } = await proxy({ ports: [eager], upstream: limits({ max_connections: 1 }) });
      const agent = new http.Agent({ keepAlive: true });
      const answers = await Promise.all(Array.from({ length: 6 }, () => call({ port, headers: { host: 'a' }, agent })));
      assert.deepEqual([...new Set(answers.map((answer) => answer.body))], ['first']);
      agent.destroy();
    });
  });

  it('drains in order: says close on each answer, lets no idle connection hang, and closes its port', async () => {
    const { proxy: started, port } = await proxy({ drainMs: 3_000 });
    const busy = new RawClient(port).write(get('/slow'));
    const idle = new RawClient(port).write(get('/i'));
    await idle.until(/GET \/i$/);
    await until(
      'both are in',
      () => engine.metrics(started.adminPort!),
      (text) => metric(text, 'envoy_cluster_upstream_rq_active') === 1,
    );
    const closing = started.close();
    assert.match((await call({ port: started.adminPort!, path: '/ready' })).body, /draining/);
    // A connection that a client is just using, or opening, is not cut: it gets its answer and is told to end.
    idle.write(get('/late'));
    await idle.until(/connection: close[\s\S]*GET \/late$/);
    await busy.until(/connection: close[\s\S]*slow$/);
    await idle.closed();
    await closing;
    await assert.rejects(call({ port, headers: { host: 'a' } }), /ECONNREFUSED/);
  });
});
