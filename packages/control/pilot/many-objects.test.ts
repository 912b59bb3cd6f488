import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { decodeObject, groupOf, type Resource } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { keyText, type StoredResource } from '../galley/config-store.ts';
import { policyTargetStates } from './analysis/policy-targets.ts';
import { destinationRuleFor } from './generate/destination-policy.ts';
import { generationLimits } from './generate/generation-budget.ts';
import { peerAuthenticationMode } from './generate/peer-authentication.ts';
import { resourcesFor } from './generate/resources.ts';
import { virtualServiceFor } from './generate/virtual-service-routes.ts';
import { viewOf } from './proxy-view.ts';
import type { ConfigReader } from './quarantine.ts';
import type { MeshSnapshot } from './snapshot.ts';
import { SnapshotBuilder } from './snapshot-builder.ts';

const object = (apiVersion: string, kind: string, name: string, spec: unknown) => ({ apiVersion, kind, metadata: { name, namespace: 'default' }, spec });
const networking = (kind: string, name: string, spec: unknown) => object('networking.istio.io/v1', kind, name, spec);
const security = (kind: string, name: string, spec: unknown) => object('security.istio.io/v1', kind, name, spec);
const many = <Value>(count: number, value: (i: number) => Value): Value[] => Array.from({ length: count }, (_, i) => value(i));

function readerOf(objects: readonly unknown[]): ConfigReader {
  const stored = objects.map((one, i): StoredResource => {
    const decoded = decodeObject(one);
    assert.ok('resource' in decoded, JSON.stringify(decoded));
    const { resource } = decoded;
    const key = { group: groupOf(resource.apiVersion), kind: resource.kind, namespace: resource.metadata.namespace ?? '', name: resource.metadata.name };
    const dated = { ...resource, metadata: { ...resource.metadata, creationTimestamp: '2026-01-01T00:00:00Z', generation: 1 } } as Resource;
    return { key, resource: dated, origin: { source: 'api', name: 'test' }, revision: i + 1 };
  });
  const byKind = Map.groupBy(stored, ({ key }) => `${key.group}/${key.kind}`);
  const byKey = new Map(stored.map((one) => [keyText(one.key), one]));
  return {
    revision: () => stored.length,
    get: async (key) => byKey.get(keyText(key)),
    list: async (group, kind) => ({ items: byKind.get(`${group}/${kind}`) ?? [], revision: stored.length }),
  };
}
const keySets = { want: () => {}, keysOf: () => undefined, problemOf: () => undefined };
const build = (reader: ConfigReader) => new SnapshotBuilder('cluster.local', silentLogger, undefined, undefined, keySets as never).build(reader);

const service = (i: number) => object('v1', 'Service', `s${i}`, { selector: { app: `a${i}` }, ports: [{ name: 'http', port: 80, targetPort: 8080 }] });
const entry = (i: number) => networking('WorkloadEntry', `w${i}`, { address: `10.0.${i >> 8}.${i & 255}`, labels: { app: `a${i}`, kind: 'w' } });
const to = (host: string, match?: unknown) => ({ ...(match === undefined ? {} : { match: [match] }), route: [{ destination: { host } }] });
const edge = networking('Gateway', 'edge', { selector: { app: 'edge' }, servers: [{ port: { number: 80, name: 'http', protocol: 'HTTP' }, hosts: ['*'] }] });

/** Objects of which users may write as many as they like, for a mesh of a size. */
const meshes: Readonly<Record<string, (count: number) => unknown[]>> = {
  'services and workloads': (count) => [...many(count, service), ...many(count, entry)],
  'services and endpoint slices': (count) => [
    ...many(count, (i) => object('v1', 'Service', `s${i}`, { ports: [{ name: 'http', port: 80 }] })),
    ...many(count, (i) => ({
      ...{ apiVersion: 'discovery.k8s.io/v1', kind: 'EndpointSlice', addressType: 'IPv4', endpoints: [{ addresses: ['10.0.0.1'] }] },
      metadata: { name: `x${i}`, namespace: 'default', labels: { 'kubernetes.io/service-name': `s${i}` } },
      ports: [{ name: 'http', port: 80 }],
    })),
  ],
  'VirtualServices for hosts of their own': (count) => [
    ...many(count, service),
    ...many(count, (i) => networking('VirtualService', `v${i}`, { hosts: [`s${i}`], http: [to(`s${i}`)] })),
  ],
  'VirtualServices to hosts that do not exist': (count) =>
    many(count, (i) => networking('VirtualService', `v${i}`, { hosts: [`u${i}`], gateways: [`g${i}`], http: [to(`u${i}`)] })),
  'a VirtualService with many delegates': (count) => [
    service(0),
    ...many(count, (i) => networking('VirtualService', `d${i}`, { http: [to('s0')] })),
    networking('VirtualService', 'root', { hosts: ['s0'], http: many(count, (i) => ({ match: [{ uri: { prefix: `/${i}` } }], delegate: { name: `d${i}` } })) }),
  ],
  DestinationRules: (count) => [...many(count, service), ...many(count, (i) => networking('DestinationRule', `d${i}`, { host: `s${i}` }))],
  'policies that select workloads': (count) => [
    ...many(count, service),
    ...many(count, entry),
    ...many(count, (i) =>
      security('AuthorizationPolicy', `p${i}`, {
        ...{ selector: { matchLabels: { kind: 'w', app: `a${i}` } }, action: 'DENY' },
        rules: [{ to: [{ operation: { paths: ['/x'], ports: ['80'] } }] }],
      }),
    ),
    ...many(count, (i) => security('PeerAuthentication', `p${i}`, { selector: { matchLabels: { app: `none${i}` } }, mtls: { mode: 'STRICT' } })),
  ],
};

/** The less of two, in milliseconds of this process’s CPU: other processes of the machine do not count. */
async function cost(work: () => unknown): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 2; i++) {
    const before = process.cpuUsage();
    await work();
    const { user, system } = process.cpuUsage(before);
    least = Math.min(least, (user + system) / 1_000);
  }
  return least;
}
/** Four times the objects: a cost in proportion is 4 times as high, the square 16 times. */
const [few, more, mostFactor] = [150, 600, 9];

describe('The cost of many objects', () => {
  for (const [what, make] of Object.entries(meshes))
    it(`grows in proportion to their number for the analysis of ${what}`, async () => {
      const [small, large] = [readerOf(make(few)), readerOf(make(more))];
      const [a, b] = [await cost(() => build(small)), await cost(() => build(large))];
      assert.ok(b < mostFactor * a + 30, `${few} cost ${a.toFixed(1)} ms, ${more} cost ${b.toFixed(1)} ms`);
    });

  it('does not depend on other hosts and workloads when the rule, the routes or the mode of one is looked for', async () => {
    const make = (count: number) => [
      ...many(count, service),
      ...many(count, entry),
      ...many(count, (i) => networking('DestinationRule', `d${i}`, { host: `s${i}` })),
      ...many(count, (i) => networking('VirtualService', `v${i}`, { hosts: [`s${i}`], http: [to(`s${i}`)] })),
      ...many(count, (i) => security('PeerAuthentication', `p${i}`, { selector: { matchLabels: { app: `a${i}` } }, mtls: { mode: 'STRICT' } })),
    ];
    const look = (snapshot: MeshSnapshot) => () => {
      for (const one of snapshot.services) {
        const viewer = { namespace: 'default', labels: {} };
        assert.ok(destinationRuleFor(one, viewer, snapshot) !== undefined);
        assert.ok(virtualServiceFor(one.hostname, 'default', 'mesh', snapshot) !== undefined);
        for (const { namespace, labels } of one.instances) assert.equal(peerAuthenticationMode(namespace, labels, 8080, snapshot), 'STRICT');
      }
    };
    const [small, large] = [await build(readerOf(make(few))), await build(readerOf(make(more)))];
    const [a, b] = [await cost(look(small)), await cost(look(large))];
    assert.ok(b < mostFactor * a + 20, `${few} cost ${a.toFixed(1)} ms, ${more} cost ${b.toFixed(1)} ms`);
  });

  it('of 300 DestinationRules for one host is not their square for each subset', async () => {
    const objects = [service(0), ...many(300, (i) => networking('DestinationRule', `d${i}`, { host: 's0', subsets: [{ name: `v${i}`, labels: { v: '1' } }] }))];
    const snapshot = await build(readerOf(objects));
    const [one] = snapshot.services;
    const viewer = { namespace: 'default', labels: {} };
    const rule = destinationRuleFor(one!, viewer, snapshot);
    assert.equal(rule?.spec.subsets?.length, 300);
    assert.equal(destinationRuleFor(one!, viewer, snapshot), rule, 'merged once');
  });

  it('of policies with targets grows in proportion to their number', async () => {
    const make = (count: number) =>
      many(count, (i) =>
        security('AuthorizationPolicy', `p${i}`, { targetRefs: [{ group: 'gateway.networking.k8s.io', kind: 'Gateway', name: `g${i}` }], rules: [{}] }),
      );
    const [small, large] = [await build(readerOf(make(few))), await build(readerOf(make(more)))];
    const [a, b] = [await cost(() => policyTargetStates(small)), await cost(() => policyTargetStates(large))];
    assert.ok(b < mostFactor * a + 10, `${few} cost ${a.toFixed(1)} ms, ${more} cost ${b.toFixed(1)} ms`);
  });
});

describe('Objects that multiply each other', () => {
  const metadata = { NAME: 'edge', NAMESPACE: 'default', LABELS: { app: 'edge' } } as never;
  const view = { ...viewOf(create(NodeSchema, { id: 'router~127.0.0.1~edge.default~default.svc.cluster.local', metadata })), isProven: true };
  const generate = (type: 'cluster' | 'route', snapshot: MeshSnapshot) => () =>
    resourcesFor(type, new Set(['http.80']), view, snapshot, { own: '', others: new Map(), crl: undefined } as never, [], () => {});

  it('are refused before anything is made of them: hosts of one VirtualService and routes of its delegates', async () => {
    const routes = many(500, (i) => to('s0', { uri: { exact: `/${i}` } }));
    const leaf = networking('VirtualService', 'leaf', { http: routes });
    const root = networking('VirtualService', 'root', {
      hosts: ['s0'],
      http: many(200, (i) => ({ match: [{ uri: { prefix: '/' } }], delegate: { name: 'leaf' }, name: `r${i}` })),
    });
    await assert.rejects(
      build(readerOf([service(0), leaf, root])),
      new RegExp(`more than ${generationLimits.maxDelegatedMatches} matches of the VirtualService default/root`),
    );
  });

  it('are refused before anything is made of them: servers of a Gateway and routes of the VirtualServices bound to it', async () => {
    const servers = many(200, (i) => ({ port: { number: 1_000 + i, name: `http${i}`, protocol: 'HTTP' }, hosts: ['*'] }));
    const snapshot = await build(
      readerOf([
        ...[service(0), networking('Gateway', 'edge', { selector: { app: 'edge' }, servers })],
        networking('VirtualService', 'v', { hosts: ['*'], gateways: ['edge'], http: many(1_000, (i) => to('s0', { uri: { exact: `/${i}` } })) }),
      ]),
    );
    assert.throws(generate('route', snapshot), new RegExp(`more than ${generationLimits.maxRoutes} routes would be generated`));
  });

  it('are refused before anything is made of them: hosts of ServiceEntries and subsets of a DestinationRule for all of them', async () => {
    const hosts = many(1_000, (i) => `h${i}.example`);
    const ports = [{ number: 443, name: 'tls', protocol: 'TLS' }];
    const rule = networking('DestinationRule', 'd', { host: '*.example', subsets: many(200, (i) => ({ name: `v${i}`, labels: { v: `${i}` } })) });
    // Of the first hosts too many clusters would come; the rest is not looked at.
    const snapshot = await build(
      readerOf([
        networking('ServiceEntry', 'e', { hosts, ports, resolution: 'STATIC', endpoints: [], workloadSelector: { labels: { app: 'none' } } }),
        rule,
        edge,
      ]),
    );
    const before = process.cpuUsage();
    assert.throws(generate('cluster', snapshot), new RegExp(`more than ${generationLimits.maxClusters} clusters would be generated`));
    assert.ok(process.cpuUsage(before).user < 1_000_000, 'counted before it is made');
  });
});
