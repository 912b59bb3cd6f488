import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

const hostile = 'a\x9b2J\x1b]0;title\x07\x1b[31mred\u202Eb\u2066\r\x08';

/** Names and messages come from objects, peers and applications: no command sends their control characters to a terminal. */
describe('the output of commands', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-output-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  const run = (code: string) => {
    const url = new URL('./output.ts', import.meta.url).href;
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', `const o = await import(${JSON.stringify(url)}); ${code}`], {
      encoding: 'utf8',
    });
    return stdout + stderr;
  };
  const isClean = (text: string) => assert.doesNotMatch(text, /[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/, JSON.stringify(text));

  it('has no control characters of a cell, a line, JSON, YAML, a log or a warning', () => {
    const text = JSON.stringify(hostile);
    const shown = run(`
      o.print(o.formatTable(['NAME', 'B'], [[${text} + '\\n2', o.paint(${text}, 'red')]]));
      o.print(${text});
      o.printError(${text});
      o.printLog(${text} + '\\n');
      o.printData({ a: ${text} }, 'json');
      o.printData({ a: ${text} }, 'yaml');
    `);
    assert.ok(shown.includes('\\x9b2J') && shown.includes('\\u202e'), shown);
    isClean(shown);
    assert.equal(shown.split('\n')[1]!.includes('2'), true, 'a line break in a cell does not begin a row');
  });

  it('has none of an option, of an error, and of the log of a workload', () => {
    const bin = fileURLToPath(new URL('./main.ts', import.meta.url));
    const mizzen = (...args: readonly string[]) => {
      const { stdout, stderr } = spawnSync(process.execPath, [bin, ...args, '--home', folder], { encoding: 'utf8' });
      return stdout + stderr;
    };
    for (const output of [mizzen('logs', hostile), mizzen('logs', 'web', `--${hostile}`), mizzen(`x${hostile}`)]) isClean(output);
    const log = join(folder, 'logs');
    spawnSync('mkdir', [log]);
    writeFileSync(join(log, 'web.log'), `${hostile}\nsecond\n`);
    const shown = mizzen('logs', 'web');
    assert.match(shown, /second/);
    isClean(shown);
  });
});
