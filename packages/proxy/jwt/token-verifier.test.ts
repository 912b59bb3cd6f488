import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { describe, it } from 'node:test';
import { KeySet } from './key-set.ts';
import { TokenVerifier } from './token-verifier.ts';

const encoded = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const keys = KeySet.read(
  JSON.stringify({
    keys: [
      { ...ec.publicKey.export({ format: 'jwk' }), kid: 'ec' },
      { ...rsa.publicKey.export({ format: 'jwk' }), kid: 'rsa', alg: 'RS256' },
      { kty: 'EC', crv: 'P-256', x: 'AAAA', y: 'AAAA' },
      'nonsense',
    ],
  }),
);

function token(claims: object, { alg = 'ES256', header = {} }: { readonly alg?: 'ES256' | 'RS256'; readonly header?: object } = {}): string {
  const text = `${encoded({ alg, ...header })}.${encoded(claims)}`;
  const signature =
    alg === 'ES256' ? sign('sha256', Buffer.from(text), { key: ec.privateKey, dsaEncoding: 'ieee-p1363' }) : sign('sha256', Buffer.from(text), rsa.privateKey);
  return `${text}.${signature.toString('base64url')}`;
}

const rules = { issuer: 'me', audiences: [], fitsSubject: undefined, requiresExpiration: false, maxLifetimeSeconds: undefined, clockSkewSeconds: 60 };
const nowMs = 1_800_000_000_000;
const now = nowMs / 1000;
const problemOf = (text: string, more: Partial<ConstructorParameters<typeof TokenVerifier>[0]> = {}, at = nowMs) => {
  const result = new TokenVerifier({ ...rules, ...more }).verify(text, keys, at);
  return 'problem' in result ? result.problem : undefined;
};

describe('tokens', () => {
  it('are good with a signature of the issuer’s, in their time, for who they are for', () => {
    assert.equal(problemOf(token({ iss: 'me' })), undefined);
    assert.equal(problemOf(token({ iss: 'me' }, { alg: 'RS256' })), undefined);
    assert.equal(problemOf(token({ iss: 'me', exp: now - 59 })), undefined);
    assert.equal(problemOf(token({ iss: 'me', exp: now - 61 })), 'expired');
    assert.equal(problemOf(token({ iss: 'me', nbf: now + 61 })), 'not_yet_valid');
    assert.equal(problemOf(token({ iss: 'me', exp: 'never' })), 'malformed');
    assert.equal(problemOf(token({ iss: 'me' }), { requiresExpiration: true }), 'claim_missing');
    assert.equal(problemOf(token({ iss: 'me', iat: now, exp: now + 100 }), { maxLifetimeSeconds: 99 }), 'lives_too_long');
    assert.equal(problemOf(token({ iss: 'you' })), 'wrong_issuer');
    assert.equal(problemOf(token({ iss: 'me', aud: ['a', 'b'] }), { audiences: ['b'] }), undefined);
    assert.equal(problemOf(token({ iss: 'me', aud: 'bb' }), { audiences: ['b'] }), 'wrong_audience');
    assert.equal(problemOf(token({ iss: 'me', sub: 'x' }), { fitsSubject: (subject) => subject === 'y' }), 'wrong_subject');
  });

  it('are bad with a key that is none of the issuer’s, or meant for something else', () => {
    assert.equal(problemOf(token({ iss: 'me' }, { header: { kid: 'other' } })), 'unknown_key');
    assert.equal(problemOf(token({ iss: 'me' }, { header: { kid: 'rsa' } })), 'unknown_key');
    assert.equal(problemOf(token({ iss: 'me' }, { header: { crit: ['b64'], b64: false } })), 'malformed');
    assert.equal(problemOf(`${token({ iss: 'me' }).slice(0, -2)}AA`), 'wrong_signature');
    assert.equal(problemOf(`${encoded({ alg: 'constructor' })}.${encoded({ iss: 'me' })}.AAAA`), 'algorithm_not_allowed');
    assert.throws(() => KeySet.read('{"keys":[]}'), /none of its keys can be used/);
    assert.throws(
      () => KeySet.read(JSON.stringify({ keys: [generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey.export({ format: 'jwk' })] })),
      /none of its keys/,
    );
  });

  it('that were good are remembered for as long as they are', () => {
    const verifier = new TokenVerifier(rules);
    const text = token({ iss: 'me', exp: now + 10 });
    assert.equal(verifier.remembered(text, nowMs), undefined);
    verifier.verify(text, keys, nowMs);
    assert.ok(verifier.remembered(text, nowMs));
    assert.equal(verifier.remembered(text, nowMs + 70_000), undefined);
  });

  it('cost less than 150 us when they are new, and less than 3 us when they are known', () => {
    for (const alg of ['ES256', 'RS256'] as const) {
      const tokens = Array.from({ length: 600 }, (_, i) => token({ iss: 'me', sub: String(i), groups: ['a', 'b'] }, { alg }));
      const verifier = new TokenVerifier(rules);
      const cost = (turn: () => void, count: number) => {
        const before = process.cpuUsage();
        turn();
        const { user, system } = process.cpuUsage(before);
        return (user + system) / count;
      };
      for (const text of tokens.slice(0, 100)) verifier.verify(text, keys, nowMs);
      const fresh = cost(() => tokens.slice(100).forEach((text) => verifier.verify(text, keys, nowMs)), 500);
      const known = cost(() => {
        for (let i = 0; i < 100; i++) for (const text of tokens) verifier.remembered(text, nowMs);
      }, 60_000);
      if (process.env['MIZZEN_SHOW_COST']) console.log(`# ${alg}: ${fresh.toFixed(0)} us a new token, ${known.toFixed(2)} us a known one`);
      // Five times the aims: tests share their machine.
      assert.ok(fresh < 750, `${alg}: ${fresh} us`);
      assert.ok(known < 15, `${alg}: ${known} us`);
    }
  });
});
