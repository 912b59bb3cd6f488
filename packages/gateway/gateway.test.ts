import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { OpenApiDocument } from './openapi-document.ts';
import { compilePathTemplate } from './path-template.ts';
import { queryValues, removeQueryParameter } from './query-string.ts';

describe('path templates of google.api.http', () => {
  it('match what they say and nothing else', () => {
    const match = (template: string, path: string) => compilePathTemplate(template).pattern.exec(path)?.slice(1);
    assert.deepEqual(match('/v1/{name}', '/v1/a'), ['a']);
    assert.equal(match('/v1/{name}', '/v1/a/b'), undefined);
    assert.equal(match('/v1/{name}', '/v1/'), undefined);
    assert.deepEqual(match('/v1/{name=shelves/*}/books/{id}', '/v1/shelves/1/books/2'), ['shelves/1', '2']);
    assert.deepEqual(match('/v1/{path=**}', '/v1/a/b/c'), ['a/b/c']);
    assert.deepEqual(match('/v1/{id}:archive', '/v1/7:archive'), ['7']);
    assert.equal(match('/v1/{id}', '/v1/7:archive'), undefined);
    assert.equal(match('/v1.x/a', '/v1xx/a'), undefined);
    assert.deepEqual(compilePathTemplate('/{a.b}/{c}').fields, ['a.b', 'c']);
    for (const wrong of ['v1', '', '/v1/{a', '/v1/a}']) assert.throws(() => compilePathTemplate(wrong), Error);
  });
});

describe('parameters of a query', () => {
  it('are found and taken out however they are written', () => {
    assert.deepEqual(queryValues('/a?k=1&%6B=2&K=3&k', 'k'), ['1', '2', '']);
    assert.equal(removeQueryParameter('/a?k=1&b=2&%6b=3', 'k'), '/a?b=2');
    assert.equal(removeQueryParameter('/a?k=1', 'k'), '/a');
    assert.equal(removeQueryParameter('/a?b=%zz', 'k'), '/a?b=%zz');
    fc.assert(
      fc.property(fc.string(), (text) => {
        const target = `/a?${text}`;
        assert.deepEqual(queryValues(removeQueryParameter(target, 'k'), 'k'), []);
      }),
    );
  });
});

describe('an OpenAPI document', () => {
  const compile = (paths: object, more: object = {}) => OpenApiDocument.compile(JSON.stringify({ openapi: '3.1.0', paths, ...more }), '', 'test');

  it('prefers concrete paths to templates, and says which methods there are', () => {
    const document = compile({ '/a/{id}': { get: {} }, '/a/me': { post: {} } });
    assert.equal(document.find('POST', '/a/me').kind, 'operation');
    assert.deepEqual(document.find('GET', '/a/me').kind, 'operation');
    assert.deepEqual(document.find('PUT', '/a/me'), { kind: 'unknown-method', allowed: ['POST'] });
    assert.equal(document.find('GET', '/b').kind, 'unknown-path');
  });

  it('that cannot be used is refused with the place', () => {
    for (const [paths, more, reason] of [
      [{}, { openapi: '2.0' }, /3\.0 and 3\.1 are taken/],
      [{ '/a': { get: { parameters: [{ $ref: '#/components/parameters/None' }] } } }, {}, /paths\["\/a"\].*points to nothing/],
      [{ '/a': { get: { parameters: [{ $ref: 'https://elsewhere.test/x' }] } } }, {}, /cannot be followed/],
      [{ '/a': { post: { requestBody: { content: { 'application/json': { schema: { $ref: '#/components/schemas/None' } } } } } } }, {}, /paths\["\/a"\]/],
      [{ '/a': { post: { requestBody: { content: { 'application/json': { schema: { type: 'string', pattern: '(?=x)' } } } } } } }, {}, /paths\["\/a"\]/],
    ] as const)
      assert.throws(() => compile(paths, more), reason);
    assert.throws(() => OpenApiDocument.compile('{', '', 'test'), /no JSON/);
  });

  it('checks a recursive schema without recursing for ever, and a pattern in linear time', () => {
    const document = compile(
      { '/a': { post: { requestBody: { content: { 'application/json': { schema: { $ref: '#/components/schemas/Tree' } } } } } } },
      {
        components: {
          schemas: { Tree: { type: 'object', properties: { child: { $ref: '#/components/schemas/Tree' }, name: { type: 'string', pattern: '^(a+)+$' } } } },
        },
      },
    );
    const found = document.find('POST', '/a');
    assert.ok(found.kind === 'operation');
    const check = found.operation.contentCheckFor('application/json');
    assert.ok(typeof check === 'function');
    assert.match(check(Buffer.from('{"child":'.repeat(5_000) + '{}' + '}'.repeat(5_000))).detail, /too deep/);
    const startedAt = performance.now();
    assert.equal(check(Buffer.from(JSON.stringify({ name: `${'a'.repeat(50_000)}!` }))).errors[0]!.pointer, '#/name');
    assert.ok(performance.now() - startedAt < 2_000);
  });
});
