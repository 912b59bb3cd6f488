import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { compileRegex, programSizeOf } from './linear-regex.ts';

describe("a user's regular expression", () => {
  it('is matched in linear time where a backtracking engine takes exponential time', () => {
    for (const pattern of ['^(a+)+$', '^(a|a)*$', '^(a|aa)+$', '(x+x+)+y', '^(.*a){20}$']) {
      const compiled = compileRegex(pattern);
      const startedAt = process.cpuUsage().user;
      compiled.matcher(`${'a'.repeat(16_000)}!`).find();
      assert.ok(process.cpuUsage().user - startedAt < 2_000_000, pattern);
    }
  });

  it('is refused when its program is too large, with the remedy', () => {
    assert.ok(programSizeOf(compileRegex('^.{1,1000}$')) < 3_000);
    assert.throws(() => compileRegex('(.*a){900}'), /at most 3000 are allowed: lower its repetition counts/);
    assert.throws(() => compileRegex('((a{100}){100}){100}'), /not a valid RE2 expression/);
    assert.throws(() => compileRegex('a'.repeat(2_000)), /longer than 1024/);
    assert.throws(() => compileRegex('(?=x)'), /not a valid RE2 expression/);
  });
});
