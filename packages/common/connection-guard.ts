import type { Server as HttpServer } from 'node:http';
import type { Server as HttpsServer } from 'node:https';
import { isIPv6, type Server, type Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { errorBoundary } from './error-boundary.ts';

const boundary = errorBoundary('server.connection');

/** What connections to a server of ours may cost before it is known who calls, and after. */
export interface ConnectionLimits {
  /** Of all peers together. */
  readonly maxConnections: number;
  /** Connections that have proved nothing, of all peers and of one. One more takes the place of the oldest, not of the newest. */
  readonly maxUnproven: number;
  readonly maxUnprovenPerPeer: number;
  /** How long a connection may prove nothing. */
  readonly maxUnprovenMs: number;
  /** Connections of one identity from one address. */
  readonly maxPerIdentity: number;
}

export const defaultConnectionLimits: ConnectionLimits = {
  maxConnections: 10_000,
  maxUnproven: 1_000,
  maxUnprovenPerPeer: 200,
  maxUnprovenMs: 20_000,
  maxPerIdentity: 1_000,
};

interface Entry {
  readonly key: string | Socket;
  readonly socket: Socket;
  readonly peer: string;
  readonly timer: NodeJS.Timeout;
  /** Who it is; undefined: it has proved nothing. */
  identity: string | undefined;
}

/** The network address that connections are counted by: an IPv4 address, or the /64 of an IPv6 address, which one host has to itself. */
export function peerOf(socket: Pick<Socket, 'remoteAddress'>): string {
  const address = (socket.remoteAddress ?? 'local').replace(/^::ffff:(?=\d+\.)/i, '');
  if (!isIPv6(address)) return address;
  const [head = '', tail = ''] = address.split('%')[0]!.split('::');
  const [before, after] = [head, tail].map((part) => (part === '' ? [] : part.split(':')));
  const missing = Math.max(0, 8 - (before?.length ?? 0) - (after?.length ?? 0));
  return [...(before ?? []), ...Array.from({ length: missing }, () => '0'), ...(after ?? [])].slice(0, 4).join(':');
}

/**
 * Guards a server before its callers are authenticated. Connections that have proved nothing (a TLS handshake, a head or a message that does not come)
 * have few places and little time, and lose theirs to newer ones: a client that stalls cannot keep others out, also from the same address. `prove` moves a connection to
 * those of its identity.
 */
export class ConnectionGuard {
  readonly #limits: ConnectionLimits;
  readonly #entries: Map<string | Socket, Entry>;
  /** By peer, oldest first. */
  readonly #unproven: Map<string, Set<Entry>>;
  readonly #identities: Map<string, number>;
  #unprovenCount: number;
  /** Connections that were closed by a limit. */
  closed: number;

  constructor(server: Server, limits: Partial<ConnectionLimits> = {}) {
    this.#limits = { ...defaultConnectionLimits, ...limits };
    this.#entries = new Map();
    this.#unproven = new Map();
    this.#identities = new Map();
    this.#unprovenCount = 0;
    this.closed = 0;
    // Before the server's own listener, which may know at once who it is.
    boundary.own(server).prependListener('connection', (socket: Socket) => this.#accept(socket));
  }

  /** The connection's peer has proved to be this identity. False: the identity has too many, and the connection is closed. */
  prove(socket: Socket | TLSSocket, identity: string): boolean {
    const entry = this.#entries.get(keyOf(socket)) ?? this.#entries.get(socket);
    if (entry === undefined || entry.identity !== undefined) return true;
    const key = `${identity}@${entry.peer}`;
    const count = this.#identities.get(key) ?? 0;
    if (count >= this.#limits.maxPerIdentity) {
      this.#close(entry);
      return false;
    }
    this.#forgetUnproven(entry);
    entry.identity = key;
    this.#identities.set(key, count + 1);
    return true;
  }

  get size(): number {
    return this.#entries.size;
  }

  get unproven(): number {
    return this.#unprovenCount;
  }

  #accept(socket: Socket): void {
    const { maxConnections, maxUnproven, maxUnprovenPerPeer, maxUnprovenMs } = this.#limits;
    const peer = peerOf(socket);
    const same = this.#unproven.get(peer);
    if (same !== undefined && same.size >= maxUnprovenPerPeer) this.#closeOldest(same);
    else if (this.#unprovenCount >= maxUnproven || this.#entries.size >= maxConnections) this.#closeOldest(this.#most());
    if (this.#entries.size >= maxConnections) {
      this.closed++;
      socket.on('error', () => {});
      return void setImmediate(() => socket.destroy());
    }
    const key = keyOf(socket);
    const entry: Entry = { key, socket, peer, timer: boundary.after(maxUnprovenMs, () => this.#close(entry)).unref(), identity: undefined };
    this.#entries.set(key, entry);
    const set = this.#unproven.get(peer) ?? new Set();
    this.#unproven.set(peer, set.add(entry));
    this.#unprovenCount++;
    boundary.own(socket).once('close', () => this.#forget(entry));
  }

  #most(): ReadonlySet<Entry> | undefined {
    let most: ReadonlySet<Entry> | undefined;
    for (const set of this.#unproven.values()) if (set.size > (most?.size ?? 0)) most = set;
    return most;
  }

  #closeOldest(entries: ReadonlySet<Entry> | undefined): void {
    for (const entry of entries ?? []) return this.#close(entry);
  }

  #close(entry: Entry): void {
    this.closed++;
    this.#forget(entry);
    entry.socket.on('error', () => {});
    entry.socket.destroy();
  }

  #forget(entry: Entry): void {
    if (this.#entries.get(entry.key) === entry) this.#entries.delete(entry.key);
    if (entry.identity === undefined) return this.#forgetUnproven(entry);
    const count = this.#identities.get(entry.identity) ?? 0;
    if (count > 1) this.#identities.set(entry.identity, count - 1);
    else this.#identities.delete(entry.identity);
    entry.identity = undefined;
  }

  #forgetUnproven(entry: Entry): void {
    clearTimeout(entry.timer);
    const set = this.#unproven.get(entry.peer);
    if (set?.delete(entry) !== true) return;
    this.#unprovenCount--;
    if (set.size === 0) this.#unproven.delete(entry.peer);
  }
}

/** A TLS socket and the one beneath it are one connection, known by their peer's address and port. */
function keyOf(socket: Socket | TLSSocket): string | Socket {
  return socket.remotePort === undefined ? socket : `${socket.remoteAddress}|${socket.remotePort}`;
}

/** How long a client of an HTTP server of ours may take for a head, and for a request. */
export interface HttpTimeLimits {
  readonly maxHeadMs: number;
  readonly maxRequestMs: number;
}

const checkMs = 1_000;

/** Node.js looks for slow clients every 30 s unless its server is created with this. */
export const httpServerOptions = { connectionsCheckingInterval: checkMs, maxHeaderSize: 16 * 1024 } as const;

export function limitHttpTimes(server: HttpServer | HttpsServer, { maxHeadMs, maxRequestMs }: HttpTimeLimits): void {
  server.headersTimeout = maxHeadMs;
  server.requestTimeout = maxRequestMs;
}

/** TLS handshakes may take so long (Node.js: 120 s). */
export const maxHandshakeMs = 10_000;
