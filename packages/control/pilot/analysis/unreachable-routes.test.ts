import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { HttpMatchSpec } from '@mizzen/api';
import { unreachableRoutes } from './unreachable-routes.ts';

const taken = (...routes: (readonly HttpMatchSpec[])[]) =>
  unreachableRoutes(routes.map((match) => ({ match }))).map(({ route, match, by }) => [route, match, by]);

describe('routes that nothing comes to', () => {
  it('are those after one for everything', () => {
    assert.deepEqual(taken([], [{ uri: { prefix: '/a' } }], []), [
      [1, undefined, 0],
      [2, undefined, 0],
    ]);
    assert.deepEqual(taken([{ uri: { prefix: '/' } }], [{ method: { exact: 'GET' } }]), [[1, undefined, 0]]);
    assert.deepEqual(taken([{ uri: { prefix: '/a' } }], []), []);
  });

  it('are those whose conditions imply those of one before', () => {
    assert.deepEqual(taken([{ uri: { prefix: '/a' } }], [{ uri: { exact: '/a/b' }, headers: { x: { exact: '1' } } }]), [[1, undefined, 0]]);
    assert.deepEqual(taken([{ headers: { x: { exact: '1' } } }], [{ headers: { x: { exact: '1' }, y: { regex: '.*' } } }]), [[1, undefined, 0]]);
    assert.deepEqual(taken([{ uri: { prefix: '/A' }, ignoreUriCase: true }], [{ uri: { prefix: '/a/b' } }]), [[1, undefined, 0]]);
    assert.deepEqual(taken([{ uri: { regex: '/a.*' } }], [{ uri: { regex: '/a.*' } }]), [[1, undefined, 0]]);
  });

  it('are not those that some requests still come to', () => {
    for (const [first, second] of [
      [{ uri: { prefix: '/a' } }, { uri: { prefix: '/A' } }],
      [{ uri: { prefix: '/a' } }, { uri: { prefix: '/a' }, ignoreUriCase: true }],
      [{ uri: { prefix: '/a/' } }, { uri: { prefix: '/a' } }],
      [{ uri: { exact: '/a' } }, { uri: { prefix: '/a' } }],
      [{ uri: { prefix: '/a' } }, { uri: { regex: '/a.*' } }],
      [{ headers: { x: { exact: '1' }, y: {} } }, { headers: { x: { exact: '1' } } }],
      [{ withoutHeaders: { x: { exact: '1' } } }, {}],
      [{ port: 80 }, {}],
      [{ gateways: ['mesh'] }, {}],
      [{ sourceLabels: { app: 'a' } }, { sourceLabels: { app: 'b' } }],
    ] as const)
      assert.deepEqual(taken([first], [second]), [], JSON.stringify([first, second]));
  });

  it('single matches are told, and a delegate leaves over what it has no route for', () => {
    assert.deepEqual(taken([{ uri: { prefix: '/a' } }], [{ uri: { prefix: '/a' } }, { uri: { prefix: '/b' } }]), [[1, 0, 0]]);
    assert.deepEqual(unreachableRoutes([{ delegate: { name: 'x' } }, {}]), []);
  });
});
