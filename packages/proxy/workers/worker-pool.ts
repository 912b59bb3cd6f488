import { type ChildProcess, fork } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import type net from 'node:net';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Any } from '@bufbuild/protobuf/wkt';
import { Backoff, errorBoundary, type Logger, type LogLevel } from '@mizzen/common';
import type { ResourceType } from '@mizzen/envoy-api';
import type { Engine } from '../engine.ts';
import { rememberUnixPath, unixPathOfServer } from '../net/unix-socket.ts';
import type { OverloadSettings } from '../overload/overload-manager.ts';
import type { PeerMetadata } from '../telemetry/peer-metadata.ts';
import { mergeSnapshots, type StatsSnapshot } from '../telemetry/stats-snapshot.ts';
import type { FromWorker, ToWorker } from './messages.ts';

const boundary = errorBoundary('worker.process');

export interface WorkerPoolOptions {
  readonly count: number;
  /** The main process's own engine: it has compiled everything first, and holds sockets that are on their way from one process to another. */
  readonly engine: Engine;
  readonly self: PeerMetadata;
  readonly selfId: string;
  readonly accessLogFile: string | undefined;
  readonly overload: OverloadSettings;
  readonly drainMs: number;
  readonly logger: Logger;
  readonly logLevel: LogLevel;
  readonly expectsSockets: boolean;
  readonly socketFolders: readonly string[] | undefined;
}

interface Worker {
  readonly index: number;
  readonly child: ChildProcess;
  isReady: boolean;
  isPrepared: boolean;
  lastStats: StatsSnapshot | undefined;
}

const statsTimeoutMs = 2_000;
const steadyMs = 10_000;
/** Before a worker receives the configuration again that it could not read. */
const incompleteMs = 1_000;
/** In TypeScript when run from the sources, in JavaScript when published. */
const workerFile = fileURLToPath(new URL(`./worker-main${extname(import.meta.url)}`, import.meta.url));

/** The workers of one proxy: started, told what the control plane says, replaced when they end, and asked for what they count. */
export class WorkerPool {
  readonly #options: WorkerPoolOptions;
  readonly #workers: Map<number, Worker>;
  readonly #events: EventEmitter;
  readonly #backoff: Backoff;
  readonly #timers: Set<NodeJS.Timeout>;
  readonly #stopListening: () => void;
  /** What workers that are gone had counted when they were last asked. */
  #past: StatsSnapshot | undefined;
  #statsId: number;
  #isClosing: boolean;
  restarts: number;

  constructor(options: WorkerPoolOptions) {
    this.#options = options;
    this.#workers = new Map();
    this.#events = new EventEmitter();
    this.#events.setMaxListeners(0);
    this.#backoff = new Backoff(50, 5_000);
    this.#timers = new Set();
    this.#past = undefined;
    this.#statsId = 0;
    this.#isClosing = false;
    this.restarts = 0;
    this.#stopListening = options.engine.secrets.onChange((name) => this.#tellSecret(name));
  }

  /** Process ids of the workers, in their order. */
  get pids(): number[] {
    return [...this.#workers.values()].sort((a, b) => a.index - b.index).map((worker) => worker.child.pid ?? 0);
  }

  start(): void {
    for (let index = 0; index < this.#options.count; index++) this.#start(index, this.#options.expectsSockets);
  }

  /** Resolves when all workers take connections. */
  async ready(): Promise<void> {
    while (this.#workers.size < this.#options.count || [...this.#workers.values()].some((worker) => !worker.isReady)) await once(this.#events, 'changed');
  }

  get isReady(): boolean {
    return this.#workers.size === this.#options.count && [...this.#workers.values()].every((worker) => worker.isReady);
  }

  /** Resolves when all workers have everything but their sockets. */
  async prepared(): Promise<void> {
    while ([...this.#workers.values()].some((worker) => !worker.isPrepared)) await once(this.#events, 'changed');
  }

  /** Passes on an update that the main process has accepted. */
  broadcast(type: ResourceType, resources: readonly Any[]): void {
    if (type === 'secret') return; // they travel one by one, whatever they come from
    for (const worker of this.#workers.values()) send(worker, resourcesMessage(type, resources));
  }

  /** Gives out the sockets of a proxy that this one replaces: each address's sockets in turn, every worker at least one. */
  async distribute(): Promise<void> {
    const servers = this.#options.engine.state.servers();
    const byAddress = Map.groupBy(servers, (server) => unixPathOfServer(server) ?? JSON.stringify(server.address()));
    const sent: Promise<void>[] = [];
    const workers = [...this.#workers.values()].sort((a, b) => a.index - b.index);
    for (const group of byAddress.values()) {
      const path = unixPathOfServer(group[0]!);
      if (path !== undefined) {
        sent.push(sendHandle(workers[0]!.child, { kind: 'socket', path }, group[0]!));
        continue;
      }
      for (let i = 0; i < Math.max(group.length, workers.length); i++)
        sent.push(sendHandle(workers[i % workers.length]!.child, { kind: 'socket' }, group[i % group.length]!));
    }
    await Promise.all(sent);
    for (const worker of workers) send(worker, { kind: 'no-more-sockets' });
    this.#options.engine.state.passOn();
  }

  /** Collects the listening sockets of all workers; the main process serves what comes on them until it passes them on. */
  async collect(): Promise<void> {
    await Promise.all(
      [...this.#workers.values()].map(async (worker) => {
        const done = once(this.#events, `handed-over-${worker.index}`);
        send(worker, { kind: 'hand-over' });
        await done;
      }),
    );
  }

  async stats(): Promise<StatsSnapshot> {
    const own = this.#options.engine.stats();
    const id = ++this.#statsId;
    const asked = [...this.#workers.values()].map(async (worker) => {
      const answered = new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, statsTimeoutMs);
        const finish = () => {
          clearTimeout(timer);
          resolve();
        };
        this.#events.once(`stats-${id}-${worker.index}`, finish);
      });
      send(worker, { kind: 'stats', id });
      await answered;
      return worker.lastStats;
    });
    const answers = (await Promise.all(asked)).filter((stats) => stats !== undefined);
    // The main process listens nowhere, and compiles each update once more than the workers do: only what is its own counts.
    const main: StatsSnapshot = { ...own, clusters: [], listeners: [], workers: 0, counters: { ...own.counters, worker_restarts_total: this.restarts } };
    return mergeSnapshots([main, ...(this.#past === undefined ? [] : [this.#past]), ...answers.map(withoutConfiguration)]);
  }

  /** Workers finish what they serve until `drainMs` have passed. A later call can shorten that time. */
  async close(drainMs: number, acceptMs: number): Promise<void> {
    this.#isClosing = true;
    for (const timer of this.#timers) clearTimeout(timer);
    await Promise.all(
      [...this.#workers.values()].map(async ({ child }) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const exited = once(child, 'exit');
        child.send({ kind: 'close', drainMs, acceptMs } satisfies ToWorker, () => {});
        const timer = setTimeout(() => child.kill('SIGKILL'), drainMs + acceptMs + 5_000);
        await exited;
        clearTimeout(timer);
      }),
    );
    this.#stopListening();
  }

  #startAfter(delayMs: number, index: number): void {
    const start = () => {
      this.#timers.delete(timer);
      this.#start(index, false);
    };
    const timer = boundary.after(delayMs, start, () => {
      if (!this.#isClosing) this.#startAfter(this.#backoff.nextMs(), index);
    });
    this.#timers.add(timer);
  }

  #start(index: number, expectsSockets: boolean): void {
    const { self, selfId, accessLogFile, overload, drainMs, engine, logger, logLevel, socketFolders } = this.#options;
    const startedAt = Date.now();
    // A message that met an exception is handled again: a worker that has reported to be ready does not report it twice.
    const again = (event: string | symbol, [message, handle]: readonly unknown[]) => {
      if (event === 'message') this.#receive(worker, message as FromWorker, handle);
    };
    const child = boundary.own(
      fork(workerFile, [], { serialization: 'advanced', execArgv: process.execArgv, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] }),
      again,
    );
    const worker: Worker = { index, child, isReady: false, isPrepared: false, lastStats: undefined };
    this.#workers.set(index, worker);
    child.on('message', (message: FromWorker, handle: unknown) => this.#receive(worker, message, handle));
    let hasEnded = false;
    const ended = (code: number | null, signal: NodeJS.Signals | null) => {
      if (hasEnded) return;
      hasEnded = true;
      if (this.#workers.get(index) === worker) this.#workers.delete(index);
      if (worker.lastStats !== undefined) this.#past = mergeSnapshots([...(this.#past ? [this.#past] : []), countsOnly(worker.lastStats)]);
      this.#events.emit('changed');
      this.#events.emit(`handed-over-${index}`);
      if (this.#isClosing) return;
      if (Date.now() - startedAt > steadyMs) this.#backoff.reset();
      const wait = this.#backoff.nextMs();
      this.restarts++;
      logger.error('a worker has ended; the others go on, another takes its place', {
        worker: index,
        reason: signal ?? `code ${code}`,
        inMs: Math.round(wait),
      });
      this.#startAfter(wait, index);
    };
    child.once('exit', ended);
    // A process that could not be started has no exit.
    child.on('error', () => child.pid === undefined && ended(null, null));
    send(worker, {
      kind: 'start',
      self,
      selfId,
      accessLogFile,
      overload,
      sessionTicketKeys: engine.sessionTicketKeys,
      drainMs,
      logLevel,
      index,
      expectsSockets,
      socketFolders,
    });
    this.#tellConfiguration(worker);
  }

  #tellConfiguration(worker: Worker): void {
    const { engine } = this.#options;
    const { keyPairs, roots, generic } = engine.secrets.names();
    for (const name of new Set([...keyPairs, ...roots, ...generic])) this.#tellSecret(name, worker);
    // What names a resource comes before it: a route table that no listener names yet is dropped, and would never come again.
    for (const type of ['cluster', 'endpoint', 'listener', 'route'] as const) {
      const resources = engine.state.dump(type);
      if (resources.length > 0 || engine.state.hasReceived(type)) send(worker, resourcesMessage(type, resources));
    }
  }

  #receive(worker: Worker, message: FromWorker, handle: unknown): void {
    switch (message.kind) {
      case 'ready':
        worker.isReady = true;
        this.#events.emit('changed');
        return;
      case 'prepared':
        worker.isPrepared = true;
        this.#events.emit('changed');
        return;
      case 'socket':
        rememberUnixPath(handle as net.Server, message.path);
        return this.#options.engine.handOver(handle as net.Server);
      case 'handed-over':
        this.#events.emit(`handed-over-${worker.index}`);
        return;
      case 'incomplete': {
        const tell = () => {
          if (this.#workers.get(worker.index) === worker) this.#tellConfiguration(worker);
        };
        boundary.after(incompleteMs, tell, tell).unref();
        return;
      }
      case 'refused':
        this.#options.logger.error('a worker refused what the main process accepted', { worker: worker.index, type: message.type, reason: message.reason });
        return;
      case 'spent':
        for (const other of this.#workers.values()) if (other !== worker) send(other, message);
        return;
      case 'stats':
        worker.lastStats = message.stats;
        this.#events.emit(`stats-${message.id}-${worker.index}`);
        return;
    }
  }

  #tellSecret(name: string, only?: Worker): void {
    const { secrets } = this.#options.engine;
    const pair = secrets.keyPair(name);
    const roots = secrets.roots(name);
    const value = secrets.generic(name);
    for (const worker of only ? [only] : this.#workers.values()) {
      if (pair) send(worker, { kind: 'key-pair', name, pair });
      if (roots) send(worker, { kind: 'roots', name, roots });
      if (value) send(worker, { kind: 'generic-secret', name, value });
      if (!pair && !roots && !value) send(worker, { kind: 'secret-withdrawn', name });
    }
  }
}

function resourcesMessage(type: ResourceType, resources: readonly Any[]): ToWorker {
  return { kind: 'resources', type, resources: resources.map(({ typeUrl, value }) => ({ typeUrl, value })) };
}

function send(worker: Worker, message: ToWorker): void {
  if (worker.child.connected) worker.child.send(message, () => {});
}

/** Resolves when the handle has been sent; it stays usable here too. */
export function sendHandle(child: ChildProcess, message: object, server: net.Server): Promise<void> {
  return new Promise((resolve, reject) => {
    child.send(message, server, { keepOpen: true }, (error) => (error ? reject(error) : resolve()));
  });
}

/** Each worker compiles what the main process has compiled: that is one update, not many. */
function withoutConfiguration(stats: StatsSnapshot): StatsSnapshot {
  const { config_updates_total: _updates, config_rejected_total: _rejected, ...counters } = stats.counters;
  return { ...stats, counters };
}

/** What stays of a worker that is gone: counts, not levels. */
function countsOnly(stats: StatsSnapshot): StatsSnapshot {
  return {
    ...withoutConfiguration(stats),
    counters: Object.fromEntries(Object.entries(withoutConfiguration(stats).counters).filter(([name]) => name.endsWith('_total'))),
    clusters: stats.clusters.map((cluster) => ({ ...cluster, activeRequests: 0, pendingRequests: 0, endpoints: [] })),
    listeners: [],
    residentBytes: 0,
    activeResources: {},
    workers: 0,
  };
}
