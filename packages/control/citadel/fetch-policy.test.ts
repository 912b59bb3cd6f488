import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { FetchPolicy } from './fetch-policy.ts';
import { callHttps } from './https-call.ts';

describe('URLs in configuration', () => {
  it('do not lead to this machine or to link-local addresses, however the address is written', async () => {
    for (const host of [
      ...['127.0.0.1', '127.1', '0x7f000001', '2130706433', '0.0.0.0', '[::1]', '[::]', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]'],
      ...['169.254.169.254', '[fe80::1]', '[fd00:ec2::254]', '255.255.255.255', 'localhost', 'LOCALHOST.'],
    ]) {
      const call = (async () => callHttps(`http://${host}:1/`, { policy: new FetchPolicy(), signal: AbortSignal.timeout(2_000), maxBytes: 10 }))();
      await assert.rejects(call, /may not lead there|ENOTFOUND|EAI_AGAIN/, host);
    }
  });

  it('lead to what the administrator allows', async () => {
    const call = callHttps('http://127.0.0.1:1/', { policy: new FetchPolicy(['127.0.0.1']), signal: AbortSignal.timeout(2_000), maxBytes: 10 });
    await assert.rejects(call, /ECONNREFUSED/);
    assert.equal(typeof new FetchPolicy(['127.0.0.1']).lookupFor('https://issuer.example/keys'), 'function');
  });
});
