import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BrokerProcess } from './support/brokers.ts';
import { call, until } from './support/http.ts';
import { service, TestMesh } from './support/mesh.ts';
import { skipWithout } from './support/requirements.ts';

describe('limits of the whole mesh, counted in Redis', { skip: skipWithout('redis-server') }, () => {
  it('count together for several proxies, and let requests through, or not, while Redis is away', async () => {
    const redis = await BrokerProcess.redis();
    const mesh = await TestMesh.start({ rateLimitRedis: `127.0.0.1:${redis.port}` });
    try {
      await mesh.workload('echo');
      const ports = [await mesh.ports.next(), await mesh.ports.next()];
      for (const [i] of ports.entries()) await mesh.proxy(`gw${i}`, { type: 'gateway', labels: { app: `gateway${i}` } });
      await mesh.apply(
        service('echo') +
          ports
            .map(
              (port, i) => `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: ingress${i} }
spec: { selector: { app: gateway${i} }, servers: [{ port: { number: ${port}, name: http, protocol: HTTP }, hosts: ["*"] }] }
---
`,
            )
            .join('') +
          ['open', 'spare', 'closed']
            .map(
              (name) => `
apiVersion: mizzen.dev/v1alpha1
kind: Api
metadata: { name: ${name} }
spec:
  hosts: [${name}.test]
  placement: edge
  gateways: [ingress0, ingress1]
  upstream: { service: echo }
  policies: { rateLimits: [{ name: all, requests: 3, per: 24h, scope: global, failClosed: ${name === 'closed'} }] }
---
`,
            )
            .join(''),
      );
      const ask = async (i: number, host: string) => (await call({ port: ports[i]!, headers: { host } })).status;
      await until(
        'an answer',
        () => ask(0, 'open.test'),
        (status) => status === 200,
      );
      await until(
        'an answer',
        () => ask(1, 'open.test'),
        (status) => status === 200,
      );
      assert.deepEqual([await ask(0, 'open.test'), await ask(1, 'open.test'), await ask(0, 'open.test')], [200, 429, 429]);
      await redis.kill();
      assert.equal(await ask(0, 'open.test'), 429, 'what was denied stays denied');
      assert.deepEqual([await ask(0, 'spare.test'), await ask(0, 'spare.test'), await ask(0, 'spare.test'), await ask(0, 'spare.test')], [200, 200, 200, 429]);
      assert.equal(await ask(0, 'closed.test'), 503);
      await redis.start();
      await until(
        'it counts again',
        () => ask(1, 'open.test'),
        (status) => status === 429,
      );
    } finally {
      await mesh.close();
      await redis.close();
    }
  });
});
