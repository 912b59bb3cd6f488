import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { decodeYaml, groupOf } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { SqliteStore } from '../../galley/sqlite-store.ts';
import { viewOf } from '../proxy-view.ts';
import { readBindingObjects, WorkloadBindings } from '../registry/workload-bindings.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { SnapshotBuilder } from '../snapshot-builder.ts';
import { proveIdentity } from '../xds/proven-identity.ts';
import { brokerPolicyFor } from './broker-policy.ts';

const component = (name: string, type: string, metadata: string) =>
  `---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: { name: ${name}, namespace: shop }\nscopes: [a]\nspec: { type: ${type}, version: v1, metadata: [${metadata}] }\n`;
const workload = (name: string, spec: string) =>
  `---\napiVersion: mizzen.dev/v1alpha1\nkind: Workload\nmetadata: { name: ${name}, namespace: shop }\nspec: { ${spec} }\n`;
const policy = (name: string, target: string) =>
  `---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: ${name}, namespace: shop }\nspec: { targetRefs: [{ group: dapr.io, kind: Component, name: ${target} }], action: DENY, rules: [{ to: [{ operation: { methods: [PUBLISH] } }] }] }\n`;
const yaml = [
  component('bus', 'pubsub.mizzen', '{ name: publishingScopes, value: "a=t" }, { name: address, secretKeyRef: { name: place, key: address } }'),
  component('redis', 'pubsub.redis', '{ name: redisHost, value: "r:1" }'),
  workload('a', 'command: [x], serviceAccount: one'),
  workload('b', 'command: [x], messaging: { appId: bb }'),
  workload('edge', 'gateway: true'),
  policy('no-publishing', 'bus'),
  policy('elsewhere', 'redis'),
  `---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: { name: own, namespace: shop, annotations: { mizzen.dev/registered-by: 'sidecar~10.0.0.9~own.shop' } }\nspec: { address: 10.0.0.9, serviceAccount: one, labels: { app: stolen } }\n`,
].join('');

describe('what the broker is sent', () => {
  let snapshot: MeshSnapshot;
  let bindings: WorkloadBindings;
  before(async () => {
    const store = new SqliteStore(':memory:');
    const { resources, problems } = decodeYaml(yaml, 'mesh.yaml');
    assert.deepEqual(problems, []);
    for (const { resource, origin } of resources) {
      const { name, namespace = '' } = resource.metadata;
      await store.put({ group: groupOf(resource.apiVersion), kind: resource.kind, namespace, name }, resource, origin, 'absent');
    }
    // Stored by an earlier version: its rule is in a Secret, which does not exist.
    const [{ resource, origin }] = resources as [(typeof resources)[number]];
    const metadata = [{ name: 'publishingScopes', secretKeyRef: { name: 'none', key: 'k' } }];
    const open = { ...resource, metadata: { ...resource.metadata, name: 'open' }, spec: { ...(resource.spec as object), metadata } };
    await store.put({ group: 'dapr.io', kind: 'Component', namespace: 'shop', name: 'open' }, open as never, origin, 'absent');
    const keySets = { keysOf: () => undefined, problemOf: () => undefined, want: () => {} };
    snapshot = await new SnapshotBuilder('cluster.local', silentLogger, undefined, undefined, keySets).build(store);
    bindings = new WorkloadBindings(await readBindingObjects(store));
  });
  const policyFor = (namespace: string, serviceAccount: string, isProven = true) => {
    const node = create(NodeSchema, {
      id: `sidecar~127.0.0.1~mizzen-broker.${namespace}~${namespace}.svc.cluster.local`,
      metadata: { NAME: 'mizzen-broker', NAMESPACE: namespace, SERVICE_ACCOUNT: serviceAccount },
    });
    const identity = isProven ? { trustDomain: 'cluster.local', namespace, serviceAccount } : undefined;
    return brokerPolicyFor(proveIdentity(viewOf(node), identity, '127.0.0.1:1', bindings).view, snapshot);
  };

  it('is the rules of access of its Components and the app ids that people have bound, without secrets', () => {
    assert.deepEqual(policyFor('mizzen-system', 'mizzen-broker'), {
      components: [
        {
          ...{ name: 'bus', namespace: 'shop', type: 'pubsub.mizzen', scopes: ['a'], metadata: { publishingScopes: 'a=t' } },
          topicPolicies: [
            {
              ...{ name: 'shop/no-publishing', pubsub: 'bus', action: 'DENY' },
              rules: [{ principals: [], namespaces: [], operations: ['PUBLISH'], topics: [] }],
            },
          ],
        },
      ],
      apps: [
        { namespace: 'shop', serviceAccount: 'default', appId: 'bb' },
        { namespace: 'shop', serviceAccount: 'one', appId: 'a' },
      ],
    });
  });

  it('goes to its proven account alone', () => {
    assert.equal(policyFor('mizzen-system', 'mizzen-broker', false), undefined);
    for (const [namespace, account] of [
      ['default', 'mizzen-broker'],
      ['mizzen-system', 'default'],
      ['shop', 'one'],
    ] as const)
      assert.equal(policyFor(namespace, account), undefined, `${namespace}/${account}`);
  });
});
