import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Forwarders, identityWanted } from './forwarders.ts';

const trustDomain = 'cluster.local';
const agent = { trustDomain, namespace: 'mesh', serviceAccount: 'agent' };
const ask = (rules: string[], wanted: unknown, caller = agent) => identityWanted(wanted, caller, { trustDomain, forwarders: new Forwarders(rules) });
const cart = 'spiffe://cluster.local/ns/shop/sa/cart';

describe('who may ask for identities of others', () => {
  it('is nobody who was not named', () => {
    assert.throws(() => ask([], cart), /spiffe:\/\/cluster.local\/ns\/mesh\/sa\/agent may not ask for identities of others/);
    assert.throws(() => ask(['mesh/other', 'other/agent'], cart), /may not ask/);
    assert.equal(ask([], undefined), agent);
    assert.equal(ask([], ''), agent);
    assert.equal(ask([], 'spiffe://cluster.local/ns/mesh/sa/agent'), agent);
  });

  it('may ask for all of the trust domain, or for those that are named with it', () => {
    assert.deepEqual(ask(['mesh/agent'], cart), { trustDomain, namespace: 'shop', serviceAccount: 'cart' });
    for (const rules of [
      ['mesh/agent=shop/cart'],
      ['mesh/agent=shop/*'],
      ['mesh/agent=a/b', 'mesh/agent=c/d,shop/cart'],
      ['mesh/agent=a/b', 'mesh/agent'],
      ['mesh/agent', 'mesh/agent=a/b'],
    ])
      assert.equal(ask(rules, cart).serviceAccount, 'cart', rules.join(' '));
    assert.throws(
      () => ask(['mesh/agent=shop/payments,books/*'], cart),
      /may not ask for spiffe:\/\/cluster.local\/ns\/shop\/sa\/cart, but for shop\/payments, books\/\* \(mizzen control --ca-forwarder\)/,
    );
    assert.throws(() => ask(['mesh/agent=shop/*'], 'spiffe://cluster.local/ns/shop-2/sa/cart'), /may not ask/);
  });

  it('may not ask for what is no identity of the trust domain', () => {
    for (const wanted of ['spiffe://other/ns/shop/sa/cart', 'shop/cart', 'spiffe://cluster.local/shop', 7, {}])
      assert.throws(() => ask(['mesh/agent'], wanted), /is no identity of trust domain cluster.local/);
  });

  it('is refused when it is written otherwise', () => {
    for (const rule of ['agent', 'mesh/*', 'mesh/agent=', 'mesh/agent=shop', 'mesh/agent=shop/cart, shop/b', 'mesh/agent=*/*', ''])
      assert.throws(() => new Forwarders([rule]), /write NAMESPACE\/ACCOUNT/, rule);
  });
});
