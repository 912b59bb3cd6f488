import { once } from 'node:events';
import net from 'node:net';
import { type Logger, MizzenError, messageOf } from '@mizzen/common';
import type { OverloadState } from '../overload/overload-state.ts';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { type ConnectionInfo, connectionInfoOf } from './connection-info.ts';
import { type FilterChain, matchFilterChain } from './filter-chain.ts';
import { Inspection, type InspectionFailure, type InspectionResult, type ListenerFilters } from './inspection.ts';

/** What a listener does with connections. An update replaces it while the socket stays open. */
export interface ListenerConfig {
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly chains: readonly FilterChain[];
  /** Takes what no other chain is for. */
  readonly defaultChain: FilterChain | undefined;
  /** undefined: chains are chosen at once, nothing is read before. */
  readonly filters: ListenerFilters | undefined;
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
}

/** A listening socket. Connections go to a filter chain by their first bytes where the configuration asks for that. */
export class Listener implements InspectionResult {
  readonly address: string;
  readonly port: number;
  #config: ListenerConfig;
  /** Chains that an update has replaced and that still have connections. */
  #retired: FilterChain[];
  readonly #server: net.Server;
  readonly #inspecting: Map<net.Socket, Inspection>;
  readonly #surroundings: ListenerSurroundings;

  constructor(config: ListenerConfig, surroundings: ListenerSurroundings) {
    this.address = config.address;
    this.port = config.port;
    this.#config = config;
    this.#retired = [];
    this.#surroundings = surroundings;
    this.#inspecting = new Map();
    this.#server = net.createServer({ allowHalfOpen: true, noDelay: true, highWaterMark: Math.max(16 * 1024, config.bufferLimitBytes) }, (socket) =>
      this.#accept(socket),
    );
    this.#server.on('error', (error) => surroundings.logger.error('a listener failed', { listener: config.name, error: messageOf(error) }));
  }

  get config(): ListenerConfig {
    return this.#config;
  }

  get isListening(): boolean {
    return this.#server.listening;
  }

  /** The server whose socket a successor may be given (`child_process`, sending a handle). */
  get server(): net.Server {
    return this.#server;
  }

  async listen(): Promise<void> {
    this.#server.listen({ host: this.address, port: this.port, backlog: this.#config.backlog, reusePort: this.#surroundings.reusesPort });
    try {
      await once(this.#server, 'listening');
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
  async adopt(server: net.Server): Promise<void> {
    this.#server.listen(server);
    await once(this.#server, 'listening');
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
    for (const chain of this.#config.chains) chain.sweep(now);
    this.#config.defaultChain?.sweep(now);
    if (this.#retired.length === 0) return;
    for (const chain of this.#retired) chain.sweep(now);
    this.#retired = this.#retired.filter((chain) => chain.activeConnections() > 0);
  }

  /** Connections end with the request they are serving; new ones are still taken until `stopListening`. */
  drain(): void {
    for (const chain of this.#allChains()) chain.drain(true);
  }

  stopListening(): void {
    if (this.#server.listening) this.#server.close();
    for (const inspection of [...this.#inspecting.values()]) inspection.close();
  }

  async close(): Promise<void> {
    const closed = this.#server.listening ? once(this.#server, 'close') : Promise.resolve();
    this.stopListening();
    for (const chain of [...this.#allChains(), ...this.#retired]) {
      chain.drain(false);
      chain.closeAll();
      chain.close();
    }
    await closed;
  }

  #allChains(): FilterChain[] {
    const { chains, defaultChain } = this.#config;
    return defaultChain === undefined ? [...chains] : [...chains, defaultChain];
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
    const { filters } = this.#config;
    if (filters === undefined) return this.#serve(socket, connectionInfoOf(socket), undefined);
    this.#inspecting.set(socket, new Inspection(socket, filters, this));
  }

  onInspected(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void {
    this.#inspecting.delete(socket);
    this.#serve(socket, info, first);
  }

  onFailure(socket: net.Socket, failure: InspectionFailure): void {
    this.#inspecting.delete(socket);
    const { counters, logger } = this.#surroundings;
    if (failure === 'timeout') counters.values.listener_filter_timeouts_total++;
    if (failure === 'proxy_protocol') {
      counters.values.proxy_protocol_refused_total++;
      logger.warn('refused a connection without a valid PROXY protocol header', { listener: this.#config.name, from: socket.remoteAddress });
    }
  }

  #serve(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void {
    const chain = matchFilterChain(this.#config.chains, info) ?? this.#config.defaultChain;
    if (chain === undefined) return this.#refuse(socket, info);
    chain.accept(socket, info, first);
  }

  #refuse(socket: net.Socket, info: ConnectionInfo): void {
    const { counters, logger } = this.#surroundings;
    const wantsTls = !info.isTls && this.#config.chains.every((chain) => chain.match.transportProtocol === 'tls');
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
