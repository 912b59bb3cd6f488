import assert from 'node:assert/strict';
import dns from 'node:dns/promises';
import { readFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { after, describe, it, mock } from 'node:test';
import { rootCertificates } from 'node:tls';
import { create } from '@bufbuild/protobuf';
import { decodeObject, decodeYaml, findKind, groupOf, kinds, nameOf, type Resource } from '@mizzen/api';
import { messageOf, silentLogger } from '@mizzen/common';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { ApiError } from '../packages/control/galley/api-error.ts';
import { keyText, type StoredResource } from '../packages/control/galley/config-store.ts';
import { ResourceRegistry } from '../packages/control/galley/resource-registry.ts';
import { SqliteStore } from '../packages/control/galley/sqlite-store.ts';
import { notEnforced } from '../packages/control/pilot/analysis/not-implemented.ts';
import { patchesFor } from '../packages/control/pilot/envoy-filters/patches.ts';
import { resourcesFor } from '../packages/control/pilot/generate/resources.ts';
import { viewOf } from '../packages/control/pilot/proxy-view.ts';
import { type ConfigReader, Quarantine } from '../packages/control/pilot/quarantine.ts';
import { SnapshotBuilder } from '../packages/control/pilot/snapshot-builder.ts';
import { Engine } from '../packages/proxy/engine.ts';
import { defaultOverloadSettings } from '../packages/proxy/overload/overload-manager.ts';
import { unknownPeer } from '../packages/proxy/telemetry/peer-metadata.ts';

/**
 * Mutates every field of valid objects of every kind. An object that is accepted must not stop anything: the snapshot builds, the resources of
 * sidecars and of a gateway are generated, and a proxy accepts all of them.
 */
const seed = Number(process.env['MUTATION_SEED'] ?? 20_261_130);
const maxCases = Number(process.env['MUTATION_CASES'] ?? 20_000);
/** Kinds that are stored or refused, and that no generator reads. */
const withoutEffect = ['/Pod', '/Event', 'extensions.istio.io/WasmPlugin'];
/** Every so many cases are written to a store, too. */
const apiEvery = 10;
const writer = { manager: 'test', origin: { source: 'api', name: 'test' } } as const;
/** Mutated objects beside each other and the valid rest of the mesh, in one build. */
const casesPerBuild = 60;

const random = (() => {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
})();
const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;

const values: readonly unknown[] = [
  ...['2147483648ms', '720h', '1000000h', '315576000000s', '99999h'],
  ...[null, {}, [], '', ' ', -1, 0, 1, 1.5, 65_536, 4_294_967_296, 1e300, true, false, [null], [{}], { a: null }, [[]], 'x'.repeat(5_000)],
  ...['*', '.', '/', '%', '%00', '\u0000', '\u010d\u010a', '(', '[a', '-1s', '1d', '0s', '99999999999999s', '../x', '{**}', 'a.b', '10.0.0.1/99', '::1', '~'],
];

type Json = Record<string, unknown> | unknown[];
const isContainer = (value: unknown): value is Json => typeof value === 'object' && value !== null;

/** Every place in an object, as the container and its key. */
function placesOf(value: unknown, found: [Json, string, string][] = [], path = ''): [Json, string, string][] {
  if (isContainer(value))
    for (const [key, member] of Object.entries(value)) {
      found.push([value, key, `${path}.${key}`]);
      placesOf(member, found, `${path}.${key}`);
    }
  return found;
}

function mutate(original: Resource): { readonly value: Record<string, unknown>; readonly what: string } {
  const value = structuredClone(original) as unknown as Record<string, unknown>;
  const { apiVersion: _, kind: __, metadata: ___, ...rest } = value;
  const [container, key, path] = pick(placesOf(rest));
  const before = (container as Record<string, unknown>)[key];
  const how = random();
  let mutated: unknown;
  if (how < 0.08 && Array.isArray(before)) mutated = [...before, ...before];
  else if (how < 0.12 && Array.isArray(container)) mutated = pick([null, {}, before]);
  else mutated = pick(values);
  if (key in rest && container === rest) value[key] = mutated;
  else (container as Record<string, unknown>)[key] = mutated;
  return { value, what: `${nameOf(original)} ${path} = ${JSON.stringify(mutated)?.slice(0, 100)}` };
}

const storedOf = (resource: Resource, revision: number): StoredResource => ({
  key: { group: groupOf(resource.apiVersion), kind: resource.kind, namespace: resource.metadata.namespace ?? '', name: resource.metadata.name },
  resource: { ...resource, metadata: { ...resource.metadata, creationTimestamp: '2026-01-01T00:00:00Z', generation: 1 } },
  origin: { source: 'api', name: 'test' },
  revision,
});

function readerOf(objects: readonly StoredResource[]): ConfigReader {
  const byKind = Map.groupBy(objects, ({ key }) => `${key.group}/${key.kind}`);
  return {
    revision: () => objects.length,
    get: async (key) => objects.find((stored) => keyText(stored.key) === keyText(key)),
    list: async (group, kind) => ({ items: byKind.get(`${group}/${kind}`) ?? [], revision: objects.length }),
  };
}

const nodeOf = (type: 'sidecar' | 'router', app: string, metadata: Record<string, unknown>) =>
  viewOf(
    create(NodeSchema, {
      id: `${type}~127.0.0.1~${app}.default~default.svc.cluster.local`,
      metadata: { NAME: app, NAMESPACE: 'default', LABELS: { app, 'gateway.networking.k8s.io/gateway-name': 'public', a: 'b' }, ...metadata } as never,
    }),
  );
const inbound = [{ name: 'http', port: 8080, protocol: 'HTTP', listen: '127.0.0.1:18080', app: '127.0.0.1:28080' }];
const views = [
  { ...nodeOf('sidecar', 'client', { MIZZEN_OUTBOUND: '127.0.0.1:15001', MIZZEN_INBOUND: inbound }), isProven: true },
  { ...nodeOf('sidecar', 'client', { INTERCEPTION_MODE: 'REDIRECT', MIZZEN_INBOUND: inbound }), isProven: true },
  { ...nodeOf('router', 'edge', {}), isProven: true },
];
const engineOf = () =>
  new Engine({
    ...{ self: unknownPeer, selfId: 'test', overload: defaultOverloadSettings, opensListeners: false, reusesPort: false, expectsSockets: false, drainMs: 0 },
    logger: silentLogger,
  });
/** Names in objects must not reach the resolver of the machine. */
const withoutResolver = () => {
  mock.method(dns, 'lookup', async () => {
    throw new Error('no resolver');
  });
  syncBuiltinESMExports();
};
const trust = { own: rootCertificates[0], others: new Map(), crl: undefined };

const keySets = { want: () => {}, keysOf: () => undefined, problemOf: () => undefined };

describe('Mutated objects', () => {
  withoutResolver();
  const proxies = views.map((view) => ({ view, engine: engineOf() }));
  after(() => Promise.all(proxies.map(({ engine }) => engine.close(0, 0))));
  const builder = new SnapshotBuilder('cluster.local', silentLogger, undefined, undefined, keySets as never);
  const attempt = async (reader: ConfigReader): Promise<void> => {
    const snapshot = await builder.probe(reader);
    for (const { view, engine } of proxies) {
      const patches = patchesFor(view, snapshot.envoyFilters);
      const generate = (type: Parameters<typeof resourcesFor>[0], names: string[]) =>
        resourcesFor(type, new Set(names), view, snapshot, trust as never, patches, () => {});
      for (const type of ['name-table', 'messaging'] as const) generate(type, []);
      for (const type of ['cluster', 'endpoint', 'listener', 'route', 'secret'] as const) {
        const wanted = engine.state.wanted(type);
        const resources = generate(type, wanted);
        engine.accept(type, resources);
      }
    }
  };
  const validObjects = () => decodeYaml(readFileSync(new URL('support/valid-objects.yaml', import.meta.url), 'utf8'), 'valid-objects.yaml');

  it('stop nothing but themselves', async (context) => {
    const { resources, problems } = validObjects();
    assert.deepEqual(problems, []);
    const seeds = new Set(resources.map(({ resource }) => `${groupOf(resource.apiVersion)}/${resource.kind}`));
    assert.deepEqual(
      kinds.map(({ group, kind }) => `${group}/${kind}`).filter((kind) => !seeds.has(kind)),
      withoutEffect,
      'a kind has no valid object to mutate',
    );
    const valid = resources.map(({ resource }, i) => storedOf(resource, i + 1));
    await attempt(readerOf(valid));

    const store = new SqliteStore(':memory:');
    const registry = new ResourceRegistry(store, notEnforced);
    for (const name of ['default', 'istio-system', 'mizzen-system', 'shop', 'other'])
      await registry.apply(findKind('', 'Namespace')!, '', name, { apiVersion: 'v1', kind: 'Namespace', metadata: { name } }, true, writer);
    /** By the API, and as a document of a followed folder: refused with a reason, or stored. */
    const writeBothWays = async (value: Record<string, unknown>, where: string) => {
      const { apiVersion, kind, metadata } = value as unknown as Resource;
      try {
        await registry.apply(findKind(groupOf(apiVersion), kind)!, metadata.namespace ?? '', metadata.name, value, true, writer);
      } catch (error) {
        assert.ok(error instanceof ApiError && error.status < 500, `a write throws ${messageOf(error)}: ${where}`);
      }
      const { resources: decoded, problems: found } = decodeYaml(JSON.stringify(value), 'mutated.yaml');
      assert.equal(decoded.length + Number(found.length > 0), 1, where);
    };

    const isolated = new Map<string, string>();
    let [cases, accepted] = [0, 0];
    while (cases < maxCases) {
      const objects = [...valid];
      const descriptions = new Map<string, string>();
      for (let i = 0; i < casesPerBuild; i++, cases++) {
        const at = Math.floor(random() * valid.length);
        const { value, what } = mutate(valid[at]!.resource);
        const where = `seed ${seed}, case ${cases}: ${what}`;
        if (cases % apiEvery === 0) await writeBothWays(value, where);
        let decoded: ReturnType<typeof decodeObject>;
        try {
          decoded = decodeObject(value);
          if ('problems' in decoded || notEnforced(decoded.resource) !== undefined) continue;
        } catch (error) {
          assert.fail(`decoding throws ${messageOf(error)}: ${where}`);
        }
        accepted++;
        objects[at] = storedOf(decoded.resource, valid.length + cases + 1);
        descriptions.set(keyText(objects[at].key), where);
      }
      const quarantine = new Quarantine(readerOf(objects), silentLogger);
      for (let isBuilt = false; !isBuilt; ) {
        try {
          await attempt(quarantine.reader());
          isBuilt = true;
        } catch (error) {
          const all = [...descriptions.values()].join('\n');
          assert.ok(await quarantine.isolate(attempt), `no object is found to blame for ${messageOf(error)}:\n${all}`);
        }
      }
      for (const { stored, reason } of quarantine.excluded) {
        const where = descriptions.get(keyText(stored.key));
        assert.ok(where !== undefined, `a valid object is left out: ${keyText(stored.key)}: ${reason}; seed ${seed}\n${[...descriptions.values()].join('\n')}`);
        isolated.set(where.replace(/.*case \d+: /, ''), reason);
      }
    }
    await store.close();
    context.diagnostic(`${cases} mutations, ${accepted} accepted, ${isolated.size} left out by generation`);
    const refused = [...isolated].filter(([what]) => !what.startsWith('EnvoyFilter '));
    assert.deepEqual(refused, [], 'accepted objects that generation or the proxy refuses');
    if (process.env['MUTATION_REPORT']) for (const [what, reason] of isolated) context.diagnostic(`${what}: ${reason}`);
    assert.ok(accepted > cases / 20);
  });

  /** An object with this value at the place that `PUT` stands for. */
  const once: Readonly<Record<string, string>> = {
    'requestHeaderModifier.add of an HTTPRoute': httpRoute(
      '{ filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x, value: z }], add: PUT } }], backendRefs: [{ name: shop, port: 80 }] }',
    ),
    'replacePrefixMatch of an HTTPRoute': httpRoute(
      '{ filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: PUT } } }], backendRefs: [{ name: shop, port: 80 }] }',
    ),
    'matches.method of a GRPCRoute':
      'apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: { name: once }\nspec: { parentRefs: [{ kind: Service, group: "", name: shop }], rules: [{ matches: [{ method: PUT }], backendRefs: [{ name: shop, port: 80 }] }] }\n',
    'rules.when of an AuthorizationPolicy': security('AuthorizationPolicy', '{ rules: [{ when: PUT }] }'),
    'rules.when.values of an AuthorizationPolicy': security('AuthorizationPolicy', '{ rules: [{ when: [{ key: "request.headers[x]", values: PUT }] }] }'),
    'the spec of an AuthorizationPolicy': security('AuthorizationPolicy', 'PUT'),
    'headers.x.regex of a VirtualService': istio(
      'VirtualService',
      '{ hosts: [shop], http: [{ match: [{ headers: { x: { regex: PUT } } }], route: [{ destination: { host: shop } }] }] }',
    ),
    'jwtRules.fromHeaders of a RequestAuthentication': security(
      'RequestAuthentication',
      '{ jwtRules: [{ issuer: "https://a.test", jwks: "{}", fromHeaders: PUT }] }',
    ),
    'jwtRules.fromCookies of a RequestAuthentication': security(
      'RequestAuthentication',
      '{ jwtRules: [{ issuer: "https://a.test", jwks: "{}", fromCookies: PUT }] }',
    ),
    'jwtRules.outputClaimToHeaders of a RequestAuthentication': security(
      'RequestAuthentication',
      '{ jwtRules: [{ issuer: "https://a.test", jwks: "{}", outputClaimToHeaders: PUT }] }',
    ),
    'defaultEndpoint of a Sidecar': istio(
      'Sidecar',
      '{ ingress: [{ port: { number: 9080, protocol: HTTP, name: http }, defaultEndpoint: PUT }], egress: [{ hosts: ["*/*"] }] }',
    ),
    'match of an EnvoyFilter': istio(
      'EnvoyFilter',
      '{ configPatches: [{ applyTo: HTTP_FILTER, match: PUT, patch: { operation: INSERT_FIRST, value: { name: envoy.filters.http.grpc_web } } }] }',
      'v1alpha3',
    ),
    'match.listener of an EnvoyFilter': istio(
      'EnvoyFilter',
      '{ configPatches: [{ applyTo: HTTP_FILTER, match: { context: ANY, listener: PUT }, patch: { operation: INSERT_FIRST, value: { name: envoy.filters.http.grpc_web } } }] }',
      'v1alpha3',
    ),
    ...Object.fromEntries(
      [
        'tcp: { maxConnections: PUT }',
        ...['http1MaxPendingRequests', 'http2MaxRequests', 'maxRequestsPerConnection', 'maxRetries'].map((field) => `http: { ${field}: PUT }`),
      ].map((pool) => [`${pool} of a DestinationRule`, istio('DestinationRule', `{ host: shop, trafficPolicy: { connectionPool: { ${pool} } } }`)]),
    ),
    'tls.caCertificates of a Gateway': istio(
      'Gateway',
      '{ selector: { app: edge }, servers: [{ port: { number: 443, name: https, protocol: HTTPS }, hosts: ["*"], tls: { mode: MUTUAL, serverCertificate: /a, privateKey: /b, caCertificates: PUT } }] }',
    ),
  };
  for (const [place, yaml] of Object.entries(once))
    it(`do not stop a mesh with null, {}, [] or -1 as ${place}`, async () => {
      const valid = validObjects().resources.map(({ resource }, i) => storedOf(resource, i + 1));
      for (const value of ['null', '{}', '[]', '-1', '""']) {
        const { resources, problems } = decodeYaml(yaml.replace('PUT', value), 'once.yaml');
        assert.equal(resources.length + Number(problems.length > 0), 1, `${value}: refused with a reason, or accepted`);
        const accepted = resources.filter(({ resource }) => notEnforced(resource) === undefined);
        await attempt(readerOf([...valid, ...accepted.map(({ resource }, i) => storedOf(resource, valid.length + i + 1))]));
      }
    });
});

function istio(kind: string, spec: string, version = 'v1'): string {
  return `apiVersion: networking.istio.io/${version}\nkind: ${kind}\nmetadata: { name: once, namespace: default }\nspec: ${spec}\n`;
}
function security(kind: string, spec: string): string {
  return `apiVersion: security.istio.io/v1\nkind: ${kind}\nmetadata: { name: once, namespace: default }\nspec: ${spec}\n`;
}
function httpRoute(rule: string): string {
  return `apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: once, namespace: default }\nspec: { parentRefs: [{ kind: Service, group: "", name: shop }], rules: [${rule}] }\n`;
}
