import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { decodeObject } from '../decode-object.ts';

const pathsOf = (apiVersion: string, kind: string, rest: Record<string, unknown>) => {
  const decoded = decodeObject({ apiVersion, kind, metadata: { name: 'x' }, ...rest });
  return 'problems' in decoded ? decoded.problems.map(({ path }) => path) : [];
};
const route = (rule: unknown) => pathsOf('gateway.networking.k8s.io/v1', 'HTTPRoute', { spec: { rules: [rule] } });
const slice = (port: number) =>
  pathsOf('discovery.k8s.io/v1', 'EndpointSlice', { addressType: 'IPv4', ports: [{ name: 'http', port }], endpoints: [{ addresses: ['10.0.0.1'] }] });
const keepalive = (time: string) =>
  pathsOf('networking.istio.io/v1', 'DestinationRule', { spec: { host: 'x', trafficPolicy: { connectionPool: { tcp: { tcpKeepalive: { time } } } } } });

describe('Values that a proxy would refuse', () => {
  it('are refused as the port of an EndpointSlice', () => {
    for (const port of [-1, 1.5, 65_536, 4_294_967_296]) assert.deepEqual(slice(port), ['ports[0].port'], String(port));
    assert.deepEqual(slice(65_535), []);
  });

  it('are refused as the time of a keepalive above 4294967295 seconds', () => {
    assert.deepEqual(keepalive('315576000000s'), ['spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.time']);
    assert.deepEqual(keepalive('4294967295s'), []);
  });

  it('are refused as the name of a header in every header modifier', () => {
    for (const name of ['', ' ', '/', '\u0000', 'a b', '10.0.0.1/99']) {
      const modifier = { set: [{ name, value: 'v' }], add: [{ name, value: 'v' }], remove: [name] };
      const filters = [{ type: 'RequestHeaderModifier', requestHeaderModifier: modifier }];
      assert.ok(route({ filters }).includes('spec.rules[0].filters[0].requestHeaderModifier.set[0].name'), JSON.stringify(name));
      assert.ok(route({ filters }).includes('spec.rules[0].filters[0].requestHeaderModifier.remove[0]'), JSON.stringify(name));
      const response = [{ type: 'ResponseHeaderModifier', responseHeaderModifier: modifier }];
      assert.ok(route({ backendRefs: [{ name: 'a', port: 80, filters: response }] }).some((path) => path.includes('backendRefs[0].filters[0]')));
    }
  });

  it('are refused as regular expressions and as paths that are too long', () => {
    for (const field of ['headers', 'queryParams'])
      assert.deepEqual(route({ matches: [{ [field]: [{ type: 'RegularExpression', name: 'q', value: '(' }] }] }), [
        `spec.rules[0].matches[0].${field}[0].value`,
      ]);
    assert.deepEqual(route({ matches: [{ path: { type: 'RegularExpression', value: '/(' } }] }), ['spec.rules[0].matches[0].path.value']);
    assert.deepEqual(route({ matches: [{ path: { type: 'Exact', value: `/${'x'.repeat(1024)}` } }] }), ['spec.rules[0].matches[0].path.value']);
    const rewrite = [{ type: 'URLRewrite', urlRewrite: { path: { type: 'ReplacePrefixMatch', replacePrefixMatch: '/b' } } }];
    const replaced = (value: string) => route({ matches: [{ path: { type: 'PathPrefix', value } }], filters: rewrite });
    assert.deepEqual(replaced(`/${'.'.repeat(600)}`), ['spec.rules[0].matches[0].path.value']);
    assert.deepEqual(replaced(`/${'x'.repeat(900)}`), []);
  });
});
