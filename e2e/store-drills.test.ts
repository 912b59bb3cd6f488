import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, copyFileSync, mkdtempSync, openSync, readFileSync, rmSync, statfsSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { type Finding, homeFiles, startControlPlane } from '@mizzen/control';
import { ApiClient } from '../packages/cli/api-client.ts';
import { degradations } from '../packages/cli/commands/status.ts';
import { controlAccess } from '../packages/cli/home.ts';
import { metric } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { notPrivileged } from './support/lab.ts';
import { bindWorkload, type RunningProxy, service, TestMesh } from './support/mesh.ts';

/** With MIZZEN_DRILL_LONG the store is damaged at more places. */
const isLong = process.env['MIZZEN_DRILL_LONG'] !== undefined;

const storeCheckMs = 100;
const route = (version: string) => `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: web }
spec: { hosts: [web], http: [{ headers: { response: { set: { x-version: ${version} } } }, route: [{ destination: { host: web } }] }] }`;

/** The control plane's store fails, or is another than before, while traffic goes on. Each file system is one of its own. */
describe('a mesh whose configuration store fails', { skip: notPrivileged }, () => {
  let mesh: TestMesh;
  let caller: RunningProxy;
  const disk = mkdtempSync(join(tmpdir(), 'mizzen-store-disk-'));
  const home = join(disk, 'home');

  const elsewhere = mkdtempSync(join(tmpdir(), 'mizzen-store-elsewhere-'));
  let sent = 0;
  const failures: string[] = [];
  let isOver = false;
  let load: Promise<void>;

  const version = async () => {
    const { status, headers } = await call({ port: caller.outboundPort, headers: { host: 'web:9080' } });
    assert.equal(status, 200);
    return headers['x-version'];
  };
  /** Requests without a pause, from the first test to the last. */
  const sendRequests = async () => {
    while (!isOver) {
      sent++;
      await version().catch((error: unknown) => failures.push(String(error)));
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  };
  /** What `mizzen status` reads. */
  const findings = async () => {
    const api = new ApiClient(controlAccess(home));
    try {
      return ((await api.call('GET', '/mizzen/v1/findings')).body as { findings: Finding[] }).findings.filter(({ code }) => code === 'MZ0026');
    } finally {
      api.close();
    }
  };
  const shows = (wanted: string) => until(`responses of ${wanted}`, version, (found) => found === wanted);
  const restart = async (between: () => void) => {
    const { xdsPort } = mesh.plane;
    await mesh.plane.close();
    between();
    mesh.plane = await startControlPlane({ ...{ home, apiPort: 0, xdsPort, xdsPlainPort: 0, logger: silentLogger, storeCheckMs } });
  };

  before(async () => {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk]);
    mesh = await TestMesh.start({ home, storeCheckMs });
    await mesh.apply(service('web'));
    await mesh.workload('web');
    caller = await mesh.proxy('caller');
    await caller.proxy.ready;
    await mesh.apply(route('v1'));
    await shows('v1');
    load = sendRequests();
  });
  after(async () => {
    isOver = true;
    await load;
    await mesh.close();
    execFileSync('umount', [disk]);
    for (const folder of [disk, elsewhere]) rmSync(folder, { recursive: true, force: true });
  });

  it('refuses writes on a full disk with an error to the writer, goes on reading and serving, and writes again when there is space', async () => {
    const filler = join(disk, 'filler');
    await bindWorkload(mesh.plane, { name: 'late' });
    const tokenFile = join(elsewhere, 'late.token');
    writeFileSync(tokenFile, (await mesh.plane.tokens.issue('default', 'late', [], 3600)).token);
    const kind = findKind('networking.istio.io', 'VirtualService')!;
    for (let size = statfsSync(disk).bavail * statfsSync(disk).bsize; size > 0; size = statfsSync(disk).bavail * statfsSync(disk).bsize)
      writeFileSync(filler, Buffer.alloc(size), { flag: 'a' });
    // The journal may still have room for some pages.
    for (const bytes of [20_000, 10])
      await assert.rejects(async () => {
        for (let i = 0; i < 500; i++)
          await mesh.plane.registry.create(kind, 'default', large(`${bytes}-${i}`, bytes) as never, { manager: 'test', origin } as never);
      }, /the configuration store could not be written \(.*full.*\)\. Nothing was changed/);
    assert.notEqual(await mesh.plane.registry.get(kind, 'default', 'web'), undefined);
    assert.equal(await version(), 'v1');
    const [finding] = await findings();
    assert.deepEqual(degradations([], finding === undefined ? [] : [finding]), ['ConfigurationStore refuses changes [MZ0026]']);
    assert.ok(finding?.message.includes(`Make space on the disk, or give this user the right to write the file: ${homeFiles(home).store}`), finding?.message);
    // A sidecar that starts now has its configuration and its certificate, and can call; only its registration waits.
    const app = await mesh.application('late');
    const late = await mesh.proxy('late', {
      ...{ tokenFile, accessLogFile: join(elsewhere, 'late.access.log'), registers: true },
      inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${await mesh.ports.next()}`, app: `127.0.0.1:${app}` }],
    });
    await late.proxy.ready;
    const { status, headers } = await call({ port: late.outboundPort, headers: { host: 'web:9080' } });
    assert.deepEqual([status, headers['x-version']], [200, 'v1']);
    const registered = async () => (await mesh.plane.registry.store.list('networking.istio.io', 'WorkloadEntry')).items.map(({ key }) => key.name);
    assert.deepEqual(await registered(), ['web']);
    // The log of the caller is on the full disk, too.
    const dropped = async () => metric((await call({ port: caller.adminPort, path: '/stats/prometheus' })).body, 'mizzen_access_log_lines_dropped_total');
    await until('lines of the access log are lost', dropped, (count) => count > 0);
    rmSync(filler);
    await until('the finding is gone', findings, (found) => found.length === 0);
    await until('the sidecar is registered', registered, (names) => names.includes('late'));
    await mesh.apply(route('v2'));
    await shows('v2');
    await late.proxy.close();
    assert.deepEqual(failures, []);
  });

  it('serves every request and takes every change while its file and journal are damaged under load, reports it, and starts again with all changes', async (test) => {
    const { store } = homeFiles(home);
    let damages = 0;
    let refused = 0;
    for (const path of [store, `${store}-wal`])
      for (const damage of [flipBytes, zeroPage, cutOff])
        for (let i = 0; i < (isLong ? 25 : 2); i++) {
          const size = statSync(path).size;
          if (size > 0) damage(path, Math.floor(size * Math.random()));
          const wanted = `damage-${++damages}`;
          await mesh.apply(route(wanted)).catch((error: unknown) => {
            refused++;
            assert.match(String(error), /store\.sqlite/);
            return mesh.apply(route(wanted));
          });
          await shows(wanted);
        }
    const found = await until('the damage is reported', findings, ({ length }) => length > 0);
    assert.match(found[0]!.message, /was damaged \(.*\) and was written again from memory at .* Check the disk\.$/);
    assert.deepEqual(degradations([], found), []);
    await restart(() => {});
    await shows(`damage-${damages}`);
    await mesh.apply(route('v2'));
    await shows('v2');
    test.diagnostic(`${damages} damages, ${refused} changes refused; ${sent} requests so far, ${failures.length} failed`);
    assert.deepEqual(failures, []);
  });

  it('goes back with a store that was rolled back to an older copy, without a failed request', async () => {
    const { store } = homeFiles(home);
    const copy = join(disk, 'copy.sqlite');
    await restart(() => copyFileSync(store, copy));
    await mesh.apply(route('v3'));
    await shows('v3');
    await restart(() => {
      for (const beside of ['-wal', '-shm']) rmSync(`${store}${beside}`, { force: true });
      copyFileSync(copy, store);
    });
    await shows('v2');
    await mesh.apply(route('v4'));
    await shows('v4');
    assert.deepEqual(failures, []);
  });

  it('does not start on a damaged store, says how to go on, and serves from what the proxies have', async () => {
    const { store } = homeFiles(home);
    const copy = join(disk, 'copy.sqlite');
    await assert.rejects(
      restart(() => {
        copyFileSync(store, copy);
        writeFileSync(store, Buffer.alloc(8_192, 0xa5));
      }),
      /the configuration store cannot be used .*Restore the file from a backup/s,
    );
    assert.equal(await version(), 'v4');
    copyFileSync(copy, store);
    mesh.plane = await startControlPlane({ ...{ home, apiPort: 0, xdsPort: 0, xdsPlainPort: 0, logger: silentLogger, storeCheckMs } });
    assert.equal(await version(), 'v4');
  });
});

function overwrite(path: string, at: number, bytes: Buffer): void {
  const file = openSync(path, 'r+');
  writeSync(file, bytes, 0, bytes.length, at);
  closeSync(file);
}

function flipBytes(path: string, at: number): void {
  overwrite(path, at, Buffer.from(readFileSync(path).subarray(at, at + 256)).map((byte) => byte ^ 0x5a) as Buffer);
}

function zeroPage(path: string, at: number): void {
  const start = at - (at % 4_096);
  overwrite(path, start, Buffer.alloc(Math.min(4_096, statSync(path).size - start)));
}

function cutOff(path: string, at: number): void {
  truncateSync(path, at);
}

const origin = { source: 'api', name: 'test' } as const;
const large = (name: string, bytes: number) => ({
  apiVersion: 'networking.istio.io/v1',
  kind: 'VirtualService',
  metadata: { name: `large-${name}`, namespace: 'default', annotations: { text: 'x'.repeat(bytes) } },
  spec: { hosts: [`large-${name}.example`], http: [{ route: [{ destination: { host: 'web' } }] }] },
});
