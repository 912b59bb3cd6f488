import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createSecureServer, type ServerHttp2Session } from 'node:http2';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { createClient } from '@connectrpc/connect';
import { RateLimitService } from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';
import { GrpcConnection, type GrpcConnectionOptions } from './grpc-client.ts';
import { grpcHandler } from './grpc-server.ts';

const quick = { tickMs: 20, pingAfterMs: 60, silentAfterMs: 100 };
const code = (error: unknown) => (error as Error).message;

describe('a gRPC connection', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-grpc-'));
  let pair: { readonly cert: string; readonly key: string };
  const closers: (() => void)[] = [];
  before(() => {
    const [cert, key] = [join(folder, 'cert.pem'), join(folder, 'key.pem')];
    const subject = ['-subj', '/CN=server', '-addext', 'subjectAltName=DNS:server', '-keyout', key, '-out', cert];
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '1', ...subject], { stdio: 'ignore' });
    pair = { cert: readFileSync(cert, 'utf8'), key: readFileSync(key, 'utf8') };
  });
  after(() => {
    for (const close of closers) close();
    rmSync(folder, { recursive: true, force: true });
  });

  const listen = async (server: net.Server): Promise<number> => {
    const sockets = new Set<net.Socket>();
    server.on('connection', (socket: net.Socket) => sockets.add(socket.on('error', () => {})));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    closers.push(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    return (server.address() as AddressInfo).port;
  };
  const connection = (port: number, more: Partial<GrpcConnectionOptions> = {}) => {
    const made = new GrpcConnection({
      ...{ address: `127.0.0.1:${port}`, tls: { ca: pair.cert }, serverName: 'server', callTimeoutMs: undefined, idleTimeoutMs: 60_000, liveness: quick },
      ...more,
    });
    closers.push(() => made.close());
    return { made, call: () => createClient(RateLimitService, made.transport).shouldRateLimit({}) };
  };
  const service = (answer: () => Promise<object> = async () => ({})) =>
    createSecureServer(pair, grpcHandler({ routes: (router) => void router.service(RateLimitService, { shouldRateLimit: answer }) }));

  it('fails its calls, and raises no unhandled error, whatever a peer does instead of HTTP/2', async () => {
    const tricks: Record<string, (socket: net.Socket) => void> = {
      reset: (socket) => socket.resetAndDestroy(),
      end: (socket) => socket.end(),
      garbage: (socket) => socket.end(Buffer.alloc(100, 0xa5)),
      'a TLS alert': (socket) => socket.end(Buffer.from([21, 3, 3, 0, 2, 2, 40])),
      silence: () => {},
    };
    for (const [name, trick] of Object.entries(tricks)) {
      const { call } = connection(await listen(net.createServer(trick)));
      await assert.rejects(call(), Error, name);
    }
    const inside: Record<string, (socket: tls.TLSSocket) => void> = {
      'garbage after the handshake': (socket) => socket.write(Buffer.alloc(1_000, 0xff)),
      'a reset after the handshake': (socket) => setTimeout(() => socket.destroy(), 20),
      'silence after the handshake': () => {},
    };
    for (const [name, trick] of Object.entries(inside)) {
      const { call } = connection(await listen(tls.createServer({ ...pair, ALPNProtocols: ['h2'] }, (socket) => trick(socket.on('error', () => {})))));
      await assert.rejects(call(), Error, name);
    }
  });

  it('gives up a peer that stops to respond to PINGs, fails the call under way, and opens another connection for the next', async () => {
    const server = service(() => new Promise(() => {}));
    let accepted = 0;
    const upstream = await listen(server);
    const pipes: net.Socket[] = [];
    const relay = await listen(
      net.createServer((socket) => {
        accepted++;
        const other = net.connect(upstream, '127.0.0.1').on('error', () => {});
        pipes.push(socket, other);
        socket.pipe(other).pipe(socket);
      }),
    );
    const { call } = connection(relay);
    const requested = once(server, 'stream');
    const failed = assert.rejects(call(), /has sent nothing for/);
    await requested;
    for (const socket of pipes) socket.unpipe().pause();
    await failed;
    void call().catch(() => {});
    await once(server, 'stream');
    assert.equal(accepted, 2);
  });

  it('does not take a late event loop of its own for a dead peer', async () => {
    let finish: (() => void) | undefined;
    const server = service(
      () =>
        new Promise((resolve) => {
          finish = () => resolve({});
        }),
    );
    const { call } = connection(await listen(server));
    const requested = once(server, 'stream');
    const answer = call();
    await requested;
    for (let i = 0; i < 3; i++) {
      const until = performance.now() + 400;
      while (performance.now() < until); // four times what silence is allowed
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
    finish?.();
    await answer;
  });

  it('fails a call whose response is larger than maxMessageBytes before it is read', async () => {
    const server = service();
    const { call } = connection(await listen(server), { maxMessageBytes: 1_000 });
    await call();
    const large = createSecureServer(pair);
    large.on('stream', (stream) => {
      stream.on('error', () => {});
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
      const head = Buffer.alloc(5);
      head.writeUInt32BE(200 * 1024 * 1024, 1);
      stream.write(head);
    });
    const refused = connection(await listen(large), { maxMessageBytes: 1_000 });
    await assert.rejects(refused.call(), (error) => /readMaxBytes/.test(code(error)));
  });

  it('sends the next call on another connection after GOAWAY', async () => {
    const server = service();
    const sessions: ServerHttp2Session[] = [];
    server.on('session', (session) => sessions.push(session.on('error', () => {})));
    const { call } = connection(await listen(server));
    await call();
    const closed = once(sessions[0]!, 'close');
    sessions[0]!.close();
    await closed;
    await call();
    assert.equal(sessions.length, 2);
  });
});
