import assert from 'node:assert/strict';
import { once } from 'node:events';
import type net from 'node:net';
import { after, before, describe, it } from 'node:test';
import { cluster, http as httpManager, listener, metric, TestEngine } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { ask, block, connectHttp2, frame, frameTypes, number } from './support/http2.ts';

/** What a server answers to a request on stream 1, 3, ...; SETTINGS were exchanged. */
type Script = (stream: number, socket: net.Socket) => Buffer | undefined;

const ok = (stream: number, more: readonly (readonly [string, string])[] = [], flags = 0x4) =>
  frame(frameTypes.headers, flags, stream, block([[':status', '200'], ...more]));
const settings = frame(frameTypes.settings, 0, 0);
const repeat = (count: number, bytes: Buffer) => Buffer.concat(Array.from({ length: count }, () => bytes));

describe('servers of HTTP/2 that do not keep to it', () => {
  const engine = new TestEngine();
  let script: Script;
  let start: Buffer;
  const sockets = new Set<net.Socket>();
  let requests = 0;
  let port = 0;
  let admin = 0;

  before(async () => {
    const server = await engine.server((socket) => {
      sockets.add(socket);
      socket.on('close', () => sockets.delete(socket));
      socket.write(start);
      let pending = Buffer.alloc(0);
      let skipped = 0;
      socket.on('data', (chunk: Buffer) => {
        pending = Buffer.concat([pending, chunk]);
        if (skipped === 0 && pending.length >= 24) {
          skipped = 24;
          pending = pending.subarray(24);
        }
        while (skipped > 0 && pending.length >= 9 && pending.length >= 9 + pending.readUIntBE(0, 3)) {
          const [type, flags, stream] = [pending[3], pending[4]!, pending.readUInt32BE(5)];
          pending = pending.subarray(9 + pending.readUIntBE(0, 3));
          if (type === frameTypes.settings && (flags & 1) === 0) socket.write(frame(frameTypes.settings, 1, 0));
          if (type === frameTypes.headers) {
            requests++;
            const answer = script(stream, socket);
            if (answer !== undefined) socket.write(answer);
          }
        }
      });
    });
    port = await engine.ports.next();
    const proxy = await engine.start({
      listeners: [listener('in', port, httpManager('out', {}, { timeout: '3s' }))],
      clusters: [cluster('out', [server], { http2_protocol_options: {} })],
    });
    admin = proxy.adminPort!;
  });
  after(() => engine.close());

  /** Asks the server that follows the script, by HTTP/1.1; then lets it be good, and sees that others are served. */
  async function answerTo(next: Script, first: Buffer = settings) {
    script = next;
    start = first;
    requests = 0;
    for (const socket of sockets) socket.destroy();
    const answer = await call({ port, path: '/' }).catch((error: Error) => ({ status: 0, body: error.message, headers: {} }));
    const asked = requests;
    script = (stream) => ok(stream, [], 0x5);
    start = settings;
    await until(
      'a good server serves',
      () => call({ port }),
      ({ status }) => status === 200,
    );
    return { ...answer, asked };
  }

  const violations: Readonly<Record<string, Script>> = {
    'a pushed stream': (stream) => frame(frameTypes.pushPromise, 0x4, stream, Buffer.concat([number(2), block([[':method', 'GET']])])),
    'an answer on a stream that nobody opened': (stream) => ok(stream + 2),
    'an answer on an even stream': () => ok(2),
    'a head that cannot be decoded': (stream) => frame(frameTypes.headers, 0x4, stream, Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff])),
    'data before the head': (stream) => frame(frameTypes.data, 0, stream, Buffer.from('x')),
    'a frame that is too large': (stream) => frame(frameTypes.data, 0, stream, Buffer.alloc(16_385)),
    'SETTINGS that allow push': (stream) => Buffer.concat([frame(frameTypes.settings, 0, 0, Buffer.from([0, 2, 0, 0, 0, 1])), ok(stream)]),
    'a window that overflows': (stream) => Buffer.concat([frame(frameTypes.windowUpdate, 0, 0, number(0x7fff_ffff)), ok(stream)]),
    'a PING flood': (stream) => Buffer.concat([repeat(20_000, frame(frameTypes.ping, 0, 0, Buffer.alloc(8))), ok(stream)]),
    'a SETTINGS flood': (stream) => Buffer.concat([repeat(20_000, settings), ok(stream)]),
    'CONTINUATION without end': (stream) => Buffer.concat([ok(stream, [], 0), repeat(1_000, frame(frameTypes.continuation, 0, stream, Buffer.alloc(0)))]),
    'a head without status': (stream) => frame(frameTypes.headers, 0x5, stream, block([['x-a', 'b']])),
    'a status that is none': (stream) => frame(frameTypes.headers, 0x5, stream, block([[':status', 'abc']])),
    'a status of switching protocols': (stream) => frame(frameTypes.headers, 0x5, stream, block([[':status', '101']])),
    'a status twice': (stream) =>
      frame(
        frameTypes.headers,
        0x5,
        stream,
        block([
          [':status', '200'],
          [':status', '200'],
        ]),
      ),
    'a line break in a value (response splitting)': (stream) => ok(stream, [['x-a', 'b\r\nset-cookie: admin=1']], 0x5),
    'a capital in a name': (stream) => ok(stream, [['X-A', 'b']], 0x5),
    Connection: (stream) => ok(stream, [['connection', 'close']], 0x5),
    'Transfer-Encoding': (stream) => ok(stream, [['transfer-encoding', 'chunked']], 0x5),
    'two lengths': (stream) =>
      ok(
        stream,
        [
          ['content-length', '1'],
          ['content-length', '2'],
        ],
        0x5,
      ),
    'a length without content': (stream) => ok(stream, [['content-length', '5']], 0x5),
    'an interim answer that ends the stream': (stream) => frame(frameTypes.headers, 0x5, stream, block([[':status', '103']])),
    'a head over the limit': (stream) =>
      Buffer.concat([
        ok(stream, [], 0),
        ...Array.from({ length: 9 }, (_, i) => frame(frameTypes.continuation, i === 8 ? 0x4 : 0, stream, block([['x-a', 'b'.repeat(12_000)]]))),
      ]),
  };
  for (const [name, script_] of Object.entries(violations))
    it(`answers 502 to the client: ${name}`, async () => {
      const answer = await answerTo(script_);
      assert.equal(answer.status, 502, answer.body);
      const reason = /protocol error, (http2\.[a-z_0-9]+)/.exec(answer.body)?.[1];
      assert.ok(reason, answer.body);
      assert.ok(metric(await engine.metrics(admin), 'mizzen_upstream_http_violations_total', `cluster_name="out",reason="${reason}"`) >= 1);
    });

  it('interim answers without end, over both versions', async () => {
    const hint = (stream: number) => frame(frameTypes.headers, 0x4, stream, block([[':status', '103']]));
    const answer = await answerTo((stream) => repeat(5_000, hint(stream)));
    assert.equal(answer.status, 502);
    assert.match(answer.body, /too_many_interim_responses/);
    const server = await engine.server((socket) => socket.on('data', () => socket.write('HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n'.repeat(5_000))));
    const other = await engine.ports.next();
    await engine.start({ listeners: [listener('in', other, httpManager('out'))], clusters: [cluster('out', [server])] });
    const old = await call({ port: other });
    assert.equal(old.status, 502);
    assert.match(old.body, /too_many_interim_responses/);
  });

  it('breaks the answer off when it goes wrong after its head', async () => {
    for (const rest of [
      (stream: number) => frame(frameTypes.data, 0x1, stream, Buffer.from('123456')),
      (stream: number) => frame(frameTypes.data, 0x1, stream, Buffer.from('123')),
      (stream: number) => frame(frameTypes.headers, 0x4, stream, block([['x-trailer', 'without the end']])),
      (stream: number) => frame(frameTypes.headers, 0x5, stream, block([[':status', '200']])),
    ]) {
      const answer = await answerTo((stream) => Buffer.concat([ok(stream, [['content-length', '5']]), rest(stream)]));
      assert.equal(answer.status, 0, 'the connection of the client is broken off');
    }
  });

  it('a server that ends the connection instead of an answer: once more, then 503', async () => {
    const answer = await answerTo((_stream, socket) => void socket.destroy());
    assert.equal(answer.status, 503);
    assert.match(answer.body, /connection termination/);
  });

  it('a server that speaks HTTP/1.1', async () => {
    const answer = await answerTo(() => undefined, Buffer.from('HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n'));
    assert.equal(answer.status, 502);
    assert.match(answer.body, /server_speaks_http1/);
  });

  it('a server that says nothing: the timeout of the route', async () => {
    const answer = await answerTo(() => undefined);
    assert.equal(answer.status, 504);
  });

  it('GOAWAY in the race with a request: what was not looked at is sent again, once, to another connection', async () => {
    let isFirst = true;
    const answer = await answerTo((stream) => {
      if (!isFirst) return ok(stream, [], 0x5);
      isFirst = false;
      return frame(frameTypes.goAway, 0, 0, Buffer.concat([number(0), number(0)]));
    });
    assert.deepEqual([answer.status, answer.asked], [200, 2]);
  });

  it('GOAWAY with an error ends what the server says it has seen', async () => {
    const answer = await answerTo((stream, socket) => {
      socket.end(frame(frameTypes.goAway, 0, 0, Buffer.concat([number(stream), number(11), Buffer.from('too many')])));
      return undefined;
    });
    assert.equal(answer.status, 503);
  });

  it('many requests on one connection that dies all get an answer', async () => {
    let count = 0;
    script = (_stream, socket) => {
      if (++count % 20 === 0) socket.destroy();
      return undefined;
    };
    start = settings;
    const session = connectHttp2(port);
    const answers = await Promise.all(Array.from({ length: 20 }, () => ask(session, { method: 'POST', body: 'x' })));
    assert.deepEqual(new Set(answers.map(({ status }) => status)), new Set([503]));
    const closed = once(session, 'close');
    session.close();
    await closed;
    assert.equal(metric(await engine.metrics(admin), 'mizzen_downstream_requests_active'), 0);
  });
});
