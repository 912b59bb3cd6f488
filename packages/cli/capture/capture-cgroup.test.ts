import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { cgroupMount, isInside, nftPath, placeOf } from './capture-cgroup.ts';

const unified = '31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n';
const hybrid = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`;
const place = (mountInfo: string, ownCgroups: string, owners: Readonly<Record<string, number>> = {}) =>
  placeOf({ mountInfo, ownCgroups, ownerOf: (folder) => owners[folder] ?? 0 });
const name = `mizzen-run-${process.pid}`;

describe('the cgroup of a captured application', () => {
  it('lies below the cgroup of the process that makes it, so that its limits still apply', () => {
    assert.deepEqual(place(unified, '0::/system.slice/shop.service\n'), {
      folder: `/sys/fs/cgroup/system.slice/shop.service/${name}`,
      path: `/system.slice/shop.service/${name}`,
      level: 3,
    });
  });

  it('is found where cgroup2 is mounted beside version 1', () => {
    const cgroup = place(hybrid, '4:memory:/process/1\n0::/\n');
    assert.deepEqual(cgroup, { folder: `/sys/fs/cgroup/unified/${name}`, path: `/${name}`, level: 1 });
    assert.equal(nftPath(cgroup), `unified/${name}`, 'nft resolves paths from /sys/fs/cgroup');
  });

  it('lies above a cgroup that was delegated to a user, who could move processes out of it', () => {
    const own = '0::/user.slice/user-1000.slice/user@1000.service/app.slice/terminal.scope\n';
    const delegated = { '/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service': 1000 };
    assert.equal(place(unified, own, delegated).path, `/user.slice/user-1000.slice/${name}`);
  });

  it('is found where only a part of the hierarchy is mounted, in a folder whose name is escaped', () => {
    const part = '50 1 0:28 /docker/abc /mnt/my\\040cgroups ro - cgroup2 cgroup rw\n';
    assert.deepEqual(cgroupMount(part), { folder: '/mnt/my cgroups', root: '/docker/abc' });
    assert.deepEqual(place(part, '0::/docker/abc\n'), { folder: `/mnt/my cgroups/${name}`, path: `/docker/abc/${name}`, level: 3 });
  });

  it('is refused with the reason where it cannot be placed', () => {
    assert.throws(() => place('1 2 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n', '0::/\n'), /cgroup2 is not mounted/);
    for (const own of ['4:memory:/\n', '0::/../outside\n', '0::/gone.scope (deleted)\n']) assert.throws(() => place(unified, own), /not in a cgroup/);
    assert.throws(() => place('1 2 0:3 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n', '0::/docker/abcdef\n'), /is not mounted here/);
  });

  it('contains the processes in it and in the cgroups below it, and no others', () => {
    const cgroup = { folder: '/c/a', path: '/a', level: 1 };
    for (const [text, expected] of [
      ['0::/a\n', true],
      ['3:cpu:/b\n0::/a/b\n', true],
      ['0::/ab\n', false],
      ['0::/\n', false],
      ['3:cpu:/a\n', false],
    ] as const)
      assert.equal(isInside(cgroup, text), expected, text);
  });
});
