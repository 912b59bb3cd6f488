import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import type { Endpoint } from '../endpoint.ts';
import { testEndpoint } from './endpoint-for-tests.ts';
import { HashRing } from './ring-hash.ts';

/** Which endpoints there are, and what each weighs. */
const stepsOfChange = fc.array(
  fc.uniqueArray(fc.record({ port: fc.integer({ min: 1, max: 30 }), weight: fc.integer({ min: 1, max: 5 }) }), {
    selector: ({ port }) => port,
    minLength: 1,
    maxLength: 12,
  }),
  { minLength: 2, maxLength: 5 },
);

describe('a hash ring', () => {
  it('is changed piece by piece into the ring that would have been made at once', () => {
    fc.assert(
      fc.property(stepsOfChange, (steps) => {
        const known = new Map<string, Endpoint>();
        let ring: HashRing | undefined;
        for (const step of steps) {
          const endpoints = step.map(({ port, weight }) => {
            const key = `${port}/${weight}`;
            const endpoint = known.get(key) ?? testEndpoint(port, weight);
            known.set(key, endpoint);
            return endpoint;
          });
          const total = endpoints.reduce((sum, { weight }) => sum + weight, 0);
          const shares = endpoints.map((endpoint) => ({ endpoint, share: endpoint.weight / total }));
          ring = new HashRing(shares, { minimumSize: 64, maximumSize: 1024 }, ring);
          const whole = new HashRing(shares, { minimumSize: 64, maximumSize: 1024 });
          assert.equal(ring.size, whole.size);
          for (let i = 0; i < 50; i++) {
            const hash = BigInt.asUintN(64, BigInt(i + 1) * 0x9e37_79b9_7f4a_7c15n);
            assert.equal(ring.pick(hash, i % 3), whole.pick(hash, i % 3));
          }
        }
      }),
      { numRuns: 60 },
    );
  });
});
