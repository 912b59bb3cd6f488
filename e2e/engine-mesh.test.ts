import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import net from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { homeFiles } from '@mizzen/control';
import { proxyCommand } from '../packages/cli/runner/program.ts';
import { TestAuthority } from './support/certificates.ts';
import { metric, RawClient } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { bindWorkload, type RunningProxy, service, TestMesh } from './support/mesh.ts';

describe('the engine in a mesh', () => {
  let mesh: TestMesh;
  let client: RunningProxy;

  before(async () => {
    mesh = await TestMesh.start();
    client = await mesh.proxy('client');
    await client.proxy.ready;
  });
  after(() => mesh.close());

  const tcpServer = async (onConnection: (socket: net.Socket) => void) => {
    const sockets = new Set<net.Socket>();
    const server = net.createServer((socket) => {
      sockets.add(socket);
      socket.on('error', () => {});
      onConnection(socket);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    mesh.onClose(async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    return (server.address() as AddressInfo).port;
  };

  it('carries a WebSocket through two sidecars and mutual TLS', async () => {
    const app = http.createServer();
    app.on('upgrade', (_request, socket) => {
      socket.on('error', () => {});
      socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n');
      socket.pipe(socket);
    });
    app.listen(0, '127.0.0.1');
    await once(app, 'listening');
    mesh.onClose(async () => {
      app.closeAllConnections();
      app.close();
    });
    await mesh.apply(service('chat'));
    const server = await mesh.sidecar('chat', (app.address() as AddressInfo).port, { name: 'http', port: 9080 });
    const socket = new RawClient(client.outboundPort).write('GET /ws HTTP/1.1\r\nhost: chat:9080\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n');
    await socket.until(/^HTTP\/1\.1 101 [\s\S]*\r\n\r\n$/);
    socket.write('through the mesh');
    await socket.until(/through the mesh$/);
    socket.socket.end();
    await socket.closed();
    const text = (await call({ port: server.adminPort, path: '/stats/prometheus' })).body;
    assert.equal(metric(text, 'istio_requests_total', 'connection_security_policy="mutual_tls"'), 1);
    assert.match(text, /response_code="101"/);
  });

  it('reaches a TCP service by CONNECT, over mutual TLS, with its metrics', async () => {
    const app = await tcpServer((socket) => {
      socket.write('220 mail ready\r\n');
      socket.on('data', (chunk: Buffer) => socket.end(`250 ${chunk}`));
    });
    await mesh.apply(service('mail', 'tcp-smtp', 25));
    const server = await mesh.sidecar('mail', app, { name: 'tcp-smtp', port: 25 });
    const socket = new RawClient(client.outboundPort).write('CONNECT mail:25 HTTP/1.1\r\nhost: mail:25\r\n\r\n');
    await socket.until(/^HTTP\/1\.1 200 OK\r\n\r\n220 mail ready\r\n$/);
    socket.write('HELO');
    assert.match(await socket.closed(), /250 HELO$/);
    const text = await until(
      'the session is counted',
      async () => (await call({ port: server.adminPort, path: '/stats/prometheus' })).body,
      (found) => metric(found, 'istio_tcp_connections_closed_total') === 1,
    );
    assert.equal(metric(text, 'istio_tcp_connections_opened_total', 'source_principal="spiffe://cluster.local/ns/default/sa/client"'), 1);
    assert.equal((await call({ port: client.outboundPort, headers: { host: 'mail:25' } })).status, 404);
  });

  it('tunnels the HTTPS of applications to a service that ends its TLS itself', async () => {
    const authority = new TestAuthority(mesh.home);
    const { cert, key } = authority.issue('vault', ['DNS:vault']);
    const app = https
      .createServer({ cert: authority.pem(cert), key: authority.pem(key) }, (request, response) => response.end(`secret ${request.url}`))
      .listen(0, '127.0.0.1');
    await once(app, 'listening');
    mesh.onClose(async () => {
      app.closeAllConnections();
      app.close();
    });
    await mesh.apply(service('vault', 'https', 8443));
    await mesh.sidecar('vault', (app.address() as AddressInfo).port, { name: 'https', port: 8443 });
    const socket = net.connect(client.outboundPort, '127.0.0.1');
    socket.write('CONNECT vault:8443 HTTP/1.1\r\nhost: vault:8443\r\n\r\n');
    await once(socket, 'data');
    const answer = await new Promise<string>((resolve, reject) => {
      https
        .get(
          { host: 'vault', servername: 'vault', path: '/x', ca: authority.pem(authority.certificate), agent: new https.Agent(), ...{ socket } },
          (response) => {
            let text = '';
            response.on('data', (chunk) => (text += chunk));
            response.on('end', () => resolve(text));
          },
        )
        .on('error', reject);
    });
    assert.equal(answer, 'secret /x');
    socket.destroy();
  });

  it('finds out what a port without a declared protocol speaks: HTTP with its metrics, and servers that speak first', async () => {
    const app = await tcpServer((socket) => {
      const hello = setTimeout(() => socket.write('* OK server first\r\n'), 20);
      socket.on('data', (chunk: Buffer) => {
        clearTimeout(hello);
        if (chunk.toString().startsWith('GET ')) socket.end('HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nhttp');
      });
    });
    await mesh.apply(service('mixed', '', 7000));
    const server = await mesh.sidecar('mixed', app, { port: 7000 });
    assert.equal((await call({ port: client.outboundPort, headers: { host: 'mixed:7000' } })).body, 'http');
    const plain = await call({ port: server.inboundPort, headers: { host: 'mixed:7000' } });
    assert.equal(plain.body, 'http');
    const first = new RawClient(server.inboundPort);
    await first.until(/^\* OK server first/);
    first.destroy();
    const text = (await call({ port: server.adminPort, path: '/stats/prometheus' })).body;
    assert.equal(metric(text, 'istio_requests_total', 'connection_security_policy="mutual_tls"'), 1);
    assert.equal(metric(text, 'istio_requests_total', 'connection_security_policy="none"'), 1);
  });

  it('serves with workers that share one xDS stream, and one certificate', async () => {
    const app = await mesh.application('wide');
    await mesh.apply(service('wide'));
    const running = await mesh.proxy('wide', {
      labels: { app: 'wide' },
      registers: true,
      concurrency: 2,
      inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${await mesh.ports.next()}`, app: `127.0.0.1:${app}` }],
    });
    await running.proxy.ready;
    await mesh.plane.pilot.refresh();
    await mesh.synced();
    assert.equal(running.proxy.workerPids().length, 2);
    assert.equal(mesh.plane.pilot.proxies().filter((proxy) => proxy.name === 'wide').length, 1);
    for (let i = 0; i < 10; i++) assert.equal((await call({ port: client.outboundPort, headers: { host: 'wide:9080' }, agent: new http.Agent() })).status, 200);
    // A new route reaches every worker.
    await mesh.apply(
      'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: wide }\nspec:\n  selector: { matchLabels: { app: wide } }\n  mtls: { mode: STRICT }\n',
    );
    await until(
      'no worker takes plain text any more',
      async () =>
        (
          await Promise.all(
            Array.from({ length: 8 }, () =>
              call({ port: running.inboundPort, agent: new http.Agent() }).then(
                () => 1,
                () => 0,
              ),
            ),
          )
        ).reduce((a: number, b) => a + b, 0),
      (taken) => taken === 0,
    );
    assert.equal((await call({ port: client.outboundPort, headers: { host: 'wide:9080' } })).status, 200);
  });

  it('replaces workers that are killed one after another under load: each costs at most the request in its hands, and its replacement listens with the routes of the control plane', async (test) => {
    const app = await mesh.application('worn');
    await mesh.apply(service('worn'));
    const running = await mesh.proxy('worn', {
      labels: { app: 'worn' },
      registers: true,
      concurrency: 2,
      inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${await mesh.ports.next()}`, app: `127.0.0.1:${app}` }],
    });
    await running.proxy.ready;
    const first = running.proxy.workerPids();
    const ready = async () => (await call({ port: running.adminPort, path: '/ready' })).status;
    let isOver = false;
    let sent = 0;
    const failures: string[] = [];
    const load = (async () => {
      for (; !isOver; sent++) {
        const { status, body } = await call({ port: client.outboundPort, headers: { host: 'worn:9080' } }).catch((error: unknown) => ({
          status: 0,
          body: String(error),
        }));
        if (status !== 200) failures.push(`${status} ${body}`);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
    })();
    for (const pid of first) {
      process.kill(pid, 'SIGKILL');
      await until(
        'the replacement serves',
        async () => ((await ready()) === 200 ? running.proxy.workerPids() : []),
        (pids) => pids.length === 2 && !pids.includes(pid),
      );
    }
    isOver = true;
    await load;
    test.diagnostic(`${first.length} workers killed, ${sent} requests, ${failures.length} failed`);
    assert.ok(failures.length <= first.length, failures.join('\n'));
    // Only replacements are left: nothing that the first workers had been sent serves any more.
    assert.ok(running.proxy.workerPids().every((pid) => !first.includes(pid)));
    for (let i = 0; i < 10; i++) assert.equal((await call({ port: running.inboundPort, headers: { host: 'worn:9080' }, agent: new http.Agent() })).status, 200);
  });

  it('restarts a sidecar without its callers, or the registry, taking notice', async () => {
    const app = await mesh.application('steady');
    await mesh.apply(service('steady'));
    const listen = await mesh.ports.next();
    const adminPort = await mesh.ports.next();
    const tokenFile = join(mesh.home, 'steady.token');
    writeFileSync(tokenFile, (await mesh.plane.tokens.issue('default', 'steady', [], 3600)).token);
    await bindWorkload(mesh.plane, { name: 'steady' });
    const file = join(mesh.home, 'steady.json');
    writeFileSync(
      file,
      JSON.stringify({
        type: 'sidecar',
        name: 'steady-0',
        namespace: 'default',
        workload: 'steady',
        serviceAccount: 'steady',
        labels: { app: 'steady' },
        trustDomain: 'cluster.local',
        address: '127.0.0.1',
        control: `127.0.0.1:${mesh.plane.xdsPort}`,
        rootCertificateFile: homeFiles(mesh.home).rootCertificate,
        tokenFile,
        registers: true,
        adminPort,
        drainMs: 2_000,
        accessLogFile: join(mesh.home, 'steady.access.log'),
        probe: { port: app, path: '/', periodMs: 200 },
        inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${listen}`, app: `127.0.0.1:${app}` }],
      }),
    );
    const child = spawn(proxyCommand[0]!, [...proxyCommand.slice(1), '--config', file, '--log-level', 'error'], { stdio: ['ignore', 'inherit', 'inherit'] });
    const ask = () => call({ port: client.outboundPort, headers: { host: 'steady:9080' }, agent: new http.Agent() }).then(({ status }) => status, String);
    await until('the sidecar serves', ask, (status) => status === 200, 60_000);
    const answers: (number | string)[] = [];
    let isDone = false;
    const asking = (async () => {
      while (!isDone) answers.push(await ask());
    })();
    const exited = once(child, 'exit');
    process.kill(child.pid!, 'SIGUSR2');
    assert.deepEqual(await exited, [0, null]);
    const pid = mesh.plane.pilot.proxies().find((proxy) => proxy.name === 'steady-0');
    assert.ok(pid, 'the new process is connected');
    for (let i = 0; i < 50; i++) await ask();
    isDone = true;
    await asking;
    assert.deepEqual([...new Set(answers)], [200]);
    const successor = await until(
      'the new process answers',
      async () => (await call({ port: adminPort, path: '/ready' })).status,
      (status) => status === 200,
    );
    assert.equal(successor, 200);
    // It is nobody's child any more: found by its file, ended by its pid.
    const { readdirSync, readFileSync } = await import('node:fs');
    for (const name of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
      let line = '';
      try {
        line = readFileSync(`/proc/${name}/cmdline`, 'utf8');
      } catch {
        continue;
      }
      if (line.includes(file)) process.kill(Number(name), 'SIGTERM');
    }
    await until(
      'it is gone',
      () =>
        call({ port: adminPort, path: '/ready' }).then(
          () => false,
          () => true,
        ),
      Boolean,
      60_000,
    );
  });
});
