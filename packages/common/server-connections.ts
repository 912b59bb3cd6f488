// The connections of a server, so that it closes within a bound. `server.close()` alone waits for every connection to close, and some never
// do: a TLS handshake that its peer has given up, an HTTP/2 session that waits for the GOAWAY or the FIN of a peer that is gone.
import { once } from 'node:events';
import type { ServerHttp2Session } from 'node:http2';
import type { Server, Socket } from 'node:net';
import { errorBoundary } from './error-boundary.ts';

const boundary = errorBoundary('server.connection');

export class ServerConnections {
  readonly #server: Server;
  /** As they were accepted: below TLS and HTTP/2. */
  readonly #sockets: Set<Socket>;
  readonly #sessions: Set<ServerHttp2Session>;

  constructor(server: Server) {
    this.#server = server;
    this.#sockets = new Set();
    this.#sessions = new Set();
    boundary.own(server).on('connection', (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    server.on('session', (session: ServerHttp2Session) => {
      this.#sessions.add(session);
      session.once('close', () => this.#sessions.delete(session));
      session.on('error', () => session.destroy());
    });
  }

  /** Stops listening and resolves when no connection is left: HTTP/2 sessions have `graceMs` for their GOAWAY, everything else is closed. */
  async close(graceMs = 500): Promise<void> {
    const closed = this.#server.listening ? once(this.#server, 'close') : undefined;
    if (closed !== undefined) this.#server.close();
    const hasSessions = this.#sessions.size > 0;
    for (const session of this.#sessions) session.destroy();
    if (hasSessions) {
      let timer: NodeJS.Timeout | undefined;
      await Promise.race([closed, new Promise((resolve) => (timer = setTimeout(resolve, graceMs)))]);
      clearTimeout(timer);
    }
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}
