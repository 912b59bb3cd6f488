import { createHash } from 'node:crypto';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { proxyCommand } from '../packages/cli/runner/program.ts';
import { commandOptions } from '../scripts/options.ts';
import { type Measurement, measure } from './measure.ts';
import { type Json, pair, writeBootstrap, writeOrigin } from './peers.ts';
import { makeCertificates, Processes } from './processes.ts';
import { median } from './report.ts';

/**
 * `npm run bench:gateway [-- --seconds N] [-- --rounds N]`: what policies of an API cost beside the plain route on the same proxy, and what the
 * placement saves: at the edge a request goes through the gateway and the sidecar, in the sidecar through that alone. CPU is that of all proxies.
 */
const { seconds, rounds } = commandOptions({ numbers: { seconds: 4, rounds: 5 } });
const loadCpu = cpus().length > 1 ? 1 : 0;
const folder = mkdtempSync(join(tmpdir(), 'mizzen-bench-'));
chmodSync(folder, 0o755);
const processes = new Processes();
const ports = { origin: 21_101, plain: 21_102, policies: 21_103, edge: 21_104, server: 21_105, tls: 21_106 };
const key = 'bench-key';

const message = (name: string, fields: Json): Json => ({ '@type': `type.googleapis.com/mizzen.http.v1.${name}`, ...fields });

/** Adds key authentication and a limit that is never reached to a listener's only connection manager. */
function withPolicies(listener: Json): Json {
  const copy = structuredClone(listener) as never as {
    filter_chains: { filters: { typed_config: { http_filters: Json[]; route_config: { virtual_hosts: Json[] } } }[] }[];
  };
  const config = copy.filter_chains[0]!.filters[0]!.typed_config;
  config.http_filters.unshift(
    {
      name: 'mizzen.filters.http.authentication',
      typed_config: message('Authentication', {
        consumers: Array.from({ length: 100 }, (_, i) => ({
          name: `default/c${i}`,
          credentials: [
            {
              name: `default/c${i}`,
              apiKey: {
                sha256: createHash('sha256')
                  .update(i === 0 ? key : `other ${i}`)
                  .digest('base64'),
              },
            },
          ],
        })),
      }),
    },
    { name: 'mizzen.filters.http.rate_limit', typed_config: message('RateLimit', {}) },
  );
  config.route_config.virtual_hosts[0] = {
    ...config.route_config.virtual_hosts[0],
    typed_per_filter_config: {
      'mizzen.filters.http.authentication': message('AuthenticationPerRoute', { apiKey: { headers: ['x-api-key'] } }),
      'mizzen.filters.http.rate_limit': message('RateLimitPerRoute', { limits: [{ name: 'all', by: 'CONSUMER', requests: 100_000_000, perMs: 1_000 }] }),
    },
  };
  return copy as never;
}

async function main(): Promise<void> {
  const certificates = makeCertificates(folder);
  await processes.start(loadCpu, ['nginx', '-c', writeOrigin(folder, ports.origin)], ports.origin);
  const { client, server } = pair(folder, 'gateway', { client: ports.edge, server: ports.server, origin: ports.origin }, certificates);
  const plain = { ...server.listeners[0]!, name: 'plain', address: { socket_address: { address: '127.0.0.1', port_value: ports.plain } } } as Record<
    string,
    unknown
  >;
  const chain = (plain['filter_chains'] as Json[])[0]!;
  const withoutTls: Json = { ...plain, filter_chains: [{ filters: (chain as { filters: Json[] }).filters }] };
  const policies: Json = { ...withPolicies(withoutTls), name: 'policies', address: { socket_address: { address: '127.0.0.1', port_value: ports.policies } } };
  const start = (name: string, listeners: readonly Json[], clusters: readonly Json[], port: number) =>
    processes.start(0, [...proxyCommand, '--config', writeBootstrap(folder, name, listeners, clusters), '--log-level', 'error'], port);
  const own = await start('sidecar', [withoutTls, policies], server.clusters, ports.policies);
  const inner = await start('server', server.listeners, server.clusters, ports.server);
  const gateway = await start('edge', client.listeners.map(withPolicies), client.clusters, ports.edge);
  const headers = [`x-api-key: ${key}`];
  const cases = {
    'plain route': { pids: [own], port: ports.plain },
    'key auth + rate limit': { pids: [own], port: ports.policies },
    'edge: gateway, mutual TLS, sidecar': { pids: [gateway, inner], port: ports.edge },
    'sidecar alone': { pids: [own], port: ports.policies },
  };
  const results = new Map<string, Measurement[]>(Object.keys(cases).map((name) => [name, []]));
  for (let round = 0; round < rounds; round++)
    for (const [name, { pids, port }] of Object.entries(cases)) {
      process.stderr.write(`round ${round + 1} of ${rounds}: ${name}\n`);
      const result = await measure(pids, { url: `http://127.0.0.1:${port}/1k`, host: 'bench.test', connections: 32, seconds, headers }, loadCpu);
      if (result.errors > 0) throw new Error(`${name}: ${result.errors} errors`);
      results.get(name)!.push(result);
    }
  const ratio = (a: string, b: string, read: (one: Measurement) => number) => median(results.get(a)!.map((one, i) => read(one) / read(results.get(b)![i]!)));
  console.log('| case | CPU us/request | requests/s | p50 ms | p99 ms |\n| --- | --- | --- | --- | --- |');
  for (const [name, list] of results) {
    const of = (read: (one: Measurement) => number) => median(list.map(read));
    console.log(
      `| ${name} | ${of((m) => m.cpuUsPerRequest).toFixed(1)} | ${of((m) => m.requestsPerSecond).toFixed(0)} | ${of((m) => m.p50Ms).toFixed(2)} | ${of((m) => m.p99Ms).toFixed(2)} |`,
    );
  }
  console.log(
    `\nkey auth + rate limit / plain route: ${ratio('key auth + rate limit', 'plain route', (m) => m.cpuUsPerRequest).toFixed(2)} (aim: at most 1.3)`,
  );
  console.log(
    `sidecar alone / edge: CPU ${ratio('sidecar alone', 'edge: gateway, mutual TLS, sidecar', (m) => m.cpuUsPerRequest).toFixed(2)}, p50 ${ratio('sidecar alone', 'edge: gateway, mutual TLS, sidecar', (m) => m.p50Ms).toFixed(2)}, p99 ${ratio('sidecar alone', 'edge: gateway, mutual TLS, sidecar', (m) => m.p99Ms).toFixed(2)}`,
  );
}

try {
  await main();
} finally {
  await processes.close();
  rmSync(folder, { recursive: true, force: true });
}
