import assert from 'node:assert/strict';
import { once } from 'node:events';
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { maxUnixPathBytes } from '@mizzen/common';
import { atUnixSocket, checkUnixPath, listenOnUnixSocket } from './unix-socket.ts';

describe('the Unix socket of a listener', () => {
  let folder: string;
  const servers: net.Server[] = [];
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-unix-'));
  });
  after(() => {
    for (const server of servers) server.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const listen = async (path: string, mode = 0) => {
    const server = net.createServer((socket) => socket.on('error', () => {}).end('mesh'));
    servers.push(server);
    return { server, file: await listenOnUnixSocket(server, path, mode, 16) };
  };
  const said = async (connect: () => net.Socket) => {
    const socket = connect();
    let text = '';
    socket.setEncoding('utf8').on('data', (part: string) => (text += part));
    await once(socket, 'close');
    return text;
  };

  it('is the user’s alone, or its group’s where the folder is shared with the group, or has the mode that is configured', async () => {
    const modeOf = (path: string) => statSync(path).mode & 0o777;
    await listen(join(folder, 'own'));
    assert.equal(modeOf(join(folder, 'own')), 0o600);
    mkdirSync(join(folder, 'shared'));
    chmodSync(join(folder, 'shared'), 0o2750);
    await listen(join(folder, 'shared/mesh'));
    assert.equal(modeOf(join(folder, 'shared/mesh')), 0o660);
    await listen(join(folder, 'other'), 0o640);
    assert.equal(modeOf(join(folder, 'other')), 0o640);
    assert.deepEqual(readdirSync(folder).sort(), ['other', 'own', 'shared'], 'no other name is left');
  });

  it('may have the longest path that there is, and is removed with its listener, unless another process has it', async () => {
    const path = join(folder, 'x'.repeat(maxUnixPathBytes - folder.length - 1));
    const first = await listen(path);
    assert.equal(await said(() => atUnixSocket(path, (at) => net.connect({ path: at }))), 'mesh');
    first.server.close();
    assert.ok(existsSync(path), 'a server that closes does not remove it: a successor may listen on it');
    first.file.handedOver();
    first.file.remove();
    assert.ok(existsSync(path));
    const second = await listen(path);
    first.file.remove();
    assert.ok(existsSync(path), 'a socket that was left behind is replaced');
    second.file.remove();
    assert.equal(existsSync(path), false);
  });

  it('replaces no file, no symbolic link and no socket that a process listens on', async () => {
    const at = (name: string) => join(folder, name);
    writeFileSync(at('file'), 'kept');
    symlinkSync(at('file'), at('link'));
    mkdirSync(at('folder'));
    await listen(at('live'));
    await assert.rejects(listen(at('file')), /there is a file in the place of the socket, which is not replaced/);
    await assert.rejects(listen(at('link')), /there is a symbolic link/);
    await assert.rejects(listen(at('folder')), /there is a folder/);
    await assert.rejects(listen(at('live')), /another process listens on this Unix socket/);
    assert.equal(await said(() => net.connect({ path: at('live') })), 'mesh');
  });

  it('is not put where another user could replace it', async () => {
    const open = join(folder, 'open');
    mkdirSync(open);
    chmodSync(open, 0o777);
    await assert.rejects(listen(join(open, 'x')), /other users may write the folder/);
    mkdirSync(join(open, 'inner'), { mode: 0o700 });
    await assert.rejects(listen(join(open, 'inner/x')), /other users may write the folder/, 'nor below such a folder');
    chmodSync(open, 0o1777);
    await listen(join(open, 'x'));
    if (process.getuid?.() !== 0) return;
    mkdirSync(join(folder, 'theirs'));
    chownSync(join(folder, 'theirs'), 65_534, 65_534);
    await assert.rejects(listen(join(folder, 'theirs/x')), /belongs to another user \(uid=65534\)/);
  });

  it('of the abstract namespace has a name and no file', async () => {
    const name = `mizzen-test-${process.pid}`;
    await listen(`@${name}`);
    assert.equal(await said(() => atUnixSocket(`@${name}`, (at) => net.connect({ path: at }))), 'mesh');
  });

  it('is not reached through a symbolic link: who made it may lack the rights to what it leads to', async () => {
    const target = join(folder, 'target');
    await listen(target);
    symlinkSync(target, join(folder, 'application'));
    const socket = atUnixSocket(join(folder, 'application'), (at) => net.connect({ path: at }));
    await assert.rejects(once(socket, 'connect'), /ENOTSOCK|ECONNREFUSED/);
    rmSync(join(folder, 'application'));
    renameSync(target, join(folder, 'application'));
    assert.equal(await said(() => atUnixSocket(join(folder, 'application'), (at) => net.connect({ path: at }))), 'mesh');
  });

  it('is refused outside of the folders that the proxy has for them', () => {
    const policy = { folders: ['/run/shop', '@shop-'], opens: true };
    for (const path of ['/run/shop/mesh.sock', '@shop-mesh']) checkUnixPath(path, policy, 'listener x');
    for (const path of ['/run/docker.sock', '/run/shop/deeper/x', '/run/shopping', '/run/shop', '@other', '@shop'])
      assert.throws(() => checkUnixPath(path, policy, 'listener x'), /listener x: this proxy has no rights to Unix sockets there.*--socket-folder/, path);
    assert.throws(() => checkUnixPath('/run/x', { folders: [], opens: true }, 'cluster y'), /directly in no folder/);
    assert.throws(() => checkUnixPath('/run/shop/../docker.sock', { folders: undefined, opens: true }, 'cluster y'), /must not contain/);
  });
});
