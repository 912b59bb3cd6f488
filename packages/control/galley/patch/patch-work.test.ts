import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Resource } from '@mizzen/api';
import { jsonPatch } from './json-patch.ts';
import { applyServerSide } from './server-side-apply.ts';
import { strategicMergePatch } from './strategic-merge-patch.ts';

const configMap = (data: Record<string, string>) => ({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'x', namespace: 'default' }, data });
const keys = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, i) => [`k${i}`, 'v']));
const ports = (count: number) => Array.from({ length: count }, (_, i) => ({ port: i, name: `p${i}` }));
/** Milliseconds of the faster of two. */
function cost(work: () => unknown): number {
  const once = () => {
    const startedAt = performance.now();
    work();
    return performance.now() - startedAt;
  };
  return Math.min(once(), once());
}

describe('the work of a patch', () => {
  it('refuses operations that double the object with each copy', () => {
    const copies = Array.from({ length: 60 }, (_, i) => ({ op: 'copy', from: '/data', path: `/data/c${i}` }));
    assert.throws(() => jsonPatch(configMap(keys(10)), copies), /may copy and compare at most/);
    const whole = Array.from({ length: 60 }, (_, i) => ({ op: 'copy', from: '', path: `/c${i}` }));
    assert.throws(() => jsonPatch(configMap(keys(10)), whole), /may copy and compare at most/);
  });

  it('refuses ten thousand comparisons of a large object, and moves of a large list', () => {
    const large = configMap(keys(5_000));
    const same = Array.from({ length: 10_000 }, () => ({ op: 'test', path: '/data', value: large.data }));
    assert.throws(() => jsonPatch(large, same), /may copy and compare at most/);
    const list = { list: Array.from({ length: 50_000 }, () => 1) };
    const inserts = Array.from({ length: 10_000 }, () => ({ op: 'add', path: '/list/0', value: 1 }));
    assert.throws(() => jsonPatch(list, inserts), /may copy and compare at most/);
  });

  it('still takes ordinary patches of many operations', () => {
    const operations = Array.from({ length: 10_000 }, (_, i) => ({ op: 'add', path: `/data/n${i}`, value: 'v' }));
    const result = jsonPatch(configMap(keys(1)), operations) as { data: Record<string, string> };
    assert.equal(Object.keys(result.data).length, 10_001);
    assert.deepEqual(jsonPatch({ a: [1, 2, 3] }, [{ op: 'move', from: '/a/0', path: '/a/2' }]), { a: [2, 3, 1] });
    assert.deepEqual(jsonPatch({ a: [1, 2, 3] }, [{ op: 'replace', path: '/a/1', value: 9 }]), { a: [1, 9, 3] });
    assert.throws(() => jsonPatch({ a: [1] }, [{ op: 'replace', path: '/a/1', value: 9 }]), /no list entry/);
    assert.throws(() => jsonPatch({ a: 1 }, [{ op: 'replace', path: '/b', value: 9 }]), /nothing at/);
  });

  it('costs in proportion to the object, when an apply gives up all of its fields', () => {
    const give = (count: number) => {
      const live = applyServerSide(undefined, configMap(keys(count)), 'm', false, 'now') as unknown as Resource;
      return cost(() => applyServerSide(live, configMap({}), 'm', false, 'now'));
    };
    give(1_000);
    const [small, large] = [give(1_000), give(8_000)];
    assert.ok(large < 40 * small + 20, `8 times the fields cost ${large.toFixed(1)} ms after ${small.toFixed(1)} ms`);
  });

  it('removes exactly the fields that an apply gives up', () => {
    const labels = { metadata: { labels: { a: '1', b: '2' }, name: 'x', namespace: 'default' } };
    const live = applyServerSide(undefined, { ...configMap({ a: '1', b: '2' }), ...labels }, 'm', false, 'now') as unknown as Resource;
    const after = applyServerSide(live, configMap({ b: '2' }), 'm', false, 'now') as { data: object; metadata: { labels?: object } };
    assert.deepEqual(after.data, { b: '2' });
    assert.equal(after.metadata.labels, undefined);
  });

  it('costs in proportion to the lists that it merges and orders', () => {
    const merge = (count: number) => {
      const service = { spec: { ports: ports(count) } };
      const patch = { spec: { ports: ports(count).reverse(), '$setElementOrder/ports': ports(count).reverse() } };
      return cost(() => strategicMergePatch(service, patch));
    };
    merge(500);
    const [small, large] = [merge(1_000), merge(8_000)];
    assert.ok(large < 40 * small + 20, `8 times the entries cost ${large.toFixed(1)} ms after ${small.toFixed(1)} ms`);
    const merged = strategicMergePatch(
      { spec: { ports: ports(3) } },
      { spec: { ports: [{ port: 1, $patch: 'delete' }, { port: 7 }], '$setElementOrder/ports': [{ port: 7 }, { port: 0 }, { port: 2 }] } },
    );
    assert.deepEqual(merged, { spec: { ports: [{ port: 7 }, { port: 0, name: 'p0' }, { port: 2, name: 'p2' }] } });
  });
});
