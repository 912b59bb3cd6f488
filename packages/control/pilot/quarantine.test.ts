import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Resource } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import type { StoredResource } from '../galley/config-store.ts';
import { SqliteStore } from '../galley/sqlite-store.ts';
import { type ConfigReader, Quarantine } from './quarantine.ts';

const networking = 'networking.istio.io';

function meshOf() {
  const store = new SqliteStore(':memory:');
  const quarantine = new Quarantine(store, silentLogger);
  store.watch(store.revision(), (change) => quarantine.changed(change));
  const put = async (kind: string, name: string, spec: unknown): Promise<StoredResource> => {
    const key = { group: kind === 'Service' ? '' : networking, kind, namespace: 'default', name };
    const before = await store.get(key);
    const resource = { apiVersion: 'v1', kind, metadata: { name, namespace: 'default' }, spec } as Resource;
    return store.put(key, resource, { source: 'api', name: 'test' }, before?.revision ?? 'absent');
  };
  const rules = async (reader: ConfigReader) => (await reader.list(networking, 'DestinationRule')).items;
  /** Throws for a rule that says so, where the service that it is for exists. */
  const generate = async (reader: ConfigReader): Promise<void> => {
    const services = new Set((await reader.list('', 'Service')).items.map(({ key }) => key.name));
    for (const { resource } of await rules(reader)) {
      const { host, isBad } = resource.spec as { host: string; isBad?: boolean };
      if (isBad && services.has(host)) throw new Error(`bad rule for ${host}`);
    }
  };
  return { put, quarantine, generate, rules };
}

describe('The quarantine', () => {
  it('leaves out the one object that generation throws for, and names it', async () => {
    const { put, quarantine, generate, rules } = meshOf();
    for (const name of ['a', 'b', 'c', 'd', 'e', 'f', 'g']) {
      await put('Service', name, {});
      await put('DestinationRule', name, { host: name, isBad: name === 'c' });
    }
    assert.equal(await quarantine.isolate(generate), true);
    await generate(quarantine.reader());
    assert.deepEqual(
      (await rules(quarantine.reader())).map(({ key }) => key.name),
      ['a', 'b', 'd', 'e', 'f', 'g'],
    );
    assert.equal(quarantine.failures, 1);
    const [finding] = quarantine.findings();
    assert.match(finding?.message ?? '', /^DestinationRule default\/c: cannot generate configuration with it: bad rule for c\. It is left out\.$/);
  });

  it('keeps the last good version of an object that was changed for the worse', async () => {
    const { put, quarantine, generate, rules } = meshOf();
    await put('Service', 'a', {});
    await put('DestinationRule', 'a', { host: 'a', isVersion: 1 });
    quarantine.succeeded();
    for (const attempt of [1, 2]) {
      await put('DestinationRule', 'a', { host: 'a', isBad: true, attempt });
      assert.equal(await quarantine.isolate(generate), true);
      assert.deepEqual(
        (await rules(quarantine.reader())).map(({ resource }) => resource.spec),
        [{ host: 'a', isVersion: 1 }],
      );
    }
    await put('DestinationRule', 'a', { host: 'a', isVersion: 2 });
    assert.deepEqual(quarantine.findings(), []);
    assert.deepEqual(
      (await rules(quarantine.reader())).map(({ resource }) => resource.spec),
      [{ host: 'a', isVersion: 2 }],
    );
  });

  it('blames the policy, not the newer service that it fails for', async () => {
    const { put, quarantine, generate } = meshOf();
    await put('DestinationRule', 'a', { host: 'a', isBad: true });
    await put('DestinationRule', 'b', { host: 'b' });
    await put('Service', 'a', {});
    assert.equal(await quarantine.isolate(generate), true);
    assert.deepEqual(
      quarantine.excluded.map(({ stored }) => `${stored.key.kind} ${stored.key.name}`),
      ['DestinationRule a'],
    );
  });

  it('blames no object for what fails without any', async () => {
    const { put, quarantine } = meshOf();
    await put('Service', 'a', {});
    assert.equal(await quarantine.isolate(async () => Promise.reject(new Error('no disk'))), false);
    assert.deepEqual(quarantine.excluded, []);
  });
});
