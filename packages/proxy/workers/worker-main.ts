import type net from 'node:net';
import { create } from '@bufbuild/protobuf';
import { AnySchema } from '@bufbuild/protobuf/wkt';
import { compactHeap, errorBoundary, keepServingAfterErrors, Logger, messageOf } from '@mizzen/common';
import { Engine } from '../engine.ts';
import { SharedSpending } from '../filters/rate-limit/shared-spending.ts';
import { rememberUnixPath, unixPathOfServer } from '../net/unix-socket.ts';
import type { FromWorker, ToWorker } from './messages.ts';

/**
 * A worker: one event loop of a proxy with several, a process of its own, so that what ends one does not end the others. It is told
 * everything by the main process and holds no connection to the control plane. When the main process is gone without a word it goes on
 * with what it has, for as long as somebody uses it and no longer than `orphanMs`: whoever starts the proxy again needs the ports.
 */
const orphanMs = 60_000;
/** After an exception of this process's own. */
const retryMs = 100;

const boundary = errorBoundary('worker.message');
let engine: Engine | undefined;
let logger = new Logger('proxy/worker', 'info');
let isClosing = false;
const spending = new SharedSpending((spent) => boundary.start(() => tell({ kind: 'spent', spent })));

const tell = (message: FromWorker, server?: net.Server) =>
  new Promise<void>((resolve) => {
    if (process.send === undefined || !process.connected) return resolve();
    process.send(message, server, { keepOpen: true }, () => resolve());
  });

/** A later call can shorten the time that connections have. */
async function close(drainMs: number, acceptMs: number): Promise<void> {
  isClosing = true;
  await engine?.close(drainMs, acceptMs);
  process.exit(0);
}

process.on('message', (message: ToWorker, handle: unknown) => {
  boundary.run(() => receive(message, handle)) || boundary.run(() => receive(message, handle)) || boundary.run(() => lost(message));
});

/** The main process waits for this: after an exception it is told again. */
function tellWhen(reached: Promise<unknown>, message: FromWorker): void {
  const again = (): void => void boundary.after(retryMs, () => tellWhen(reached, message), again);
  boundary.start(() => reached.then(() => tell(message)), again);
}

/** A message that met an exception twice. The worker keeps serving with what it has, and ends when it could not serve. */
function lost({ kind }: ToWorker): void {
  if (kind === 'start' || kind === 'socket' || kind === 'no-more-sockets' || kind === 'close') process.exit(1);
  if (kind === 'hand-over') boundary.start(() => tell({ kind: 'handed-over' }));
  else if (kind !== 'stats' && kind !== 'spent') boundary.start(() => tell({ kind: 'incomplete' }));
}

function receive(message: ToWorker, handle: unknown): void {
  if (message.kind === 'start') {
    logger = new Logger(`proxy/worker-${message.index}`, message.logLevel);
    keepServingAfterErrors(logger, 'worker');
    engine = new Engine({
      self: message.self,
      selfId: message.selfId,
      accessLogFile: message.accessLogFile,
      overload: message.overload,
      opensListeners: true,
      reusesPort: true,
      expectsSockets: message.expectsSockets,
      sessionTicketKeys: Buffer.from(message.sessionTicketKeys),
      drainMs: message.drainMs,
      // A path has one socket: the first worker listens on it.
      unixSockets: { folders: message.socketFolders, opens: message.index === 0 },
      logger,
      spending,
    });
    const { ready, prepared } = engine;
    tellWhen(ready, { kind: 'ready' });
    boundary.start(() => ready.then(() => boundary.soon(compactHeap)));
    tellWhen(prepared, { kind: 'prepared' });
    return;
  }
  if (engine === undefined) return;
  switch (message.kind) {
    case 'resources':
      try {
        engine.accept(
          message.type,
          message.resources.map(({ typeUrl, value }) => create(AnySchema, { typeUrl, value })),
        );
      } catch (error) {
        // The main process has compiled the same before: this is something of this process, a file or a limit.
        logger.error(`cannot use a ${message.type} update that the main process accepted: ${messageOf(error)}`);
        boundary.start(() => tell({ kind: 'refused', type: message.type, reason: messageOf(error) }));
      }
      return;
    case 'key-pair':
      return engine.secrets.setKeyPair(message.name, message.pair);
    case 'roots':
      return engine.secrets.setRoots(message.name, message.roots);
    case 'generic-secret':
      return engine.secrets.setGeneric(message.name, Buffer.from(message.value));
    case 'secret-withdrawn':
      return engine.secrets.remove(message.name);
    case 'socket':
      rememberUnixPath(handle as net.Server, message.path);
      return engine.handOver(handle as net.Server);
    case 'no-more-sockets':
      return engine.noMoreSockets();
    case 'spent':
      return spending.receive(message.spent);
    case 'hand-over': {
      const servers = engine.state.servers();
      boundary.start(
        () =>
          Promise.all(servers.map((server) => tell({ kind: 'socket', path: unixPathOfServer(server) }, server))).then(() => {
            engine?.state.handedOver();
            return tell({ kind: 'handed-over' });
          }),
        () => boundary.start(() => tell({ kind: 'handed-over' })),
      );
      return;
    }
    case 'stats': {
      const stats = engine.stats();
      return boundary.start(() => tell({ kind: 'stats', id: message.id, stats }));
    }
    case 'close':
      return boundary.start(
        () => close(message.drainMs, message.acceptMs),
        () => process.exit(1),
      );
  }
}

const disconnected = () => {
  if (isClosing) return;
  const end = () =>
    boundary.start(
      () => close(5_000, 0),
      () => process.exit(1),
    );
  boundary.after(orphanMs, end);
  logger.warn('the main process is gone: serving on with the last good configuration', { forMs: orphanMs });
};
process.on('disconnect', boundary.wrap(disconnected));
// Signals of a terminal reach the whole group; when to end is the main process's to say.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => {});
