import { once } from 'node:events';
import type { Server } from 'node:http';
import { errorBoundary, http, MizzenError, messageOf } from '@mizzen/common';
import { ConnectionGuard, httpServerOptions, limitHttpTimes } from '@mizzen/common/connection-guard';
import { ServerConnections } from '@mizzen/common/server-connections';

const boundary = errorBoundary('public.request');

/**
 * The two things that others than this machine's own people may ask a sidecar: whether it is ready (Istio's port 15021) and its metrics
 * (15090). One port each, one path each; everything else of the admin server stays on loopback.
 */
export interface PublicServerOptions {
  readonly port: number;
  readonly path: string;
  readonly answer: () => Promise<{ readonly status: number; readonly type: string; readonly body: string }>;
}

export class PublicServer {
  readonly #options: PublicServerOptions;
  readonly #server: Server;
  readonly #connections: ServerConnections;

  constructor(options: PublicServerOptions) {
    this.#options = options;
    this.#server = boundary.own(
      http.createServer(httpServerOptions, (request, response) => {
        const path = (request.url ?? '/').split('?')[0];
        if (path !== options.path || (request.method !== 'GET' && request.method !== 'HEAD'))
          return void response.writeHead(404, { 'content-type': 'text/plain' }).end(`only GET ${options.path} is answered here\n`);
        boundary.start(
          async () => {
            const { status, type, body } = await options.answer();
            response.writeHead(status, { 'content-type': type, 'x-content-type-options': 'nosniff' }).end(body);
          },
          () => (response.headersSent ? response.destroy() : response.writeHead(500, { 'content-type': 'text/plain' }).end('internal error\n')),
        );
      }),
    );
    this.#connections = new ServerConnections(this.#server);
    // Nothing is read here but heads, and nothing is proved.
    new ConnectionGuard(this.#server, { maxConnections: 100, maxUnproven: 100, maxUnprovenPerPeer: 50 });
    limitHttpTimes(this.#server, { maxHeadMs: 5_000, maxRequestMs: 10_000 });
  }

  async listen(): Promise<void> {
    const { port, path } = this.#options;
    this.#server.listen({ port });
    try {
      await once(this.#server, 'listening');
    } catch (error) {
      throw new MizzenError('port-in-use', `the server of ${path} cannot listen: ${messageOf(error)}`, `port ${port}`);
    }
  }

  async close(): Promise<void> {
    await this.#connections.close();
  }
}
