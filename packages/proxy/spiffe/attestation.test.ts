import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, copyFileSync, mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { ConnectError } from '@connectrpc/connect';
import type { Logger } from '@mizzen/common';
import { ProcessAttestor } from './process-attestor.ts';
import { factsOf, holdersOf, programHash, readPeers, socketPeer, socketsOf } from './processes.ts';
import { type ProcessSelectors, readWorkloadEntries } from './workload-entries.ts';

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
        (await holdersOf(peer!)).holders.map(({ facts, isOfCreator, closesOnExec }) => [facts.pid, facts.hasOneUser, isOfCreator, closesOnExec]),
        [[child.pid, true, true, true]],
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

/** Connects, then runs one statement after another: a line on stdout when it has run, and a line on stdin for the next. */
const attacker = `
import os, socket, subprocess, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
for step in sys.argv[2:]:
    exec(step)
    print('done', flush=True)
    if sys.stdin.readline() == '': break
`;
/** Prints a line as one of its steps does, then keeps its descriptors until stdin ends. */
const execShell = `os.set_inheritable(s.fileno(), True); os.execv('/bin/sh', ['sh', '-c', 'echo done; read line'])`;

describe('a connection to the Workload API', { skip: process.getuid?.() === 0 ? false : 'needs root, to be several users' }, () => {
  const id = 'spiffe://mesh.test/ns/default/sa/cart';
  const shell = realpathSync('/bin/sh');
  let folder: string;
  let socketPath: string;
  let server: net.Server;
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-attest-'));
    chmodSync(folder, 0o755);
    socketPath = join(folder, 'api.sock');
    server = net.createServer().listen(socketPath);
    await once(server, 'listening');
    chmodSync(socketPath, 0o666);
    copyFileSync('/bin/cat', join(folder, 'setuid-cat'));
    chmodSync(join(folder, 'setuid-cat'), 0o4755);
    copyFileSync('/bin/true', join(folder, 'trusted'));
    chmodSync(join(folder, 'trusted'), 0o755);
  });
  after(() => {
    server.close();
    rmSync(folder, { recursive: true, force: true });
  });

  /** What the attestor says after the first step, and after each of the others. */
  const attestAfter = async (selectors: ProcessSelectors, steps: readonly string[], as: { uid?: number; command?: readonly string[] } = {}) => {
    const { uid, command: [program = '', ...words] = ['/usr/bin/python3'] } = as;
    const child = spawn(program, [...words, '-c', attacker, socketPath, ...steps], {
      ...(uid === undefined ? {} : { uid, gid: uid }),
      ...{ stdio: ['pipe', 'pipe', 'inherit'], cwd: '/' },
    });
    const lines = createInterface(child.stdout!)[Symbol.asyncIterator]();
    const logger = { info: () => {}, warn: () => {} } as unknown as Logger;
    const attestor = new ProcessAttestor({ trustDomain: 'mesh.test', entries: [{ namespace: 'default', serviceAccount: 'cart', selectors }], logger });
    const [socket] = (await once(server, 'connection')) as [net.Socket];
    try {
      await lines.next();
      const attestation = await attestor.attest(socket);
      const seen: string[] = [];
      for (const [i] of steps.entries()) {
        if (i > 0) {
          child.stdin!.write('\n');
          await lines.next();
        }
        const identities = await attestation.verify();
        seen.push(identities instanceof ConnectError ? identities.message : identities.join());
      }
      return seen;
    } finally {
      socket.destroy();
      child.stdin!.destroy();
      child.kill('SIGKILL');
    }
  };

  it('has the identity of the process that opened it, also for its forks, on every request', async () => {
    const fork = 'other = os.fork() or sys.stdin.readline()';
    assert.deepEqual(await attestAfter({ uid: 0, path: realpathSync('/usr/bin/python3') }, ['pass', 'pass', fork]), [id, id, id]);
    assert.deepEqual(await attestAfter({ uid: 4001 }, ['pass'], { uid: 4001 }), [id]);
  });

  it('loses its identity for good when its process runs another program', async () => {
    const [first, second] = await attestAfter({ uid: 0 }, ['pass', execShell]);
    assert.equal(first, id);
    assert.match(second!, /^\[permission_denied\] no identity issued: the process or program that holds the connection has changed/);
  });

  it('loses its identity when another process has it', async () => {
    const hand = 'other = subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=s); s.detach() and os.close(3)';
    const [first, second] = await attestAfter({ uid: 0 }, ['pass', hand]);
    assert.equal(first, id);
    assert.match(second!, /has changed since it was attested/);
  });

  it('has no identity while a descriptor is in flight, also when another process holds it', async () => {
    const send = 'a, b = socket.socketpair(); socket.send_fds(a, [b"x"], [s.fileno()])';
    const [hidden] = await attestAfter({ uid: 0 }, [send]);
    assert.match(hidden!, /a descriptor in flight may be the connection: a Unix socket of pid \d+/);
    const [before, during, later] = await attestAfter({ uid: 4001 }, ['pass', send, 'os.close(socket.recv_fds(b, 1, 1)[1][0])'], { uid: 4001 });
    assert.equal(before, id);
    assert.match(during!, /descriptor in flight/);
    assert.equal(later, id, 'received again by the same process');
    const queued = 'l = socket.socket(socket.AF_UNIX); l.bind(""); l.listen(); c = socket.socket(socket.AF_UNIX); c.connect(l.getsockname())';
    const [unaccepted] = await attestAfter({ uid: 0 }, [`${queued}; socket.send_fds(c, [b"x"], [s.fileno()])`]);
    assert.match(unaccepted!, /descriptor in flight/);
    const [alone] = await attestAfter({ uid: 0 }, [`${send}; s.close()`]);
    assert.match(alone!, /no process that this agent can see holds the connection/);
  });

  it('has no identity by program where another program may have opened it', async () => {
    assert.match((await attestAfter({ uid: 0, path: shell }, [execShell]))[0]!, /another program may have opened its connection: open it with SOCK_CLOEXEC/);
  });

  it('has no identity of a setuid program, or of another user than its opener', async () => {
    const execCat = `os.set_inheritable(s.fileno(), True); r, w = os.pipe(); os.write(w, b"done\\n"); os.dup2(r, 0); os.set_inheritable(w, True); os.execv(${JSON.stringify(join(folder, 'setuid-cat'))}, ["cat"])`;
    assert.match((await attestAfter({ uid: 0 }, [execCat], { uid: 4001 }))[0]!, /real, effective, saved and filesystem ids differ: pid \d+, uid 0/);
    for (const [step, problem] of [
      ['os.seteuid(4001)', /ids differ/],
      ['os.setresuid(4001, 4001, 0)', /ids differ/],
      ['os.setegid(4001)', /ids differ/],
      ['os.setresuid(4001, 4001, 4001)', /another user or group opened the connection/],
      ['os.setresgid(4001, 4001, 4001)', /another user or group opened the connection/],
    ] as const) {
      assert.match((await attestAfter({ uid: 4001 }, [step]))[0]!, problem, step);
      const [first, second] = await attestAfter({ path: realpathSync('/usr/bin/python3') }, ['pass', step]);
      assert.equal(first, id);
      assert.match(second!, problem, step);
    }
  });

  it('has no identity by a path that its process has mounted over in a namespace of its own', async () => {
    const trusted = join(folder, 'trusted');
    const forge = `mount --bind "$(readlink -f /usr/bin/python3)" ${trusted} && exec ${trusted} "$@"`;
    const command = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', forge, 'sh'];
    const [forged] = await attestAfter({ path: trusted }, ['pass'], { command });
    assert.match(forged!, /its path proves nothing in another mount or user namespace: select it by sha256/);
    const sha256 = createHash('sha256').update(readFileSync('/usr/bin/python3')).digest('hex');
    assert.deepEqual(await attestAfter({ path: trusted, sha256 }, ['pass'], { command }), [id], 'by its hash');
  });
});
