import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { decodeObject } from '../decode-object.ts';
import { expansionLimits } from './expansion-limits.ts';

const many = <Value>(count: number, value: (i: number) => Value): Value[] => Array.from({ length: count }, (_, i) => value(i));
function problemsOf(apiVersion: string, kind: string, spec: unknown): string[] {
  const decoded = decodeObject({ apiVersion, kind, metadata: { name: 'x' }, spec });
  return 'problems' in decoded ? decoded.problems.map(({ path }) => path) : [];
}
const networking = (kind: string, spec: unknown) => problemsOf('networking.istio.io/v1', kind, spec);
const gatewayApi = (kind: string, spec: unknown) => problemsOf('gateway.networking.k8s.io/v1', kind, spec);
const route = [{ destination: { host: 'a' } }];

describe('The lists of one object', () => {
  it('are refused where they multiply to more than a proxy could hold', () => {
    const virtualService = (hosts: number, matches: number) =>
      networking('VirtualService', {
        hosts: many(hosts, (i) => `h${i}.example`),
        http: [{ match: many(matches, (i) => ({ uri: { exact: `/${i}` } })), route }],
      });
    assert.deepEqual(virtualService(100, expansionLimits.maxRoutes / 100), []);
    assert.deepEqual(virtualService(101, expansionLimits.maxRoutes / 100), ['spec.http']);
    const entry = (hosts: number, ports: number) =>
      networking('ServiceEntry', {
        hosts: many(hosts, (i) => `h${i}.example`),
        ports: many(ports, (i) => ({ number: i + 1, name: `p${i}`, protocol: 'TCP' })),
        resolution: 'DNS',
      });
    assert.deepEqual(entry(100, expansionLimits.maxClusters / 100), []);
    assert.deepEqual(entry(100, expansionLimits.maxClusters / 100 + 1), ['spec.ports']);
  });

  it('of the Gateway API are refused beyond what its CRDs allow', () => {
    const rule = { backendRefs: [{ name: 'a', port: 80 }] };
    assert.deepEqual(gatewayApi('HTTPRoute', { hostnames: many(16, (i) => `h${i}.example`), rules: many(16, () => rule) }), []);
    assert.deepEqual(gatewayApi('HTTPRoute', { hostnames: many(17, (i) => `h${i}.example`), rules: [rule] }), ['spec.hostnames']);
    assert.deepEqual(gatewayApi('HTTPRoute', { rules: [{ ...rule, matches: many(65, () => ({ path: { value: '/' } })) }] }), ['spec.rules[0].matches']);
    assert.deepEqual(gatewayApi('TLSRoute', { hostnames: many(1024, (i) => `h${i}.example`), rules: [rule] }), []);
    const listener = (i: number) => ({ name: `l${i}`, port: 1 + i, protocol: 'HTTP' });
    assert.deepEqual(gatewayApi('Gateway', { gatewayClassName: 'a', listeners: many(65, listener) }), ['spec.listeners']);
  });

  it('are refused with a bounded list of problems, however many entries are wrong', () => {
    const policy = (hosts: number) =>
      problemsOf('security.istio.io/v1', 'AuthorizationPolicy', { rules: [{ to: [{ operation: { hosts: many(hosts, () => '') } }] }] });
    assert.equal(policy(20_000).length, 100);
    assert.deepEqual(policy(30_000), ['spec.rules[0].to[0].operation.hosts']);
    assert.deepEqual(networking('VirtualService', { hosts: many(30_000, () => '_'), http: [{ route }] }), ['spec.hosts']);
    // Each list is within its limit, and all of them together have more problems than an argument list holds.
    const lists = Object.fromEntries(
      ['hosts', 'notHosts', 'methods', 'notMethods', 'paths', 'notPaths', 'ports', 'notPorts'].map((name) => [name, many(20_000, () => '')]),
    );
    assert.deepEqual(problemsOf('security.istio.io/v1', 'AuthorizationPolicy', { rules: [{ to: [{ operation: lists }] }] }), ['spec']);
  });
});
