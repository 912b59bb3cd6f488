import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import http2 from 'node:http2';
import net, { type AddressInfo } from 'node:net';
import { after, afterEach, before, describe, it } from 'node:test';
import { clearFaults, errorPlaces, injectFault, internalErrors, logErrorsTo, silentLogger } from '@mizzen/common';
import { cluster, http as httpFilter, listener, TestEngine, tcp } from './support/engine.ts';
import { call } from './support/http.ts';

/** Places that traffic of this test enters; the others belong to processes or protocols that it does not run. */
const isEntered = (place: string) => /^(request|http|http1|http2|tcp|listener|turn-end|connection|timer)\b/.test(place);
/** Entered only by retries, removals, tunnels, interim responses, upstream failures, or after another failure. */
const isRare = (place: string) =>
  [
    'request.onEndpointRemoved',
    'request.onInformational',
    'request.onTunnel',
    'request.onUpstreamFailure',
    'request.timer',
    'request.filter',
    'turn-end.close',
    'listener.inspection',
    'listener.open',
  ].includes(place);

describe('an exception at any error boundary', () => {
  const engine = new TestEngine();
  const upstream = http.createServer((request, response) => request.resume().on('end', () => response.end('ok')));
  const raw = net.createServer((socket) => {
    socket.on('error', () => {});
    socket.pipe(socket);
  });
  let port: number;
  let tcpPort: number;
  let h2Port: number;
  let adminPort: number;
  const unattributed: unknown[] = [];
  const notice = (error: unknown) => unattributed.push(error);

  before(async () => {
    logErrorsTo(silentLogger);
    process.on('uncaughtException', notice);
    process.on('unhandledRejection', notice);
    for (const server of [upstream, raw]) {
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
    }
    [port, tcpPort, h2Port] = [await engine.ports.next(), await engine.ports.next(), await engine.ports.next()];
    const started = await engine.start({
      listeners: [listener('http', port, httpFilter('app')), listener('h2', h2Port, httpFilter('mesh')), listener('tcp', tcpPort, tcp('raw'))],
      clusters: [
        cluster('app', [(upstream.address() as AddressInfo).port]),
        cluster('mesh', [port], {
          typed_extension_protocol_options: {
            'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
              '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
              explicit_http_config: { http2_protocol_options: {} },
            },
          },
        }),
        cluster('raw', [(raw.address() as AddressInfo).port]),
      ],
    });
    adminPort = started.adminPort!;
  });
  afterEach(clearFaults);
  after(async () => {
    await engine.close();
    upstream.closeAllConnections();
    upstream.close();
    raw.close();
    process.off('uncaughtException', notice);
    process.off('unhandledRejection', notice);
  });

  /** What one round of traffic came to: statuses, or 'closed'. */
  async function round(): Promise<string[]> {
    const overHttp1 = call({ port, method: 'POST', path: '/', body: 'content' }).then(
      ({ status }) => String(status),
      () => 'closed',
    );
    return Promise.all([overHttp1, overHttp2(h2Port), overTcp(tcpPort)]);
  }

  it('leaves the process, the next requests and the count of its place intact', async () => {
    assert.deepEqual(await round(), ['200', '200', 'echoed']);
    for (const place of errorPlaces().filter((name) => isEntered(name) && !isRare(name))) {
      const before = internalErrors().get(place) ?? 0;
      injectFault(place, 1);
      for (let attempt = 0; (internalErrors().get(place) ?? 0) === before && attempt < 20; attempt++) {
        await round();
        if (place.includes('sweep') || place.startsWith('timer')) await new Promise((resolve) => setTimeout(resolve, 100));
      }
      assert.equal(internalErrors().get(place), before + 1, `${place} was not entered`);
      clearFaults();
      assert.deepEqual(await round(), ['200', '200', 'echoed'], `after a fault at ${place}`);
    }
    assert.deepEqual(unattributed, []);
    const metrics = await engine.metrics(adminPort);
    assert.match(metrics, /mizzen_internal_errors_total\{place="request\.start"\} 1/);
  });
});

async function overHttp2(port: number): Promise<string> {
  const session = http2.connect(`http://127.0.0.1:${port}`);
  try {
    return await new Promise<string>((resolve) => {
      session.on('error', () => resolve('closed'));
      session.on('close', () => resolve('closed'));
      const stream = session.request({ ':path': '/' });
      let status = 'closed';
      stream.on('response', (headers) => {
        status = String(headers[':status']);
      });
      stream.on('error', () => resolve('closed'));
      stream.on('close', () => resolve(status));
      stream.resume().end();
    });
  } finally {
    session.destroy();
  }
}

async function overTcp(port: number): Promise<string> {
  const socket = net.connect(port, '127.0.0.1');
  try {
    return await new Promise<string>((resolve) => {
      socket.on('error', () => resolve('closed'));
      socket.on('close', () => resolve('closed'));
      socket.on('data', () => resolve('echoed'));
      socket.write('ping');
    });
  } finally {
    socket.destroy();
  }
}
