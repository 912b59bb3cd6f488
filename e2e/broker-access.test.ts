import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createClient } from '@connectrpc/connect';
import { clearFaults, injectFault, internalErrors, logErrorsTo, silentLogger } from '@mizzen/common';
import { homeFiles } from '@mizzen/control';
import { brokerAccount } from '@mizzen/envoy-api';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { Broker } from '@mizzen/message/broker/broker';
import { BrokerServer } from '@mizzen/message/broker/broker-server';
import { EmbeddedDriver } from '@mizzen/message/brokers/embedded';
import { defaultLogSettings } from '@mizzen/message/log/partition-log';
import { BrokerMesh } from '../packages/cli/broker-mesh.ts';
import { call, until } from './support/http.ts';
import { citadelTransport, type Pair, signingRequest } from './support/identities.ts';
import { bindWorkload, TestMesh } from './support/mesh.ts';

/** A caller that comes past its sidecar: an identity, and the app id that it claims. */
interface Caller {
  readonly namespace: string;
  readonly account: string;
  readonly app: string;
}

const callers: readonly Caller[] = [
  { namespace: 'default', account: 'writer', app: 'writer' },
  { namespace: 'default', account: 'reader', app: 'reader' },
  { namespace: 'default', account: 'writer', app: 'reader' },
  { namespace: 'default', account: 'shared', app: 'twin-a' },
  { namespace: 'default', account: 'shared', app: 'twin-b' },
  { namespace: 'default', account: 'unbound', app: 'writer' },
  { namespace: 'default', account: 'edge', app: 'edge' },
  { namespace: 'other', account: 'writer', app: 'writer' },
];
const spaces = ['default/scoped', 'default/guarded', 'default/listed', 'default/none', 'other/scoped'];
const topics = ['open', 'secret', 'orders.eu'];
const yaml = `
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: scoped }
spec:
  type: pubsub.mizzen
  version: v1
  metadata:
  - { name: publishingScopes, value: "writer=open;reader=;twin-a=;twin-b=" }
  - { name: subscriptionScopes, value: "reader=secret;twin-a=;twin-b=open" }
  - { name: protectedTopics, value: secret }
  - { name: allowedTopics, value: open }
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: guarded }
spec: { type: pubsub.mizzen, version: v1 }
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: listed }
spec: { type: pubsub.mizzen, version: v1 }
scopes: [twin-a]
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: scoped, namespace: other }
spec: { type: pubsub.mizzen, version: v1 }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: allowed }
spec:
  targetRefs: [{ group: dapr.io, kind: Component, name: guarded }]
  rules:
  - from: [{ source: { principals: ["cluster.local/ns/default/sa/writer"] } }]
    to: [{ operation: { methods: [PUBLISH], paths: ["orders*"] } }]
  - from: [{ source: { principals: ["cluster.local/ns/default/sa/reader"] } }]
    to: [{ operation: { methods: [SUBSCRIBE] } }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: denied }
spec:
  targetRefs: [{ group: dapr.io, kind: Component, name: guarded }]
  action: DENY
  rules:
  - to: [{ operation: { paths: [secret] } }]
`;
/** All that is allowed, as `ACCOUNT:APP OPERATION SPACE|TOPIC`; written by hand from the objects above. Everything else is refused. */
const allowed = new Set([
  'default/writer:writer PUBLISH default/scoped|open',
  // No subscriptionScopes name the writer, so it has every topic that is neither protected nor missing in allowedTopics.
  'default/writer:writer SUBSCRIBE default/scoped|open',
  'default/reader:reader SUBSCRIBE default/scoped|secret',
  'default/shared:twin-b SUBSCRIBE default/scoped|open',
  'default/writer:writer PUBLISH default/guarded|orders.eu',
  'default/reader:reader SUBSCRIBE default/guarded|open',
  'default/reader:reader SUBSCRIBE default/guarded|orders.eu',
  ...topics.flatMap((topic) => ['PUBLISH', 'SUBSCRIBE'].map((operation) => `default/shared:twin-a ${operation} default/listed|${topic}`)),
  ...topics.flatMap((topic) => ['PUBLISH', 'SUBSCRIBE'].map((operation) => `other/writer:writer ${operation} other/scoped|${topic}`)),
]);

describe('the broker of a mesh, called past the sidecars with the certificates of workloads', () => {
  let mesh: TestMesh;
  let port: number;
  let folder: string;
  let configFile: string;
  let broker: Broker;
  let server: BrokerServer;
  let brokerMesh: BrokerMesh;
  const pairs = new Map<string, Pair>();

  const startBroker = async (): Promise<void> => {
    brokerMesh = new BrokerMesh(configFile, folder, silentLogger);
    await brokerMesh.start();
    const settings = { folder, log: { ...defaultLogSettings, syncs: false }, partitions: 1, maxTopics: 1_000, keepsUnadopted: true };
    broker = new Broker(settings, silentLogger);
    const connection = { host: '127.0.0.1', port, logger: silentLogger };
    server = new BrokerServer({ broker, ...connection, tls: () => brokerMesh.tls(), authorization: brokerMesh });
    brokerMesh.onTlsChanged(() => server.renewTls());
    await server.listen();
  };
  const stopBroker = async (): Promise<void> => {
    await server.close();
    await broker.close();
    await brokerMesh.close();
  };
  const writeConfig = async (control: string, { namespace, serviceAccount: name }: { namespace: string; serviceAccount: string } = brokerAccount) => {
    const tokenFile = join(mesh.home, `${name}.broker-token`);
    writeFileSync(tokenFile, (await mesh.plane.tokens.issue(namespace, name, [], 3_600)).token);
    const identity = { type: 'sidecar', name, namespace, workload: name, serviceAccount: name, labels: {}, trustDomain: 'cluster.local', address: '127.0.0.1' };
    writeFileSync(configFile, JSON.stringify({ ...identity, control, rootCertificateFile: homeFiles(mesh.home).rootCertificate, tokenFile }));
  };
  const certificateFor = async (namespace: string, account: string): Promise<Pair> => {
    const { csr, key } = await signingRequest();
    const { token } = await mesh.plane.tokens.issue(namespace, account, [], 600);
    const client = createClient(IstioCertificateService, citadelTransport(mesh));
    const { certChain } = await client.createCertificate({ csr }, { headers: { authorization: `Bearer ${token}` } });
    return { cert: certChain.slice(0, -1).join('\n'), key };
  };
  const connect = ({ namespace, account, app }: Caller, space: string) => {
    const tls = () => ({ ...pairs.get(`${namespace}/${account}`)!, rejectUnauthorized: false });
    return new EmbeddedDriver({ host: '127.0.0.1', port, logger: silentLogger, tls, space, appId: app });
  };
  const ready = (driver: EmbeddedDriver) =>
    until(
      'connected',
      async () => driver.problem(),
      (problem) => problem === undefined,
    );
  const message = ({ namespace, account }: Caller) => ({
    ...{ key: '', body: Buffer.from('x'), delayMs: 0, ttlMs: 0 },
    headers: { 'x-mizzen-publisher': `spiffe://cluster.local/ns/${namespace}/sa/${account}` },
  });
  const nameOf = ({ namespace, account, app }: Caller) => `${namespace}/${account}:${app}`;
  const request = (topic: string, group: string) => ({ topic, group, maxInFlight: 10, from: 'earliest' as const });
  const revoke = (identity: string) =>
    call({
      ...{ port: mesh.plane.apiPort, path: '/mizzen/v1/ca/revoke', method: 'POST', tls: { rejectUnauthorized: false } },
      headers: { authorization: `Bearer ${readFileSync(homeFiles(mesh.home).adminToken, 'utf8').trim()}`, 'content-type': 'application/json' },
      body: JSON.stringify({ identity }),
    });

  before(async () => {
    logErrorsTo(silentLogger);
    mesh = await TestMesh.start();
    port = await mesh.ports.next();
    folder = join(mesh.home, 'broker');
    mkdirSync(folder);
    configFile = join(mesh.home, 'broker.json');
    const object = (apiVersion: string, kind: string, name: string) => `apiVersion: ${apiVersion}\nkind: ${kind}\nmetadata: { name: ${name} }\n---\n`;
    await mesh.apply(object('v1', 'Namespace', 'other'));
    await mesh.apply(yaml);
    for (const [name, serviceAccount, more] of [
      ['writer', 'writer', {}],
      ['reader', 'reader', {}],
      ['twin-a', 'shared', {}],
      ['twin-b', 'shared', {}],
      ['edge', 'edge', { type: 'gateway' as const }],
      ['writer', 'writer', { namespace: 'other' }],
    ] as const)
      await bindWorkload(mesh.plane, { name, serviceAccount, ...more });
    for (const { namespace, account } of callers) pairs.set(`${namespace}/${account}`, await certificateFor(namespace, account));
    await writeConfig(`127.0.0.1:${mesh.plane.xdsPort}`);
    await startBroker();
    await mesh.plane.pilot.refresh();
    await mesh.synced();
  });
  after(async () => {
    await stopBroker();
    await mesh.close();
  });

  /** What every caller may do with every topic of every Component, found out by doing it. */
  const tryAll = async (): Promise<Set<string>> => {
    const done = new Set<string>();
    await Promise.all(
      callers.flatMap((caller) =>
        spaces.map(async (space) => {
          const driver = connect(caller, space);
          await ready(driver);
          await Promise.all(
            topics.map(async (topic) => {
              const [problem] = await driver.publish(topic, [message(caller)]);
              if (problem === undefined) done.add(`${nameOf(caller)} PUBLISH ${space}|${topic}`);
              else assert.match(problem, /^PERMISSION_DENIED: /);
              const result = await driver
                .subscribe(request(topic, `own-${caller.account}`), (delivery) => delivery.ack())
                .then(
                  () => '',
                  (error: Error) => error.message,
                );
              if (result === '') done.add(`${nameOf(caller)} SUBSCRIBE ${space}|${topic}`);
              else assert.match(result, /^PERMISSION_DENIED: /);
            }),
          );
          await driver.close();
        }),
      ),
    );
    return done;
  };
  const sorted = (set: ReadonlySet<string>) => [...set].sort();

  it('lets every identity do with every topic what its Component and its policies allow, and nothing else', async () => {
    assert.deepEqual(sorted(await tryAll()), sorted(allowed));
  });

  it('shows and replays to every identity the groups that are its own, of topics that it may read, and refuses every other question', async () => {
    const groups = [...allowed].flatMap((line) => {
      const [, account, fullName] = /^(?:default|other)\/([^:]+):\S+ SUBSCRIBE (.*)$/.exec(line) ?? [];
      return account === undefined ? [] : [{ fullName: fullName!, group: `own-${account}` }];
    });
    const tryOne = async (caller: Caller) => {
      const driver = connect(caller, spaces[0]!);
      await ready(driver);
      const { topics: seen } = (await driver.ask({ what: 'stats' })) as { topics: { topic: string; groups: { group: string }[] }[] };
      const visible = new Set(seen.flatMap(({ topic, groups: own }) => own.map(({ group }) => `${topic} ${group}`)));
      const own = groups.filter(({ fullName, group }) => group === `own-${caller.account}` && allowed.has(`${nameOf(caller)} SUBSCRIBE ${fullName}`));
      assert.deepEqual(sorted(visible), sorted(new Set(own.map(({ fullName, group }) => `${fullName} ${group}`))), nameOf(caller));
      for (const { fullName, group } of groups) {
        const answer = driver.ask({ what: 'replay', topic: fullName, group, offset: 0 });
        if (own.some((one) => one.fullName === fullName && one.group === group)) await answer;
        else await assert.rejects(answer, /^Error: PERMISSION_DENIED: /, `${nameOf(caller)} ${fullName} ${group}`);
      }
      for (const question of [
        { what: 'adopt', topic: 'open', component: 'default/scoped' },
        { what: 'delete', topic: groups[0]!.fullName },
        { what: 'stats\0' },
      ])
        await assert.rejects(driver.ask(question));
      await driver.close();
    };
    await Promise.all(callers.map(tryOne));
  });

  it('gives a group that has the name of an application to that application alone, also before it has come', async () => {
    const writer = connect(callers[0]!, 'default/scoped');
    for (const group of ['reader', 'twin-b'])
      await assert.rejects(
        writer.subscribe(request('open', group), () => {}),
        /belongs to another workload/,
      );
    const twin = connect(callers[4]!, 'default/scoped');
    await (await twin.subscribe(request('open', 'twin-b'), () => {})).close();
    await writer.close();
    await twin.close();
  });

  it('closes a subscription at once when its access is withdrawn, with the reason, and publishing with it', async () => {
    const [writer, reader] = [connect(callers[0]!, 'default/guarded'), connect(callers[1]!, 'default/guarded')];
    const received: string[] = [];
    const ended = new Promise<string>((resolve) => {
      void reader.subscribe(
        request('orders.eu', 'reader'),
        (delivery) => {
          received.push(delivery.body.toString());
          delivery.ack();
        },
        resolve,
      );
    });
    const publish = async (body: string) => (await writer.publish('orders.eu', [{ ...message(callers[0]!), body: Buffer.from(body) }]))[0];
    assert.equal(await publish('before'), undefined);
    await until('it arrives', async () => received.includes('before'), Boolean);
    await mesh.apply(`apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: withdrawn }
spec:
  targetRefs: [{ group: dapr.io, kind: Component, name: guarded }]
  action: DENY
  rules: [{ from: [{ source: { principals: ["cluster.local/ns/default/sa/reader"] } }] }]
`);
    assert.match(await ended, /^PERMISSION_DENIED: AuthorizationPolicy default\/withdrawn denies it/);
    assert.equal(await publish('after'), undefined);
    await assert.rejects(
      reader.subscribe(request('orders.eu', 'reader'), () => {}),
      /PERMISSION_DENIED/,
    );
    assert.equal(received.includes('after'), false);
    await writer.close();
    await reader.close();
  });

  it('enforces the same when it starts without a control plane, from a file that it alone can read', async () => {
    await stopBroker();
    assert.equal(statSync(join(folder, 'mesh.state')).mode & 0o777, 0o600);
    await writeConfig(`127.0.0.1:${await mesh.ports.next()}`);
    await startBroker();
    const expected = new Set([...allowed].filter((line) => !line.includes('reader:reader SUBSCRIBE default/guarded')));
    assert.deepEqual(sorted(await tryAll()), sorted(expected));
    await stopBroker();
    await writeConfig(`127.0.0.1:${mesh.plane.xdsPort}`);
    await startBroker();
  });

  it('gets its certificate and serves when its own code has thrown', async () => {
    await stopBroker();
    rmSync(join(folder, 'mesh.state'));
    injectFault('broker.mesh', 1);
    await startBroker();
    clearFaults();
    assert.equal(internalErrors().get('broker.mesh'), 1);
    const writer = connect(callers[0]!, 'default/scoped');
    await ready(writer);
    assert.deepEqual(await writer.publish('open', [message(callers[0]!)]), [undefined]);
    await writer.close();
  });

  it('sends its policies to no other account, and does not serve without them', async () => {
    await writeConfig(`127.0.0.1:${mesh.plane.xdsPort}`, { namespace: 'default', serviceAccount: 'writer' });
    const other = join(mesh.home, 'other-broker');
    mkdirSync(other);
    const impostor = new BrokerMesh(configFile, other, silentLogger);
    const started = impostor.start().then(() => 'ready');
    await until(
      'it has been answered',
      async () => mesh.plane.pilot.proxies().find(({ serviceAccount }) => serviceAccount === 'writer')?.types['broker-policy']?.state,
      (state) => state === 'synced',
    );
    assert.equal(impostor.access.isKnown, false);
    assert.equal(await Promise.race([started, Promise.resolve('waiting')]), 'waiting');
    await impostor.close();
    await writeConfig(`127.0.0.1:${mesh.plane.xdsPort}`);
  });

  it('closes the connections of a certificate that is revoked, takes no new ones, and keeps those of others', async () => {
    const [lost, kept] = [connect(callers[3]!, 'default/listed'), connect(callers[0]!, 'default/scoped')];
    await ready(lost);
    await ready(kept);
    assert.equal((await revoke('spiffe://cluster.local/ns/default/sa/shared')).status, 200);
    await until(
      'closed',
      async () => lost.problem(),
      (problem) => problem !== undefined,
    );
    const again = connect(callers[3]!, 'default/listed');
    await until(
      'refused',
      async () => again.problem() ?? '',
      (problem) => /cannot be reached/.test(problem),
    );
    assert.equal(kept.problem(), undefined);
    assert.equal((await kept.publish('open', [message(callers[0]!)]))[0], undefined);
    for (const driver of [lost, kept, again]) await driver.close();
  });

  it('is refused by sidecars when its certificate is revoked', async () => {
    const { namespace, serviceAccount } = brokerAccount;
    const pair = await certificateFor(namespace, serviceAccount);
    const ca = readFileSync(homeFiles(mesh.home).rootCertificate, 'utf8');
    const serve = async (at: number) => {
      const started = new BrokerServer({ broker, host: '127.0.0.1', port: at, logger: silentLogger, tls: () => ({ ...pair, ca }) });
      await started.listen();
      return started;
    };
    let other = await serve(0);
    const { port: otherPort } = other;
    await mesh.apply(`apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: pinned }
spec: { type: pubsub.mizzen, version: v1, metadata: [{ name: address, value: "127.0.0.1:${otherPort}" }] }
`);
    const httpPort = await mesh.ports.next();
    await mesh.proxy('pinned', { registers: true, messaging: { appId: 'pinned', httpPort, grpcPort: await mesh.ports.next() } });
    const publish = () => call({ port: httpPort, method: 'POST', path: '/v1.0/publish/pinned/t', body: '{}' });
    await until('it publishes', publish, ({ status }) => status === 204);
    assert.equal((await revoke(`spiffe://cluster.local/ns/${namespace}/sa/${serviceAccount}`)).status, 200);
    await mesh.plane.pilot.refresh();
    await mesh.synced();
    await other.close();
    other = await serve(otherPort);
    const health = () => call({ port: httpPort, path: '/v1.0/healthz/outbound' });
    await until('it is refused', health, ({ status, body }) => status === 500 && /the certificate of the mesh's broker is revoked/.test(body));
    assert.equal((await publish()).status, 500);
    await other.close();
  });
});
