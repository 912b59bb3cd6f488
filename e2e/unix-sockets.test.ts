import assert from 'node:assert/strict';
import { once } from 'node:events';
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { decodeYaml } from '@mizzen/api';
import { cluster, http as httpFilter, type Json, TestEngine, tcp } from './support/engine.ts';
import { until } from './support/http.ts';
import { notPrivileged, program } from './support/lab.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';
import { endSuccessor } from './support/successor.ts';

const pipe = (path: string, more: Json = {}): Json => ({ pipe: { path, ...more } });
const listenerAt = (name: string, path: string, filter: Json): Json => ({ name, address: pipe(path), filter_chains: [{ filters: [filter] }] });
const clusterAt = (name: string, path: string, more: Json = {}): Json => ({
  ...cluster(name, [], more),
  load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address: pipe(path) } }] }] },
});

const curl = (socket: string, ...args: readonly string[]) => program(['curl', '-sS', '-m', '5', '--unix-socket', socket, ...args]);

async function serve(path: string, server: net.Server): Promise<void> {
  server.listen(path);
  await once(server, 'listening');
}

describe('a proxy whose listeners and endpoints are Unix sockets', () => {
  const engine = new TestEngine();
  const at = (name: string) => join(engine.folder, name);
  after(() => engine.close());
  before(async () => {
    const application = http.createServer((request, response) => response.end(`${request.httpVersion} ${request.headers['x-forwarded-for'] ?? ''}`));
    const bytes = net.createServer({ allowHalfOpen: true }, (socket) => socket.on('error', () => {}).pipe(socket));
    await serve(at('app'), application);
    await serve(at('echo'), bytes);
    engine.onClose(() => {
      application.closeAllConnections();
      application.close();
      bytes.close();
    });
  });

  it('carries HTTP/1.1, HTTP/2 and opaque TCP from one to the other', async () => {
    const proxy = await engine.start({
      listeners: [
        listenerAt('http', at('http'), httpFilter('app')),
        listenerAt('h2', at('h2'), httpFilter('h2')),
        listenerAt('h2-in', at('h2-in'), httpFilter('app')),
        listenerAt('bytes', at('bytes'), tcp('echo')),
      ],
      clusters: [clusterAt('app', at('app')), clusterAt('h2', at('h2-in'), { http2_protocol_options: {} }), clusterAt('echo', at('echo'))],
    });
    assert.equal((await curl(at('http'), 'http://any/')).output, '1.1 ');
    assert.equal((await curl(at('h2'), '--http2-prior-knowledge', '-w', '|%{http_version}', 'http://any/')).output, '1.1 |2');
    const client = net.connect({ path: at('bytes') });
    client.end('to and fro');
    const [answer] = (await once(client, 'data')) as [Buffer];
    assert.equal(String(answer), 'to and fro');
    assert.equal(statSync(at('http')).mode & 0o777, 0o600);
    await proxy.close();
    assert.deepEqual([existsSync(at('http')), existsSync(at('bytes')), existsSync(at('app'))], [false, false, true], 'it removes its own, and no other');
  });

  it('no name in a request becomes a path', async () => {
    const { proxyPort } = await forwardProxy();
    for (const host of [at('app'), `${at('app')}:0`, '@app'])
      assert.doesNotMatch((await program(['curl', '-sS', '-m', '2', '-H', `Host: ${host}`, `http://127.0.0.1:${proxyPort}/`])).output, /^1\.1 /, host);
  });

  async function forwardProxy() {
    const proxyPort = await engine.ports.next();
    await engine.start({
      listeners: [{ ...listenerAt('forward', '', httpFilter('by-host')), address: { socket_address: { address: '127.0.0.1', port_value: proxyPort } } }],
      clusters: [
        {
          ...{ name: 'by-host', type: 'ORIGINAL_DST', lb_policy: 'CLUSTER_PROVIDED', connect_timeout: '1s' },
          original_dst_lb_config: { use_http_header: true, http_header_name: ':authority' },
        },
      ],
    });
    return { proxyPort };
  }

  for (const concurrency of ['1', '2'])
    it(`hands its Unix sockets to a new process, with ${concurrency} event loop(s)`, async () => {
      const adminPort = await engine.ports.next();
      const path = at(`restart-${concurrency}`);
      const child = await engine.spawn({ listeners: [listenerAt('in', path, httpFilter('app'))], clusters: [clusterAt('app', at('app'))], adminPort }, [
        ...['--concurrency', concurrency, '--drain-time', '1'],
      ]);
      const inode = statSync(path).ino;
      const failures: string[] = [];
      let isOver = false;
      const load = (async () => {
        while (!isOver) {
          const { output, error } = await curl(path, 'http://any/');
          if (output !== '1.1 ') failures.push(error);
        }
      })();
      const exited = once(child, 'exit');
      process.kill(child.pid!, 'SIGUSR2');
      await exited;
      isOver = true;
      await load;
      assert.deepEqual(failures, []);
      assert.equal((await curl(path, 'http://any/')).output, '1.1 ');
      assert.equal(statSync(path).ino, inode, 'the same socket');
      await endSuccessor(adminPort, child.pid!);
      await until(
        'the socket to be removed',
        async () => existsSync(path),
        (isThere) => !isThere,
      );
    });
});

describe('a workload whose sidecar and application listen on Unix sockets', () => {
  let mesh: TestMesh;
  let folder: string;
  let shop: RunningProxy;
  let example: string;

  before(async () => {
    mesh = await TestMesh.start();
    chmodSync(mesh.home, 0o711);
    folder = join(mesh.home, 'shop');
    mkdirSync(folder);
    const [, yaml] = /```yaml\n(apiVersion: networking\.istio\.io\/v1\nkind: Sidecar\n.*?unix:\/\/\/run\/shop\/.*?)```/s.exec(
      readFileSync(new URL('../docs/security.md', import.meta.url), 'utf8'),
    )!;
    example = yaml!.replaceAll('/run/shop', folder);
    await mesh.apply(
      `apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: default }\nspec: { mtls: { mode: STRICT } }\n---\n${service('shop')}${service('stock')}`,
    );
    await mesh.workload('stock');
    const application = http.createServer((_request, response) => response.end('shop'));
    await serve(join(folder, 'app.sock'), application);
    chmodSync(join(folder, 'app.sock'), 0o600);
    mesh.onClose(async () => {
      application.closeAllConnections();
      application.close();
    });
    const [listen, unused] = [await mesh.ports.next(), await mesh.ports.next()];
    shop = await mesh.proxy('shop', {
      registers: true,
      socketFolders: [folder],
      inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${listen}`, app: `127.0.0.1:${unused}` }],
      probe: { port: unused, path: '/', periodMs: 50 },
    });
    await mesh.apply(example);
    await shop.proxy.ready;
    await until(
      'the outbound socket',
      async () => existsSync(join(folder, 'mesh.sock')),
      (isThere) => isThere,
    );
  });
  after(() => mesh?.close());

  it('calls services through its socket with its identity, by HTTP, as the example of the documentation says', async () => {
    const { output, error } = await curl(join(folder, 'mesh.sock'), 'http://stock:9080/x');
    const seen = JSON.parse(output || error) as { name: string; headers: Record<string, string> };
    assert.match(`${seen.name} ${seen.headers['x-forwarded-client-cert']}`, /^stock .*sa\/shop/);
  });

  it('is called on its socket under STRICT, and is probed there', async () => {
    const caller = await mesh.proxy('caller');
    await caller.proxy.ready;
    await until(
      'an answer of the application',
      () => program(['curl', '-sS', '-m', '5', '-x', `http://127.0.0.1:${caller.outboundPort}`, 'http://shop:9080/']),
      ({ output }) => output === 'shop',
    );
  });

  it('another local user uses neither socket; the application’s user does', { skip: notPrivileged }, async () => {
    const as = (uid: number, socket: string) =>
      program([
        ...['setpriv', '--reuid', String(uid), '--regid', String(uid), '--clear-groups', '--'],
        'curl',
        '-sS',
        '-m',
        '5',
        '--unix-socket',
        socket,
        'http://stock:9080/',
      ]);
    for (const name of ['mesh.sock', 'app.sock']) {
      const refused = await as(65_534, join(folder, name));
      assert.notEqual(refused.code, 0, `${name}: ${refused.output}`);
    }
    // The application runs as another user than its sidecar: the folder is its group's.
    await mesh.apply(
      'apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: { name: shop }\nspec: { workloadSelector: { labels: { app: shop } }, egress: [{ hosts: ["./*"] }] }\n',
    );
    await until(
      'the socket to be removed',
      async () => existsSync(join(folder, 'mesh.sock')),
      (isThere) => !isThere,
    );
    chownSync(folder, 0, 4_321);
    chmodSync(folder, 0o2750);
    await mesh.apply(example);
    await until(
      'the outbound socket',
      async () => existsSync(join(folder, 'mesh.sock')),
      (isThere) => isThere,
    );
    const allowed = await as(4_321, join(folder, 'mesh.sock'));
    assert.match(allowed.output, /"name":"stock"/, allowed.error);
    assert.notEqual((await as(65_534, join(folder, 'mesh.sock'))).code, 0);
  });

  it('a Sidecar cannot make a proxy use a socket outside of its folders', async () => {
    const secret = join(mesh.home, 'secret.sock');
    const server = http.createServer((_request, response) => response.end('secret'));
    await serve(secret, server);
    mesh.onClose(async () => void server.close());
    const port = await mesh.ports.next();
    const other = await mesh.proxy('other', {
      registers: true,
      inbound: [{ name: 'http', port: 9080, listen: `127.0.0.1:${port}`, app: `127.0.0.1:${await mesh.application('other')}` }],
    });
    await mesh.apply(service('other'));
    await other.proxy.ready;
    await mesh
      .apply(
        `apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: { name: other }\nspec:\n  workloadSelector: { labels: { app: other } }\n  egress: [{ port: { protocol: HTTP }, bind: "unix://${join(mesh.home, 'own.sock')}", hosts: ["./*"] }]\n  ingress: [{ port: { number: 9080, protocol: HTTP, name: http }, defaultEndpoint: "unix://${secret}" }]\n`,
      )
      .catch(() => {});
    const answer = await program(['curl', '-sS', '-m', '5', '-x', `http://127.0.0.1:${shop.outboundPort}`, 'http://other:9080/']);
    assert.doesNotMatch(answer.output, /secret/);
    assert.equal(existsSync(join(mesh.home, 'own.sock')), false);
    const refused = await until(
      'the refusal',
      async () => JSON.stringify(mesh.plane.pilot.proxies().find(({ name }) => name.startsWith('other'))),
      (text) => text.includes('no rights to Unix sockets there'),
    );
    assert.match(refused, /--socket-folder/);
    rmSync(secret, { force: true });
  });

  it('addresses that make no sense are refused with the reason', () => {
    const problemsOf = (spec: string) =>
      decodeYaml(`apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: { name: x }\nspec:\n${spec}`, 'x.yaml')
        .problems.map(({ message }) => message)
        .join('\n');
    const egress = (bind: string, port = '{ number: 0, protocol: HTTP, name: http }') =>
      problemsOf(`  egress: [{ port: ${port}, bind: "${bind}", hosts: ["./*"] }]\n`);
    for (const good of ['unix:///run/shop/mesh.sock', 'unix://@shop']) assert.equal(egress(good), '');
    assert.equal(egress('unix:///run/x', '{ protocol: TCP, name: tcp }'), '');
    assert.match(egress('unix:///run/x', '{ number: 80, protocol: HTTP, name: http }'), /has no port: write 0/);
    assert.match(egress('unix:///run/x', '{ name: http }'), /needs a protocol/);
    assert.match(egress('unix://relative'), /must be absolute/);
    assert.match(egress('unix:///run/../etc/x'), /must not contain/);
    assert.match(egress(`unix:///${'x'.repeat(200)}`), /at most 107 bytes, this one has 201/);
    assert.match(problemsOf('  ingress: [{ port: { number: 1, protocol: HTTP, name: http }, defaultEndpoint: "unix://@" }]\n'), /needs a name/);
    assert.match(
      problemsOf('  ingress: [{ port: { number: 1, protocol: HTTP, name: http }, bind: "unix:///run/x" }]\n'),
      /only defaultEndpoint may be a Unix socket/,
    );
    const twice = '{ port: { protocol: HTTP, name: http }, bind: "unix:///run/x", hosts: ["./*"] }';
    assert.match(problemsOf(`  egress: [${twice}, ${twice}]\n`), /is taken by an earlier listener/);
  });
});
