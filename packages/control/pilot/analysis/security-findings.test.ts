import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { decodeYaml, groupOf } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { SqliteStore } from '../../galley/sqlite-store.ts';
import { viewOf } from '../proxy-view.ts';
import { SnapshotBuilder } from '../snapshot-builder.ts';
import { apiConsumerFindings } from './api-consumers.ts';
import { notEnforced } from './not-implemented.ts';

const object = (apiVersion: string, kind: string, name: string, spec: string, namespace = 'default') =>
  `---\napiVersion: ${apiVersion}\nkind: ${kind}\nmetadata: { name: ${name}, namespace: ${namespace} }\nspec: ${spec}\n`;
const security = (kind: string, name: string, spec: string) => object('security.istio.io/v1', kind, name, spec);
const networking = (kind: string, name: string, spec: string) => object('networking.istio.io/v1', kind, name, spec);
const shop =
  object('v1', 'Service', 'shop', '{ selector: { app: shop }, ports: [{ name: http, port: 80, targetPort: 8080 }] }') +
  networking('WorkloadEntry', 'shop', '{ address: 10.0.0.1, labels: { app: shop } }');

async function snapshotOf(yaml: string) {
  const { resources, problems } = decodeYaml(yaml, 'test.yaml');
  assert.deepEqual(problems, []);
  const store = new SqliteStore(':memory:');
  for (const [i, { resource, origin }] of resources.entries()) {
    const key = { group: groupOf(resource.apiVersion), kind: resource.kind, namespace: resource.metadata.namespace ?? '', name: resource.metadata.name };
    const creationTimestamp = `2026-01-01T00:00:${String(i).padStart(2, '0')}Z`;
    await store.put(key, { ...resource, metadata: { ...resource.metadata, creationTimestamp } }, origin, 'absent');
  }
  const keySets = { want: () => {}, keysOf: () => undefined, problemOf: () => undefined };
  const builder = new SnapshotBuilder('cluster.local', silentLogger, undefined, undefined, keySets as never);
  const snapshot = await builder.build(store);
  await store.close();
  return { snapshot, findings: builder.findings };
}
const findingsOf = async (yaml: string, code: string) =>
  (await snapshotOf(yaml)).findings.filter((finding) => finding.code === code).map(({ object: name, path }) => `${name} ${path}`);

describe('Findings about security', () => {
  it('name a policy of which an older one takes the place', async () => {
    const strict = (name: string, selector = '') => security('PeerAuthentication', name, `{ ${selector} mtls: { mode: STRICT } }`);
    const rule = (name: string, host: string) => networking('DestinationRule', name, `{ host: ${host}, trafficPolicy: { tls: { mode: ISTIO_MUTUAL } } }`);
    const yaml =
      shop +
      strict('a') +
      strict('b') +
      strict('c', 'selector: { matchLabels: { app: shop } },') +
      strict('d', 'selector: { matchLabels: { app: shop } },') +
      rule('e', 'shop') +
      rule('f', 'shop.default.svc.cluster.local') +
      networking('DestinationRule', 'g', '{ host: shop, subsets: [{ name: v1, labels: { v: "1" } }] }');
    assert.deepEqual(await findingsOf(yaml, 'MZ0024'), [
      'PeerAuthentication default/b spec',
      'PeerAuthentication default/d spec',
      'DestinationRule default/f spec.trafficPolicy',
    ]);
  });

  it('name a BackendTLSPolicy by which no connection is encrypted', async () => {
    const policy = (name: string, target: string) =>
      object(
        'gateway.networking.k8s.io/v1',
        'BackendTLSPolicy',
        name,
        `{ targetRefs: [{ group: "", kind: Service, ${target} }], validation: { hostname: a.example, wellKnownCACertificates: System } }`,
      );
    assert.deepEqual(await findingsOf(shop + policy('good', 'name: shop') + policy('port', 'name: shop, sectionName: http'), 'MZ0024'), []);
    assert.deepEqual(
      await findingsOf(
        shop + policy('a', 'name: none') + policy('b', 'name: shop, sectionName: none') + policy('c', 'name: shop') + policy('d', 'name: shop'),
        'MZ0024',
      ),
      ['a', 'b', 'd'].map((name) => `BackendTLSPolicy default/${name} spec.targetRefs[0]`),
    );
    const plain = networking('DestinationRule', 'shop', '{ host: shop, trafficPolicy: { tls: { mode: DISABLE } } }');
    assert.deepEqual(await findingsOf(shop + policy('a', 'name: shop') + plain, 'MZ0024'), ['BackendTLSPolicy default/a spec.targetRefs[0]']);
  });

  it('name a port that is the Service’s where the workload’s is meant', async () => {
    const deny = (port: string) =>
      security('AuthorizationPolicy', `deny-${port}`, `{ action: DENY, rules: [{ to: [{ operation: { ports: ["${port}"] } }] }] }`) +
      security('AuthorizationPolicy', `when-${port}`, `{ action: DENY, rules: [{ when: [{ key: destination.port, values: ["${port}"] }] }] }`) +
      security('PeerAuthentication', `peer-${port}`, `{ selector: { matchLabels: { app: shop } }, portLevelMtls: { ${port}: { mode: STRICT } } }`);
    assert.deepEqual(await findingsOf(shop + deny('8080'), 'MZ0015'), []);
    assert.deepEqual(await findingsOf(shop + deny('9999'), 'MZ0015'), []);
    assert.deepEqual(await findingsOf(shop + deny('80'), 'MZ0015'), [
      'AuthorizationPolicy default/deny-80 spec.rules[0].to[0].operation.ports[0]',
      'AuthorizationPolicy default/when-80 spec.rules[0].when[0]',
      'PeerAuthentication default/peer-80 spec.portLevelMtls.80',
    ]);
  });

  it('name a Consumer that the proxies of an Api do not know, until its namespace grants them to read it', async () => {
    const consumer = (name: string, namespace: string) => object('mizzen.dev/v1alpha1', 'Consumer', name, '{}', namespace);
    const api = object(
      'mizzen.dev/v1alpha1',
      'Api',
      'orders',
      '{ hosts: [a.example], placement: edge, gateways: [edge], upstream: { service: shop, port: 80 }, policies: { authentication: { apiKey: {}, allow: { consumers: [alice, other/bob, nobody, other/none, "https://a.test#x"] } } } }',
    );
    const gateway = networking('Gateway', 'edge', '{ selector: { app: edge }, servers: [{ port: { number: 80, name: http, protocol: HTTP }, hosts: ["*"] }] }');
    const yaml = shop + consumer('alice', 'default') + consumer('bob', 'other') + gateway + api;
    const at = (i: number) => `spec.policies.authentication.allow.consumers[${i}]`;
    const edge = (namespace: string) => {
      const metadata = { NAME: 'edge', NAMESPACE: namespace, LABELS: { app: 'edge' } } as never;
      return { ...viewOf(create(NodeSchema, { id: `router~127.0.0.1~edge.${namespace}~${namespace}.svc.cluster.local`, metadata })), isProven: true };
    };
    const unknown = async (more: string, views: readonly ReturnType<typeof edge>[]) =>
      apiConsumerFindings((await snapshotOf(yaml + more)).snapshot, views).map(({ path }) => path);
    for (const views of [[], [edge('default')]]) assert.deepEqual(await unknown('', views), [at(1), at(2), at(3)]);
    // A gateway of the root namespace reads all namespaces.
    assert.deepEqual(await unknown('', [edge('istio-system')]), [at(2), at(3)]);
    const grant = object(
      'gateway.networking.k8s.io/v1beta1',
      'ReferenceGrant',
      'bob',
      '{ from: [{ group: mizzen.dev, kind: Workload, namespace: default }], to: [{ group: mizzen.dev, kind: Consumer, name: bob }] }',
      'other',
    );
    assert.deepEqual(await unknown(grant, [edge('default')]), [at(2), at(3)]);
  });
});

describe('Credentials', () => {
  it('that are found by the key or name of a newer one are not in effect, and a finding says so', async () => {
    const credential = (name: string, spec: string) => object('mizzen.dev/v1alpha1', 'Credential', name, `{ consumer: alice, ${spec} }`);
    const hash = `scrypt$16384$8$1$${Buffer.alloc(16, 1).toString('base64')}$${Buffer.alloc(32, 1).toString('base64')}`;
    const yaml =
      object('mizzen.dev/v1alpha1', 'Consumer', 'alice', '{}') +
      credential('a', `apiKey: { sha256: ${'a'.repeat(64)} }`) +
      credential('b', `apiKey: { sha256: ${'A'.repeat(64)} }`) +
      credential('c', `basic: { username: alice, passwordHash: "${hash}" }`) +
      credential('d', `basic: { username: alice, passwordHash: "${hash}" }`) +
      credential('e', `apiKey: { sha256: ${'b'.repeat(64)} }`);
    const { snapshot, findings } = await snapshotOf(yaml);
    const isAbout = findings.filter(({ code }) => code === 'MZ0004').map(({ message }) => message);
    assert.equal(isAbout.length, 2);
    assert.match(isAbout[0]!, /Credential default\/a is not in effect: the Credential "b", which is newer, has the same key/);
    assert.match(isAbout[1]!, /Credential default\/c .* has the same username/);
    assert.equal(snapshot.consumers.consumers?.[0]?.credentials?.length, 3);
  });
});

describe('Objects whose security would not be enforced', () => {
  const refusalOf = (yaml: string) => notEnforced(decodeYaml(yaml, 'test.yaml').resources[0]!.resource);
  const plugin = (spec: string) => object('extensions.istio.io/v1alpha1', 'WasmPlugin', 'x', spec);
  const sidecar = (ingress: string) => networking('Sidecar', 'x', `{ ingress: [{ port: { number: 80, protocol: HTTP, name: http }, ${ingress} }] }`);
  const policy = (more: string) =>
    object('gateway.networking.k8s.io/v1', 'BackendTLSPolicy', 'x', `{ ${more}, validation: { hostname: a.example, wellKnownCACertificates: System } }`);

  it('are refused: plugins that are never loaded, TLS of a Sidecar, and targets and options of a BackendTLSPolicy', () => {
    for (const spec of ['{ url: "oci://a", phase: AUTHN }', '{ url: "oci://a", failStrategy: FAIL_CLOSE }', '{ url: "oci://a" }'])
      assert.match(refusalOf(plugin(spec)) ?? '', /plugins are not loaded/, spec);
    assert.equal(refusalOf(plugin('{ url: "oci://a", failStrategy: FAIL_OPEN }')), undefined);
    assert.match(
      refusalOf(sidecar('tls: { mode: MUTUAL, serverCertificate: /a, privateKey: /b, caCertificates: /c }')) ?? '',
      /spec.ingress.tls is not enforced/,
    );
    assert.equal(refusalOf(sidecar('defaultEndpoint: "127.0.0.1:80"')), undefined);
    assert.match(refusalOf(policy('targetRefs: [{ group: networking.istio.io, kind: ServiceEntry, name: a }]')) ?? '', /kind ServiceEntry is not served/);
    assert.match(refusalOf(policy('targetRefs: [{ group: "", kind: Service, name: a }], options: { a: b }')) ?? '', /option "a" is not enforced/);
    assert.equal(refusalOf(policy('targetRefs: [{ group: "", kind: Service, name: a }]')), undefined);
  });
});
