import type net from 'node:net';
import { errorBoundary, messageOf } from '@mizzen/common';
import { type Cursor, FrameReader } from './frames.ts';

const boundary = errorBoundary('broker.frames');

/** A socket that carries frames: everything that is sent in one turn of the event loop goes out with one write. */
export class FrameSocket {
  readonly #socket: net.Socket;
  #waiting: Buffer[];
  #isScheduled: boolean;

  /** `onClosed` is called once, with the reason. */
  constructor(socket: net.Socket, onFrame: (kind: number, content: Cursor) => void, onClosed: (reason: string) => void) {
    this.#socket = socket;
    this.#waiting = [];
    this.#isScheduled = false;
    const reader = new FrameReader();
    let reason = 'the connection was closed';
    socket.setNoDelay(true);
    boundary.own(socket).on('data', (chunk: Buffer) => {
      let problem: string | undefined;
      try {
        problem = reader.read(chunk, onFrame);
      } catch (error) {
        boundary.caught(error);
        // Whatever a frame causes ends its connection alone.
        problem = `a frame could not be handled: ${messageOf(error)}`;
      }
      if (problem === undefined) return;
      reason = problem;
      socket.destroy();
    });
    socket.on('error', (error) => {
      reason = error.message;
    });
    socket.on('close', () => onClosed(reason));
  }

  /** Bytes that the peer has not taken yet. */
  get backlogBytes(): number {
    return this.#socket.writableLength;
  }

  get isOpen(): boolean {
    return !this.#socket.destroyed && this.#socket.writable;
  }

  send(...buffers: readonly Buffer[]): void {
    this.#waiting.push(...buffers);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    boundary.soon(
      () => this.#flush(),
      () => this.#socket.destroy(),
    );
  }

  #flush(): void {
    this.#isScheduled = false;
    const buffers = this.#waiting;
    this.#waiting = [];
    if (buffers.length === 0 || this.#socket.destroyed) return;
    if (buffers.length === 1) return void this.#socket.write(buffers[0]!);
    this.#socket.cork();
    for (const buffer of joinSmall(buffers)) this.#socket.write(buffer);
    this.#socket.uncork();
  }

  close(): void {
    this.#flush();
    this.#socket.end();
    this.#socket.destroySoon();
  }
}

const joinUpToBytes = 64 * 1024;

/** Many small pieces cost more as pieces than as a copy. */
function joinSmall(buffers: readonly Buffer[]): Buffer[] {
  const joined: Buffer[] = [];
  let group: Buffer[] = [];
  let bytes = 0;
  const finish = () => {
    if (group.length > 0) joined.push(group.length === 1 ? group[0]! : Buffer.concat(group, bytes));
    group = [];
    bytes = 0;
  };
  for (const buffer of buffers) {
    if (bytes + buffer.length > joinUpToBytes) finish();
    group.push(buffer);
    bytes += buffer.length;
  }
  finish();
  return joined;
}
