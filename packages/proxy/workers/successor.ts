import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type net from 'node:net';
import { emitAgain, errorBoundary, type Logger, MizzenError } from '@mizzen/common';
import { rememberUnixPath, unixPathOfServer } from '../net/unix-socket.ts';
import type { FromSuccessor, ToSuccessor } from './messages.ts';
import { sendHandle } from './worker-pool.ts';

const boundary = errorBoundary('hot-restart');

/** Set for a process that is to take over the sockets of its parent: how many there were before it. */
const epochVariable = 'MIZZEN_HOT_RESTART_EPOCH';

/** How many processes this one has replaced, one after the other; 0: it was not started by a hot restart. */
export function hotRestartEpoch(): number {
  return Number(process.env[epochVariable] ?? 0);
}
const takeOverTimeoutMs = 60_000;

/** What the new process is given beside the command and the environment of this one. */
export interface SuccessorOptions {
  readonly env: Readonly<Record<string, string>>;
  /** Descriptor 4 of the new process: a new pipe to this one, or a descriptor of this one. */
  readonly line: 'pipe' | number;
}

export interface Successor {
  readonly pid: number;
  readonly exited: Promise<unknown>;
  /** This process's end of the pipe. */
  readonly line: net.Socket | undefined;
}

/**
 * Hot restart, the old process's side: starts the same command again (whatever program is installed now), gives the new process the
 * listening sockets when it has all that it needs to serve, and returns when it serves. A listening socket is never closed on the way,
 * so that no connection in its queue is lost. Throws, with nothing changed, when the new process does not get that far.
 */
export async function startSuccessor(servers: () => Promise<readonly net.Server[]>, options: SuccessorOptions, logger: Logger): Promise<Successor> {
  const epoch = hotRestartEpoch() + 1;
  const child = boundary.own(
    spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
      stdio: ['inherit', 'inherit', 'inherit', 'ipc', options.line],
      env: { ...process.env, ...options.env, [epochVariable]: String(epoch) },
      serialization: 'advanced',
    }),
    // A message that met an exception is handled again: the new process does not repeat it.
    emitAgain,
  );
  logger.info('hot restart: a new process has been started', { pid: child.pid, epoch });
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => finish(`it has not taken over within ${takeOverTimeoutMs / 1000} s`), takeOverTimeoutMs);
    const finish = (problem: string | undefined) => {
      clearTimeout(timer);
      child.removeAllListeners('message');
      if (problem === undefined) return resolve();
      child.kill('SIGKILL');
      reject(new MizzenError('hot-restart-failed', `the new process cannot take over: ${problem}. This one goes on.`));
    };
    child.on('error', (error) => finish(error.message));
    child.once('exit', (code, signal) => finish(`it has ended with ${signal ?? `code ${code}`}`));
    child.on('message', (message: FromSuccessor) => {
      if (message.kind === 'failed') finish(message.reason);
      else if (message.kind === 'taken-over') finish(undefined);
      else
        servers()
          .then((all) => Promise.all(all.map((server) => sendHandle(child, { kind: 'socket', path: unixPathOfServer(server) } satisfies ToSuccessor, server))))
          .then(() => child.send({ kind: 'all-sockets' } satisfies ToSuccessor, () => {}))
          .catch((error: unknown) => finish(String(error)));
    });
  });
  child.removeAllListeners('exit');
  const exited = child.exitCode === null && child.signalCode === null ? once(child, 'exit') : Promise.resolve();
  child.disconnect();
  return { pid: child.pid!, exited, line: (child.stdio[4] as net.Socket | null | undefined) ?? undefined };
}

/** Hot restart, the new process's side. */
export interface Predecessor {
  /** Asks for the sockets; each is given to `take` the moment it arrives, since connections may come on it from then on. */
  takeOver(take: (server: net.Server) => void): Promise<void>;
  /** Tells the predecessor that it may go. */
  done(): void;
}

/** The process whose sockets this one is to take over, if there is one. */
export function predecessor(): Predecessor | undefined {
  if (process.env[epochVariable] === undefined || process.send === undefined) return undefined;
  // When the predecessor has just gone, `disconnect` says so; the write that failed says nothing more.
  const tell = (message: FromSuccessor) => process.connected && process.send?.(message, undefined, undefined, () => {});
  return {
    takeOver: (take) =>
      new Promise((resolve, reject) => {
        const received = (message: ToSuccessor, handle: unknown) => {
          if (message.kind === 'socket') {
            rememberUnixPath(handle as net.Server, message.path);
            return take(handle as net.Server);
          }
          process.off('message', onMessage);
          process.off('disconnect', onDisconnect);
          resolve();
        };
        const onMessage = (message: ToSuccessor, handle: unknown) => {
          boundary.run(() => received(message, handle)) ||
            boundary.run(() => received(message, handle)) ||
            reject(new MizzenError('hot-restart-failed', 'a message of the process to take over from could not be handled'));
        };
        const onDisconnect = () => reject(new MizzenError('hot-restart-failed', 'the process to take over from is gone'));
        process.on('message', onMessage);
        process.once('disconnect', onDisconnect);
        tell({ kind: 'take-over' });
      }),
    done() {
      tell({ kind: 'taken-over' });
    },
  };
}
