import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { leftGroup } from './left-group.ts';

it('a captured process that has changed its group is found, at any depth below the application and nowhere else', () => {
  const proc = mkdtempSync(join(tmpdir(), 'mizzen-proc-'));
  try {
    const put = (pid: number, parent: number, name: string, groups: string) => {
      mkdirSync(join(proc, String(pid)));
      writeFileSync(join(proc, String(pid), 'status'), `Name:\t${name}\nPPid:\t${parent}\nUid:\t0\t0\t0\t0\nGid:\t${groups}\n`);
    };
    put(1, 0, 'init', '0\t0\t0\t0');
    put(10, 1, 'nginx', '700\t700\t700\t700');
    put(11, 10, 'nginx', '65534\t65534\t65534\t65534');
    put(12, 10, 'helper', '700\t700\t700\t700');
    put(13, 12, 'su', '700\t700\t700\t100');
    put(20, 1, 'other', '5\t5\t5\t5');
    mkdirSync(join(proc, '30'));
    assert.deepEqual(
      leftGroup(10, 700, proc).sort((a, b) => a.pid - b.pid),
      [
        { pid: 11, name: 'nginx', gid: 65534 },
        { pid: 13, name: 'su', gid: 100 },
      ],
    );
  } finally {
    rmSync(proc, { recursive: true, force: true });
  }
});
