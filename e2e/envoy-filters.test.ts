import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { write } from './support/api.ts';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';
import { rateLimitServer } from './support/rate-limit-server.ts';

const filter = (patches: string, more = '', name = 'patch', namespace = 'default') =>
  `apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: { name: ${name}, namespace: ${namespace} }\nspec:\n${more}  configPatches:\n${patches}`;

describe('EnvoyFilters', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('shop'));
    await mesh.workload('shop');
    client = await mesh.proxy('client');
    await client.proxy.ready;
  });
  after(() => mesh.close());

  const ask = async (path = '/') => {
    const answer = await call({ port: client.outboundPort, path, headers: { host: 'shop:9080' } });
    return { ...answer, echo: answer.body.startsWith('{') ? (JSON.parse(answer.body) as { url: string; headers: Record<string, string> }) : undefined };
  };
  const remove = async () => {
    await mesh.plane.registry.delete(findKind('networking.istio.io', 'EnvoyFilter')!, 'default', 'patch');
    await mesh.plane.pilot.refresh();
    await mesh.synced();
  };
  const finding = (code: string) => mesh.plane.pilot.findings.find((one) => one.code === code);

  it('change routes and virtual hosts: merged, inserted, removed', async () => {
    await mesh.apply(
      filter(`
  - applyTo: VIRTUAL_HOST
    match: { context: SIDECAR_OUTBOUND, routeConfiguration: { portNumber: 9080, vhost: { name: "shop.default.svc.cluster.local:9080" } } }
    patch: { operation: MERGE, value: { request_headers_to_add: [{ header: { key: x-patched, value: "by %PROTOCOL%" } }] } }
  - applyTo: HTTP_ROUTE
    match: { context: SIDECAR_OUTBOUND, routeConfiguration: { vhost: { domainName: shop } } }
    patch: { operation: INSERT_FIRST, value: { name: teapot, match: { prefix: /teapot }, direct_response: { status: 418 } } }
  - applyTo: HTTP_ROUTE
    match: { context: SIDECAR_OUTBOUND, routeConfiguration: { vhost: { domainName: shop, route: { name: default } } } }
    patch: { operation: MERGE, value: { route: { prefix_rewrite: /patched } } }
`),
    );
    const answer = await ask('/');
    assert.deepEqual([answer.echo?.headers['x-patched'], answer.echo?.url], ['by HTTP/1.1', '/patched']);
    assert.equal((await ask('/teapot')).status, 418);
    assert.equal(finding('MZ0007'), undefined);
    await remove();
    assert.equal((await ask('/teapot')).status, 200);
  });

  it('change clusters and filters, those that are packed too', async () => {
    await mesh.apply(
      filter(`
  - applyTo: CLUSTER
    match: { context: SIDECAR_OUTBOUND, cluster: { service: shop.default.svc.cluster.local, portNumber: 9080 } }
    patch: { operation: MERGE, value: { circuit_breakers: { thresholds: [{ max_requests: 7 }] }, connect_timeout: 3s } }
  - applyTo: NETWORK_FILTER
    match: { context: SIDECAR_OUTBOUND, listener: { filterChain: { filter: { name: envoy.filters.network.http_connection_manager } } } }
    patch: { operation: MERGE, value: { typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, always_set_request_id_in_response: true } } }
  - applyTo: HTTP_FILTER
    match: { context: SIDECAR_OUTBOUND, listener: { filterChain: { filter: { name: envoy.filters.network.http_connection_manager, subFilter: { name: envoy.filters.http.router } } } } }
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.grpc_http1_bridge
        typed_config: { "@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.extensions.filters.http.grpc_http1_bridge.v3.Config, value: { upgrade_protobuf_to_grpc: true } }
`),
    );
    assert.ok((await ask()).headers['x-request-id'], 'the client is told the id');
    const dump = (await call({ port: client.adminPort, path: '/config_dump' })).body;
    assert.match(dump, /"connect_timeout": "3s"/);
    assert.match(dump, /"max_requests": 7/);
    assert.match(dump, /"upgrade_protobuf_to_grpc": true/);
    await remove();
  });

  it('are for the workloads that they select, in the order of their priority, the root namespace’s first', async () => {
    const header = (value: string) =>
      `\n  - applyTo: VIRTUAL_HOST\n    match: { context: SIDECAR_OUTBOUND, routeConfiguration: { vhost: { domainName: shop } } }\n    patch: { operation: MERGE, value: { request_headers_to_add: [{ header: { key: x-order, value: "${value}" } }] } }\n`;
    await mesh.apply(filter(header('second'), '', 'root', 'istio-system'));
    await mesh.apply(filter(header('third')));
    await mesh.apply(filter(header('first'), '  priority: -1\n', 'early'));
    await mesh.apply(filter(header('never'), '  workloadSelector: { labels: { app: somebody-else } }\n', 'other'));
    assert.equal((await ask()).echo?.headers['x-order'], 'first, second, third');
    for (const [name, namespace] of [
      ['root', 'istio-system'],
      ['early', 'default'],
      ['other', 'default'],
    ] as const)
      await mesh.plane.registry.delete(findKind('networking.istio.io', 'EnvoyFilter')!, namespace, name);
    await remove();
  });

  it('limit requests at the server, as Istio’s task on local rate limits writes it', async () => {
    await mesh.apply(
      filter(
        `
  - applyTo: HTTP_FILTER
    match: { context: SIDECAR_INBOUND, listener: { filterChain: { filter: { name: envoy.filters.network.http_connection_manager } } } }
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.local_ratelimit
        typed_config:
          "@type": type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          value: { stat_prefix: http_local_rate_limiter }
  - applyTo: HTTP_ROUTE
    match: { context: SIDECAR_INBOUND, routeConfiguration: { vhost: { name: "inbound|http|9080", route: { action: ANY } } } }
    patch:
      operation: MERGE
      value:
        typed_per_filter_config:
          envoy.filters.http.local_ratelimit:
            "@type": type.googleapis.com/udpa.type.v1.TypedStruct
            type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            value:
              stat_prefix: http_local_rate_limiter
              token_bucket: { max_tokens: 2, tokens_per_fill: 2, fill_interval: 600s }
              filter_enabled: { runtime_key: local_rate_limit_enabled, default_value: { numerator: 100, denominator: HUNDRED } }
              filter_enforced: { runtime_key: local_rate_limit_enforced, default_value: { numerator: 100, denominator: HUNDRED } }
              response_headers_to_add: [{ append_action: OVERWRITE_IF_EXISTS_OR_ADD, header: { key: x-rate-limited, value: "TOO_MANY_REQUESTS" } }]
`,
        '  workloadSelector: { labels: { app: shop } }\n',
      ),
    );
    assert.equal(
      mesh.plane.pilot.findings.find(({ object }) => object === 'EnvoyFilter default/patch'),
      undefined,
    );
    const answers = [await ask(), await ask(), await ask()];
    assert.deepEqual(
      answers.map(({ status }) => status),
      [200, 200, 429],
    );
    assert.equal(answers[2]!.headers['x-rate-limited'], 'TOO_MANY_REQUESTS');
    assert.equal(answers[2]!.body, 'local_rate_limited');
    // A change elsewhere gives no client new tokens.
    await mesh.apply(
      'apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: { name: shop }\nspec:\n  workloadSelector: { labels: { app: shop } }\n  inboundConnectionPool: { http: { maxRequestsPerConnection: 1000 } }\n  egress: [{ hosts: ["*/*"] }]\n',
    );
    assert.equal((await ask()).status, 429);
    await mesh.plane.registry.delete(findKind('networking.istio.io', 'Sidecar')!, 'default', 'shop');
    await remove();
    assert.equal((await ask()).status, 200);
  });

  it('ask a rate limit service of the mesh, as Istio’s task on global rate limits writes it', async () => {
    const limiter = await rateLimitServer();
    try {
      await mesh.apply(
        `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: { name: limiter }\nspec:\n  hosts: [ratelimit.default.svc.cluster.local]\n  location: MESH_EXTERNAL\n  resolution: STATIC\n  ports: [{ number: 8081, name: grpc, protocol: GRPC, targetPort: ${limiter.port} }]\n  endpoints: [{ address: 127.0.0.1 }]\n`,
      );
      await mesh.apply(
        filter(`
  - applyTo: HTTP_FILTER
    match: { context: SIDECAR_OUTBOUND, listener: { filterChain: { filter: { name: envoy.filters.network.http_connection_manager, subFilter: { name: envoy.filters.http.router } } } } }
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.ratelimit
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
          domain: ratelimit
          failure_mode_deny: true
          timeout: 10s
          rate_limit_service:
            grpc_service: { envoy_grpc: { cluster_name: outbound|8081||ratelimit.default.svc.cluster.local, authority: ratelimit.default.svc.cluster.local } }
            transport_api_version: V3
  - applyTo: VIRTUAL_HOST
    match: { context: SIDECAR_OUTBOUND, routeConfiguration: { vhost: { name: "shop.default.svc.cluster.local:9080", route: { action: ANY } } } }
    patch:
      operation: MERGE
      value:
        rate_limits:
          - actions: [{ request_headers: { header_name: ":path", descriptor_key: PATH } }, { request_headers: { header_name: x-decide, descriptor_key: decide, skip_if_absent: true } }]
`),
      );
      assert.equal((await ask('/a')).status, 200);
      assert.equal((await call({ port: client.outboundPort, path: '/b', headers: { host: 'shop:9080', 'x-decide': 'over' } })).status, 429);
      assert.deepEqual(
        limiter.requests.map(({ domain, descriptors }) => [domain, descriptors[0]!.entries.map(({ key, value }) => `${key}=${value}`)]),
        [
          ['ratelimit', ['PATH=/a']],
          ['ratelimit', ['PATH=/b', 'decide=over']],
        ],
      );
    } finally {
      await remove();
      limiter.close();
    }
  });

  it('that cannot be read, match nothing, or make what a proxy refuses, are told and change nothing', async () => {
    await mesh.apply(filter('  - applyTo: CLUSTER\n    patch: { operation: MERGE, value: { connect_timout: 3s } }\n'));
    assert.match(finding('MZ0006')!.message, /patch 0 is not in effect: the value cannot be read as envoy\.config\.cluster\.v3\.Cluster: .*connect_timout/);
    await mesh.apply(
      filter('  - applyTo: HTTP_FILTER\n    patch: { operation: ADD, value: { name: x, typed_config: { "@type": type.googleapis.com/some.Unknown } } }\n'),
    );
    assert.match(finding('MZ0006')!.message, /some\.Unknown/);
    await mesh.apply(
      filter(
        '  - applyTo: BOOTSTRAP\n    patch: { operation: MERGE, value: {} }\n  - applyTo: CLUSTER\n    match: { cluster: { name: nobody } }\n    patch: { operation: REMOVE }\n',
      ),
    );
    assert.match(finding('MZ0006')!.message, /proxies of Mizzen have no bootstrap/);
    assert.match(finding('MZ0007')!.message, /patch 1 \(CLUSTER\) matches nothing/);

    await mesh.apply(
      filter(
        '  - applyTo: CLUSTER\n    match: { context: SIDECAR_OUTBOUND }\n    patch: { operation: MERGE, value: { track_cluster_stats: { timeout_budgets: true } } }\n',
      ),
    );
    const refused = await until(
      'the refusal is told',
      async () => finding('MZ0008'),
      (one) => one !== undefined,
    );
    assert.match(
      refused!.message,
      /EnvoyFilter default\/patch: the proxy default\/\w+ goes on without it, since it refuses what comes of it: .*track_cluster_stats/,
    );
    assert.equal((await ask()).status, 200);
    // All else goes on.
    await mesh.apply(
      'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: shop }\nspec:\n  hosts: [shop]\n  http: [{ directResponse: { status: 418 } }]\n',
    );
    await until(
      'the route is in effect',
      () => ask(),
      ({ status }) => status === 418,
    );
    assert.ok(mesh.plane.pilot.proxies().every(({ state }) => state === 'synced'));
    await remove();
    await mesh.plane.registry.delete(findKind('networking.istio.io', 'VirtualService')!, 'default', 'shop');
  });

  it('tell their writer at the write what has no effect: what cannot be read, matches nothing, is for no proxy, or is refused by a proxy', async () => {
    const told = async (patches: string, more = '') => {
      const { status, warnings, message } = await write(mesh, filter(patches, more));
      assert.ok(status < 300, message);
      return warnings.join('\n');
    };
    assert.match(
      await told('  - applyTo: CLUSTER\n    patch: { operation: MERGE, value: { connect_timout: 3s } }\n'),
      /patch 0 is not in effect: .*connect_timout.*MZ0006/,
    );
    assert.match(await told('  - applyTo: CLUSTER\n    patch: { operation: ADD, value: null }\n'), /operation ADD needs a value.*MZ0006/);
    assert.match(
      await told('  - applyTo: CLUSTER\n    match: { cluster: { name: none } }\n    patch: { operation: REMOVE }\n'),
      /patch 0 \(CLUSTER\) matches nothing.*MZ0007/,
    );
    assert.match(
      await told('  - applyTo: CLUSTER\n    patch: { operation: REMOVE }\n', '  workloadSelector: { labels: { app: other } }\n'),
      /is for no connected proxy.*MZ0007/,
    );
    assert.match(
      await told(
        '  - applyTo: CLUSTER\n    match: { context: SIDECAR_OUTBOUND }\n    patch: { operation: MERGE, value: { track_cluster_stats: { timeout_budgets: true } } }\n',
      ),
      /goes on without it, since it refuses what comes of it: .*track_cluster_stats.*MZ0008/,
    );
    await remove();
  });

  it('do not take others with them that a proxy can use', async () => {
    const limit = `
  - applyTo: HTTP_FILTER
    match: { context: SIDECAR_INBOUND, listener: { filterChain: { filter: { name: envoy.filters.network.http_connection_manager } } } }
    patch:
      operation: INSERT_BEFORE
      value:
        name: limit
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          stat_prefix: all
          token_bucket: { max_tokens: 1, fill_interval: 600s }
          filter_enabled: { default_value: { numerator: 100 } }
          filter_enforced: { default_value: { numerator: 100 } }
`;
    const broken = (name: string) =>
      filter(`  - applyTo: HTTP_FILTER\n    match: { context: SIDECAR_INBOUND }\n    patch: { operation: INSERT_FIRST, value: { name: ${name} } }\n`, '', name);
    await mesh.apply(broken('older'));
    await mesh.apply(filter(limit));
    await mesh.apply(broken('newer'));
    await until(
      'both are left out',
      async () => mesh.plane.pilot.findings.filter(({ code }) => code === 'MZ0008').map(({ object }) => object),
      (objects) =>
        objects.includes('EnvoyFilter default/older') && objects.includes('EnvoyFilter default/newer') && !objects.includes('EnvoyFilter default/patch'),
    );
    await mesh.synced();
    assert.deepEqual([(await ask()).status, (await ask()).status], [200, 429]);
    for (const name of ['older', 'newer']) await mesh.plane.registry.delete(findKind('networking.istio.io', 'EnvoyFilter')!, 'default', name);
    await remove();
  });
});
