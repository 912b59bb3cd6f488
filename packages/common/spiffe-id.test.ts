import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { parseSpiffeId } from './spiffe-id.ts';

describe('a SPIFFE ID', () => {
  it('is a trust domain and a path of plain segments', () => {
    assert.deepEqual(parseSpiffeId('spiffe://cluster.local/ns/default/sa/a'), { trustDomain: 'cluster.local', segments: ['ns', 'default', 'sa', 'a'] });
    assert.deepEqual(parseSpiffeId('spiffe://cluster.local'), { trustDomain: 'cluster.local', segments: [] });
    assert.ok(parseSpiffeId('spiffe://a/..b/...'));
  });

  for (const uri of [
    ...['spiffe://a//b', 'spiffe://a/b/../c', 'spiffe://a/..', 'spiffe://a/./b', 'spiffe://a/.', 'spiffe://a/b/', 'spiffe://a/', 'spiffe:///b', 'spiffe://'],
    ...[
      'spiffe://A/b',
      'SPIFFE://a/b',
      'spiffe://a:1/b',
      'spiffe://u@a/b',
      'spiffe://a/b?c',
      'spiffe://a/b#c',
      'spiffe://a/%2e%2e',
      'spiffe://a/é',
      'https://a/b',
    ],
    ...[`spiffe://${'a'.repeat(256)}/b`, `spiffe://a/${'b'.repeat(2040)}`, 'spiffe://a/b\n', ' spiffe://a/b'],
  ])
    it(`is not ${JSON.stringify(uri.slice(0, 40))}`, () => assert.equal(parseSpiffeId(uri), undefined));
});
