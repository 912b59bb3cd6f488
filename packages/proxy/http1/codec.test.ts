import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { defaultHeadLimits } from '../message/head-limits.ts';
import { HeaderList } from '../message/header-list.ts';
import { RequestHead } from '../message/request-head.ts';
import { ResponseHead } from '../message/response-head.ts';
import { BodyReader } from './body-reader.ts';
import { HeadReader } from './head-reader.ts';
import { readRequestHead } from './read-request-head.ts';
import { readResponseHead } from './read-response-head.ts';

/** Feeds pieces to a head reader; the head, or why there is none. */
function readInPieces(pieces: readonly Buffer[]): { readonly text: string; readonly rest: string } | string | undefined {
  const reader = new HeadReader(defaultHeadLimits);
  for (const [i, piece] of pieces.entries()) {
    const found = reader.read(piece, 0);
    if (found === true) return { text: reader.text, rest: Buffer.concat([piece.subarray(reader.bodyStart), ...pieces.slice(i + 1)]).toString('latin1') };
    if (found !== false) return found.reason;
  }
  return undefined;
}

function cut(bytes: Buffer, points: readonly number[]): Buffer[] {
  const sorted = [...new Set(points.map((point) => point % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...sorted].map((start, i) => bytes.subarray(start, sorted[i] ?? bytes.length));
}

const request = (text: string) => readRequestHead(text, defaultHeadLimits);

describe('the HTTP/1.1 codec', () => {
  it('finds a head however its bytes are cut', () => {
    const bytes = Buffer.from('GET /x HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\nthe body');
    fc.assert(
      fc.property(fc.array(fc.nat(200), { maxLength: 12 }), (points) => {
        assert.deepEqual(readInPieces(cut(bytes, points)), { text: 'GET /x HTTP/1.1\r\nhost: a\r\nx: y\r\n', rest: 'the body' });
      }),
    );
  });

  it('refuses a head that never ends at the limit', () => {
    assert.equal(readInPieces(Array.from({ length: 70 }, () => Buffer.alloc(1024, 'a'))), 'http1.head_too_large');
  });

  it('reads a request line and fields, and leaves out what is of this hop', () => {
    const head = request(
      'POST /p?q=1 HTTP/1.1\r\nHost: Example.com:80\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nTE: gzip, trailers\r\nContent-Length: 12\r\nX-Case:  kept \r\n',
    );
    assert.ok(head instanceof RequestHead);
    assert.deepEqual([head.method, head.target, head.authority, head.contentLength, head.isPersistent], ['POST', '/p?q=1', 'Example.com:80', 12, true]);
    assert.equal(head.headers.serialize(), 'Host: Example.com:80\r\nte: trailers\r\nContent-Length: 12\r\nX-Case:  kept \r\n');
    assert.equal(head.headers.get('x-case'), 'kept');
  });

  it('takes the authority of an absolute form, and of CONNECT', () => {
    const absolute = request('GET http://a.b:80?x HTTP/1.1\r\nHost: A.B:80\r\n');
    assert.ok(absolute instanceof RequestHead);
    assert.deepEqual([absolute.target, absolute.authority, absolute.headers.get('host')], ['/?x', 'a.b:80', 'a.b:80']);
    const connect = request('CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\n');
    assert.ok(connect instanceof RequestHead);
    assert.equal(connect.authority, 'a.b:443');
    for (const target of ['/x', 'a.b', 'http://a.b:80', '*']) assert.ok(!(request(`CONNECT ${target} HTTP/1.1\r\nHost: a\r\n`) instanceof RequestHead), target);
  });

  it('leaves HTTP2-Settings out where Connection names it, unless it belongs to an upgrade that is still to be decided', () => {
    const settingsOf = (fields: string) => {
      const head = request(`GET / HTTP/1.1\r\nHost: a\r\n${fields}`);
      assert.ok(head instanceof RequestHead, fields);
      return head.headers.get('http2-settings');
    };
    assert.equal(settingsOf('HTTP2-Settings: AAM\r\nConnection: HTTP2-Settings\r\n'), undefined);
    assert.equal(settingsOf('HTTP2-Settings: AAM\r\nUpgrade: h2c\r\nConnection: HTTP2-Settings\r\n'), undefined);
    assert.equal(settingsOf('HTTP2-Settings: AAM\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n'), 'AAM');
  });

  it('accepts an empty port of Host, as Envoy does', () => {
    for (const host of ['h:', 'h.example:', '[::1]:']) {
      const head = request(`GET / HTTP/1.1\r\nHost: ${host}\r\n`);
      assert.ok(head instanceof RequestHead && head.authority === host, host);
    }
    for (const host of [':', ':80', 'h:x', 'h::', 'h:123456']) assert.ok(!(request(`GET / HTTP/1.1\r\nHost: ${host}\r\n`) instanceof RequestHead), host);
  });

  it('reads the examples of the RFCs', () => {
    // RFC 9110 section 3.9, request and response.
    const asked = request('GET /hello.txt HTTP/1.1\r\nUser-Agent: curl/7.64.1\r\nHost: www.example.com\r\nAccept-Language: en, mi\r\n');
    assert.ok(asked instanceof RequestHead);
    assert.deepEqual(
      [asked.method, asked.target, asked.authority, asked.hasBody, asked.headers.get('accept-language')],
      ['GET', '/hello.txt', 'www.example.com', false, 'en, mi'],
    );
    const answered = readResponseHead(
      'HTTP/1.1 200 OK\r\nDate: Mon, 27 Jul 2009 12:28:53 GMT\r\nServer: Apache\r\nLast-Modified: Wed, 22 Jul 2009 19:15:56 GMT\r\nETag: "34aa387-d-1568eb00"\r\nAccept-Ranges: bytes\r\nContent-Length: 51\r\nVary: Accept-Encoding\r\nContent-Type: text/plain\r\n',
      defaultHeadLimits,
    );
    assert.ok(answered instanceof ResponseHead);
    assert.deepEqual([answered.status, answered.contentLength, answered.headers.get('etag')], [200, 51, '"34aa387-d-1568eb00"']);
    // RFC 9112 section 3.2: the four forms of a target.
    const target = (text: string) => {
      const head = request(text);
      return head instanceof RequestHead ? [head.target, head.authority] : head.reason;
    };
    assert.deepEqual(target('GET /where?q=now HTTP/1.1\r\nHost: www.example.org\r\n'), ['/where?q=now', 'www.example.org']);
    assert.deepEqual(target('GET http://www.example.org/pub/WWW/TheProject.html HTTP/1.1\r\nHost: www.example.org\r\n'), [
      '/pub/WWW/TheProject.html',
      'www.example.org',
    ]);
    assert.deepEqual(target('CONNECT www.example.com:80 HTTP/1.1\r\nHost: www.example.com\r\n'), ['', 'www.example.com:80']);
    assert.deepEqual(target('OPTIONS * HTTP/1.1\r\nHost: www.example.org:8001\r\n'), ['*', 'www.example.org:8001']);
    // RFC 9112 section 7.8's neighbour, RFC 9110 section 7.8: an Upgrade counts only where Connection names it.
    const upgrade = (text: string) => (request(`GET / HTTP/1.1\r\nHost: a\r\n${text}`) as RequestHead).upgrade;
    assert.equal(upgrade('Connection: upgrade\r\nUpgrade: websocket, IRC/6.9, RTA/x11\r\n'), 'websocket, IRC/6.9, RTA/x11');
    assert.equal(upgrade('Upgrade: websocket\r\n'), '');
  });

  it('knows when a connection goes on', () => {
    const persistent = (text: string) => (request(text) as RequestHead).isPersistent;
    assert.deepEqual(
      [
        persistent('GET / HTTP/1.1\r\nhost: a\r\n'),
        persistent('GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n'),
        persistent('GET / HTTP/1.0\r\n'),
        persistent('GET / HTTP/1.0\r\nconnection: keep-alive\r\n'),
      ],
      [true, false, false, true],
    );
  });

  it('reads responses, with and without a reason phrase', () => {
    const head = readResponseHead('HTTP/1.1 200 \r\ncontent-length: 5\r\n', defaultHeadLimits);
    assert.ok(head instanceof ResponseHead);
    assert.deepEqual([head.status, head.line, head.contentLength], [200, 'HTTP/1.1 200 \r\n', 5]);
    assert.ok(readResponseHead('HTTP/1.0 404\r\n', defaultHeadLimits) instanceof ResponseHead);
    for (const text of [
      'HTTP/1.1 20 OK\r\n',
      'HTTP/1.1 200 OK\r\na b: c\r\n',
      'HTTP/2 200\r\n',
      'HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n',
    ])
      assert.ok(!(readResponseHead(text, defaultHeadLimits) instanceof ResponseHead), text);
  });

  it('never throws on any head, and what it accepts it can write back and read again', () => {
    const token = fc.stringMatching(/^[A-Za-z0-9-]{1,10}$/);
    const value = fc.stringMatching(/^[\x20-\x7e]{0,20}$/);
    fc.assert(
      fc.property(fc.array(fc.tuple(token, value), { maxLength: 10 }), (fields) => {
        const text = `GET / HTTP/1.1\r\nhost: a\r\n${fields.map(([name, content]) => `${name}: ${content}\r\n`).join('')}`;
        const head = request(text);
        if (!(head instanceof RequestHead)) return;
        const again = request(`GET / HTTP/1.1\r\n${head.headers.serialize()}`);
        assert.ok(again instanceof RequestHead);
        assert.deepEqual(again.headers.names, head.headers.names);
        const values = (read: RequestHead) => read.headers.names.map((_, i) => read.headers.valueAt(i));
        assert.deepEqual(values(again), values(head));
      }),
    );
    fc.assert(
      fc.property(fc.string({ unit: fc.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code)) }), (text) => void request(`${text}\r\n`)),
      { numRuns: 1_000 },
    );
  });

  const chunked = (bytes: Buffer, points: readonly number[]) => {
    const reader = new BodyReader();
    reader.startChunked();
    const data: Buffer[] = [];
    for (const piece of cut(bytes, points)) {
      const next = reader.read(piece, 0, { onBodyData: (slice) => data.push(Buffer.from(slice)) });
      if (typeof next !== 'number') return next.reason;
    }
    return { body: Buffer.concat(data).toString(), trailers: reader.trailers, isDone: reader.isDone };
  };

  it('reads a chunked body however its bytes are cut', () => {
    const bytes = Buffer.from('5;ext="a"\r\nhello\r\n00006\r\n world\r\n0\r\nx-sum: 1\r\n\r\n');
    fc.assert(
      fc.property(fc.array(fc.nat(100), { maxLength: 15 }), (points) =>
        assert.deepEqual(chunked(bytes, points), { body: 'hello world', trailers: 'x-sum: 1\r\n', isDone: true }),
      ),
    );
  });

  it('comes to the same end for any bytes, however they are cut', () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom('0', '1', '5', 'a', '\r\n', '\r', '\n', ';', 'hello', ' ', ':', 'x: y'), { maxLength: 20 }),
        fc.array(fc.nat(60), { maxLength: 8 }),
        (parts, points) => {
          const bytes = Buffer.from(parts.join(''));
          const whole = chunked(bytes, []);
          const pieces = chunked(bytes, points);
          assert.deepEqual(typeof pieces === 'string' ? pieces : { ...pieces }, whole);
        },
      ),
      { numRuns: 1_000 },
    );
  });

  it('changes header fields in place and keeps the others as they came', () => {
    const headers = new HeaderList();
    headers.begin('A: 1\r\nB: 2\r\na: 3\r\n');
    headers.addReceived('a', 3, 4, 0, 6);
    headers.addReceived('b', 9, 10, 6, 12);
    headers.addReceived('a', 15, 16, 12, 18);
    assert.equal(headers.serialize(), 'A: 1\r\nB: 2\r\na: 3\r\n');
    assert.equal(headers.getJoined('a'), '1,3');
    headers.set('a', '4');
    headers.remove('c');
    headers.add('d', '5');
    assert.equal(headers.serialize(), 'a: 4\r\nB: 2\r\nd: 5\r\n');
  });
});
