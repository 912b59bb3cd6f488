import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { findKind } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import type { Change } from './config-store.ts';
import { DirectorySource } from './directory-source.ts';
import { ResourceRegistry } from './resource-registry.ts';
import { SqliteStore } from './sqlite-store.ts';

const map = 'apiVersion: v1\nkind: ConfigMap\nmetadata: { name: one }\ndata: { a: "1" }\n';

async function followed(context: TestContext, removeAfterMs: number) {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-folder-'));
  const store = new SqliteStore(':memory:');
  const registry = new ResourceRegistry(store);
  const namespace = { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'default' } };
  await registry.create(findKind('', 'Namespace')!, '', namespace, { manager: 'test', origin: { source: 'api', name: 'test' } });
  const changes: Change[] = [];
  store.watch(store.revision(), (change) => changes.push(change));
  const source = new DirectorySource({ directory: folder, registry, logger: silentLogger, removeAfterMs, retryMs: 1 });
  context.after(async () => {
    await source.close();
    rmSync(folder, { recursive: true, force: true });
  });
  return { file: join(folder, 'a.yaml'), store, registry, changes, source };
}

describe('A followed folder', () => {
  it('keeps the objects of a file that is empty or absent for a moment', async (context) => {
    const { file, changes, source } = await followed(context, 60_000);
    writeFileSync(file, map);
    await source.sync();
    for (const disturb of [() => writeFileSync(file, ''), () => rmSync(file)]) {
      disturb();
      await source.sync();
      writeFileSync(file, map);
      await source.sync();
    }
    assert.deepEqual(
      changes.map(({ type }) => type),
      ['added'],
    );
  });

  it('deletes the objects of a file that stays away, without another change of the folder', async (context) => {
    const { file, store, source } = await followed(context, 20);
    writeFileSync(file, map);
    await source.sync();
    const gone = new Promise<void>((resolve) => store.watch(store.revision(), ({ type }) => type === 'deleted' && resolve()));
    rmSync(file);
    await source.sync();
    await gone;
  });

  it('tries a change again that the store had no space for', async (context) => {
    const { file, store, registry, source } = await followed(context, 60_000);
    writeFileSync(file, map);
    context.mock.method(registry, 'apply', () => Promise.reject(new Error('database or disk is full')), { times: 1 });
    const added = new Promise<void>((resolve) => store.watch(store.revision(), ({ type }) => type === 'added' && resolve()));
    await source.sync();
    await added;
  });
});
