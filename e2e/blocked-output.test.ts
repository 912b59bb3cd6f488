import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { homeFiles } from '@mizzen/control';
import { mizzenCommand } from '../packages/cli/runner/program.ts';
import { bootstrap, cluster, http, listener, TestEngine } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { TestMesh } from './support/mesh.ts';

/** The command is up: whatever shows it. */
type IsUp = () => boolean | Promise<boolean>;

/** The server has looked at a connection: it answers what is no TLS, or no HTTP/2, or closes. */
const answers = (address: net.NetConnectOpts): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = net.connect(address, () => socket.write('GET / HTTP/1.1\r\n\r\n'));
    const finish = (isUp: boolean) => {
      socket.destroy();
      resolve(isUp);
    };
    socket.on('error', () => finish(false));
    socket.on('data', () => finish(true));
    socket.on('close', () => finish(true));
  });

const xdsPort = (home: string) => Number((JSON.parse(readFileSync(homeFiles(home).endpoints, 'utf8')) as { readonly xds: string }).xds.split(':').at(-1));

describe('commands that keep running', { concurrency: 3 }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-output-'));
  const unread = join(folder, 'unread');
  const engine = new TestEngine();
  let mesh: TestMesh;
  let reader: number;
  before(async () => {
    mesh = await TestMesh.start();
    execFileSync('mkfifo', [unread]);
    reader = openSync(unread, constants.O_RDWR | constants.O_NONBLOCK);
    // Full from the beginning: every write has to wait.
    try {
      for (;;) writeSync(reader, Buffer.alloc(4_096));
    } catch (error) {
      assert.equal((error as NodeJS.ErrnoException).code, 'EAGAIN');
    }
  });
  after(async () => {
    await mesh.close();
    await engine.close();
    closeSync(reader);
    rmSync(folder, { recursive: true, force: true });
  });

  const commands: Readonly<
    Record<string, (home: string) => Promise<{ readonly args: readonly string[]; readonly isUp: IsUp; readonly use?: () => Promise<void> }>>
  > = {
    up: async (home) => {
      const resources = join(home, 'resources');
      mkdirSync(resources);
      const done = join(home, 'done');
      // A workload that prints more than any pipe holds.
      const print = `for (let i = 0; i < 20_000; i++) console.log('x'.repeat(100)); require('fs').writeFileSync('${done}', ''); setInterval(() => {}, 1e6)`;
      writeFileSync(
        join(resources, 'loud.yaml'),
        `apiVersion: mizzen.dev/v1alpha1\nkind: Workload\nmetadata: { name: loud }\nspec:\n  sidecar: false\n  command: ${JSON.stringify(['node', '-e', print])}\n`,
      );
      return { args: ['up', resources, '--home', home, '--api-port', '0', '--xds-port', '0'], isUp: () => existsSync(done) };
    },
    control: async (home) => ({
      args: ['control', '--home', home, '--api-port', '0', '--xds-port', '0', '--log-level', 'debug'],
      isUp: () => existsSync(homeFiles(home).endpoints) && answers({ port: xdsPort(home), host: '127.0.0.1' }),
    }),
    broker: async (home) => {
      const port = await engine.ports.next();
      return { args: ['broker', '--plain', '--home', home, '--port', String(port)], isUp: () => answers({ port, host: '127.0.0.1' }) };
    },
    proxy: async (home) => {
      const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
      const file = join(home, 'proxy.json');
      const log = { name: 'log', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog', path: '/dev/stdout' } };
      const app = await engine.server((socket) => socket.on('data', () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok')));
      writeFileSync(
        file,
        JSON.stringify(bootstrap({ adminPort, listeners: [listener('in', port, http('app', { access_log: [log] }))], clusters: [cluster('app', [app])] })),
      );
      return {
        args: ['proxy', '--config', file, '--log-level', 'debug', '--drain-time', '0'],
        isUp: () => call({ port: adminPort, path: '/ready' }).then(({ status }) => status === 200),
        use: async () => {
          for (let i = 0; i < 50; i++) assert.equal((await call({ port, path: `/${'x'.repeat(4_000)}` })).status, 200);
        },
      };
    },
    agent: async (home) => {
      const [entries, socket] = [join(home, 'entries.yaml'), join(home, 'api.sock')];
      writeFileSync(entries, `entries: [{ namespace: shop, serviceAccount: cart, selectors: { uid: ${process.getuid?.() ?? 0} } }]\n`);
      return {
        args: ['agent', '--home', mesh.home, '--entries', entries, '--socket', socket, '--log-level', 'debug'],
        isUp: () => existsSync(socket) && answers({ path: socket }),
      };
    },
    run: async (home) => {
      const done = join(home, 'done');
      const application = `require('fs').writeFileSync('${done}', ''); setInterval(() => {}, 1e6)`;
      const name = `loud-${home.at(-1)}`;
      return {
        args: [
          'run',
          '--home',
          mesh.home,
          '--name',
          name.toLowerCase().replaceAll(/[^a-z0-9-]/g, 'x'),
          '--drain-time',
          '0',
          '--verbose',
          '--',
          process.execPath,
          '-e',
          application,
        ],
        isUp: () => existsSync(done),
      };
    },
  };

  for (const name of Object.keys(commands))
    for (const isStdoutClosed of [false, true])
      it(`${name} serves and ends in order: standard output ${isStdoutClosed ? 'closed, standard error' : 'not read, standard error'} ${isStdoutClosed ? 'not read' : 'closed'}`, {
        timeout: 120_000,
      }, async () => {
        const home = mkdtempSync(join(folder, `${name}-`));
        const { args, isUp, use } = await commands[name]!(home);
        const descriptor = openSync(unread, constants.O_RDWR);
        const [stdout, stderr] = isStdoutClosed ? (['pipe', descriptor] as const) : ([descriptor, 'pipe'] as const);
        const child = spawn(mizzenCommand[0]!, [...mizzenCommand.slice(1), ...args], { stdio: ['ignore', stdout, stderr] });
        try {
          (isStdoutClosed ? child.stdout : child.stderr)?.destroy();
          const exited = once(child, 'exit');
          await until(`${name} is up`, async () => (await isUp()) || child.exitCode !== null || child.signalCode !== null, Boolean, 60_000);
          await use?.();
          assert.deepEqual([child.exitCode, child.signalCode], [null, null]);
          child.kill('SIGTERM');
          const [code] = (await exited) as [number | null];
          assert.ok(code === 0 || (name === 'run' && code === 143), `exit code ${code}`);
        } finally {
          child.kill('SIGKILL');
          closeSync(descriptor);
        }
      });
});
