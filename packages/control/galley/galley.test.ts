import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { MizzenError } from '@mizzen/common';
import { fieldSelector, labelSelector } from './api/selectors.ts';
import { type Change, RevisionTooOld, StoreConflict } from './config-store.ts';
import { jsonPatch } from './patch/json-patch.ts';
import { mergePatch } from './patch/merge-patch.ts';
import { strategicMergePatch } from './patch/strategic-merge-patch.ts';
import { ResourceRegistry } from './resource-registry.ts';
import { SqliteStore } from './sqlite-store.ts';

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
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-store-'));
  const path = join(folder, 'store.sqlite');
  const store = new SqliteStore(path, options);
  try {
    await use(store, path);
  } finally {
    await store.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

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

  it('opens, or is refused with the remedy, wherever its file is damaged', () =>
    withStore(async (store, path) => {
      for (let i = 0; i < 100; i++) await store.put(key(`object-${i}`), object(`object-${i}`, { data: { text: 'x'.repeat(200) } }), origin, 'absent');
      await store.close();
      const whole = readFileSync(path);
      let refused = 0;
      const attempt = async (bytes: Buffer, what: string) => {
        for (const beside of ['-wal', '-shm']) rmSync(`${path}${beside}`, { force: true });
        writeFileSync(path, bytes);
        try {
          await new SqliteStore(path).close();
        } catch (error) {
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
