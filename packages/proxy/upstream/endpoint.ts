import { coarseNow } from '@mizzen/common';
import type { PeerMetadata } from '../telemetry/peer-metadata.ts';
import type { RequestMetrics } from '../telemetry/request-metrics.ts';
import type { Http1Upstream } from './http1-upstream.ts';
import type { Http2Upstream } from './http2-upstream.ts';
import type { EndpointWatch } from './outlier-detector.ts';
import type { Transport } from './transport.ts';
import type { UpstreamStream } from './upstream-stream.ts';

/** Somebody who waits for a connection to an endpoint. */
export interface ConnectionWaiter {
  /** Called once; the waiter begins its request on it before it returns. */
  onConnection(stream: UpstreamStream): void;
  /** The endpoint is no longer part of the configuration: wait elsewhere. */
  onEndpointRemoved(): void;
}

/** One address of a cluster, with its idle connections and what is under way to it. Lives as long as configuration names it. */
export class Endpoint {
  readonly address: string;
  readonly port: number;
  /** Of a Unix socket, whose port is 0. */
  readonly unixPath: string | undefined;
  weight: number;
  /** What configuration says. */
  isHealthy: boolean;
  readonly transport: Transport;
  /** `address:port` or the path of a Unix socket, as access logs show it. */
  readonly text: string;
  /** Who answers there, as EDS told; for metrics. */
  readonly peer: PeerMetadata;
  /** Requests under way, and TCP sessions. */
  activeRequests: number;
  /** Open connections of its pool, idle ones included. */
  connections: number;
  /** Connections without a request, the one used last at the end. */
  readonly idle: Http1Upstream[];
  /** Connections of HTTP/2, the oldest first. */
  readonly http2: Http2Upstream[];
  /** Requests that wait for one of the connections of HTTP/1.1, the longest waiting first. */
  readonly waiting: ConnectionWaiter[];
  /** The same for streams of HTTP/2. */
  readonly waitingForStream: ConnectionWaiter[];
  /** Metric series of this endpoint by response, so that a request finds its counters with one look-up. */
  readonly metrics: Map<string, RequestMetrics>;
  /** When it came, or was well again, in milliseconds of `coarseNow`: it warms up from then on. */
  inServiceSince: number;
  /** The hashes of its places in rings, as far as they have been computed: upper and lower halves in turn. */
  readonly ringHashes: number[];
  /** Of Maglev tables of the size that comes first; undefined: none was made. */
  maglevPermutation: readonly [size: number, at: number, skip: number] | undefined;
  /** What outlier detection knows of it; undefined: nobody watches. */
  outlier: EndpointWatch | undefined;
  isRemoved: boolean;
  /** Why active health checks say that it is not well; undefined: they do not, or there are none. */
  checkProblem: string | undefined;

  constructor(fields: {
    readonly address: string;
    readonly port: number;
    readonly unixPath?: string | undefined;
    readonly weight: number;
    readonly isHealthy: boolean;
    readonly transport: Transport;
    readonly peer: PeerMetadata;
  }) {
    this.address = fields.address;
    this.port = fields.port;
    this.unixPath = fields.unixPath;
    this.weight = fields.weight;
    this.isHealthy = fields.isHealthy;
    this.transport = fields.transport;
    this.text =
      fields.unixPath !== undefined
        ? fields.unixPath
        : fields.address.includes(':')
          ? `[${fields.address}]:${fields.port}`
          : `${fields.address}:${fields.port}`;
    this.peer = fields.peer;
    this.activeRequests = 0;
    this.connections = 0;
    this.idle = [];
    this.http2 = [];
    this.waiting = [];
    this.waitingForStream = [];
    this.metrics = new Map();
    this.inServiceSince = coarseNow();
    this.ringHashes = [];
    this.maglevPermutation = undefined;
    this.outlier = undefined;
    this.isRemoved = false;
    this.checkProblem = undefined;
  }

  /** Whether it may be chosen: configuration, active checks and outlier detection have nothing against it. */
  get isAvailable(): boolean {
    return this.isHealthy && this.checkProblem === undefined && !this.outlier?.isEjected;
  }

  /** No longer named by configuration: idle connections end now, the others with their requests. */
  remove(): void {
    if (this.isRemoved) return;
    this.isRemoved = true;
    this.closeIdle();
    for (const waiter of [...this.waiting.splice(0), ...this.waitingForStream.splice(0)]) waiter.onEndpointRemoved();
  }

  closeIdle(): void {
    for (const connection of this.idle.splice(0)) connection.close();
    for (const connection of [...this.http2]) connection.drain();
  }
}
