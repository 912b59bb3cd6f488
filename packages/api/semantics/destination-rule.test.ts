import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { TrafficPolicySpec } from '../types/destination-rule.ts';
import { destinationRuleProblems } from './destination-rule.ts';

const pathsOf = (trafficPolicy: TrafficPolicySpec) =>
  destinationRuleProblems({ host: 'shop', trafficPolicy }).map(({ path }) => path.replace('spec.trafficPolicy.', ''));

describe('a DestinationRule', () => {
  it('hashes one thing', () => {
    assert.deepEqual(pathsOf({ loadBalancer: { consistentHash: { httpHeaderName: 'x-user' } } }), []);
    assert.deepEqual(pathsOf({ loadBalancer: { consistentHash: {} } }), ['loadBalancer.consistentHash']);
    assert.deepEqual(pathsOf({ loadBalancer: { consistentHash: { httpHeaderName: 'x', useSourceIp: true } } }), ['loadBalancer.consistentHash']);
    assert.deepEqual(pathsOf({ loadBalancer: { consistentHash: { httpCookie: { ttl: '1h' } } } }), ['loadBalancer.consistentHash.httpCookie.name']);
    assert.deepEqual(pathsOf({ loadBalancer: { consistentHash: { useSourceIp: true, maglev: { tableSize: 250 } } } }), [
      'loadBalancer.consistentHash.maglev.tableSize',
    ]);
    assert.deepEqual(pathsOf({ loadBalancer: { simple: 'RANDOM', consistentHash: { useSourceIp: true } } }), ['loadBalancer']);
  });

  it('distributes all of the traffic, once, and does not fail over at the same time', () => {
    const distribute = (...to: Record<string, number>[]) => ({
      loadBalancer: { localityLbSetting: { distribute: to.map((weights) => ({ from: 'eu', to: weights })) } },
    });
    assert.deepEqual(pathsOf(distribute({ eu: 80, us: 20 })), []);
    assert.deepEqual(pathsOf(distribute({ eu: 80, us: 30 })), ['loadBalancer.localityLbSetting.distribute[0].to']);
    assert.deepEqual(pathsOf(distribute({ eu: 100 }, { us: 100 })), ['loadBalancer.localityLbSetting.distribute[1].from']);
    const failover = { from: 'eu', to: 'us' };
    assert.deepEqual(pathsOf({ loadBalancer: { localityLbSetting: { distribute: [{ from: 'eu', to: { eu: 100 } }], failover: [failover] } } }), [
      'loadBalancer.localityLbSetting',
    ]);
    assert.deepEqual(
      pathsOf({
        loadBalancer: {
          localityLbSetting: {
            failover: [
              { from: 'eu/1', to: 'us' },
              { from: 'us', to: 'us' },
            ],
          },
        },
      }),
      ['loadBalancer.localityLbSetting.failover[0].from', 'loadBalancer.localityLbSetting.failover[1]'],
    );
  });

  it('warms up and ejects by numbers that can be kept', () => {
    assert.deepEqual(pathsOf({ loadBalancer: { simple: 'ROUND_ROBIN', warmup: { duration: '30s', minimumPercent: 5, aggression: 1.5 } } }), []);
    assert.deepEqual(pathsOf({ loadBalancer: { warmup: { aggression: 0.5 } } }), ['loadBalancer.warmup.duration', 'loadBalancer.warmup.aggression']);
    assert.deepEqual(pathsOf({ outlierDetection: { interval: '10', maxEjectionPercent: 120, consecutiveLocalOriginFailures: 3 } }), [
      'outlierDetection.interval',
      'outlierDetection.maxEjectionPercent',
      'outlierDetection.consecutiveLocalOriginFailures',
    ]);
  });
});
