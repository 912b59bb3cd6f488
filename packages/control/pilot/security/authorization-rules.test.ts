import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { policyOfRule } from './authorization-rules.ts';
import type { Text } from './value-matchers.ts';

const trustDomains = ['td1', 'foobar', 'old.example'];

/** Whether an identity meets `principals: [pattern]`, by the matchers that are generated. */
function meets(field: 'principals' | 'trustDomains' | 'namespaces', pattern: string, identity: string): boolean {
  const policy = policyOfRule(
    { from: [{ source: { [field]: [pattern] } }] },
    { namespace: 'default', trustDomains, isBytes: false, port: undefined, isForAllowing: false },
  );
  const texts: Text[] = [];
  const visit = (value: unknown): void => {
    if (typeof value !== 'object' || value === null) return;
    if ('principalName' in value) texts.push(value.principalName as Text);
    for (const entry of Object.values(value)) visit(entry);
  };
  visit(policy);
  return texts.some(({ matchPattern }) => {
    if (matchPattern?.case === 'exact') return identity === matchPattern.value;
    if (matchPattern?.case === 'prefix') return identity.startsWith(matchPattern.value as string);
    if (matchPattern?.case === 'suffix') return identity.endsWith(matchPattern.value as string);
    if (matchPattern?.case === 'contains') return identity.includes(matchPattern.value as string);
    return new RegExp(`^(?:${(matchPattern?.value as { regex: string } | undefined)?.regex})$`).test(identity);
  });
}

/** The pattern itself: a `*` at the beginning or at the end. */
function covers(pattern: string, text: string): boolean {
  if (pattern === '*') return text !== '';
  if (pattern.startsWith('*')) return text.endsWith(pattern.slice(1));
  return pattern.endsWith('*') ? text.startsWith(pattern.slice(0, -1)) : text === pattern;
}

describe('policyOfRule', () => {
  it('adds the own trust domain for a wildcard principal that covers one of its aliases, as Istio does', () => {
    assert.ok(meets('principals', '*bar/ns/foo/sa/x', 'spiffe://td1/ns/foo/sa/x'));
    assert.ok(meets('principals', '*bar/ns/foo/sa/x', 'spiffe://otherbar/ns/foo/sa/x'));
    assert.ok(!meets('principals', '*bar/ns/foo/sa/x', 'spiffe://td1/ns/foo/sa/y'));
    assert.ok(meets('trustDomains', '*bar', 'spiffe://td1/ns/foo/sa/x'));
    assert.ok(!meets('trustDomains', '*nothing', 'spiffe://td1/ns/foo/sa/x'));
  });

  it('matches an identity of the mesh exactly when the pattern covers it under any name of the trust domain', () => {
    const paths = ['/ns/foo/sa/x', '/ns/foo/sa/y', '/ns/bar/sa/x'];
    const patterns = ['td1', 'foobar', '*bar', '*example', '*', 'old.example', 'foreign', '*reign', 't*', 'foo*'].flatMap((domain) =>
      domain.endsWith('*') && domain !== '*'
        ? [domain]
        : [...paths.map((path) => `${domain}${path}`), ...(domain.includes('*') ? [] : [`${domain}/*`, `${domain}/ns/foo/*`])],
    );
    for (const pattern of ['*', '*/sa/x', '*o/sa/x', ...patterns])
      for (const path of paths)
        for (const domain of [...trustDomains, 'foreign', 'td12']) {
          const names = trustDomains.includes(domain) ? trustDomains : [domain];
          const expected = names.some((name) => covers(pattern, `${name}${path}`));
          assert.equal(meets('principals', pattern, `spiffe://${domain}${path}`), expected, `${pattern} and ${domain}${path}`);
        }
  });

  it('keeps a wildcard in a namespace inside the namespace', () => {
    assert.ok(meets('namespaces', 'f*', 'spiffe://td1/ns/foo/sa/x'));
    assert.ok(meets('namespaces', '*o', 'spiffe://td1/ns/foo/sa/x'));
    assert.ok(!meets('namespaces', '*x', 'spiffe://td1/ns/foo/sa/x/y'));
  });
});
