import type net from 'node:net';
import { errorBoundary } from '@mizzen/common';
import { ClientHelloReader } from './client-hello.ts';
import type { ConnectionInfo } from './connection-info.ts';
import { sniffHttp } from './http-prelude.ts';
import { readProxyHeader } from './proxy-protocol.ts';

const boundary = errorBoundary('listener.inspection');

/** The listener filters of one listener, in the order in which they run. */
export interface ListenerFilters {
  readonly proxyProtocol: ProxyProtocolSettings | undefined;
  readonly tls: InspectorSettings | undefined;
  readonly http: InspectorSettings | undefined;
  /** Bytes that decide the filter chain must have come by then (listener.proto `listener_filters_timeout`, 15 s); 0: no limit. */
  readonly timeoutMs: number;
  /** After the timeout the connection goes on with what is known instead of ending: for protocols in which the server speaks first. */
  readonly continuesOnTimeout: boolean;
}

export interface InspectorSettings {
  /** Destination ports whose connections it leaves alone (`filter_disabled`): their server may be the first to speak. */
  readonly disabledPorts: readonly PortRange[];
}

export interface PortRange {
  readonly start: number;
  /** The first port after the range. */
  readonly end: number;
}

export interface ProxyProtocolSettings {
  /** Connections without a header are served too (`allow_requests_without_proxy_protocol`). */
  readonly isOptional: boolean;
  readonly versions: readonly (1 | 2)[];
}

export type InspectionFailure = 'proxy_protocol' | 'client_hello' | 'timeout' | 'closed';

/** Who waits for the outcome; called once, with the bytes that were read and belong to the connection. */
export interface InspectionResult {
  onInspected(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined): void;
  onFailure(socket: net.Socket, failure: InspectionFailure): void;
}

const noBytes = Buffer.alloc(0);

/** Whether a connection's bytes have to be read before its filter chain can be chosen. */
export function needsInspection(filters: ListenerFilters, info: ConnectionInfo): boolean {
  return filters.proxyProtocol !== undefined || inspects(filters.tls, info) || inspects(filters.http, info);
}

function inspects(inspector: InspectorSettings | undefined, info: ConnectionInfo): boolean {
  return inspector !== undefined && !inspector.disabledPorts.some(({ start, end }) => info.localPort >= start && info.localPort < end);
}

/**
 * Reads the first bytes of a connection until all listener filters know what they need, without taking them from whoever comes next.
 * Holds at most the longest header that one of them accepts.
 */
export class Inspection {
  readonly #socket: net.Socket;
  readonly #filters: ListenerFilters;
  readonly #result: InspectionResult;
  readonly #timer: NodeJS.Timeout | undefined;
  #info: ConnectionInfo;
  #seen: Buffer | undefined;
  /** What `#seen` is the beginning of: it grows by doubling, so that bytes that come one by one are not copied each time. */
  #store: Buffer;
  readonly #hello: ClientHelloReader;
  #isHeaderRead: boolean;
  #isTlsKnown: boolean;
  #isHttpKnown: boolean;
  #isDone: boolean;
  readonly #onData = (chunk: Buffer) => {
    try {
      boundary.enter();
      this.#read(chunk);
    } catch (error) {
      boundary.caught(error);
      boundary.run(() => this.#fail('closed'));
      this.#socket.destroy();
    }
  };
  readonly #onGone = () => boundary.run(() => this.#fail('closed'));

  /** `first` are bytes that somebody has read before. */
  constructor(socket: net.Socket, info: ConnectionInfo, first: Buffer | undefined, filters: ListenerFilters, result: InspectionResult) {
    this.#socket = socket;
    this.#filters = filters;
    this.#result = result;
    this.#info = info;
    this.#seen = undefined;
    this.#store = noBytes;
    this.#hello = new ClientHelloReader();
    this.#isHeaderRead = filters.proxyProtocol === undefined;
    this.#isTlsKnown = !inspects(filters.tls, info);
    this.#isHttpKnown = !inspects(filters.http, info);
    this.#isDone = false;
    this.#timer =
      filters.timeoutMs > 0
        ? boundary.after(
            filters.timeoutMs,
            () => this.#timedOut(),
            () => socket.destroy(),
          )
        : undefined;
    socket.on('data', this.#onData);
    socket.on('end', this.#onGone);
    socket.on('close', this.#onGone);
    socket.on('error', this.#onGone);
    if (first !== undefined) this.#read(first);
    if (!this.#isDone && socket.isPaused()) socket.resume();
  }

  /** The outcome has been told. */
  get isDone(): boolean {
    return this.#isDone;
  }

  /** Ends the connection with its inspection. */
  close(): void {
    this.#fail('closed');
  }

  #read(chunk: Buffer): void {
    this.#seen = this.#seen === undefined ? chunk : this.#joined(this.#seen, chunk);
    if (!this.#isHeaderRead && !this.#readProxyHeader()) return;
    const seen = this.#seen;
    if (seen === undefined) return; // the header took all that has come
    if (!this.#isTlsKnown) {
      const hello = this.#hello.read(seen);
      if (hello === 'incomplete') return;
      if (hello === 'refused') return this.#fail('client_hello');
      this.#isTlsKnown = true;
      if (hello !== 'plain') {
        const { serverName, alpn } = hello;
        this.#info = { ...this.#info, isTls: true, serverName, applicationProtocols: alpn };
        this.#isHttpKnown = true; // what is inside TLS is known after the handshake only
      }
    }
    if (!this.#isHttpKnown) {
      const protocol = sniffHttp(seen);
      if (protocol === 'incomplete') return;
      this.#isHttpKnown = true;
      if (protocol !== 'none') this.#info = { ...this.#info, applicationProtocols: [protocol] };
    }
    this.#finish();
  }

  #joined(seen: Buffer, chunk: Buffer): Buffer {
    const length = seen.length + chunk.length;
    const isAtStart = seen.buffer === this.#store.buffer && seen.byteOffset === this.#store.byteOffset;
    if (!isAtStart || this.#store.length < length) {
      this.#store = Buffer.allocUnsafeSlow(Math.max(512, 2 * length));
      seen.copy(this.#store);
    }
    chunk.copy(this.#store, seen.length);
    return this.#store.subarray(0, length);
  }

  /** Returns whether the other filters may go on. */
  #readProxyHeader(): boolean {
    const settings = this.#filters.proxyProtocol!;
    const seen = this.#seen!;
    const header = readProxyHeader(seen);
    if (header === 'incomplete') return false;
    if (header === 'none' ? !settings.isOptional : header === 'invalid' || !settings.versions.includes(header.version)) {
      this.#fail('proxy_protocol');
      return false;
    }
    this.#isHeaderRead = true;
    if (typeof header === 'string') return true;
    if (header.addresses !== undefined) {
      const { sourceAddress, sourcePort, destinationAddress, destinationPort } = header.addresses;
      this.#info = {
        ...this.#info,
        remoteAddress: sourceAddress,
        remotePort: sourcePort,
        localAddress: destinationAddress,
        localPort: destinationPort,
        isOriginalDestination: true,
      };
    }
    this.#seen = seen.length === header.length ? undefined : seen.subarray(header.length);
    if (this.#isTlsKnown && this.#isHttpKnown) {
      this.#finish();
      return false;
    }
    return true;
  }

  #timedOut(): void {
    // Without its PROXY header nobody knows whose connection this is.
    if (!this.#filters.continuesOnTimeout || !this.#isHeaderRead) this.#fail('timeout');
    else this.#finish();
  }

  #finish(): void {
    if (!this.#stop()) return;
    this.#result.onInspected(this.#socket, this.#info, this.#seen);
  }

  #fail(failure: InspectionFailure): void {
    if (!this.#stop()) return;
    this.#result.onFailure(this.#socket, failure);
    this.#socket.destroy();
  }

  #stop(): boolean {
    if (this.#isDone) return false;
    this.#isDone = true;
    clearTimeout(this.#timer);
    this.#socket.off('data', this.#onData);
    this.#socket.off('end', this.#onGone);
    this.#socket.off('close', this.#onGone);
    this.#socket.off('error', this.#onGone);
    // Nothing may be read, and so nothing lost, before the next owner listens.
    this.#socket.pause();
    return true;
  }
}
