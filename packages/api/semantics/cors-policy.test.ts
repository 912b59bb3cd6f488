import assert from 'node:assert/strict';
import { it } from 'node:test';
import type { CorsPolicySpec } from '../types/virtual-service.ts';
import { virtualServiceProblems } from './virtual-service.ts';

const problemsOf = (corsPolicy: CorsPolicySpec) =>
  virtualServiceProblems({ hosts: ['a'], http: [{ corsPolicy, route: [{ destination: { host: 'a' } }] }] }).map(({ path }) => path);

it('takes a CORS policy whose parts can be headers, and says which cannot', () => {
  assert.deepEqual(problemsOf({ allowOrigins: [{ regex: 'https://.*' }], allowMethods: ['GET', '*'], allowHeaders: ['x-a'], maxAge: '24h' }), []);
  assert.deepEqual(problemsOf({ allowOrigins: [{ regex: '(' }, {}], allowMethods: ['GET\r\nx: y'], exposeHeaders: [''], maxAge: 'long' }), [
    'spec.http[0].corsPolicy.maxAge',
    'spec.http[0].corsPolicy.allowOrigins[0].regex',
    'spec.http[0].corsPolicy.allowOrigins[1]',
    'spec.http[0].corsPolicy.allowMethods[0]',
    'spec.http[0].corsPolicy.exposeHeaders[0]',
  ]);
});
