import { mkdtempSync, rmSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLogger } from '@mizzen/common';
import { Broker, type BrokerSettings } from '@mizzen/message/broker/broker';
import { BrokerServer } from '@mizzen/message/broker/broker-server';
import { defaultLogSettings } from '@mizzen/message/log/partition-log';
import { call } from './http.ts';
import { type RunningProxy, TestMesh } from './mesh.ts';

export interface Received {
  readonly path: string;
  readonly headers: http.IncomingHttpHeaders;
  readonly event: Record<string, unknown>;
}

/** An application that takes events, and says to each what the test wants. */
export interface TestApp {
  readonly port: number;
  readonly received: Received[];
  /** Headers of the last request for what it subscribes to. */
  readonly askedWith: () => http.IncomingHttpHeaders;
  readonly sidecar: RunningProxy & { readonly httpPort: number; readonly grpcPort: number };
  publish(
    pubsub: string,
    topic: string,
    body: string | Buffer,
    options?: { readonly query?: string; readonly headers?: Record<string, string> },
  ): Promise<{ status: number; body: string }>;
  ask(
    path: string,
    options?: { readonly method?: string; readonly body?: string; readonly headers?: Record<string, string> },
  ): Promise<{ status: number; body: string }>;
}

/** A mesh with an embedded broker in the test's own process. */
export class MessageMesh {
  readonly mesh: TestMesh;
  readonly brokerPort: number;

  private constructor(mesh: TestMesh, brokerPort: number) {
    this.mesh = mesh;
    this.brokerPort = brokerPort;
  }

  static async start(settings: Partial<BrokerSettings> = {}): Promise<MessageMesh> {
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-messages-'));
    const broker = new Broker({ folder, log: { ...defaultLogSettings, syncs: false }, partitions: 2, maxTopics: 1_000, ...settings }, silentLogger);
    const server = new BrokerServer({ broker, host: '127.0.0.1', port: 0, logger: silentLogger });
    await server.listen();
    const mesh = await TestMesh.start();
    mesh.onClose(async () => {
      await server.close();
      await broker.close();
      rmSync(folder, { recursive: true, force: true });
    });
    return new MessageMesh(mesh, server.port);
  }

  component(name: string, metadata: Readonly<Record<string, string>> = {}, more = ''): string {
    const all = { address: `127.0.0.1:${this.brokerPort}`, plaintext: 'true', ...metadata };
    return `apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: { name: ${name} }\nspec: { type: pubsub.mizzen, version: v1, metadata: ${JSON.stringify(Object.entries(all).map(([key, value]) => ({ name: key, value })))} }\n${more}\n---\n`;
  }

  /** `subscriptions`: what it declares at /dapr/subscribe. */
  async app(
    name: string,
    options: {
      readonly subscriptions?: readonly object[];
      readonly answer?: (received: Received, response: http.ServerResponse) => void;
      readonly labels?: Readonly<Record<string, string>>;
      readonly appId?: string;
    } = {},
  ): Promise<TestApp> {
    const received: Received[] = [];
    let askedWith: http.IncomingHttpHeaders = {};
    const server = http.createServer((request, response) => {
      if (request.url === '/dapr/subscribe') {
        askedWith = request.headers;
        if (options.subscriptions === undefined) return void response.writeHead(404).end();
        return void response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(options.subscriptions));
      }
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const one: Received = { path: request.url!, headers: request.headers, event: JSON.parse(Buffer.concat(chunks).toString()) as Record<string, unknown> };
        received.push(one);
        if (options.answer === undefined) response.writeHead(200).end();
        else options.answer(one, response);
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    const { mesh } = this;
    mesh.onClose(async () => {
      server.closeAllConnections();
      server.close();
    });
    const httpPort = await mesh.ports.next();
    const grpcPort = await mesh.ports.next();
    const running = await mesh.proxy(name, {
      labels: { app: options.appId ?? name, ...options.labels },
      registers: true,
      inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${await mesh.ports.next()}`, app: `127.0.0.1:${port}` }],
      messaging: { appId: options.appId ?? name, httpPort, grpcPort, app: { port, protocol: 'http' } },
    });
    await running.proxy.ready;
    await mesh.plane.pilot.refresh();
    await mesh.synced();
    return {
      port,
      received,
      askedWith: () => askedWith,
      sidecar: { ...running, httpPort, grpcPort },
      publish: (pubsub, topic, body, { query = '', headers = { 'content-type': 'application/json' } } = {}) =>
        call({ port: httpPort, method: 'POST', path: `/v1.0/publish/${pubsub}/${topic}${query}`, headers, body }),
      ask: (path, more = {}) => call({ port: httpPort, path, ...more }),
    };
  }
}
