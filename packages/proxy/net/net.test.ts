import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { sniffHttp } from './http-prelude.ts';
import { readProxyHeader, writeProxyHeader } from './proxy-protocol.ts';

describe('the PROXY protocol', () => {
  it('reads what it has written, in both versions and families, however much follows', () => {
    const port = fc.integer({ min: 0, max: 65_535 });
    const pair = fc.oneof(fc.tuple(fc.ipV4(), fc.ipV4()), fc.tuple(fc.ipV6(), fc.ipV6()));
    const normal = (address: string) => {
      const written = writeProxyHeader(2, { sourceAddress: address, sourcePort: 1, destinationAddress: address, destinationPort: 1 });
      const read = readProxyHeader(written);
      return typeof read === 'string' ? read : read.addresses?.sourceAddress;
    };
    fc.assert(
      fc.property(
        fc.constantFrom(1 as const, 2 as const),
        pair,
        port,
        port,
        fc.uint8Array({ maxLength: 20 }),
        (version, [source, destination], sourcePort, destinationPort, rest) => {
          const written = writeProxyHeader(version, { sourceAddress: source, sourcePort, destinationAddress: destination, destinationPort });
          const read = readProxyHeader(Buffer.concat([written, rest]));
          assert.ok(typeof read === 'object', `${version} ${source}: ${read}`);
          assert.equal(read.length, written.length);
          assert.equal(normal(read.addresses!.sourceAddress), normal(source));
          assert.equal(normal(read.addresses!.destinationAddress), normal(destination));
          assert.deepEqual([read.addresses!.sourcePort, read.addresses!.destinationPort], [sourcePort, destinationPort]);
          for (let i = 0; i < written.length; i++) assert.equal(readProxyHeader(written.subarray(0, i)), 'incomplete');
        },
      ),
      { numRuns: 300 },
    );
  });

  it('takes UNKNOWN, LOCAL and Unix addresses for the balancer itself', () => {
    for (const header of ['PROXY UNKNOWN\r\n', 'PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n']) {
      const read = readProxyHeader(Buffer.from(header));
      assert.ok(typeof read === 'object' && read.addresses === undefined, header);
    }
    const signature = '\r\n\r\n\0\r\nQUIT\n';
    for (const rest of ['\x20\x00\x00\x00', '\x20\x11\x00\x00', `\x21\x31\x00\xd8${'u'.repeat(216)}`]) {
      const read = readProxyHeader(Buffer.from(signature + rest, 'latin1'));
      assert.ok(typeof read === 'object' && read.addresses === undefined, JSON.stringify(rest.slice(0, 4)));
    }
  });

  it('refuses headers that break the rules', () => {
    for (const header of [
      'PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n',
      'PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n',
      'PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n',
      'PROXY TCP4 ::1 ::2 1 2\r\n',
      'PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n',
      'PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n',
      'PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n',
      `PROXY UNKNOWN ${'x'.repeat(200)}\r\n`,
      'PROXY \n',
      `\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0c${'x'.repeat(12)}`,
      `\r\n\r\n\0\r\nQUIT\n\x22\x11\x00\x0c${'x'.repeat(12)}`,
      '\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x04xxxx',
      '\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff',
    ])
      assert.ok(['invalid', 'incomplete'].includes(String(readProxyHeader(Buffer.from(header, 'latin1')))), JSON.stringify(header));
    assert.equal(readProxyHeader(Buffer.from('GET / HTTP/1.1\r\n')), 'none');
    assert.equal(readProxyHeader(Buffer.from('\r\nGET')), 'none');
  });

  it('never throws, whatever comes', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => void readProxyHeader(Buffer.from(bytes))));
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => void readProxyHeader(Buffer.concat([Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1'), bytes]))),
    );
  });
});

describe('the HTTP inspector', () => {
  const sniff = (text: string) => sniffHttp(Buffer.from(text, 'latin1'));

  it('tells HTTP by its request line, and HTTP/2 by its preface', () => {
    assert.equal(sniff('GET / HTTP/1.1\r\n'), 'http/1.1');
    assert.equal(sniff('M-SEARCH * HTTP/1.1\r\n'), 'http/1.1');
    assert.equal(sniff('POST /x?y HTTP/1.0\n'), 'http/1.0');
    assert.equal(sniff('PRI * HTTP/2.0\r\n\r\nSM'), 'h2c');
    for (const text of [
      '\x16\x03\x01',
      'SSH-2.0-x\r\n',
      'GET / HTTP/2.0\r\n',
      'EHLO me\r\n',
      '{"a":1}',
      'get / HTTP/1.1\r\n',
      `${'A'.repeat(30)} /`,
      'GET \x00',
      '*1\r\n$4\r\nPING\r\n',
    ])
      assert.equal(sniff(text), 'none', JSON.stringify(text));
  });

  it('waits for more only as long as it could still be HTTP', () => {
    for (const text of ['G', 'GET', 'GET /', 'GET / HTTP/1.1\r', 'PRI * HT']) assert.equal(sniff(text), 'incomplete', text);
    assert.equal(sniff(`GET /${'a'.repeat(9_000)}`), 'none');
  });
});
