import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { compileRegex } from '../packages/common/linear-regex.ts';
import { pemCertificates } from '../packages/common/pem-blocks.ts';
import { printableText } from '../packages/common/printable-text.ts';
import { parseSpiffeId } from '../packages/common/spiffe-id.ts';
import { MissingFeatures } from '../packages/control/pilot/xds/missing-features.ts';
import { OpenApiDocument } from '../packages/gateway/openapi-document.ts';
import { isReadDifferently, queryValues, removeQueryParameter } from '../packages/gateway/query-string.ts';
import { compileCel } from '../packages/message/api/bounded-cel.ts';
import { readEvent } from '../packages/message/api/cloud-events.ts';
import { FrameReader } from '../packages/message/broker/frames.ts';
import { readAnswer } from '../packages/proxy/dns/dns-message.ts';
import { validatedResult } from '../packages/proxy/filters/script/script-messages.ts';
import { BodyReader } from '../packages/proxy/http1/body-reader.ts';
import { HeadReader } from '../packages/proxy/http1/head-reader.ts';
import { readRequestHead } from '../packages/proxy/http1/read-request-head.ts';
import { readResponseHead } from '../packages/proxy/http1/read-response-head.ts';
import { HpackDecoder } from '../packages/proxy/http2/hpack/decoder.ts';
import { HpackEncoder } from '../packages/proxy/http2/hpack/encoder.ts';
import { cookieNames, cookieValue, removeCookies } from '../packages/proxy/message/cookie.ts';
import { defaultHeadLimits } from '../packages/proxy/message/head-limits.ts';
import { escapedSubject } from '../packages/proxy/message/header-bytes.ts';
import { HeaderList } from '../packages/proxy/message/header-list.ts';
import { fieldsOfLines } from '../packages/proxy/message/trailer-lines.ts';
import { normalizeTarget, settleTarget } from '../packages/proxy/route/normalize-path.ts';
import { pathViews } from '../packages/proxy/route/path-views.ts';
import { changedQuery, queryParameter } from '../packages/proxy/route/query.ts';
import { redactQuery } from '../packages/proxy/telemetry/redact-query.ts';

/** CPU of a call in microseconds: the least of several tries, so that a busy machine does not count. */
function costOf(run: () => void): number {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 5; i++) {
    const before = process.cpuUsage();
    run();
    const { user, system } = process.cpuUsage(before);
    least = Math.min(least, user + system);
  }
  return least;
}

const times = (count: number, part: (i: number) => string) => Array.from({ length: count }, (_, i) => part(i)).join('');
// Far above the defaults: the work must not depend on a limit that an operator can raise.
const wide = { ...defaultHeadLimits, maxHeadBytes: 1e9, maxHeaderCount: 1e9, maxTargetBytes: 1e9 };
const fieldsOf = (line: string) => {
  const headers = new HeaderList();
  headers.add('cookie', line);
  return headers;
};
const inPieces = (bytes: Buffer, read: (piece: Buffer) => void, length = 1) => {
  for (let at = 0; at < bytes.length; at += length) read(bytes.subarray(at, at + length));
};

const list = (count: number, item: string) => `[${`${item},`.repeat(count)}${item}]`;
const object = (count: number, value: string) => `{${times(count, (i) => `"k${i}":${value},`)}"last":${value}}`;
const self = { $ref: '#/components/schemas/Self' };
/** Schemas by the keyword that could cost much, and JSON that makes it. Errors are as much of a burden as values that fit. */
const schemas: Record<string, readonly [schema: object, body: (count: number) => string]> = {
  'contains with a reference': [{ contains: self }, (count) => list(count, '1')],
  'minContains and maxContains': [{ contains: self, minContains: 2, maxContains: 3 }, (count) => list(count, '1')],
  uniqueItems: [{ uniqueItems: true }, (count) => `[${times(count, (i) => `{"a":[${i}]},`)}0]`],
  'a long enum': [{ items: { enum: Array.from({ length: 600 }, (_, i) => `v${i}`) } }, (count) => list(count / 4, '"v599"')],
  'branches of items': [{ items: { anyOf: [self, { type: 'number' }] } }, (count) => list(count, '1')],
  'branches that all fail': [{ contains: { oneOf: [self, { not: self }, self] } }, (count) => list(count, '{}')],
  'not and if': [{ items: { not: self, if: self, else: true } }, (count) => list(count, '1')],
  unevaluatedProperties: [{ anyOf: [{ properties: { k1: true } }, self], unevaluatedProperties: { type: 'number' } }, (count) => object(count, '1')],
  unevaluatedItems: [{ contains: { type: 'string' }, minContains: 0, unevaluatedItems: true }, (count) => list(count, '1')],
  propertyNames: [{ propertyNames: { pattern: '^(a|k)+', anyOf: [{ maxLength: 1 }, { minLength: 2 }] } }, (count) => object(count, '1')],
  patternProperties: [{ patternProperties: { '^(k+)+[0-9]*$': { type: 'number' } }, additionalProperties: self }, (count) => object(count, '1')],
  dependentSchemas: [{ dependentSchemas: { k1: self, last: { required: ['k1'] } } }, (count) => object(count, '{}')],
  'names in another case': [{ properties: { amount: true } }, (count) => object(count, '1')],
  'a pattern that backtracks elsewhere': [{ pattern: '^(a+)+$' }, (count) => `"${'a'.repeat(count / 4)}!"`],
  ...Object.fromEntries(
    [
      ...['url', 'uri', 'uri-reference', 'uri-template', 'email', 'hostname', 'ipv4', 'ipv6', 'regex', 'uuid', 'json-pointer', 'relative-json-pointer'],
      ...['json-pointer-uri-fragment', 'duration', 'date', 'time', 'date-time', 'iso-time', 'iso-date-time', 'byte'],
    ].map((format) => [
      `the format ${format}`,
      [
        { items: { anyOf: [{ format }, true] } },
        (count: number) =>
          `[${[
            ...['a', 'a.', 'a-', 'a@', 'http://a:', ':', '1', '{a', '%41', '~0', '(a', 'a\\n'].map((part) => part.repeat(count)),
            ...['http://', 'a://', 'a@', 'P', 'P1DT', '#/', '10:00:00.', '2026-01-01t10:00:00.', '{'].map((head) => `${head}${'a:1'.repeat(count)} `),
            ...['P', '10:00:00.', 'a@a.'].map((head) => `${head}${'1'.repeat(count)}!`),
          ]
            .map((text) => `"${text}"`)
            .join(',')}]`,
      ] as const,
    ]),
  ),
};
const bodyOf = ([schema, body]: readonly [object, (count: number) => string]) => {
  const media = { 'application/json': { schema } };
  const components = { schemas: { Self: { type: 'object', properties: { a: self }, required: ['a'] } } };
  const document = { openapi: '3.1.0', paths: { '/': { post: { requestBody: { content: media } } } }, components };
  const found = OpenApiDocument.compile(JSON.stringify(document), '', 'a test').find('POST', '/');
  const check = found.kind === 'operation' ? found.operation.contentCheckFor('application/json') : 'not-taken';
  assert.ok(typeof check === 'function');
  return (count: number) => {
    const bytes = Buffer.from(body(count));
    return () => void check(bytes);
  };
};

/** What a peer sends, by size, and what reads it. */
const inputs: Record<string, (count: number) => () => void> = {
  'a request head in pieces': (count) => {
    const bytes = Buffer.from(`GET / HTTP/1.1\r\nhost: a\r\nx: ${'y'.repeat(20 * count)}\r\n\r\n`);
    return () => {
      const reader = new HeadReader(wide);
      inPieces(bytes, (piece) => void reader.read(piece, 0), 8);
    };
  },
  'header fields of a request': (count) => {
    const text = `GET / HTTP/1.1\r\nhost: a\r\n${times(count, (i) => `x-${i}: y\r\n`)}`;
    return () => void readRequestHead(text, wide);
  },
  'the same header field again': (count) => {
    const text = `GET / HTTP/1.1\r\nhost: a\r\n${'accept: y\r\n'.repeat(count)}`;
    return () => void readRequestHead(text, wide);
  },
  'header fields of a response': (count) => {
    const text = `HTTP/1.1 200 OK\r\n${times(count, (i) => `x-${i}: y\r\n`)}`;
    return () => void readResponseHead(text, wide);
  },
  'transfer codings that are refused': (count) => {
    const codings = [`${'a'.repeat(count)}(`, `${'a, '.repeat(count)}(`, `chunked${' ,'.repeat(count)}(`];
    const heads = codings.map((coding) => `POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: ${coding}\r\n`);
    return () => {
      for (const head of heads) readRequestHead(head, wide);
    };
  },
  'options of Connection': (count) => {
    const text = `GET / HTTP/1.1\r\nhost: a\r\nconnection: ${times(count, (i) => `x-${i},`)}\r\n`;
    return () => void readRequestHead(text, wide);
  },
  'blanks within a value': (count) => {
    const value = `a\x01${' '.repeat(count)}b`;
    return () => {
      fieldsOf(value);
      fieldsOfLines(`x: ${value}\r\n`);
      validatedResult({ kind: 'continue', headers: [['x', value]] });
    };
  },
  'what a proxy says that it refuses': (count) => {
    const text = `${'a'.repeat(count)} of ${'the HTTP filter a'.repeat(count)}`;
    return () => void new MissingFeatures([]).learn(text);
  },
  'chunks of a byte in pieces of a byte': (count) => {
    const bytes = Buffer.from(`${'1\r\nx\r\n'.repeat(count)}0\r\n\r\n`);
    return () => {
      const reader = new BodyReader();
      reader.startChunked();
      inPieces(bytes, (piece) => void reader.read(piece, 0, { onBodyData: () => {} }));
    };
  },
  'lines of trailers': (count) => {
    const lines = times(count, (i) => `x-${i}: y\r\n`);
    return () => void fieldsOfLines(lines);
  },
  'fields of a header block': (count) => {
    const encoder = new HpackEncoder();
    encoder.begin();
    for (let i = 0; i < count; i++) encoder.add(`x-${i}`, `value ${i}`);
    const block = Buffer.from(encoder.end());
    return () => void new HpackDecoder().decode(block, 0, block.length, { onField: () => {} });
  },
  cookies: (count) => {
    const headers = fieldsOf(times(count, (i) => `c${i}=v; `));
    return () => {
      cookieValue(headers, 'none');
      cookieNames(headers);
      removeCookies(headers, () => false);
    };
  },
  'quotes in a cookie': (count) => {
    const headers = fieldsOf(`a="${'" '.repeat(count)}x`);
    return () => void cookieValue(headers, 'a');
  },
  'query parameters': (count) => {
    const target = `/?${times(count, (i) => `p${i}=v&`)}`;
    return () => {
      queryParameter(target, 'none');
      queryValues(target, 'none');
      isReadDifferently(`${target};[`, 'none', new Set());
      removeQueryParameter(target, 'none');
      changedQuery(target, [['a', 'b']], ['p1']);
      redactQuery(target, ['none']);
    };
  },
  'query parameters without a value': (count) => {
    const target = `/?${'a&'.repeat(count)}`;
    return () => {
      queryParameter(target, 'none');
      queryValues(target, 'none');
      removeQueryParameter(target, 'none');
      redactQuery(target, ['none']);
    };
  },
  'segments of a path': (count) => {
    const [dots, parameters, escapes, slashes] = ['/a/./b/..', '/a;b=c', '/%61%2f%25%32%66', '//'].map((part) => part.repeat(count)) as [
      string,
      string,
      string,
      string,
    ];
    return () => {
      for (const path of [dots, parameters, escapes, slashes]) {
        normalizeTarget(path);
        settleTarget(path, { mergesSlashes: true, escapedSlashes: 'unescape' });
        pathViews(path);
      }
    };
  },
  'overlong escapes of a path': (count) => {
    const path = `/${'%c0%ae%u002e%252e%'.repeat(count)}`;
    return () => void pathViews(path);
  },
  'quotes and escapes of a certificate subject': (count) => {
    const subject = 'CN=\\"\\\\č"'.repeat(count);
    return () => void escapedSubject(subject);
  },
  'segments of a SPIFFE ID': (count) => {
    const uri = `spiffe://a${'/b'.repeat(count)}`;
    return () => void parseSpiffeId(uri);
  },
  'certificates that begin and do not end': (count) => {
    const text = '-----BEGIN CERTIFICATE-----\n'.repeat(count);
    return () => void pemCertificates(text);
  },
  'control characters and halves of characters': (count) => {
    const text = '\u009b\ud800\udb40'.repeat(count);
    return () => void printableText(text);
  },
  'text for a pattern that backtracks elsewhere': (count) => {
    const pattern = compileRegex('^(a+)+$');
    const text = `${'a'.repeat(count)}!`;
    return () => void pattern.matches(text);
  },
  'a list for a CEL expression': (count) => {
    const rule = compileCel("event.l.exists(x, x.matches('^(a+)+$'))");
    const event = { l: Array.from({ length: Math.ceil(count / 20) }, (_, i) => `aaaa${i}!`) };
    return () => void rule({ event });
  },
  'fields of an event': (count) => {
    const body = Buffer.from(`{"specversion":"1.0",${times(count, (i) => `"k${i}":1,`)}"id":"1"}`);
    return () => void readEvent(body, false, { id: '1', pubsub: 'p', topic: 't', contentType: '' });
  },
  'a frame of the broker in pieces of a byte': (count) => {
    const frame = Buffer.alloc(4 + 20 * count, 1);
    frame.writeUInt32LE(20 * count, 0);
    return () => {
      const reader = new FrameReader();
      inPieces(frame, (piece) => void reader.read(piece, () => {}));
    };
  },
  'records of a DNS answer that point back to one another': (count) => {
    const question = Buffer.from('\x01a\x00\x00\x01\x00\x01', 'latin1');
    const records = Buffer.concat(
      Array.from({ length: Math.min(count, 65_000) }, (_, i) => {
        const record = Buffer.from('\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x01\x02\x03\x04', 'latin1');
        if (i > 0) record.writeUInt16BE(0xc000 | Math.min(0x3fff, 12 + question.length + 16 * (i - 1)), 0);
        return record;
      }),
    );
    const head = Buffer.alloc(12);
    head[2] = 0x80;
    head.writeUInt16BE(1, 4);
    head.writeUInt16BE(records.length / 16, 6);
    const answer = Buffer.concat([head, question, records]);
    return () => void readAnswer(answer, question);
  },
  ...Object.fromEntries(Object.entries(schemas).map(([name, schema]) => [`a body against a schema: ${name}`, bodyOf(schema)])),
};

describe('eight times the input of a peer', () => {
  for (const [name, reading] of Object.entries(inputs))
    it(`costs less than 24 times as much: ${name}`, () => {
      reading(500)();
      const [small, large] = [costOf(reading(1_000)), costOf(reading(8_000))];
      if (process.env['MIZZEN_SHOW_COST']) console.log(`# ${name}: ${small} us for 1,000, ${large} us for 8,000`);
      // Eight times in theory; sixty-four if it were quadratic. Collections and a busy machine have their share.
      assert.ok(large < 24 * small + 5_000, `${small} us for 1,000 and ${large} us for 8,000`);
    });
});
