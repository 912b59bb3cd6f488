import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { create, fromBinary, type JsonObject, toJson } from '@bufbuild/protobuf';
import { decodeYaml, groupOf } from '@mizzen/api';
import { silentLogger } from '@mizzen/common';
import { unpackAny } from '@mizzen/envoy-api';
import { type Cluster, ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { VirtualHost_TlsRequirementType } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import {
  type CertificateValidationContext,
  CertificateValidationContextSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import { DownstreamTlsContextSchema, UpstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { SqliteStore } from '../../galley/sqlite-store.ts';
import { viewOf } from '../proxy-view.ts';
import { SnapshotBuilder } from '../snapshot-builder.ts';
import { resourcesFor } from './resources.ts';

async function generated(yaml: string, type: 'cluster' | 'listener' | 'route', names: readonly string[] = []) {
  const { resources, problems } = decodeYaml(yaml, 'test.yaml');
  assert.deepEqual(problems, []);
  const store = new SqliteStore(':memory:');
  for (const { resource, origin } of resources) {
    const key = { group: groupOf(resource.apiVersion), kind: resource.kind, namespace: resource.metadata.namespace ?? '', name: resource.metadata.name };
    await store.put(key, { ...resource, metadata: { ...resource.metadata, creationTimestamp: '2026-01-01T00:00:00Z' } }, origin, 'absent');
  }
  const keySets = { want: () => {}, keysOf: () => undefined, problemOf: () => undefined };
  const snapshot = await new SnapshotBuilder('cluster.local', silentLogger, undefined, undefined, keySets as never).build(store);
  await store.close();
  const metadata: JsonObject = { NAME: 'edge', NAMESPACE: 'default', LABELS: { app: 'edge' } };
  const view = { ...viewOf(create(NodeSchema, { id: 'router~127.0.0.1~edge.default~default.svc.cluster.local', metadata })), isProven: true };
  return resourcesFor(type, new Set(names), view, snapshot, { own: '', others: new Map(), crl: undefined } as never, [], () => {});
}

const external = (host: string, tls: string, names = '') =>
  `---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: out }\nspec: { hosts: ["${host}"], ports: [{ number: 443, name: tls, protocol: TLS }], resolution: ${host.startsWith('*') ? 'NONE' : 'DNS'}${names} }\n` +
  `---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: out }\nspec: { host: "${host}", trafficPolicy: { tls: ${tls} } }\n`;

/** What is demanded of the servers of a host. */
async function demandedOfServer(yaml: string): Promise<CertificateValidationContext> {
  const clusters = (await generated(yaml, 'cluster')).map((any) => fromBinary(ClusterSchema, any.value));
  const cluster = clusters.find(({ transportSocket }) => transportSocket !== undefined) as Cluster;
  const config = cluster.transportSocket!.configType.value!;
  const { validationContextType: type } = unpackAny(UpstreamTlsContextSchema, config)!.commonTlsContext!;
  return (type.case === 'combinedValidationContext' ? type.value.defaultValidationContext : type.value) as CertificateValidationContext;
}
const namesIn = (context: CertificateValidationContext) => context.matchTypedSubjectAltNames.map(({ matcher }) => matcher!.matchPattern);

const gateway = (name: string, tls: string, protocol = 'HTTPS') =>
  `---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: ${name} }\nspec: { selector: { app: edge }, servers: [{ port: { number: 8443, name: p, protocol: ${protocol} }, hosts: [a.example], tls: ${tls} }] }\n`;

describe('TLS settings that are accepted', () => {
  it('hold the revocation list of a DestinationRule with roots of a Secret as with roots of a file', async () => {
    for (const roots of ['credentialName: c', 'caCertCredentialName: c', 'caCertificates: /ca'])
      assert.equal((await demandedOfServer(external('a.example', `{ mode: SIMPLE, ${roots}, caCrl: /crl }`))).crl?.specifier.value, '/crl', roots);
  });

  it('verify the name of a server whatever empty list stands for it', async () => {
    const sni = [{ case: 'exact', value: 'a.example' }];
    assert.deepEqual(namesIn(await demandedOfServer(external('a.example', '{ mode: SIMPLE, subjectAltNames: [] }'))), sni);
    assert.deepEqual(namesIn(await demandedOfServer(external('a.example', '{ mode: SIMPLE }', ', subjectAltNames: []'))), sni);
    assert.deepEqual(namesIn(await demandedOfServer(external('a.example', '{ mode: SIMPLE }', ', subjectAltNames: [b.example]'))), [
      { case: 'exact', value: 'b.example' },
    ]);
    assert.deepEqual(namesIn(await demandedOfServer(external('*.a.example', '{ mode: SIMPLE }'))), [{ case: 'suffix', value: '.a.example' }]);
  });

  it('hold the demands of a Gateway on clients of the mesh with ISTIO_MUTUAL', async () => {
    const tls =
      '{ mode: ISTIO_MUTUAL, subjectAltNames: ["spiffe://cluster.local/ns/a/sa/b"], verifyCertificateHash: [aa], verifyCertificateSpki: [bb], minProtocolVersion: TLSV1_3 }';
    const route =
      '---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: v }\nspec: { hosts: [a.example], gateways: [g], http: [{ directResponse: { status: 200 } }] }\n';
    const [any] = await generated(gateway('g', tls) + route, 'listener');
    const [chain] = fromBinary(ListenerSchema, any!.value).filterChains;
    const { commonTlsContext } = unpackAny(DownstreamTlsContextSchema, chain!.transportSocket!.configType.value!)!;
    const { validationContextType: type, tlsParams } = commonTlsContext!;
    assert.equal(type.case, 'combinedValidationContext');
    assert.deepEqual(
      toJson(CertificateValidationContextSchema, (type.value as { defaultValidationContext: CertificateValidationContext }).defaultValidationContext),
      {
        matchTypedSubjectAltNames: [{ sanType: 'URI', matcher: { exact: 'spiffe://cluster.local/ns/a/sa/b' } }],
        verifyCertificateHash: ['aa'],
        verifyCertificateSpki: ['bb'],
      },
    );
    assert.equal(tlsParams?.tlsMinimumProtocolVersion, 4);
  });

  it('redirect a host to TLS whichever of two Gateways for it is older', async () => {
    const route =
      '---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: v }\nspec: { hosts: [a.example], gateways: [a, b], http: [{ directResponse: { status: 200 } }] }\n';
    for (const [first, second] of [
      ['{ httpsRedirect: true }', '{ httpsRedirect: false }'],
      ['{ httpsRedirect: false }', '{ httpsRedirect: true }'],
    ]) {
      const plain = (name: string, tls: string) => gateway(name, tls, 'HTTP').replace(', tls: { httpsRedirect: false }', '');
      const [any] = await generated(plain('a', first!) + plain('b', second!) + route, 'route', ['http.8443']);
      const [host] = fromBinary(RouteConfigurationSchema, any!.value).virtualHosts;
      assert.equal(host?.requireTls, VirtualHost_TlsRequirementType.ALL, first);
    }
  });
});
