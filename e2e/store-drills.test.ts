import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { homeFiles, startControlPlane } from '@mizzen/control';
import { call, until } from './support/http.ts';
import { notPrivileged } from './support/lab.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

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

  const version = async () => {
    const { status, headers } = await call({ port: caller.outboundPort, headers: { host: 'web:9080' } });
    assert.equal(status, 200);
    return headers['x-version'];
  };
  const shows = (wanted: string) => until(`responses of ${wanted}`, version, (found) => found === wanted);
  const restart = async (between: () => void) => {
    const { xdsPort } = mesh.plane;
    await mesh.plane.close();
    between();
    mesh.plane = await startControlPlane({ ...{ home, apiPort: 0, xdsPort, xdsPlainPort: 0, logger: silentLogger } });
  };

  before(async () => {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk]);
    mesh = await TestMesh.start({ home });
    await mesh.apply(service('web'));
    await mesh.workload('web');
    caller = await mesh.proxy('caller');
    await caller.proxy.ready;
    await mesh.apply(route('v1'));
    await shows('v1');
  });
  after(async () => {
    await mesh.close();
    execFileSync('umount', [disk]);
    rmSync(disk, { recursive: true, force: true });
  });

  it('refuses writes on a full disk with an error to the writer, goes on reading and serving, and writes again when there is space', async () => {
    const filler = join(disk, 'filler');
    const kind = findKind('networking.istio.io', 'VirtualService')!;
    for (let size = statfsSync(disk).bavail * statfsSync(disk).bsize; size > 0; size = statfsSync(disk).bavail * statfsSync(disk).bsize)
      writeFileSync(filler, Buffer.alloc(size), { flag: 'a' });
    // The journal may still have room for some pages.
    await assert.rejects(async () => {
      for (let i = 0; i < 100; i++) await mesh.plane.registry.create(kind, 'default', { ...large(i) } as never, { manager: 'test', origin } as never);
    }, /the configuration store could not be written \(.*full.*\)\. Nothing was changed/);
    assert.notEqual(await mesh.plane.registry.get(kind, 'default', 'web'), undefined);
    assert.equal(await version(), 'v1');
    rmSync(filler);
    await mesh.apply(route('v2'));
    await shows('v2');
  });

  it('goes back with a store that was rolled back to an older copy, without a failed request', async () => {
    const { store } = homeFiles(home);
    const copy = join(disk, 'copy.sqlite');
    await restart(() => copyFileSync(store, copy));
    await mesh.apply(route('v3'));
    await shows('v3');
    let isOver = false;
    const load = (async () => {
      while (!isOver) await version();
    })();
    await restart(() => {
      for (const beside of ['-wal', '-shm']) rmSync(`${store}${beside}`, { force: true });
      copyFileSync(copy, store);
    });
    await shows('v2');
    await mesh.apply(route('v4'));
    await shows('v4');
    isOver = true;
    await load;
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
    mesh.plane = await startControlPlane({ ...{ home, apiPort: 0, xdsPort: 0, xdsPlainPort: 0, logger: silentLogger } });
    assert.equal(await version(), 'v4');
  });
});

const origin = { source: 'api', name: 'test' } as const;
const large = (i: number) => ({
  apiVersion: 'networking.istio.io/v1',
  kind: 'VirtualService',
  metadata: { name: `large-${i}`, namespace: 'default', annotations: { text: 'x'.repeat(20_000) } },
  spec: { hosts: [`large-${i}.example`], http: [{ route: [{ destination: { host: 'web' } }] }] },
});
