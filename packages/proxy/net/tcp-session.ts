import type net from 'node:net';
import { coarseNow, errorBoundary } from '@mizzen/common';
import { ConnectionNotes, type ConnectionRefusal, type ConnectionStep } from '../authorization/connection-authorization.ts';
import type { ProxyContext } from '../http/connection-settings.ts';
import type { WeightedTargets } from '../route/weighted-targets.ts';
import { type AccessLog, type LoggedStream, writeAccessLogs } from '../telemetry/access-log.ts';
import { unknownPeer } from '../telemetry/peer-metadata.ts';
import type { TcpLabels, TcpMetrics } from '../telemetry/tcp-metrics.ts';
import type { PeerIdentity } from '../tls/peer-identity.ts';
import { hash64 } from '../upstream/balancing/hash.ts';
import type { Cluster } from '../upstream/cluster.ts';
import type { Endpoint } from '../upstream/endpoint.ts';
import { detailText } from '../upstream/upstream-stream.ts';
import { ConnectHandshake } from './connect-handshake.ts';
import type { ConnectionInfo } from './connection-info.ts';
import { countAllocatedRead, keepReadBuffer, ReadBuffers } from './read-buffers.ts';

const boundary = errorBoundary('tcp.session');

/** One compiled TCP proxy (envoy tcp_proxy.proto). */
/** Where bytes go. */
export interface TcpTarget {
  readonly cluster: string;
  readonly weight: number;
}

export interface TcpProxySettings {
  readonly context: ProxyContext;
  readonly isInbound: boolean;
  readonly isTls: boolean;
  readonly targets: WeightedTargets<TcpTarget>;
  /** Nothing moved in either direction for this long: the session ends (`idle_timeout`, 1 h); 0: never. */
  readonly idleTimeoutMs: number;
  /** `max_downstream_connection_duration`; 0: no limit. */
  readonly maxDurationMs: number;
  /** `max_connect_attempts`. */
  readonly maxConnectAttempts: number;
  /** Clusters that choose by hash choose by the client's address (`hash_policy.source_ip`). */
  readonly hashesSource: boolean;
  /** `HOST:PORT` that the endpoint, a forward proxy, is asked for a tunnel to (`tunneling_config`); undefined: bytes are for the endpoint itself. */
  readonly tunnelTo: string | undefined;
  readonly accessLogs: readonly AccessLog[];
  /** Who may connect; each of them must agree, in turn. */
  readonly authorizations: readonly ConnectionStep[];
}

/** Carries bytes between a connection and an endpoint of a cluster, with backpressure and half-close in both directions. */
export class TcpSession implements LoggedStream {
  readonly settings: TcpProxySettings;
  readonly info: ConnectionInfo;
  readonly peer: PeerIdentity | undefined;
  cluster: Cluster | undefined;
  endpoint: Endpoint | undefined;
  bytesReceived: number;
  bytesSent: number;
  durationMs: number;
  readonly startedAt: number;
  responseDetails: string;
  readonly #downstream: net.Socket;
  #upstream: net.Socket | undefined;
  #connectTimer: NodeJS.Timeout | undefined;
  #first: Buffer | undefined;
  #handshake: ConnectHandshake | undefined;
  #flags: string;
  #attempts: number;
  /** What is logged when no attempt succeeds. */
  #connectDetails: string;
  #failed: Endpoint[];
  readonly #startedAt: number;
  #lastActivity: number;
  #isJoined: boolean;
  #isClosed: boolean;
  #metrics: TcpMetrics | undefined;
  #giveUpAuthorization: (() => void) | undefined;
  readonly #onClose: (session: TcpSession) => void;

  constructor(
    downstream: net.Socket,
    info: ConnectionInfo,
    peer: PeerIdentity | undefined,
    first: Buffer | undefined,
    settings: TcpProxySettings,
    onClose: (session: TcpSession) => void,
  ) {
    this.settings = settings;
    this.info = info;
    this.peer = peer;
    this.cluster = undefined;
    this.endpoint = undefined;
    this.bytesReceived = 0;
    this.bytesSent = 0;
    this.durationMs = 0;
    this.startedAt = Date.now();
    this.responseDetails = '';
    this.#downstream = downstream;
    this.#upstream = undefined;
    this.#connectTimer = undefined;
    this.#first = first;
    this.#handshake = undefined;
    this.#flags = '';
    this.#attempts = 0;
    this.#connectDetails = 'upstream_connect_failure';
    this.#failed = [];
    this.#startedAt = performance.now();
    this.#lastActivity = coarseNow();
    this.#isJoined = false;
    this.#isClosed = false;
    this.#metrics = undefined;
    this.#giveUpAuthorization = undefined;
    this.#onClose = onClose;
    const { values } = settings.context.counters;
    values.tcp_sessions_total++;
    values.tcp_sessions_active++;
    downstream.pause();
    const fail = this.#fail;
    downstream.on(
      'error',
      boundary.guard(() => this.close('DC', 'downstream_reset'), fail),
    );
    downstream.on(
      'close',
      boundary.guard(() => this.#downstreamClosed(), fail),
    );
    if (settings.authorizations.length === 0) this.#connect();
    else this.#authorize(0, new ConnectionNotes(this));
  }

  /** An exception ends this session alone. */
  readonly #fail = (): void => this.close('', 'internal_error');

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Nothing is read from the client, and no endpoint heard of it, until all have agreed. */
  #authorize(step: number, notes: ConnectionNotes): void {
    const authorization = this.settings.authorizations[step];
    if (authorization === undefined) return this.#connect();
    const decided = (refusal: ConnectionRefusal | undefined) => {
      this.#giveUpAuthorization = undefined;
      if (this.#isClosed) return;
      if (refusal !== undefined) this.close(refusal.flag, refusal.details);
      else this.#authorize(step + 1, notes);
    };
    this.#giveUpAuthorization = authorization.authorize(this, notes, boundary.wrap(decided, this.#fail));
  }

  // ---- what an access log line says ----
  readonly method = '';
  readonly path = '';
  readonly originalPath = '';
  readonly secretParameters = [];
  readonly protocol = '';
  readonly authority = '';
  readonly responseCode = 0;
  readonly upstreamServiceTimeMs = -1;
  readonly routeName = '';
  get responseFlags(): string {
    return this.#flags === '' ? '-' : this.#flags;
  }
  get upstreamHost(): string {
    return this.endpoint?.text ?? '';
  }
  get upstreamCluster(): string {
    return this.cluster?.name ?? '';
  }
  get peerUri(): string {
    return this.peer?.uri ?? '';
  }
  get remoteAddress(): string {
    return this.info.remoteAddress;
  }
  get remotePort(): number {
    return this.info.remotePort;
  }
  get localAddress(): string {
    return this.info.localAddress;
  }
  get localPort(): number {
    return this.info.localPort;
  }
  get serverName(): string {
    return this.info.serverName;
  }
  requestHeader(): undefined {}
  responseHeader(): undefined {}

  /** `now` in the milliseconds of performance.now(). */
  sweep(now: number): void {
    const { idleTimeoutMs, maxDurationMs, context } = this.settings;
    if (idleTimeoutMs > 0 && now - this.#lastActivity > idleTimeoutMs) {
      context.counters.values.timeouts_total++;
      this.close('SI', 'idle_timeout');
    } else if (maxDurationMs > 0 && now - this.#startedAt > maxDurationMs) {
      context.counters.values.timeouts_total++;
      this.close('DT', 'max_duration_timeout');
    }
  }

  /** Bytes that wait for either side. */
  get heldBytes(): number {
    return this.#downstream.writableLength + (this.#upstream?.writableLength ?? 0);
  }

  /** Ends both sides now. Idempotent. */
  close(flag = '', details = ''): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#connectTimer);
    this.#giveUpAuthorization?.();
    if (flag !== '') this.#flags = flag;
    if (details !== '') this.responseDetails = details;
    this.#downstream.destroy();
    this.#upstream?.destroy();
    if (this.cluster !== undefined && this.#isJoined) this.cluster.tcpConnections--;
    if (this.endpoint !== undefined && this.#isJoined) this.endpoint.activeRequests--;
    this.durationMs = performance.now() - this.#startedAt;
    this.settings.context.counters.values.tcp_sessions_active--;
    this.#metrics?.close(this.bytesReceived, this.bytesSent);
    writeAccessLogs(this.settings.accessLogs, this);
    this.#onClose(this);
  }

  #connect(): void {
    const downstream = this.#downstream;
    const { context, targets, maxConnectAttempts, hashesSource } = this.settings;
    this.cluster ??= context.findCluster(targets.pick(context.random)?.cluster ?? '');
    const { cluster } = this;
    if (cluster === undefined) return this.close('NC', 'cluster_not_found');
    if (this.#attempts >= maxConnectAttempts) return this.close('UF,URX', this.#connectDetails);
    if (cluster.tcpConnections >= cluster.settings.maxConnections) {
      cluster.counters.upstreamCxOverflow++;
      return this.close('UO', 'upstream_overflow');
    }
    const tries = this.#failed.length === 0 ? undefined : { endpoints: this.#failed, avoidsEndpoints: true, avoidsPrioritiesAfter: 0 };
    const endpoint = cluster.endpointFor(this.info, undefined, tries, hashesSource ? hash64(this.info.remoteAddress) : undefined);
    if (endpoint === undefined) return this.close('UH', cluster.settings.blockReason ?? 'no_healthy_upstream');
    if (endpoint.transport.notReadyReason !== undefined) return this.close('UF', 'upstream_tls_not_ready');
    this.endpoint = endpoint;
    this.#attempts++;
    cluster.counters.upstreamCxTotal++;
    const buffers = new ReadBuffers();
    buffers.beginLongBody();
    const read = (bytes: number, buffer: Buffer): boolean => {
      if (buffers.hasKept && downstream.writableLength === 0) buffers.release();
      buffers.begin();
      this.bytesSent += bytes;
      this.#lastActivity = coarseNow();
      if (!this.#isJoined) {
        this.#shakeHands(upstream, Buffer.from(buffer.subarray(0, bytes)));
        return true;
      }
      if (!downstream.write(buffer.subarray(0, bytes))) upstream.pause();
      if (downstream.writableLength > 0) keepReadBuffer();
      return true;
    };
    const upstream: net.Socket = endpoint.transport.connect(endpoint, 'bytes', this.info, {
      buffer: () => buffers.next(),
      callback: (bytes, buffer) => {
        try {
          boundary.enter();
          return read(bytes, buffer as Buffer);
        } catch (error) {
          boundary.caught(error);
          boundary.run(this.#fail);
          return true;
        }
      },
    });
    this.#upstream = upstream;
    const failed = (error?: Error) => {
      if (this.#upstream !== upstream || this.#isClosed) return;
      const certificateProblem = this.#isJoined ? undefined : endpoint.transport.certificateProblem(error, upstream);
      if (certificateProblem !== undefined) this.#connectDetails = `upstream_connect_failure{${detailText(certificateProblem)}}`;
      if (this.#isJoined) return this.close('UC', 'upstream_reset');
      clearTimeout(this.#connectTimer);
      cluster.counters.upstreamCxConnectFail++;
      endpoint.outlier?.onLocalFailure(503);
      this.#failed.push(endpoint);
      this.#upstream = undefined;
      upstream.destroy();
      this.#connect();
    };
    this.#connectTimer = boundary.after(cluster.settings.connectTimeoutMs, () => failed(), this.#fail);
    const ready = () => {
      if (this.settings.tunnelTo === undefined) return this.#join(upstream);
      this.#handshake = new ConnectHandshake(this.settings.tunnelTo);
      upstream.write(this.#handshake.request);
    };
    upstream.once(endpoint.transport.readyEvent, boundary.guard(ready, this.#fail));
    upstream.on('error', boundary.guard(failed, this.#fail));
    const closed = (hadError: boolean) => {
      if (this.#upstream !== upstream || this.#isClosed) return;
      if (!this.#isJoined || hadError) return failed();
      // Both directions have ended; what the client has not taken yet still goes out.
      this.#downstream.end();
      if (this.#downstream.writableFinished) this.close();
      else
        this.#downstream.once(
          'finish',
          boundary.wrap(() => this.close(), this.#fail),
        );
    };
    upstream.on('close', boundary.guard(closed, this.#fail));
  }

  /** Until the tunnel is open, what comes is the proxy's answer; a server may also speak before its client. */
  #shakeHands(upstream: net.Socket, received: Buffer): void {
    const handshake = this.#handshake?.read(received) ?? { state: 'open' as const, rest: received };
    if (handshake.state === 'incomplete') return;
    if (handshake.state === 'refused') return this.close('UF', `tunnel_refused:${handshake.reason.replaceAll(' ', '_')}`);
    if (this.#handshake !== undefined) this.bytesSent -= received.length - handshake.rest.length;
    this.#join(upstream);
    if (handshake.rest.length > 0 && !this.#downstream.write(handshake.rest)) upstream.pause();
  }

  #join(upstream: net.Socket): void {
    if (this.#isJoined) return;
    clearTimeout(this.#connectTimer);
    const downstream = this.#downstream;
    this.#isJoined = true;
    this.endpoint!.outlier?.onStatus(200);
    this.cluster!.tcpConnections++;
    this.endpoint!.activeRequests++;
    this.#metrics = this.settings.context.tcpMetrics.open(this.#labels());
    if (this.#first !== undefined) {
      this.bytesReceived += this.#first.length;
      upstream.write(this.#first);
      this.#first = undefined;
    }
    const fail = this.#fail;
    const read = (chunk: Buffer) => {
      countAllocatedRead(chunk.length);
      this.bytesReceived += chunk.length;
      this.#lastActivity = coarseNow();
      if (!upstream.write(chunk)) downstream.pause();
    };
    const resumes = (socket: net.Socket) => () => {
      this.#lastActivity = coarseNow();
      socket.resume();
    };
    downstream.on('data', boundary.guard(read, fail));
    upstream.on('drain', boundary.guard(resumes(downstream), fail));
    downstream.on('drain', boundary.guard(resumes(upstream), fail));
    downstream.on(
      'end',
      boundary.guard(() => upstream.end(), fail),
    );
    upstream.on(
      'end',
      boundary.guard(() => downstream.end(), fail),
    );
    downstream.resume();
  }

  #downstreamClosed(): void {
    if (this.#isClosed) return;
    const upstream = this.#upstream;
    if (upstream === undefined || !this.#isJoined || !this.#downstream.readableEnded) return this.close('DC', 'downstream_remote_disconnect');
    // The client has said all it had to say and taken all it wanted: the server still gets what is on its way to it.
    if (upstream.writableFinished) return this.close();
    upstream.once(
      'finish',
      boundary.wrap(() => this.close(), this.#fail),
    );
    upstream.end();
  }

  #labels(): TcpLabels {
    const { context, isInbound, isTls } = this.settings;
    const { self } = context;
    const { endpoint, cluster } = this;
    if (isInbound)
      return {
        reporter: 'destination',
        source: unknownPeer,
        destination: self,
        sourcePrincipal: this.peerUri || 'unknown',
        destinationPrincipal: isTls ? self.principal : 'unknown',
        service: cluster?.service,
        requestedHost: 'unknown',
        securityPolicy: isTls ? 'mutual_tls' : 'none',
      };
    const isMesh = endpoint?.transport.isMesh === true;
    return {
      reporter: 'source',
      source: self,
      destination: endpoint?.peer ?? unknownPeer,
      sourcePrincipal: isMesh ? self.principal : 'unknown',
      destinationPrincipal: isMesh ? endpoint.peer.principal : 'unknown',
      service: cluster?.service,
      requestedHost: cluster?.name ?? 'unknown',
      securityPolicy: isMesh ? 'mutual_tls' : 'none',
    };
  }
}
