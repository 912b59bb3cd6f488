import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { AuthorizationRuleSpec } from '@mizzen/api';
import { neverMatching } from './never-matching.ts';

const paths = (rule: unknown) => neverMatching([rule as AuthorizationRuleSpec]).map(({ path }) => path.replace('spec.rules[0].', ''));
const operation = (field: string, value: string) => paths({ to: [{ operation: { [field]: [value] } }] }).length > 0;
const source = (field: string, value: string) => paths({ from: [{ source: { [field]: [value] } }] }).length > 0;

describe('neverMatching', () => {
  it('reports paths in a form that requests are never compared in', () => {
    for (const value of ['/admin', '/admin/*', '*', '*.html', '/a/{*}/b', '/{**}', '/a%2Fb', '/.hidden', '/a..b', '/admin/'])
      for (const field of ['paths', 'notPaths']) assert.ok(!operation(field, value), value);
    for (const value of ['admin', 'admin*', '/a?b=c', '/a#b', '//admin', '/a//b', '/./admin', '/x/../admin', '/admin/..', '\\admin', '/%61dmin', '/a*b'])
      for (const field of ['paths', 'notPaths']) assert.ok(operation(field, value), value);
  });

  it('reports names in a form that no identity, host, method or token has', () => {
    for (const [field, good, bad] of [
      ['principals', ['cluster.local/ns/a/sa/b', '*', '*/ns/a/*', 'td/workload'], ['spiffe://td/ns/a/sa/b', 'ns/a/sa/b', 'sleep']],
      ['namespaces', ['a', 'a-*', '*a', 'a*b'], ['A', 'a.b', 'a/b', 'a_b']],
      ['requestPrincipals', ['*', 'https://a.test/x', 'a.test/*'], ['a.test', 'alice']],
    ] as const) {
      for (const value of good) assert.ok(!source(field, value), value);
      for (const value of bad) assert.ok(source(field, value), value);
    }
    for (const value of ['GET', 'get-it', 'PURGE']) assert.ok(!operation('methods', value), value);
    for (const value of ['get', 'Post']) assert.ok(operation('methods', value), value);
    for (const value of ['a.example', 'A.example:80', '*.example']) assert.ok(!operation('hosts', value), value);
    for (const value of ['https://a.example', 'a.example/x', 'a b']) assert.ok(operation('hosts', value), value);
  });

  it('holds conditions to the same, and names each place', () => {
    assert.deepEqual(
      paths({
        from: [{ source: { notPrincipals: ['spiffe://a/ns/b/sa/c'] } }],
        when: [
          { key: 'source.principal', values: ['a/ns/b/sa/c', 'spiffe://a/ns/b/sa/c'] },
          { key: 'request.headers[x]', notValues: ['a*b'] },
          { key: 'source.ip', values: ['10.0.0.0/8'] },
        ],
      }),
      ['from[0].source.notPrincipals[0]', 'when[0].values[1]', 'when[1].notValues[0]'],
    );
    assert.equal(neverMatching(Array.from({ length: 50 }, () => ({ to: [{ operation: { paths: ['x'] } }] }))).length, 20);
  });
});
