import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { unknownPeer } from '../telemetry/peer-metadata.ts';
import { Endpoint } from './endpoint.ts';
import { leastRequest, randomChoice, roundRobin } from './load-balancer.ts';
import { plainTransport } from './transport.ts';

const endpoint = (port: number, weight = 1) =>
  new Endpoint({ address: '10.0.0.1', port, weight, isHealthy: true, transport: plainTransport(undefined), peer: unknownPeer });

describe('load balancing', () => {
  it('takes each in turn, and a heavy one more often but not in a row', () => {
    const equal = [endpoint(1), endpoint(2), endpoint(3)];
    const pick = roundRobin();
    assert.deepEqual(
      Array.from({ length: 6 }, () => pick(equal).port),
      [2, 3, 1, 2, 3, 1],
    );
    const weighted = [endpoint(1, 3), endpoint(2, 1)];
    const smooth = roundRobin();
    assert.deepEqual(
      Array.from({ length: 8 }, () => smooth(weighted).port),
      [1, 1, 2, 1, 1, 1, 2, 1],
    );
  });

  it('chooses at random in proportion to the weights', () => {
    const weighted = [endpoint(1, 3), endpoint(2, 1)];
    assert.deepEqual(
      [0, 0.74, 0.75, 0.99].map((value) => randomChoice(() => value)(weighted).port),
      [1, 1, 2, 2],
    );
  });

  it('takes the less busy of two', () => {
    const [a, b] = [endpoint(1), endpoint(2)];
    a.activeRequests = 5;
    const values = [0, 0.9];
    assert.equal(leastRequest(2, () => values.shift() ?? 0)([a, b]), b);
  });
});
