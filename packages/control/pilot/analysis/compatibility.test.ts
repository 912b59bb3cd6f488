import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { kinds, objectSchemaOf } from '@mizzen/api';
import { fieldNotes } from './compatibility.ts';
import { covers, describeCompatibility, leavesOf } from './describe-compatibility.ts';
import { notImplementedWarnings } from './not-implemented.ts';

const document = new URL('../../../../docs/compatibility.md', import.meta.url);

describe('what is said of compatibility', () => {
  it('is in docs/compatibility.md as the code has it', () => {
    assert.equal(readFileSync(document, 'utf8'), describeCompatibility(), 'write it anew with `npm run docs:compatibility`');
  });

  it('is about fields that there are', () => {
    for (const [key, notes] of Object.entries(fieldNotes)) {
      const kind = kinds.find((one) => `${one.group}/${one.kind}` === key);
      assert.ok(kind, key);
      const fields = leavesOf(objectSchemaOf(kind)!.properties!['spec']!, 'spec');
      for (const note of notes)
        if (!/[:[]/.test(note.path)) assert.ok(fields.some((field) => covers(note, field)) || note.path === 'spec.*', `${key}: ${note.path} is no field`);
    }
  });

  it('is told to whoever writes such a field', () => {
    const warnings = notImplementedWarnings({
      apiVersion: 'networking.istio.io/v1',
      kind: 'VirtualService',
      metadata: { name: 'x' },
      spec: { hosts: ['a'], http: [{ fault: { delay: { exponentialDelay: '1s' } } }, { match: [{ statPrefix: 'x' }] }] },
    } as never);
    assert.deepEqual(warnings, [
      'spec.http.fault.delay.exponentialDelay is stored but has no effect: Istio does not act on it either.',
      'spec.http.match.statPrefix is stored but has no effect: metrics are told apart by their labels.',
    ]);
    assert.deepEqual(
      notImplementedWarnings({ apiVersion: 'networking.istio.io/v1beta1', kind: 'ProxyConfig', metadata: { name: 'x' }, spec: { concurrency: 2 } } as never),
      ['spec.concurrency is stored but has no effect: the number of workers is said when a proxy is started (`--workers`).'],
    );
  });
});
