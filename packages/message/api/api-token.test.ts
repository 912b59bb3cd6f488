import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { describe, it } from 'node:test';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { silentLogger } from '@mizzen/common';
import { Dapr } from '@mizzen/envoy-api/gen/dapr/proto/runtime/v1/dapr_pb.js';
import { ProxyCounters } from '@mizzen/proxy/telemetry/proxy-counters';
import { hasApiToken } from './api-token.ts';
import { DaprGrpcServer } from './dapr-grpc.ts';
import { DaprHttpApi } from './dapr-http.ts';
import { MessageMetrics } from './message-metrics.ts';
import { MessageRuntime } from './message-runtime.ts';

describe("Dapr's API token", () => {
  it('is required where it is configured, and compared as a whole', () => {
    for (const presented of [undefined, null, '', 'secre', 'secret2', 'Secret']) assert.equal(hasApiToken('secret', presented), false);
    assert.ok(hasApiToken('secret', 'secret'));
    assert.ok(hasApiToken(undefined, undefined) && hasApiToken('', 'anything'));
  });

  it('is required of gRPC calls', async () => {
    const free = createServer().listen(0, '127.0.0.1');
    await once(free, 'listening');
    const { port } = free.address() as { port: number };
    free.close();
    await once(free, 'close');
    const runtime = new MessageRuntime({
      namespace: 'default',
      appId: 'a',
      identity: 'spiffe://td/ns/x/sa/a',
      channel: undefined,
      findCluster: () => undefined,
      meshTls: undefined,
      metrics: new MessageMetrics(new ProxyCounters()),
      logger: silentLogger,
    });
    const server = new DaprGrpcServer(runtime, new DaprHttpApi(runtime, undefined, silentLogger, 'secret'), port, 'secret');
    await server.listen();
    const client = createClient(Dapr, createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}` }));
    await assert.rejects(client.getMetadata({}), (error) => ConnectError.from(error).code === Code.Unauthenticated);
    async function* none() {}
    const calls: readonly (() => Promise<unknown>)[] = [
      () => client.publishEvent({ pubsubName: 'p', topic: 't' }),
      () => client.bulkPublishEvent({ pubsubName: 'p', topic: 't' }),
      () => client.bulkPublishEventAlpha1({ pubsubName: 'p', topic: 't' }),
      () => client.setMetadata({ key: 'k', value: 'v' }),
      () => client.publishEvent({}, { headers: { 'dapr-api-token': 'Secret' } }),
      async () => {
        for await (const _ of client.subscribeTopicEventsAlpha1(none()));
      },
    ];
    for (const call of calls) await assert.rejects(call(), (error) => ConnectError.from(error).code === Code.Unauthenticated);
    assert.equal((await client.getMetadata({}, { headers: { 'dapr-api-token': 'secret' } })).id, 'a');
    await server.close();
    await runtime.close();
  });
});
