import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { Logger, MizzenError } from '@mizzen/common';
import { maxUnwrittenEntries, PrivateLog } from './private-log.ts';
import { UsedTokens } from './used-tokens.ts';

describe('files of the authority on a disk that takes none', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-private-log-'));
  after(() => rmSync(folder, { recursive: true, force: true }));

  it('keeps log entries in memory, up to a limit, and writes them when it can', () => {
    const path = join(folder, 'issued.log');
    const lines: string[] = [];
    const log = new PrivateLog<{ readonly n: number }>(path, 1_000_000, 'the log', new Logger('test', 'info', (line) => lines.push(line)));
    mkdirSync(path);
    for (let n = 0; n < maxUnwrittenEntries + 2; n++) log.write({ n });
    log.flush();
    assert.equal(log.unwritten().length, maxUnwrittenEntries);
    assert.deepEqual(log.unwritten()[0], { n: 2 });
    rmdirSync(path);
    log.flush();
    assert.deepEqual(log.unwritten(), []);
    const written = readFileSync(path, 'utf8').trimEnd().split('\n');
    assert.deepEqual([written.length, written[0], written.at(-1)], [maxUnwrittenEntries, '{"n":2}', `{"n":${maxUnwrittenEntries + 1}}`]);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    assert.equal(lines.length, 2);
    assert.match(lines[0]!, / error test: the log cannot be written; its entries wait in memory /);
    assert.match(lines[1]!, / info {2}test: the log can be written again .* lost=2\n$/);
  });

  it('refuses a token that is good once while its use cannot be remembered, and accepts it later, once', () => {
    const path = join(folder, 'used');
    const used = new UsedTokens(path, Date.now);
    mkdirSync(path);
    const endsAt = Date.now() / 1000 + 60;
    assert.throws(
      () => used.use('a', endsAt),
      (error) => error instanceof MizzenError && /Make space on the disk of .*used; the token stays good/.test(error.message),
    );
    rmdirSync(path);
    assert.equal(used.use('a', endsAt), true);
    assert.equal(used.use('a', endsAt), false);
    assert.equal(new UsedTokens(path, Date.now).use('a', endsAt), false);
  });
});
