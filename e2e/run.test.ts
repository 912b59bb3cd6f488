import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { cgroupMount } from '../packages/cli/capture/capture-cgroup.ts';
import { isRunning, processIdentity } from '../packages/cli/process-identity.ts';
import { until } from './support/http.ts';
import { mizzen, notPrivileged, program, TestLab } from './support/lab.ts';
import { service, TestMesh } from './support/mesh.ts';
import { skipWithout } from './support/requirements.ts';

/** Says what it sees: how it is called, and how it ends. */
const application = `
const http = require('node:http');
const server = http.createServer((request, response) => {
  console.log('called', request.url);
  if (request.url === '/slow') setTimeout(() => response.end('slowly'), 700);
  else response.end('hello');
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
process.on('SIGTERM', () => { console.log('asked to end'); server.close(() => process.exit(5)); });
process.on('SIGHUP', () => console.log('hung up'));
`;

/** Asks the SPIFFE Workload API for a token for "shop", and shows what can be read of the answer. */
const askWhoAmI = `printf '\\000\\000\\000\\000\\006\\012\\004shop' | curl -sS -m 5 --http2-prior-knowledge \
  --unix-socket "\${SPIFFE_ENDPOINT_SOCKET#unix://}" -H 'content-type: application/grpc' -H 'te: trailers' -H 'workload.spiffe.io: true' \
  --data-binary @- http://localhost/SpiffeWorkloadAPI/FetchJWTSVID | tr -cd '[:print:]'`;

/** The cgroups of this name, wherever they are. */
function foldersNamed(name: string): string[] {
  const { folder } = cgroupMount(readFileSync('/proc/self/mountinfo', 'utf8'))!;
  return readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((path) => path.endsWith(name));
}

describe('mizzen run, without privileges', () => {
  let mesh: TestMesh;
  const run = (options: readonly string[], command: readonly string[]) => mizzen(['run', '--home', mesh.home, ...options, '--', ...command]);

  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(`${service('echo')}${service('worker')}`);
    await mesh.workload('echo');
  });
  after(() => mesh?.close());

  it('a job ends with its own exit code, and standard output is its own', async () => {
    const job = await program(run([], ['curl', '-sS', '-m', '5', 'http://echo:9080/x']));
    assert.equal(job.code, 0, job.error);
    assert.equal((JSON.parse(job.output) as { name: string }).name, 'echo');
    const seven = await program(run([], ['sh', '-c', 'cat; exit 7']), { input: 'given' });
    assert.deepEqual([seven.code, seven.output], [7, 'given']);
    const killed = await program(run([], ['sh', '-c', 'kill -USR1 $$']));
    assert.equal(killed.code, 128 + 10);
    const missing = await program(run([], ['no-such-program']));
    assert.equal(missing.code, 127);
    assert.match(missing.error, /the program "no-such-program" was not found in PATH/);
  });

  it('with --no-outbound-port a job has no port to call through, only a folder for sockets', async () => {
    const job = await program(run(['--no-outbound-port'], ['env']));
    assert.equal(job.code, 0, job.error);
    assert.match(job.output, /^MIZZEN_SOCKETS=\//m);
    assert.doesNotMatch(job.output, /^(?:MIZZEN_OUTBOUND|HTTP_PROXY|http_proxy)/m);
    assert.match((await program(run(['--no-outbound-port', '--capture'], ['env']))).error, /leave --capture and --isolate out/);
  });

  it('a job finds who it is by the SPIFFE Workload API', async () => {
    const job = await program(run(['--service-account', 'worker'], ['sh', '-c', askWhoAmI]));
    assert.match(job.output, /spiffe:\/\/cluster\.local\/ns\/default\/sa\/worker.*ey[\w-]+\.[\w-]+\.[\w-]+/, job.error);
    assert.deepEqual(readdirSync(join(mesh.home, 'spiffe/default')), [], 'nothing is left behind');
  });

  it('is registered when healthy, serves, ends in order, and is gone from the registry', async () => {
    const child = spawn(
      run(['--name', 'worker', '--port', '9080:http', '--drain-time', '5'], [process.execPath, '-e', application])[0]!,
      run(['--name', 'worker', '--port', '9080:http', '--drain-time', '5'], [process.execPath, '-e', application]).slice(1),
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    let said = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
    const entry = async () =>
      (await mesh.plane.registry.store.get({ group: 'networking.istio.io', kind: 'WorkloadEntry', namespace: 'default', name: 'worker' }))?.resource;
    await until(
      'its entry to be healthy',
      entry,
      (resource) => resource !== undefined && resource.metadata.annotations?.['mizzen.dev/unhealthy'] === undefined,
    );
    const caller = await mesh.proxy('caller', {});
    await caller.proxy.ready;
    const get = (path: string) => program(['curl', '-sS', '-m', '5', '-x', `http://127.0.0.1:${caller.outboundPort}`, `http://worker:9080${path}`]);
    await until(
      'an answer',
      () => get('/'),
      ({ output }) => output === 'hello',
    );
    child.kill('SIGHUP');
    await until(
      'the signal to be passed on',
      async () => said,
      (text) => text.includes('hung up'),
    );
    const slow = get('/slow');
    await until(
      'the slow call to arrive',
      async () => said,
      (text) => text.includes('called /slow'),
    );
    const exited = once(child, 'exit');
    child.kill('SIGTERM');
    assert.equal((await slow).output, 'slowly', 'what is under way ends');
    const [code] = (await exited) as [number];
    assert.equal(code, 5, "the application's own exit code");
    assert.match(said, /called \/slow\n(?:called \/\n)*asked to end/, 'the application was asked to end after its last call');
    await until('its entry to be removed', entry, (resource) => resource === undefined, 3_000);
  });

  it('passes the terminal on', { skip: skipWithout('python3') }, async () => {
    const terminal = `import pty, sys, os
status = pty.spawn(sys.argv[1:])
sys.exit(os.waitstatus_to_exitcode(status))`;
    const inside = await program(['python3', '-c', terminal, ...run([], ['sh', '-c', 'test -t 0 && test -t 1 && echo a terminal'])]);
    assert.match(inside.output, /^a terminal\r?$/m, inside.error);
    assert.equal(inside.code, 0);
    // Ctrl-C is the application's to understand: this one goes on after it.
    const interrupted = `import pty, os, sys, time, select
pid, fd = pty.fork()
if pid == 0: os.execvp(sys.argv[1], sys.argv[1:])
seen = b''
sent = False
while True:
    try: data = os.read(fd, 1024)
    except OSError: break
    if not data: break
    seen += data
    if b'ready' in seen and not sent:
        sent = True
        os.write(fd, b'\\x03')
sys.stdout.write(seen.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`;
    const shell = 'trap "echo interrupted; exit 3" INT; echo ready; while :; do sleep 0.1; done';
    const result = await program(['python3', '-c', interrupted, ...run([], ['sh', '-c', shell])]);
    assert.match(result.output, /interrupted/, result.error);
    assert.equal(result.code, 3);
  });

  it('with --capture needs no variable and touches nobody else', { skip: notPrivileged || skipWithout('nft') }, async () => {
    const url = 'http://echo.default.svc.cluster.local:9080/x';
    const job = await program(run(['--capture'], ['sh', '-c', `env | grep -ic _proxy=; curl -sS -m 5 ${url}`]));
    assert.equal(job.code, 0, job.error);
    const [variables, ...answer] = job.output.split('\n');
    assert.equal(variables, '0');
    assert.equal((JSON.parse(answer.join('\n')) as { name: string }).name, 'echo');
    const outside = await program(['curl', '-sS', '-m', '5', url]);
    assert.notEqual(outside.code, 0, 'a program beside it does not know the name');
    assert.doesNotMatch((await program(['nft', 'list', 'tables'])).output, /mizzen_run_/, 'the rules are gone');
  });

  /** All it prints is what the called service has seen of each call. */
  const seenIn = (output: string) =>
    output
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { name: string; headers: Record<string, string> });

  it('with --capture a program that changes its user and group stays captured', {
    skip: notPrivileged || skipWithout('nft', 'setpriv', 'python3'),
  }, async () => {
    await mesh.apply('apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: default }\nspec: { mtls: { mode: STRICT } }\n');
    const get = 'curl -sS -m 5 http://echo.default.svc.cluster.local:9080/x; echo';
    // As nginx: a worker that has given up its rights, whose parent has gone.
    const worker = `import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() > 0: os._exit(0)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    os.execv('/bin/sh', ['sh', '-c', sys.argv[1]])
os.wait()`;
    const commands = [
      `setpriv --regid 65534 --clear-groups sh -c '${get}'`,
      `setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '${get}'`,
      `su -s /bin/sh nobody -c '${get}'`,
      `python3 -c "${worker.replaceAll('"', '\\"')}" '${get}' | cat`,
    ];
    const job = await program(run(['--capture', '--capture-by', 'cgroup'], ['sh', '-c', commands.join('\n')]));
    assert.equal(job.code, 0, job.error);
    const answers = seenIn(job.output);
    assert.equal(answers.length, commands.length, `${job.output}${job.error}`);
    for (const { name, headers } of answers) assert.match(`${name} ${headers['x-forwarded-client-cert']}`, /^echo .*sa\/default/);
    assert.doesNotMatch(job.error, /WARNING/);
  });

  it('with --capture what a program leaves running ends with it, and its cgroup and rules are gone', {
    skip: notPrivileged || skipWithout('nft'),
  }, async () => {
    const job = await program(run(['--capture'], ['sh', '-c', 'setsid sleep 60 >/dev/null 2>&1 & echo $!; cat /proc/self/cgroup']));
    const [pid, ...cgroups] = job.output.trim().split('\n');
    const path = cgroups.find((line) => line.startsWith('0::'))!;
    assert.match(path, /\/mizzen-run-\d+$/);
    assert.equal(isRunning(processIdentity(Number(pid))), false);
    assert.deepEqual(foldersNamed(path.slice(path.lastIndexOf('/') + 1)), []);
    assert.doesNotMatch((await program(['nft', 'list', 'tables'])).output, /mizzen_run_/);
  });

  it('with --capture moves a program back that has left its cgroup, and says so', { skip: notPrivileged || skipWithout('nft') }, async () => {
    const root = cgroupMount(readFileSync('/proc/self/mountinfo', 'utf8'))!.folder;
    const leave = `echo $$ > ${root}/cgroup.procs; while ! grep -q '^0::.*mizzen-run-' /proc/self/cgroup; do sleep 0.05; done; echo back`;
    const job = await program(run(['--capture'], ['sh', '-c', leave]));
    assert.equal(job.output, 'back\n', job.error);
    assert.match(job.error, /WARNING: a process has left capture.*program=sh pid=\d+ cgroup=\/.*It was moved back/);
  });

  it('with --capture-by group warns of a program that leaves its group', { skip: notPrivileged || skipWithout('nft', 'setpriv') }, async () => {
    const job = await program(run(['--capture', '--capture-by', 'group'], ['setpriv', '--regid', '65534', '--clear-groups', 'sleep', '1.3']));
    assert.match(job.error, /WARNING: a process has left capture.*program=sleep pid=\d+ gid=65534/);
  });

  it('with --capture removes the rules of a run that was killed, once its program has ended', { skip: notPrivileged || skipWithout('nft') }, async () => {
    const [command, ...args] = run(['--capture'], ['sh', '-c', 'echo $$; exec sleep 60']) as [string, ...string[]];
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    const [pid] = (await once(child.stdout, 'data')) as [Buffer];
    const table = `mizzen_run_${child.pid}`;
    const tables = async () => (await program(['nft', 'list', 'tables'])).output;
    assert.match(await tables(), new RegExp(table));
    child.kill('SIGKILL');
    await once(child, 'exit');
    const next = await program(run(['--capture'], ['true']));
    assert.match(next.error, new RegExp(`a run was killed and its application still runs.*run=${child.pid} pid=${String(pid).trim()}`));
    assert.match(await tables(), new RegExp(table), 'without its rules the traffic of the program would leave in clear text');
    process.kill(Number(pid), 'SIGKILL');
    assert.equal((await program(run(['--capture'], ['true']))).code, 0);
    assert.doesNotMatch(await tables(), new RegExp(table));
    assert.deepEqual(foldersNamed(`mizzen-run-${child.pid}`), []);
  });

  it('with --isolate has a network of its own beside a mesh on loopback', { skip: notPrivileged || skipWithout('ip', 'nft') }, async () => {
    const url = 'http://echo.default.svc.cluster.local:9080/x';
    const job = await program(
      run(['--isolate', '--name', 'alone'], ['sh', '-c', `hostname; ip -br addr show eth0 | wc -l; env | grep -ic _proxy=; curl -sS -m 5 ${url}`]),
    );
    assert.equal(job.code, 0, job.error);
    const [hostname, links, variables, ...answer] = job.output.split('\n');
    assert.deepEqual([hostname, links, variables], ['alone', '1', '0']);
    const seen = JSON.parse(answer.join('\n')) as { name: string; headers: Record<string, string> };
    assert.equal(seen.name, 'echo');
    assert.match(seen.headers['x-forwarded-client-cert'] ?? '', /sa\/default/, 'with its own identity');
    const names = await program(run(['--isolate'], ['dig', '+short', '+tcp', 'echo.default']));
    assert.match(names.output, /^240\.240\./, names.error);
    assert.doesNotMatch((await program(['ip', 'netns', 'list'])).output, /^mzr-/m);
    assert.doesNotMatch((await program(['ip', '-br', 'link'])).output, /^mzr/m);
  });

  it('with --isolate serves from in there, healthy when it is, though it listens on its loopback only', {
    skip: notPrivileged || skipWithout('ip', 'nft'),
  }, async () => {
    const [command, ...args] = run(['--isolate', '--name', 'worker', '--port', '9080:http'], [process.execPath, '-e', application]) as [string, ...string[]];
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    child.stdout.resume();
    const exited = once(child, 'exit');
    const caller = await mesh.proxy('caller-of-isolated', {});
    await caller.proxy.ready;
    const get = () => program(['curl', '-sS', '-m', '5', '-x', `http://127.0.0.1:${caller.outboundPort}`, 'http://worker:9080/']);
    await until('an answer', get, ({ output }) => output === 'hello');
    child.kill('SIGTERM');
    assert.deepEqual(await exited, [5, null]);
  });

  it('says what is wrong in a sentence', async () => {
    const both = await program(run(['--capture', '--isolate'], ['true']));
    assert.match(both.error, /choose one/);
    const port = await program(run(['--port', 'http'], ['true']));
    assert.match(port.error, /--port http is not understood/);
    for (const { code } of [both, port]) assert.equal(code, 1);
  });

  it('without privileges --capture says so', { skip: notPrivileged || skipWithout('nft') }, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'mizzen-nobody-'));
    try {
      // Without the capabilities even root's rules are refused.
      const refused = await program(['setpriv', '--bounding-set=-all', '--inh-caps=-all', '--', ...run(['--capture'], ['true'])]);
      assert.notEqual(refused.code, 0);
      assert.match(refused.error, /needs root \(CAP_NET_ADMIN\).*HTTP_PROXY/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('mizzen run --isolate', { skip: notPrivileged || skipWithout('ip', 'nft') }, () => {
  let lab: TestLab;
  before(async () => {
    lab = await TestLab.start(`${service('echo')}apiVersion: mizzen.dev/v1alpha1
kind: Workload
metadata: { name: echo, labels: { app: echo } }
spec: { command: [python3, -m, http.server, "9080"], ports: [{ name: http, port: 9080 }] }
`);
  });
  after(() => lab?.close());

  it('gives a job a host of its own, which is gone with it', async () => {
    const job = await program(
      mizzen([
        'run',
        '--home',
        lab.home,
        '--isolate',
        '--name',
        'guest',
        '--',
        'sh',
        '-c',
        `hostname; curl -sS -m 5 -o /dev/null -w "%{http_code}\n" http://echo:9080/; ${askWhoAmI}; exit 9`,
      ]),
    );
    const [hostname, status, identity] = job.output.split('\n');
    assert.deepEqual([hostname, status, job.code], ['guest', '200', 9], job.error);
    assert.match(identity!, /spiffe:\/\/cluster\.local\/ns\/default\/sa\/default.*ey/);
    assert.doesNotMatch((await program(['ip', 'netns', 'list'])).output, /guest/);
    assert.throws(() => lab.host('guest'));
  });

  it('is called by others under its service, and takes its leave in order', async () => {
    await lab.apply(service('late'));
    const [command, ...args] = mizzen([
      'run',
      '--home',
      lab.home,
      '--isolate',
      '--name',
      'late',
      '--label',
      'app=late',
      '--port',
      '9080:http',
      '--',
      process.execPath,
      '-e',
      application,
    ]) as [string, ...string[]];
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    let said = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
    await until(
      'an answer from the guest',
      () => lab.exec('echo', ['curl', '-sS', '-m', '3', 'http://late:9080/']),
      ({ output }) => output === 'hello',
    );
    const log = readFileSync(join(lab.home, 'logs/late.proxy.log'), 'utf8');
    assert.match(log, /ready/);
    child.kill('SIGTERM');
    const [code] = (await once(child, 'exit')) as [number];
    assert.equal(code, 5);
    assert.match(said, /asked to end/);
    assert.doesNotMatch((await program(['ip', 'netns', 'list'])).output, /late/);
  });
});
