import dgram from 'node:dgram';
import { once } from 'node:events';
import { isIPv6 } from 'node:net';
import { coarseNow, errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import type { ProxyContext } from '../http/connection-settings.ts';
import type { Cluster } from '../upstream/cluster.ts';
import type { Endpoint } from '../upstream/endpoint.ts';

/** One compiled UDP proxy (envoy udp_proxy.proto); made for DNS, good for any protocol of requests and answers. */
export interface UdpListenerConfig {
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly context: ProxyContext;
  readonly cluster: string;
  /** A session without datagrams ends then (`idle_timeout`, 60 s). */
  readonly idleTimeoutMs: number;
  /** Each datagram goes to an endpoint of its own (`use_per_packet_load_balancing`). */
  readonly balancesPackets: boolean;
}

/** Sessions of one listener; each costs a socket, and a source address costs a sender nothing. The longest idle makes room. */
const maxSessions = 4096;

const boundary = errorBoundary('udp.datagram');

/** One client's datagrams on their way to one endpoint, from a socket of their own, so that answers find back. */
interface Session {
  readonly key: string;
  readonly endpoint: Endpoint;
  readonly cluster: Cluster;
  readonly socket: dgram.Socket;
  lastActivity: number;
}

export class UdpListener {
  readonly address: string;
  readonly port: number;
  #config: UdpListenerConfig;
  readonly #logger: Logger;
  readonly #socket: dgram.Socket;
  /** By client and endpoint; a Map keeps the order of use. */
  readonly #sessions: Map<string, Session>;
  #isListening: boolean;
  #isClosed: boolean;

  constructor(config: UdpListenerConfig, logger: Logger) {
    this.address = config.address;
    this.port = config.port;
    this.#config = config;
    this.#logger = logger;
    this.#sessions = new Map();
    this.#isListening = false;
    this.#isClosed = false;
    // Workers share the port, and so do a proxy and the one that replaces it, for a moment.
    this.#socket = dgram.createSocket({ type: isIPv6(config.address) ? 'udp6' : 'udp4', reusePort: true });
    // An exception drops this datagram.
    this.#socket.on(
      'message',
      boundary.guard(
        (data: Buffer, from: dgram.RemoteInfo) => this.#forward(data, from),
        () => void this.#config.context.counters.values.udp_datagrams_dropped_total++,
      ),
    );
  }

  get config(): UdpListenerConfig {
    return this.#config;
  }

  get isListening(): boolean {
    return this.#isListening;
  }

  async listen(): Promise<void> {
    this.#socket.bind(this.port, this.address);
    try {
      await once(this.#socket, 'listening');
    } catch (error) {
      throw new MizzenError('cannot-listen', `listener ${this.#config.name} cannot listen: ${messageOf(error)}`, `${this.address}:${this.port}/udp`);
    }
    this.#socket.on('error', (error) => this.#logger.error('a listener failed', { listener: this.#config.name, error: messageOf(error) }));
    this.#isListening = true;
  }

  update(config: UdpListenerConfig): void {
    if (config.cluster !== this.#config.cluster) for (const session of [...this.#sessions.values()]) this.#end(session);
    this.#config = config;
  }

  activeConnections(): number {
    return this.#sessions.size;
  }

  sweep(now: number): void {
    for (const session of this.#sessions.values()) {
      const isGone = session.endpoint.isRemoved || now - session.lastActivity > this.#config.idleTimeoutMs;
      if (isGone) this.#end(session);
    }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#isListening = false;
    for (const session of [...this.#sessions.values()]) this.#end(session);
    await new Promise<void>((resolve) => this.#socket.close(() => resolve()));
  }

  #forward(data: Buffer, from: dgram.RemoteInfo): void {
    const { context, balancesPackets } = this.#config;
    const cluster = context.findCluster(this.#config.cluster);
    const client = `${from.address}|${from.port}`;
    const known = balancesPackets ? undefined : this.#sessions.get(client);
    if (known !== undefined && !known.endpoint.isRemoved && known.endpoint.isHealthy) return this.#send(known, data);
    if (known !== undefined) this.#end(known);
    const endpoint = cluster?.pick();
    if (cluster === undefined || endpoint === undefined) return void context.counters.values.udp_datagrams_dropped_total++;
    const key = balancesPackets ? `${client}|${endpoint.text}` : client;
    const session = (balancesPackets ? this.#sessions.get(key) : undefined) ?? this.#open(key, cluster, endpoint, from);
    this.#send(session, data);
  }

  #open(key: string, cluster: Cluster, endpoint: Endpoint, from: dgram.RemoteInfo): Session {
    const { values } = this.#config.context.counters;
    if (this.#sessions.size >= maxSessions) this.#end(this.#sessions.values().next().value!);
    const socket = dgram.createSocket(isIPv6(endpoint.address) ? 'udp6' : 'udp4');
    const session: Session = { key, endpoint, cluster, socket, lastActivity: coarseNow() };
    // A connected socket takes datagrams of the endpoint only: nobody else can answer in its name.
    socket.connect(endpoint.port, endpoint.address);
    const answered = (answer: Buffer) => {
      session.lastActivity = coarseNow();
      if (!this.#isClosed) this.#socket.send(answer, from.port, from.address, (error) => error && values.udp_datagrams_dropped_total++);
    };
    socket.on(
      'message',
      boundary.guard(answered, () => this.#end(session)),
    );
    const refused = () => {
      // The endpoint's host has answered that nobody listens there.
      cluster.counters.upstreamCxConnectFail++;
      values.udp_datagrams_dropped_total++;
      this.#end(session);
    };
    socket.on(
      'error',
      boundary.wrap(refused, () => this.#end(session)),
    );
    this.#sessions.set(key, session);
    cluster.counters.upstreamCxTotal++;
    endpoint.activeRequests++;
    values.udp_sessions_total++;
    values.udp_sessions_active++;
    return session;
  }

  #send(session: Session, data: Buffer): void {
    session.lastActivity = coarseNow();
    this.#sessions.delete(session.key);
    this.#sessions.set(session.key, session);
    session.cluster.counters.upstreamRqTotal++;
    const send = () => session.socket.send(data, (error) => error && this.#config.context.counters.values.udp_datagrams_dropped_total++);
    if (isConnected(session.socket)) send();
    else
      session.socket.once(
        'connect',
        boundary.wrap(send, () => this.#end(session)),
      );
  }

  #end(session: Session): void {
    if (this.#sessions.get(session.key) !== session) return;
    this.#sessions.delete(session.key);
    session.endpoint.activeRequests--;
    this.#config.context.counters.values.udp_sessions_active--;
    session.socket.removeAllListeners('connect');
    session.socket.close();
  }
}

function isConnected(socket: dgram.Socket): boolean {
  try {
    return socket.remoteAddress() !== undefined;
  } catch {
    return false; // the look-up of its own address is under way
  }
}
