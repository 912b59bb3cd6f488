import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { processesIn } from '../packages/cli/lab/network-namespace.ts';
import { until } from './support/http.ts';
import { notPrivileged, program, TestLab } from './support/lab.ts';
import { skipWithout } from './support/requirements.ts';

/** Debian keeps the server's programs out of PATH. */
function postgresFolder(): string | undefined {
  try {
    const [version] = readdirSync('/usr/lib/postgresql').sort().reverse();
    return version && `/usr/lib/postgresql/${version}/bin`;
  } catch {
    return undefined; // not installed: said by `npm test`
  }
}

const service = (name: string, port: string) => `apiVersion: v1
kind: Service
metadata: { name: ${name} }
spec: { selector: { app: ${name} }, ports: [${port}] }
---
`;

const workload = (name: string, command: readonly string[], ports: string, more = '') => `apiVersion: mizzen.dev/v1alpha1
kind: Workload
metadata: { name: ${name}, labels: { app: ${name}, version: v1 } }
spec:
  serviceAccount: ${name}
  command: ${JSON.stringify(command)}
  ports: [${ports}]
${more}---
`;

/** Speaks first, as SMTP and MySQL do. */
const serverFirst = (port: number) => `import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b'220 mail.example ready\\r\\n')
        self.wfile.write(b'you said ' + self.rfile.readline())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(('0.0.0.0', ${port}), Handler).serve_forever()`;

const talkSmtp = (host: string, port: number) => `import socket
s = socket.create_connection(('${host}', ${port}), 5)
s.settimeout(5)
f = s.makefile('rb')
print(f.readline().decode().strip())
s.sendall(b'HELO there\\r\\n')
print(f.readline().decode().strip())`;

describe('a lab: programs that nobody changed, on hosts of their own', { skip: notPrivileged }, () => {
  let lab: TestLab;
  let data: string;
  const curl = (host: string, ...args: string[]) => lab.exec(host, ['curl', '-sS', '-m', '10', ...args]);

  const sidecarsOf = async (name: string) =>
    (await processesIn(lab.host(name).namespace)).filter((pid) => readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('proxy\0--config'));

  before(async () => {
    data = mkdtempSync(join(tmpdir(), 'mizzen-lab-data-'));
    await program(['chmod', '0711', data]);
    const web = join(data, 'web');
    mkdirSync(web);
    const certificate = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=secure'];
    const written = await program([
      'openssl',
      ...certificate,
      '-addext',
      'subjectAltName=DNS:secure',
      '-keyout',
      join(data, 'key.pem'),
      '-out',
      join(data, 'cert.pem'),
    ]);
    assert.equal(written.code, 0, written.error);
    const postgres = postgresFolder();
    const database = join(data, 'pg');
    if (postgres) {
      mkdirSync(database);
      await program(['chown', 'postgres', data, database]);
      const made = await program([
        'setpriv',
        '--reuid',
        'postgres',
        '--regid',
        'postgres',
        '--clear-groups',
        `${postgres}/initdb`,
        '-A',
        'trust',
        '--no-sync',
        '-D',
        database,
      ]);
      assert.equal(made.code, 0, made.error);
    }
    lab = await TestLab.start(
      [
        service('web', '{ name: http, port: 80, targetPort: 8000 }'),
        service('redis', '{ name: tcp-redis, port: 6379 }'),
        service('db', '{ name: tcp-postgres, port: 5432 }'),
        service('mail', '{ name: tcp-smtp, port: 25, targetPort: 2525 }, { name: guess, port: 26, targetPort: 2626 }'),
        workload(
          'web',
          ['sh', '-c', `echo hello from the web > index.html; python3 -m http.server 8001 & exec python3 -m http.server 8000`],
          '{ name: http, port: 8000 }',
          `  workingDirectory: ${web}\n`,
        ),
        workload('redis', ['redis-server', '--port', '6379', '--protected-mode', 'no', '--save', '', '--appendonly', 'no'], '{ name: tcp-redis, port: 6379 }'),
        ...(postgres
          ? [
              workload(
                'db',
                ['setpriv', '--reuid', 'postgres', '--regid', 'postgres', '--clear-groups', `${postgres}/postgres`, '-D', database, '-h', '*', '-k', data],
                '{ name: tcp-postgres, port: 5432 }',
              ),
            ]
          : []),
        workload(
          'mail',
          ['sh', '-c', 'python3 -c "$MAIL_A" & exec python3 -c "$MAIL_B"'],
          '{ name: tcp-smtp, port: 2525 }, { name: guess, port: 2626 }',
          `  env:\n    MAIL_A: ${JSON.stringify(serverFirst(2525))}\n    MAIL_B: ${JSON.stringify(serverFirst(2626))}\n`,
        ),
        service('secure', '{ name: https, port: 443, targetPort: 8443 }'),
        workload(
          'secure',
          ['openssl', 's_server', '-quiet', '-www', '-accept', '8443', '-cert', join(data, 'cert.pem'), '-key', join(data, 'key.pem')],
          '{ name: https, port: 8443 }',
        ),
        service('h2', '{ port: 2700 }'),
        workload('h2', ['node', '-e', "require('http2').createServer((q, s) => s.end('by ' + q.httpVersion)).listen(2700)"], '{ port: 2700 }'),
        workload('client', ['sleep', 'infinity'], ''),
      ].join(''),
    );
  });
  after(async () => {
    await lab?.close();
    if (data) rmSync(data, { recursive: true, force: true });
  });

  it('curl and urllib reach a service by its name, and the server sees its sidecar', async () => {
    const byCurl = await curl('client', 'http://web/index.html');
    assert.equal(byCurl.output, 'hello from the web\n', byCurl.error);
    const full = await curl('client', 'http://web.default.svc.cluster.local:80/index.html');
    assert.equal(full.output, 'hello from the web\n', full.error);
    const urllib = await lab.exec('client', [
      'python3',
      '-c',
      "import urllib.request as u; print(u.urlopen('http://web/index.html', timeout=10).read().decode(), end='')",
    ]);
    assert.equal(urllib.output, 'hello from the web\n', urllib.error);
    await until(
      'the access log of the server',
      async () => lab.log('web-0'),
      (log) => /"GET \/index\.html HTTP\/1\.1" 200 .*spiffe:\/\/cluster\.local\/ns\/default\/sa\/client/.test(log),
    );
  });

  it('the same by IPv6', async () => {
    const answer = await curl('client', '-6', 'http://web/index.html');
    assert.equal(answer.output, 'hello from the web\n', answer.error);
  });

  it('a service calls itself by its own name', async () => {
    const answer = await curl('web', 'http://web/index.html');
    assert.equal(answer.output, 'hello from the web\n', answer.error);
    await until(
      'the access log of the server',
      async () => lab.log('web-0'),
      (log) => log.includes('spiffe://cluster.local/ns/default/sa/web '),
    );
    const direct = await curl('web', `http://${lab.host('web').address}:8000/index.html`);
    assert.equal(direct.output, 'hello from the web\n', 'by its own address it reaches itself');
  });

  it('redis-cli talks to redis-server', { skip: skipWithout('redis-cli') }, async () => {
    const set = await lab.exec('client', ['redis-cli', '-h', 'redis', 'set', 'answer', '42']);
    assert.equal(set.output.trim(), 'OK', set.error);
    const get = await lab.exec('client', ['redis-cli', '-h', 'redis.default', 'get', 'answer']);
    assert.equal(get.output.trim(), '42', get.error);
  });

  it('psql talks to PostgreSQL', { skip: skipWithout('psql') }, async () => {
    const result = await until(
      'an answer of the database',
      () => lab.exec('client', ['psql', '-h', 'db', '-U', 'postgres', '-Atc', 'select 6 * 7']),
      (answer) => answer.code === 0,
    );
    assert.equal(result.output.trim(), '42');
  });

  it('a server that speaks first is heard, on a declared port and on one where the protocol is found out', async () => {
    for (const port of [25, 26]) {
      const talk = await lab.exec('client', ['python3', '-c', talkSmtp('mail', port)]);
      assert.equal(talk.output, '220 mail.example ready\nyou said HELO there\n', talk.error);
    }
  });

  it("TLS of the application's own passes, through the mesh and past it", async () => {
    const named = await curl('client', '--cacert', join(data, 'cert.pem'), 'https://secure/');
    assert.match(named.output, /s_server/, named.error);
    // By its address no mesh is between: the server's sidecar meets the application's own handshake.
    const address = lab.host('secure').address;
    const direct = await curl('client', '--cacert', join(data, 'cert.pem'), '--connect-to', `secure:443:${address}:8443`, 'https://secure/');
    assert.match(direct.output, /s_server/, direct.error);
  });

  it('HTTP/2 on a port without a declared protocol travels as it is', async () => {
    const answer = await curl('client', '--http2-prior-knowledge', 'http://h2:2700/');
    assert.equal(answer.output, 'by 2.0', answer.error);
    const older = await curl('client', '--http1.1', 'http://web/index.html');
    assert.equal(older.output, 'hello from the web\n');
  });

  it('dig gets addresses of the mesh, by UDP and by TCP', { skip: skipWithout('dig') }, async () => {
    for (const how of ['+notcp', '+tcp']) {
      const short = await lab.exec('client', ['dig', '+short', how, 'web.default.svc.cluster.local']);
      assert.match(short.output, /^240\.240\.\d+\.\d+\n$/, short.error);
    }
    const six = await lab.exec('client', ['dig', '+short', 'AAAA', 'web.default']);
    assert.match(six.output, /^2001:2::f0f0:[0-9a-f]+\n$/);
    const missing = await lab.exec('client', ['dig', 'nobody.default.svc.cluster.local']);
    assert.match(missing.output, /status: NXDOMAIN/);
  });

  it('nothing that the applications say can be read between the hosts', { skip: skipWithout('tcpdump') }, async () => {
    const file = join(data, 'between.pcap');
    const dump = spawn('tcpdump', ['-i', lab.bridge, '-Z', 'root', '--immediate-mode', '-U', '-w', file, 'tcp'], { stdio: ['ignore', 'ignore', 'pipe'] });
    const exited = once(dump, 'exit');
    let said = '';
    dump.stderr.on('data', (text: Buffer) => (said += text));
    await until(
      'tcpdump to listen',
      async () => said,
      (text) => text.includes('listening'),
    );
    const marker = 'a-word-that-nobody-else-says';
    assert.equal((await curl('client', '-H', `x-secret: ${marker}`, 'http://web/index.html')).output, 'hello from the web\n');
    const set = await lab.exec('client', ['redis-cli', '-h', 'redis', 'set', 'secret', marker]);
    assert.equal(set.output.trim(), 'OK', set.error);
    dump.kill('SIGINT');
    await exited;
    const packets = readFileSync(file).toString('latin1');
    assert.ok(packets.length > 5_000, 'packets were seen');
    assert.ok(packets.includes('\x17\x03\x03'), 'among them are TLS records');
    for (const word of [marker, 'hello from the web', 'GET /index.html', 'secret']) assert.ok(!packets.includes(word), `"${word}" went over the wire`);
  });

  it('a port that nobody declared is reached in plain text, and under STRICT only by those who prove who they are', async () => {
    const url = `http://${lab.host('web').address}:8001/index.html`;
    assert.equal((await curl('client', url)).output, 'hello from the web\n');
    const strict = 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: strict }\nspec: { mtls: { mode: STRICT } }\n';
    await lab.apply(strict);
    const refused = await curl('client', url);
    assert.notEqual(refused.code, 0, refused.output);
    await until(
      'the reason in the log',
      async () => lab.log('web-0'),
      (log) => log.includes('refused plain text: this port takes mutual TLS only'),
    );
    assert.equal((await curl('client', 'http://web/index.html')).output, 'hello from the web\n', 'the mesh goes on');
    await lab.remove(strict);
    await until(
      'plain text to be taken again',
      () => curl('client', url),
      ({ output }) => output === 'hello from the web\n',
    );
  });

  it('REGISTRY_ONLY lets nothing out that the mesh does not know, and says so; a ServiceEntry opens the way', async () => {
    const port = 8099;
    const outside = spawn('python3', ['-m', 'http.server', String(port), '--bind', lab.host('client').address.replace(/\d+$/, '1')], {
      cwd: join(data, 'web'),
      stdio: 'ignore',
    });
    const url = `http://outside.example:${port}/index.html`;
    const get = () => curl('client', '--resolve', `outside.example:${port}:${lab.host('client').address.replace(/\d+$/, '1')}`, url);
    try {
      await until('ALLOW_ANY', get, ({ output }) => output === 'hello from the web\n');
      const registryOnly =
        'apiVersion: v1\nkind: ConfigMap\nmetadata: { name: istio, namespace: istio-system }\ndata:\n  mesh: |\n    outboundTrafficPolicy: { mode: REGISTRY_ONLY }\n';
      await lab.apply(registryOnly);
      assert.notEqual((await get()).code, 0);
      await until(
        'the reason in the log',
        async () => lab.log('client-0'),
        (log) => /BlackHoleCluster .*:8099 not_in_registry/.test(log),
      );
      const entry = `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: outside }\nspec:\n  hosts: [outside.example]\n  ports: [{ number: ${port}, name: http, protocol: HTTP }]\n  resolution: STATIC\n  endpoints: [{ address: ${lab.host('client').address.replace(/\d+$/, '1')} }]\n`;
      await lab.apply(entry);
      const named = await curl('client', url);
      assert.equal(named.output, 'hello from the web\n', `${named.error}: by a name that only the mesh knows, at an address that only the mesh has`);
      await lab.remove(entry);
      const sidecar =
        'apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: { name: client }\nspec: { workloadSelector: { labels: { app: client } }, outboundTrafficPolicy: { mode: ALLOW_ANY } }\n';
      await lab.apply(sidecar);
      assert.equal((await get()).output, 'hello from the web\n', "the workload's own Sidecar has the last word");
      await lab.remove(sidecar);
      await lab.remove(registryOnly);
    } finally {
      outside.kill();
    }
  });

  it('a connection to the sidecar itself goes nowhere and is counted', async () => {
    for (const port of [15_001, 15_006])
      for (const address of ['127.0.0.1', lab.host('client').address]) {
        const answer = await curl('client', `http://${address}:${port}/`);
        assert.notEqual(answer.code, 0, `${address}:${port} answered ${answer.output}`);
      }
    const fromElsewhere = await curl('web', `http://${lab.host('client').address}:15006/`);
    assert.notEqual(fromElsewhere.code, 0, fromElsewhere.output);
    const metrics = await fetch(`http://${lab.host('client').address}:15090/stats/prometheus`).then((response) => response.text());
    assert.match(metrics, /original_destination_is_self_total [1-9]/);
    const active = /tcp_sessions_active (\d+)/.exec(metrics)?.[1];
    assert.ok(Number(active) < 5, `${active} sessions: no call calls itself`);
  });

  it('partition, heal, pause and resume do what they say', async () => {
    const get = () => curl('client', '-m', '2', 'http://web/index.html');
    const cut = await lab.mizzen(['lab', 'partition', 'client', 'web']);
    assert.equal(cut.code, 0, cut.error);
    assert.notEqual((await get()).output, 'hello from the web\n');
    assert.match((await lab.mizzen(['lab', 'list'])).output, /client-0 .* web/);
    assert.equal((await lab.exec('client', ['redis-cli', '-h', 'redis', 'ping'])).output.trim(), 'PONG', 'others are not concerned');
    assert.equal((await lab.mizzen(['lab', 'heal', 'web', 'client'])).code, 0);
    await until('an answer after the partition', get, ({ output }) => output === 'hello from the web\n');
    assert.equal((await lab.mizzen(['lab', 'pause', 'web'])).code, 0);
    assert.notEqual((await get()).output, 'hello from the web\n');
    assert.equal((await lab.mizzen(['lab', 'resume', 'web'])).code, 0);
    await until('an answer after the pause', get, ({ output }) => output === 'hello from the web\n');
    const nobody = await lab.mizzen(['lab', 'pause', 'nobody']);
    assert.match(nobody.error, /there is no host nobody in this lab\. There are: client-0, .*web-0/);
  });

  it('without the control plane traffic goes on', async () => {
    assert.equal((await lab.mizzen(['lab', 'partition', 'web', 'control'])).code, 0);
    assert.equal((await curl('client', 'http://web/index.html')).output, 'hello from the web\n');
    assert.equal((await lab.mizzen(['lab', 'heal'])).code, 0);
  });

  it('a sidecar is replaced by a new process of its own while it serves, and no call fails', async () => {
    const calls = 'for i in $(seq 60); do curl -sS -m 5 -o /dev/null -w "%{http_code}\\n" http://web/index.html; done';
    const before = await sidecarsOf('web');
    const calling = lab.exec('client', ['sh', '-c', calls]);
    process.kill(before[0]!, 'SIGUSR2');
    const replaced = await until(
      'a new process',
      () => sidecarsOf('web'),
      (pids) => pids.some((pid) => !before.includes(pid)),
    );
    assert.ok(replaced.length >= 1);
    const { output, error } = await calling;
    assert.deepEqual([...new Set(output.trim().split('\n'))], ['200'], error);
    assert.match((await lab.exec('web', ['dig', '+short', 'redis.default'])).output, /^240\.240\./, 'names go on too');
  });

  it('what is killed on a host is started again', async () => {
    assert.equal((await lab.mizzen(['lab', 'kill', 'web'])).code, 0);
    await until(
      'an answer of the new process',
      () => curl('client', '-m', '2', 'http://web/index.html'),
      ({ output }) => output === 'hello from the web\n',
      60_000,
    );
  });

  it('shows what the sidecar of a host has in effect', async () => {
    const shown = await lab.mizzen(['proxy-config', 'listeners', 'client-0']);
    assert.match(shown.output, /127\.0\.0\.1:15001 +outbound +socket +all else +PassthroughCluster/, shown.error);
    assert.match(shown.output, /0\.0\.0\.0:80 +outbound +handed over +all +routes 80/);
    assert.match(shown.output, /240\.240\.\d+\.\d+:6379 +outbound +handed over +all else +outbound\|6379\|\|redis/);
  });
});
