import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, beforeEach, describe, it } from 'node:test';
import tls from 'node:tls';
import { create, fromBinary } from '@bufbuild/protobuf';
import { silentLogger } from '@mizzen/common';
import { type Init, packAny } from '@mizzen/envoy-api';
import { Cluster_DiscoveryType, ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { ClusterLoadAssignmentSchema } from '@mizzen/envoy-api/gen/envoy/config/endpoint/v3/endpoint_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { HttpConnectionManagerSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { DownstreamTlsContextSchema, UpstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { CredentialPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { Engine } from '../engine.ts';
import { defaultOverloadSettings } from '../overload/overload-manager.ts';
import { unknownPeer } from '../telemetry/peer-metadata.ts';
import { ClientTls } from '../tls/client-tls.ts';
import { plainSocket, proxyProtocolTransport, tlsTransport } from '../upstream/transport.ts';
import { AwaitedSecrets } from './awaited-secrets.ts';

const cluster = (serviceName: string, more: Init<typeof ClusterSchema> = {}) =>
  packAny(ClusterSchema, { name: 'c', clusterDiscoveryType: { case: 'type', value: Cluster_DiscoveryType.EDS }, edsClusterConfig: { serviceName }, ...more });
const endpoints = (clusterName: string, port: number) =>
  packAny(ClusterLoadAssignmentSchema, {
    clusterName,
    endpoints: [
      {
        lbEndpoints: [
          {
            hostIdentifier: {
              case: 'endpoint',
              value: { address: { address: { case: 'socketAddress', value: { address: '127.0.0.1', portSpecifier: { case: 'portValue', value: port } } } } },
            },
          },
        ],
      },
    ],
  });
const manager = (routeConfigName: string) => ({
  name: 'envoy.filters.network.http_connection_manager',
  configType: {
    case: 'typedConfig' as const,
    value: packAny(HttpConnectionManagerSchema, {
      statPrefix: 'in',
      routeSpecifier: { case: 'rds', value: { routeConfigName } },
      httpFilters: [{ name: 'envoy.filters.http.router' }],
    }),
  },
});
const listener = (routeName: string, chain: object = {}) =>
  packAny(ListenerSchema, {
    name: 'in',
    address: { address: { case: 'socketAddress', value: { address: '127.0.0.1', portSpecifier: { case: 'portValue', value: 0 } } } },
    filterChains: [{ filters: [manager(routeName)], ...chain }],
  });
const routes = (name: string) => packAny(RouteConfigurationSchema, { name, virtualHosts: [{ name: 'all', domains: ['*'] }] });

describe('warming', () => {
  let engine: Engine;
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-warming-'));
  beforeEach(async () => {
    await engine?.close(0, 0);
    engine = new Engine({
      self: unknownPeer,
      selfId: 'test',
      overload: defaultOverloadSettings,
      opensListeners: true,
      reusesPort: false,
      expectsSockets: false,
      drainMs: 0,
      logger: silentLogger,
    });
  });
  after(async () => {
    await engine.close(0, 0);
    rmSync(folder, { recursive: true, force: true });
  });
  const ports = () => engine.state.clusters().flatMap((found) => found.endpoints.map((endpoint) => endpoint.port));

  it('gives a cluster traffic when its endpoints have come', () => {
    engine.accept('listener', []);
    engine.accept('cluster', [cluster('a')]);
    assert.deepEqual(engine.state.clusters(), []);
    assert.match(engine.state.notReadyReason, /cluster c waits for its endpoints/);
    assert.deepEqual(engine.state.wanted('endpoint'), ['a']);
    engine.accept('endpoint', [endpoints('a', 1)]);
    assert.deepEqual(ports(), [1]);
    assert.equal(engine.state.isReady, true);
  });

  it('keeps the old form of a cluster until the new one has all it needs, and then touches nothing else', () => {
    engine.accept('cluster', [cluster('a')]);
    engine.accept('endpoint', [endpoints('a', 1)]);
    const [old] = engine.state.clusters();
    engine.accept('cluster', [cluster('b')]);
    assert.equal(engine.state.clusters()[0], old);
    assert.deepEqual(engine.state.wanted('endpoint'), ['a', 'b']);
    engine.accept('endpoint', [endpoints('a', 1), endpoints('b', 2)]);
    assert.deepEqual(ports(), [2]);
    const [current] = engine.state.clusters();
    engine.accept('cluster', [cluster('b')]);
    assert.equal(engine.state.clusters()[0], current, 'the same cluster stays the same object');
    engine.accept('cluster', [cluster('b', { maxRequestsPerConnection: 5 })]);
    assert.deepEqual(ports(), [2], 'what is known of its endpoints is used at once');
  });

  it('puts routes into effect when their secrets have come, and asks for the secrets by name', () => {
    const withSecret = (secret: string) =>
      packAny(RouteConfigurationSchema, {
        name: 'one',
        virtualHosts: [
          {
            name: secret,
            domains: ['*'],
            routes: [
              {
                match: { pathSpecifier: { case: 'prefix', value: '/' } },
                action: { case: 'route', value: { clusterSpecifier: { case: 'cluster', value: 'c' } } },
                typedPerFilterConfig: {
                  'mizzen.filters.http.credential_injector': packAny(CredentialPerRouteSchema, { header: 'authorization', value: { name: secret } }),
                },
              },
            ],
          },
        ],
      });
    const bring = (name: string) =>
      engine.accept('secret', [
        packAny(SecretSchema, { name, type: { case: 'genericSecret', value: { secret: { specifier: { case: 'inlineString', value: 'x' } } } } }),
      ]);
    engine.accept('cluster', []);
    engine.accept('listener', [listener('one')]);
    engine.accept('route', [withSecret('mizzen://a')]);
    assert.deepEqual(engine.state.openListeners(), []);
    assert.match(engine.state.notReadyReason, /route table one waits for mizzen:\/\/a/);
    assert.deepEqual(engine.state.wanted('secret'), ['ROOTCA', 'mizzen://a']);
    bring('mizzen://a');
    assert.equal(engine.state.openListeners().length, 1);
    const hostOf = () => engine.state.routeTable('one')?.findHost('any')?.name;
    assert.equal(hostOf(), 'mizzen://a');
    engine.accept('route', [withSecret('mizzen://b')]);
    assert.equal(hostOf(), 'mizzen://a', 'the routes before serve until the secret is there');
    assert.deepEqual(engine.state.wanted('secret'), ['ROOTCA', 'mizzen://a', 'mizzen://b']);
    bring('mizzen://b');
    assert.equal(hostOf(), 'mizzen://b');
    assert.deepEqual(engine.state.wanted('secret'), ['ROOTCA', 'mizzen://b']);
  });

  it('does not wait for a secret for ever, and not again for one that never came', () => {
    const logged: string[] = [];
    const awaited = new AwaitedSecrets(engine.secrets, { error: (message, fields) => void logged.push(`${message} ${JSON.stringify(fields)}`) });
    assert.deepEqual(awaited.missing(['mizzen://late'], 0), ['mizzen://late']);
    assert.deepEqual(awaited.missing(['mizzen://late'], 14_999), ['mizzen://late']);
    assert.equal(awaited.isWaiting, true);
    assert.deepEqual(awaited.missing(['mizzen://late'], 15_000), []);
    assert.equal(awaited.isWaiting, false);
    assert.deepEqual(awaited.missing(['mizzen://late'], 15_001), []);
    assert.equal(logged.length, 1);
    assert.match(logged[0]!, /a secret has not arrived: requests that need it are refused.*mizzen:\/\/late/);
  });

  it('opens a listener when its routes have come, and changes it only when the new ones have', async () => {
    engine.accept('cluster', []);
    engine.accept('listener', [listener('one')]);
    assert.deepEqual(engine.state.openListeners(), []);
    engine.accept('route', [routes('one')]);
    await engine.ready;
    const [open] = engine.state.openListeners();
    const before = open!.config;
    engine.accept('listener', [listener('two')]);
    assert.equal(open!.config, before);
    engine.accept('route', [routes('two')]);
    assert.notEqual(open!.config, before);
    assert.equal(engine.state.openListeners()[0], open, 'the socket is the same');
  });

  it('opens no port before the clusters that it came with are warm, and does not wait for later ones', async () => {
    engine.accept('listener', [listener('one')]);
    engine.accept('route', [routes('one')]);
    assert.deepEqual(engine.state.openListeners(), [], 'no cluster is known yet');
    engine.accept('cluster', [cluster('a')]);
    assert.deepEqual(engine.state.openListeners(), [], 'the cluster waits for its endpoints');
    engine.accept('endpoint', [endpoints('a', 1)]);
    await engine.ready;
    assert.equal(engine.state.openListeners().length, 1);
    engine.accept('cluster', [cluster('a'), cluster('b', { name: 'later' })]);
    assert.equal(engine.state.openListeners().length, 1);
  });

  it('opens a TLS listener when its certificate has come', async () => {
    const [cert, key] = [join(folder, 'cert.pem'), join(folder, 'key.pem')];
    execFileSync(
      'openssl',
      ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=x', '-keyout', key, '-out', cert],
      { stdio: 'ignore' },
    );
    const transportSocket = {
      name: 'envoy.transport_sockets.tls',
      configType: {
        case: 'typedConfig' as const,
        value: packAny(DownstreamTlsContextSchema, { commonTlsContext: { tlsCertificateSdsSecretConfigs: [{ name: 'server' }] } }),
      },
    };
    engine.accept('cluster', []);
    engine.accept('listener', [listener('one', { transportSocket })]);
    engine.accept('route', [routes('one')]);
    assert.deepEqual(engine.state.openListeners(), []);
    assert.match(engine.state.notReadyReason, /listener in waits for server/);
    assert.ok(engine.state.wanted('secret').includes('server'));
    const text = (path: string) => ({ specifier: { case: 'inlineString' as const, value: readFileSync(path, 'utf8') } });
    engine.accept('secret', [
      packAny(SecretSchema, { name: 'server', type: { case: 'tlsCertificate', value: { certificateChain: text(cert), privateKey: text(key) } } }),
    ]);
    await engine.ready;
    assert.equal(engine.state.openListeners().length, 1);
  });

  it('drops a secret that is withdrawn: its TLS server refuses handshakes, and the listener still takes updates', async () => {
    const [cert, key] = [join(folder, 'withdrawn.pem'), join(folder, 'withdrawn-key.pem')];
    const request = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=x', '-keyout', key, '-out', cert];
    execFileSync('openssl', request, { stdio: 'ignore' });
    const transportSocket = {
      name: 'envoy.transport_sockets.tls',
      configType: {
        case: 'typedConfig' as const,
        value: packAny(DownstreamTlsContextSchema, { commonTlsContext: { tlsCertificateSdsSecretConfigs: [{ name: 'server' }] } }),
      },
    };
    const text = (path: string) => ({ specifier: { case: 'inlineString' as const, value: readFileSync(path, 'utf8') } });
    const pair = packAny(SecretSchema, { name: 'server', type: { case: 'tlsCertificate', value: { certificateChain: text(cert), privateKey: text(key) } } });
    const handshake = async () => {
      const [open] = engine.state.servers();
      const socket = tls.connect({ port: (open!.address() as AddressInfo).port, host: '127.0.0.1', rejectUnauthorized: false });
      return new Promise<string>((resolve) => {
        socket.on('secureConnect', () => resolve('secure'));
        socket.on('error', () => {});
        socket.on('close', () => resolve('closed'));
      }).finally(() => socket.destroy());
    };
    engine.accept('cluster', []);
    engine.accept('listener', [listener('one', { transportSocket })]);
    engine.accept('route', [routes('one')]);
    engine.accept('secret', [pair]);
    await engine.ready;
    assert.equal(await handshake(), 'secure');
    engine.accept('secret', [packAny(SecretSchema, { name: 'server' })]);
    assert.equal(engine.secrets.keyPair('server'), undefined);
    assert.equal(await handshake(), 'closed');
    const [open] = engine.state.openListeners();
    const before = open!.config;
    engine.accept('listener', [listener('one', { transportSocket, name: 'changed' })]);
    assert.notEqual(open!.config, before, 'what else the listener serves can change');
    engine.accept('secret', [pair]);
    assert.equal(await handshake(), 'secure', 'the secret is granted again');
    for (const name of ['ROOTCA', 'default']) assert.throws(() => engine.accept('secret', [packAny(SecretSchema, { name })]), /it has no content/);
    engine.secrets.setGeneric('mizzen://a', Buffer.from('x'));
    engine.accept('secret', [packAny(SecretSchema, { name: 'mizzen://a' })]);
    assert.equal(engine.secrets.generic('mizzen://a'), undefined);
  });

  it('waits for the certificate of one TLS server no longer than for any secret, so that the others are served', () => {
    const logger = { error: () => {} };
    const awaited = new AwaitedSecrets(engine.secrets, logger);
    assert.deepEqual(awaited.missing(['kubernetes://shop/none'], 0), ['kubernetes://shop/none']);
    assert.deepEqual(awaited.missing(['kubernetes://shop/none'], 15_000), []);
    assert.deepEqual(
      [awaited.missing(['default', 'ROOTCA'], 0), awaited.missing(['default', 'ROOTCA'], 60_000)],
      [
        ['default', 'ROOTCA'],
        ['default', 'ROOTCA'],
      ],
    );
  });

  it('makes no TLS connection without the certificate and the roots that its configuration names', async () => {
    const secrets = engine.secrets;
    for (const name of ['client', 'roots']) {
      const common = {
        tlsCertificateSdsSecretConfigs: name === 'client' ? [{ name: 'client' }] : [],
        ...(name === 'roots' ? { validationContextType: { case: 'validationContextSdsSecretConfig' as const, value: { name: 'roots' } } } : {}),
      };
      const client = new ClientTls(create(UpstreamTlsContextSchema, { sni: 'public.example', commonTlsContext: common }), secrets, 'cluster c');
      for (const transport of [tlsTransport(client, plainSocket), proxyProtocolTransport(1, client, plainSocket)]) {
        const socket = transport.connect({ address: '127.0.0.1', port: 9, unixPath: undefined }, 'http');
        const [error] = (await once(socket, 'error')) as [Error];
        assert.match(error.message, new RegExp(`the secret ${name} has not arrived`));
      }
    }
  });

  it('refuses a field that nothing acts on, by its name, and keeps what it has', () => {
    engine.accept('cluster', [cluster('a')]);
    engine.accept('endpoint', [endpoints('a', 1)]);
    assert.throws(
      () => engine.accept('cluster', [cluster('a', { lbSubsetConfig: { scaleLocalityWeight: true } })]),
      /cluster c: lb_subset_config of Cluster is not supported/,
    );
    assert.deepEqual(ports(), [1]);
  });

  it('accepts the resources of an update one by one, and keeps the last good version of those that it refuses', () => {
    const good = (name: string, port: number) =>
      packAny(ListenerSchema, {
        name,
        address: { address: { case: 'socketAddress', value: { address: '127.0.0.1', portSpecifier: { case: 'portValue', value: port } } } },
        filterChains: [{ filters: [manager('r')] }],
      });
    const bad = (name: string) => packAny(ListenerSchema, { name, filterChains: [{ filters: [{ name: 'envoy.filters.network.unknown' }] }] });
    const names = () => engine.state.dump('listener').map((any) => fromBinary(ListenerSchema, any.value).name);
    assert.throws(() => engine.accept('listener', [good('a', 0), bad('b'), good('c', 0), bad('d')]), /b.*; .*d/s);
    assert.deepEqual(names(), ['a', 'c']);
    const kept = engine.state.dump('listener')[0];
    assert.throws(() => engine.accept('listener', [bad('a'), good('e', 0)]), /a/);
    assert.deepEqual(names(), ['a', 'e'], 'c is removed, a stays as it was');
    assert.equal(engine.state.dump('listener')[0], kept);
    // An unreadable resource has no name: no listener may be taken for removed.
    assert.throws(() => engine.accept('listener', [{ ...good('f', 0), value: Buffer.from([0xff, 0xff]) }]), /cannot be read/);
    assert.deepEqual(names(), ['a', 'e']);

    const clusterNames = () => engine.state.dump('cluster').map((any) => fromBinary(ClusterSchema, any.value).name);
    assert.throws(
      () =>
        engine.accept('cluster', [
          cluster('x', { name: 'x' }),
          cluster('y', { name: 'y', circuitBreakers: { thresholds: [{ priority: 99 as never }] }, lbPolicy: 99 as never }),
        ]),
      /y/,
    );
    assert.deepEqual(clusterNames(), ['x']);
    assert.throws(
      () =>
        engine.accept('route', [routes('r'), packAny(RouteConfigurationSchema, { name: 's', virtualHosts: [{ name: 'v', domains: ['*'], routes: [{}] }] })]),
      /s/,
    );
    assert.equal(engine.state.dump('route').length, 1);
  });
});
