import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isWorkloadOf } from './svid-subject.ts';

describe('the subject of a JWT-SVID', () => {
  it('is a SPIFFE ID with a path in the trust domain of the keys', () => {
    assert.ok(isWorkloadOf('mesh.test', 'spiffe://mesh.test/ns/shop/sa/cart'));
    for (const subject of [
      ...['spiffe://mesh.test', 'spiffe://mesh.test/', 'spiffe://other.test/ns/shop/sa/cart', 'spiffe://mesh.test.evil/a', 'cart', ''],
      ...['spiffe://mesh.test/ns/a/../shop/sa/cart', 'spiffe://mesh.test/./a', 'spiffe://mesh.test//a', 'spiffe://mesh.test/a/', 'spiffe://mesh.test/%2e%2e/a'],
      ...['spiffe://mesh.test/a?b', 'spiffe://mesh.test/a#b', 'spiffe://mesh.test:1/a', 'SPIFFE://mesh.test/a', 'spiffe://mesh.test/a\nb'],
    ])
      assert.ok(!isWorkloadOf('mesh.test', subject), subject);
  });
});
