import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { Logger, silentLogger } from '@mizzen/common';
import { PeerValidity } from '@mizzen/common/peer-validity';
import type { BrokerPolicy } from '@mizzen/envoy-api';
import { defaultLogSettings } from '../log/partition-log.ts';
import { encodeRecord } from '../log/record.ts';
import { BrokerAccess } from '../policy/broker-access.ts';
import { Broker } from './broker.ts';
import { BrokerServer } from './broker-server.ts';
import { type Cursor, deniedPrefix, FrameBuilder, FrameReader, frameKind, textBytes } from './frames.ts';

const account = (namespace: string, name: string) => `spiffe://td/ns/${namespace}/sa/${name}`;
const policyOf = (spaces: readonly string[], apps: readonly string[] = ['a/x', 'b/y']): BrokerPolicy => ({
  components: spaces.map((space) => {
    const [namespace = '', name = ''] = space.split('/');
    return { namespace, name, type: 'pubsub.mizzen', metadata: {}, scopes: [], topicPolicies: [] };
  }),
  apps: apps.map((app) => {
    const [namespace = '', appId = ''] = app.split('/');
    return { namespace, appId, serviceAccount: appId };
  }),
});
const recordOf = (headers: object) => encodeRecord({ key: '', headers: JSON.stringify(headers), body: Buffer.from('x'), deliverAtMs: 0 });

describe('the server of a broker in a mesh', () => {
  let folder: string;
  let broker: Broker;
  let server: BrokerServer;
  let access: BrokerAccess;
  let identity: string;
  const lines: string[] = [];
  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-server-'));
    lines.length = 0;
    broker = new Broker(
      { folder, log: { ...defaultLogSettings, syncs: false }, partitions: 1, maxTopics: 100, maxTopicsOfComponent: 3, keepsUnadopted: true },
      silentLogger,
    );
    access = new BrokerAccess();
    identity = account('a', 'x');
    server = new BrokerServer({
      ...{ broker, host: '127.0.0.1', port: 0, logger: new Logger('t', 'error', (line) => lines.push(line)) },
      authorization: {
        identityOf: () => identity,
        isOperator: () => false,
        validity: new PeerValidity({ isRevoked: () => false, isTrustedDomain: () => true }),
        access,
      },
    });
    await server.listen();
  });
  afterEach(async () => {
    await server.close();
    await broker.close();
    rmSync(folder, { recursive: true, force: true });
  });

  /** A client of the protocol itself. */
  const connect = async () => {
    const socket = net.connect(server.port, '127.0.0.1');
    await once(socket, 'connect');
    const reader = new FrameReader();
    const frames: { readonly kind: number; readonly content: Cursor }[] = [];
    const waiting: ((frame: (typeof frames)[number]) => void)[] = [];
    socket.on('data', (chunk: Buffer) => {
      reader.read(Buffer.from(chunk), (kind, content) => {
        const next = waiting.shift();
        if (next === undefined) frames.push({ kind, content });
        else next({ kind, content });
      });
    });
    return {
      socket,
      next: () => new Promise<(typeof frames)[number]>((resolve) => (frames.length > 0 ? resolve(frames.shift()!) : waiting.push(resolve))),
      publish(topic: string, headers: object) {
        const record = recordOf(headers);
        socket.write(new FrameBuilder(frameKind.publish, 4 + textBytes(topic) + 4, record.length).u32(1).text(topic).u32(1).done());
        socket.write(record);
      },
      hello(appId: string | undefined) {
        const version = appId === undefined ? 1 : 2;
        const frame = new FrameBuilder(frameKind.hello, 1 + (appId === undefined ? 0 : textBytes(appId))).u8(version);
        socket.write((appId === undefined ? frame : frame.text(appId)).done());
      },
    };
  };
  /** The problem of the next answer; '': it is a success. */
  const answer = async ({ next }: Awaited<ReturnType<typeof connect>>) => {
    const { kind, content } = await next();
    assert.equal(kind, frameKind.published);
    content.u32();
    return content.text();
  };
  const own = () => ({ 'x-mizzen-publisher': identity });
  const topics = () =>
    broker
      .stats()
      .map(({ topic }) => topic)
      .sort();
  const until = async (what: string, holds: () => boolean) => {
    for (let turn = 0; turn < 2_000 && !holds(); turn++) await new Promise((resolve) => setTimeout(resolve, 1));
    assert.ok(holds(), what);
  };

  it('refuses everything until it has received policies, and welcomes a workload as soon as its app id is known', async () => {
    const client = await connect();
    client.hello('x');
    client.publish('a/c|t', own());
    assert.match(await answer(client), new RegExp(`^${deniedPrefix}the broker has received no policies`));
    access.use(policyOf(['a/c']));
    assert.equal((await client.next()).kind, frameKind.welcome);
    client.publish('a/c|t', own());
    assert.equal(await answer(client), '');
    client.socket.destroy();
  });

  it('serves sidecars of earlier versions the topics of the only Component of their namespace', async () => {
    access.use(policyOf(['a/c', 'b/c']));
    const client = await connect();
    client.hello(undefined);
    assert.equal((await client.next()).kind, frameKind.welcome);
    client.publish('t', own());
    assert.equal(await answer(client), '');
    assert.deepEqual(topics(), ['a/c|t']);
    access.use(policyOf(['a/c', 'a/d']));
    client.publish('t', own());
    assert.match(await answer(client), /names no Component: upgrade it/);
    client.socket.destroy();
  });

  it('serves no frame before hello more than after it, and ends the connection of one that cannot be read alone', async () => {
    access.use(policyOf(['a/c'], ['a/other']));
    const [client, other] = [await connect(), await connect()];
    client.publish('a/c|t', own());
    assert.match(await answer(client), /binds an application to/);
    client.socket.write(new FrameBuilder(frameKind.subscribe, 2).u16(7).done());
    await once(client.socket, 'close');
    other.hello('none');
    other.publish('a/c|t', own());
    assert.match(await answer(other), /^PERMISSION_DENIED: /);
    other.socket.destroy();
  });

  it('gives one Component no more topics than maxTopicsOfComponent, and leaves the others theirs', async () => {
    access.use(policyOf(['a/c', 'a/d']));
    const client = await connect();
    client.hello('x');
    await client.next();
    const problems: string[] = [];
    for (const topic of ['a/c|1', 'a/c|2', 'a/c|3', 'a/c|4', 'a/c|1', 'a/d|1']) {
      client.publish(topic, own());
      problems.push(await answer(client));
    }
    assert.match(problems[3]!, /the Component a\/c has 3 topics already.*maxTopicsOfComponent/);
    assert.deepEqual(
      problems.map((problem) => problem === ''),
      [true, true, true, false, true, true],
    );
    client.socket.destroy();
  });

  it('keeps topics of earlier versions while several Components could be meant, and gives them to the only one', async () => {
    const publish = (topic: string) => new Promise((resolve) => broker.publish(topic, [recordOf({})], [''], resolve));
    for (const topic of ['orders', 'plain']) await publish(topic);
    const member = { credit: 1, isWritable: true, deliver: () => {} };
    broker.join('orders', 'g', 'earliest', member, { identity: account('b', 'y'), ownershipOf: () => 'free' }).leave();
    access.use(policyOf(['a/c', 'b/d']));
    await until('they are reported', () => lines.filter((line) => /waits for its Component: it may be of a\/c, b\/d/.test(line)).length === 2);
    assert.deepEqual(topics(), ['orders', 'plain']);
    access.use(policyOf(['a/c']));
    await until('they are adopted', () => topics().includes('a/c|plain'));
    assert.deepEqual(topics(), ['a/c|orders', 'a/c|plain']);
    assert.equal(broker.stats().find(({ topic }) => topic === 'a/c|orders')!.groups[0]!.lag, 1);
  });
});
