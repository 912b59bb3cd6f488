import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, copyFileSync, linkSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { homeFiles } from '@mizzen/control';
import { TestMesh } from './support/mesh.ts';

const run = promisify(execFile);

/**
 * A workload: asks for X.509-SVIDs `times` times, each over a connection of its own, and prints for each the ids that it was given, or why not. Without a library, since it
 * runs as somebody who may not read this folder.
 */
const workload = `
const http2 = require('node:http2'), net = require('node:net');
const [path, times, sharing] = process.argv.slice(1);
const open = () => { const socket = net.connect(path); return { socket, session: http2.connect('http://localhost', { createConnection: () => socket }) }; };
const ask = ({ session } = open(), keep = false) => new Promise((resolve) => {
  session.on('error', (error) => resolve(String(error)));
  const stream = session.request({ ':method': 'POST', ':path': '/SpiffeWorkloadAPI/FetchX509SVID', 'content-type': 'application/grpc', te: 'trailers', 'workload.spiffe.io': 'true' });
  const end = (answer) => { if (!keep) session.destroy(); resolve(answer); };
  const refused = (headers) => headers['grpc-status'] > 0 && end(headers['grpc-status'] + ' ' + decodeURIComponent(headers['grpc-message']));
  stream.on('response', refused);
  stream.on('trailers', refused);
  let text = '';
  stream.on('data', (chunk) => { text += chunk.toString('latin1'); const ids = [...new Set(text.match(/spiffe:..cluster.local.ns.[a-z]+.sa.[a-z]+/g))]; if (text.length > 900) end(ids.join(' ')); });
  stream.on('error', (error) => end(String(error)));
  stream.end(Buffer.alloc(5));
});
(async () => {
  for (let i = 0; i < Number(times); i++) console.log(await ask());
  if (!sharing) return;
  const connection = open();
  console.log(await ask(connection, true));
  const { fd } = connection.socket._handle;
  const child = require('node:child_process').spawn('/bin/sh', ['-c', 'read line'], { stdio: ['pipe', fd, 'ignore'] });
  await new Promise((resolve) => child.on('spawn', resolve));
  console.log(await ask(connection, true));
  child.stdin.end();
  await new Promise((resolve) => child.on('exit', resolve));
  console.log(await ask(connection));
})();
`;

describe('the agent of a machine', { skip: process.getuid?.() === 0 ? false : 'needs root, to be several users' }, () => {
  let mesh: TestMesh;
  let folder: string;
  let socketPath: string;
  const cart = 'spiffe://cluster.local/ns/shop/sa/cart';
  const payments = 'spiffe://cluster.local/ns/shop/sa/payments';
  const hashed = 'spiffe://cluster.local/ns/shop/sa/hashed';
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-agent-'));
    chmodSync(folder, 0o755);
    socketPath = join(folder, 'agent', 'api.sock');
    for (const program of ['one', 'two', 'three']) {
      const file = join(folder, program);
      if (program === 'one') copyFileSync(process.execPath, file);
      else if (program === 'two') linkSync(join(folder, 'one'), file);
      else copyFileSync(process.execPath, file);
      chmodSync(file, 0o755);
    }
    mesh = await TestMesh.start({ forwarders: ['istio-system/mizzen-agent=shop/*,books/stock'] });
    const sha256 = createHash('sha256').update(readFileSync(process.execPath)).digest('hex');
    const agent = await mesh.proxy('agent', {
      ...{ namespace: 'istio-system', serviceAccount: 'mizzen-agent', workloadApiSocket: socketPath },
      workloadEntries: [
        { namespace: 'shop', serviceAccount: 'cart', selectors: { uid: 4001, path: join(folder, 'one') } },
        { namespace: 'shop', serviceAccount: 'payments', selectors: { uid: 4002 } },
        { namespace: 'shop', serviceAccount: 'hashed', selectors: { gid: 4003, sha256 } },
        { namespace: 'shop', serviceAccount: 'nobody', selectors: { gid: 4004, sha256: 'a'.repeat(64) } },
        { namespace: 'books', serviceAccount: 'admin', selectors: { uid: 4005 } },
      ],
    });
    await agent.proxy.ready;
  });
  after(async () => {
    await mesh.close();
    rmSync(folder, { recursive: true, force: true });
  });

  const ask = async (program: string, uid: number, gid = uid, times = 1, sharing = ''): Promise<string[]> => {
    const { stdout } = await run(join(folder, program), ['-e', workload, socketPath, String(times), sharing], { uid, gid, cwd: '/', env: {} });
    return stdout.trim().split('\n');
  };

  it('tells processes apart by user, group, program, and what is in it', async () => {
    assert.deepEqual(await ask('one', 4001), [cart]);
    assert.deepEqual(await ask('one', 4002), [payments]);
    assert.deepEqual(await ask('two', 4002), [payments]);
    assert.deepEqual(await ask('three', 5000, 4003), [hashed]);
    assert.deepEqual(await ask('one', 4002, 4003), [`${payments} ${hashed}`], 'a process may have several');
  });

  it('gives nothing to who is no workload, and says what it saw', async () => {
    assert.match((await ask('two', 4001))[0]!, /^7 no identity issued: no entry is for it: pid \d+, uid 4001, .*\/two$/);
    assert.match((await ask('one', 0))[0]!, /^7 no identity issued: no entry is for it: pid \d+, uid 0, /);
    assert.match((await ask('one', 5000, 4004))[0]!, /^7 no identity issued/);
  });

  it('verifies each request, and ends a connection that another program has got hold of', async () => {
    const [first, ...later] = await ask('one', 4001, 4001, 0, 'share');
    assert.equal(first, cart);
    assert.equal(later.length, 2);
    for (const refusal of later)
      assert.match(refusal, /^7 no identity issued: the process or program that holds the connection has changed since it was attested/);
  });

  it('gives no identity that the control plane does not trust it with', async () => {
    assert.match((await ask('one', 4005))[0]!, /may not ask for .*\/ns\/books\/sa\/admin, but for shop\/\*, books\/stock/);
  });

  it('never mistakes one for another, however many come at once', async () => {
    const everybody = [
      ['one', 4001, cart],
      ['one', 4002, payments],
      ['three', 4001, undefined],
    ] as const;
    const answers = await Promise.all([...everybody, ...everybody].map(([program, uid]) => ask(program, uid, uid, 20)));
    for (const [i, [program, uid, id]] of [...everybody, ...everybody].entries())
      for (const answer of answers[i]!) assert.ok(id === undefined ? answer.startsWith('7 ') : answer === id, `${program} as ${uid}: ${answer}`);
  });

  it('has it written down for whom it asked', () => {
    const lines = readFileSync(join(homeFiles(mesh.home).certificates, 'issued.log'), 'utf8')
      .trim()
      .split('\n');
    const forwarded = lines.map((line) => JSON.parse(line) as { identity: string; forwarder?: string }).filter(({ identity }) => identity === cart);
    assert.equal(forwarded[0]!.forwarder, 'spiffe://cluster.local/ns/istio-system/sa/mizzen-agent');
  });
});
