import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { factsOf, holdersOf, programHash, readPeers, socketPeer, socketsOf } from './processes.ts';
import { readWorkloadEntries } from './workload-entries.ts';

describe('entries of workloads', () => {
  const entry = (selectors: unknown, more = {}) => [{ namespace: 'shop', serviceAccount: 'cart', selectors, ...more }];

  it('say of which processes a service account is', () => {
    assert.deepEqual(readWorkloadEntries([{ serviceAccount: 'cart', selectors: { uid: 0, path: '/usr/bin/cart' } }], 'a.yaml'), [
      { namespace: 'default', serviceAccount: 'cart', selectors: { uid: 0, path: '/usr/bin/cart' } },
    ]);
    assert.equal(readWorkloadEntries(entry({ user: 'root', gid: 0, pid: 1, sha256: 'a'.repeat(64) }), 'a.yaml').length, 1);
  });

  it('are refused with the place when they say nothing, or what nobody understands', () => {
    for (const [value, problem] of [
      [undefined, /entries must be a list/],
      [[], /and not empty/],
      [entry({}), /entries\[0\]\.selectors must say which processes/],
      [entry(undefined), /must say which processes/],
      [entry({ uid: '0' }), /selectors\.uid must be a number/],
      [entry({ uid: 1.5 }), /selectors\.uid must be a number/],
      [entry({ euid: 0 }), /selectors\.euid is not known: uid, gid/],
      [entry({ path: 'cart' }), /selectors\.path must be a whole path/],
      [entry({ sha256: 'A'.repeat(64) }), /sha256 must be 64 hexadecimal digits/],
      [entry({ user: 'nobody-at-all' }), /there is no user "nobody-at-all"/],
      [entry({ uid: 0 }, { serviceAccount: 'a/b' }), /serviceAccount must be the name/],
      [entry({ uid: 0 }, { selector: {} }), /entries\[0\]\.selector is not known/],
    ] as const)
      assert.throws(() => readWorkloadEntries(value, 'a.yaml'), problem);
  });
});

describe('what the kernel says of processes', () => {
  it('is who runs which program', async () => {
    const facts = factsOf(process.pid)!;
    assert.deepEqual([facts.uid, facts.gid, facts.path], [process.geteuid!(), process.getegid!(), realpathSync(process.execPath)]);
    const hash = createHash('sha256').update(readFileSync(process.execPath)).digest('hex');
    assert.equal(await programHash(process.pid), hash);
    assert.equal(factsOf(2 ** 30), undefined);
    assert.equal(await programHash(2 ** 30), undefined);
    assert.equal(socketsOf(2 ** 30).size, 0);
  });

  it('is who is at the other end of a Unix socket, and all who share it', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-peers-'));
    const path = join(folder, 'a socket');
    const server = net.createServer().listen(path);
    await once(server, 'listening');
    const child = spawn(process.execPath, ['-e', `require('net').connect(${JSON.stringify(path)}); setInterval(() => {}, 1e6)`], { stdio: 'ignore' });
    try {
      const [socket] = (await once(server, 'connection')) as [net.Socket];
      const peer = await socketPeer(socket);
      assert.deepEqual(
        holdersOf(peer!).map(({ pid }) => pid),
        [child.pid],
      );
      socket.destroy();
    } finally {
      child.kill('SIGKILL');
      server.close();
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it('is not what somebody has written into the name of a socket', () => {
    const real = 'u_str 0      0      /run/mizzen.sock 100 * 101 ';
    assert.deepEqual(
      [...readPeers([real, 'u_str 0 0 * 7 * 8', 'u_str 0 0 /run/a name 9 * 10', 'else', ''])],
      [
        [100, 101],
        [7, 8],
        [9, 10],
      ],
    );
    // A socket that is bound at `/tmp/x\nu_str 0 0 /run/mizzen.sock 100 * 666\n`.
    assert.deepEqual([...readPeers([real, 'u_str 0 0 /tmp/x', 'u_str 0 0 /run/mizzen.sock 100 * 666', ' 200 * 201'])], []);
  });
});
