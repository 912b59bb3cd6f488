import { type ChildProcess, execFile } from 'node:child_process';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { findKind, type Resource, type WorkloadSpec } from '@mizzen/api';
import { Backoff, errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import { writeDurably } from '@mizzen/common/durable-file';
import { homeFiles, originFileAnnotation } from '@mizzen/control';
import { ApiClient, ApiFailure, collectionPath } from '../api-client.ts';
import { controlAccess } from '../home.ts';
import { Lab, removeLeftovers } from '../lab/lab.ts';
import { readLab } from '../lab/lab-state.ts';
import { isFree, PortAllocator } from './port-allocator.ts';
import { ProcessList } from './process-list.ts';
import { isInPath, mizzenCommand, searchPath } from './program.ts';
import { Replica, type ReplicaAddress } from './replica.ts';
import { SupervisedProcess } from './supervised-process.ts';

const boundary = errorBoundary('runner');

/** Runs a folder of resources and workloads on this machine: the control plane, and each Workload's replicas with their sidecars. */
export interface MeshRunnerOptions {
  readonly directory: string;
  readonly home: string;
  readonly apiPort: number;
  readonly xdsPort: number;
  /** Each replica is a host of its own, with a network that is this good; undefined: all share this machine's. */
  readonly isolate?: { readonly latencyMs: number; readonly lossPercent: number } | undefined;
  readonly logger: Logger;
  /** A line of a workload's output. */
  readonly onLine: (name: string, line: string) => void;
  /** Something that a person should read. */
  readonly onNotice: (name: string, text: string) => void;
  readonly onProgress: (text: string) => void;
}

const workloadKind = findKind('mizzen.dev', 'Workload')!;
const serviceAccountKind = findKind('', 'ServiceAccount')!;
const componentKind = findKind('dapr.io', 'Component')!;
const brokerAccount = { namespace: 'mizzen-system', name: 'mizzen-broker' };
const tokenSeconds = 24 * 3600;
const tokenRenewMs = 6 * 3600 * 1000;
const trustDomain = 'cluster.local';

/** No text of a spec. */
const startAgain = '';

interface RunningWorkload {
  /** `startAgain` after a failure that may pass. */
  specText: string;
  replicas: Replica[];
  /** Set when it cannot run, with the reason. */
  problem: string | undefined;
}

export class MeshRunner {
  readonly #options: MeshRunnerOptions;
  readonly #ports: PortAllocator;
  readonly #processes: ProcessList;
  readonly #workloads: Map<string, RunningWorkload>;
  readonly #tokens: Map<string, string>;
  /** Builds under way, so that replicas and versions that share one build it once. */
  readonly #builds: Map<string, Promise<string | undefined>>;
  #control: SupervisedProcess | undefined;
  #api: ApiClient | undefined;
  #broker: SupervisedProcess | undefined;
  #brokerAddress: string;
  #stopWatching: (() => void) | undefined;
  #queue: Promise<void>;
  #tokenTimer: NodeJS.Timeout | undefined;
  readonly #backoff: Backoff;
  #retryTimer: NodeJS.Timeout | undefined;
  #isStopping: boolean;
  #lab: Lab | undefined;

  constructor(options: MeshRunnerOptions) {
    this.#options = options;
    this.#ports = new PortAllocator();
    this.#processes = new ProcessList(join(options.home, 'processes.json'));
    this.#workloads = new Map();
    this.#tokens = new Map();
    this.#builds = new Map();
    this.#control = undefined;
    this.#api = undefined;
    this.#broker = undefined;
    this.#brokerAddress = '';
    this.#stopWatching = undefined;
    this.#queue = Promise.resolve();
    this.#tokenTimer = undefined;
    this.#backoff = new Backoff(1_000, 30_000);
    this.#retryTimer = undefined;
    this.#isStopping = false;
    this.#lab = undefined;
  }

  get api(): ApiClient {
    return this.#api!;
  }

  get controlPid(): number | undefined {
    return this.#control?.pid;
  }

  /** Starts everything; resolves when all that can be ready is. */
  async start(): Promise<void> {
    const { home, onProgress } = this.#options;
    mkdirSync(join(home, 'logs'), { recursive: true, mode: 0o700 });
    const owner = this.#processes.runningOwner();
    if (owner !== undefined)
      throw new MizzenError('mesh-running', `a mesh with this home runs already (process ${owner}). Stop it, or choose another home with --home.`, home);
    this.#processes.claim();
    const left = this.#processes.endLeftovers();
    if (left > 0) onProgress(`ended ${left} ${left === 1 ? 'process' : 'processes'} that an earlier run had left`);
    await this.#startControl();
    onProgress('control plane is up');
    await this.#reconcile();
    const stops = [workloadKind, componentKind].map((kind) =>
      this.api.watch(
        kind,
        undefined,
        () => this.#reconcileSoon(),
        () => {},
      ),
    );
    this.#stopWatching = () => {
      for (const stop of stops) stop();
    };
    this.#tokenTimer = boundary.every(tokenRenewMs, () => boundary.start(() => this.#renewTokens()));
    await this.#waitUntilReady();
  }

  /** Ends everything in order: workloads and their sidecars, gateways, then the control plane. */
  async stop(): Promise<void> {
    this.#isStopping = true;
    this.#stopWatching?.();
    clearInterval(this.#tokenTimer);
    clearTimeout(this.#retryTimer);
    await this.#queue;
    await Promise.all([...this.#workloads.values()].flatMap((workload) => workload.replicas).map((replica) => replica.stop()));
    await this.#broker?.stop(5_000);
    await this.#control?.stop(5_000);
    await this.#lab?.close();
    this.#processes.release();
    this.#api?.close();
  }

  addresses(): ReplicaAddress[] {
    return [...this.#workloads.values()].flatMap((workload) => workload.replicas).map((replica) => replica.address());
  }

  /** Workloads that cannot run, with the reason. */
  problems(): { readonly name: string; readonly problem: string }[] {
    return [...this.#workloads].filter(([, workload]) => workload.problem !== undefined).map(([name, workload]) => ({ name, problem: workload.problem! }));
  }

  async #startControl(): Promise<void> {
    const { home, directory, apiPort, xdsPort, onLine, onNotice } = this.#options;
    const files = homeFiles(home);
    // Fixed for the life of this mesh, so that everybody finds the control plane again after it was restarted.
    const ports = { api: apiPort === 0 ? await this.#ports.next() : apiPort, xds: xdsPort === 0 ? await this.#ports.next() : xdsPort };
    for (const [what, port, option] of [
      ['the API', ports.api, '--api-port'],
      ['xDS', ports.xds, '--xds-port'],
    ] as const) {
      if (!(await isFree(port)))
        throw new MizzenError(
          'port-in-use',
          `the port for ${what} is in use. Perhaps another mesh is running; stop it, or choose another port with ${option}.`,
          `127.0.0.1:${port}`,
        );
    }
    this.#lab = await this.#makeLab(ports.xds);
    this.#brokerAddress = `${this.#lab?.network.gatewayAddress ?? '127.0.0.1'}:${await this.#ports.next()}`;
    rmSync(files.endpoints, { force: true });
    this.#control = new SupervisedProcess({
      name: 'control',
      command: [
        ...mizzenCommand,
        'control',
        '--home',
        home,
        '--dir',
        directory,
        '--api-port',
        String(ports.api),
        '--xds-port',
        String(ports.xds),
        '--broker',
        this.#brokerAddress,
        // Everything that this mesh talks to may run on this machine, and its API is for this machine's user.
        ...['--allow-fetch', '127.0.0.1', '--allow-fetch', 'localhost', '--allow-fetch', '::1'],
        ...(this.#lab === undefined ? [] : ['--xds-host', this.#lab.network.gatewayAddress]),
      ],
      env: { ...process.env, PATH: searchPath(), MIZZEN_RUNNER_PID: String(process.pid) } as Record<string, string>,
      workingDirectory: process.cwd(),
      logFile: join(home, 'logs', 'control.log'),
      onLine: (line) => {
        const match = /^\S+ (warn|error) +\S+: (.*)$/.exec(line);
        if (match) onLine('control', `${match[1]}: ${match[2]}`);
        else if (!/^\S+Z (info|debug) /.test(line) && line.trim() !== '') onLine('control', line);
      },
      onNotice: (text) => onNotice('control', text),
    });
    this.#control.on('started', (pid: number) => this.#processes.add(pid));
    this.#control.start();
    const deadline = Date.now() + 30_000;
    while (!existsSync(files.endpoints)) {
      if (Date.now() > deadline)
        throw new MizzenError('control-plane-not-up', 'the control plane did not come up within 30 s.', join(home, 'logs', 'control.log'));
      await sleep(20);
    }
    this.#api = new ApiClient(controlAccess(home));
  }

  async #makeLab(xdsPort: number): Promise<Lab | undefined> {
    const { home, isolate, logger } = this.#options;
    if (isolate === undefined) {
      // What a killed lab has left would go on running beside this mesh.
      if (readLab(home) !== undefined) await removeLeftovers(home);
      return undefined;
    }
    const lab = await Lab.create({ home, xdsPort, logger, ...isolate });
    this.#options.onProgress(`lab ${lab.network.id}: hosts in ${lab.network.prefix}.0/24`);
    return lab;
  }

  /** The mesh's own broker runs from the moment that somebody wants it. */
  async #ensureBroker(): Promise<void> {
    if (this.#broker !== undefined) return;
    const { items } = (await this.api.call('GET', collectionPath(componentKind, undefined))).body as {
      items: Resource<{ readonly type: string; readonly metadata?: readonly { readonly name: string }[] }>[];
    };
    if (!items.some(({ spec }) => spec.type === 'pubsub.mizzen' && !spec.metadata?.some(({ name }) => name === 'address'))) return;
    const { home, onLine, onNotice, onProgress } = this.#options;
    const access = controlAccess(home);
    const { namespace, name } = brokerAccount;
    const cut = this.#brokerAddress.lastIndexOf(':');
    const [host, port] = [this.#brokerAddress.slice(0, cut), this.#brokerAddress.slice(cut + 1)];
    const config = join(home, 'broker-identity.json');
    writeDurably(
      config,
      JSON.stringify({
        type: 'sidecar',
        name,
        namespace,
        workload: name,
        serviceAccount: name,
        labels: {},
        trustDomain,
        address: host,
        control: access.xds,
        rootCertificateFile: homeFiles(home).rootCertificate,
        tokenFile: await this.#token(namespace, name),
      }),
    );
    writeDurably(join(home, 'broker.json'), JSON.stringify({ address: this.#brokerAddress, config }));
    this.#broker = new SupervisedProcess({
      name: 'broker',
      command: [...mizzenCommand, 'broker', '--home', home, '--host', host, '--port', port, '--config', config],
      env: { ...process.env, PATH: searchPath(), MIZZEN_RUNNER_PID: String(process.pid) } as Record<string, string>,
      workingDirectory: home,
      logFile: join(home, 'logs', 'broker.log'),
      onLine: (line) => {
        const match = /^\S+ (warn|error) +\S+: (.*)$/.exec(line);
        if (match) onLine('broker', `${match[1]}: ${match[2]}`);
      },
      onNotice: (text) => onNotice('broker', text),
    });
    this.#broker.on('started', (pid: number) => this.#processes.add(pid));
    this.#broker.start();
    onProgress(`broker for messages at ${this.#brokerAddress}`);
  }

  #reconcileSoon(): void {
    this.#queue = this.#queue
      .then(() => {
        boundary.enter();
        return this.#isStopping ? undefined : this.#reconcile();
      })
      .catch((error: unknown) => {
        boundary.unexpected(error);
        this.#options.logger.error('the workloads could not be reconciled; it will be tried again', { error: messageOf(error) });
        this.#reconcileLater();
      });
  }

  /** After a failure that may pass: no change of a workload may follow that would lead to the next attempt. */
  #reconcileLater(): void {
    clearTimeout(this.#retryTimer);
    if (this.#isStopping) return;
    this.#retryTimer = boundary.after(
      this.#backoff.nextMs(),
      () => this.#reconcileSoon(),
      () => this.#reconcileLater(),
    );
  }

  async #reconcile(): Promise<void> {
    await this.#ensureBroker();
    const { items } = (await this.api.call('GET', collectionPath(workloadKind, undefined))).body as { items: Resource<WorkloadSpec>[] };
    const wanted = new Map(items.map((resource) => [`${resource.metadata.namespace}/${resource.metadata.name}`, resource]));
    const ended = [...this.#workloads].filter(([key, running]) => {
      const resource = wanted.get(key);
      return !resource || specText(resource) !== running.specText;
    });
    await Promise.all(
      ended.map(async ([key, running]) => {
        const what = !wanted.has(key) ? 'removed, stopping' : running.specText === startAgain ? 'starting again' : 'changed, restarting';
        if (!this.#isStopping) this.#options.onProgress(`${key.split('/')[1]}: ${what}`);
        await Promise.all(running.replicas.map((replica) => replica.stop()));
        this.#workloads.delete(key);
      }),
    );
    // Builds run side by side; what needs none starts at once.
    await Promise.all([...wanted].filter(([key]) => !this.#workloads.has(key)).map(([key, resource]) => this.#startWorkload(key, resource)));
    if ([...this.#workloads.values()].some(({ specText: text }) => text === startAgain)) this.#reconcileLater();
    else this.#backoff.reset();
  }

  async #startWorkload(key: string, resource: Resource<WorkloadSpec>): Promise<void> {
    const { spec, metadata } = resource;
    const { home } = this.#options;
    const running: RunningWorkload = { specText: specText(resource), replicas: [], problem: undefined };
    this.#workloads.set(key, running);
    const namespace = metadata.namespace ?? 'default';
    const fail = (problem: string) => {
      running.problem = problem;
      this.#options.onNotice(metadata.name, problem);
    };
    try {
      const missing = (spec.requires ?? []).filter((program) => !isInPath(program));
      if (missing.length > 0 && !spec.fallback) return fail(`it needs ${missing.join(' and ')}, which this machine lacks, and has no fallback`);
      const usesFallback = missing.length > 0;
      const workingDirectory = resolve(this.#folderOf(resource), spec.workingDirectory ?? '.');
      if (!spec.gateway && !existsSync(workingDirectory)) return fail(`its working directory ${workingDirectory} does not exist`);
      if (spec.build && !usesFallback) {
        const problem = await this.#build(metadata.name, spec.build, workingDirectory);
        if (problem) return fail(`its build failed: ${problem}`);
      }
      const tokenFile = await this.#token(namespace, spec.serviceAccount ?? 'default');
      const access = controlAccess(home);
      for (let index = 0; index < (spec.replicas ?? 1); index++) {
        const replica = new Replica({
          workload: metadata.name,
          index,
          namespace,
          spec,
          labels: metadata.labels ?? {},
          command: (usesFallback ? spec.fallback : spec.command) ?? [],
          workingDirectory,
          home,
          trustDomain,
          control: access.xds,
          rootCertificateFile: homeFiles(home).rootCertificate,
          tokenFile,
          ports: this.#ports,
          lab: this.#lab,
          annotations: metadata.annotations ?? {},
          onStarted: (pid) => this.#processes.add(pid),
          onLine: this.#options.onLine,
          onNotice: this.#options.onNotice,
        });
        running.replicas.push(replica);
        await replica.start();
      }
    } catch (error) {
      await Promise.all(running.replicas.splice(0).map((replica) => replica.stop()));
      running.specText = startAgain;
      fail(messageOf(error));
    }
  }

  /** Relative paths of a workload start at the folder of the file that it was written in. */
  #folderOf(resource: Resource): string {
    const origin = resource.metadata.annotations?.[originFileAnnotation];
    return origin ? dirname(resolve(origin)) : this.#options.directory;
  }

  #build(name: string, command: readonly string[], workingDirectory: string): Promise<string | undefined> {
    const key = JSON.stringify([command, workingDirectory]);
    let running = this.#builds.get(key);
    if (!running) {
      this.#options.onProgress(`${name}: building (${command.join(' ')})`);
      const [program, ...args] = command;
      running = new Promise((resolveBuild) => {
        const done = (error: Error | null, stdout: string, stderr: string) => {
          this.#builds.delete(key);
          resolveBuild(error ? `${error.message.split('\n')[0]}\n${(stderr || stdout).trim().split('\n').slice(-10).join('\n')}` : undefined);
        };
        const settings = { cwd: workingDirectory, env: { ...process.env, PATH: searchPath() }, timeout: 180_000, maxBuffer: 4 * 1024 * 1024 };
        const failed = () => done(new Error('an internal error of mizzen'), '', '');
        const child: ChildProcess = boundary.own(execFile(program!, args, settings, boundary.wrap(done, failed)), () => child.kill());
      });
      this.#builds.set(key, running);
    }
    return running;
  }

  async #token(namespace: string, serviceAccount: string): Promise<string> {
    const file = join(this.#options.home, 'tokens', namespace, serviceAccount);
    const key = `${namespace}/${serviceAccount}`;
    if (this.#tokens.has(key)) return file;
    mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
    if (serviceAccount !== 'default') {
      try {
        await this.api.call('POST', collectionPath(serviceAccountKind, namespace), {
          body: { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: serviceAccount } },
        });
      } catch (error) {
        if (!(error instanceof ApiFailure) || error.status !== 409) throw error;
      }
    }
    await this.#writeToken(namespace, serviceAccount, file);
    this.#tokens.set(key, file);
    return file;
  }

  async #writeToken(namespace: string, serviceAccount: string, file: string): Promise<void> {
    const answer = await this.api.call('POST', `${collectionPath(serviceAccountKind, namespace)}/${serviceAccount}/token`, {
      body: { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { audiences: ['istio-ca'], expirationSeconds: tokenSeconds } },
    });
    const { token } = (answer.body as { status: { token: string } }).status;
    writeDurably(file, token);
  }

  async #renewTokens(): Promise<void> {
    for (const [key, file] of this.#tokens) {
      const [namespace, serviceAccount] = key.split('/') as [string, string];
      await this.#writeToken(namespace, serviceAccount, file).catch((error: unknown) =>
        this.#options.logger.warn('a token could not be renewed; it will be tried again', { serviceAccount: key, error: messageOf(error) }),
      );
    }
  }

  /** All proxies have the newest configuration, and every workload with a port is healthy. */
  async #waitUntilReady(): Promise<void> {
    const deadline = Date.now() + 60_000;
    let lastWaiting = '';
    while (!this.#isStopping) {
      const waiting = await this.#notReady();
      if (waiting.length === 0) return;
      if (Date.now() > deadline) {
        this.#options.onNotice('mizzen', `not ready after 60 s: ${waiting.join(', ')}. \`mizzen logs NAME\` shows why; the rest of the mesh is up.`);
        return;
      }
      const text = waiting.join(', ');
      if (text !== lastWaiting) this.#options.onProgress(`waiting for ${text}`);
      lastWaiting = text;
      await sleep(100);
    }
  }

  async #notReady(): Promise<string[]> {
    const { proxies } = (await this.api.call('GET', '/mizzen/v1/proxies')).body as { proxies: { name: string; namespace: string; state: string }[] };
    const entries = ((await this.api.call('GET', collectionPath(findKind('networking.istio.io', 'WorkloadEntry')!, undefined))).body as { items: Resource[] })
      .items;
    const waiting: string[] = [];
    for (const address of this.addresses()) {
      if (address.kind === 'process') continue;
      const proxy = proxies.find((candidate) => candidate.name === address.name);
      const isHealthy =
        address.kind === 'gateway' ||
        entries.some((entry) => entry.metadata.name === address.name && entry.metadata.annotations?.['mizzen.dev/unhealthy'] === undefined);
      const isLive =
        address.readyUrl !== undefined &&
        (await fetch(address.readyUrl).then(
          (response) => response.ok,
          () => false,
        ));
      if (proxy?.state !== 'synced' || !isHealthy || !isLive) waiting.push(address.name);
    }
    return waiting;
  }
}

function specText(resource: Resource): string {
  return JSON.stringify([resource.spec, resource.metadata.labels]);
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
