import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLogger } from '@mizzen/common';
import { compileBootstrap, type StartedProxy, startStaticProxy } from '@mizzen/proxy';
import type { PortAllocator } from '../../packages/cli/runner/port-allocator.ts';
import { proxyCommand } from '../../packages/cli/runner/program.ts';
import { call, until } from './http.ts';
import { testPorts } from './ports.ts';

/** Envoy configuration in its JSON form, as short as tests need it. */
export type Json = { readonly [key: string]: unknown };

const types = 'type.googleapis.com/envoy';
export const typed = (name: string, type: string, config: Json = {}): Json => ({ name, typed_config: { '@type': `${types}.${type}`, ...config } });

export const socketAddress = (port: number, address = '127.0.0.1', protocol = 'TCP'): Json => ({
  socket_address: { address, port_value: port, ...(protocol === 'TCP' ? {} : { protocol }) },
});

/** A connection manager that sends everything to one cluster; `route` and `manager` change it. */
export function http(cluster: string, manager: Json = {}, route: Json = {}, more: readonly Json[] = []): Json {
  return typed('envoy.filters.network.http_connection_manager', 'extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', {
    stat_prefix: 'test',
    route_config: {
      name: 'test',
      virtual_hosts: [{ name: 'all', domains: ['*'], routes: [...more, { match: { prefix: '/' }, route: { cluster, timeout: '0s', ...route } }] }],
    },
    http_filters: [typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router')],
    ...manager,
  });
}

export function tcp(cluster: string | Json, more: Json = {}): Json {
  return typed('envoy.filters.network.tcp_proxy', 'extensions.filters.network.tcp_proxy.v3.TcpProxy', {
    stat_prefix: 'test',
    ...(typeof cluster === 'string' ? { cluster } : cluster),
    ...more,
  });
}

export function listener(name: string, port: number, filter: Json, more: Json = {}, chain: Json = {}): Json {
  return { name, address: socketAddress(port), filter_chains: [{ filters: [filter], ...chain }], ...more };
}

export function cluster(name: string, ports: readonly number[], more: Json = {}): Json {
  return {
    name,
    type: 'STATIC',
    connect_timeout: '2s',
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: ports.map((port) => ({ endpoint: { address: socketAddress(port) } })) }] },
    ...more,
  };
}

export function serverTls(certificate: string, key: string, more: Json = {}, common: Json = {}): Json {
  return {
    transport_socket: typed('envoy.transport_sockets.tls', 'extensions.transport_sockets.tls.v3.DownstreamTlsContext', {
      common_tls_context: { tls_certificates: [{ certificate_chain: { filename: certificate }, private_key: { filename: key } }], ...common },
      ...more,
    }),
  };
}

export function clientTls(common: Json, more: Json = {}): Json {
  return {
    transport_socket: typed('envoy.transport_sockets.tls', 'extensions.transport_sockets.tls.v3.UpstreamTlsContext', { common_tls_context: common, ...more }),
  };
}

export interface BootstrapParts {
  readonly listeners: readonly Json[];
  readonly clusters: readonly Json[];
  readonly secrets?: readonly Json[];
  readonly overload?: Json;
  readonly adminPort?: number;
}

export function bootstrap({ listeners, clusters, secrets = [], overload, adminPort }: BootstrapParts): Json {
  return {
    static_resources: { listeners, clusters, secrets },
    ...(overload ? { overload_manager: overload } : {}),
    ...(adminPort === undefined ? {} : { admin: { address: socketAddress(adminPort) } }),
  };
}

/** A proxy without a control plane, in the test's own process or as one of its own. */
export class TestEngine {
  readonly folder: string;
  readonly ports: PortAllocator;
  readonly #closers: (() => Promise<unknown> | unknown)[];

  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), 'mizzen-engine-'));
    this.ports = testPorts;
    this.#closers = [() => rmSync(this.folder, { recursive: true, force: true })];
  }

  /** Starts a proxy in this process; resolves when it takes connections. */
  async start(parts: BootstrapParts, options: { readonly drainMs?: number } = {}): Promise<StartedProxy> {
    const proxy = await startStaticProxy({ ...compileBootstrap(bootstrap({ adminPort: 0, ...parts }), 'test'), drainMs: 200, ...options }, silentLogger);
    this.onClose(() => proxy.close());
    await proxy.ready;
    return proxy;
  }

  /** Starts `mizzen proxy` as a process; resolves when it says that it is ready. */
  async spawn(
    parts: BootstrapParts & { readonly adminPort: number },
    args: readonly string[] = [],
    env: Readonly<Record<string, string>> = {},
    /** A command that starts the proxy: it is given the proxy's own command as its last arguments. */
    launcher: readonly string[] = [],
  ): Promise<ChildProcess> {
    const file = join(this.folder, `bootstrap-${parts.adminPort}.json`);
    writeFileSync(file, JSON.stringify(bootstrap(parts)));
    const [program, ...first] = [...launcher, ...proxyCommand];
    const child = spawn(program!, [...first, '--config', file, '--log-level', 'warn', ...args], {
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...process.env, ...env },
    });
    this.onClose(async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, 'exit');
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), 30_000);
      await exited;
      clearTimeout(timer);
    });
    await this.untilReady(parts.adminPort);
    return child;
  }

  async untilReady(adminPort: number): Promise<void> {
    await until(
      'ready',
      () => call({ port: adminPort, path: '/ready' }),
      (answer) => answer.status === 200,
      60_000,
    );
  }

  async metrics(port: number): Promise<string> {
    return (await call({ port, path: '/stats/prometheus' })).body;
  }

  /** A TCP server on a port of its own. */
  async server(onConnection: (socket: net.Socket) => void, options: net.ServerOpts = {}): Promise<number> {
    const sockets = new Set<net.Socket>();
    const server = net.createServer({ noDelay: true, ...options }, (socket) => {
      sockets.add(socket);
      socket.on('close', () => sockets.delete(socket));
      socket.on('error', () => {});
      onConnection(socket);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    this.onClose(async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    });
    return (server.address() as net.AddressInfo).port;
  }

  onClose(close: () => Promise<unknown> | unknown): void {
    this.#closers.unshift(close);
  }

  async close(): Promise<void> {
    for (const close of this.#closers) await close();
  }
}

/** A counter or gauge of Prometheus' text format, summed over the series that `labels` appears in. */
export function metric(text: string, name: string, labels = ''): number {
  let sum = 0;
  for (const line of text.split('\n'))
    if (line.startsWith(`${name}{`) || line.startsWith(`${name} `)) if (line.includes(labels)) sum += Number(line.slice(line.lastIndexOf(' ') + 1));
  return sum;
}

/** A raw client connection that collects what comes. */
export class RawClient {
  readonly socket: net.Socket;
  text: string;
  isClosed: boolean;
  #wake: (() => void) | undefined;

  constructor(port: number, options: Partial<net.TcpNetConnectOpts> = {}) {
    this.socket = net.connect({ port, host: '127.0.0.1', ...options });
    this.text = '';
    this.isClosed = false;
    this.socket.on('data', (chunk: Buffer) => {
      this.text += chunk.toString('latin1');
      this.#wake?.();
    });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.isClosed = true;
      this.#wake?.();
    });
  }

  write(data: string | Buffer): this {
    this.socket.write(typeof data === 'string' ? Buffer.from(data, 'latin1') : data);
    return this;
  }

  /** Resolves when what has come matches. */
  async until(pattern: RegExp, timeoutMs = 20_000): Promise<string> {
    const deadline = Date.now() + timeoutMs;
    while (!pattern.test(this.text)) {
      if (this.isClosed) throw new Error(`closed before ${pattern}; received ${JSON.stringify(this.text.slice(0, 300))}`);
      if (Date.now() > deadline) throw new Error(`no ${pattern} within ${timeoutMs} ms; received ${JSON.stringify(this.text.slice(0, 300))}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, deadline - Date.now());
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return this.text;
  }

  async closed(timeoutMs = 30_000): Promise<string> {
    if (!this.isClosed) await once(this.socket, 'close', { signal: AbortSignal.timeout(timeoutMs) });
    return this.text;
  }

  destroy(): void {
    this.socket.destroy();
  }
}
