import { once } from 'node:events';
import net from 'node:net';
import { errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import type { HeldVisitor } from '../http/http-connection.ts';
import type { OverloadState } from '../overload/overload-state.ts';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { type ConnectionInfo, connectionInfoOf } from './connection-info.ts';
import { type FilterChain, matchFilterChain } from './filter-chain.ts';
import { Inspection, type InspectionFailure, type InspectionResult, type ListenerFilters, needsInspection } from './inspection.ts';
import { originalDestinationOf } from './original-destination.ts';
import { listenOnUnixSocket, rememberUnixPath, UnixSocketFile } from './unix-socket.ts';

const accepting = errorBoundary('listener.accept');

/** A connection that has sent nothing yet has this long to do so after its listener has stopped. */
const silentMs = 500;

/** What a listener does with connections. An update replaces it while the socket stays open. */
export interface ListenerConfig {
  readonly name: string;
  /** An IP address, or the path of a Unix socket. */
  readonly address: string;
  /** 0 of a Unix socket. */
  readonly port: number;
  /** Of a Unix socket: the mode of its file, 0 for the default; undefined: it is none. */
  readonly unixMode: number | undefined;
  readonly chains: readonly FilterChain[];
  /** Takes what no other chain is for. */
  readonly defaultChain: FilterChain | undefined;
  /** undefined: chains are chosen at once, nothing is read before. */
  readonly filters: ListenerFilters | undefined;
  /** false: it has no socket of its own; connections come from a listener that hands them over (listener.proto `bind_to_port`). */
  readonly binds: boolean;
  /** Its address is IPv6, and connections of IPv4 clients are not for it. */
  readonly isIPv6Only: boolean;
  /** Connections were redirected here: the kernel says where they were going (`envoy.filters.listener.original_dst`). */
  readonly readsOriginalDestination: boolean;
  /** Connections go to the listener of the address that they were going to, if there is one (`use_original_dst`). */
  readonly handsOver: boolean;
  readonly backlog: number;
  /** Bytes that may wait in each direction before the other side is made to wait (listener.proto `per_connection_buffer_limit_bytes`). */
  readonly bufferLimitBytes: number;
}

/** What listeners need of the proxy around them. */
export interface ListenerSurroundings {
  readonly counters: ProxyCounters;
  readonly logger: Logger;
  readonly overload: OverloadState;
  /** Several processes listen on the same port, and the kernel spreads connections over them (SO_REUSEPORT). */
  readonly reusesPort: boolean;
  /** The listener for connections to this address: exactly, or for all addresses at this port. */
  readonly listenerFor: (address: string, port: number) => Listener | undefined;
}

/** Closes a socket that may have no owner yet: its reset must not become an unhandled 'error' event. */
function refuseSocket(socket: net.Socket): void {
  socket.on('error', () => {});
  socket.destroy();
}

/** A listening socket. Connections go to a filter chain by their first bytes where the configuration asks for that. */
export class Listener implements InspectionResult {
  readonly address: string;
  readonly port: number;
  #config: ListenerConfig;
  /** Chains that an update has replaced and that still have connections. */
  #retired: FilterChain[];
  #server: net.Server;
  readonly #inspecting: Map<net.Socket, Inspection>;
  readonly #surroundings: ListenerSurroundings;
  /** Of a listener without a socket: whether it takes what is handed over. */
  #isOpen: boolean;
  /** It is not to listen any more, or not to begin with. */
  #hasStopped: boolean;
  #stoppedAt: number;
  /** Of a Unix socket that this process may remove. */
  #file: UnixSocketFile | undefined;

  constructor(config: ListenerConfig, surroundings: ListenerSurroundings) {
    this.address = config.address;
    this.port = config.port;
    this.#config = config;
    this.#retired = [];
    this.#surroundings = surroundings;
    this.#inspecting = new Map();
    this.#isOpen = false;
    this.#hasStopped = false;
    this.#stoppedAt = 0;
    this.#file = undefined;
    this.#server = net.createServer({ allowHalfOpen: true, noDelay: true, highWaterMark: Math.max(16 * 1024, config.bufferLimitBytes) }, (socket) =>
      this.#acceptGuarded(socket),
    );
    this.#server.on('error', (error) => surroundings.logger.error('a listener failed', { listener: config.name, error: messageOf(error) }));
  }

  get config(): ListenerConfig {
    return this.#config;
  }

  get isListening(): boolean {
    return this.#config.binds ? this.#server.listening : this.#isOpen;
  }

  /** The server whose socket a successor may be given (`child_process`, sending a handle). */
  get server(): net.Server {
    return this.#server;
  }

  async listen(): Promise<void> {
    const { binds, backlog, isIPv6Only, unixMode } = this.#config;
    if (!binds) {
      this.#isOpen = true;
      return;
    }
    if (unixMode !== undefined) return this.#listenOnPath(unixMode);
    this.#server.listen({ host: this.address, port: this.port, backlog, ipv6Only: isIPv6Only, reusePort: this.#surroundings.reusesPort });
    try {
      await once(this.#server, 'listening');
      // The socket is open only now, after it was to be closed.
      if (this.#hasStopped) this.#server.close();
    } catch (error) {
      const inUse = (error as NodeJS.ErrnoException).code === 'EADDRINUSE';
      throw new MizzenError(
        inUse ? 'port-in-use' : 'cannot-listen',
        inUse
          ? `the port is in use: listener ${this.#config.name} cannot listen. Stop the other process, or choose another port.`
          : `listener ${this.#config.name} cannot listen: ${messageOf(error)}`,
        `${this.address}:${this.port}`,
      );
    }
  }

  /** Takes over a socket that another process has listened on: what waits in its queue is served too. */
  async adopt(server: net.Server, isItsOwn: boolean): Promise<void> {
    if (this.#config.unixMode !== undefined) return this.#adoptPath(server, isItsOwn);
    this.#server.listen(server);
    await once(this.#server, 'listening');
  }

  /** Another process listens on its socket now: the file of a Unix socket is that process's to remove. */
  handedOver(): void {
    this.#file?.handedOver();
  }

  /** Node.js cannot listen again on a Unix socket that it has been given: the server that it came as stays. */
  #adoptPath(server: net.Server, isItsOwn: boolean): void {
    Object.assign(server, { allowHalfOpen: true, highWaterMark: Math.max(16 * 1024, this.#config.bufferLimitBytes) });
    accepting.own(server).on('connection', (socket) => this.#acceptGuarded(socket));
    this.#server = server;
    rememberUnixPath(server, this.address);
    if (isItsOwn) this.#file = new UnixSocketFile(this.address);
  }

  async #listenOnPath(mode: number): Promise<void> {
    try {
      this.#file = await listenOnUnixSocket(this.#server, this.address, mode, this.#config.backlog);
    } catch (error) {
      if (error instanceof MizzenError) throw new MizzenError(error.code, `listener ${this.#config.name} cannot listen: ${error.message}`, this.address);
      throw new MizzenError('cannot-listen', `listener ${this.#config.name} cannot listen: ${messageOf(error)}`, this.address);
    }
    if (this.#hasStopped) this.stopListening();
  }

  /** New connections use the new configuration; those that exist stay with the chain that took them. */
  update(config: ListenerConfig): void {
    const old = this.#allChains();
    const keep = (chain: FilterChain) => {
      const kept = old.find((candidate) => candidate.signature === chain.signature);
      if (kept === undefined) return chain;
      kept.adopt(chain);
      chain.close();
      return kept;
    };
    this.#config = { ...config, chains: config.chains.map(keep), defaultChain: config.defaultChain && keep(config.defaultChain) };
    const chains = this.#allChains();
    for (const chain of old) {
      if (chains.includes(chain)) continue;
      // What is still served the old way ends as soon as it can: the change may be one of security.
      chain.drain(false);
      chain.close();
      if (chain.activeConnections() > 0) this.#retired.push(chain);
    }
  }

  activeConnections(): number {
    return [...this.#allChains(), ...this.#retired].reduce((sum, chain) => sum + chain.activeConnections(), this.#inspecting.size);
  }

  sweep(now: number): void {
    if (this.#hasStopped && now - this.#stoppedAt > silentMs) this.#closeInspections();
    for (const chain of this.#config.chains) chain.sweep(now);
    this.#config.defaultChain?.sweep(now);
    if (this.#retired.length === 0) return;
    for (const chain of this.#retired) chain.sweep(now);
    this.#retired = this.#retired.filter((chain) => chain.activeConnections() > 0);
  }

  held(visit: HeldVisitor): void {
    for (const chain of [...this.#allChains(), ...this.#retired]) chain.held(visit);
  }

  /** Connections end with the request they are serving; new ones are still taken until `stopListening`. */
  drain(): void {
    for (const chain of this.#allChains()) chain.drain(true);
  }

  stopListening(): void {
    this.#isOpen = false;
    if (!this.#hasStopped) this.#stoppedAt = performance.now();
    this.#hasStopped = true;
    if (this.#server.listening) this.#server.close();
    this.#file?.remove();
  }

  async close(): Promise<void> {
    const closed = this.#server.listening ? once(this.#server, 'close') : Promise.resolve();
    this.stopListening();
    this.#closeInspections();
    for (const chain of [...this.#allChains(), ...this.#retired]) {
      chain.drain(false);
      chain.closeAll();
      chain.close();
    }
    await closed;
  }

  #closeInspections(): void {
    for (const inspection of [...this.#inspecting.values()]) inspection.close();
  }

  #allChains(): FilterChain[] {
    const { chains, defaultChain } = this.#config;
    return defaultChain === undefined ? [...chains] : [...chains, defaultChain];
  }

  #acceptGuarded(socket: net.Socket): void {
    try {
      accepting.enter();
      this.#accept(socket);
    } catch (error) {
      accepting.caught(error);
      refuseSocket(socket);
    }
  }

  #accept(socket: net.Socket): void {
    const { overload, counters } = this.#surroundings;
    if (!overload.acceptsConnection()) {
      counters.values.downstream_connections_overload_rejected_total++;
      return void socket.destroy();
    }
    socket.once('close', overload.connectionClosed);
    // A socket that came from another process was opened with its defaults.
    socket.allowHalfOpen = true;
    const info = connectionInfoOf(socket);
    if (!this.#config.readsOriginalDestination) return this.#inspect(socket, info, undefined);
    const original = originalDestinationOf(socket);
    if (original !== undefined)
      return this.#inspect(socket, { ...info, localAddress: original.address, localPort: original.port, isOriginalDestination: true }, undefined);
    this.#inspect(socket, info, undefined);
  }

  /** Takes a connection that another listener was called for in this one's place. */
  take(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void {
    this.#inspect(socket, info, first);
  }

  #inspect(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void {
    const { filters } = this.#config;
    if (filters === undefined || !needsInspection(filters, info)) return this.#serve(socket, info, first);
    const inspection = new Inspection(socket, info, first, filters, this);
    if (!inspection.isDone) this.#inspecting.set(socket, inspection);
  }

  onInspected(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void {
    this.#inspecting.delete(socket);
    try {
      accepting.enter();
      this.#serve(socket, info, first);
    } catch (error) {
      accepting.caught(error);
      refuseSocket(socket);
    }
  }

  onFailure(socket: net.Socket, failure: InspectionFailure): void {
    this.#inspecting.delete(socket);
    const { counters, logger } = this.#surroundings;
    if (failure === 'timeout') counters.values.listener_filter_timeouts_total++;
    if (failure === 'client_hello') {
      counters.countViolation('tls.client_hello_refused');
      logger.warn('refused a connection: its ClientHello is larger than 16 KiB or split into more than 16 records', {
        listener: this.#config.name,
        from: socket.remoteAddress,
      });
    }
    if (failure === 'proxy_protocol') {
      counters.values.proxy_protocol_refused_total++;
      logger.warn('refused a connection without a valid PROXY protocol header', { listener: this.#config.name, from: socket.remoteAddress });
    }
  }

  #serve(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void {
    if (this.#config.handsOver) {
      // Whoever calls this very port was going nowhere else: to pass the call on would be to call ourselves, for ever.
      if (info.localPort === this.port) return this.#refuseSelf(socket, info);
      const target = this.#surroundings.listenerFor(info.localAddress, info.localPort);
      if (target !== undefined && target !== this && !target.config.handsOver) return target.take(socket, info, first);
    }
    const chain = matchFilterChain(this.#config.chains, info) ?? this.#config.defaultChain;
    if (chain === undefined) return this.#refuse(socket, info);
    chain.accept(socket, info, first);
  }

  #refuseSelf(socket: net.Socket, info: ConnectionInfo): void {
    const { counters, logger } = this.#surroundings;
    counters.values.original_destination_is_self_total++;
    logger.warn('refused a connection to the port of captured connections itself', { listener: this.#config.name, from: info.remoteAddress });
    socket.destroy();
  }

  #refuse(socket: net.Socket, info: ConnectionInfo): void {
    const { counters, logger } = this.#surroundings;
    const wantsTls = !info.isTls && matchFilterChain(this.#config.chains, { ...info, isTls: true }) !== undefined;
    if (wantsTls) {
      counters.values.plain_text_refused_total++;
      logger.warn('refused plain text: this port takes mutual TLS only (PeerAuthentication STRICT)', { listener: this.#config.name, from: info.remoteAddress });
    } else {
      counters.values.no_filter_chain_match_total++;
      logger.warn('refused a connection that no filter chain is for', {
        listener: this.#config.name,
        from: info.remoteAddress,
        serverName: info.serverName,
      });
    }
    socket.destroy();
  }
}
