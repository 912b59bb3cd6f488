import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Finding, ProxyStatus } from '@mizzen/control';
import { degradations, describeErrors } from './status.ts';

const finding: Finding = { code: 'MZ0017', level: 'error', object: 'HTTPRoute default/x', path: 'spec', place: '', message: 'cannot be generated' };
const proxy = (error: string | undefined): ProxyStatus =>
  ({ name: 'shop', namespace: 'default', state: error ? 'nacked' : 'synced', types: { listener: { state: 'nacked', ...(error ? { error } : {}) } } }) as never;

describe('mizzen status', () => {
  it('counts a refused update and an object that is left out as degraded', () => {
    assert.deepEqual(degradations([proxy('no such file')], [finding]), [
      'default/shop refused its listener update',
      'HTTPRoute default/x is not in effect as written [MZ0017]',
    ]);
  });

  it('names the places of internal errors of the control plane, when there are any', () => {
    assert.equal(describeErrors({}, 0), undefined);
    assert.match(describeErrors({ registration: 2, 'api.watch': 1 }, 1) ?? '', /since its start: registration 2, api\.watch 1, without a place 1\. /);
  });

  it('does not count warnings', () => {
    assert.deepEqual(degradations([proxy(undefined)], [{ ...finding, level: 'warning' }]), []);
  });
});
