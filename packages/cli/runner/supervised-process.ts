import { type ChildProcess, spawn } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { createWriteStream, type WriteStream } from 'node:fs';
import { Backoff, errorBoundary, messageOf } from '@mizzen/common';

const boundary = errorBoundary('supervisor');

/** What to run, and how it is called in logs. */
export interface ProcessSpec {
  readonly name: string;
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly workingDirectory: string;
  readonly logFile: string;
  /** Each line of output, for the console; the file gets all of them anyway. */
  readonly onLine: (line: string) => void;
  /** Something that a person should know: a crash, a program that cannot be started. */
  readonly onNotice: (text: string) => void;
  /** It can be sent messages, and sends some (event `message`). */
  readonly hasChannel?: boolean;
}

/** A run this long counts as a success: the backoff starts anew after it. */
const steadyMs = 10_000;
const keptLines = 5;

/**
 * One process that is kept running: started again with growing pauses when it ends by itself, ended in order when asked. Events:
 * `started` (pid), `exited` (code).
 */
export class SupervisedProcess extends EventEmitter {
  readonly spec: ProcessSpec;
  restarts: number;
  readonly #backoff: Backoff;
  readonly #log: WriteStream;
  #child: ChildProcess | undefined;
  /** Resolves when the child has ended. */
  #ended: Promise<void>;
  #isStopping: boolean;
  #timer: NodeJS.Timeout | undefined;

  constructor(spec: ProcessSpec) {
    super();
    this.spec = spec;
    this.restarts = 0;
    this.#backoff = new Backoff(500, 30_000);
    this.#log = boundary.own(createWriteStream(spec.logFile, { flags: 'a', mode: 0o600 }));
    this.#log.on('error', (error) => spec.onNotice(`its log cannot be written: ${error.message}`));
    this.#child = undefined;
    this.#ended = Promise.resolve();
    this.#isStopping = false;
    this.#timer = undefined;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  get isRunning(): boolean {
    return this.#child !== undefined;
  }

  start(): void {
    const { spec } = this;
    const [program, ...args] = spec.command;
    const startedAt = Date.now();
    const last: string[] = [];
    const started = () => this.emit('started', child.pid);
    // An event that met an exception is handled again: the process does not repeat it.
    const again = (event: string | symbol, [message]: readonly unknown[]) => {
      if (event === 'spawn') started();
      else if (event === 'message') this.emit('message', message);
    };
    // A group of its own: Ctrl-C in the terminal reaches the runner only, which ends its processes in order.
    const child = boundary.own(
      spawn(program!, args, {
        cwd: spec.workingDirectory,
        env: { ...spec.env },
        stdio: ['ignore', 'pipe', 'pipe', ...(spec.hasChannel ? (['ipc'] as const) : [])],
        detached: true,
      }),
      again,
    );
    this.#child = child;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#ended = promise;
    child.on('message', (message) => this.emit('message', message));
    for (const stream of [child.stdout!, child.stderr!]) {
      let rest = '';
      boundary
        .own(stream, () => {})
        .setEncoding('utf8')
        .on('data', (text: string) => {
          this.#log.write(text);
          const lines = (rest + text).split('\n');
          rest = lines.pop()!.slice(-64 * 1024);
          for (const line of lines) {
            last.push(line);
            if (last.length > keptLines) last.shift();
            spec.onLine(line);
          }
        });
    }
    let ended = false;
    const end = (reason: string) => {
      if (ended) return;
      ended = true;
      this.#child = undefined;
      resolve();
      boundary.run(() => this.emit('exited'));
      if (this.#isStopping) return;
      if (Date.now() - startedAt > steadyMs) this.#backoff.reset();
      const wait = this.#backoff.nextMs();
      this.#startAfter(wait);
      const context = last
        .filter((line) => line.trim() !== '')
        .map((line) => `\n    ${line}`)
        .join('');
      spec.onNotice(`${reason}. Starting it again in ${(wait / 1000).toFixed(1)} s.${context ? ` Its last words:${context}` : ''}`);
    };
    child.once('spawn', started);
    child.once('error', (error: NodeJS.ErrnoException) =>
      end(error.code === 'ENOENT' ? `the program ${JSON.stringify(program)} was not found in PATH` : `it cannot be started: ${messageOf(error)}`),
    );
    child.once('exit', (code, signal) =>
      end(signal ? `it was ended by ${signal}` : `it exited with code ${code} after ${((Date.now() - startedAt) / 1000).toFixed(1)} s`),
    );
  }

  /** Whatever goes wrong on the way, it is started again. */
  #startAfter(delayMs: number): void {
    const start = () => {
      this.restarts++;
      this.start();
    };
    this.#timer = boundary.after(delayMs, start, () => this.#isStopping || this.#startAfter(this.#backoff.nextMs()));
  }

  /** Sends a message; to a process without a channel, or one that is gone, it does nothing. */
  send(message: object): void {
    if (this.#child?.connected) this.#child.send(message, () => {});
  }

  /** Asks the process to end, and ends it when it has not within `graceMs`. Idempotent. */
  async stop(graceMs: number): Promise<void> {
    this.#isStopping = true;
    clearTimeout(this.#timer);
    const child = this.#child;
    if (child?.pid !== undefined) {
      signalGroup(child.pid, 'SIGTERM');
      const timer = boundary.after(graceMs, () => signalGroup(child.pid!, 'SIGKILL'));
      await this.#ended;
      clearTimeout(timer);
    }
    if (!this.#log.closed) await new Promise<void>((resolve) => this.#log.end(() => resolve()));
  }
}

/** The process and those it has started (a shell's children, say). */
function signalGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-pid, signal);
  } catch {
    try {
      process.kill(pid, signal);
    } catch {
      // It has ended in the meantime, which is what was wanted.
    }
  }
}
