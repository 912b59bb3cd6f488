import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { decodeYaml, describeProblem, findKind, groupOf } from '@mizzen/api';
import { type Logger, silentLogger } from '@mizzen/common';
import { type ControlPlane, type ControlPlaneOptions, homeFiles, startControlPlane } from '@mizzen/control';
import { startMessaging } from '@mizzen/message';
import { type ProxyConfig, type StartedProxy, type StartOptions, startProxy } from '@mizzen/proxy';
import type { PortAllocator } from '../../packages/cli/runner/port-allocator.ts';
import { testPorts } from './ports.ts';

/** A mesh inside the test's own process: a real control plane and real proxies on real sockets, one event loop. */
export class TestMesh {
  readonly home: string;
  readonly ports: PortAllocator;
  /** Of the control plane and of all proxies. */
  readonly logger: Logger;
  plane!: ControlPlane;
  readonly #closers: (() => Promise<void>)[];

  private constructor(logger: Logger, home: string) {
    this.logger = logger;
    this.home = home;
    this.ports = testPorts;
    this.#closers = [];
  }

  static async start(options: Partial<ControlPlaneOptions> = {}): Promise<TestMesh> {
    const mesh = new TestMesh(options.logger ?? silentLogger, options.home ?? mkdtempSync(join(tmpdir(), 'mizzen-test-')));
    mesh.plane = await startControlPlane({
      home: mesh.home,
      apiPort: 0,
      xdsPort: 0,
      xdsPlainPort: 0,
      logger: mesh.logger,
      allowedFetchHosts: ['127.0.0.1', 'localhost'],
      registrationGraceMs: 500,
      ...options,
    });
    return mesh;
  }

  /** Applies YAML as a person would, and waits until every proxy has it. */
  async apply(yaml: string, fileName = 'test.yaml'): Promise<void> {
    const { resources, problems } = decodeYaml(yaml, fileName);
    if (problems.length > 0) throw new Error(problems.map((problem) => describeProblem(problem, fileName)).join('\n'));
    for (const { resource, origin } of resources) {
      const kind = findKind(groupOf(resource.apiVersion), resource.kind)!;
      await this.plane.registry.apply(kind, resource.metadata.namespace ?? '', resource.metadata.name, resource as never, true, { manager: 'test', origin });
    }
    await this.plane.pilot.refresh();
    await this.synced();
  }

  /** Resolves when every connected proxy has acknowledged what it was sent. */
  async synced(): Promise<void> {
    const deadline = Date.now() + 60_000;
    while (this.plane.pilot.proxies().some((proxy) => proxy.state === 'stale')) {
      if (Date.now() > deadline) throw new Error(`not synced: ${JSON.stringify(this.plane.pilot.proxies().map((proxy) => [proxy.name, proxy.types]))}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** An application that answers with what it was sent, as JSON, and with its name. */
  async application(name: string, answer?: http.RequestListener): Promise<number> {
    const server = http.createServer(
      answer ??
        ((request, response) => {
          const chunks: Buffer[] = [];
          request.on('data', (chunk: Buffer) => chunks.push(chunk));
          request.on('end', () =>
            response
              .writeHead(200, { 'content-type': 'application/json' })
              .end(
                JSON.stringify({ name, method: request.method, url: request.url, headers: request.headers, body: Buffer.concat(chunks).toString('latin1') }),
              ),
          );
        }),
    );
    server.keepAliveTimeout = 60_000;
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    this.onClose(async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    });
    return (server.address() as AddressInfo).port;
  }

  async proxy(name: string, fields: Partial<ProxyConfig> = {}, start: StartOptions = {}): Promise<RunningProxy> {
    const serviceAccount = fields.serviceAccount ?? name;
    const namespace = fields.namespace ?? 'default';
    const tokenFile = join(this.home, `${name}.token`);
    await bindWorkload(this.plane, { ...fields, name, namespace, serviceAccount });
    if (fields.tokenFile === undefined) writeFileSync(tokenFile, (await this.plane.tokens.issue(namespace, serviceAccount, [], 3600)).token);
    const outbound = `127.0.0.1:${await this.ports.next()}`;
    const config: ProxyConfig = {
      type: 'sidecar',
      name,
      namespace,
      workload: name,
      serviceAccount,
      labels: { app: name },
      trustDomain: this.plane.pilot.trustDomain,
      address: '127.0.0.1',
      control: `127.0.0.1:${this.plane.xdsPort}`,
      rootCertificateFile: homeFiles(this.home).rootCertificate,
      tokenFile,
      adminPort: 0,
      drainMs: 300,
      accessLogFile: join(this.home, `${name}.access.log`),
      ...(fields.type === 'gateway' ? {} : { outbound }),
      ...fields,
    };
    const proxy = await startProxy(config, this.logger, { logLevel: 'error', messaging: startMessaging, ...start });
    this.onClose(() => proxy.close());
    return {
      proxy,
      config,
      outboundPort: Number(config.outbound?.split(':')[1] ?? 0),
      adminPort: proxy.adminPort ?? 0,
      inboundPort: Number(config.inbound?.[0]?.listen.split(':')[1] ?? 0),
    };
  }

  /** A service with one replica behind a sidecar, listening on 9080. Resolves when callers can use it. */
  async workload(
    name: string,
    options: {
      readonly labels?: Record<string, string>;
      readonly serviceAccount?: string;
      readonly answer?: http.RequestListener;
      readonly fields?: Partial<ProxyConfig>;
    } = {},
  ): Promise<RunningProxy> {
    const app = await this.application(name, options.answer);
    const running = await this.proxy(name, {
      labels: { app: name, ...options.labels },
      registers: true,
      inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${await this.ports.next()}`, app: `127.0.0.1:${app}` }],
      ...(options.serviceAccount ? { serviceAccount: options.serviceAccount } : {}),
      ...options.fields,
    });
    await running.proxy.ready;
    await this.plane.pilot.refresh();
    await this.synced();
    return running;
  }

  /** A sidecar for an application that is there already, on one port of its own. Resolves when callers can use it. */
  async sidecar(
    name: string,
    app: number,
    port: { readonly name?: string; readonly port: number },
    labels: Readonly<Record<string, string>> = {},
  ): Promise<RunningProxy> {
    const running = await this.proxy([name, ...Object.values(labels)].join('-'), {
      labels: { app: name, ...labels },
      registers: true,
      inbound: [{ ...port, listen: `127.0.0.1:${await this.ports.next()}`, app: `127.0.0.1:${app}` }],
    });
    await running.proxy.ready;
    await this.plane.pilot.refresh();
    await this.synced();
    return running;
  }

  onClose(close: () => Promise<void>): void {
    this.#closers.unshift(close);
  }

  async close(): Promise<void> {
    await Promise.all(this.#closers.map((close) => close()));
    await this.plane.close();
    rmSync(this.home, { recursive: true, force: true });
  }
}

export interface RunningProxy {
  readonly proxy: StartedProxy;
  readonly config: ProxyConfig;
  readonly outboundPort: number;
  readonly inboundPort: number;
  readonly adminPort: number;
}

/** `portName` '': a port that declares nothing. */
export function service(name: string, portName = 'http', port = 9080): string {
  return `apiVersion: v1\nkind: Service\nmetadata: { name: ${name} }\nspec:\n  selector: { app: ${name} }\n  ports:\n  - { ${portName ? `name: ${portName}, ` : ''}port: ${port} }\n---\n`;
}

/** The Workload that binds a proxy's service account to its name, labels and type, unless the test has written one. */
export async function bindWorkload(plane: Pick<ControlPlane, 'registry'>, proxy: Partial<ProxyConfig> & Pick<ProxyConfig, 'name'>): Promise<void> {
  const kind = findKind('mizzen.dev', 'Workload')!;
  const { name, namespace = 'default', serviceAccount = name, labels = { app: name } } = proxy;
  if (await plane.registry.store.get({ group: kind.group, kind: kind.kind, namespace, name })) return;
  const spec = {
    serviceAccount,
    ...(proxy.type === 'gateway' ? { gateway: true } : { command: ['true'] }),
    ...(proxy.workloadGroup ? { workloadGroup: proxy.workloadGroup } : {}),
    ...(proxy.messaging ? { messaging: { appId: proxy.messaging.appId } } : {}),
  };
  const value = { apiVersion: 'mizzen.dev/v1alpha1', kind: kind.kind, metadata: { name, namespace, labels }, spec };
  await plane.registry.create(kind, namespace, value as never, { manager: 'test', origin: { source: 'api', name: 'test' } });
}
