import { once } from 'node:events';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { errorBoundary, http, type Logger, MizzenError, messageOf } from '@mizzen/common';
import { ConnectionGuard, httpServerOptions, limitHttpTimes } from '@mizzen/common/connection-guard';
import { ServerConnections } from '@mizzen/common/server-connections';
import { renderPrometheus } from '../telemetry/prometheus.ts';
import type { StatsSnapshot } from '../telemetry/stats-snapshot.ts';
import type { SecretStore } from '../tls/secret-store.ts';
import type { ResourceState } from '../xds/resource-state.ts';
import { describeCertificates } from './describe-certificates.ts';

const boundary = errorBoundary('admin.request');

/** The admin server, on loopback only and read-only: what the proxy has, does and counts. */
export interface AdminServerOptions {
  readonly port: number;
  readonly state: ResourceState;
  readonly secrets: SecretStore;
  /** What all event loops of this proxy have counted. */
  readonly stats: () => Promise<StatsSnapshot>;
  readonly versions: () => Readonly<Record<string, string>>;
  readonly isReady: () => { readonly ready: boolean; readonly reason: string };
  /** What a person who looks at `/ready` must know although, or because, the proxy is in this state; a line each. */
  readonly notices: () => readonly string[];
  readonly logger: Logger;
}

const paths = ['/ready', '/stats/prometheus', '/config_dump', '/clusters', '/listeners', '/certs'];

export class AdminServer {
  readonly #options: AdminServerOptions;
  readonly #server: Server;
  readonly #connections: ServerConnections;

  constructor(options: AdminServerOptions) {
    this.#options = options;
    this.#server = boundary.own(
      http.createServer(httpServerOptions, (request, response) => {
        boundary.start(
          () => this.#answer(request, response),
          () => (response.headersSent ? response.destroy() : send(response, 500, 'text/plain', 'internal error: see the log\n')),
        );
      }),
    );
    this.#connections = new ServerConnections(this.#server);
    // Nothing is read here but heads, and nothing is proved.
    new ConnectionGuard(this.#server, { maxConnections: 100, maxUnproven: 100, maxUnprovenPerPeer: 50 });
    limitHttpTimes(this.#server, { maxHeadMs: 5_000, maxRequestMs: 10_000 });
  }

  async listen(): Promise<number> {
    this.#server.listen(this.#options.port, '127.0.0.1');
    try {
      await once(this.#server, 'listening');
    } catch (error) {
      throw new MizzenError(
        'port-in-use',
        `the admin server cannot listen: ${messageOf(error)}. Choose another port with adminPort.`,
        `127.0.0.1:${this.#options.port}`,
      );
    }
    return (this.#server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    await this.#connections.close();
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { state, secrets, stats } = this.#options;
    // A web page that has made its name point to 127.0.0.1 is told apart by the Host that the browser sends.
    if (!/^(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?$/.test(request.headers.host ?? ''))
      return send(response, 403, 'text/plain', 'the admin server is for 127.0.0.1 only\n');
    if (request.method !== 'GET' && request.method !== 'HEAD') return send(response, 405, 'text/plain', 'the admin server only answers GET\n');
    const path = (request.url ?? '/').split('?')[0]!;
    switch (path) {
      case '/ready': {
        const { ready, reason } = this.#options.isReady();
        const lines = [ready ? 'LIVE' : `PRE_INITIALIZING: ${reason}`, ...this.#options.notices()];
        return send(response, ready ? 200 : 503, 'text/plain', `${lines.join('\n')}\n`);
      }
      case '/stats/prometheus':
        return send(response, 200, 'text/plain; version=0.0.4', renderPrometheus(await stats()));
      case '/config_dump': {
        // The registry of all message types is only loaded by those who look.
        const { configDump } = await import('./config-dump.ts');
        return sendJson(response, configDump(state, this.#options.versions()));
      }
      case '/clusters':
        return sendJson(response, {
          clusters: (await stats()).clusters.map((cluster) => ({
            name: cluster.name,
            counters: cluster.counters,
            active_requests: cluster.activeRequests,
            pending_requests: cluster.pendingRequests,
            endpoints: cluster.endpoints.map((endpoint) => ({
              address: endpoint.address,
              healthy: endpoint.healthy,
              ...(endpoint.ejected ? { ejected: true } : {}),
              ...(endpoint.checkProblem === '' ? {} : { health_check: endpoint.checkProblem }),
              weight: endpoint.weight,
              workload: endpoint.workload,
              version: endpoint.version,
              mutual_tls: endpoint.mutualTls,
              connections: endpoint.connections,
              http2_connections: endpoint.http2Connections,
              ...(endpoint.rttMs < 0 ? {} : { round_trip_ms: Math.round(endpoint.rttMs * 100) / 100 }),
              active_requests: endpoint.activeRequests,
            })),
          })),
        });
      case '/listeners':
        return sendJson(response, {
          listeners: (await stats()).listeners.map((listener) => ({
            name: listener.name,
            address: listener.address,
            protocol: listener.protocol,
            listening: listener.listening,
            connections: listener.connections,
            filter_chains: listener.filterChains.map((chain) => ({
              name: chain.name,
              transport_protocol: chain.transportProtocol,
              server_names: chain.serverNames,
            })),
          })),
        });
      case '/certs':
        return sendJson(response, describeCertificates(secrets));
      case '/':
        return send(response, 200, 'text/plain', `${paths.join('\n')}\n`);
      default:
        return send(response, 404, 'text/plain', `there is nothing at ${JSON.stringify(path.slice(0, 100))}. There is: ${paths.join(', ')}\n`);
    }
  }
}

function send(response: ServerResponse, status: number, type: string, body: string): void {
  response
    .writeHead(status, {
      'content-type': type,
      'content-length': Buffer.byteLength(body),
      'x-content-type-options': 'nosniff',
      'content-security-policy': "default-src 'none'",
    })
    .end(body);
}

function sendJson(response: ServerResponse, body: unknown): void {
  send(response, 200, 'application/json', `${JSON.stringify(body, null, 2)}\n`);
}
