import { once } from 'node:events';
import net from 'node:net';

/** What a `FaultyWire` does to the connections that are open, and to each new one. */
export interface WireFault {
  /** To bytes of the server on their way to the client; undefined: passes them. */
  readonly forward?: ((client: net.Socket, chunk: Buffer) => void) | undefined;
  /** At once to an open connection, and to a new one instead of connecting it to the server; undefined: connects it. */
  readonly disturb?: ((client: net.Socket) => void) | undefined;
  /** New connections reach this port instead of the server's. */
  readonly insteadPort?: number | undefined;
}

const alert = Buffer.from([21, 3, 3, 0, 2, 2, 40]);

export const wireFaults = {
  reset: { disturb: (client) => client.resetAndDestroy() },
  garbage: { disturb: (client) => client.end(Buffer.alloc(1_000, 0xa5)) },
  'half-open': { forward: () => {}, disturb: () => {} },
  'TLS alert': { disturb: (client) => client.end(alert) },
  'slow bytes': { forward: (client, chunk) => slowly(client, chunk) },
} as const satisfies Record<string, WireFault>;

/** One byte every 20 ms: no handshake completes in the time of a drill, and the connection is never silent. */
function slowly(client: net.Socket, chunk: Buffer): void {
  let at = 0;
  const timer = setInterval(() => {
    if (client.destroyed || at === chunk.length) return clearInterval(timer);
    client.write(chunk.subarray(at, ++at));
  }, 20);
}

/** A TCP proxy between a client and a server of this machine, which can be made faulty and mended while both run. */
export class FaultyWire {
  /** Connections accepted since the last `break` or `mend`. */
  accepted: number;
  readonly #server: net.Server;
  readonly #sockets: Set<net.Socket>;
  readonly #clients: Set<net.Socket>;
  #fault: WireFault | undefined;

  private constructor(target: number) {
    this.accepted = 0;
    this.#sockets = new Set();
    this.#clients = new Set();
    this.#fault = undefined;
    this.#server = net.createServer({ noDelay: true }, (client) => {
      this.accepted++;
      this.#own(client);
      if (this.#fault?.disturb !== undefined && this.#fault.insteadPort === undefined) return this.#fault.disturb(client.resume());
      this.#clients.add(client);
      const server = net.connect({ port: this.#fault?.insteadPort ?? target, host: '127.0.0.1', noDelay: true });
      this.#own(server);
      client.pipe(server);
      server.on('data', (chunk: Buffer) => {
        if (this.#fault?.forward === undefined) client.write(chunk);
        else this.#fault.forward(client, chunk);
      });
      server.on('close', () => client.destroy());
      client.on('close', () => {
        this.#clients.delete(client);
        server.destroy();
      });
    });
  }

  static async to(target: number): Promise<FaultyWire> {
    const wire = new FaultyWire(target);
    wire.#server.listen(0, '127.0.0.1');
    await once(wire.#server, 'listening');
    return wire;
  }

  get port(): number {
    return (this.#server.address() as net.AddressInfo).port;
  }

  /** Breaks what is open, and each new connection until `mend`. */
  break(fault: WireFault): void {
    this.accepted = 0;
    this.#fault = fault;
    for (const client of this.#clients) fault.disturb?.(client);
  }

  /** New connections pass; those that the fault has touched stay as they are. */
  mend(): void {
    this.accepted = 0;
    this.#fault = undefined;
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }

  #own(socket: net.Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => {}).on('close', () => this.#sockets.delete(socket));
  }
}
