import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { testPorts } from './ports.ts';

/** A broker's own program, which can be killed and started again where it was. */
export class BrokerProcess {
  readonly port: number;
  readonly #command: readonly string[];
  readonly #env: NodeJS.ProcessEnv;
  readonly #folder: string;
  readonly #startMs: number;
  #child: ChildProcess | undefined;

  private constructor(folder: string, port: number, command: readonly string[], env: NodeJS.ProcessEnv, startMs: number) {
    this.#folder = folder;
    this.port = port;
    this.#command = command;
    this.#env = env;
    this.#startMs = startMs;
    this.#child = undefined;
  }

  static async nats(): Promise<BrokerProcess> {
    const { folder, port } = await place();
    return BrokerProcess.#started(folder, port, ['nats-server', '-js', '-sd', folder, '-a', '127.0.0.1', '-p', String(port)]);
  }

  static async redis(): Promise<BrokerProcess> {
    const { folder, port } = await place();
    return BrokerProcess.#started(folder, port, [
      'redis-server',
      '--port',
      String(port),
      '--bind',
      '127.0.0.1',
      '--dir',
      folder,
      '--appendonly',
      'yes',
      '--appendfsync',
      'always',
      '--save',
      '',
    ]);
  }

  static async rabbitmq(): Promise<BrokerProcess> {
    const { folder, port } = await place();
    const config = join(folder, 'rabbitmq.conf');
    writeFileSync(config, `listeners.tcp.default = 127.0.0.1:${port}\nloopback_users = none\n`);
    writeFileSync(join(folder, 'enabled_plugins'), '[].\n');
    mkdirSync(join(folder, 'log'));
    return BrokerProcess.#started(
      folder,
      port,
      ['/usr/lib/rabbitmq/bin/rabbitmq-server'],
      {
        HOME: folder,
        // A name server of its own, which ends with it.
        ERL_EPMD_PORT: String(await testPorts.next()),
        RABBITMQ_NODENAME: `mizzen${port}@localhost`,
        RABBITMQ_NODE_PORT: String(port),
        RABBITMQ_DIST_PORT: String(await testPorts.next()),
        RABBITMQ_MNESIA_BASE: join(folder, 'data'),
        RABBITMQ_LOG_BASE: join(folder, 'log'),
        RABBITMQ_CONFIG_FILE: config.slice(0, -'.conf'.length),
        RABBITMQ_ENABLED_PLUGINS_FILE: join(folder, 'enabled_plugins'),
        RABBITMQ_CONF_ENV_FILE: '/dev/null',
      },
      60_000,
    );
  }

  /** The embedded broker, as `mizzen broker` runs it. */
  static async embedded(program: readonly string[]): Promise<BrokerProcess> {
    const { folder, port } = await place();
    return BrokerProcess.#started(folder, port, [...program, 'broker', '--plain', '--data', folder, '--port', String(port)]);
  }

  static async #started(folder: string, port: number, command: readonly string[], env: NodeJS.ProcessEnv = {}, startMs = 60_000): Promise<BrokerProcess> {
    const broker = new BrokerProcess(folder, port, command, env, startMs);
    await broker.start();
    return broker;
  }

  get folder(): string {
    return this.#folder;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  async start(): Promise<void> {
    const [program, ...args] = this.#command;
    // A group of its own: what it starts ends with it.
    const child = spawn(program!, args, { stdio: 'ignore', detached: true, env: { ...process.env, ...this.#env } });
    this.#child = child;
    const deadline = Date.now() + this.#startMs;
    while (!(await answers(this.port))) {
      if (Date.now() > deadline) throw new Error(`${program} does not listen on ${this.port}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const child = this.#child;
    if (child?.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    process.kill(-child.pid, signal);
    await exited;
    // What it had started may take a moment longer.
    while (await answers(this.port)) await new Promise((resolve) => setTimeout(resolve, 20));
  }

  async close(): Promise<void> {
    await this.kill();
    if (this.#env['ERL_EPMD_PORT'] !== undefined) spawnSync('epmd', ['-port', this.#env['ERL_EPMD_PORT'], '-kill'], { stdio: 'ignore' });
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

async function place(): Promise<{ folder: string; port: number }> {
  return { folder: mkdtempSync(join(tmpdir(), 'mizzen-broker-')), port: await testPorts.next() };
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ port, host: '127.0.0.1' });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}
