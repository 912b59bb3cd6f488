import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { HpackDecoder } from './decoder.ts';
import { HpackEncoder } from './encoder.ts';
import { decodeHuffman, encodeHuffman, huffmanLength } from './huffman.ts';

type Fields = [string, string][];

function decode(decoder: HpackDecoder, block: Buffer): Fields | string {
  const fields: Fields = [];
  return decoder.decode(block, 0, block.length, { onField: ({ name, value }) => fields.push([name, value]) }) ?? fields;
}

const hex = (text: string) => Buffer.from(text.replace(/\s/g, ''), 'hex');
const latin1 = fc.string({ unit: fc.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code)), maxLength: 200 });

describe('the Huffman code', () => {
  it('is that of RFC 7541: its examples', () => {
    for (const [text, code] of [
      ['www.example.com', 'f1e3c2e5f23a6ba0ab90f4ff'],
      ['no-cache', 'a8eb10649cbf'],
      ['custom-key', '25a849e95ba97d7f'],
      ['custom-value', '25a849e95bb8e8b4bf'],
      ['private', 'aec3771a4b'],
      ['Mon, 21 Oct 2013 20:13:21 GMT', 'd07abe941054d444a8200595040b8166e082a62d1bff'],
      ['https://www.example.com', '9d29ad171863c78f0b97c8e9ae82ae43d3'],
      [
        'foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1',
        '94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007',
      ],
    ] as const) {
      const bytes = hex(code);
      assert.equal(decodeHuffman(bytes, 0, bytes.length), text);
      const target = Buffer.alloc(bytes.length);
      assert.equal(encodeHuffman(text, target, 0), bytes.length);
      assert.deepEqual(target, bytes);
      assert.equal(huffmanLength(text), bytes.length);
    }
  });

  it('gives back every text', () => {
    fc.assert(
      fc.property(latin1, (text) => {
        const target = Buffer.alloc(huffmanLength(text));
        assert.equal(encodeHuffman(text, target, 0), target.length);
        assert.equal(decodeHuffman(target, 0, target.length), text);
      }),
      { numRuns: 2_000 },
    );
  });

  it('refuses padding of zeros or of more than seven bits, and the end of string as a symbol', () => {
    assert.equal(decodeHuffman(hex('1f'), 0, 1), 'a', 'a, and three ones');
    assert.equal(decodeHuffman(hex('18'), 0, 1), undefined, 'a, and three zeros');
    assert.equal(decodeHuffman(hex('1fff'), 0, 2), undefined, 'a, and eleven ones');
    assert.equal(decodeHuffman(hex('ffffffff'), 0, 4), undefined);
    assert.equal(decodeHuffman(Buffer.alloc(0), 0, 0), '');
  });
});

describe('decoding header blocks', () => {
  it("reads RFC 7541's requests, plain and in Huffman's code, and keeps the table between them (C.3, C.4)", () => {
    const expected: Fields[] = [
      [
        [':method', 'GET'],
        [':scheme', 'http'],
        [':path', '/'],
        [':authority', 'www.example.com'],
      ],
      [
        [':method', 'GET'],
        [':scheme', 'http'],
        [':path', '/'],
        [':authority', 'www.example.com'],
        ['cache-control', 'no-cache'],
      ],
      [
        [':method', 'GET'],
        [':scheme', 'https'],
        [':path', '/index.html'],
        [':authority', 'www.example.com'],
        ['custom-key', 'custom-value'],
      ],
    ];
    for (const blocks of [
      ['828684410f7777772e6578616d706c652e636f6d', '828684be58086e6f2d6361636865', '828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565'],
      ['828684418cf1e3c2e5f23a6ba0ab90f4ff', '828684be5886a8eb10649cbf', '828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf'],
    ]) {
      const decoder = new HpackDecoder();
      for (const [i, block] of blocks.entries()) assert.deepEqual(decode(decoder, hex(block)), expected[i]);
      assert.equal(decoder.tableBytes, 164);
    }
  });

  it("reads RFC 7541's responses, with evictions from a table of 256 bytes (C.6)", () => {
    const decoder = new HpackDecoder(256);
    const blocks = [
      '488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3',
      '4883640effc1c0bf',
      '88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007',
    ];
    const [first, second, third] = blocks.map((block) => decode(decoder, hex(block)) as Fields);
    assert.deepEqual(first![0], [':status', '302']);
    assert.deepEqual(second![0], [':status', '307']);
    assert.deepEqual(second!.slice(1), first!.slice(1));
    assert.deepEqual(third!.at(-1), ['set-cookie', 'foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1']);
    assert.equal(decoder.tableBytes, 215);
  });

  it('refuses what no block is', () => {
    for (const [block, failure] of [
      ['80', 'index'],
      ['be', 'index'],
      ['7f80808080808001', 'integer'],
      ['ff', 'integer'],
      ['4003616263', 'truncated'],
      ['400a61', 'truncated'],
      ['408118', 'huffman'],
      ['3fe21f', 'size_update'],
      ['202020', 'too_many_size_updates'],
      ['8220', 'too_many_size_updates'],
    ] as const)
      assert.equal(decode(new HpackDecoder(), hex(block)), failure, block);
  });

  it('never throws, and its table never grows beyond its limit, whatever comes', () => {
    const decoder = new HpackDecoder();
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        decode(decoder, Buffer.from(bytes));
        assert.ok(decoder.tableBytes <= 4096);
      }),
      { numRuns: 5_000 },
    );
  });
});

describe('encoding header blocks', () => {
  const names = fc.constantFrom(
    ':path',
    ':status',
    ':authority',
    'accept',
    'cookie',
    'authorization',
    'x-request-id',
    'x-a',
    'x-b',
    'content-type',
    'grpc-status',
    'user-agent',
  );
  const fields = fc.array(fc.tuple(names, fc.oneof(fc.constantFrom('', '200', '/', 'application/grpc', 'a'.repeat(600)), latin1)), { maxLength: 20 });

  it('our decoder reads what it writes, block after block, through changes of the table', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fields, fc.option(fc.integer({ min: 0, max: 5000 }))), { maxLength: 30 }), (blocks) => {
        const encoder = new HpackEncoder();
        const decoder = new HpackDecoder();
        for (const [block, limit] of blocks) {
          if (limit !== null) {
            encoder.setLimit(limit);
            decoder.setLimit(Math.max(limit, 0));
          }
          encoder.begin();
          for (const [name, value] of block) encoder.add(name, value);
          assert.deepEqual(decode(decoder, encoder.end()), block);
          assert.ok(limit === null || decoder.tableBytes <= limit);
        }
      }),
      { numRuns: 500 },
    );
  });

  it('sends as one byte each what repeats, and keeps secrets and what does not repeat out of the table', () => {
    const encoder = new HpackEncoder();
    const block = (path: string) => {
      encoder.begin();
      for (const [name, value] of [
        [':method', 'POST'],
        [':scheme', 'http'],
        [':path', path],
        [':authority', 'reviews:9080'],
        ['content-type', 'application/grpc'],
        ['te', 'trailers'],
      ] as const)
        encoder.add(name, value);
      return encoder.end().length;
    };
    const first = block('/a/b');
    assert.equal(block('/a/c'), 5 + 2 + '/a/c'.length, `${first} bytes for the first`);
    assert.ok(block('/a/c') > 6, 'a path that comes again enters the table');
    assert.equal(block('/a/c'), 6);
    const decoder = new HpackDecoder();
    encoder.begin();
    encoder.add('authorization', 'Bearer secret');
    encoder.add('cookie', 'secret');
    const secret = Buffer.from(encoder.end());
    assert.equal(secret[0]! & 0xf0, 0x10, 'never indexed');
    decode(decoder, secret);
    assert.equal(decoder.tableBytes, 0);
  });
});
