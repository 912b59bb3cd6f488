import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { createClient, type Transport } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { PushQueue } from '@mizzen/common';
import { typeUrls } from '@mizzen/envoy-api';
import { AggregatedDiscoveryService } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/ads_pb.js';
import { type DiscoveryRequest, DiscoveryRequestSchema, type DiscoveryResponse } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import { until } from './support/http.ts';
import { service, TestMesh } from './support/mesh.ts';

const marker = 'MARKER-of-a-secret-that-is-not-theirs';

describe('what a stream claims', () => {
  let mesh: TestMesh;

  before(async () => {
    mesh = await TestMesh.start();
    const secret = (name: string, data: Record<string, string>) =>
      `---\napiVersion: v1\nkind: Secret\nmetadata: { name: ${name} }\ndata: { ${Object.entries(data)
        .map(([key, value]) => `${key}: ${Buffer.from(value).toString('base64')}`)
        .join(', ')} }\n`;
    await mesh.apply(
      [
        service('orders'),
        `apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: { name: edge }\nspec:\n  selector: { app: edge }\n  servers: [{ port: { number: 8443, name: https, protocol: HTTPS }, hosts: [edge.test], tls: { mode: SIMPLE, credentialName: edge-cert } }]\n`,
        secret('edge-cert', { 'tls.crt': 'certificate', 'tls.key': marker }),
      ].join(''),
    );
    await mesh.workload('orders');
  });
  after(() => mesh?.close());

  /** Opens a stream with a token of `account`, asks for everything, and resolves to what came and to why it ended. */
  async function ask(account: string, namespace: string, type: 'sidecar' | 'router', name: string, metadata: Record<string, unknown>) {
    const { token } = await mesh.plane.tokens.issue(namespace, account, [], 600);
    const transport: Transport = createGrpcTransport({
      baseUrl: `https://127.0.0.1:${mesh.plane.xdsPort}`,
      nodeOptions: { rejectUnauthorized: false },
    });
    const requests = new PushQueue<DiscoveryRequest>();
    const node = {
      id: `${type}~127.0.0.1~${name}.${namespace}~${namespace}.svc.cluster.local`,
      metadata: { NAME: name, NAMESPACE: namespace, SERVICE_ACCOUNT: account, ...metadata } as never,
    };
    const wanted = [
      ['secret', ['kubernetes://default/edge-cert', 'ROOTCA']],
      ['listener', []],
    ] as const;
    for (const [kind, resourceNames] of wanted)
      requests.push(create(DiscoveryRequestSchema, { node, typeUrl: typeUrls[kind], resourceNames: [...resourceNames] }));
    const responses: DiscoveryResponse[] = [];
    const abort = new AbortController();
    try {
      for await (const response of createClient(AggregatedDiscoveryService, transport).streamAggregatedResources(requests, {
        headers: { authorization: `Bearer ${token}` },
        signal: abort.signal,
      })) {
        responses.push(response);
        if (responses.length === wanted.length) break;
      }
      return { bytes: Buffer.concat(responses.flatMap(({ resources }) => resources.map(({ value }) => Buffer.from(value)))).toString('latin1'), refusal: '' };
    } catch (error) {
      return { bytes: '', refusal: String(error) };
    } finally {
      requests.close();
      abort.abort();
    }
  }

  it('gives no workload the key of a gateway', async () => {
    await mesh.apply(
      `apiVersion: v1\nkind: Namespace\nmetadata: { name: evil }\n---\napiVersion: mizzen.dev/v1alpha1\nkind: Workload\nmetadata: { name: edge, labels: { app: edge } }\nspec: { serviceAccount: edge, gateway: true }\n---\napiVersion: mizzen.dev/v1alpha1\nkind: Workload\nmetadata: { name: edge, namespace: evil, labels: { app: edge } }\nspec: { serviceAccount: edge, gateway: true }\n`,
    );
    const labels = { LABELS: { app: 'edge' } };
    const own = await ask('edge', 'default', 'router', 'edge-0', labels);
    assert.ok(own.bytes.includes(marker), `the gateway itself is given its key ${own.refusal}`);
    const attempts = [
      ['orders', 'default', 'router', 'edge-0'],
      ['orders', 'default', 'router', 'orders'],
      ['orders', 'default', 'sidecar', 'edge-0'],
      ['orders', 'default', 'sidecar', 'orders'],
      ['thief', 'default', 'router', 'thief'],
      ['thief', 'default', 'sidecar', 'thief'],
      ['edge', 'default', 'sidecar', 'edge'],
      ['edge', 'evil', 'router', 'edge'],
      ['thief', 'evil', 'router', 'edge'],
    ] as const;
    for (const [account, namespace, type, name] of attempts) {
      const got = await ask(account, namespace, type, name, labels);
      assert.ok(!got.bytes.includes(marker), `${account} ${namespace} ${type} ${name}`);
      assert.ok(!got.bytes.includes('edge.test'), `${account} ${namespace} ${type} ${name} is given no listener of the gateway`);
    }
  });

  it('lets no workload take the place of an endpoint of another, or its entry', async () => {
    const entry = async (name: string) =>
      (await mesh.plane.registry.store.get({ group: 'networking.istio.io', kind: 'WorkloadEntry', namespace: 'default', name }))?.resource.spec as
        | { serviceAccount?: string; ports?: object }
        | undefined;
    const before = await entry('orders');
    const metadata = {
      LABELS: { app: 'orders' },
      MIZZEN_REGISTER: true,
      MIZZEN_INBOUND: [{ name: 'http', port: 9080, listen: '127.0.0.1:6666', app: '127.0.0.1:6667' }],
    };
    for (const name of ['thief', 'orders', 'orders-0', 'orders-thief']) {
      const { refusal } = await ask('thief', 'default', 'sidecar', name, metadata);
      assert.match(refusal, /permission_denied.*thief/i, name);
    }
    assert.deepEqual(await entry('orders'), before);
    for (const name of ['thief', 'orders-0', 'orders-thief']) assert.equal(await entry(name), undefined, name);
  });

  it('ends with the object that proved it', async () => {
    const leaving = await mesh.workload('leaving');
    assert.ok(mesh.plane.pilot.proxies().some(({ name }) => name === 'leaving'));
    await mesh.plane.registry.store.remove({ group: 'mizzen.dev', kind: 'Workload', namespace: 'default', name: 'leaving' });
    await until(
      'the stream to end',
      async () => mesh.plane.pilot.proxies().map(({ name }) => name),
      (names) => !names.includes('leaving'),
    );
    await leaving.proxy.close();
  });
});
