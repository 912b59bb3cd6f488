import assert from 'node:assert/strict';
import { it } from 'node:test';
import { componentProblems } from './messaging.ts';

it('refuses a Component whose rules of access stand in a Secret, which may be missing', () => {
  const problemsOf = (name: string, member: object) => componentProblems({ type: 'pubsub.mizzen', metadata: [{ name, ...member }] }).map(({ path }) => path);
  const secretKeyRef = { name: 's', key: 'k' };
  for (const name of ['publishingScopes', 'subscriptionScopes', 'allowedTopics', 'protectedTopics']) {
    assert.deepEqual(problemsOf(name, { secretKeyRef }), ['spec.metadata[0].secretKeyRef']);
    assert.deepEqual(problemsOf(name, { value: 'a' }), []);
  }
  assert.deepEqual(problemsOf('address', { secretKeyRef }), []);
});
