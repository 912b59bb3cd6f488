import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { create, fromBinary } from '@bufbuild/protobuf';
import type { Resource } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { unpackAny } from '@mizzen/envoy-api';
import { type Cluster, ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { UpstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import type { TrustBundle } from '../../citadel/trust-bundles.ts';
import { SqliteStore } from '../../galley/sqlite-store.ts';
import { resourcesFor } from '../generate/resources.ts';
import { viewOf } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { SnapshotBuilder } from '../snapshot-builder.ts';
import { registeredAnnotation } from './workload-bindings.ts';

const networking = 'networking.istio.io';
/** The service accounts that the objects of each service allow behind it. */
const workloads = ['orders', 'stock', 'thief', 'machine'];
const namespaces = ['default', 'other'];
/** What an entry may call itself: names of workloads, of their replicas, of members of a group, and of nothing. */
const entryNames = [...workloads.flatMap((name) => [name, `${name}-0`, `${name}-x`]), 'machines', 'machines-a', 'unbound', 'orders-stock-0'];

/** An entry that claims to be registered: any name, service account and labels, as a forged write would leave it. */
describe('entries of registration', () => {
  it('lead clients to the identities that the objects of a service allow, whatever an entry says, over all pairs of workloads', async () => {
    let forged = 0;
    let verified = 0;
    for (const claimedAccount of [...workloads, 'default', ''])
      for (const claimedApp of workloads) {
        const store = new SqliteStore(':memory:');
        const put = (group: string, kind: string, namespace: string, name: string, spec: object, metadata: object = {}) =>
          store.put(
            { group, kind, namespace, name },
            { apiVersion: `${group}/v1`, kind, metadata: { name, namespace, ...metadata }, spec } as Resource,
            { source: 'api', name: 'test' },
            'absent',
          );
        for (const namespace of namespaces) {
          for (const app of workloads) await put('', 'Service', namespace, app, { selector: { app }, ports: [{ name: 'http', port: 80 }] });
          for (const name of ['orders', 'stock', 'thief'])
            await put('mizzen.dev', 'Workload', namespace, name, { serviceAccount: name, command: ['x'] }, { labels: { app: name } });
          await put(networking, 'WorkloadGroup', namespace, 'machines', { template: { serviceAccount: 'machine', labels: { app: 'machine' } } });
          for (const [i, name] of entryNames.entries()) {
            const labels = { app: claimedApp, 'security.istio.io/tlsMode': 'istio' };
            const annotations = { [registeredAnnotation]: `sidecar~10.0.0.${i}~${name}.${namespace}~`, 'mizzen.dev/workload': claimedApp };
            await put(
              networking,
              'WorkloadEntry',
              namespace,
              name,
              { address: `10.0.0.${i}`, serviceAccount: claimedAccount, labels },
              { labels, annotations },
            );
            forged++;
          }
        }
        const keySets = { keysOf: () => undefined, problemOf: () => undefined, want: () => {} };
        const snapshot = await new SnapshotBuilder('cluster.local', silentLogger, undefined, undefined, keySets).build(store);
        const place = `service account ${claimedAccount}, app ${claimedApp}`;
        for (const service of snapshot.services)
          for (const { namespace, serviceAccount, labels, workload } of service.instances) {
            assert.equal(namespace, service.namespace, place);
            // In this mesh each service has one service account, of its own name.
            assert.equal(serviceAccount, service.name, `${place}: ${workload} is an instance of ${service.hostname}`);
            assert.equal(labels['app'], service.name, place);
          }
        for (const [host, identities] of expectedBy(snapshot))
          for (const identity of identities) {
            const [name, namespace] = host.split('.');
            verified++;
            assert.equal(identity, `spiffe://cluster.local/ns/${namespace}/sa/${name}`, `${place}: ${host}`);
          }
      }
    assert.ok(forged > 500 && verified > 20, `${forged} entries, ${verified} identities`);
  });

  /** The identities that a client verifies, by the host of the service. */
  function expectedBy(of: MeshSnapshot): Map<string, readonly string[]> {
    const node = create(NodeSchema, { id: 'sidecar~10.9.9.9~client.default~default.svc.cluster.local', metadata: { MIZZEN_OUTBOUND: '127.0.0.1:1' } });
    const view = { ...viewOf(node), isProven: true };
    const bundle = { own: 'roots', others: new Map() } as unknown as TrustBundle;
    const found = new Map<string, readonly string[]>();
    for (const any of resourcesFor('cluster', new Set(), view, of, bundle, [], () => {})) {
      const cluster = fromBinary(ClusterSchema, any.value);
      const host = cluster.name.split('|')[3];
      if (host !== undefined) found.set(host, identitiesOf(cluster));
    }
    return found;
  }

  function identitiesOf(cluster: Cluster): string[] {
    const sockets = [cluster.transportSocket, ...cluster.transportSocketMatches.map(({ transportSocket }) => transportSocket)];
    return sockets.flatMap((socket) => {
      const tls = socket?.configType.case === 'typedConfig' ? unpackAny(UpstreamTlsContextSchema, socket.configType.value) : undefined;
      const validation = tls?.commonTlsContext?.validationContextType;
      if (validation?.case !== 'combinedValidationContext') return [];
      const names = validation.value.defaultValidationContext?.matchTypedSubjectAltNames ?? [];
      assert.ok(names.length > 0, `${cluster.name} accepts any identity`);
      return names.map(({ matcher }) => String(matcher?.matchPattern.value));
    });
  }
});
