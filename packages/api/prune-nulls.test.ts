import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { decodeObject } from './decode-object.ts';

const routeOf = (spec: unknown) => decodeObject({ apiVersion: 'gateway.networking.k8s.io/v1', kind: 'HTTPRoute', metadata: { name: 'x', labels: null }, spec });

describe('Nulls in objects', () => {
  it('are dropped where a field is not nullable, as Kubernetes drops them', () => {
    const decoded = routeOf({
      rules: [{ filters: [{ type: 'RequestHeaderModifier', requestHeaderModifier: { set: [{ name: 'x', value: 'z' }], add: null } }] }],
    });
    assert.ok('resource' in decoded, JSON.stringify(decoded));
    assert.deepEqual(decoded.resource.spec, {
      rules: [{ filters: [{ type: 'RequestHeaderModifier', requestHeaderModifier: { set: [{ name: 'x', value: 'z' }] } }] }],
    });
    assert.equal(decoded.resource.metadata.labels, undefined);
  });

  it('are refused in a list', () => {
    const decoded = routeOf({ rules: [null] });
    assert.ok('problems' in decoded);
    assert.match(decoded.problems[0]!.message, /must be an object/);
  });

  it('do not stand for a required field', () => {
    const decoded = decodeObject({ apiVersion: 'networking.istio.io/v1', kind: 'DestinationRule', metadata: { name: 'x' }, spec: { host: null } });
    assert.ok('problems' in decoded);
  });
});

const ruleOf = (trafficPolicy: unknown) =>
  decodeObject({ apiVersion: 'networking.istio.io/v1', kind: 'DestinationRule', metadata: { name: 'x' }, spec: { host: 'x', trafficPolicy } });

describe('Numbers and durations that xDS cannot hold', () => {
  const cases: Readonly<Record<string, unknown>> = {
    'negative maxConnections': { connectionPool: { tcp: { maxConnections: -1 } } },
    'negative http1MaxPendingRequests': { connectionPool: { http: { http1MaxPendingRequests: -1 } } },
    'fractional maxRetries': { connectionPool: { http: { maxRetries: 1.5 } } },
    'huge http2MaxRequests': { connectionPool: { http: { http2MaxRequests: 1e15 } } },
    'negative keepalive probes': { connectionPool: { tcp: { tcpKeepalive: { probes: -3 } } } },
    'days as a duration': { connectionPool: { tcp: { idleTimeout: '1d' } } },
    'negative duration': { connectionPool: { tcp: { tcpKeepalive: { time: '-1s' } } } },
    'duration above the maximum of protobuf': { connectionPool: { http: { idleTimeout: '999999999999999s' } } },
    'percentage above 100': { outlierDetection: { failurePercentageThreshold: 101 } },
  };
  for (const [name, policy] of Object.entries(cases))
    it(`are refused: ${name}`, () => {
      const decoded = ruleOf(policy);
      assert.ok('problems' in decoded, name);
      assert.match(decoded.problems[0]!.path, /^spec\.trafficPolicy\./);
    });

  it('are accepted within their range', () => {
    assert.ok('resource' in ruleOf({ connectionPool: { tcp: { maxConnections: 0, idleTimeout: '0s' }, http: { http2MaxRequests: 2_147_483_647 } } }));
  });
});

describe('A Gateway server that verifies clients', () => {
  for (const mode of ['MUTUAL', 'OPTIONAL_MUTUAL'])
    it(`is refused in mode ${mode} without roots to verify them by`, () => {
      const tls = { mode, serverCertificate: '/a', privateKey: '/b' };
      const servers = [{ port: { number: 443, name: 'https', protocol: 'HTTPS' }, hosts: ['*'], tls }];
      const decoded = decodeObject({ apiVersion: 'networking.istio.io/v1', kind: 'Gateway', metadata: { name: 'x' }, spec: { servers } });
      assert.ok('problems' in decoded);
      assert.equal(decoded.problems[0]!.path, 'spec.servers[0].tls.caCertificates');
    });
});
