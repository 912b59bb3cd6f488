import { once } from 'node:events';
import { closeSync, constants, fstatSync, linkSync, lstatSync, openSync, realpathSync, type Stats, unlinkSync } from 'node:fs';
import net from 'node:net';
import { dirname } from 'node:path';
import { errorBoundary, MizzenError, unixPathProblem } from '@mizzen/common';

const boundary = errorBoundary('listener.open');

/**
 * Unix sockets of listeners and endpoints (`envoy.config.core.v3.Pipe`). Configuration names their paths, and those who write it must not come by this the rights of the proxy's user: paths are limited to
 * folders that the proxy's own configuration lists, and no file, symbolic link or socket of another process is replaced or followed.
 */
export interface UnixSocketPolicy {
  /** Folders whose direct entries may be used, and `@PREFIX` for abstract names; undefined: all, since the configuration is the operator's own. */
  readonly folders: readonly string[] | undefined;
  /** false: another process of this proxy listens. */
  readonly opens: boolean;
}

export const anyUnixSocket: UnixSocketPolicy = { folders: undefined, opens: true };

/** Throws `unix-socket-refused` where configuration must not name this path. */
export function checkUnixPath(path: string, { folders }: UnixSocketPolicy, place: string): void {
  const problem = unixPathProblem(path);
  if (problem !== undefined) throw new MizzenError('unix-socket-refused', `${place}: ${problem}`, path);
  if (folders === undefined || folders.some((folder) => (folder.startsWith('@') ? path.startsWith(folder) : dirname(path) === folder))) return;
  throw new MizzenError(
    'unix-socket-refused',
    `${place}: this proxy has no rights to Unix sockets there. It uses those directly in ${folders.length === 0 ? 'no folder' : folders.join(', ')}: ` +
      'add the folder with --socket-folder, or "socketFolders" of the proxy configuration.',
    path,
  );
}

/** The default: the proxy's user alone. A folder with the set-group-ID bit shares its sockets with its group. */
const ownMode = 0o600;
const sharedMode = 0o660;

const paths = new WeakMap<net.Server, string>();

/** The path on which a server listens; Node.js forgets it when the server comes from another process. */
export function unixPathOfServer(server: net.Server): string | undefined {
  return paths.get(server);
}

export function rememberUnixPath(server: net.Server, path: string | undefined): void {
  if (path !== undefined) paths.set(server, path);
}

/** A socket's file, which goes when its listener does, unless another process has it then. */
export class UnixSocketFile {
  readonly #path: string;
  readonly #inode: number;
  #isOwned: boolean;

  constructor(path: string) {
    this.#path = path;
    this.#inode = path.startsWith('@') ? 0 : (lstatSync(path, { throwIfNoEntry: false })?.ino ?? 0);
    this.#isOwned = this.#inode !== 0;
  }

  /** Another process listens on it now. */
  handedOver(): void {
    this.#isOwned = false;
  }

  remove(): void {
    if (!this.#isOwned) return;
    this.#isOwned = false;
    try {
      if (lstatSync(this.#path, { throwIfNoEntry: false })?.ino === this.#inode) unlinkSync(this.#path);
    } catch {
      // Its folder has gone, or may not be written any more: the next start replaces a socket that no process listens on.
    }
  }
}

/** Listens on a path. Throws MizzenError with what is in the way. */
export async function listenOnUnixSocket(server: net.Server, path: string, mode: number, backlog: number): Promise<UnixSocketFile> {
  if (path.startsWith('@')) {
    server.listen({ path: `\0${path.slice(1)}`, backlog });
    await once(server, 'listening');
  } else {
    const folder = dirname(path);
    checkFolder(folder);
    await removeStale(path);
    const descriptor = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY);
    try {
      const shared = (fstatSync(descriptor).mode & 0o2000) !== 0;
      const wanted = mode === 0 ? (shared ? sharedMode : ownMode) : mode & 0o777;
      // Under another name first: it has its mode before callers find it, and a server that closes removes the name that it began with, which its successor must keep.
      const early = `${process.platform === 'linux' ? `/proc/self/fd/${descriptor}` : folder}/.${process.pid}.${earlyCount++}`;
      const before = process.umask(0o777 & ~wanted);
      try {
        server.listen({ path: early, backlog });
      } finally {
        process.umask(before);
      }
      await once(server, 'listening');
      linkSync(early, path);
      unlinkSync(early);
    } catch (error) {
      server.close();
      throw error;
    } finally {
      closeSync(descriptor);
    }
  }
  paths.set(server, path);
  return new UnixSocketFile(path);
}

let earlyCount = 0;

/** Only this user, or root, may put anything into the place of the socket. */
function checkFolder(folder: string): void {
  const own = process.geteuid?.() ?? 0;
  const group = process.getegid?.() ?? 0;
  for (let at = realpathSync(folder); ; at = dirname(at)) {
    const { uid, gid, mode } = lstatSync(at);
    const isSticky = (mode & 0o1000) !== 0;
    const isOpen = !isSticky && ((mode & 0o002) !== 0 || ((mode & 0o020) !== 0 && gid !== group && gid !== 0));
    if (uid !== 0 && uid !== own)
      throw new MizzenError('unix-socket-refused', `the folder ${at} belongs to another user (uid=${uid}), who could replace the socket`, folder);
    if (isOpen) throw new MizzenError('unix-socket-refused', `other users may write the folder ${at}, and could replace the socket: chmod go-w ${at}`, folder);
    if (at === dirname(at)) return;
  }
}

/** A socket that no process listens on is removed; anything else is left and named. */
async function removeStale(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket())
    throw new MizzenError(
      'unix-socket-refused',
      `there is ${kindOf(found)} in the place of the socket, which is not replaced: remove it, or choose another path`,
      path,
    );
  if (await isListening(path)) throw new MizzenError('port-in-use', 'another process listens on this Unix socket: stop it, or choose another path', path);
  const now = lstatSync(path, { throwIfNoEntry: false });
  if (now?.ino === found.ino) unlinkSync(path);
}

function kindOf(stats: Stats): string {
  return stats.isSymbolicLink() ? 'a symbolic link' : stats.isDirectory() ? 'a folder' : 'a file';
}

async function isListening(path: string): Promise<boolean> {
  const socket = boundary.own(net.connect({ path }));
  try {
    await once(socket, 'connect');
    return true;
  } catch (error) {
    // EACCES and EAGAIN: it is another process's, or its queue is full.
    return (error as NodeJS.ErrnoException).code !== 'ECONNREFUSED';
  } finally {
    socket.destroy();
  }
}

/**
 * Connects to a socket at a path, and to nothing that a symbolic link there leads to: it may lead to a socket that this user may use and those who made the link may not. `connect` is called with
 * what to connect to, and must do so at once.
 */
export function atUnixSocket<Socket>(path: string, connect: (path: string) => Socket): Socket {
  if (path.startsWith('@')) return connect(`\0${path.slice(1)}`);
  if (process.platform !== 'linux') return connect(path);
  let descriptor: number;
  try {
    descriptor = openSync(path, pathOnly | constants.O_NOFOLLOW);
  } catch {
    return connect(path); // Its error is the connection's.
  }
  try {
    return connect(fstatSync(descriptor).isSocket() ? `/proc/self/fd/${descriptor}` : notASocket);
  } finally {
    closeSync(descriptor);
  }
}

/** O_PATH of Linux, which Node.js has no name for. */
const pathOnly = 0o10000000;
const notASocket = '/dev/null';
