import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { parseYaml, parseYamlDocuments, yamlLimits } from './bounded-yaml.ts';

/** CPU of a call in microseconds: the least of several tries, so that a busy machine does not count. */
function costOf(run: () => void): number {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 3; i++) {
    const before = process.cpuUsage();
    run();
    const { user, system } = process.cpuUsage(before);
    least = Math.min(least, user + system);
  }
  return least;
}

const lines = (count: number, line: (i: number) => string) => Array.from({ length: count }, (_, i) => line(i)).join('');

describe('YAML within bounds', () => {
  it('costs less than 20 times as much for 8 times the keys, items, errors or documents', () => {
    const texts: Record<string, (count: number) => string> = {
      'keys of one map': (count) => `data:\n${lines(count, (i) => `  key${i}: v\n`)}`,
      'keys of one flow map': (count) => `{${lines(count, (i) => `key${i}: v, `)}}`,
      'items of one list': (count) => lines(count, (i) => `- v${i}\n`),
      'anchors and aliases': (count) => `${lines(count, (i) => `k${i}: &a${i} v\n`)}z:\n${lines(count, (i) => `- *a${i}\n`)}`,
      'syntax errors': (count) => lines(count, () => ']\n'),
      documents: (count) => lines(Math.min(count, yamlLimits.maxDocuments / 2 - 1), () => 'a: 1\n---\n'),
    };
    for (const [name, text] of Object.entries(texts)) {
      const parse = (count: number) => {
        const given = text(count);
        return costOf(() => parseYamlDocuments(given).forEach((document) => document.problems.length > 0 || document.toJS()));
      };
      parse(1_000);
      const [small, large] = [parse(2_000), parse(16_000)];
      assert.ok(large < small * 20 + 50_000, `${name}: ${small} us for 2,000 and ${large} us for 16,000`);
    }
  });

  it('refuses a key that occurs twice, with its line', () => {
    assert.throws(() => parseYaml('a: 1\nb: 2\na: 3\n'), /line 3: the key "a" occurs twice/);
    assert.deepEqual(parseYaml('1: a\n"1": b\n'), { 1: 'b' });
    assert.deepEqual(parseYaml('x: &x {a: 1}\ny:\n  <<: *x\n  b: 2\n'), { x: { a: 1 }, y: { a: 1, b: 2 } });
  });

  it('refuses too many aliases, too deep nesting and too large texts', () => {
    assert.throws(() => parseYaml(`a: &a 1\nb:\n${lines(200, () => '- *a\n')}`), /more than 100 aliases/);
    assert.throws(() => parseYaml(`${lines(200, (i) => `${' '.repeat(i)}k:\n`)}`), /nested more than 100/);
    assert.throws(() => parseYaml('- '.repeat(100_000)), /nested more than 100/);
    assert.throws(() => parseYaml('['.repeat(200)), /nested 200 deep/);
    assert.throws(() => parseYaml('x'.repeat(yamlLimits.maxBytes + 1)), /larger than 4 MiB/);
    assert.equal(parseYaml(''), undefined);
  });
});
