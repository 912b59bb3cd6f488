import type net from 'node:net';

/**
 * What the listener filters have found out about a connection before a filter chain is chosen for it. Addresses are those of the client
 * and of its target as they were before any proxy that told us so (PROXY protocol); otherwise the socket's own.
 */
export interface ConnectionInfo {
  readonly remoteAddress: string;
  readonly remotePort: number;
  readonly localAddress: string;
  readonly localPort: number;
  /** The local address is the one that the client was going to, told by the kernel that redirected it or by a PROXY header. */
  readonly isOriginalDestination: boolean;
  readonly isTls: boolean;
  /** Server name of a ClientHello, lower case; '' without one. */
  readonly serverName: string;
  /** Application protocols: offered by a ClientHello, or found by the HTTP inspector (`http/1.0`, `http/1.1`, `h2c`). */
  readonly applicationProtocols: readonly string[];
}

const noProtocols: readonly string[] = [];

/** What the socket says itself. */
export function connectionInfoOf(socket: net.Socket): ConnectionInfo {
  return {
    remoteAddress: socket.remoteAddress ?? '',
    remotePort: socket.remotePort ?? 0,
    localAddress: socket.localAddress ?? '',
    localPort: socket.localPort ?? 0,
    isOriginalDestination: false,
    isTls: false,
    serverName: '',
    applicationProtocols: noProtocols,
  };
}
