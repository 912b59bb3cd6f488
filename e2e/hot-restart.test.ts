import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { WebSocket, WebSocketServer } from 'ws';
import { mizzenCommand, proxyCommand } from '../packages/cli/runner/program.ts';
import { type BootstrapParts, bootstrap, cluster, http as httpFilter, listener, RawClient, TestEngine } from './support/engine.ts';
import { faultyProcess } from './support/faulty-process.ts';
import { GrpcClient, grpcServer } from './support/grpc.ts';
import { call, until } from './support/http.ts';

/** Restarts one after the other. `MIZZEN_DRILL_LONG=1` takes the long form. */
const restarts = process.env['MIZZEN_DRILL_LONG'] === '1' ? 20 : 2;
const downloadBytes = 16 * 1024 * 1024;
const websocket = { upgrade_configs: [{ upgrade_type: 'websocket' }] };

/** A proxy that is restarted again and again; its processes write to one log. */
class RestartedProxy {
  readonly first: ChildProcess;
  readonly #argument: string;
  readonly #log: string[];

  constructor(
    folder: string,
    parts: BootstrapParts & { readonly adminPort: number },
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
    command = proxyCommand,
  ) {
    const file = join(folder, `restarted-${parts.adminPort}.json`);
    writeFileSync(file, JSON.stringify(bootstrap(parts)));
    this.#argument = file;
    this.#log = [];
    this.first = spawn(command[0]!, [...command.slice(1), '--config', file, ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, ...env },
    });
    createInterface({ input: this.first.stderr! }).on('line', (line) => this.#log.push(line));
  }

  /** Lines of the log with this text. */
  count(text: string): number {
    return this.#log.filter((line) => line.includes(text)).length;
  }

  async logged(text: string, times: number): Promise<void> {
    await until(
      `the log says ${times} times: ${text}`,
      async () => (this.count(text) >= times ? [] : this.#log.slice(-10)),
      (found) => found.length === 0,
      60_000,
    );
  }

  /** Its processes that run, without workers; the newest has the highest pid unless numbers have begun again. */
  pids(): number[] {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => {
        try {
          return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(this.#argument) && !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
        } catch {
          return false; // it has ended in the meantime
        }
      });
  }

  async untilRunning(count: number): Promise<number[]> {
    return until(
      `${count} processes run`,
      async () => this.pids(),
      (pids) => pids.length === count,
      60_000,
    );
  }

  /** Asks the process that the test has started, whether it serves or drains. */
  async restart(pid = this.first.pid!): Promise<void> {
    const before = this.count('the new process serves');
    process.kill(pid, 'SIGUSR2');
    await this.logged('the new process serves', before + 1);
  }

  close(): void {
    for (const pid of this.pids()) process.kill(pid, 'SIGKILL');
  }
}

describe('hot restart with streams that stay open', { concurrency: 3 }, () => {
  const engine = new TestEngine();
  const webSockets = new WebSocketServer({ noServer: true });
  webSockets.on('connection', (socket) => socket.on('message', (message) => socket.send(`echo ${message}`)));
  const app = http.createServer((request, response) => {
    if (request.url !== '/download') return void response.end('ok');
    response.writeHead(200, { 'content-length': downloadBytes });
    response.end(Buffer.alloc(downloadBytes, 'x'));
  });
  app.on('upgrade', (request, socket, head) => webSockets.handleUpgrade(request, socket, head, (opened) => webSockets.emit('connection', opened)));
  let grpc: Awaited<ReturnType<typeof grpcServer>>;
  let appPort: number;

  before(async () => {
    app.listen(0, '127.0.0.1');
    await once(app, 'listening');
    appPort = (app.address() as AddressInfo).port;
    grpc = await grpcServer('app');
  });
  after(async () => {
    for (const socket of webSockets.clients) socket.terminate();
    await grpc.close();
    await engine.close();
    app.closeAllConnections();
    app.close();
  });

  const start = async (args: readonly string[], env: Readonly<Record<string, string>> = {}, command = proxyCommand) => {
    const [port, grpcPort, adminPort] = [await engine.ports.next(), await engine.ports.next(), await engine.ports.next()];
    const proxy = new RestartedProxy(
      engine.folder,
      {
        adminPort,
        listeners: [listener('http', port, httpFilter('app', websocket)), listener('grpc', grpcPort, httpFilter('grpc'))],
        clusters: [cluster('app', [appPort]), cluster('grpc', [grpc.port], { http2_protocol_options: {} })],
      },
      args,
      env,
      command,
    );
    engine.onClose(() => proxy.close());
    await engine.untilReady(adminPort);
    return { proxy, port, grpcPort, adminPort };
  };

  const openWebSocket = async (port: number) => {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/`);
    await once(socket, 'open');
    return socket;
  };

  /** The first bytes of a download of which no more is read yet. */
  const openDownload = (port: number) =>
    new Promise<http.IncomingMessage>((resolve, reject) => {
      http
        .get({ port, host: '127.0.0.1', path: '/download', agent: false }, (response) => {
          response.once('readable', () => resolve(response));
        })
        .on('error', reject);
    });

  const lengthOf = async (response: AsyncIterable<Buffer>) => {
    let length = 0;
    for await (const chunk of response) length += chunk.length;
    return length;
  };

  const openHttp2Download = async (port: number) => {
    const session = http2.connect(`http://127.0.0.1:${port}`);
    session.on('error', () => {});
    const stream = session.request({ ':path': '/download' });
    await once(stream, 'response');
    return { session, stream };
  };

  const answerOf = async (socket: WebSocket, text: string) => {
    socket.send(text);
    return String(((await once(socket, 'message', { signal: AbortSignal.timeout(20_000) })) as [Buffer])[0]);
  };

  it(`loses no request and no stream in ${restarts} restarts`, { timeout: 240_000 }, async (test) => {
    const { proxy, port, grpcPort } = await start(['--drain-time', '1'], faultyProcess({ 'hot-restart': 1, process: 2 }));
    const failures: string[] = [];
    let done = 0;
    let isOver = false;
    const client = new GrpcClient(grpcPort);
    const streams: {
      readonly socket: WebSocket;
      readonly download: http.IncomingMessage;
      readonly h2: Awaited<ReturnType<typeof openHttp2Download>>;
      readonly client: GrpcClient;
      readonly chat: ReturnType<GrpcClient['chat']>;
      readonly heard: string[];
    }[] = [];
    test.after(() => {
      isOver = true;
      client.close();
      for (const { socket, download, h2, client: chatClient } of streams) {
        socket.terminate();
        download.destroy();
        h2.session.destroy();
        chatClient.close();
      }
    });
    const loads = [
      async (agent: http.Agent) => {
        const { status } = await call({ port, headers: { host: 'a' }, agent });
        return status === 200 ? undefined : `status ${status}`;
      },
      async () => {
        const { code, details } = await client.say('x');
        return code === 0 ? undefined : `gRPC ${code}: ${details}`;
      },
    ].map(async (send) => {
      const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      while (!isOver) {
        const problem = await send(agent).catch(String);
        if (problem !== undefined) failures.push(problem);
        done++;
      }
      agent.destroy();
    });
    const idle = new RawClient(port).write('GET / HTTP/1.1\r\nhost: a\r\n\r\n');
    await idle.until(/ok$/);
    const session = http2.connect(`http://127.0.0.1:${port}`);
    session.on('error', () => {});
    await lengthOf(session.request({ ':path': '/' }));
    const moved = [once(session, 'goaway'), once(session, 'close'), idle.closed(60_000)];
    for (let restart = 0; restart < restarts; restart++) {
      const [socket, download, h2] = await Promise.all([openWebSocket(port), openDownload(port), openHttp2Download(port)]);
      const chatClient = new GrpcClient(grpcPort);
      const chat = chatClient.chat();
      const heard: string[] = [];
      chat.on('data', (message: Buffer) => heard.push(String(message)));
      chat.write(Buffer.from('before'));
      await until(
        'a message on the gRPC stream',
        async () => heard.length,
        (length) => length === 1,
      );
      streams.push({ socket, download, h2, client: chatClient, chat, heard });
      await proxy.restart();
    }
    // Connections without a stream have been told to go to the new process.
    await Promise.all(moved);
    const before = done;
    await until(
      'requests after the last restart',
      async () => done,
      (count) => count > before + 50,
    );
    assert.equal(proxy.pids().length, restarts + 1, 'each process stays for its streams');
    for (const [generation, { socket, download, h2, client: chatClient, chat, heard }] of streams.entries()) {
      assert.equal(await answerOf(socket, `from ${generation}`), `echo from ${generation}`);
      chat.write(Buffer.from('after'));
      chat.end();
      await once(chat, 'end');
      assert.deepEqual(heard, ['BEFORE', 'AFTER']);
      assert.equal(await lengthOf(download), downloadBytes);
      assert.equal(await lengthOf(h2.stream), downloadBytes);
      socket.close();
      await once(socket, 'close');
      h2.session.close();
      chatClient.close();
    }
    await proxy.untilRunning(1);
    isOver = true;
    await Promise.all(loads);
    assert.deepEqual([...new Set(failures)], []);
    // An exception in each process for a message of the other, and for the request to restart: both are handled again.
    for (const place of ['hot-restart', 'process']) assert.ok(proxy.count(`injected fault at ${place}`) >= restarts, place);
    const [last] = proxy.pids();
    process.kill(last!, 'SIGTERM');
    await proxy.untilRunning(0);
  });

  it('ends the streams of the oldest process when more than --max-draining drain', { timeout: 120_000 }, async () => {
    const { proxy, port } = await start(['--drain-time', '0', '--max-draining', '1']);
    const sockets: WebSocket[] = [];
    for (let restart = 0; restart < 2; restart++) {
      sockets.push(await openWebSocket(port));
      await proxy.restart();
    }
    await once(sockets[0]!, 'close');
    assert.equal(proxy.count('too many processes drain'), 1);
    assert.equal(await answerOf(sockets[1]!, 'x'), 'echo x');
    await proxy.untilRunning(2);
  });

  for (const env of [{} as Record<string, string>, { MIZZEN_RUNNER_PID: String(process.pid) }])
    it(`ends all processes on SIGTERM to the first, ${'MIZZEN_RUNNER_PID' in env ? 'with' : 'without'} a supervisor`, { timeout: 120_000 }, async () => {
      // The third entry of the first process: the turn that waits for its last streams.
      const { proxy, port } = await start(['--drain-time', '0'], { ...env, ...faultyProcess({ process: 3 }) });
      await openWebSocket(port);
      await proxy.restart();
      await proxy.untilRunning(2);
      const exited = once(proxy.first, 'exit');
      proxy.first.kill('SIGTERM');
      assert.deepEqual(await exited, [0, null]);
      await proxy.untilRunning(0);
      assert.ok(proxy.count('injected fault at process') > 0);
    });

  it('restarts and ends with the launcher that an older Node.js runs, and ends streams after --restart-drain-time', { timeout: 120_000 }, async () => {
    const older = "data:text/javascript,Object.defineProperty(process.versions, 'node', { value: '20.0.0' })";
    const { proxy, port } = await start(['--drain-time', '0', '--restart-drain-time', '1'], {}, [
      process.execPath,
      '--import',
      older,
      mizzenCommand[1]!,
      'proxy',
    ]);
    await proxy.untilRunning(2);
    const socket = await openWebSocket(port);
    await proxy.restart();
    await once(socket, 'close');
    assert.equal((await call({ port, agent: new http.Agent() })).status, 200);
    await proxy.untilRunning(3);
    proxy.first.kill('SIGKILL');
    await proxy.untilRunning(0);
  });

  it('tells its supervisor when the process that has taken over ends unexpectedly', { timeout: 120_000 }, async () => {
    const { proxy, port } = await start(['--drain-time', '1'], { MIZZEN_RUNNER_PID: String(process.pid) });
    await openWebSocket(port);
    await proxy.restart();
    const [second] = proxy.pids().filter((pid) => pid !== proxy.first.pid);
    const exited = once(proxy.first, 'exit');
    process.kill(second!, 'SIGKILL');
    assert.deepEqual(await exited, [1, null]);
    await proxy.untilRunning(0);
  });
});
