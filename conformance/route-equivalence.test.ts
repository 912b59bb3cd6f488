import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { cluster, http, type Json, socketAddress, TestEngine, typed } from '../e2e/support/engine.ts';
import { skipWithout } from '../e2e/support/requirements.ts';
import { EnvoyPair, type Outcome } from './support/envoy-pair.ts';
import { mutations, probe, Random, routedFilters, virtualHost } from './support/random-routes.ts';

/** Of a failure, the first so many differences are shown. */
const shown = 8;
/** Of the virtual host that a difference is in, so much is shown. */
const shownOfHost = Number(process.env['MIZZEN_SHOWN'] ?? 4_000);

const seed = Number(process.env['MIZZEN_SEED'] ?? 20_261);
const hostCount = 120;
const atOnce = 20;
const probeCount = Number(process.env['MIZZEN_PROBES'] ?? 6_000);

/** One set of random virtual hosts, given to stock Envoy and to us; the same requests must come to the same thing, at the client and at the servers. */
describe('routes, beside stock Envoy', { skip: skipWithout('envoy') }, () => {
  let engine: TestEngine;
  let ports: number[];
  let seen: Map<string, Outcome['seen'][number][]>;
  before(async () => {
    engine = new TestEngine();
    ({ ports, seen } = await EnvoyPair.servers(engine, 4));
  });
  after(() => engine.close());

  const clusters = ['c0', 'c1', 'c2', 'c3'];
  // No connection is used twice: when one that was is closed, we try again where that is safe, and Envoy does not.
  const clusterConfigs = () =>
    clusters.map((name, i) => cluster(name, [ports[i]!], { max_requests_per_connection: 1, circuit_breakers: { thresholds: [{ max_retries: 1_000 }] } }));

  for (const mostSpecificWins of [false, true])
    it(`random route tables, with headers of ${mostSpecificWins ? 'routes' : 'tables'} having the last word`, async () => {
      const random = new Random(seed + Number(mostSpecificWins));
      const hosts: Json[] = Array.from({ length: hostCount }, (_, i) =>
        virtualHost(random, `h${i}`, [`h${i}.test`, `h${i}.test:*`, `*.h${i}.test`], clusters, i % 5 === 0 ? 40 : 8),
      );
      const pair = await EnvoyPair.start(
        engine,
        http('c0', {
          http_filters: routedFilters,
          normalize_path: true,
          route_config: { name: 'random', virtual_hosts: hosts, most_specific_header_mutations_wins: mostSpecificWins, ...mutations(random, 0.5) },
        }),
        clusterConfigs(),
        seen,
      );
      const differences = new Map<number, string>();
      let forwarded = 0;
      let retried = 0;
      for (let sent = 0; sent < probeCount && differences.size < shown; sent += atOnce) {
        const probes = Array.from({ length: atOnce }, () => {
          const host = Math.floor(random.next() * hostCount);
          return { host, request: probe(random, random.is(0.1) ? `sub.h${host}.test` : `h${host}.test`, clusters) };
        });
        const outcomes = await Promise.all(probes.map(async ({ host, request }) => ({ host, request, ...(await pair.both(request)) })));
        for (const { host, request, ours, theirs } of outcomes) {
          if (theirs.seen.length > 0) forwarded++;
          if (theirs.seen.length > 1) retried++;
          const [left, right] = [comparable(ours), comparable(theirs)];
          if (!isDeepStrictEqual(left, right))
            differences.set(
              host,
              [
                JSON.stringify(request),
                `ours   ${JSON.stringify(left)}`,
                `theirs ${JSON.stringify(right)}`,
                `host   ${JSON.stringify(hosts[host]).slice(0, shownOfHost)}`,
              ].join('\n  '),
            );
        }
      }
      assert.equal(differences.size, 0, `seed ${seed}: ${differences.size} differences\n${[...differences.values()].join('\n\n')}`);
      assert.ok(
        forwarded > probeCount / 3 && retried > probeCount / 50,
        `${forwarded} were forwarded, ${retried} tried again: the tables have become too dull`,
      );
    });

  it('timeouts, tries, mirrors and weights', async () => {
    const all = cluster('all', ports);
    const retries = (on: string, more: Json = {}) => ({ retry_policy: { retry_on: on, num_retries: 2, retry_back_off: { base_interval: '0.001s' }, ...more } });
    const previous = {
      retry_host_predicate: [typed('envoy.retry_host_predicates.previous_hosts', 'extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate')],
      host_selection_retry_max_attempts: 100,
    };
    const previousPriorities = (update_frequency: number) => ({
      retry_priority: typed('envoy.retry_priorities.previous_priorities', 'extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig', {
        update_frequency,
      }),
    });
    const byPriority = cluster('by-priority', [], {
      load_assignment: {
        cluster_name: 'by-priority',
        endpoints: ports.slice(0, 3).map((port, priority) => ({ priority, lb_endpoints: [{ endpoint: { address: socketAddress(port) } }] })),
      },
    });
    const to = (prefix: string, route: Json): Json => ({
      match: { prefix },
      route: { ...(route['weighted_clusters'] ? {} : { cluster: 'c0' }), timeout: '5s', ...route },
    });
    const pair = await EnvoyPair.start(
      engine,
      http('c0', {
        route_config: {
          name: 'fixed',
          virtual_hosts: [
            {
              name: 'all',
              domains: ['*'],
              include_request_attempt_count: true,
              routes: [
                to('/timeout', { timeout: '0.1s' }),
                to('/per-try', retries('5xx', { per_try_timeout: '0.1s' })),
                to('/per-try-not-retried', retries('connect-failure', { per_try_timeout: '0.1s' })),
                to('/total', { timeout: '0.15s', ...retries('5xx', { per_try_timeout: '0.1s' }) }),
                to('/hedge', { hedge_policy: { hedge_on_per_try_timeout: true }, ...retries('5xx', { per_try_timeout: '0.1s' }) }),
                to('/nobody', { cluster: 'nobody', ...retries('connect-failure') }),
                to('/others', {
                  cluster: 'all',
                  ...retries('503', { retry_on: 'retriable-status-codes', retriable_status_codes: [503], num_retries: 3, ...previous }),
                }),
                to('/farther', { cluster: 'by-priority', ...retries('5xx', { num_retries: 5, ...previousPriorities(1) }) }),
                to('/two-and-farther', { cluster: 'by-priority', ...retries('5xx', { num_retries: 5, ...previousPriorities(2) }) }),
                to('/mirror', {
                  request_mirror_policies: [
                    { cluster: 'c1' },
                    { cluster: 'c2', disable_shadow_host_suffix_append: true },
                    { cluster: 'c3', runtime_fraction: { default_value: { numerator: 0 } } },
                  ],
                }),
                to('/weights', {
                  weighted_clusters: {
                    clusters: [
                      { name: 'c0', weight: 70 },
                      { name: 'c1', weight: 30 },
                      { name: 'c2', weight: 0 },
                    ],
                  },
                }),
                { match: { prefix: '/part', runtime_fraction: { default_value: { numerator: 30 } } }, route: { cluster: 'c1' } },
                to('/part', {}),
              ],
            },
          ],
        },
      }),
      [...clusterConfigs(), all, byPriority, cluster('nobody', [1])],
      seen,
    );
    for (const [path, answer] of [
      ['/timeout', 'hang'],
      ['/per-try', 'hang,200'],
      ['/per-try', 'hang,hang,hang,200'],
      ['/per-try-not-retried', 'hang,200'],
      ['/total', 'hang,hang,200'],
      ['/hedge', '200'],
      ['/hedge', 'late,200'],
      ['/hedge', 'late,hang,hang'],
      ['/hedge', 'hang,late,503'],
      ['/hedge', 'hang,reset,200'],
      ['/hedge', '503,200'],
      ['/nobody', '200'],
      ['/farther', '503,503,200'],
      ['/farther', '503,503,503,503,503,503'],
      ['/two-and-farther', '503,503,503,503,503,503'],
    ] as const) {
      const { ours, theirs } = await pair.both({ path, headers: { 'x-answer': answer } });
      assert.deepEqual(comparable(ours), comparable(theirs), `${path} ${answer}`);
    }
    for (let i = 0; i < 20; i++) {
      const { ours, theirs } = await pair.both({ path: '/others', headers: { 'x-answer': '503,503,503,200' } });
      for (const outcome of [ours, theirs]) assert.deepEqual(outcome.seen.map(({ server }) => server).sort(), [0, 1, 2, 3], 'each is asked once');
    }
    const mirrored = await pair.both({ path: '/mirror?x=1', headers: { 'x-a': 'b' } }, 3);
    const byServer = ({ seen }: Outcome) => [...seen].sort((a, b) => a.server - b.server);
    assert.deepEqual(byServer(mirrored.ours), byServer(mirrored.theirs));
    assert.deepEqual(
      byServer(mirrored.ours).map(({ headers }) => headers['host']),
      ['test.example', 'test.example-shadow', 'test.example'],
    );
    for (const [path, share] of [
      ['/weights', 0.3],
      ['/part', 0.3],
    ] as const) {
      const count = 600;
      const outcomes = await Promise.all(Array.from({ length: count }, () => pair.both({ path })));
      for (const who of ['ours', 'theirs'] as const) {
        const second = outcomes.filter((outcome) => outcome[who].seen[0]!.server === 1).length;
        assert.equal(outcomes.filter((outcome) => outcome[who].seen[0]!.server > 1).length, 0);
        // Five standard deviations.
        assert.ok(Math.abs(second - share * count) < 5 * Math.sqrt(count * share * (1 - share)), `${path}, ${who}: ${second} of ${count}`);
      }
    }
  });
});

/** Texts of failures that a proxy answers with of its own are for people, and each has its own; so is how the length of an answer is said. */
function comparable({ status, headers, body, seen }: Outcome) {
  const { 'content-length': _length, ...rest } = headers;
  const isFailure = rest['grpc-status'] !== undefined || (status >= 400 && (seen.length === 0 || body.startsWith('upstream connect error')));
  if (!isFailure) return { status, headers: rest, body, seen };
  const { 'content-type': _type, 'grpc-message': _message, ...own } = rest;
  return { status, headers: own, body: '', seen };
}
