import net from 'node:net';
import tls from 'node:tls';
import { MizzenError, vetServer } from '@mizzen/common';
import type { ConnectionInfo } from '../net/connection-info.ts';
import { writeProxyHeader } from '../net/proxy-protocol.ts';
import { atUnixSocket } from '../net/unix-socket.ts';
import type { ClientTls } from '../tls/client-tls.ts';

/** Where a connection goes. */
export interface Destination {
  readonly address: string;
  readonly port: number;
  /** Of a Unix socket, in the place of the port: from configuration alone, so that no name in a request becomes a path. */
  readonly unixPath: string | undefined;
}

/** What a connection is for: sidecars tell each other in the handshake (ALPN `istio-http/1.1`, `istio-h2`). */
export type Content = 'http' | 'http2' | 'bytes';

export type OnRead = NonNullable<net.SocketConstructorOpts['onread']>;

/** How connections to an endpoint are made: plain, or with TLS. */
export interface Transport {
  readonly isTls: boolean;
  /** Mutual TLS inside the mesh: the peer's identity is known and verified. */
  readonly isMesh: boolean;
  /** A connection speaks for one client (it begins with that client's PROXY header) and may serve nobody else. */
  readonly isPerClient: boolean;
  /** What it needs of the control plane. */
  readonly secretNames: readonly string[];
  /** Why no connection can be made now, or undefined. */
  readonly notReadyReason: string | undefined;
  /** `client` is whom the connection is for, where one is known. */
  connect(to: Destination, content: Content, client?: ConnectionInfo, onread?: OnRead): net.Socket;
  /** Why a new connection has failed, where a certificate out of its time is the reason. */
  certificateProblem(error: Error | undefined, socket: net.Socket): string | undefined;
  /** The event that says the connection can be written to. */
  readonly readyEvent: 'connect' | 'secureConnect';
}

const withOnRead = (onread: OnRead | undefined) => (onread === undefined ? {} : { onread });

/** What connections are made with. */
export interface SocketSettings {
  /** Where they come from; undefined: the kernel chooses. */
  readonly sourceAddress: string | undefined;
  /** Silence after which the kernel asks whether the peer is still there; undefined: it does not. */
  readonly keepaliveAfterMs: number | undefined;
}

export const plainSocket: SocketSettings = { sourceAddress: undefined, keepaliveAfterMs: undefined };

function optionsOf({ sourceAddress, keepaliveAfterMs }: SocketSettings) {
  return {
    ...(sourceAddress === undefined ? {} : { localAddress: sourceAddress }),
    ...(keepaliveAfterMs === undefined ? {} : { keepAlive: true, keepAliveInitialDelay: keepaliveAfterMs }),
  };
}

export function plainTransport(settings: SocketSettings): Transport {
  const options = optionsOf(settings);
  return {
    isTls: false,
    isMesh: false,
    isPerClient: false,
    secretNames: [],
    notReadyReason: undefined,
    certificateProblem: () => undefined,
    readyEvent: 'connect',
    connect: ({ address, port, unixPath }, _content, _client, onread) =>
      unixPath !== undefined
        ? atUnixSocket(unixPath, (path) => net.connect({ path, allowHalfOpen: true, ...withOnRead(onread) }))
        : net.connect({ host: address, port, noDelay: true, allowHalfOpen: true, ...options, ...withOnRead(onread) }),
  };
}

export function tlsTransport(client: ClientTls, settings: SocketSettings): Transport {
  const socketOptions = optionsOf(settings);
  return {
    isTls: true,
    isMesh: client.isMesh,
    isPerClient: false,
    secretNames: client.secretNames,
    get notReadyReason() {
      return client.notReadyReason;
    },
    certificateProblem: (error, socket) => client.certificateProblem(error, socket),
    readyEvent: 'secureConnect',
    connect: ({ address, port }, content, _client, onread) => {
      if (client.notReadyReason !== undefined) return refused(client.notReadyReason, address, port);
      const options = { ...client.connectOptions(address, port, content), allowHalfOpen: true, ...socketOptions, ...withOnRead(onread) };
      const socket = vetServer(tls.connect(options));
      client.follow(socket, address, port);
      socket.setNoDelay(true);
      return socket;
    },
  };
}

/**
 * A connection that fails: without the secret that its configuration names, TLS would go on without a client certificate, or with the public roots in place of
 * those that were meant.
 */
function refused(reason: string, address: string, port: number): net.Socket {
  const socket = new net.Socket();
  process.nextTick(() => socket.destroy(new MizzenError('missing-secret', reason, `${address}:${port}`)));
  return socket;
}

/** PROXY protocol before everything else that a connection says (envoy upstream_proxy_protocol.proto), plain or before the TLS handshake. */
export function proxyProtocolTransport(version: 1 | 2, client: ClientTls | undefined, settings: SocketSettings): Transport {
  const plain = plainTransport(settings);
  const inner = client === undefined ? plain : tlsTransport(client, settings);
  return {
    isTls: inner.isTls,
    isMesh: inner.isMesh,
    isPerClient: true,
    secretNames: inner.secretNames,
    get notReadyReason() {
      return inner.notReadyReason;
    },
    certificateProblem: (error, socket) => inner.certificateProblem(error, socket),
    readyEvent: inner.readyEvent,
    connect: (to, content, info, onread) => {
      if (client?.notReadyReason !== undefined) return refused(client.notReadyReason, to.address, to.port);
      const raw = client === undefined ? plain.connect(to, content, info, onread) : plain.connect(to, content, info);
      const own = { sourceAddress: '', sourcePort: 0, destinationAddress: '', destinationPort: 0 };
      raw.write(
        writeProxyHeader(
          version,
          info === undefined
            ? own
            : { sourceAddress: info.remoteAddress, sourcePort: info.remotePort, destinationAddress: info.localAddress, destinationPort: info.localPort },
        ),
      );
      if (client === undefined) return raw;
      const { host: _host, port: _port, ...options } = client.connectOptions(to.address, to.port, content);
      const withSocket = { ...options, socket: raw, ...withOnRead(onread) };
      const socket = vetServer(tls.connect(withSocket));
      raw.on('error', (error) => socket.destroy(error));
      client.follow(socket, to.address, to.port);
      return socket;
    },
  };
}
