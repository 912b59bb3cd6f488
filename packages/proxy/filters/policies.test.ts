import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { describe, it } from 'node:test';
import type { Any } from '@bufbuild/protobuf/wkt';
import { silentLogger } from '@mizzen/common';
import { packAny } from '@mizzen/envoy-api';
import { AuthenticationPerRouteSchema, CredentialPerRouteSchema, LoginPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import fc from 'fast-check';
import type { ProxyContext } from '../http/connection-settings.ts';
import type { Exchange } from '../http/exchange.ts';
import { HeaderList } from '../message/header-list.ts';
import { RequestHead } from '../message/request-head.ts';
import { ResponseHead } from '../message/response-head.ts';
import { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { readTraceContext } from '../telemetry/tracing/trace-context.ts';
import { authentication } from './authentication/authentication.ts';
import { coversRequest, digestMatches, isSignedWith, readSignatureInput, signatureBase, signatureOf } from './authentication/message-signature.ts';
import { ReplayWindow } from './authentication/replay-window.ts';
import { freshnessMs, isStorable, readCacheControl } from './cache/cache-control.ts';
import { ResponseStore, varyKey } from './cache/response-store.ts';
import { credentialInjector } from './credential-injector.ts';
import type { FilterKind } from './filter.ts';
import { login } from './login/login.ts';
import { TokenBuckets } from './rate-limit/token-buckets.ts';

const fields = (...list: [string, string][]) => {
  const headers = new HeaderList();
  for (const [name, value] of list) headers.add(name, value);
  return headers;
};

describe('a filter whose secret has not arrived', () => {
  const secret = { name: 'mizzen://secret' };
  const kinds: readonly [FilterKind, Any][] = [
    [credentialInjector, packAny(CredentialPerRouteSchema, { header: 'authorization', value: secret })],
    [login, packAny(LoginPerRouteSchema, { issuer: 'https://idp.test', clientId: 'c', callbackPath: '/cb', cookieSecret: secret })],
    [authentication, packAny(AuthenticationPerRouteSchema, { apiKey: { headers: ['x-api-key'] }, consumers: [secret] })],
    [authentication, packAny(AuthenticationPerRouteSchema, { allowsAnonymous: true, consumers: [secret] })],
  ];
  const ask = (kind: FilterKind, any: Any, value: Buffer | undefined) => {
    const replies: [number, string][] = [];
    const counters = new ProxyCounters();
    const context = { counters, logger: silentLogger, filterStates: new Map(), genericSecret: () => value } as unknown as ProxyContext;
    const head = new RequestHead();
    head.method = 'GET';
    head.target = '/';
    const exchange = {
      ...{ head, settings: { context }, filterConfig: () => kind.compileRoute!(any, 'route') },
      replyProblem: (status: number, _problem: object, details: string) => void replies.push([status, details]),
    } as unknown as Exchange;
    const result = kind.create(undefined, 'listener', context, kind.name).onRequest!(exchange);
    return { result, replies, head, counted: [...counters.series.keys()] };
  };

  it('refuses the request with 503, counts it, and sends nothing on', () => {
    for (const [kind, any] of kinds) {
      const { result, replies, counted } = ask(kind, any, undefined);
      assert.deepEqual([result, replies], ['stop', [[503, 'missing_secret']]], kind.name);
      assert.match(counted[0] ?? '', /policy_rejections_total.*missing_secret/, kind.name);
    }
    const short = ask(login, kinds[1]![1], Buffer.from('short'));
    assert.deepEqual(short.replies, [[503, 'missing_secret']], 'a cookie secret that is too short seals nothing');
  });

  it('works with it when it has arrived', () => {
    assert.equal(ask(credentialInjector, kinds[0]![1], Buffer.from('token')).head.headers.get('authorization'), 'token');
    assert.deepEqual(ask(authentication, kinds[2]![1], Buffer.alloc(0)).replies, [[401, 'unauthorized_missing']]);
    assert.equal(ask(authentication, kinds[3]![1], Buffer.from('not a list of consumers')).result, 'continue');
  });

  it('is refused by the proxy when its configuration names no secret, or one from another place', () => {
    const bad: readonly [FilterKind, Any, RegExp][] = [
      [credentialInjector, packAny(CredentialPerRouteSchema, { header: 'authorization' }), /value must name a generic secret/],
      [login, packAny(LoginPerRouteSchema, { issuer: 'https://idp.test', clientId: 'c', callbackPath: '/cb' }), /cookie_secret must name a generic secret/],
      [authentication, packAny(AuthenticationPerRouteSchema, { hmac: {} }), /consumers must name the generic secrets/],
      [
        credentialInjector,
        packAny(CredentialPerRouteSchema, { value: { name: 'x', sdsConfig: { configSourceSpecifier: { case: 'path', value: '/etc/shadow' } } } }),
        /value must come from ads/,
      ],
    ];
    for (const [kind, any, reason] of bad) assert.throws(() => kind.compileRoute!(any, 'route'), reason);
  });
});

describe('a token bucket', () => {
  it('gives out as many as it holds, fills evenly, and never holds more', () => {
    const buckets = new TokenBuckets(10, 1_000, 3, 100);
    const take = (now: number, key = 'a') => buckets.take(key, now).isAllowed;
    assert.deepEqual([take(0), take(0), take(0), take(0)], [true, true, true, false]);
    assert.equal(take(0, 'b'), true);
    assert.deepEqual([take(99), take(100), take(100)], [false, true, false]);
    assert.deepEqual([take(1e6), take(1e6), take(1e6), take(1e6)], [true, true, true, false]);
    assert.ok(Math.abs(buckets.take('a', 1e6).untilNextMs - 100) < 1e-6);
  });

  it('lets through no more than its rate and its size over any time', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 300 }), { minLength: 1, maxLength: 200 }), (pauses) => {
        const buckets = new TokenBuckets(5, 1_000, 2, 10);
        let now = 0;
        let allowed = 0;
        for (const pause of pauses) {
          now += pause;
          if (buckets.take('k', now).isAllowed) allowed++;
        }
        assert.ok(allowed <= 2 + (now * 5) / 1_000 + 1e-6);
      }),
    );
  });

  it('remembers a bounded number of keys, and forgets those first whose buckets are full', () => {
    const buckets = new TokenBuckets(1, 1_000_000, 1, 3);
    assert.equal(buckets.take('limited', 0).isAllowed, true);
    for (let i = 0; i < 3; i++) buckets.take(`k${i}`, 1);
    assert.equal(buckets.take('k2', 2).isAllowed, false);
  });
});

describe('message signatures', () => {
  const input = 'sig1=("@method" "@authority" "@path" "@query" "x-a");created=100;keyid="k";alg="hmac-sha256"';
  const head = () => {
    const request = new RequestHead();
    request.method = 'POST';
    request.authority = 'API.test';
    request.target = '/a/b?c=1';
    request.headers.add('x-a', 'one');
    request.headers.add('x-a', 'two');
    return request;
  };

  it('are over the lines that RFC 9421 section 2.5 says', () => {
    const read = readSignatureInput(input)!;
    const base = signatureBase(read, head(), 'https')!;
    assert.equal(
      base,
      `"@method": POST\n"@authority": api.test\n"@path": /a/b\n"@query": ?c=1\n"x-a": one,two\n"@signature-params": ${input.slice('sig1='.length)}`,
    );
    const signature = createHmac('sha256', 'secret').update(base).digest('base64');
    assert.ok(isSignedWith(Buffer.from('secret'), base, signatureOf('sig1', `sig1=:${signature}:`)!));
    assert.ok(!isSignedWith(Buffer.from('other'), base, signatureOf('sig1', `sig1=:${signature}:`)!));
    for (const field of [`sig2=:${signature}:`, `sig1=:${signature}`, 'sig1=::', '', `sig1=:${signature}:, sig1=:${signature}:`])
      assert.equal(signatureOf('sig1', field), undefined, field);
    assert.equal(signatureBase({ ...read, components: ['x-missing'] }, head(), 'https'), undefined);
    assert.equal(signatureBase({ ...read, components: ['@status'] }, head(), 'https'), undefined);
  });

  it('that cannot be read with certainty are not read', () => {
    for (const text of [
      '',
      'sig1',
      'sig1=()',
      'sig1=("@method")',
      'sig1=("@method");created=1',
      'sig1=("@method");keyid="k"',
      'sig1=("a" "a");created=1;keyid="k"',
      'sig1=("a");created=1;created=2;keyid="k"',
      'sig1=("a");created=1;keyid="k", sig2=("a");created=1;keyid="k"',
      `sig1=("a");created=1;keyid="${'k'.repeat(2_000)}"`,
      'sig1=("@path";req);created=1;keyid="k"',
    ])
      assert.equal(readSignatureInput(text), undefined, text);
    fc.assert(fc.property(fc.string(), (text) => void readSignatureInput(text)));
  });

  it('must cover what the request asks', () => {
    assert.ok(coversRequest(['@method', '@authority', '@path'], false, false));
    assert.ok(!coversRequest(['@method', '@authority', '@path'], true, false));
    assert.ok(!coversRequest(['@method', '@authority', '@path'], false, true));
    assert.ok(coversRequest(['@method', '@target-uri', 'content-digest'], true, true));
    assert.ok(!coversRequest(['@authority', '@path', '@query'], true, false));
  });

  it('cover a body by its digest', () => {
    const body = Buffer.from('{"hello": "world"}');
    // RFC 9530 appendix B.2
    const right = 'sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:';
    assert.ok(digestMatches(right, body));
    assert.ok(!digestMatches(right, Buffer.from('other')));
    assert.ok(!digestMatches('md5=:xxxx:', body));
    assert.ok(!digestMatches(`${right}, sha-512=:AAAA:`, body));
  });

  it('are known again for the whole window', () => {
    const window = new ReplayWindow(1_000);
    assert.equal(window.isNew('a', 10_000), true);
    assert.equal(window.isNew('a', 10_999), false);
    assert.equal(window.isNew('b', 11_500), true);
    assert.equal(window.isNew('a', 11_600), false);
    assert.equal(window.isNew('a', 20_000), true);
  });
});

describe('what a cache may do', () => {
  it('is read from Cache-Control, quoted or not, whatever stands beside it', () => {
    assert.deepEqual(
      [...readCacheControl('max-age=60, Private="x, y" , no-transform')],
      [
        ['max-age', '60'],
        ['private', 'x, y'],
        ['no-transform', ''],
      ],
    );
    assert.deepEqual([...readCacheControl('max-age=1, max-age=2')], [['max-age', '1']]);
    fc.assert(fc.property(fc.string(), (text) => void readCacheControl(text)));
  });

  it('follows RFC 9111 for a shared cache', () => {
    const storable = (text: string, isSecret = false, status = 200) => isStorable(status, readCacheControl(text), isSecret);
    assert.ok(storable('max-age=1'));
    for (const text of ['no-store', 'private', 'no-cache']) assert.ok(!storable(text));
    for (const text of ['max-age=1', 'max-age=1, must-revalidate']) assert.ok(!storable(text, true), 'an answer to a credential needs leave');
    assert.equal(freshnessMs(new ResponseHead(), readCacheControl(`max-age=${'9'.repeat(400)}`), 0, 0), 2 ** 31 * 1000);
    assert.ok(storable('public, max-age=1', true));
    assert.ok(!storable('max-age=1', false, 500));
    const head = new ResponseHead();
    head.headers.add('date', 'Wed, 25 Nov 2026 10:00:00 GMT');
    head.headers.add('expires', 'Wed, 25 Nov 2026 10:01:00 GMT');
    assert.equal(freshnessMs(head, readCacheControl(undefined), 0, 0), 60_000);
    assert.equal(freshnessMs(head, readCacheControl('max-age=5, s-maxage=9'), 0, 0), 9_000);
    assert.equal(freshnessMs(head, readCacheControl('max-age=soon'), 7, 0), 0);
  });
});

describe('the store of a cache', () => {
  it('counts what clients choose: the URI, and the fields that an answer varies on', () => {
    const store = new ResponseStore();
    const maxBytes = 1_000_000;
    const field = (i: number) => fields(['accept-language', `${i}${'x'.repeat(50_000)}`]);
    for (let i = 0; i < 100; i++) {
      const varied = { vary: ['accept-language'], varyKey: varyKey(['accept-language'], field(i)) };
      store.keep(`http://a/${i}`, { status: 200, fields: [], body: Buffer.alloc(0), ...varied, storedAtMs: 0, ageMs: 0, expiresAtMs: 1 }, maxBytes);
    }
    const kept = Array.from({ length: 100 }, (_, i) => store.find(`http://a/${i}`, field(i))).filter((one) => one !== undefined).length;
    assert.ok(kept > 10 && kept <= maxBytes / 50_000, String(kept));
  });
});

describe('the place in a trace', () => {
  it('is read from W3C and from B3, and rubbish is none', () => {
    const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
    assert.deepEqual(readTraceContext(fields(['traceparent', `00-${trace}-00f067aa0ba902b7-01`])), {
      traceId: trace,
      spanId: '00f067aa0ba902b7',
      isSampled: true,
      form: 'w3c',
    });
    assert.equal(readTraceContext(fields(['traceparent', `cc-${trace}-00f067aa0ba902b7-01-more`]))?.traceId, trace);
    assert.equal(readTraceContext(fields(['b3', `${trace.slice(16)}-00f067aa0ba902b7-d`]))?.isSampled, true);
    assert.equal(readTraceContext(fields(['b3', '0'])), undefined);
    assert.equal(readTraceContext(fields(['x-b3-traceid', trace], ['x-b3-spanid', '00f067aa0ba902b7']))?.isSampled, undefined);
    for (const text of [
      '',
      `00-${trace}-00f067aa0ba902b7-01-x`,
      `00-${trace.toUpperCase()}-00f067aa0ba902b7-01`,
      `ff-${trace}-00f067aa0ba902b7-01`,
      `00-${'0'.repeat(32)}-00f067aa0ba902b7-01`,
    ])
      assert.equal(readTraceContext(fields(['traceparent', text])), undefined);
    fc.assert(fc.property(fc.string(), (text) => void readTraceContext(fields(['traceparent', text], ['b3', text]))));
  });
});
