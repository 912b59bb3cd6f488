import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { HpackDecoder } from '../http2/hpack/decoder.ts';
import { HpackEncoder } from '../http2/hpack/encoder.ts';
import type { HeaderField } from '../http2/hpack/header-field.ts';
import { ConnectHandshake } from '../net/connect-handshake.ts';
import { escapedSubject, isHeaderValue, unicodeText, utf8Bytes, verifiedTarget, verifiedValue } from './header-bytes.ts';
import { HeaderList } from './header-list.ts';
import { fieldsOfLines, trailerLines } from './trailer-lines.ts';

/** Each code point of the planes in use once, among them those whose low byte is CR, LF or NUL, in texts of eight. */
function* unicodeTexts(): Iterable<string> {
  for (let at = 0; at < 0x30000; at += 8) yield String.fromCodePoint(...Array.from({ length: 8 }, (_, i) => at + i));
}

const attack = 'x\u010d\u010aset-cookie: a=b\u010d\u010a\u010d\u010aGET /admin HTTP/1.1\u010d\u010a';

describe('header bytes', () => {
  it('encodes any text as UTF-8 and decodes it again', () => {
    for (const text of unicodeTexts()) if (text.isWellFormed()) assert.equal(unicodeText(utf8Bytes(text)), text);
  });

  it('writes any text as one line of HTTP/1.1, as a header, a trailer, a target and a certificate subject', () => {
    for (const text of [...unicodeTexts(), attack, '\r\n', ' \r\n ', 'a\r\nb: c']) {
      const headers = new HeaderList();
      headers.begin('host: a\r\n');
      headers.addReceived('host', 6, 7, 0, 9);
      headers.add('x-added', text);
      headers.set('x-set', 'before');
      headers.set('x-set', text);
      headers.add(text, 'value');
      const lines = Buffer.from(
        `${headers.serialize()}${trailerLines([
          ['x-trailer', text],
          [text, 'value'],
        ])}`,
        'latin1',
      ).toString('latin1');
      assert.match(lines, /^(?:[!#$%&'*+.^_`|~0-9a-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n){4,6}$/);
      assert.match(verifiedTarget(text), /^[\x21-\x7e\x80-\xff]*$/);
      assert.equal(new ConnectHandshake(text).request.split('\r\n').length, 4);
      assert.match(escapedSubject(text), /^(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\[\x20-\x7e])*$/);
    }
  });

  it('writes any text over HTTP/2 as a value that a strict peer accepts', () => {
    const encoder = new HpackEncoder();
    const decoder = new HpackDecoder();
    for (const text of [...unicodeTexts(), attack]) {
      const headers = new HeaderList();
      headers.add('x-value', text);
      encoder.begin();
      encoder.add('x-value', headers.valueAt(0));
      encoder.add(text, 'value');
      encoder.add(':path', verifiedTarget(text));
      const fields: HeaderField[] = [];
      const block = encoder.end();
      assert.equal(decoder.decode(block, 0, block.length, { onField: (field) => fields.push(field) }), undefined);
      assert.ok(
        fields.length <= 3 && fields.every(({ name, hasValidValue }) => hasValidValue && /^:?[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name)),
        JSON.stringify(text),
      );
      assert.equal(fields[0]!.value, headers.valueAt(0));
    }
  });

  it('leaves fields out of HTTP/2 that are about one connection', () => {
    const encoder = new HpackEncoder();
    encoder.begin();
    for (const name of ['connection', 'keep-alive', 'proxy-connection', 'transfer-encoding', 'upgrade', 'X-Upper', 'a b', '']) encoder.add(name, 'value');
    assert.equal(encoder.end().length, 0);
  });

  it('keeps what a socket delivered as it is, and encodes what is not bytes', () => {
    assert.equal(verifiedValue('caf\xe9'), 'caf\xe9');
    assert.equal(verifiedValue('日本'), utf8Bytes('日本'));
    assert.equal(verifiedValue('a\r\nb'), 'a  b');
    assert.equal(verifiedTarget('/a b\r\n'), '/a%20b%0D%0A');
    assert.ok(isHeaderValue('a\tb') && !isHeaderValue(' a') && !isHeaderValue('a\0'));
  });

  it('escapes certificate subjects as Envoy does, and a quote once', () => {
    assert.equal(escapedSubject('CN=a\\"b'), 'CN=a\\"b');
    assert.equal(escapedSubject('CN=a"b'), 'CN=a\\"b');
    assert.equal(escapedSubject('CN=č'), 'CN=\\C4\\8D');
    assert.equal(escapedSubject('CN=a\\'), 'CN=a\\\\');
  });

  it('drops from trailers what belongs to one connection or to the head, and keeps byte A0', () => {
    const fields = fieldsOfLines(
      'Keep-Alive: 1\r\nUpgrade: h2c\r\nProxy-Connection: x\r\nConnection: x\r\nCookie: a\r\nGrpc-Status: 0\r\nx-a: \xa0b\xa0\t\r\n',
    );
    assert.deepEqual(fields, [
      ['grpc-status', '0'],
      ['x-a', '\xa0b\xa0'],
    ]);
    assert.equal(
      trailerLines([
        ['keep-alive', '1'],
        ['x', 'a\r\nb'],
      ]),
      'x: a  b\r\n',
    );
  });
});
