import net from 'node:net';
import tls from 'node:tls';
import type { ClientTls } from '../tls/client-tls.ts';

/** How connections to an endpoint are made: plain, or with TLS. */
export interface Transport {
  readonly isTls: boolean;
  /** Mutual TLS inside the mesh: the peer's identity is known and verified. */
  readonly isMesh: boolean;
  /** Why no connection can be made now, or undefined. */
  readonly notReadyReason: string | undefined;
  connect(address: string, port: number): net.Socket;
  /** The event that says the connection can be written to. */
  readonly readyEvent: 'connect' | 'secureConnect';
}

export const plainTransport: Transport = {
  isTls: false,
  isMesh: false,
  notReadyReason: undefined,
  readyEvent: 'connect',
  connect: (address, port) => net.connect({ host: address, port, noDelay: true }),
};

export function tlsTransport(client: ClientTls): Transport {
  return {
    isTls: true,
    isMesh: client.isMesh,
    get notReadyReason() {
      return client.notReadyReason;
    },
    readyEvent: 'secureConnect',
    connect: (address, port) => {
      const socket = tls.connect(client.connectOptions(address, port));
      socket.setNoDelay(true);
      return socket;
    },
  };
}
