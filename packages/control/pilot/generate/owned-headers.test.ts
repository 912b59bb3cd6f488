import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { fromBinary } from '@bufbuild/protobuf';
import { decodeYaml, groupOf } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { OwnedHeadersSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { SqliteStore } from '../../galley/sqlite-store.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { SnapshotBuilder } from '../snapshot-builder.ts';
import { ownedHeadersFilter } from './owned-headers.ts';

const document = (kind: string, namespace: string, name: string, rest: string, version = 'networking.istio.io/v1') =>
  `---\napiVersion: ${version}\nkind: ${kind}\nmetadata: { name: ${name}, namespace: ${namespace} }\n${rest}\n`;
const own = 'mizzen.dev/v1alpha1';
const gatewayOf = (namespace: string, app: string) => [
  `---\napiVersion: ${own}\nkind: Workload\nmetadata: { name: ${app}, namespace: ${namespace}, labels: { app: ${app} } }\nspec: { serviceAccount: ${app}, gateway: true }\n`,
  document('Gateway', namespace, app, `spec: { selector: { app: ${app} }, servers: [{ port: { number: 80, name: http, protocol: HTTP }, hosts: ['*'] }] }`),
];
const api = (namespace: string, name: string, gateway: string, policies: string) =>
  document(
    'Api',
    namespace,
    name,
    `spec: { hosts: [${name}.test], placement: edge, gateways: [${gateway}], upstream: { service: orders.shop.svc.cluster.local }, policies: { ${policies} } }`,
    own,
  );
const route = (namespace: string, name: string, gateway: string) =>
  document(
    'VirtualService',
    namespace,
    name,
    `spec: { hosts: [${name}.test], gateways: [${gateway}], http: [{ route: [{ destination: { host: orders.shop.svc.cluster.local } }] }] }`,
  );
const jwt = 'authentication: { jwt: [{ issuer: "https://i.test", jwksUri: "https://i.test/keys", claimToHeader: { email: X-User-Email } }] }';

const yaml = [
  document('Service', 'shop', 'orders', 'spec: { selector: { app: orders }, ports: [{ name: http, port: 80 }] }', 'v1'),
  document('Service', 'shop', 'stock', 'spec: { selector: { app: stock }, ports: [{ name: http, port: 80 }] }', 'v1'),
  ...['orders', 'orders-v2', 'stock'].map((name, i) =>
    document(
      'WorkloadEntry',
      'shop',
      name,
      `spec: { address: 10.0.0.${i + 1}, serviceAccount: ${name}, labels: { app: ${name.replace('-v2', '')} }, ports: { http: 8080 } }`,
    ),
  ),
  ...['istio-system', 'shop', 'edge', 'evil', 'listed', 'quiet'].flatMap((namespace) => gatewayOf(namespace, `${namespace}-gw`)),
  // Of the owner: at its own gateway, and at one of another namespace.
  api('shop', 'own', 'shop-gw', jwt),
  route('shop', 'through-edge', 'edge/edge-gw'),
  api('shop', 'plain', 'edge/edge-gw', 'rateLimits: [{ requests: 1, per: 1s }]'),
  // Of a namespace that may route to others, and of one that may not.
  api(
    'listed',
    'listed',
    'listed-gw',
    'login: { issuer: "https://i.test", clientId: a, cookieSecret: { name: login, key: cookie }, claimToHeader: { name: x-name } }',
  ),
  document('Secret', 'listed', 'login', `data: { cookie: ${Buffer.from('c'.repeat(32)).toString('base64')} }`, 'v1'),
  api('evil', 'evil', 'evil-gw', jwt.replace('X-User-Email', 'x-evil')),
  route('evil', 'evil-route', 'evil-gw'),
  document('MessageRoute', 'shop', 'canary', 'spec: { pubsub: p, topic: t, subscriber: { service: orders }, routes: [{ subset: v2, weight: 10 }] }', own),
  document('ConfigMap', 'mizzen-system', 'mizzen', 'data: { crossNamespaceRoutes: OWNERS, routeNamespaces: listed }', 'v1'),
].join('');

describe('owned headers', () => {
  let snapshot: MeshSnapshot;
  before(async () => {
    const store = new SqliteStore(':memory:');
    const { resources, problems } = decodeYaml(yaml, 'mesh.yaml');
    assert.deepEqual(problems, []);
    for (const { resource, origin } of resources) {
      const { name, namespace = 'default' } = resource.metadata;
      await store.put({ group: groupOf(resource.apiVersion), kind: resource.kind, namespace, name }, resource, origin, 'absent');
    }
    const keySets = { keysOf: () => undefined, problemOf: () => undefined, want: () => {} };
    snapshot = await new SnapshotBuilder('cluster.local', silentLogger, undefined, undefined, keySets).build(store);
  });

  const rulesFor = (serviceAccount: string, address: string, namespace = 'shop') => {
    const { configType } = ownedHeadersFilter({ namespace, serviceAccount, address } as ProxyView, snapshot);
    assert.ok(configType?.case === 'typedConfig');
    const { gateways, authenticators, messengers, claimHeaders } = fromBinary(OwnedHeadersSchema, configType.value.value!);
    const short = (ids: readonly string[]) => ids.map((id) => id.replace('spiffe://cluster.local/ns/', '').replace('/sa/', '/'));
    return { gateways: short(gateways), authenticators: short(authenticators), messengers: short(messengers), claimHeaders };
  };

  it('are for gateways that the owner of the service, or a namespace that may route to it, lets in', () => {
    assert.deepEqual(rulesFor('orders', '10.0.0.1'), {
      gateways: ['edge/edge-gw', 'istio-system/istio-system-gw', 'listed/listed-gw', 'shop/shop-gw'],
      authenticators: ['listed/listed-gw', 'shop/shop-gw'],
      messengers: ['shop/orders', 'shop/orders-v2'],
      claimHeaders: ['x-name', 'x-user-email'],
    });
  });

  it('are not for gateways that lead to another service, nor for a workload that has the address of this one', () => {
    const near = { gateways: ['istio-system/istio-system-gw', 'shop/shop-gw'], authenticators: [], messengers: [], claimHeaders: [] };
    assert.deepEqual(rulesFor('stock', '10.0.0.3'), near);
    assert.deepEqual(rulesFor('stock', '10.0.0.1'), near);
    assert.deepEqual(rulesFor('orders', '10.0.0.1', 'evil').authenticators, []);
  });
});
