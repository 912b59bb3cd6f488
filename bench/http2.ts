import { chmodSync, closeSync, existsSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { proxyCommand } from '../packages/cli/runner/program.ts';
import { commandOptions } from '../scripts/options.ts';
import { capture, type Measurement, measure, measureHttp2 } from './measure.ts';
import { http2Edge, pair, writeBootstrap, writeHttp2Haproxy, writeOrigin } from './peers.ts';
import { inPath, makeCertificates, Processes, workersOf } from './processes.ts';
import { Report } from './report.ts';

/**
 * `npm run bench:http2 [-- --json] [-- --seconds N] [-- --rounds N] [-- --case h2-1k,grpc-pair,h1-over-h2-pair,download,upload] [-- --proxies haproxy,envoy]`:
 * HTTP/2 beside haproxy, Envoy, nginx and node:http2, as `npm run bench` does for HTTP/1.1.
 */
const root = join(import.meta.dirname, '..');
const options = commandOptions({
  numbers: { seconds: 5, rounds: 5 },
  lists: {
    case: ['h2-1k', 'grpc-pair', 'h1-over-h2-pair', 'download', 'upload'],
    proxies: ['haproxy', 'nginx', 'envoy', 'node:http2', 'mizzen'],
  },
  switches: ['json'],
});
const { seconds, rounds } = options;
const proxyCpu = 0;
const loadCpu = cpus().length > 1 ? 1 : 0;
const folder = mkdtempSync(join(tmpdir(), 'mizzen-bench-'));
chmodSync(folder, 0o755);
const processes = new Processes();
const report = new Report(options.json);
const say = (text: string) => process.stderr.write(`${text}\n`);
const wants = (name: string) => options.case.has(name);
const wantsProxy = (name: string) => name === 'mizzen' || options.proxies.has(name);
const transferBytes = 1024 ** 3;

const origin = { http1: 21_101, h2: 21_102, fast: 21_103 };
const ports = {
  haproxy: { h2: 21_110, fast: 21_111 },
  envoy: { h2: 21_112, fast: 21_113, client: 21_114, server: 21_115 },
  mizzen: { h2: 21_116, fast: 21_117, client: 21_118, server: 21_119 },
  nginx: { h2: 21_120, fast: 21_121 },
  'node:http2': { h2: 21_122, fast: 21_123 },
};
/** Of two proxies each, whose applications speak HTTP/1.1. */
const hopPorts = { envoy: 21_130, mizzen: 21_134 };
type Name = keyof typeof ports;

async function main(): Promise<void> {
  for (const program of ['h2load', 'wrk', 'nginx', 'taskset', 'openssl', 'curl'])
    if (!inPath(program)) throw new Error(`the bench needs ${program} (Debian: apt-get install curl nginx-light haproxy nghttp2-client openssl util-linux)`);
  const envoy = [join(root, '.tools/envoy/bin/envoy'), 'envoy'].find((program) => existsSync(program) || (!program.includes('/') && inPath(program)));
  if (!envoy) say('envoy is not installed: its rows are left out (.ci/run installs it from PyPI)');
  const certificates = makeCertificates(folder);
  await processes.start(loadCpu, ['nginx', '-c', writeOrigin(folder, origin.http1, undefined, origin.h2)], origin.h2);
  await processes.start(loadCpu, [process.execPath, join(root, 'bench/http2-origin.ts'), String(origin.fast)], origin.fast);
  // A file without content on disk: what is read of it are zeros.
  const large = openSync(join(folder, 'www/1g'), 'w');
  ftruncateSync(large, transferBytes);
  closeSync(large);

  const commands: Readonly<Record<'envoy' | 'mizzen', (file: string, id: number) => string[]>> = {
    envoy: (file, id) => [envoy!, '-c', file, '--concurrency', '1', '--log-level', 'off', '--base-id', String(id)],
    mizzen: (file) => [...proxyCommand, '--config', file, '--log-level', 'error'],
  };
  const pids = new Map<Name, number[]>();
  const pairs = new Map<Name, number[]>();
  const hops = new Map<string, { readonly pids: readonly number[]; readonly port: number }>();
  const at = (name: Name) => ({ ...ports[name], origin: origin.h2, fastOrigin: origin.fast });
  if (inPath('haproxy') && wantsProxy('haproxy'))
    pids.set('haproxy', [await processes.start(proxyCpu, ['haproxy', '-db', '-f', writeHttp2Haproxy(folder, at('haproxy'))], ports.haproxy.h2)]);
  if (wantsProxy('nginx')) pids.set('nginx', workersOf(await processes.start(proxyCpu, ['nginx', '-c', writeNginx()], ports.nginx.h2)));
  if (wantsProxy('node:http2')) {
    const start = (port: number, to: number) =>
      processes.start(proxyCpu, [process.execPath, join(root, 'bench/node-http2-proxy.mjs'), String(port), String(to)], port);
    pids.set('node:http2', [await start(ports['node:http2'].h2, origin.h2), await start(ports['node:http2'].fast, origin.fast)]);
  }
  for (const name of ['envoy', 'mizzen'] as const) {
    if ((name === 'envoy' && !envoy) || !wantsProxy(name)) continue;
    const start = (part: string, config: ReturnType<typeof http2Edge>, id: number, port: number) =>
      processes.start(proxyCpu, commands[name](writeBootstrap(folder, `${name}-${part}`, config.listeners, config.clusters), id), port);
    pids.set(name, [await start('h2', http2Edge(folder, name, at(name)), 31, ports[name].h2)]);
    const two = pair(folder, name, { ...ports[name], origin: origin.fast }, certificates, { hop: 'http2', origin: 'http2' });
    pairs.set(name, [await start('client', two.client, 32, ports[name].client), await start('server', two.server, 33, ports[name].server)]);
    for (const [i, hop] of (['http1', 'http2'] as const).entries()) {
      const at_ = { client: hopPorts[name] + 2 * i, server: hopPorts[name] + 2 * i + 1, origin: origin.http1 };
      const config = pair(folder, `${name}-${hop}`, at_, certificates, { hop, origin: 'http1' });
      hops.set(hop === 'http2' ? name : `${name}, hop of HTTP/1.1`, {
        pids: [await start(`${hop}-client`, config.client, 34 + 2 * i, at_.client), await start(`${hop}-server`, config.server, 35 + 2 * i, at_.server)],
        port: at_.client,
      });
    }
  }

  if (wants('h2-1k'))
    await loads(
      'h2-1k',
      [...pids].filter(([name]) => name !== 'nginx').map(([name, list]) => ({ name, pids: list.slice(-1), url: `http://127.0.0.1:${ports[name].fast}/1k` })),
      { haproxy: 2, envoy: 0.9, 'node:http2': 0.25 },
    );
  if (wants('grpc-pair')) {
    const message = join(folder, 'message.grpc');
    writeFileSync(message, Buffer.concat([Buffer.from([0, 0, 0, 0, 100]), Buffer.alloc(100, 'x')]));
    await loads(
      'grpc-pair',
      [...pairs].map(([name, list]) => ({ name, pids: list, url: `http://127.0.0.1:${(ports[name] as { client: number }).client}/bench.Echo/Say` })),
      { envoy: 1 },
      { body: message, headers: ['content-type: application/grpc', 'te: trailers'] },
    );
  }
  if (wants('h1-over-h2-pair')) {
    const results = new Map<string, Measurement[]>();
    for (let round = 0; round < rounds; round++)
      for (const [name, { pids: list, port }] of hops) {
        const measured = await measure(list, { url: `http://127.0.0.1:${port}/1k`, host: 'plain.bench', connections: 32, seconds }, loadCpu);
        results.set(name, [...(results.get(name) ?? []), measured]);
        say(`h1-over-h2-pair round ${round + 1} ${name.padEnd(26)} ${measured.cpuUsPerRequest.toFixed(1).padStart(8)} us/request`);
      }
    report.loads('h1-over-h2-pair', results, { 'mizzen, hop of HTTP/1.1': 1 });
  }
  if (wants('download')) await transfers('download', pids, (name) => [`http://127.0.0.1:${ports[name].h2}/1g`, '-o', '/dev/null']);
  if (wants('upload')) await transfers('upload', pids, (name) => [`http://127.0.0.1:${ports[name].fast}/up`, '-T', join(folder, 'www/1g'), '-o', '/dev/null']);
}

async function loads(
  name: string,
  candidates: readonly { readonly name: string; readonly pids: readonly number[]; readonly url: string }[],
  aims: Readonly<Record<string, number>>,
  more: { readonly body?: string; readonly headers?: readonly string[] } = {},
): Promise<void> {
  const results = new Map<string, Measurement[]>();
  for (let round = 0; round < rounds; round++)
    for (const each of candidates) {
      const load = { url: each.url, host: 'plain.bench', connections: 4, streams: 32, seconds, headers: [], ...more };
      const measured = await measureHttp2(each.pids, load, loadCpu);
      results.set(each.name, [...(results.get(each.name) ?? []), measured]);
      say(
        `${name} round ${round + 1} ${each.name.padEnd(12)} ${measured.cpuUsPerRequest.toFixed(1).padStart(8)} us/request ${measured.requestsPerSecond.toFixed(0).padStart(8)} requests/s${measured.errors ? `  ${measured.errors} ERRORS` : ''}`,
      );
    }
  report.loads(name, results, aims);
}

/** One stream with the windows that the proxies have by default; curl's own are large. */
async function transfers(name: string, pids: ReadonlyMap<Name, number[]>, args: (name: Name) => readonly string[]): Promise<void> {
  const results = new Map<string, number[]>();
  for (let round = 0; round < rounds; round++)
    for (const candidate of pids.keys()) {
      const output = await capture('taskset', [
        '-c',
        String(loadCpu),
        'curl',
        '-sS',
        '--http2-prior-knowledge',
        '-w',
        '%{http_code} %{time_total}',
        ...args(candidate),
      ]);
      const [status, time] = output.trim().split(' ').map(Number);
      if (status !== 200) throw new Error(`${name} through ${candidate} was answered with ${status}`);
      const rate = transferBytes / 1e6 / time!;
      results.set(candidate, [...(results.get(candidate) ?? []), rate]);
      say(`${name} round ${round + 1} ${candidate.padEnd(12)} ${rate.toFixed(0).padStart(6)} MB/s`);
    }
  report.throughput(`${name} of 1 GiB on one stream`, results, ['nginx', 'haproxy'], 0.6);
}

/** nginx takes HTTP/2 and speaks HTTP/1.1 to its upstreams; uploads it passes on as they come. */
function writeNginx(): string {
  const file = join(folder, 'nginx-h2.conf');
  writeFileSync(
    file,
    `worker_processes 1; daemon off; pid ${folder}/nginx-h2.pid; error_log ${folder}/nginx-h2.log;
events { worker_connections 8192; }
http { access_log off; keepalive_requests 1000000; client_max_body_size 2g; client_body_temp_path ${folder}/m1; proxy_temp_path ${folder}/m2; fastcgi_temp_path ${folder}/m3; uwsgi_temp_path ${folder}/m4; scgi_temp_path ${folder}/m5;
  upstream origin { server 127.0.0.1:${origin.http1}; keepalive 64; }
  upstream sink { server 127.0.0.1:${origin.fast + 1}; keepalive 64; }
  server { listen 127.0.0.1:${ports.nginx.h2} http2; location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; } }
  server { listen 127.0.0.1:${ports.nginx.fast} http2; location / { proxy_pass http://sink; proxy_request_buffering off; proxy_http_version 1.1; proxy_set_header Connection ""; } } }
`,
  );
  return file;
}

try {
  await main();
  report.print();
} finally {
  await processes.close();
  rmSync(folder, { recursive: true, force: true });
}
