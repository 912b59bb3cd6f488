import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { JsonObject } from '@bufbuild/protobuf';
import { create } from '@bufbuild/protobuf';
import type { Resource } from '@mizzen/api';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import type { Identity } from '../../citadel/spiffe-identity.ts';
import type { StoredResource } from '../../galley/config-store.ts';
import { viewOf } from '../proxy-view.ts';
import { WorkloadBindings } from '../registry/workload-bindings.ts';
import { proveIdentity, UnprovenIdentity } from './proven-identity.ts';

let revision = 0;
function stored(kind: string, namespace: string, name: string, spec: object, metadata: object = {}): StoredResource {
  const group = kind === 'Workload' ? 'mizzen.dev' : 'networking.istio.io';
  const resource = { apiVersion: `${group}/v1`, kind, metadata: { name, namespace, ...metadata }, spec } as Resource;
  return { key: { group, kind, namespace, name }, resource, origin: { source: 'api', name: 'test' }, revision: ++revision };
}

const identity = (namespace: string, serviceAccount: string): Identity => ({ trustDomain: 'cluster.local', namespace, serviceAccount });

interface Claims {
  readonly type?: string;
  readonly namespace?: string;
  readonly serviceAccount: string;
  readonly name: string;
  readonly labels?: JsonObject;
  readonly group?: string;
  readonly address?: string;
  readonly appId?: string;
  readonly registers?: boolean;
  readonly workload?: string;
}

function claim({
  type = 'sidecar',
  namespace = 'default',
  serviceAccount,
  name,
  labels = {},
  group,
  address = '10.0.0.9',
  appId,
  registers = true,
  workload,
}: Claims) {
  return viewOf(
    create(NodeSchema, {
      id: `${type}~${address}~${name}.${namespace}~${namespace}.svc.cluster.local`,
      metadata: {
        ...{ NAME: name, NAMESPACE: namespace, SERVICE_ACCOUNT: serviceAccount, LABELS: labels, MIZZEN_ADDRESS: address, MIZZEN_REGISTER: registers },
        ...(group === undefined ? {} : { AUTO_REGISTER_GROUP: group }),
        ...(appId === undefined ? {} : { MIZZEN_APP_ID: appId }),
        ...(workload === undefined ? {} : { WORKLOAD_NAME: workload }),
      },
    }),
  );
}

const objects = [
  stored('Workload', 'default', 'orders', { serviceAccount: 'orders', command: ['x'] }, { labels: { app: 'orders' } }),
  stored('Workload', 'default', 'edge', { serviceAccount: 'edge', gateway: true }, { labels: { istio: 'edge' } }),
  stored('Workload', 'default', 'thief', { serviceAccount: 'thief', command: ['x'] }, { labels: { app: 'thief' } }),
  stored('Workload', 'other', 'orders', { serviceAccount: 'orders', command: ['x'] }, { labels: { app: 'orders' } }),
  stored('WorkloadGroup', 'default', 'machines', { template: { serviceAccount: 'machine', labels: { app: 'machine' } } }),
  stored(
    'WorkloadGroup',
    'default',
    'gates',
    { template: { serviceAccount: 'gate', labels: { istio: 'gate' } } },
    { annotations: { 'mizzen.dev/gateway': 'true' } },
  ),
  stored('WorkloadEntry', 'default', 'legacy', { address: '10.0.0.9', serviceAccount: 'legacy', labels: { app: 'legacy' } }),
];
const bindings = new WorkloadBindings(objects);

/** What each service account is allowed to be. */
const allowed: Readonly<Record<string, { readonly type: string; readonly labels: object; readonly names: RegExp; readonly appId: string }>> = {
  'default/orders': { type: 'sidecar', labels: { app: 'orders' }, names: /^orders(-\d+)?$/, appId: 'orders' },
  'default/edge': { type: 'gateway', labels: { istio: 'edge' }, names: /^edge(-\d+)?$/, appId: 'edge' },
  'default/thief': { type: 'sidecar', labels: { app: 'thief' }, names: /^thief(-\d+)?$/, appId: 'thief' },
  'other/orders': { type: 'sidecar', labels: { app: 'orders' }, names: /^orders(-\d+)?$/, appId: 'orders' },
  'default/machine': { type: 'sidecar', labels: { app: 'machine' }, names: /^machines(-.*)?$/, appId: 'machine' },
  'default/gate': { type: 'gateway', labels: { istio: 'gate' }, names: /^gates(-.*)?$/, appId: 'gates' },
  'default/legacy': { type: 'sidecar', labels: { app: 'legacy' }, names: /^legacy$/, appId: 'legacy' },
};

describe('the identity of a stream', () => {
  it('is never that of another workload, whatever its node claims, over all pairs of identities and claims', () => {
    const names = ['orders', 'orders-0', 'edge', 'edge-0', 'thief', 'thief-0', 'machines', 'machines-a', 'gates-1', 'legacy', 'unbound', 'orders-edge', 'x~y'];
    let proven = 0;
    for (const account of [...Object.keys(allowed), 'default/unbound', 'other/edge']) {
      const [namespace, serviceAccount] = account.split('/') as [string, string];
      for (const claimedNamespace of ['default', 'other'])
        for (const claimedAccount of ['orders', 'edge', 'thief', 'machine', 'gate', 'legacy', 'unbound'])
          for (const type of ['sidecar', 'router'])
            for (const name of names)
              for (const group of [undefined, 'machines', 'gates'])
                for (const registers of [true, false]) {
                  const claimed = claim({
                    ...{ type, name, registers, namespace: claimedNamespace, serviceAccount: claimedAccount, appId: registers ? 'orders' : undefined },
                    ...{ labels: { app: 'orders', istio: 'edge' }, workload: 'orders', ...(group === undefined ? {} : { group }) },
                  } as Claims);
                  let view: ReturnType<typeof proveIdentity>['view'];
                  try {
                    view = proveIdentity(claimed, identity(namespace, serviceAccount), '10.0.0.9:4000', bindings).view;
                  } catch (error) {
                    assert.ok(error instanceof UnprovenIdentity, String(error));
                    continue;
                  }
                  proven++;
                  assert.equal(`${view.namespace}/${view.serviceAccount}`, account);
                  const rights = allowed[account];
                  if (rights === undefined) {
                    assert.deepEqual([view.type, view.labels, view.registers, view.appId, view.inbound], ['sidecar', {}, false, undefined, []]);
                    continue;
                  }
                  // A name that no object owns gives no labels.
                  if (Object.keys(view.labels).length === 0) {
                    assert.deepEqual([view.type, view.registers, view.appId], ['sidecar', false, undefined]);
                    continue;
                  }
                  assert.equal(view.type, rights.type);
                  assert.deepEqual(view.labels, rights.labels);
                  assert.match(view.name, rights.names);
                  if (view.appId !== undefined) assert.equal(view.appId, rights.appId);
                }
    }
    assert.ok(proven > 100, `${proven} proven`);
  });

  it('proves nothing on plain text: no gateway, no registration', () => {
    assert.throws(() => proveIdentity(claim({ type: 'router', serviceAccount: 'edge', name: 'edge' }), undefined, '127.0.0.1:1', bindings), UnprovenIdentity);
    const { view } = proveIdentity(claim({ serviceAccount: 'orders', name: 'orders' }), undefined, '127.0.0.1:1', bindings);
    assert.deepEqual([view.registers, view.isProven], [false, false]);
  });

  it('has the address that it connects from, one of this machine on this machine, or one that its object allows', () => {
    const from = (peer: string, address: string, over: readonly StoredResource[] = objects) =>
      proveIdentity(claim({ serviceAccount: 'orders', name: 'orders-0', address }), identity('default', 'orders'), peer, new WorkloadBindings(over)).view
        .address;
    assert.equal(from('10.0.0.9:4000', '10.0.0.9'), '10.0.0.9');
    assert.equal(from('::ffff:10.0.0.9:4000', '10.0.0.9'), '10.0.0.9');
    assert.equal(from('127.0.0.1:4000', '127.0.0.1'), '127.0.0.1');
    assert.throws(() => from('10.0.0.9:4000', '10.0.0.8'), /cannot register the address 10\.0\.0\.8: it connects from 10\.0\.0\.9.*mizzen\.dev\/addresses/);
    assert.throws(() => from('10.0.0.9:4000', '127.0.0.1'), /cannot register/);
    assert.throws(() => from('127.0.0.1:4000', '203.0.113.7'), /cannot register/);
    const natted = stored(
      'Workload',
      'default',
      'orders',
      { serviceAccount: 'orders', command: ['x'] },
      { annotations: { 'mizzen.dev/addresses': '192.168.0.0/16, fd00::/8' } },
    );
    assert.equal(from('10.0.0.9:4000', '192.168.3.4', [natted]), '192.168.3.4');
    assert.throws(() => from('10.0.0.9:4000', '192.169.3.4', [natted]), /cannot register/);
  });

  it('is bound by a WorkloadEntry of the same service account at its address, which is never registered over', () => {
    const { view, binding } = proveIdentity(claim({ serviceAccount: 'legacy', name: 'anything' }), identity('default', 'legacy'), '10.0.0.9:1', bindings);
    assert.deepEqual([view.name, view.labels, view.registers, binding?.kind], ['legacy', { app: 'legacy' }, false, 'WorkloadEntry']);
  });
});
