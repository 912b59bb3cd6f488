import assert from 'node:assert/strict';
import { it } from 'node:test';
import type { BrokerComponent } from '@mizzen/envoy-api';
import { BrokerAccess } from './broker-access.ts';

const component = (namespace: string, name: string, more: Partial<BrokerComponent> = {}): BrokerComponent => ({
  ...{ namespace, name, type: 'pubsub.mizzen', metadata: {}, scopes: [], topicPolicies: [] },
  ...more,
});
const app = (namespace: string, serviceAccount: string, appId = serviceAccount) => ({ namespace, serviceAccount, appId });
const peer = (namespace: string, account: string, appId: string | undefined = account) => ({ identity: `spiffe://td/ns/${namespace}/sa/${account}`, appId });

it('the broker refuses everything to everyone before it has received policies', () => {
  const access = new BrokerAccess();
  assert.match(access.refusal(peer('a', 'x'), 'PUBLISH', 'a/c|t')!, /has received no policies/);
  assert.match(access.refusal(peer('a', 'x'), 'SUBSCRIBE', 't')!, /has received no policies/);
});

it('the broker takes the app id of a peer only where an object binds it to the identity', () => {
  const access = new BrokerAccess();
  const metadata = { publishingScopes: 'x=t;y=' };
  access.use({ components: [component('a', 'c', { metadata })], apps: [app('a', 'x'), app('a', 'shared', 'y'), app('a', 'shared', 'z')] });
  assert.equal(access.refusal(peer('a', 'x'), 'PUBLISH', 'a/c|t'), undefined);
  assert.match(access.refusal(peer('a', 'shared', 'x'), 'PUBLISH', 'a/c|t')!, /app id "x" is not bound/);
  assert.match(access.refusal(peer('a', 'x', 'z'), 'PUBLISH', 'a/c|t')!, /app id "z" is not bound/);
  assert.equal(access.refusal(peer('a', 'shared', 'z'), 'PUBLISH', 'a/c|t'), undefined);
  // A sidecar of an earlier version names no app: what it does must be allowed to each that it may be.
  assert.match(access.refusal({ ...peer('a', 'shared'), appId: undefined }, 'PUBLISH', 'a/c|t')!, /publishingScopes/);
  for (const identity of ['spiffe://td/ns/a/sa/x/more', 'spiffe://td/x', 'spiffe://td/ns/b/sa/x', 'https://td/ns/a/sa/x'])
    assert.notEqual(access.refusal({ identity, appId: 'x' }, 'PUBLISH', 'a/c|t'), undefined, identity);
});

it('the broker gives each Component topics of its own, and old sidecars those of the only one of their namespace', () => {
  const access = new BrokerAccess();
  access.use({ components: [component('a', 'c'), component('b', 'c'), component('b', 'd')], apps: [app('a', 'x'), app('b', 'x')] });
  assert.equal(access.fullNameFor(peer('a', 'x'), 't'), 'a/c|t');
  assert.equal(access.fullNameFor(peer('b', 'x'), 't'), undefined);
  assert.equal(access.fullNameFor(peer('b', 'x'), 'a/c|t'), 'a/c|t');
  assert.match(access.refusal(peer('b', 'x'), 'SUBSCRIBE', 'a/c|t')!, /Components of its own namespace/);
  assert.match(access.refusal(peer('b', 'x'), 'SUBSCRIBE', 't')!, /names no Component/);
  assert.match(access.refusal(peer('a', 'x'), 'SUBSCRIBE', 'a/none|t')!, /there is no Component a\/none/);
});

it('the broker gives groups with the name of an application to it, and others to their first identity', () => {
  const access = new BrokerAccess();
  access.use({ components: [component('a', 'c')], apps: [app('a', 'x'), app('a', 'y-account', 'y'), app('b', 'free')] });
  const [x, y] = [peer('a', 'x'), peer('a', 'y-account', 'y')];
  assert.equal(access.ownershipOf(x, 'a/c|t', 'y', ''), 'foreign');
  assert.equal(access.ownershipOf(y, 'a/c|t', 'y', ''), 'own');
  assert.equal(access.ownershipOf(y, 'a/c|t', 'y', x.identity), 'own');
  assert.equal(access.ownershipOf(x, 'a/c|t', 'y', x.identity), 'foreign');
  assert.equal(access.ownershipOf(x, 'a/c|t', 'free', ''), 'free');
  assert.equal(access.ownershipOf(y, 'a/c|t', 'free', x.identity), 'foreign');
  assert.equal(access.ownershipOf(x, 'a/c|t', 'free', x.identity), 'own');
});
