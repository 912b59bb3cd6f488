import { type ChildProcess, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import { extname } from 'node:path';

import { fileURLToPath } from 'node:url';
import { errorBoundary } from '@mizzen/common';
import { LineSplitter } from './line-splitter.ts';
import { type FromProcess, maxLineBytes, readFromProcess, type ScriptCall } from './script-messages.ts';

const processFile = fileURLToPath(new URL(`./script-process${extname(import.meta.url)}`, import.meta.url));
/** A filter that keeps everything ends its process, not the proxy. */
const maxHeapMb = 128;
const boundary = errorBoundary('script-process');
const internalError = 'an internal error of the proxy';
/** After an exception, the end of a process is reported again: without a report no other would be started. */
const endRetryMs = 50;

interface ScriptChildEvents {
  readonly onMessage: (message: FromProcess) => void;
  /** Once, when the process has ended and all that it sent has been read. */
  readonly onEnd: (reason: string) => void;
}

/** The process of one filter file, seen from the proxy: bounded lines in, lines out, one end. */
export class ScriptChild {
  readonly #process: ChildProcess;
  readonly #calls: Socket;
  readonly #events: ScriptChildEvents;
  readonly #lines: LineSplitter;
  #reason: string | undefined;
  #hasEnded: boolean;

  constructor(file: string, events: ScriptChildEvents) {
    this.#events = events;
    this.#lines = new LineSplitter();
    this.#reason = undefined;
    this.#hasEnded = false;
    this.#process = boundary.own(
      spawn(process.execPath, [`--max-old-space-size=${maxHeapMb}`, processFile, file], {
        stdio: ['ignore', 'inherit', 'inherit', 'pipe', 'pipe'],
        env: {},
      }),
      () => this.kill(internalError),
    );
    const results = this.#process.stdio[3] as Socket;
    this.#calls = this.#process.stdio[4] as Socket;
    // A proxy does not stay for its filters.
    this.#process.unref();
    results.unref();
    this.#calls.unref();
    results.on('data', (piece: Buffer) => {
      // What has been lost of a line cannot be read again: the process is replaced, and its calls are repeated.
      if (!boundary.run(() => this.#read(piece))) this.kill(internalError);
    });
    results.on('error', () => {});
    this.#calls.on('error', () => {});
    this.#process.on('error', (error) => this.#end(`its process cannot be started: ${error.message}`));
    this.#process.on('close', (code, signal) => this.#end(signal === null ? `its process has ended with code ${code}` : `its process was ended by ${signal}`));
  }

  send(call: ScriptCall): void {
    this.#calls.write(`${JSON.stringify(call)}\n`);
  }

  /** Ends the process; `onEnd` is called later. */
  kill(reason: string): void {
    this.#reason ??= reason;
    this.#process.kill('SIGKILL');
  }

  #read(piece: Buffer): void {
    this.#lines.read(piece, (line) => {
      if (this.#reason !== undefined) return;
      const message = readFromProcess(line);
      if (message === undefined) this.kill('it sent a line that is not a message');
      else this.#events.onMessage(message);
    });
    if (this.#lines.pendingBytes <= maxLineBytes) return;
    this.#lines.clear();
    this.kill(`it sent more than ${maxLineBytes} bytes at once`);
  }

  #end(reason: string): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    const tell = () => this.#events.onEnd(this.#reason ?? reason);
    const again = (): void => void boundary.after(endRetryMs, tell, again).unref();
    if (!boundary.run(tell)) again();
  }
}
