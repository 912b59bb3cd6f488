import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { envoyBootstrap } from '../e2e/support/envoy.ts';
import { until } from '../e2e/support/http.ts';
import { notPrivileged, program } from '../e2e/support/lab.ts';
import { TestMesh } from '../e2e/support/mesh.ts';
import { skipWithout } from '../e2e/support/requirements.ts';
import { applyCapture } from '../packages/cli/capture/apply-capture.ts';
import { defaultCapture } from '../packages/cli/capture/capture-settings.ts';

const namespace = `mze-${process.pid}`;
const device = `mze${process.pid}`;
const [outside, inside] = ['10.197.7.1', '10.197.7.2'];

const server = `
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (sys.argv[2] + ' saw ' + self.client_address[0]).encode()
        self.send_response(200); self.send_header('content-length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(('0.0.0.0', int(sys.argv[1])), Handler).serve_forever()
`;

/** The virtual listeners that pilot makes for captured traffic are Envoy's own: it must take them and do with them what our sidecar does. */
describe('stock Envoy as a captured sidecar', { skip: notPrivileged || skipWithout('envoy', 'ip', 'nft', 'curl', 'python3') }, () => {
  let mesh: TestMesh;
  let envoy: ChildProcess;
  let relay: net.Server;
  let log = '';
  let address = '';
  const children: ChildProcess[] = [];
  const start = (command: readonly string[]) => {
    const child = spawn(command[0]!, command.slice(1), { stdio: ['ignore', 'ignore', 'pipe'] });
    children.push(child);
    return child;
  };
  const within = (command: readonly string[]) => ['ip', 'netns', 'exec', namespace, ...command];
  const curl = (...args: string[]) => program(within(['curl', '-sS', '-m', '5', ...args]));

  before(async () => {
    for (const command of [
      `ip netns add ${namespace}`,
      `ip link add ${device} type veth peer name eth0 netns ${namespace}`,
      `ip addr add ${outside}/24 dev ${device}`,
      `ip link set ${device} up`,
      ...['link set lo up', `addr add ${inside}/24 dev eth0`, 'link set eth0 up', `route add default via ${outside}`].map(
        (rest) => `ip -n ${namespace} ${rest}`,
      ),
    ]) {
      const result = await program(command.split(' '));
      assert.equal(result.code, 0, `${command}: ${result.error}`);
    }
    await applyCapture({ ...defaultCapture, dnsPort: undefined }, { engine: 'nftables', namespace });
    mesh = await TestMesh.start();
    // Envoy proves nothing here: it comes in by the plain port, which is for this machine's loopback only.
    relay = net.createServer((from) => {
      const to = net.connect(mesh.plane.xdsPlainPort!, '127.0.0.1');
      from.pipe(to).pipe(from);
      from.on('error', () => to.destroy());
      to.on('error', () => from.destroy());
    });
    relay.listen(0, outside);
    await once(relay, 'listening');
    await mesh.apply(`apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: DISABLE } }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ name: http, port: 80, targetPort: 8099 }, { name: tcp-raw, port: 90, targetPort: 8099 }, { name: guess, port: 100, targetPort: 8099 }] }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: web }
spec: { address: ${outside}, labels: { app: web } }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: web }
spec:
  hosts: [web]
  http:
  - match: [{ uri: { prefix: /teapot } }]
    directResponse: { status: 418 }
  - route: [{ destination: { host: web } }]
`);
    const metadata = {
      NAME: 'envoy',
      NAMESPACE: 'default',
      INTERCEPTION_MODE: 'REDIRECT',
      MIZZEN_INBOUND: [{ name: 'http', port: 9080, listen: `${inside}:9080`, app: '127.0.0.1:9080' }],
    };
    const bootstrap = envoyBootstrap(inside, metadata, { address: outside, port: (relay.address() as net.AddressInfo).port });
    const file = join(mesh.home, 'envoy.json');
    writeFileSync(file, JSON.stringify(bootstrap));
    start(['python3', '-c', server, '8099', 'outside']);
    start(within(['python3', '-c', server, '9080', 'declared']));
    start(within(['python3', '-c', server, '9081', 'undeclared']));
    envoy = start(
      within([
        'setpriv',
        '--regid',
        '1337',
        '--clear-groups',
        '--',
        'envoy',
        '-c',
        file,
        '--log-level',
        'warning',
        '--disable-hot-restart',
        '--concurrency',
        '1',
      ]),
    );
    envoy.stderr!.on('data', (chunk: Buffer) => (log += chunk));
    address = [
      ...(await import('../packages/control/pilot/registry/auto-addresses.ts'))
        .autoAddresses([{ hostname: 'web.default.svc.cluster.local', addresses: [], isHeadless: false, resolution: 'static' } as never])
        .values(),
    ][0]!.ipv4;
  });
  after(async () => {
    for (const child of children) child.kill('SIGKILL');
    relay?.close();
    await mesh?.close();
    await program(['ip', 'netns', 'delete', namespace]);
    await program(['ip', 'link', 'delete', device]);
  });

  it('takes the virtual listeners and refuses none', async () => {
    const status = await until(
      'Envoy to be in step',
      async () => mesh.plane.pilot.proxies()[0],
      (proxy) => ['cluster', 'endpoint', 'listener', 'route'].every((type) => proxy?.types[type]?.state === 'synced'),
      60_000,
    ).catch((error: Error) => assert.fail(`${error.message}\n${log.slice(-3000)}`));
    for (const [type, state] of Object.entries(status!.types)) assert.notEqual(state.state, 'nacked', `${type}: ${state.error}`);
  });

  it('captured calls are routed by Host, carried by address, or passed on', async () => {
    const web = await until(
      'an answer',
      () => curl('-H', 'Host: web', `http://${address}/`),
      ({ output }) => output.startsWith('outside saw'),
    );
    assert.equal(web.code, 0);
    const status = async (...args: string[]) => (await curl('-o', '/dev/null', '-w', '%{http_code}', ...args)).output;
    assert.equal(await status('-H', 'Host: web', `http://${address}/teapot`), '418', 'HTTP on a declared port');
    assert.equal(await status(`http://${address}:90/teapot`), '200', 'bytes');
    assert.equal(await status('-H', 'Host: web', `http://${address}:100/teapot`), '418', 'HTTP that was found out');
    assert.equal(await status(`http://${outside}:8099/`), '200', 'where it was going');
  });

  it('captured callers reach the application, on a declared port and on another, and the sidecar itself is nobody', async () => {
    const call = (port: number) => program(['curl', '-sS', '-m', '5', `http://${inside}:${port}/`]);
    assert.match((await call(9080)).output, /^declared saw 127\.0\.0\.1/);
    assert.match((await call(9081)).output, /^undeclared saw 127\.0\.0\.6/);
    assert.notEqual((await call(15_006)).code, 0);
  });
});
