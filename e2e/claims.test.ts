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

  /** One connection with a token of `orders`; `open` opens a stream on it that asks for `names`, and resolves to why it ended, or to the first response. */
  async function connectionOf(seconds: number) {
    const { token } = await mesh.plane.tokens.issue('default', 'orders', [], seconds);
    const transport: Transport = createGrpcTransport({ baseUrl: `https://127.0.0.1:${mesh.plane.xdsPort}`, nodeOptions: { rejectUnauthorized: false } });
    const abort = new AbortController();
    const open = async (
      type: 'endpoint' | 'listener',
      names: readonly string[],
      more: Record<string, unknown> = {},
      until: 'response' | 'end' = 'response',
    ) => {
      const requests = new PushQueue<DiscoveryRequest>();
      const metadata = { NAME: 'caller', NAMESPACE: 'default', SERVICE_ACCOUNT: 'orders', ...more } as never;
      const node = { id: 'sidecar~127.0.0.1~caller.default~default.svc.cluster.local', metadata };
      requests.push(create(DiscoveryRequestSchema, { node, typeUrl: typeUrls[type], resourceNames: [...names] }));
      try {
        const stream = createClient(AggregatedDiscoveryService, transport).streamAggregatedResources(requests, {
          headers: { authorization: `Bearer ${token}` },
          signal: abort.signal,
        });
        for await (const response of stream) if (until === 'response') return { response, refusal: '', requests };
        return { response: undefined, refusal: 'ended', requests };
      } catch (error) {
        return { response: undefined, refusal: String(error), requests };
      }
    };
    return { open, close: () => abort.abort() };
  }

  it('costs no more than its limits: names, streams, and what the node says', async () => {
    const { open, close } = await connectionOf(600);
    const many = Array.from({ length: 60_000 }, (_, i) => `outbound|${i}||orders.default.svc.cluster.local`);
    assert.match((await open('endpoint', many, {}, 'end')).refusal, /resource_exhausted.*60000 resources/i);
    assert.match((await open('listener', [], { LABELS: { x: 'x'.repeat(300_000) } })).refusal, /invalid_argument.*262144/i);
    const ports = Array.from({ length: 1_001 }, (_, i) => ({ port: i + 1, listen: '127.0.0.1:1', app: '127.0.0.1:2' }));
    assert.match((await open('listener', [], { MIZZEN_INBOUND: ports })).refusal, /invalid_argument.*1001 ports/i);
    // Other spellings of one cluster are not other clusters.
    const canonical = 'outbound|9080||orders.default.svc.cluster.local';
    const spellings = [canonical, ...['09080', '9080.0', ' 9080', '0x2378', '9.08e3'].map((port) => canonical.replace('9080', port)), `${canonical}|x`];
    const { response } = await open('endpoint', spellings);
    const filled = response!.resources.filter(({ value }) => Buffer.from(value).includes('127.0.0.1'));
    assert.equal(response!.resources.length, spellings.length);
    assert.equal(filled.length, 1);
    close();
    const other = await connectionOf(600);
    const held = Array.from({ length: 12 }, () => other.open('listener', [], {}, 'end'));
    const ended = await Promise.all(held.slice(8));
    for (const { refusal } of ended) assert.match(refusal, /resource_exhausted.*8 streams/i);
    other.close();
    await Promise.all(held);
  });

  it('ends with the token that opened it', async () => {
    // The clock may differ by a minute: a token that has expired 59.5 s ago is still good for half a second.
    const { open, close } = await connectionOf(-59);
    const { refusal } = await open('listener', [], {}, 'end');
    assert.match(refusal, /unauthenticated.*the token that the stream was opened with has expired/i);
    close();
  });
});
