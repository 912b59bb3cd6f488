import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import type { Init } from '@mizzen/envoy-api';
import type { RouteSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { proxyCommand } from '../packages/cli/runner/program.ts';
import { compileRouteTable } from '../packages/proxy/route/compile-routes.ts';
import { commandOptions } from '../scripts/options.ts';
import { type Measurement, measure } from './measure.ts';
import { type Json, writeBootstrap, writeOrigin } from './peers.ts';
import { Processes } from './processes.ts';
import { median } from './report.ts';

/**
 * `npm run bench:routes [-- --seconds N] [-- --rounds N]`: what large route tables cost. CPU per request with 10, 1,000 and 10,000 virtual hosts of one
 * route each and with 1,000 routes in one host, requests spread over all of them; time and memory of a table of 10,000 routes.
 */
const { seconds, rounds } = commandOptions({ numbers: { seconds: 3, rounds: 5 } });
const loadCpu = cpus().length > 1 ? 1 : 0;
const folder = mkdtempSync(join(tmpdir(), 'mizzen-bench-'));
chmodSync(folder, 0o755);
const processes = new Processes();
const originPort = 21_201;
const types = 'type.googleapis.com/envoy';

const pathOf = (i: number) => `/team-${i % 40}/service-${i}/v1`;
const route = (prefix: string, rewrite: Json = {}): Json => ({ match: { prefix }, route: { cluster: 'origin', ...rewrite } });

function listener(port: number, hosts: readonly Json[]): Json {
  return {
    name: `routes-${port}`,
    address: { socket_address: { address: '127.0.0.1', port_value: port } },
    filter_chains: [
      {
        filters: [
          {
            name: 'envoy.filters.network.http_connection_manager',
            typed_config: {
              '@type': `${types}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`,
              stat_prefix: 'routes',
              route_config: { name: 'routes', virtual_hosts: hosts },
              http_filters: [{ name: 'envoy.filters.http.router', typed_config: { '@type': `${types}.extensions.filters.http.router.v3.Router` } }],
            },
          },
        ],
      },
    ],
  };
}

const manyHosts = (count: number) =>
  Array.from({ length: count }, (_, i) => ({ name: `h${i}`, domains: [`host-${i}.bench.test`, `host-${i}.bench.test:*`], routes: [route('/')] }));
const manyRoutes = (count: number) => [
  { name: 'all', domains: ['*'], routes: Array.from({ length: count }, (_, i) => route(pathOf(i), { prefix_rewrite: '/1k' })) },
];

/** A wrk script that goes through hosts and paths. */
function script(name: string, hosts: number, paths: number): string {
  const file = join(folder, `${name}.lua`);
  const path = paths === 1 ? '"/1k"' : 'string.format("/team-%d/service-%d/v1", i % 40, i)';
  writeFileSync(
    file,
    `local i = 0\nrequest = function()\n  i = (i + 7919) % ${Math.max(hosts, paths)}\n  return wrk.format("GET", ${path}, { Host = "host-" .. ${hosts === 1 ? '0' : 'i'} .. ".bench.test" })\nend\n`,
  );
  return file;
}

async function requests(): Promise<void> {
  await processes.start(loadCpu, ['nginx', '-c', writeOrigin(folder, originPort)], originPort);
  const cases = [
    { name: '10 hosts', port: 21_202, hosts: manyHosts(10), script: script('hosts-10', 10, 1) },
    { name: '1,000 hosts', port: 21_203, hosts: manyHosts(1_000), script: script('hosts-1000', 1_000, 1) },
    { name: '10,000 hosts', port: 21_204, hosts: manyHosts(10_000), script: script('hosts-10000', 10_000, 1) },
    { name: '10 routes in one host', port: 21_205, hosts: manyRoutes(10), script: script('routes-10', 1, 10) },
    { name: '1,000 routes in one host', port: 21_206, hosts: manyRoutes(1_000), script: script('routes-1000', 1, 1_000) },
  ];
  const clusters: Json[] = [
    {
      name: 'origin',
      type: 'STATIC',
      load_assignment: {
        cluster_name: 'origin',
        endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: '127.0.0.1', port_value: originPort } } } }] }],
      },
    },
  ];
  const bootstrap = writeBootstrap(
    folder,
    'routes',
    cases.map(({ port, hosts }) => listener(port, hosts)),
    clusters,
  );
  const proxy = await processes.start(0, [...proxyCommand, '--config', bootstrap, '--log-level', 'error'], cases.at(-1)!.port);
  const results = new Map<string, Measurement[]>(cases.map(({ name }) => [name, []]));
  for (let round = 0; round < rounds; round++)
    for (const { name, port, script: file } of cases) {
      process.stderr.write(`round ${round + 1} of ${rounds}: ${name}\n`);
      const result = await measure([proxy], { url: `http://127.0.0.1:${port}/1k`, host: 'host-0.bench.test', connections: 32, seconds, script: file }, loadCpu);
      if (result.errors > 0) throw new Error(`${name}: ${result.errors} errors`);
      results.get(name)!.push(result);
    }
  const ratio = (a: string, b: string) => median(results.get(a)!.map((one, i) => one.cpuUsPerRequest / results.get(b)![i]!.cpuUsPerRequest));
  console.log('| case | CPU us/request | requests/s |\n| --- | --- | --- |');
  for (const [name, list] of results)
    console.log(`| ${name} | ${median(list.map((m) => m.cpuUsPerRequest)).toFixed(1)} | ${median(list.map((m) => m.requestsPerSecond)).toFixed(0)} |`);
  console.log(
    `\n1,000 / 10 hosts: ${ratio('1,000 hosts', '10 hosts').toFixed(3)}, 10,000 / 10 hosts: ${ratio('10,000 hosts', '10 hosts').toFixed(3)} (aim: below 1.1)`,
  );
  console.log(`1,000 / 10 routes in one host: ${ratio('1,000 routes in one host', '10 routes in one host').toFixed(3)} (aim: below 1.1)`);
}

/** Time from the bytes of a RouteConfiguration with 10,000 routes to a table that can be asked, and what it keeps. */
function compilation(): void {
  const routes = Array.from(
    { length: 100 },
    (_, i): Init<typeof RouteSchema> => ({
      name: `route-${i}`,
      match: {
        pathSpecifier: i % 2 === 0 ? { case: 'prefix', value: pathOf(i) } : { case: 'path', value: pathOf(i) },
        headers:
          i % 5 === 0
            ? [{ name: 'x-user', headerMatchSpecifier: { case: 'stringMatch', value: { matchPattern: { case: 'exact', value: `user-${i}` } } } }]
            : [],
      },
      action: {
        case: 'route',
        value: {
          clusterSpecifier: { case: 'cluster', value: `outbound|80||service-${i}.default.svc.cluster.local` },
          retryPolicy: { retryOn: '5xx', numRetries: 2 },
        },
      },
    }),
  );
  const bytes = toBinary(
    RouteConfigurationSchema,
    create(RouteConfigurationSchema, {
      name: 'large',
      virtualHosts: Array.from({ length: 100 }, (_, i) => ({ name: `h${i}`, domains: [`host-${i}.bench.test`, `host-${i}.bench.test:*`], routes })),
    }),
  );
  const times: number[] = [];
  const kept: number[] = [];
  for (let i = 0; i < 7; i++) {
    globalThis.gc?.();
    const before = process.memoryUsage().heapUsed;
    const startedAt = performance.now();
    const table = compileRouteTable(fromBinary(RouteConfigurationSchema, bytes));
    times.push(performance.now() - startedAt);
    globalThis.gc?.();
    kept.push((process.memoryUsage().heapUsed - before) / 1024 / 1024);
    if (table.findHost('host-99.bench.test') === undefined) throw new Error('the table is not right');
  }
  console.log(
    `\n10,000 routes: compiled in ${median(times).toFixed(0)} ms, the first time ${times[0]!.toFixed(0)} ms (aim: below 250), ${Math.max(...kept).toFixed(1)} MB kept (aim: below 20)`,
  );
}

try {
  compilation();
  await requests();
} finally {
  await processes.close();
  rmSync(folder, { recursive: true, force: true });
}
