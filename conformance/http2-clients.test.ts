import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { TestAuthority } from '../e2e/support/certificates.ts';
import { cluster, http as httpManager, listener, serverTls, TestEngine } from '../e2e/support/engine.ts';
import { grpcServer } from '../e2e/support/grpc.ts';
import { skipWithout } from '../e2e/support/requirements.ts';

const run = promisify(execFile);
const python = join(import.meta.dirname, '../.tools/grpcio/bin/python3');

describe("other people's clients of HTTP/2", () => {
  const engine = new TestEngine();
  /** Told by the first bytes (what a sidecar's listener is), HTTP/2 and nothing else, TLS, gRPC. */
  const ports = { auto: 0, http2: 0, tls: 0, grpc: 0, h2: 0 };
  let authority: TestAuthority;

  before(async () => {
    const origin = http.createServer((request, response) => {
      request.on('error', () => {});
      request.resume().on('end', () => response.writeHead(200, { 'content-type': 'text/plain' }).end('hello world, hello world'));
    });
    origin.listen(0, '127.0.0.1');
    await once(origin, 'listening');
    engine.onClose(() => {
      origin.closeAllConnections();
      origin.close();
    });
    const echo = await grpcServer('echo');
    engine.onClose(() => echo.close());
    authority = new TestAuthority(engine.folder);
    const certificate = authority.issue('server', ['DNS:a.example']);
    for (const name of Object.keys(ports) as (keyof typeof ports)[]) ports[name] = await engine.ports.next();
    const manager = httpManager('out', { http2_protocol_options: { max_concurrent_streams: 100 } });
    await engine.start({
      listeners: [
        listener('auto', ports.auto, manager),
        listener('http2', ports.http2, httpManager('out', { codec_type: 'HTTP2' })),
        listener('tls', ports.tls, manager, {}, serverTls(certificate.cert, certificate.key, {}, { alpn_protocols: ['h2', 'http/1.1'] })),
        listener('grpc', ports.grpc, httpManager('echo', {}, { max_stream_duration: { grpc_timeout_header_max: '0s' } })),
      ],
      clusters: [cluster('out', [(origin.address() as AddressInfo).port]), cluster('echo', [echo.port], { http2_protocol_options: {} })],
    });
  });
  after(() => engine.close());

  const h2spec = async (port: number, ...args: string[]) => {
    const { stdout } = await run('h2spec', ['-h', '127.0.0.1', '-p', String(port), '-o', '2', ...args]).catch((error: { stdout: string }) => error);
    return { stdout, summary: /(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed/.exec(stdout)?.slice(1).map(Number) };
  };

  it('h2spec passes in full: generic, http2 and hpack', { skip: skipWithout('h2spec') }, async () => {
    const { stdout, summary } = await h2spec(ports.http2);
    assert.deepEqual(summary, [145, 145, 0, 0], stdout.slice(stdout.indexOf('Failures')));
  });

  it('h2spec, where HTTP/1.1 may come too: what is no preface is answered in HTTP/1.1, the rest passes', { skip: skipWithout('h2spec') }, async () => {
    const { stdout, summary } = await h2spec(ports.auto);
    assert.deepEqual(summary, [145, 144, 0, 1], stdout.slice(stdout.indexOf('Failures')));
    assert.match(stdout.slice(stdout.indexOf('Failures')), /Sends invalid connection preface/);
  });

  it('h2spec over TLS, by ALPN', { skip: skipWithout('h2spec') }, async () => {
    const { stdout, summary } = await h2spec(ports.tls, '-t', '-k');
    assert.deepEqual(summary?.slice(0, 1), [145]);
    assert.deepEqual(summary?.slice(3), [0], stdout.slice(stdout.indexOf('Failures')));
  });

  it('curl, over TLS by ALPN and in the clear by prior knowledge; with and without a body', { skip: skipWithout('curl') }, async () => {
    const curl = async (...args: string[]) => (await run('curl', ['-sS', '-w', ' %{http_version} %{http_code}', ...args])).stdout;
    const tls = ['--cacert', authority.certificate, '--resolve', `a.example:${ports.tls}:127.0.0.1`, `https://a.example:${ports.tls}/`];
    assert.equal(await curl(...tls), 'hello world, hello world 2 200');
    assert.equal(await curl('--http1.1', ...tls), 'hello world, hello world 1.1 200');
    const clear = `http://127.0.0.1:${ports.auto}/`;
    assert.equal(await curl('--http2-prior-knowledge', '-d', 'x'.repeat(100_000), clear), 'hello world, hello world 2 200');
    assert.equal(await curl('--http2-prior-knowledge', '-H', 'expect: 100-continue', '-d', 'x', clear), 'hello world, hello world 2 200');
    assert.equal(await curl('--http2-prior-knowledge', '-o', '/dev/null', '-I', clear), ' 2 200');
  });

  it('h2load: many connections and streams, nothing fails', { skip: skipWithout('h2load') }, async () => {
    const { stdout } = await run('h2load', ['-n', '5000', '-c', '10', '-m', '50', `http://127.0.0.1:${ports.auto}/`]);
    assert.match(stdout, /5000 total, 5000 started, 5000 done, 5000 succeeded, 0 failed, 0 errored/);
    assert.match(stdout, /status codes: 5000 2xx/);
  });

  it("Python's grpcio: all four kinds of calls, failures and deadlines", { skip: skipWithout('grpcio-python') }, async () => {
    const { stdout } = await run(python, [join(import.meta.dirname, 'grpc_client.py'), `127.0.0.1:${ports.grpc}`, 'echo.example']);
    assert.deepEqual(stdout.trim().split('\n'), [
      'say echo: hello',
      'count 1000',
      'collect 3000000',
      'chat A,B,C',
      'failed NOT_FOUND',
      'late DEADLINE_EXCEEDED',
    ]);
  });

  it("Python's grpcio by the proxy of its environment: HTTP/2 inside a CONNECT", { skip: skipWithout('grpcio-python') }, async () => {
    const env = { ...process.env, http_proxy: `http://127.0.0.1:${ports.grpc}`, no_proxy: '' };
    // A name that nobody but the proxy has to know.
    const { stdout } = await run(python, [join(import.meta.dirname, 'grpc_client.py'), 'echo.example:9000', 'echo.example:9000'], { env });
    assert.equal(stdout.trim().split('\n')[0], 'say echo: hello');
    assert.equal(stdout.trim().split('\n').at(-1), 'late DEADLINE_EXCEEDED');
  });
});
