import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { cpuTicks, rssMb, ticksPerSecond } from '../bench/measure.ts';
import { cluster, http as httpManager, listener, metric, TestEngine } from './support/engine.ts';
import { until } from './support/http.ts';
import { ask, block, connectHttp2, frame, frameTypes, getBlock, number, preface, RawHttp2 } from './support/http2.ts';

const codes = { PROTOCOL_ERROR: 1, FLOW_CONTROL_ERROR: 3, STREAM_CLOSED: 5, COMPRESSION_ERROR: 9, ENHANCE_YOUR_CALM: 11 } as const;

const repeat = (count: number, make: (i: number) => Buffer) => Buffer.concat(Array.from({ length: count }, (_, i) => make(i)));
const get = (stream: number) => frame(frameTypes.headers, 0x5, stream, getBlock);
/** A request whose body is still to come. */
const post = (stream: number, more: readonly (readonly [string, string])[] = []) =>
  frame(frameTypes.headers, 0x4, stream, block([[':method', 'POST'], [':scheme', 'http'], [':path', '/'], [':authority', 'a.example'], ...more]));

/** What each does to a connection, and how that ends. All of them open the connection as they should. */
const floods: readonly { readonly name: string; readonly bytes: () => Buffer; readonly code: number; readonly reason: string }[] = [
  {
    name: 'rapid reset: requests that are given up at once (CVE-2023-44487)',
    bytes: () => repeat(5_000, (i) => Buffer.concat([get(2 * i + 1), frame(frameTypes.reset, 0, 2 * i + 1, number(8))])),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.rapid_reset',
  },
  {
    name: 'requests that we are made to reset (CVE-2025-8671)',
    bytes: () => repeat(5_000, (i) => Buffer.concat([post(2 * i + 1), frame(frameTypes.windowUpdate, 0, 2 * i + 1, number(0))])),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.rapid_reset',
  },
  {
    name: 'CONTINUATION without end, a byte each (CVE-2024-27316)',
    bytes: () => Buffer.concat([frame(frameTypes.headers, 0x1, 1, getBlock), repeat(10_000, () => frame(frameTypes.continuation, 0, 1, Buffer.from([0x82])))]),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.too_many_continuations',
  },
  {
    name: 'CONTINUATION without end, as large as they may be',
    bytes: () => Buffer.concat([frame(frameTypes.headers, 0x1, 1, getBlock), repeat(60, () => frame(frameTypes.continuation, 0, 1, Buffer.alloc(16_384)))]),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.header_block_too_large',
  },
  {
    name: 'SETTINGS without end (CVE-2019-9515)',
    bytes: () => repeat(20_000, () => frame(frameTypes.settings, 0, 0, Buffer.from([0, 4, 0, 0, 0xff, 0xff]))),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.settings_flood',
  },
  {
    name: 'PING without end (CVE-2019-9512)',
    bytes: () => repeat(20_000, () => frame(frameTypes.ping, 0, 0, Buffer.alloc(8))),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.ping_flood',
  },
  {
    name: 'PRIORITY without end (CVE-2019-9513)',
    bytes: () => repeat(20_000, () => frame(frameTypes.priority, 0, 3, Buffer.concat([number(1), Buffer.from([1])]))),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.priority_flood',
  },
  {
    name: 'empty DATA without end (CVE-2019-9518)',
    bytes: () => Buffer.concat([post(1), repeat(20_000, () => frame(frameTypes.data, 0, 1))]),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.empty_frames_flood',
  },
  {
    name: 'RST_STREAM of what is over, without end (CVE-2019-9514)',
    bytes: () => Buffer.concat([get(1), repeat(20_000, () => frame(frameTypes.reset, 0, 1, number(8)))]),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.reset_flood',
  },
  {
    name: 'WINDOW_UPDATE a byte at a time (CVE-2019-9511)',
    bytes: () => repeat(20_000, () => frame(frameTypes.windowUpdate, 0, 0, number(1))),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.window_update_flood',
  },
  {
    name: 'GOAWAY without end',
    bytes: () => repeat(20_000, () => frame(frameTypes.goAway, 0, 0, Buffer.alloc(8))),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.goaway_flood',
  },
  {
    name: 'WINDOW_UPDATE for a stream that waits, a byte at a time',
    bytes: () => Buffer.concat([post(1), repeat(20_000, () => frame(frameTypes.windowUpdate, 0, 1, number(1)))]),
    code: codes.ENHANCE_YOUR_CALM,
    reason: 'http2.window_update_flood',
  },
  {
    name: 'SETTINGS that make the window of an open stream overflow',
    bytes: () =>
      Buffer.concat([
        post(1),
        frame(frameTypes.windowUpdate, 0, 1, number(0x7000_0000)),
        frame(frameTypes.settings, 0, 0, Buffer.from([0, 4, 0x7f, 0xff, 0xff, 0xff])),
      ]),
    code: codes.FLOW_CONTROL_ERROR,
    reason: 'http2.setting_initial_window_size',
  },
  {
    name: 'a window that overflows',
    bytes: () => frame(frameTypes.windowUpdate, 0, 0, number(0x7fff_ffff)),
    code: codes.FLOW_CONTROL_ERROR,
    reason: 'http2.connection_window_overflow',
  },
  {
    name: 'an index that is in no table',
    bytes: () => frame(frameTypes.headers, 0x5, 1, Buffer.from([0xff, 0x80, 0x01])),
    code: codes.COMPRESSION_ERROR,
    reason: 'http2.hpack_index',
  },
  {
    name: 'a table larger than we allow',
    bytes: () => frame(frameTypes.headers, 0x5, 1, Buffer.concat([Buffer.from([0x3f, 0xe1, 0xff, 0x03]), getBlock])),
    code: codes.COMPRESSION_ERROR,
    reason: 'http2.hpack_size_update',
  },
  {
    name: 'sizes of the table that change for no purpose',
    bytes: () => frame(frameTypes.headers, 0x5, 1, Buffer.concat([Buffer.alloc(1_000, 0x20), getBlock])),
    code: codes.COMPRESSION_ERROR,
    reason: 'http2.hpack_too_many_size_updates',
  },
  { name: "streams with a server's numbers", bytes: () => get(2), code: codes.PROTOCOL_ERROR, reason: 'http2.even_stream_id' },
  { name: 'a stream that is used twice', bytes: () => Buffer.concat([post(3), get(1)]), code: codes.PROTOCOL_ERROR, reason: 'http2.stream_id_not_increasing' },
  {
    name: 'a frame that is longer than it may be',
    bytes: () => frame(frameTypes.ping, 0, 0, Buffer.alloc(20_000)),
    code: 6,
    reason: 'http2.frame_too_large',
  },
  { name: 'a pushed stream', bytes: () => frame(frameTypes.pushPromise, 0x4, 1, number(2)), code: codes.PROTOCOL_ERROR, reason: 'http2.push_promise' },
];

/** Requests that are malformed (RFC 9113 section 8.1.1): each ends its stream, and none is forwarded. */
const good = [
  [':method', 'GET'],
  [':scheme', 'http'],
  [':path', '/smuggled'],
  [':authority', 'a.example'],
] as const;
const without = (name: string) => good.filter(([own]) => own !== name);
const withPath = (path: string) => [...without(':path'), [':path', path] as const];
const malformed: Readonly<Record<string, readonly (readonly [string, string])[]>> = {
  'a line break in a value (response splitting, request smuggling)': [...good, ['x-a', 'b\r\nx-admin: 1']],
  'a bare LF in a value': [...good, ['x-a', 'b\nc']],
  'a NUL in a value': [...good, ['x-a', 'b\0c']],
  'white space around a value': [...good, ['x-a', ' b']],
  'a capital in a name': [...good, ['X-A', 'b']],
  'an empty name': [...good, ['', 'b']],
  'a colon in a name': [...good, ['x:a', 'b']],
  'a line break in a name': [...good, ['x\r\na', 'b']],
  'Transfer-Encoding': [...good, ['transfer-encoding', 'chunked']],
  Connection: [...good, ['connection', 'close']],
  Upgrade: [...good, ['upgrade', 'h2c']],
  'te other than trailers': [...good, ['te', 'gzip']],
  'a pseudo-header twice': [...good, [':path', '/other']],
  'a pseudo-header behind a field': [...without(':path'), ['x-a', 'b'], [':path', '/smuggled']],
  'an unknown pseudo-header': [...good, [':admin', '1']],
  "a response's pseudo-header": [...good, [':status', '200']],
  'no path': without(':path'),
  'no method': without(':method'),
  'no scheme': without(':scheme'),
  'an empty path': withPath(''),
  'a path with a space, which HTTP/1.1 would read as its end': withPath('/smuggled HTTP/1.1'),
  'a path with a line break': withPath('/smuggled HTTP/1.1\r\nx: y\r\n\r\nGET /other'),
  'a path without a slash': withPath('smuggled'),
  'a fragment in the path': withPath('/smuggled#x'),
  'a method with a space': [...without(':method'), [':method', 'GET /admin HTTP/1.1']],
  'an authority with user information': [...without(':authority'), [':authority', 'admin@a.example']],
  'host that says something else': [...good, ['host', 'b.example']],
  'two hosts': [...without(':authority'), ['host', 'a.example'], ['host', 'a.example']],
  'a length without content': [...good, ['content-length', '5']],
  'two lengths': [...good, ['content-length', '0'], ['content-length', '0']],
  'a length that is no number': [...good, ['content-length', '+0']],
  ':protocol without CONNECT': [...good, [':protocol', 'websocket']],
  'CONNECT with a path': [...without(':method'), [':method', 'CONNECT']],
};

describe('attacks over HTTP/2', () => {
  const engine = new TestEngine();
  const seen: string[] = [];
  let port = 0;
  let admin = 0;
  let pid = 0;
  const counted = async (reason: string) => metric(await engine.metrics(admin), 'mizzen_http_violations_total', `reason="${reason}"`);
  const large = Buffer.alloc(64 * 1024 * 1024);

  before(async () => {
    const origin = http.createServer((request, response) => {
      seen.push(request.url ?? '');
      request.on('error', () => {});
      if (request.url === '/large') return void response.end(large);
      request.resume().on('end', () => response.end('ok'));
    });
    origin.listen(0, '127.0.0.1');
    await once(origin, 'listening');
    engine.onClose(() => {
      origin.closeAllConnections();
      origin.close();
    });
    const stuck = await engine.server((socket) => socket.pause());
    [port, admin] = [await engine.ports.next(), await engine.ports.next()];
    const child = await engine.spawn({
      listeners: [
        listener(
          'in',
          port,
          httpManager('out', { stream_idle_timeout: '2s' }, {}, [{ match: { prefix: '/stuck' }, route: { cluster: 'stuck', timeout: '0s' } }]),
        ),
      ],
      clusters: [cluster('out', [(origin.address() as AddressInfo).port]), cluster('stuck', [stuck])],
      adminPort: admin,
    });
    pid = child.pid!;
    // Warm: what is measured is what an attack adds.
    const session = connectHttp2(port);
    await Promise.all(Array.from({ length: 100 }, () => ask(session)));
    session.close();
  });
  after(() => engine.close());

  /** Runs an attack; what it may cost the proxy is bounded. */
  async function bounded(limits: { readonly megabytes: number; readonly cpuMs: number }, attack: () => Promise<void>): Promise<void> {
    const [memory, ticks] = [rssMb(pid), cpuTicks(pid)];
    await attack();
    const cpuMs = ((cpuTicks(pid) - ticks) / ticksPerSecond) * 1000;
    const megabytes = rssMb(pid) - memory;
    if (process.env['MIZZEN_SHOW_COST']) console.log(`  ${cpuMs} ms of CPU, ${megabytes.toFixed(1)} MB`);
    assert.ok(megabytes <= limits.megabytes, `${megabytes.toFixed(1)} MB more`);
    assert.ok(cpuMs <= limits.cpuMs, `${cpuMs} ms of CPU`);
  }

  for (const { name, bytes, code, reason } of floods)
    it(`ends the connection, and says why: ${name}`, async () => {
      await bounded({ megabytes: 50, cpuMs: 1_500 }, async () => {
        const before = await counted(reason);
        const raw = new RawHttp2(port);
        raw.send(bytes());
        assert.deepEqual(await raw.goAway(), { code, reason });
        await raw.closed();
        assert.equal((await counted(reason)) - before, 1);
      });
    });

  it('does not run out of memory when its answers to PINGs are not read', async () => {
    await bounded({ megabytes: 30, cpuMs: 1_000 }, async () => {
      const raw = new RawHttp2(port);
      await raw.until('SETTINGS', ({ type }) => type === frameTypes.settings);
      raw.socket.pause();
      const closed = once(raw.socket, 'close');
      const flood = repeat(100_000, () => frame(frameTypes.ping, 0, 0, Buffer.alloc(8)));
      raw.send(flood);
      await until(
        'a violation',
        async () => (await counted('http2.ping_flood')) + (await counted('http2.outbound_control_flood')),
        (count) => count >= 2,
      );
      raw.destroy();
      await closed;
    });
  });

  it('more content than the windows hold, to a server that does not read, is cut off', async () => {
    await bounded({ megabytes: 60, cpuMs: 1_000 }, async () => {
      const raw = new RawHttp2(port);
      const stuck = block([
        [':method', 'POST'],
        [':scheme', 'http'],
        [':path', '/stuck'],
        [':authority', 'a.example'],
      ]);
      const data = frame(frameTypes.data, 0, 1, Buffer.alloc(16_384));
      raw.send(
        frame(frameTypes.headers, 0x4, 1, stuck),
        repeat(1_000, () => data),
      );
      const reset = await raw.until('RST_STREAM', ({ type }) => type === frameTypes.reset);
      assert.equal(reset.payload.readUInt32BE(0), codes.FLOW_CONTROL_ERROR);
      raw.destroy();
    });
  });

  it('a bomb of HPACK: a long field named again and again is counted each time', async () => {
    await bounded({ megabytes: 60, cpuMs: 1_500 }, async () => {
      const raw = new RawHttp2(port);
      const value = Buffer.alloc(3_900, 0x61);
      // x-a with a value of 3,900 bytes enters the table as entry 62, and is then named 16,000 times in a byte each.
      const entry = Buffer.concat([Buffer.from([0x40, 3]), Buffer.from('x-a'), Buffer.from([0x7f, 0xbd, 0x1d]), value]);
      for (let i = 0; i < 50; i++) {
        const names = i === 0 ? Buffer.concat([getBlock, entry]) : getBlock;
        raw.send(frame(frameTypes.headers, 0x1, 2 * i + 1, names), frame(frameTypes.continuation, 0x4, 2 * i + 1, Buffer.alloc(16_000, 0xbe)));
      }
      const last = await raw.until('the last answer', ({ type, stream }) => type === frameTypes.headers && stream === 99);
      assert.ok(last.payload.includes('431') || last.payload.length > 0);
      raw.destroy();
    });
    assert.ok((await counted('http2.header_list_too_large')) >= 50);
  });

  it('a client that asks for much and takes nothing costs no more than the limits of its buffers', async () => {
    await bounded({ megabytes: 90, cpuMs: 2_000 }, async () => {
      const clients = Array.from({ length: 10 }, () => {
        const start = Buffer.concat([preface, frame(frameTypes.settings, 0, 0, Buffer.from([0, 4, 0, 0, 0, 0])), frame(frameTypes.settings, 1, 0)]);
        const raw = new RawHttp2(port, start);
        const wanted = block([
          [':method', 'GET'],
          [':scheme', 'http'],
          [':path', '/large'],
          [':authority', 'a.example'],
        ]);
        for (let i = 0; i < 10; i++) raw.send(frame(frameTypes.headers, 0x5, 2 * i + 1, wanted));
        return raw;
      });
      // With no window at all nothing moves: the idle timeout ends each stream.
      for (const raw of clients) await raw.until('RST_STREAM', ({ type }) => type === frameTypes.reset, 10_000);
      for (const raw of clients) raw.destroy();
      await until(
        'nothing is under way',
        () => engine.metrics(admin),
        (text) => metric(text, 'mizzen_downstream_requests_active') === 0,
      );
    });
  });

  for (const [name, fields] of Object.entries(malformed))
    it(`refuses a request with ${name}`, async () => {
      seen.length = 0;
      const raw = new RawHttp2(port);
      raw.send(frame(frameTypes.headers, 0x5, 1, block(fields)), get(3));
      const reset = await raw.until('RST_STREAM', ({ type, stream }) => type === frameTypes.reset && stream === 1);
      assert.equal(reset.payload.readUInt32BE(0), codes.PROTOCOL_ERROR);
      await raw.until('the answer to the next request', ({ type, stream }) => type === frameTypes.headers && stream === 3);
      assert.deepEqual(seen, ['/'], 'only the next request was forwarded');
      raw.destroy();
    });

  it('refuses content that is not as long as was said, on both sides', async () => {
    for (const bytes of [4, 6]) {
      const raw = new RawHttp2(port);
      raw.send(post(1, [['content-length', '5']]), frame(frameTypes.data, 0x1, 1, Buffer.alloc(bytes)));
      const reset = await raw.until('RST_STREAM', ({ type }) => type === frameTypes.reset);
      assert.equal(reset.payload.readUInt32BE(0), codes.PROTOCOL_ERROR);
      raw.destroy();
    }
  });

  it('drops trailers that would be taken for more than they are', async () => {
    const session = connectHttp2(port);
    const answer = await ask(session, { body: 'x', trailers: { 'x-fine': '1', 'content-type': 'text/html' } });
    assert.equal(answer.status, 200);
    session.close();
  });

  it('still serves', async () => {
    const session = connectHttp2(port);
    assert.equal((await ask(session)).status, 200);
    session.close();
  });
});
