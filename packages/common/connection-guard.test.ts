import assert from 'node:assert/strict';
import { once } from 'node:events';
import net, { type AddressInfo, type Server, type Socket } from 'node:net';
import { after, describe, it } from 'node:test';
import { ConnectionGuard, type ConnectionLimits, peerOf } from './connection-guard.ts';
import { PendingRequests } from './pending-requests.ts';

describe('connections to a server before their peers are known', () => {
  const opened: (Server | Socket)[] = [];
  after(() => {
    for (const one of opened) if ('destroy' in one) one.destroy();
    for (const one of opened) if ('listening' in one) one.close();
  });
  const guarded = async (limits: Partial<ConnectionLimits>) => {
    const server = net.createServer();
    opened.push(server);
    const guard = new ConnectionGuard(server, limits);
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const accepted: Socket[] = [];
    server.on('connection', (socket) => accepted.push(socket));
    /** A client that says nothing, from an address of its own. */
    const stall = async (localAddress = '127.0.0.1') => {
      const before = accepted.length;
      const socket = net.connect({ port: (server.address() as AddressInfo).port, host: '127.0.0.1', localAddress });
      opened.push(socket);
      socket.on('error', () => {});
      const closed = once(socket, 'close');
      await once(socket, 'connect');
      while (accepted.length === before) await new Promise((resolve) => setImmediate(resolve));
      return { socket, closed, accepted: accepted.at(-1)! };
    };
    return { guard, stall };
  };

  it('lose their places to newer ones of the same peer, so that a client that stalls keeps no other client out', async () => {
    const { guard, stall } = await guarded({ maxUnprovenPerPeer: 3 });
    const [oldest, next] = [await stall(), await stall()];
    await stall();
    const other = await stall('127.0.0.2');
    const newest = await stall();
    await oldest.closed;
    assert.deepEqual([guard.size, guard.unproven, guard.closed], [4, 4, 1]);
    assert.deepEqual(
      [next, other, newest].map(({ accepted }) => accepted.destroyed),
      [false, false, false],
    );
  });

  it('of many peers lose those of the peer that has most', async () => {
    const { guard, stall } = await guarded({ maxUnproven: 5 });
    const many = [await stall(), await stall(), await stall(), await stall()];
    const one = await stall('127.0.0.2');
    const two = await stall('127.0.0.3');
    await many[0]!.closed;
    assert.deepEqual([guard.unproven, one.accepted.destroyed, two.accepted.destroyed], [5, false, false]);
  });

  it('have little time, and those with an identity have as much as they want', async () => {
    const { guard, stall } = await guarded({ maxUnprovenMs: 50 });
    const [slow, good] = [await stall(), await stall()];
    assert.equal(guard.prove(good.accepted, 'me'), true);
    await slow.closed;
    assert.deepEqual([guard.size, guard.unproven, good.accepted.destroyed], [1, 0, false]);
  });

  it('are limited per identity and address once it is known, and the places come back', async () => {
    const { guard, stall } = await guarded({ maxPerIdentity: 2 });
    const [first, second, third] = [await stall(), await stall(), await stall()];
    const elsewhere = await stall('127.0.0.2');
    assert.deepEqual(
      [first, second, third, elsewhere].map(({ accepted }) => guard.prove(accepted, 'me')),
      [true, true, false, true],
    );
    await third.closed;
    first.socket.destroy();
    await once(first.accepted, 'close');
    assert.equal(guard.prove((await stall()).accepted, 'me'), true);
  });

  it('are refused in total only when all others have an identity', async () => {
    const { guard, stall } = await guarded({ maxConnections: 2 });
    const [stalled, good] = [await stall(), await stall()];
    guard.prove(good.accepted, 'me');
    const next = await stall();
    await stalled.closed;
    guard.prove(next.accepted, 'you');
    await (await stall()).closed;
    assert.deepEqual([good.accepted.destroyed, next.accepted.destroyed], [false, false]);
  });

  it('are counted by their address, IPv6 by its /64', () => {
    for (const [address, peer] of [
      ['127.0.0.1', '127.0.0.1'],
      ['::ffff:10.0.0.1', '10.0.0.1'],
      ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2'],
      ['2001:db8::6', '2001:db8:0:0'],
      ['fe80::1%eth0', 'fe80:0:0:0'],
      ['::1', '0:0:0:0'],
      [undefined, 'local'],
    ] as const)
      assert.equal(peerOf({ remoteAddress: address }), peer);
  });
});

describe('requests that are not answered', () => {
  const limits = { maxPendingBytes: 100, maxReadingPerPeer: 2, maxWaitingPerPeer: 2 };
  const ended: string[] = [];
  const open = (requests: PendingRequests, name: string, peer = 'a') => requests.open(peer, () => ended.push(name));

  it('end largest first when they hold too much together', () => {
    ended.length = 0;
    const requests = new PendingRequests(limits);
    const [large, small] = [open(requests, 'large'), open(requests, 'small', 'b')];
    large.add(80);
    small.add(10);
    small.add(20);
    assert.deepEqual([ended, requests.bytes], [['large'], 30]);
    large.add(50);
    assert.equal(requests.bytes, 30, 'what ended counts no more');
  });

  it('end oldest first when a peer sends many by halves', () => {
    ended.length = 0;
    const requests = new PendingRequests(limits);
    for (const name of ['first', 'second', 'third']) open(requests, name);
    open(requests, 'other', 'b');
    assert.deepEqual([ended, requests.size], [['first'], 3]);
  });

  it('are refused when too many of a peer wait, and free their places', () => {
    const requests = new PendingRequests(limits);
    const [one, two] = [open(requests, 'one'), open(requests, 'two')];
    assert.deepEqual([one.wasRead(), two.wasRead(), one.wasRead()], [true, true, true]);
    const three = open(requests, 'three');
    assert.equal(three.wasRead(), false);
    one.release();
    one.release();
    assert.equal(three.wasRead(), true);
    two.release();
    three.release();
    assert.deepEqual([requests.size, requests.bytes], [0, 0]);
  });
});
