import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { autoAddresses } from './auto-addresses.ts';
import type { Service } from './service.ts';

const service = (hostname: string, fields: Partial<Service> = {}): Service => ({
  hostname,
  name: hostname,
  namespace: 'default',
  kind: 'ServiceEntry',
  ports: [],
  addresses: [],
  isHeadless: false,
  resolution: 'static',
  isExternal: true,
  exportTo: undefined,
  instances: [],
  trafficDistribution: undefined,
  origin: { source: 'api', name: 'test' },
  ...fields,
});

describe('automatic addresses', () => {
  it('are of the reserved ranges, one for each name, and follow from the names alone', () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.domain(), { maxLength: 200 }), (hosts) => {
        const given = autoAddresses(hosts.map((host) => service(host)));
        assert.equal(given.size, new Set(hosts).size);
        assert.equal(new Set([...given.values()].map(({ ipv4 }) => ipv4)).size, given.size);
        assert.equal(new Set([...given.values()].map(({ ipv6 }) => ipv6)).size, given.size);
        for (const { ipv4, ipv6 } of given.values()) {
          assert.match(ipv4, /^240\.240\.\d{1,3}\.\d{1,3}$/);
          assert.doesNotMatch(ipv4, /^240\.240\.(?:0\.0|255\.255)$/);
          assert.match(ipv6, /^2001:2::f0f0:[0-9a-f]{1,4}$/);
        }
        assert.deepEqual(autoAddresses([...hosts].reverse().map((host) => service(host))), given);
      }),
      { numRuns: 200 },
    );
  });

  it('stay when others come', () => {
    const before = autoAddresses([service('a.example'), service('b.example')]);
    const after = autoAddresses([service('0.example'), service('a.example'), service('b.example'), service('z.example')]);
    for (const [host, address] of before) assert.deepEqual(after.get(host), address);
  });

  it('are for those who have none: no headless service, no wildcard, nobody with an address or without a resolution', () => {
    const given = autoAddresses([
      service('own.example', { addresses: ['10.0.0.1'] }),
      service('headless.example', { isHeadless: true }),
      service('*.wild.example'),
      service('anywhere.example', { resolution: 'none' }),
      service('dns.example', { resolution: 'dns' }),
    ]);
    assert.deepEqual([...given.keys()], ['dns.example']);
  });
});
