import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { create, fromBinary, type JsonObject } from '@bufbuild/protobuf';
import { decodeYaml, groupOf } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { discoveryTypes } from '@mizzen/envoy-api';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import type { TrustBundle } from '../../citadel/trust-bundles.ts';
import { SqliteStore } from '../../galley/sqlite-store.ts';
import { type ProxyView, viewOf } from '../proxy-view.ts';
import { readBindingObjects, WorkloadBindings } from '../registry/workload-bindings.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { SnapshotBuilder } from '../snapshot-builder.ts';
import { proveIdentity, UnprovenIdentity } from '../xds/proven-identity.ts';
import { resourcesFor } from './resources.ts';

const marked = (mark: string) => `MARK-${mark}-${'.'.repeat(32)}`;
const secret = (namespace: string, name: string, keys: readonly string[]) =>
  `---\napiVersion: v1\nkind: Secret\nmetadata: { name: ${name}, namespace: ${namespace} }\ndata: { ${keys
    .map((key) => `${key}: ${Buffer.from(marked(`${namespace}/${name}/${key}`)).toString('base64')}`)
    .join(', ')} }\n`;
const workload = (namespace: string, name: string, spec: string) =>
  `---\napiVersion: mizzen.dev/v1alpha1\nkind: Workload\nmetadata: { name: ${name}, namespace: ${namespace}, labels: { app: ${name} } }\nspec: { serviceAccount: ${name}, ${spec} }\n`;
const gateway = (namespace: string, name: string, app: string, credential: string) =>
  `---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: ${name}, namespace: ${namespace} }\nspec:\n  selector: { app: ${app} }\n  servers: [{ port: { number: 8443, name: https, protocol: HTTPS }, hosts: ['*'], tls: { mode: SIMPLE, credentialName: ${credential} } }]\n`;
const api = (namespace: string, name: string, spec: string) =>
  `---\napiVersion: mizzen.dev/v1alpha1\nkind: Api\nmetadata: { name: ${name}, namespace: ${namespace} }\nspec:\n  hosts: [${name}.test]\n  upstream: { service: orders }\n${spec}`;
const consumer = (namespace: string, name: string) =>
  `---\napiVersion: mizzen.dev/v1alpha1\nkind: Consumer\nmetadata: { name: ${name}, namespace: ${namespace} }\nspec: {}\n---\napiVersion: mizzen.dev/v1alpha1\nkind: Credential\nmetadata: { name: ${name}, namespace: ${namespace} }\nspec: { consumer: ${name}, hmac: { keyId: ${namespace}-${name}, secret: { name: hmac-${name}, key: key } } }\n${secret(namespace, `hmac-${name}`, ['key'])}`;
const component = (namespace: string, name: string, scopes: string) =>
  `---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: { name: ${name}, namespace: ${namespace} }\nscopes: ${scopes}\nspec:\n  type: pubsub.redis\n  version: v1\n  metadata: [{ name: redisHost, value: 'redis:6379' }, { name: redisPassword, secretKeyRef: { name: ${name}, key: password } }]\n${secret(namespace, name, ['password'])}`;

const yaml = [
  ...['default', 'other'].flatMap((namespace) => [
    `---\napiVersion: v1\nkind: Service\nmetadata: { name: orders, namespace: ${namespace} }\nspec: { selector: { app: orders }, ports: [{ name: http, port: 9080 }] }\n`,
    workload(namespace, 'orders', 'command: [x], messaging: { appId: orders }'),
    workload(namespace, 'thief', 'command: [x], messaging: { appId: thief }'),
    workload(namespace, 'edge', 'gateway: true'),
    gateway(namespace, 'edge', 'edge', 'edge-cert'),
    secret(namespace, 'edge-cert', ['tls.crt', 'tls.key', 'ca.crt']),
    secret(namespace, 'unused', ['tls.crt', 'tls.key', 'ca.crt', 'key', 'password']),
    // Where the workload has registered itself.
    `---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: { name: orders, namespace: ${namespace}, annotations: { mizzen.dev/registered-by: 'sidecar~10.0.0.9~orders.${namespace}' } }\nspec: { address: 10.0.0.9, serviceAccount: orders, labels: { app: orders }, ports: { http: 6666 } }\n`,
    component(namespace, 'bus', '[orders]'),
    consumer(namespace, 'alice'),
    api(
      namespace,
      'shop',
      '  placement: edge\n  gateways: [edge]\n  policies:\n    login: { issuer: "https://idp.test", clientId: shop, clientSecret: { name: login, key: client }, cookieSecret: { name: login, key: cookie } }\n',
    ),
    secret(namespace, 'login', ['client', 'cookie']),
    api(
      namespace,
      'partner',
      '  placement: client\n  policies:\n    credential: { header: authorization, prefix: "Bearer ", secret: { name: partner, key: token } }\n',
    ),
    secret(namespace, 'partner', ['token']),
    api(
      namespace,
      'own',
      '  placement: sidecar\n  listener: { port: 9443, tls: { credentialName: own-cert } }\n  policies:\n    authentication: { hmac: {} }\n',
    ),
    secret(namespace, 'own-cert', ['tls.crt', 'tls.key']),
    `---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: outside, namespace: ${namespace} }\nspec: { host: outside.test, workloadSelector: { matchLabels: { app: orders } }, trafficPolicy: { tls: { mode: MUTUAL, credentialName: outside } } }\n`,
    secret(namespace, 'outside', ['tls.crt', 'tls.key']),
  ]),
  // The author of an Api elsewhere names a consumer that is not theirs.
  api('other', 'taken', '  placement: edge\n  gateways: [edge]\n  policies:\n    authentication: { hmac: {}, allow: { consumers: [default/alice] } }\n'),
  workload('istio-system', 'ingress', 'gateway: true'),
  gateway('default', 'front', 'ingress', 'front-cert'),
  secret('default', 'front-cert', ['tls.crt', 'tls.key']),
  api('default', 'public', '  placement: edge\n  gateways: [front]\n  policies:\n    authentication: { hmac: {}, allow: { consumers: [other/alice] } }\n'),
].join('');

const partner = (namespace: string) => [`${namespace}/partner/token`];
const ofOrders = (namespace: string) => [
  ...partner(namespace),
  ...[`${namespace}/bus/password`, `${namespace}/hmac-alice/key`, `${namespace}/own-cert/tls.crt`, `${namespace}/own-cert/tls.key`],
  ...[`${namespace}/outside/tls.crt`, `${namespace}/outside/tls.key`],
];
const ofEdge = (namespace: string) => [
  ...[`${namespace}/edge-cert/tls.crt`, `${namespace}/edge-cert/tls.key`, `${namespace}/edge-cert/ca.crt`],
  ...[`${namespace}/login/client`, `${namespace}/login/cookie`],
];
/** By identity: the values that it is entitled to. */
const entitled: Readonly<Record<string, readonly string[]>> = {
  'default/orders/sidecar': ofOrders('default'),
  'other/orders/sidecar': ofOrders('other'),
  'default/thief/sidecar': partner('default'),
  'other/thief/sidecar': partner('other'),
  'default/unbound/sidecar': partner('default'),
  'default/edge/gateway': ofEdge('default'),
  // It authenticates for the Api `taken` of its namespace.
  'other/edge/gateway': [...ofEdge('other'), 'other/hmac-alice/key'],
  'istio-system/ingress/gateway': ['default/front-cert/tls.crt', 'default/front-cert/tls.key', 'default/hmac-alice/key', 'other/hmac-alice/key'],
};

const trustBundle: TrustBundle = { own: 'roots', others: new Map() } as unknown as TrustBundle;

describe('the secrets of a proxy', () => {
  let snapshot: MeshSnapshot;
  let bindings: WorkloadBindings;
  let marks: readonly string[];
  let names: ReadonlySet<string>;

  before(async () => {
    const store = new SqliteStore(':memory:');
    const { resources, problems } = decodeYaml(yaml, 'mesh.yaml');
    assert.deepEqual(problems, []);
    const found: string[] = [];
    const wanted: string[] = ['ROOTCA', 'default'];
    for (const { resource, origin } of resources) {
      const { name, namespace = 'default' } = resource.metadata;
      await store.put({ group: groupOf(resource.apiVersion), kind: resource.kind, namespace, name }, resource, origin, 'absent');
      if (resource.kind === 'Secret') {
        for (const key of Object.keys(resource['data'] as object)) found.push(`${namespace}/${name}/${key}`);
        for (const form of [`${namespace}/${name}`, `${namespace}/${name}-cacert`, `${namespace}/x/../${name}`]) wanted.push(`kubernetes://${form}`);
      } else if (resource.kind === 'Api')
        for (const use of ['login.client', 'login.cookie', 'credential', '', '../credential']) wanted.push(`mizzen://api/${namespace}/${name}/${use}`);
      else if (resource.kind === 'Consumer') wanted.push(`mizzen://consumers/${namespace}/${name}`, `mizzen://consumers/${namespace}`);
      else if (resource.kind === 'Component') wanted.push(`mizzen://component/${namespace}/${name}/redisPassword`);
    }
    wanted.push('mizzen://consumers', 'mizzen://consumers/', 'mizzen://', 'mizzen://api', 'mizzen://component//', 'kubernetes://');
    marks = found;
    names = new Set(wanted);
    const keySets = { keysOf: () => undefined, problemOf: () => undefined, want: () => {} };
    const builder = new SnapshotBuilder('cluster.local', silentLogger, undefined, undefined, keySets);
    snapshot = await builder.build(store);
    assert.deepEqual(
      builder.findings.filter(({ level }) => level === 'error').map(({ message }) => message),
      [],
    );
    bindings = new WorkloadBindings(await readBindingObjects(store));
  });

  /** Every view that a stream of this identity can have, whatever its node claims; `undefined`: plain text. */
  function* viewsOf(identity: { readonly namespace: string; readonly serviceAccount: string } | undefined): Generator<ProxyView> {
    const { namespace, serviceAccount } = identity ?? { namespace: 'default', serviceAccount: 'orders' };
    for (const type of ['sidecar', 'router'])
      for (const name of ['orders', 'orders-0', 'thief', 'edge', 'edge-0', 'ingress', 'unbound'])
        for (const app of ['orders', 'edge', 'ingress'])
          for (const [accepts, registers] of [
            [true, true],
            [true, false],
            [false, false],
          ]) {
            const metadata: JsonObject = {
              ...{
                NAME: name,
                NAMESPACE: namespace,
                SERVICE_ACCOUNT: serviceAccount,
                LABELS: { app },
                WORKLOAD_NAME: app,
                MIZZEN_REGISTER: registers === true,
              },
              MIZZEN_ADDRESS: '10.0.0.9',
              ...(accepts
                ? { MIZZEN_APP_ID: app, MIZZEN_INBOUND: [{ name: 'http', port: 9080, listen: '127.0.0.1:6666', app: '127.0.0.1:6667' }] }
                : { MIZZEN_OUTBOUND: '127.0.0.1:6668' }),
            };
            const claimed = viewOf(create(NodeSchema, { id: `${type}~10.0.0.9~${name}.${namespace}~${namespace}.svc.cluster.local`, metadata }));
            try {
              yield proveIdentity(claimed, identity && { ...identity, trustDomain: 'cluster.local' }, '10.0.0.9:4000', bindings).view;
            } catch (error) {
              if (!(error instanceof UnprovenIdentity)) throw error;
            }
          }
  }

  const bytesFor = (type: (typeof discoveryTypes)[number], view: ProxyView, wanted: ReadonlySet<string>): string =>
    resourcesFor(type, wanted, view, snapshot, trustBundle, [], () => {})
      .map(({ value }) => Buffer.from(value).toString('latin1'))
      .join('\n');
  const marksIn = (bytes: string): string[] => marks.filter((mark) => bytes.includes(marked(mark)));

  it('are its own and no others, over all pairs of identities and secrets, whatever a stream claims', () => {
    let pairs = 0;
    for (const namespace of ['default', 'other', 'istio-system'])
      for (const serviceAccount of ['orders', 'thief', 'edge', 'ingress', 'unbound']) {
        const received = new Map<string, Set<string>>();
        for (const view of viewsOf({ namespace, serviceAccount })) {
          const key = `${namespace}/${serviceAccount}/${view.type}`;
          const got = received.get(key) ?? new Set();
          received.set(key, got);
          for (const mark of marksIn(bytesFor('secret', view, names))) got.add(mark);
          pairs += names.size;
        }
        for (const [key, got] of received) {
          const expected =
            entitled[key] ?? (serviceAccount !== 'unbound' && key.endsWith('/gateway') ? [] : namespace === 'istio-system' ? [] : partner(namespace));
          assert.deepEqual([...got].sort(), [...expected].sort(), key);
        }
      }
    assert.ok(pairs > 10_000, `${pairs} pairs`);
    for (const view of viewsOf(undefined)) assert.deepEqual(marksIn(bytesFor('secret', view, names)), [], 'plain text proves nothing');
  });

  it('are in no other resource', () => {
    /** Every route table, by whatever name. */
    const all = Object.assign(new Set<string>(), { has: () => true });
    let resources = 0;
    for (const key of Object.keys(entitled)) {
      const [namespace = '', serviceAccount = ''] = key.split('/');
      for (const view of viewsOf({ namespace, serviceAccount }))
        for (const type of discoveryTypes)
          if (type !== 'secret') {
            const bytes = bytesFor(type, view, all);
            if (/mizzen:\/\/(?:api|component)/.test(bytes)) resources++;
            assert.deepEqual(marksIn(bytes), [], `${key} ${type}`);
          }
    }
    assert.ok(resources > 10, `${resources} resources name generic secrets`);
  });

  it('that an Api names arrive as generic secrets, and a proxy that lost its entitlement receives none', () => {
    const [view] = [...viewsOf({ namespace: 'default', serviceAccount: 'edge' })].filter(({ type }) => type === 'gateway');
    assert.ok(view);
    const name = 'mizzen://api/default/shop/login.client';
    const [resource] = resourcesFor('secret', new Set([name]), view, snapshot, trustBundle, [], () => {});
    const { type } = fromBinary(SecretSchema, resource!.value);
    assert.ok(type.case === 'genericSecret' && type.value.secret?.specifier.case === 'inlineBytes');
    assert.equal(Buffer.from(type.value.secret.specifier.value).toString(), marked('default/login/client'));
    assert.deepEqual(
      resourcesFor('secret', new Set([name]), { ...view, labels: {} }, snapshot, trustBundle, [], () => {}),
      [],
    );
    assert.deepEqual(
      resourcesFor('secret', new Set([name]), { ...view, isProven: false }, snapshot, trustBundle, [], () => {}),
      [],
    );
  });

  it('are withdrawn by name from a proxy that declares it, over all that it may ask for and is not entitled to', () => {
    let withdrawn = 0;
    for (const key of Object.keys(entitled)) {
      const [namespace = '', serviceAccount = '', kind] = key.split('/');
      const [view] = [...viewsOf({ namespace, serviceAccount })].filter(({ type }) => type === kind);
      if (view === undefined) continue;
      const read = (one: ProxyView) =>
        resourcesFor('secret', names, one, snapshot, trustBundle, [], () => {}).map(({ value }) => fromBinary(SecretSchema, value));
      const [declared, silent] = [read({ ...view, clientFeatures: ['secret/removal'] }), read({ ...view, clientFeatures: [] })];
      const content = (list: typeof declared) => list.filter(({ type }) => type.case !== undefined).map(({ name }) => name);
      assert.deepEqual(content(declared), content(silent), key);
      assert.deepEqual(content(silent).length, silent.length, 'Envoy is sent no secret without content');
      const removed = declared.filter(({ type }) => type.case === undefined).map(({ name }) => name);
      withdrawn += removed.length;
      for (const name of removed) assert.ok(!content(declared).includes(name) && name !== 'ROOTCA' && name !== 'default', `${key} ${name}`);
      const { labels: _, ...without } = view;
      const lost = read({ ...without, labels: {}, clientFeatures: ['secret/removal'] });
      for (const name of content(declared))
        if (!content(lost).includes(name))
          assert.ok(
            lost.some((one) => one.name === name && one.type.case === undefined),
            `${key} keeps ${name}`,
          );
    }
    assert.ok(withdrawn > 200, `${withdrawn} withdrawals`);
  });
});
