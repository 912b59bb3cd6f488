import assert from 'node:assert/strict';
import { once } from 'node:events';
import type http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { WebSocket, WebSocketServer } from 'ws';
import { cluster, http as httpManager, listener, metric, TestEngine } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { connectHttp2, http2Server } from './support/http2.ts';
import { service, TestMesh } from './support/mesh.ts';

/** Answers each message in capitals; `ticks` sends on its own. */
async function webSocketApp(onClose: (close: () => Promise<void>) => void): Promise<number> {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  server.on('connection', (socket, request) => {
    if (request.url === '/ticks') {
      const timer = setInterval(() => socket.send('tick'), 100);
      socket.on('close', () => clearInterval(timer));
    }
    socket.on('message', (message) => socket.send(String(message).toUpperCase()));
    socket.on('error', () => {});
  });
  onClose(async () => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

/** A text frame of a client (RFC 6455 section 5.2), of fewer than 126 bytes. */
function textFrame(text: string): Buffer {
  const mask = Buffer.from([1, 2, 3, 4]);
  const bytes = Buffer.from(text).map((byte, i) => byte ^ mask[i % 4]!);
  return Buffer.concat([Buffer.from([0x81, 0x80 | bytes.length]), mask, bytes]);
}

function extendedConnect(session: http2.ClientHttp2Session, path: string, authority: string): http2.ClientHttp2Stream {
  return session.request(
    { ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'http', ':path': path, ':authority': authority, 'sec-websocket-version': '13' },
    { endStream: false },
  );
}

describe('WebSocket', () => {
  const engine = new TestEngine();
  /** Listeners by what the cluster behind them speaks. */
  const ports = { http1: 0, http2: 0, off: 0, deaf: 0 };
  let admin = 0;

  before(async () => {
    const app = await webSocketApp((close) => engine.onClose(close));
    // A server of HTTP/2 that takes extended CONNECT: what comes through is sent back.
    const overHttp2 = await http2Server(
      engine,
      (stream, headers) => {
        if (headers[':protocol'] !== 'websocket' || headers['sec-websocket-key'] !== undefined) return stream.respond({ ':status': 400 }, { endStream: true });
        stream.respond({ ':status': 200 });
        stream.on('data', (chunk: Buffer) => stream.write(chunk));
        stream.on('end', () => stream.end());
      },
      { settings: { enableConnectProtocol: true } },
    );
    const deaf = await http2Server(engine, (stream) => stream.respond({ ':status': 200 }, { endStream: true }));
    for (const name of Object.keys(ports) as (keyof typeof ports)[]) ports[name] = await engine.ports.next();
    const on = { upgrade_configs: [{ upgrade_type: 'websocket' }], stream_idle_timeout: '1s' };
    const proxy = await engine.start({
      listeners: [
        listener('one', ports.http1, httpManager('one', on)),
        listener('two', ports.http2, httpManager('two', on)),
        listener('off', ports.off, httpManager('one')),
        listener('deaf', ports.deaf, httpManager('deaf', on)),
      ],
      clusters: [cluster('one', [app]), cluster('two', [overHttp2], { http2_protocol_options: {} }), cluster('deaf', [deaf], { http2_protocol_options: {} })],
    });
    admin = proxy.adminPort!;
  });
  after(() => engine.close());

  it('by Upgrade to a server of HTTP/1.1', async () => {
    const socket = new WebSocket(`ws://127.0.0.1:${ports.http1}/`);
    await once(socket, 'open');
    socket.send('hello');
    const [answer] = (await once(socket, 'message')) as [Buffer];
    assert.equal(answer.toString(), 'HELLO');
    socket.close();
    await once(socket, 'close');
  });

  it('by extended CONNECT to a server of HTTP/1.1, which gets the key that RFC 6455 wants', async () => {
    const session = connectHttp2(ports.http1);
    await once(session, 'remoteSettings');
    assert.equal(session.remoteSettings.enableConnectProtocol, true);
    const stream = extendedConnect(session, '/', 'a.example');
    const [headers] = (await once(stream, 'response')) as [http2.IncomingHttpHeaders];
    assert.equal(headers[':status'], 200);
    assert.equal(headers['sec-websocket-accept'], undefined);
    stream.write(textFrame('over two'));
    const [answer] = (await once(stream, 'data')) as [Buffer];
    assert.equal(answer.toString('latin1', 2), 'OVER TWO');
    stream.end();
    stream.resume();
    await once(stream, 'close');
    session.close();
  });

  it('by Upgrade to a server of HTTP/2; the client gets the proof that it wants', async () => {
    // The origin sends back what comes, masked: that is not for a client of ws, which checks the handshake all the same.
    const socket = new WebSocket(`ws://127.0.0.1:${ports.http2}/`);
    await once(socket, 'open');
    socket.terminate();
  });

  it('by extended CONNECT to a server of HTTP/2, with half-close in both directions', async () => {
    const session = connectHttp2(ports.http2);
    await once(session, 'remoteSettings');
    const stream = extendedConnect(session, '/', 'a.example');
    let received = '';
    stream.on('data', (chunk: Buffer) => (received += chunk));
    await once(stream, 'response');
    stream.write('x'.repeat(500_000));
    stream.end('the end');
    await once(stream, 'end');
    assert.equal(received.length, 500_007);
    assert.ok(received.endsWith('the end'));
    session.close();
  });

  it('is refused where it is not switched on, and to servers that do not take it', async () => {
    const session = connectHttp2(ports.off);
    await once(session, 'remoteSettings');
    const refused = extendedConnect(session, '/', 'a.example');
    const [headers] = (await once(refused, 'response')) as [http2.IncomingHttpHeaders];
    assert.equal(headers[':status'], 403);
    session.close();
    const deaf = await call({
      port: ports.deaf,
      headers: { connection: 'upgrade', upgrade: 'websocket', 'sec-websocket-key': 'x', 'sec-websocket-version': '13' },
    });
    assert.equal(deaf.status, 502);
    assert.match(deaf.body, /takes no websocket over HTTP\/2/);
  });

  it('is answered when the server of HTTP/2 ends the connection before it has said what it takes, or is not there', async () => {
    const rude = await engine.server((socket) => socket.once('data', () => socket.destroy()));
    for (const to of [rude, await engine.ports.next()]) {
      const port = await engine.ports.next();
      await engine.start({
        listeners: [listener('in', port, httpManager('out', { upgrade_configs: [{ upgrade_type: 'websocket' }] }))],
        clusters: [cluster('out', [to], { http2_protocol_options: {} })],
      });
      const answer = await call({ port, headers: { connection: 'upgrade', upgrade: 'websocket', 'sec-websocket-key': 'x', 'sec-websocket-version': '13' } });
      assert.equal(answer.status, 503);
    }
  });

  it('idle timeouts end what is idle, not what lives in one direction only', async () => {
    const ticking = new WebSocket(`ws://127.0.0.1:${ports.http1}/ticks`);
    const idle = new WebSocket(`ws://127.0.0.1:${ports.http1}/`);
    const session = connectHttp2(ports.http1);
    await once(session, 'remoteSettings');
    const stream = extendedConnect(session, '/ticks', 'a.example');
    let ticks = 0;
    stream.on('data', () => ticks++);
    let isOver = false;
    for (const end of [once(ticking, 'close'), once(stream, 'close')]) void end.then(() => (isOver = true));
    await once(idle, 'open');
    await once(idle, 'close');
    await until(
      'two seconds of ticks',
      async () => ticks,
      (seen) => seen >= 20,
    );
    assert.equal(isOver, false);
    ticking.terminate();
    session.destroy();
    await until(
      'nothing is left',
      () => engine.metrics(admin),
      (text) => metric(text, 'mizzen_downstream_requests_active') === 0,
    );
  });
});

describe('WebSocket in a mesh whose sidecars speak HTTP/2 to each other', () => {
  let mesh: TestMesh;
  before(async () => {
    mesh = await TestMesh.start();
  });
  after(() => mesh.close());

  it('an application that speaks HTTP/1.1 on both ends notices nothing', async () => {
    const client = await mesh.proxy('client');
    const app = await webSocketApp((close) => mesh.onClose(close));
    const running = await mesh.sidecar('feed', app, { name: 'http', port: 9080 });
    await client.proxy.ready;
    await mesh.apply(`${service('feed')}apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: feed }
spec:
  host: feed
  trafficPolicy: { connectionPool: { http: { h2UpgradePolicy: UPGRADE } } }
`);
    const sockets = await Promise.all(
      Array.from({ length: 5 }, async () => {
        const socket = new WebSocket(`ws://127.0.0.1:${client.outboundPort}/`, { headers: { host: 'feed:9080' } });
        await once(socket, 'open');
        return socket;
      }),
    );
    for (const [i, socket] of sockets.entries()) {
      socket.send(`message ${i}`);
      const [answer] = (await once(socket, 'message')) as [Buffer];
      assert.equal(answer.toString(), `MESSAGE ${i}`);
    }
    const text = (await call({ port: running.adminPort, path: '/stats/prometheus' })).body;
    assert.equal(metric(text, 'mizzen_downstream_http2_connections_total'), 1);
    assert.equal(metric(text, 'mizzen_tunnels_total'), 5);
    for (const socket of sockets) {
      socket.close();
      await once(socket, 'close');
    }
  });
});
