import assert from 'node:assert/strict';
import { it } from 'node:test';
import fc from 'fast-check';
import { removeCookies } from '../../message/cookie.ts';
import { HeaderList } from '../../message/header-list.ts';
import { joinedCookie, SealedCookies, setCookies } from './sealed-cookies.ts';

const request = (...cookies: readonly string[]) => {
  const headers = new HeaderList();
  for (const line of cookies) headers.add('cookie', line);
  return headers;
};
const pairOf = (line: string) => line.split(';', 1)[0]!;

it('what is sealed can be read with the same secret, for the same use and context, and by nobody else', () => {
  const cookies = new SealedCookies('s'.repeat(32), 'a');
  fc.assert(
    fc.property(fc.jsonValue(), fc.nat(), fc.integer({ min: 1, max: 255 }), (value, at, change) => {
      const text = cookies.seal('session', value);
      assert.deepEqual(cookies.unseal('session', text), JSON.parse(JSON.stringify(value)));
      assert.equal(cookies.unseal('login', text), undefined);
      assert.equal(new SealedCookies('s'.repeat(32), 'b').unseal('session', text), undefined);
      assert.equal(new SealedCookies('t'.repeat(32), 'a').unseal('session', text), undefined);
      const bytes = Buffer.from(text, 'base64url');
      bytes[at % bytes.length]! ^= change;
      assert.equal(cookies.unseal('session', bytes.toString('base64url')), undefined);
    }),
  );
  fc.assert(fc.property(fc.string(), (text) => assert.equal(cookies.unseal('session', text), undefined)));
});

it('long values go over several cookies, and what is left of longer ones is taken back', () => {
  for (const length of [1, 3_600, 3_601, 10_000, 18_000]) {
    const lines = setCookies('s', 'x'.repeat(length), 'Path=/', request())!;
    assert.equal(lines.length, Math.ceil(length / 3_600));
    for (const line of lines) assert.ok(line.length <= 4_096);
    assert.equal(joinedCookie(request(lines.map(pairOf).join('; ')), 's'), 'x'.repeat(length));
  }
  assert.equal(setCookies('s', 'x'.repeat(18_001), 'Path=/', request()), undefined);
  assert.deepEqual(setCookies('s', 'y', 'Path=/', request('s=x; s.1=x; s.2=x')), ['s=y; Path=/', 's.1=; Path=/; Max-Age=0', 's.2=; Path=/; Max-Age=0']);
  assert.deepEqual(setCookies('s', '', 'Path=/', request('s=x')), ['s=; Path=/; Max-Age=0']);
});

it('cookies are taken out of a request, and the others stay as they are', () => {
  const left = (...cookies: readonly string[]) => {
    const headers = request(...cookies);
    removeCookies(headers, (name) => name === 's' || name === 's.1');
    return headers.getAll('cookie');
  };
  assert.deepEqual(left('s=1'), []);
  assert.deepEqual(left('a=1; s=2; b="3;'), ['a=1; b="3;']);
  assert.deepEqual(left('s=1; s.1=2', 'ss=3;x'), ['ss=3;x']);
  assert.deepEqual(left('a=s; b'), ['a=s; b']);
});
