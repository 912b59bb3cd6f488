// Makes a fresh clone ready: installs the npm packages, finds a Node that can run TypeScript, generates the xDS types and the
// schemas. Every step is skipped when what it would make is already there and current. Runs on any Node >= 20.
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..');
const stampFile = join(root, 'node_modules/.mizzen-setup.json');
const node = join(root, 'node_modules/.bin/node');

const digest = (...files) => {
  const hash = createHash('sha256');
  for (const file of files) hash.update(existsSync(join(root, file)) ? readFileSync(join(root, file)) : '');
  return hash.digest('hex');
};

const wanted = {
  packages: digest('package-lock.json'),
  envoyApi: digest(
    'package-lock.json',
    'scripts/generate-envoy-api.mjs',
    'scripts/slim-descriptors.mjs',
    ...readdirSync(join(root, 'packages/envoy-api/proto'), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.proto'))
      .sort()
      .map((name) => join('packages/envoy-api/proto', name)),
  ),
  schemas: digest('package-lock.json', 'scripts/generate-schemas.mjs'),
};

function readStamp() {
  try {
    return JSON.parse(readFileSync(stampFile, 'utf8'));
  } catch {
    return {};
  }
}
const done = readStamp();
const record = (step) => {
  done[step] = wanted[step];
  mkdirSync(join(root, 'node_modules'), { recursive: true });
  writeFileSync(stampFile, JSON.stringify(done));
};

/** The last number of a version such as v24.21.0 that decides whether TypeScript runs directly. */
const majorOf = (version) => Number(/^v(\d+)/.exec(version)?.[1] ?? 0);
const versionOf = (binary) => {
  const result = spawnSync(binary, ['--version'], { encoding: 'utf8' });
  return result.status === 0 ? result.stdout.trim() : '';
};

function fail(what, remedy) {
  console.error(`setup: ${what}\n       ${remedy}`);
  process.exit(1);
}

if (done.packages !== wanted.packages || !existsSync(node)) {
  const startedAt = Date.now();
  console.log('setup: installing npm packages (once; 20 s to some minutes, by the network)...');
  const npm = spawnSync('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error'], { cwd: root, stdio: 'inherit', shell: process.platform === 'win32' });
  if (npm.status !== 0) fail('npm ci failed.', "Its message is above. Behind a proxy or a private registry, set npm's own configuration and run again.");
  if (!existsSync(node) || majorOf(versionOf(node)) < 24) {
    // Newer npm versions may be set to run no install scripts; the node package needs its own to fetch the binary package.
    spawnSync(process.execPath, ['installArchSpecificPackage'], { cwd: join(root, 'node_modules/node'), stdio: 'ignore' });
  }
  if (majorOf(versionOf(node)) < 24)
    fail(
      `the npm package "node" did not bring Node 24 (found "${versionOf(node)}").`,
      'Allow its install script (npm install-scripts approve node), or put Node >= 24 first in PATH and link it to node_modules/.bin/node.',
    );
  console.log(`setup: packages ready in ${((Date.now() - startedAt) / 1000).toFixed(1)} s, ${versionOf(node)}`);
  record('packages');
}
const generate = (step, script, product) => {
  if (done[step] === wanted[step] && existsSync(join(root, product))) return;
  process.stdout.write('setup: ');
  try {
    execFileSync(node, [join(root, 'scripts', script)], { cwd: root, stdio: 'inherit' });
  } catch {
    fail(`${script} failed.`, 'Its message is above. If node_modules was changed by hand, remove it and run again.');
  }
  record(step);
};
generate('envoyApi', 'generate-envoy-api.mjs', 'packages/envoy-api/gen/envoy/config/listener/v3/listener_pb.js');
generate('schemas', 'generate-schemas.mjs', 'packages/api/gen/index.json');
