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
      [{}, { openapi: '2.0' }, /3\.0 and 3\.1 are supported/],
      [{ '/a': { get: { parameters: [{ $ref: '#/components/parameters/None' }] } } }, {}, /paths\["\/a"\].*points to nothing/],
      [{ '/a': { get: { parameters: [{ $ref: 'https://elsewhere.test/x' }] } } }, {}, /cannot be followed/],
      [{ '/a': { post: { requestBody: { content: { 'application/json': { schema: { $ref: '#/components/schemas/None' } } } } } } }, {}, /paths\["\/a"\]/],
      [{ '/a': { post: { requestBody: { content: { 'application/json': { schema: { type: 'string', pattern: '(?=x)' } } } } } } }, {}, /paths\["\/a"\]/],
    ] as const)
      assert.throws(() => compile(paths, more).verify(), reason);
    assert.throws(() => OpenApiDocument.compile('{', '', 'test'), /not JSON/);
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
    assert.ok(performance.now() - startedAt < 10_000);
  });
});

describe('the cost of validating a message', () => {
  const schemas = {
    Recursive: {
      oneOf: [
        { type: 'object', required: ['a'], properties: { a: { $ref: '#/components/schemas/Recursive' }, kind: { const: 'x' } } },
        { type: 'object', required: ['a'], properties: { a: { $ref: '#/components/schemas/Recursive' }, kind: { const: 'y' } } },
        { type: 'string' },
      ],
    },
    Doubled: { allOf: [{ $ref: '#/components/schemas/DoubledOnce' }, { $ref: '#/components/schemas/DoubledOnce' }] },
    DoubledOnce: { type: 'object', properties: { a: { $ref: '#/components/schemas/Doubled' } } },
    Conditional: Object.fromEntries(['if', 'then', 'else'].map((keyword) => [keyword, { $ref: '#/components/schemas/Branch' }])),
    Branch: { type: 'object', properties: { a: { $ref: '#/components/schemas/Conditional' }, b: false } },
    Negated: {
      not: { type: 'object', properties: { a: { anyOf: [{ $ref: '#/components/schemas/Negated' }, { not: { $ref: '#/components/schemas/Negated' } }] } } },
    },
    Endless: { $ref: '#/components/schemas/Endless' },
    Unique: { type: 'array', uniqueItems: true },
    Pattern: { type: 'array', items: { type: 'string', pattern: '^(a+)+(b?){50}$' } },
    Keys: { type: 'object', patternProperties: { '^(a|b)*c': { type: 'string' }, '(x+x+)+y': { type: 'number' } } },
    Format: { type: 'array', items: { type: 'string', format: 'email' } },
    Choice: { type: 'array', items: { enum: Array.from({ length: 50 }, (_, i) => ({ i })) } },
  };
  const paths = Object.fromEntries(
    Object.keys(schemas).map((name) => [
      `/${name}`,
      { post: { requestBody: { content: { 'application/json': { schema: { $ref: `#/components/schemas/${name}` } } } } } },
    ]),
  );
  const document = OpenApiDocument.compile(JSON.stringify({ openapi: '3.1.0', paths, components: { schemas } }), '', 'test');
  const check = (name: string, value: unknown) => {
    const found = document.find('POST', `/${name}`);
    assert.ok(found.kind === 'operation');
    const validate = found.operation.contentCheckFor('application/json');
    assert.ok(typeof validate === 'function');
    return validate(Buffer.from(JSON.stringify(value)));
  };
  const nested = (depth: number, end: unknown = 'end'): unknown => (depth === 0 ? end : { a: nested(depth - 1, end) });

  it('is bounded for every schema and every depth, as is the response', () => {
    document.verify();
    for (const name of Object.keys(schemas))
      for (const value of [
        nested(10),
        nested(20),
        nested(40),
        nested(60),
        [nested(20)],
        Array.from({ length: 3_000 }, (_, i) => ({ i })),
        'a'.repeat(10_000),
      ]) {
        const before = process.cpuUsage().user;
        const { errors } = check(name, value);
        assert.ok(process.cpuUsage().user - before < 2_000_000, `${name} took too long`);
        assert.ok(errors.length <= 20);
        assert.ok(JSON.stringify(errors).length < 32 * 1024, `${name} has an error of ${JSON.stringify(errors).length} bytes`);
      }
    assert.match(check('Doubled', nested(40, {})).errors[0]?.detail ?? '', /takes more work than its size allows/);
    assert.match(check('Endless', 1).errors[0]?.detail ?? '', /more work|cannot be verified/);
  });

  it('grows by less than twice the factor by which the message grows', () => {
    const messages: Record<string, (size: number) => unknown> = {
      Unique: (size) => Array.from({ length: size }, (_, i) => ({ id: i, name: `n${i}` })),
      Pattern: (size) => Array.from({ length: size / 20 }, (_, i) => `${'a'.repeat(100)}${i}`),
      Keys: (size) => Object.fromEntries(Array.from({ length: size / 20 }, (_, i) => [`${'x'.repeat(50)}${i}`, i])),
      Format: (size) => Array.from({ length: size / 20 }, () => `${'a'.repeat(500)}@${'a.'.repeat(100)}`),
      Choice: (size) => Array.from({ length: size / 20 }, (_, i) => ({ i: i % 50 })),
    };
    for (const [name, message] of Object.entries(messages)) {
      const cost = (size: number) => {
        const value = message(size);
        let least = Number.POSITIVE_INFINITY;
        for (let i = 0; i < 4; i++) {
          const before = process.cpuUsage().user;
          check(name, value);
          least = Math.min(least, process.cpuUsage().user - before);
        }
        return least;
      };
      cost(2_000);
      const [small, large] = [cost(4_000), cost(32_000)];
      assert.ok(large < small * 20 + 20_000, `${name}: ${small} us, then ${large} us for 8 times the size`);
    }
  });

  it('finds equal items, in whatever order their members stand', () => {
    assert.deepEqual(check('Unique', [{ a: 1, b: [2] }, { a: 1, b: [3] }, 1, '1', null]).errors, []);
    assert.equal(
      check('Unique', [
        { a: 1, b: [2] },
        { b: [2], a: 1 },
      ]).errors[0]?.detail,
      'must not have items twice',
    );
  });

  it('does not grow with the number of paths in the document', () => {
    const large = (count: number) =>
      OpenApiDocument.compile(
        JSON.stringify({ openapi: '3.1.0', paths: Object.fromEntries(Array.from({ length: count }, (_, i) => [`/a${i}/{id}/b`, { get: {} }])) }),
        '',
        'test',
      );
    const cost = (openapi: OpenApiDocument, last: number) => {
      let least = Number.POSITIVE_INFINITY;
      for (let round = 0; round < 5; round++) {
        const before = process.cpuUsage().user;
        for (let i = 0; i < 2_000; i++) openapi.find('GET', `/a${last}/7/b`);
        least = Math.min(least, (process.cpuUsage().user - before) / 1_000);
      }
      return least;
    };
    const [few, many] = [cost(large(100), 99), cost(large(10_000), 9_999)];
    assert.ok(many < few * 4 + 5, `${few} ms of 100 paths, ${many} ms of 10,000`);
  });

  it('takes templates within segments, and prefers the most concrete path', () => {
    const openapi = OpenApiDocument.compile(
      JSON.stringify({
        openapi: '3.1.0',
        paths: { '/f/{name}.json': { get: {} }, '/f/{a}-{b}': { get: {} }, '/f/x.json': { get: {} }, '/{any}/{thing}': { get: {} } },
      }),
      '',
      'test',
    );
    const parameters = (path: string) => {
      const found = openapi.find('GET', path);
      return found.kind === 'operation' ? { ...found.pathParameters } : undefined;
    };
    assert.deepEqual(parameters('/f/x.json'), {});
    assert.deepEqual(parameters('/f/y.json'), { name: 'y' });
    assert.deepEqual(parameters('/f/a%2Fb-c-d'), { a: 'a/b', b: 'c-d' });
    assert.deepEqual(parameters('/g/-'), { any: 'g', thing: '-' });
    assert.equal(parameters('/f/'), undefined);
    assert.equal(parameters('/f/%zz'), undefined);
  });
});

describe('a request that services may read in another way than the validator', () => {
  const schema = { type: 'object', properties: { amount: { type: 'integer', maximum: 10 } }, additionalProperties: { type: 'string' } };
  const document = OpenApiDocument.compile(
    JSON.stringify({
      openapi: '3.1.0',
      paths: {
        '/a': {
          post: {
            parameters: [
              { name: 'n', in: 'query', schema: { type: 'integer' } },
              { name: 'list', in: 'query', schema: { type: 'array', items: { type: 'number' } } },
            ],
            requestBody: { content: { 'application/json; charset=utf-8': { schema }, '*/*': { schema }, 'image/*': { schema: { type: 'string' } } } },
          },
        },
      },
    }),
    '',
    'test',
  );
  const found = document.find('POST', '/a');
  assert.ok(found.kind === 'operation');
  const { operation } = found;
  const body = (type: string | undefined, content: string | Buffer) => {
    const check = operation.contentCheckFor(type);
    assert.ok(typeof check === 'function', `${type} is checked`);
    return check(Buffer.from(content)).errors[0]?.detail;
  };

  it('is refused when a name occurs twice in an object, however it is escaped', () => {
    assert.equal(body('application/json', '{"amount": 1, "x": "a:b\\":\\\\"}'), undefined);
    for (const twice of ['{"amount": 99, "amount": 1}', '{"amount": 99, "\\u0061mount": 1}', '{"x": "y", "__proto__": "1", "__proto__": "2"}'])
      assert.match(body('application/json', twice) ?? '', /occurs twice/, twice);
  });

  it('is refused when a name differs from a declared one by case alone', () => {
    for (const name of ['Amount', 'AMOUNT', 'amoun\u0054', 'amOunt']) assert.match(body('application/json', `{"${name}": "99"}`) ?? '', /case alone/, name);
    assert.equal(body('application/json', '{"amounts": "99", "X": "y", "x": "y"}'), undefined);
  });

  it('is refused when an escape stands for half of a character, or a number is infinite', () => {
    assert.equal(body('application/json', '{"x": "\\ud83d\\ude00 \\\\ud800"}'), undefined);
    for (const half of ['{"x": "\\ud800"}', '{"x": "\\uDE00\\ud83d"}', '{"\\udfff": "x"}']) assert.match(body('application/json', half) ?? '', /half/, half);
    for (const large of ['{"amount": -1e400}', '{"amount": 1e400}']) assert.notEqual(body('application/json', large), undefined, large);
  });

  it('is refused when it is not UTF-8', () => {
    assert.equal(body('application/json', '{"x": "ü"}'), undefined);
    assert.match(body('application/json', Buffer.from('{"x": "\xff"}', 'latin1')) ?? '', /not valid/);
    assert.notEqual(body('application/json', '\ufeff{}'), undefined);
  });

  it('is held to the schema of a media range, whatever its Content-Type', () => {
    for (const type of ['application/json', 'text/plain', 'application/octet-stream', undefined])
      assert.match(body(type, '{"amount": 99}') ?? '', /<= 10/, String(type));
    assert.equal(operation.contentCheckFor('image/png'), 'not-checked');
  });

  it('is refused when an integer is not written in decimal digits', () => {
    const parameter = (query: string) => operation.checkParameters({}, `/a?${query}`, { getJoined: () => undefined })[0]?.detail;
    for (const good of ['n=5', 'n=-5', 'n=0', 'list=1&list=2.5', 'list=1e3']) assert.equal(parameter(good), undefined, good);
    for (const query of ['x=1;y=2', 'x[]=1', 'nn[]=1', 'n=5&m;o=6']) assert.equal(parameter(query), undefined, query);
    for (const query of ['x=1;n=99', 'n=5;n=99', 'n=5&n[]=99', 'n[0]=99', 'n%5b%5d=99', '%6e%5B=1', 'list[]=1'])
      assert.match(parameter(query) ?? '', /servers differ/, query);
    for (const bad of ['n=0x10', 'n=1e2', 'n=%205', 'n=+5', 'n=%2B5', 'n=5.5', 'n=05', 'n=0b1', 'n=%0a5', 'n=', 'list=1&list=0x2'])
      assert.notEqual(parameter(bad), undefined, bad);
  });
});
