import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Logger } from './logger.ts';
import { printableJson, printableLines, printableText } from './printable-text.ts';

/** What moves a cursor, reorders text, or hides it. */
const hostile = [
  ...Array.from({ length: 0x20 }, (_, code) => code).filter((code) => code !== 0x09),
  ...Array.from({ length: 0x21 }, (_, i) => 0x7f + i),
  ...[0x61c, 0x180e, 0x200b, 0x200e, 0x200f, 0x2028, 0x2029, 0x202a, 0x202e, 0x2060, 0x2066, 0x2069, 0xfeff, 0xe0041, 0xd800, 0xdfff],
].map((code) => String.fromCodePoint(code));

describe('text that is shown', () => {
  it('has no control character and no mark that reorders or hides', () => {
    for (const character of hostile) {
      const shown = printableText(`a${character}b`);
      assert.match(shown, /^a\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|u\{[0-9a-f]+\})b$/, JSON.stringify(character));
    }
    assert.equal(printableText('\x9b2Jgone\x1b]0;title\x07'), '\\x9b2Jgone\\x1b]0;title\\x07');
  });

  it('keeps everything that people write', () => {
    for (const text of ['plain', 'a\tb', 'Grüße, 世界, שלום, مرحبا', '🙂 e\u0301', '\u00a0\u00ad\u00ff']) assert.equal(printableText(text), text);
    assert.equal(printableLines('a\n\x9bb\r\n'), 'a\n\\x9bb\\x0d\n');
  });

  it('is the same value in JSON', () => {
    for (const character of hostile) {
      const value = { [`k${character}`]: [`v${character}`] };
      const text = printableJson(value, 2);
      assert.deepEqual(JSON.parse(text), value);
      assert.equal(printableLines(text), text, JSON.stringify(character));
    }
    assert.equal(printableJson(undefined), 'null');
  });

  it('is one line of a log, in its message and its fields', () => {
    for (const character of hostile) {
      const lines: string[] = [];
      new Logger('test', 'info', (line) => lines.push(line)).info(`m${character}`, { field: `f${character}`, plain: 'a b' });
      assert.equal(lines.length, 1);
      assert.match(lines[0]!, /\n$/);
      const line = lines[0]!.slice(0, -1);
      assert.equal(printableText(line), line, JSON.stringify(character));
    }
  });
});
