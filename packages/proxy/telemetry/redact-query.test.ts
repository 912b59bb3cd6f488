import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { redactQuery } from './redact-query.ts';

describe('queries in logs', () => {
  it('lose the values of credentials in every spelling of their names, and nothing else', () => {
    for (const name of ['access_token', 'ACCESS_TOKEN', '%61ccess_token', 'access%5Ftoken', 'api_key', 'my-key', 'My-Key', 'my%2Dkey', '+my-key'])
      for (const value of ['s3cret', 's3cret%20x', 's3cret=x', '"s3cret"']) {
        for (const target of [`/a?${name}=${value}`, `/a?b=c&${name}=${value}&d=e`, `/a?${name}=${value}&${name}=${value}`, `/a?b;${name}=${value}`]) {
          const shown = redactQuery(target, ['my-key']);
          assert.ok(!shown.includes('s3cret'), `${target} became ${shown}`);
          assert.ok(shown.includes('=***'));
        }
      }
    for (const target of ['/a', '/a?', '/a?b=c&d', '/access_token=x', '/a?x=access_token', '/a?access_token', '/a?%zz=1'])
      assert.equal(redactQuery(target, ['my-key']), target);
  });
});
