import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { brokenExitCode, ErrorWindow, lastLines, type ProcessKind } from './last-line.ts';

const run = (kind: ProcessKind, errors: number) => {
  const code = `
    import { keepServingAfterErrors, Logger, unattributedErrors } from '@mizzen/common';
    keepServingAfterErrors(new Logger('test'), '${kind}');
    let turn = 0;
    const next = () => {
      if (turn === ${errors}) return process.stdout.write(String(unattributedErrors()), () => process.exit(0));
      setImmediate(next);
      if (turn++ % 2 === 0) throw new Error('in a callback');
      Promise.reject(new Error('in a promise'));
    };
    setImmediate(next);`;
  return spawnSync(process.execPath, ['--input-type=module', '-e', code], { cwd: import.meta.dirname, encoding: 'utf8' });
};

describe('the last line of a process', () => {
  it('counts and logs errors outside all boundaries with their place in the code, and the process goes on', () => {
    const { status, stdout, stderr } = run('proxy', 20);
    assert.deepEqual([status, stdout], [0, '20'], stderr);
    assert.match(stderr, /error test: internal error place=unattributed error="Error: in a callback\\n +at .*eval/);
  });

  it('ends a process that has met too many within a minute, so that its supervisor starts another', () => {
    const { status, stderr } = run('worker', lastLines.worker.maxUnattributedErrors! + 1);
    assert.equal(status, brokenExitCode);
    assert.match(stderr, /the process exits: too many errors outside all boundaries kind=worker errors=101/);
  });

  it('never ends the process that runs all others', () => {
    assert.equal(lastLines.runner.maxUnattributedErrors, undefined);
    assert.equal(run('runner', 300).status, 0);
  });

  it('forgives errors that are more than a minute apart', () => {
    const window = new ErrorWindow(2);
    assert.deepEqual(
      [0, 1_000, 61_000, 122_000, 183_000].map((nowMs) => window.isExceededBy(nowMs)),
      [false, false, false, false, false],
    );
    assert.equal(window.isExceededBy(184_000), false);
    assert.equal(window.isExceededBy(185_000), true);
  });
});
