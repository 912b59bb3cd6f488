import { once } from 'node:events';
import net from 'node:net';
import { type Logger, MizzenError, messageOf } from '@mizzen/common';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { maxClientHelloBytes, readClientHello } from './client-hello.ts';
import { type FilterChain, matchFilterChain } from './filter-chain.ts';

/** What a listener does with connections. An update replaces it while the socket stays open. */
export interface ListenerConfig {
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly chains: readonly FilterChain[];
  readonly inspectsTls: boolean;
}

/** Bytes that decide the filter chain must have come by then (Envoy's listener_filters_timeout). */
const inspectTimeoutMs = 15_000;
const backlog = 4096;

/** A listening socket. Connections go to a filter chain by their first bytes where the configuration asks for that. */
export class Listener {
  readonly address: string;
  readonly port: number;
  #config: ListenerConfig;
  /** Chains that an update has replaced and that still have connections. */
  #retired: FilterChain[];
  readonly #server: net.Server;
  readonly #inspecting: Set<net.Socket>;
  readonly #counters: ProxyCounters;
  readonly #logger: Logger;

  constructor(config: ListenerConfig, counters: ProxyCounters, logger: Logger) {
    this.address = config.address;
    this.port = config.port;
    this.#config = config;
    this.#retired = [];
    this.#counters = counters;
    this.#logger = logger;
    this.#inspecting = new Set();
    this.#server = net.createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.#accept(socket));
    this.#server.on('error', (error) => this.#logger.error('a listener failed', { listener: config.name, error: messageOf(error) }));
  }

  get config(): ListenerConfig {
    return this.#config;
  }

  get isListening(): boolean {
    return this.#server.listening;
  }

  async listen(): Promise<void> {
    this.#server.listen({ host: this.address, port: this.port, backlog });
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

  /** New connections use the new configuration; those that exist stay with the chain that took them. */
  update(config: ListenerConfig): void {
    const old = this.#config.chains;
    const chains = config.chains.map((chain) => {
      const kept = old.find((candidate) => candidate.signature === chain.signature);
      if (kept === undefined) return chain;
      kept.adopt(chain);
      chain.close();
      return kept;
    });
    this.#config = { ...config, chains };
    for (const chain of old) {
      if (chains.includes(chain)) continue;
      chain.drain();
      chain.close();
      if (chain.activeConnections() > 0) this.#retired.push(chain);
    }
  }

  activeConnections(): number {
    return [...this.#config.chains, ...this.#retired].reduce((sum, chain) => sum + chain.activeConnections(), 0);
  }

  sweep(now: number): void {
    for (const chain of this.#config.chains) chain.sweep(now);
    for (const chain of this.#retired) chain.sweep(now);
    this.#retired = this.#retired.filter((chain) => chain.activeConnections() > 0);
  }

  /** Stops accepting; connections end with the request they are serving. */
  drain(): void {
    if (this.#server.listening) this.#server.close();
    for (const socket of this.#inspecting) socket.destroy();
    for (const chain of this.#config.chains) chain.drain();
  }

  async close(): Promise<void> {
    const closed = this.#server.listening ? once(this.#server, 'close') : Promise.resolve();
    this.drain();
    for (const chain of [...this.#config.chains, ...this.#retired]) {
      chain.closeAll();
      chain.close();
    }
    await closed;
  }

  #accept(socket: net.Socket): void {
    const { chains, inspectsTls } = this.#config;
    if (!inspectsTls) {
      const chain = matchFilterChain(chains, false, '', []) ?? chains[0];
      if (chain === undefined) return void socket.destroy();
      if (chain.tls !== undefined) chain.tls.accept(socket);
      else chain.acceptPlain(socket, undefined);
      return;
    }
    this.#inspect(socket);
  }

  #inspect(socket: net.Socket): void {
    let seen: Buffer | undefined;
    this.#inspecting.add(socket);
    const timer = setTimeout(() => socket.destroy(), inspectTimeoutMs);
    const stop = () => {
      clearTimeout(timer);
      this.#inspecting.delete(socket);
      socket.off('data', onData);
      socket.off('close', stop);
      socket.off('error', onError);
      socket.off('end', onEnd);
    };
    const onError = () => socket.destroy();
    const onEnd = () => socket.destroy();
    const onData = (chunk: Buffer) => {
      seen = seen === undefined ? chunk : Buffer.concat([seen, chunk]);
      const hello = readClientHello(seen);
      if (hello === 'incomplete' && seen.length < maxClientHelloBytes) return;
      stop();
      const isTls = hello !== 'plain';
      const { serverName, alpn } = typeof hello === 'object' ? hello : { serverName: '', alpn: [] };
      const chain = matchFilterChain(this.#config.chains, isTls, serverName, alpn);
      if (chain === undefined) return this.#refuse(socket, isTls, serverName);
      if (chain.tls === undefined) return chain.acceptPlain(socket, seen);
      socket.pause();
      socket.unshift(seen);
      chain.tls.accept(socket);
    };
    socket.on('data', onData);
    socket.on('close', stop);
    socket.on('error', onError);
    socket.on('end', onEnd);
  }

  #refuse(socket: net.Socket, isTls: boolean, serverName: string): void {
    const wantsTls = !isTls && this.#config.chains.every((chain) => chain.transportProtocol === 'tls');
    if (wantsTls) {
      this.#counters.values.plain_text_refused_total++;
      this.#logger.warn('refused plain text: this port takes mutual TLS only (PeerAuthentication STRICT)', {
        listener: this.#config.name,
        from: socket.remoteAddress,
      });
    } else {
      this.#counters.values.no_filter_chain_match_total++;
      this.#logger.warn('refused a connection that no filter chain is for', { listener: this.#config.name, from: socket.remoteAddress, serverName });
    }
    socket.destroy();
  }
}
