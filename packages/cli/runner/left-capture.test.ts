import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { leftCapture } from './left-capture.ts';

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
      leftCapture(10, { kind: 'group', gid: 700 }, proc).sort((a, b) => a.pid - b.pid),
      [
        { pid: 11, name: 'nginx', place: 'gid=65534' },
        { pid: 13, name: 'su', place: 'gid=100' },
      ],
    );
  } finally {
    rmSync(proc, { recursive: true, force: true });
  }
});

it('a captured process that was moved to another cgroup is found; one that has ended is not', () => {
  const proc = mkdtempSync(join(tmpdir(), 'mizzen-proc-'));
  try {
    const put = (pid: number, parent: number, name: string, state: string, cgroup: string) => {
      mkdirSync(join(proc, String(pid)));
      writeFileSync(join(proc, String(pid), 'status'), `Name:\t${name}\nState:\t${state}\nPPid:\t${parent}\nGid:\t0\t0\t0\t0\n`);
      writeFileSync(join(proc, String(pid), 'cgroup'), `1:cpu:/\n0::${cgroup}\n`);
    };
    put(10, 1, 'sh', 'S (sleeping)', '/mizzen-run-9');
    put(11, 10, 'worker', 'S (sleeping)', '/mizzen-run-9/below');
    put(12, 10, 'login', 'S (sleeping)', '/user.slice/session-3.scope');
    put(13, 10, 'ended', 'Z (zombie)', '/');
    put(20, 1, 'other', 'S (sleeping)', '/');
    const subject = { kind: 'cgroup', cgroup: { folder: '/c/mizzen-run-9', path: '/mizzen-run-9', level: 1 } } as const;
    assert.deepEqual(leftCapture(10, subject, proc), [{ pid: 12, name: 'login', place: 'cgroup=/user.slice/session-3.scope' }]);
  } finally {
    rmSync(proc, { recursive: true, force: true });
  }
});
