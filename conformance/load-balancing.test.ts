import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { cluster, http, type Json, TestEngine } from '../e2e/support/engine.ts';
import { skipWithout } from '../e2e/support/requirements.ts';
import { EnvoyPair, type Outcome } from './support/envoy-pair.ts';

/** Choice by hash is told by nothing but the request and the addresses: stock Envoy and we must choose the same server. */
describe('choice of endpoints, beside stock Envoy', { skip: skipWithout('envoy') }, () => {
  let engine: TestEngine;
  let ports: number[];
  let seen: Map<string, Outcome['seen'][number][]>;
  before(async () => {
    engine = new TestEngine();
    ({ ports, seen } = await EnvoyPair.servers(engine, 5));
  });
  after(() => engine.close());

  const weighted = (name: string, weights: readonly number[], more: Json): Json =>
    cluster(name, [], {
      ...more,
      load_assignment: {
        cluster_name: name,
        endpoints: [
          {
            lb_endpoints: ports.map((port, i) => ({
              endpoint: { address: { socket_address: { address: '127.0.0.1', port_value: port } } },
              load_balancing_weight: weights[i] ?? 1,
            })),
          },
        ],
      },
    });
  const route = (prefix: string, to: string, policies: readonly Json[]): Json => ({
    match: { prefix },
    route: { cluster: to, hash_policy: policies, timeout: '5s' },
  });

  it('ring and Maglev by header, cookie, query parameter and source', async () => {
    const byHeader = [{ header: { header_name: 'x-user' } }];
    const pair = await EnvoyPair.start(
      engine,
      http('ring', {}, { hash_policy: byHeader }, [
        route('/ring-weighted', 'ring-weighted', byHeader),
        route('/ring-large', 'ring-large', byHeader),
        route('/maglev-weighted', 'maglev-weighted', byHeader),
        route('/maglev-small', 'maglev-small', byHeader),
        route('/maglev', 'maglev', byHeader),
        route('/cookie', 'ring', [{ cookie: { name: 'session', ttl: '60s', path: '/shop' } }]),
        route('/query', 'ring', [{ query_parameter: { name: 'user' } }]),
        route('/source', 'maglev', [{ connection_properties: { source_ip: true } }]),
        route('/several', 'ring', [...byHeader, { query_parameter: { name: 'user' } }]),
        route('/first', 'ring', [{ header: { header_name: 'x-user' }, terminal: true }, { query_parameter: { name: 'user' } }]),
      ]),
      [
        cluster('ring', ports, { lb_policy: 'RING_HASH' }),
        weighted('ring-weighted', [1, 2, 3, 4, 5], { lb_policy: 'RING_HASH', ring_hash_lb_config: { minimum_ring_size: 64 } }),
        cluster('ring-large', ports, { lb_policy: 'RING_HASH', ring_hash_lb_config: { minimum_ring_size: 10_000 } }),
        cluster('maglev', ports, { lb_policy: 'MAGLEV' }),
        weighted('maglev-weighted', [1, 7, 3, 4, 5], { lb_policy: 'MAGLEV' }),
        cluster('maglev-small', ports, { lb_policy: 'MAGLEV', maglev_lb_config: { table_size: 251 } }),
      ],
      seen,
    );
    const used = new Map<string, Set<number>>();
    for (const path of ['/ring', '/ring-weighted', '/ring-large', '/maglev', '/maglev-weighted', '/maglev-small', '/query', '/several', '/first'])
      for (let i = 0; i < 60; i++) {
        const probe = { path: `${path}?user=q${i % 17}`, headers: { 'x-user': i % 9 === 8 ? [`b${i}`, `a${i}`] : `user ${i}` } };
        const { ours, theirs } = await pair.both(probe);
        assert.equal(ours.seen[0]!.server, theirs.seen[0]!.server, `${path} ${i}`);
        used.set(path, (used.get(path) ?? new Set()).add(ours.seen[0]!.server));
      }
    for (const [path, servers] of used) assert.ok(servers.size >= 4, `${path} goes to ${servers.size} servers`);
    for (const cookie of ['session=a', 'other=1; session="b c"', 'session=d; session=e']) {
      const { ours, theirs } = await pair.both({ path: '/cookie', headers: { cookie } });
      assert.equal(ours.seen[0]!.server, theirs.seen[0]!.server, cookie);
      assert.equal(ours.headers['set-cookie'], undefined);
    }
    const { ours, theirs } = await pair.both({ path: '/source' });
    assert.equal(ours.seen[0]!.server, theirs.seen[0]!.server);
    const given = await pair.both({ path: '/cookie' });
    const shape = (outcome: Outcome) => String(outcome.headers['set-cookie']).replace(/"[0-9a-f]+"/, '"HASH"');
    assert.equal(shape(given.ours), shape(given.theirs));
    // Who has been given one comes back to the same server.
    const cookie = String(given.ours.headers['set-cookie']).split(';')[0]!;
    const again = await pair.both({ path: '/cookie', headers: { cookie } });
    assert.equal(again.ours.seen[0]!.server, given.ours.seen[0]!.server);
    assert.equal(again.theirs.seen[0]!.server, again.ours.seen[0]!.server);
  });

  it('priorities, localities by weight, panic, and endpoints that are down', async () => {
    /** Localities as `[priority, weight, [[server, weight, health], ...]]`. */
    type Locality = readonly [number, number, readonly (readonly [server: number, weight: number, health: string])[]];
    const up = 'HEALTHY';
    const down = 'UNHEALTHY';
    const levels = (name: string, localities: readonly Locality[], more: Json = {}): Json =>
      cluster(name, [], {
        lb_policy: 'RING_HASH',
        ...more,
        load_assignment: {
          cluster_name: name,
          endpoints: localities.map(([priority, weight, endpoints], i) => ({
            locality: { zone: `z${i}` },
            priority,
            load_balancing_weight: weight,
            lb_endpoints: endpoints.map(([server, load, health]) => ({
              endpoint: { address: { socket_address: { address: '127.0.0.1', port_value: ports[server]! } } },
              load_balancing_weight: load,
              health_status: health,
            })),
          })),
        },
      });
    const threshold = (value: number): Json => ({ common_lb_config: { healthy_panic_threshold: { value } } });
    const byLocality: Json = { common_lb_config: { locality_weighted_lb_config: {} } };
    const two = (a: string, b: string, c: string): Locality[] => [
      [
        0,
        1,
        [
          [0, 1, a],
          [1, 1, b],
        ],
      ],
      [
        1,
        1,
        [
          [2, 1, c],
          [3, 1, up],
          [4, 1, up],
        ],
      ],
    ];
    const cases: Record<string, Json> = {
      first: levels('first', two(up, up, up)),
      spills: levels('spills', two(up, down, up)),
      'spills-much': levels('spills-much', two(down, down, down)),
      panic: levels('panic', [
        [
          0,
          1,
          [
            [0, 1, up],
            [1, 1, down],
            [2, 1, down],
            [3, 1, down],
          ],
        ],
      ]),
      'no-panic': levels(
        'no-panic',
        [
          [
            0,
            1,
            [
              [0, 1, up],
              [1, 1, down],
              [2, 1, down],
              [3, 1, down],
            ],
          ],
        ],
        threshold(0),
      ),
      'all-down': levels('all-down', [
        [
          0,
          1,
          [
            [0, 1, down],
            [1, 1, down],
          ],
        ],
      ]),
      'all-down-no-panic': levels(
        'all-down-no-panic',
        [
          [
            0,
            1,
            [
              [0, 1, down],
              [1, 1, down],
            ],
          ],
        ],
        threshold(0),
      ),
      'all-levels-in-panic': levels('all-levels-in-panic', [
        [
          0,
          1,
          [
            [0, 1, down],
            [1, 1, down],
          ],
        ],
        [
          1,
          1,
          [
            [2, 1, down],
            [3, 1, down],
            [4, 1, down],
          ],
        ],
      ]),
      localities: levels(
        'localities',
        [
          [
            0,
            3,
            [
              [0, 1, up],
              [1, 2, up],
            ],
          ],
          [
            0,
            1,
            [
              [2, 1, up],
              [3, 1, up],
              [4, 1, up],
            ],
          ],
        ],
        byLocality,
      ),
      'localities-half-down': levels(
        'localities-half-down',
        [
          [
            0,
            3,
            [
              [0, 1, up],
              [1, 2, down],
            ],
          ],
          [
            0,
            1,
            [
              [2, 1, up],
              [3, 1, up],
              [4, 1, up],
            ],
          ],
        ],
        byLocality,
      ),
    };
    const policy = [{ header: { header_name: 'x-user' } }];
    const pair = await EnvoyPair.start(
      engine,
      http(
        'first',
        {},
        { hash_policy: policy },
        Object.keys(cases).map((name) => ({ match: { path: `/${name}` }, route: { cluster: name, hash_policy: policy, timeout: '5s' } })),
      ),
      Object.values(cases),
      seen,
    );
    for (const name of Object.keys(cases))
      for (let i = 0; i < 80; i++) {
        const { ours, theirs } = await pair.both({ path: `/${name}`, headers: { 'x-user': `u${i}` } });
        assert.equal(ours.status, theirs.status, `${name} ${i}`);
        assert.equal(ours.seen[0]?.server, theirs.seen[0]?.server, `${name} ${i}`);
      }
  });
});
