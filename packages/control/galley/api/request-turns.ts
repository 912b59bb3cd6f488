import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('api.request');

/** Requests that a client may send on one connection before it has the response to the first. */
const maxPipelined = 10;

interface Turn {
  readonly waiting: number;
  readonly ended: Promise<void>;
}

/**
 * The requests of one connection are served one after another. Node.js hands over all that a client has pipelined at once; their responses would wait in
 * memory for each other, however large they are.
 */
export class RequestTurns {
  readonly #turns: WeakMap<Socket, Turn>;

  constructor() {
    this.#turns = new WeakMap();
  }

  /** Resolves when the response before is complete. False: the connection has too many requests and is closed. */
  async next({ socket }: IncomingMessage, response: ServerResponse): Promise<boolean> {
    const before = this.#turns.get(socket);
    const waiting = (before?.waiting ?? 0) + 1;
    if (waiting > maxPipelined) {
      socket.destroy();
      return false;
    }
    const closed = new Promise<void>((resolve) => {
      boundary.own(response).once('close', () => {
        this.#leave(socket);
        resolve();
      });
    });
    const ended = (before?.ended ?? Promise.resolve()).then(() => closed);
    this.#turns.set(socket, { waiting, ended });
    await before?.ended;
    return !response.destroyed;
  }

  #leave(socket: Socket): void {
    const turn = this.#turns.get(socket);
    if (turn === undefined) return;
    if (turn.waiting > 1) this.#turns.set(socket, { ...turn, waiting: turn.waiting - 1 });
    else this.#turns.delete(socket);
  }
}
