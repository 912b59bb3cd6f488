import assert from 'node:assert/strict';
import { closeSync, copyFileSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { Logger, MizzenError } from '@mizzen/common';
import { fieldSelector, labelSelector } from './api/selectors.ts';
import { type Change, RevisionTooOld, StoreConflict } from './config-store.ts';
import { jsonPatch } from './patch/json-patch.ts';
import { mergePatch } from './patch/merge-patch.ts';
import { strategicMergePatch } from './patch/strategic-merge-patch.ts';
import { ResourceRegistry } from './resource-registry.ts';
import { SqliteStore } from './sqlite-store.ts';

/** With MIZZEN_DRILL_LONG the store is damaged at more places. */
const isLong = process.env['MIZZEN_DRILL_LONG'] !== undefined;
const origin = { source: 'api', name: 'test' } as const;
const key = (name: string) => ({ group: '', kind: 'ConfigMap', namespace: 'default', name });
const object = (name: string, extra: object = {}) => ({
  apiVersion: 'v1',
  kind: 'ConfigMap',
  metadata: { name, namespace: 'default' },
  spec: undefined,
  ...extra,
});

async function withStore(use: (store: SqliteStore, path: string) => Promise<void>, options = {}): Promise<void> {
  // In memory where possible: each change waits for the disk.
  const folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'mizzen-store-'));
  const path = join(folder, 'store.sqlite');
  const store = new SqliteStore(path, options);
  try {
    await use(store, path);
  } finally {
    await store.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

const textOf = async (store: SqliteStore) =>
  (await store.list('', 'ConfigMap')).items.map(({ revision, origin, resource }) => JSON.stringify([revision, origin, resource])).join('\n');

const overwrite = (path: string, at: number, bytes: Buffer) => {
  const file = openSync(path, 'r+');
  writeSync(file, bytes, 0, bytes.length, at);
  closeSync(file);
};
const flipBytes = (path: string, at: number) => {
  const found = readFileSync(path).subarray(at, at + 32);
  overwrite(path, at, Buffer.from(found.map((byte) => byte ^ 0x5a)));
};
const zeroPage = (path: string, at: number) => overwrite(path, at - (at % 4_096), Buffer.alloc(Math.min(4_096, statSync(path).size - (at - (at % 4_096)))));
const cutOff = (path: string, at: number) => truncateSync(path, at);

describe('the embedded store', () => {
  it('keeps what was acknowledged over a restart, with its revision', () =>
    withStore(async (store, path) => {
      await store.put(key('a'), object('a'), origin, 'absent');
      const { revision } = await store.put(key('b'), object('b'), origin, 'absent');
      await store.remove(key('a'));
      await store.close();
      const again = new SqliteStore(path);
      assert.equal(again.revision(), revision + 1);
      assert.deepEqual(
        (await again.list('', 'ConfigMap')).items.map((item) => item.key.name),
        ['b'],
      );
      await again.close();
    }));

  it('opens with what was written, or is refused with the remedy, wherever its file is damaged', () =>
    withStore(async (store, path) => {
      for (let i = 0; i < 100; i++) await store.put(key(`object-${i}`), object(`object-${i}`, { data: { text: 'x'.repeat(200) } }), origin, 'absent');
      const written = await textOf(store);
      await store.close();
      const whole = readFileSync(path);
      let refused = 0;
      const attempt = async (bytes: Buffer, what: string) => {
        for (const beside of ['-wal', '-shm']) rmSync(`${path}${beside}`, { force: true });
        writeFileSync(path, bytes);
        try {
          const opened = new SqliteStore(path);
          const found = await textOf(opened);
          await opened.close();
          assert.ok(found === written, what);
        } catch (error) {
          if (error instanceof assert.AssertionError) throw error;
          assert.ok(error instanceof MizzenError && error.code === 'store-unusable', `${what}: ${String(error)}`);
          assert.match(error.message, /Restore the file from a backup/);
          refused++;
        }
      };
      for (let at = 0; at < whole.length; at += 509) {
        const damaged = Buffer.from(whole);
        damaged.fill(0xa5, at, at + 64);
        await attempt(damaged, `damaged at ${at}`);
        if (at % 4 === 0) await attempt(whole.subarray(0, at), `cut off at ${at}`);
      }
      assert.ok(refused > 20, String(refused));
      await attempt(whole, 'whole');
    }));

  it('loses no change that was acknowledged, and refuses none, when its file or journal is damaged while it is open', (test) => {
    let mended = 0;
    const logger = new Logger('test', 'error', (line) => (mended += Number(line.includes('written again from memory'))));
    return withStore(
      async (store, path) => {
        const text = 'x'.repeat(500);
        const put = (name: string) => store.put(key(name), object(name, { data: { text } }), origin, 'absent');
        for (let i = 0; i < 20; i++) await put(`object-${i}`);
        const assertKept = async (what: string) => {
          for (const suffix of ['', '-wal']) if (existsSync(`${path}${suffix}`)) copyFileSync(`${path}${suffix}`, `${path}.copy${suffix}`);
          const opened = new SqliteStore(`${path}.copy`);
          assert.ok((await textOf(opened)) === (await textOf(store)), what);
          await opened.close();
          for (const suffix of ['', '-wal', '-shm']) rmSync(`${path}.copy${suffix}`, { force: true });
        };
        let round = 0;
        for (const [suffix, end, step] of [
          ['', 40_000, isLong ? 149 : 3_631],
          ['-wal', 60_000, isLong ? 397 : 6_661],
        ] as const)
          for (const damage of [flipBytes, zeroPage, cutOff])
            for (let at = 0; at < end; at += step) {
              const what = `${damage.name} at ${at} of ${path}${suffix}`;
              // The journal is empty after each check.
              const fresh = await Promise.all([0, 1, 2].map((i) => put(`fresh-${i}`)));
              if (at < statSync(`${path}${suffix}`).size) damage(`${path}${suffix}`, at);
              if (round++ % 2 === 0) store.check();
              fresh.push(await put('change'));
              store.check();
              await assertKept(what);
              for (const { key: written, revision } of fresh) await store.remove(written, revision);
            }
        assert.ok(mended > 20 && mended < round, `${mended} of ${round}`);
        test.diagnostic(`${round} damages, mended ${mended}, 0 changes refused or lost`);
        const [problem, ...others] = store.problems();
        assert.deepEqual([problem?.level, others], ['warning', []]);
        assert.ok(problem?.message.includes(`The damaged file is ${path}.damaged`), problem?.message);
      },
      { logger },
    );
  });

  it('writes only over the revision that the writer has seen', () =>
    withStore(async (store) => {
      const first = await store.put(key('a'), object('a'), origin, 'absent');
      await assert.rejects(store.put(key('a'), object('a'), origin, 'absent'), StoreConflict);
      await store.put(key('a'), object('a'), origin, first.revision);
      await assert.rejects(store.put(key('a'), object('a'), origin, first.revision), StoreConflict);
      await assert.rejects(store.remove(key('a'), first.revision), StoreConflict);
    }));

  it('announces every change once and in order, and says when it no longer knows the past', () =>
    withStore(
      async (store) => {
        const start = store.revision();
        await store.put(key('a'), object('a'), origin, 'absent');
        const seen: string[] = [];
        const stop = store.watch(start, (change: Change) => seen.push(`${change.type} ${change.stored.key.name} ${change.stored.revision - start}`));
        await store.put(key('b'), object('b'), origin, 'absent');
        await store.remove(key('a'));
        stop();
        await store.put(key('c'), object('c'), origin, 'absent');
        assert.deepEqual(seen, ['added a 1', 'added b 2', 'deleted a 3']);
        await store.put(key('d'), object('d'), origin, 'absent');
        assert.throws(() => store.watch(start, () => {}), RevisionTooOld);
      },
      { historyLimit: 3 },
    ));
});

describe('the registry', () => {
  const kind = findKind('networking.istio.io', 'VirtualService')!;
  const namespaceKind = findKind('', 'Namespace')!;
  const service = (timeout: string, http = {}) => ({
    apiVersion: 'networking.istio.io/v1alpha3',
    kind: 'VirtualService',
    metadata: { name: 'x' },
    spec: { hosts: ['a'], http: [{ timeout, route: [{ destination: { host: 'a' } }], ...http }] },
  });
  const by = (manager: string) => ({ manager, origin });

  it('sets identity, counts generations, and stores the preferred version', () =>
    withStore(async (store) => {
      const registry = new ResourceRegistry(store);
      await registry.create(namespaceKind, '', { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'default' } }, by('t'));
      const created = await registry.create(kind, 'default', service('1s'), by('t'));
      assert.equal(created.resource.apiVersion, 'networking.istio.io/v1');
      assert.equal(created.resource.metadata.generation, 1);
      assert.ok(created.resource.metadata.uid);
      const changed = await registry.update(kind, 'default', 'x', { ...created.resource, spec: service('2s').spec }, by('t'));
      assert.equal(changed.resource.metadata.generation, 2);
      const status = await registry.update(
        kind,
        'default',
        'x',
        { ...changed.resource, spec: service('9s').spec, status: { observedGeneration: 2 } },
        by('t'),
        'status',
      );
      assert.deepEqual([status.resource.metadata.generation, (status.resource.spec as { http: { timeout: string }[] }).http[0]!.timeout], [2, '2s']);
      await assert.rejects(registry.update(kind, 'default', 'x', created.resource, by('t')), /has been modified/);
      await assert.rejects(
        registry.create(kind, 'nowhere', { ...service('1s'), metadata: { name: 'x', namespace: 'nowhere' } }, by('t')),
        /namespaces "nowhere" not found/,
      );
      await assert.rejects(registry.create(kind, 'default', service('1s'), by('t')), /already exists/);
      const unchanged = await registry.update(kind, 'default', 'x', status.resource, by('t'));
      assert.equal(unchanged.revision, status.revision);
    }));

  it('applies for several managers: takes back what one no longer says, and keeps what another does', () =>
    withStore(async (store) => {
      const registry = new ResourceRegistry(store);
      await registry.create(namespaceKind, '', { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'default' } }, by('t'));
      const apply = async (manager: string, labels: Record<string, string>, force = false) =>
        (await registry.apply(kind, 'default', 'x', { ...service('1s'), metadata: { name: 'x', labels } }, force, by(manager))).stored.resource.metadata.labels;
      await apply('one', { a: '1', b: '1' });
      assert.deepEqual(await apply('two', { b: '1', c: '1' }), { a: '1', b: '1', c: '1' });
      assert.deepEqual(await apply('one', { a: '1' }), { a: '1', b: '1', c: '1' });
      assert.deepEqual(await apply('two', { c: '1' }), { a: '1', c: '1' });
      await assert.rejects(apply('two', { a: '2', c: '1' }), /conflict with "one": \.metadata\.labels\.a/);
      assert.deepEqual(await apply('two', { a: '2', c: '1' }, true), { a: '2', c: '1' });
    }));
});

describe('patches and selectors', () => {
  it('merges as RFC 7396 does', () => {
    assert.deepEqual(mergePatch({ a: 'b', c: { d: 'e', f: 'g' } }, { a: 'z', c: { f: null } }), { a: 'z', c: { d: 'e' } });
    assert.deepEqual(mergePatch([1], { a: null }), {});
    const polluted = mergePatch({}, JSON.parse('{"__proto__":{"polluted":true}}')) as Record<string, unknown>;
    assert.equal((polluted as { polluted?: boolean }).polluted, undefined);
    assert.equal(({} as { polluted?: boolean }).polluted, undefined);
  });

  it('patches as RFC 6902 does, all or nothing', () => {
    const document = { a: [1, 2], b: { 'x/y': 1 } };
    assert.deepEqual(
      jsonPatch(document, [
        { op: 'add', path: '/a/1', value: 9 },
        { op: 'remove', path: '/b/x~1y' },
        { op: 'move', from: '/a/0', path: '/c' },
        { op: 'test', path: '/c', value: 1 },
      ]),
      { a: [9, 2], b: {}, c: 1 },
    );
    assert.deepEqual(document, { a: [1, 2], b: { 'x/y': 1 } });
    for (const patch of [
      {},
      [{ op: 'add' }],
      [{ op: 'remove', path: '/nope' }],
      [{ op: 'test', path: '/a', value: 1 }],
      [{ op: 'add', path: '/a/9', value: 1 }],
      [{ op: 'jump', path: '/a' }],
      [{ op: 'move', from: '/b', path: '/b/c' }],
    ])
      assert.throws(() => jsonPatch(document, patch), JSON.stringify(patch));
  });

  it('merges lists of core kinds by key', () => {
    const live = {
      spec: {
        ports: [
          { port: 1, name: 'a' },
          { port: 2, name: 'b' },
        ],
      },
    };
    assert.deepEqual(
      strategicMergePatch(live, {
        spec: { ports: [{ port: 2, name: 'c' }, { $patch: 'delete', port: 1 }, { port: 3 }], '$setElementOrder/ports': [{ port: 3 }, { port: 2 }] },
      }),
      { spec: { ports: [{ port: 3 }, { port: 2, name: 'c' }] } },
    );
  });

  it('selects by labels and fields', () => {
    const resource = { apiVersion: 'v1', kind: 'X', metadata: { name: 'n', labels: { a: '1', b: '2' } }, spec: {} };
    for (const [text, matches] of [
      ['a=1', true],
      ['a==1,b!=3', true],
      ['a!=1', false],
      ['a in (1,2),b', true],
      ['a notin (1)', false],
      ['!c', true],
      ['!a', false],
      ['c', false],
    ] as const)
      assert.equal(labelSelector(text)!(resource), matches, text);
    assert.equal(fieldSelector('metadata.name=n')!(resource), true);
    assert.throws(() => labelSelector('a=='.repeat(2)));
  });
});
