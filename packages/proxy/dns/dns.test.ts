import assert from 'node:assert/strict';
import dgram from 'node:dgram';
import { once } from 'node:events';
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { silentLogger } from '@mizzen/common';
import { NameTableSchema } from '@mizzen/envoy-api/gen/istio/networking/nds/v1/nds_pb.js';
import fc from 'fast-check';
import { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { DnsForwarder } from './dns-forwarder.ts';
import { type Query, readAnswer, readQuery, responseCodes, typeA, typeAAAA } from './dns-message.ts';
import { DnsServer } from './dns-server.ts';
import { NameTable } from './name-table.ts';
import { followedServers, parseResolverConfig } from './resolver-config.ts';

function packName(name: string): Buffer {
  return Buffer.concat([...name.split('.').map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label, 'latin1')])), Buffer.from([0])]);
}

function question(name: string, type = typeA, id = 7, edns = 0): Buffer {
  const head = Buffer.alloc(12);
  head.writeUInt16BE(id, 0);
  head[2] = 1; // recursion desired
  head.writeUInt16BE(1, 4);
  head.writeUInt16BE(edns > 0 ? 1 : 0, 10);
  const tail = Buffer.from([0, type, 0, 1]);
  const opt = edns > 0 ? Buffer.from([0, 0, 41, edns >> 8, edns & 255, 0, 0, 0, 0, 0, 0]) : Buffer.alloc(0);
  return Buffer.concat([head, packName(name), tail, opt]);
}

/** An upstream's answer to `query`: one A record, or a refusal. */
function upstreamAnswer(query: Buffer, options: { ttl?: number; code?: number; truncated?: boolean; address?: readonly number[]; count?: number }): Buffer {
  const asked = readQuery(query) as Query;
  const { ttl = 60, code = 0, truncated = false, address = [192, 0, 2, 1], count = 1 } = options;
  const head = Buffer.from(query.subarray(0, asked.questionEnd));
  head[2] = 0x81 | (truncated ? 2 : 0);
  head[3] = 0x80 | code;
  const records = code === 0 && !truncated ? count : 0;
  head.writeUInt16BE(records, 6);
  head.writeUInt32BE(0, 8);
  const record = Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, ...address]);
  record.writeUInt32BE(ttl, 6);
  return Buffer.concat([head, ...Array<Buffer>(records).fill(record)]);
}

describe('reading DNS', () => {
  it('reads what dig asks', () => {
    const query = readQuery(question('Reviews.Default.svc.cluster.local', typeAAAA, 300, 1232)) as Query;
    assert.deepEqual(
      [query.id, query.name, query.type, query.class, query.wantsRecursion, query.udpLimitBytes],
      [300, 'reviews.default.svc.cluster.local', typeAAAA, 1, true, 1232],
    );
  });

  it('refuses what no query is: long names and labels, pointers, two questions, dots and spaces inside of a label', () => {
    const long = question(Array(5).fill('a'.repeat(60)).join('.'));
    assert.equal(readQuery(long), responseCodes.formatError, 'a name of 305 bytes');
    assert.equal(typeof readQuery(question(`${Array(3).fill('a'.repeat(62)).join('.')}.${'b'.repeat(63)}`)), 'object', 'a name of 253 bytes');
    const pointer = Buffer.concat([question('a').subarray(0, 12), Buffer.from([0xc0, 0x0c, 0, 1, 0, 1])]);
    assert.equal(readQuery(pointer), responseCodes.formatError, 'a pointer to itself');
    const two = question('a.b');
    two.writeUInt16BE(2, 4);
    assert.equal(readQuery(two), responseCodes.formatError);
    for (const label of ['a.b', 'a b', 'a\0']) {
      const name = Buffer.concat([Buffer.from([label.length]), Buffer.from(label, 'latin1'), Buffer.from([0, 0, 1, 0, 1])]);
      assert.equal(readQuery(Buffer.concat([question('x').subarray(0, 12), name])), responseCodes.formatError, JSON.stringify(label));
    }
    const answer = question('a.b');
    answer[2] = 0x80;
    assert.equal(readQuery(answer), 'drop', 'an answer is not answered');
    assert.equal(readQuery(Buffer.alloc(5)), 'drop');
    const update = question('a.b');
    update[2] = 5 << 3;
    assert.equal(readQuery(update), responseCodes.notImplemented);
  });

  it('never throws, never loops, whatever comes', () => {
    const asked = question('www.example.com').subarray(12);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
        const message = Buffer.from(bytes);
        readQuery(message);
        readAnswer(message, asked);
        const valid = question('www.example.com');
        readAnswer(Buffer.concat([valid.subarray(0, 2), Buffer.from([0x81, 0x80]), valid.subarray(4), message]), asked);
      }),
      { numRuns: 3_000 },
    );
  });
});

describe('the name table', () => {
  const info = (ips: string[], shortname = '', namespace = '') => ({ ips, registry: shortname ? 'Kubernetes' : 'External', shortname, namespace });
  const table = new NameTable(
    create(NameTableSchema, {
      table: {
        'reviews.default.svc.cluster.local': info(['240.240.1.2', '2001:2::f0f0:102'], 'reviews', 'default'),
        'redis.data.svc.cluster.local': info(['240.240.9.9'], 'redis', 'data'),
        'api.example.com': info(['240.240.3.4']),
        '*.wild.example': info(['240.240.5.6']),
      },
    }),
    'default',
    ['default.svc.cluster.local', 'svc.cluster.local', 'cluster.local'],
  );

  it('knows the shorter forms, of the own namespace without its name', () => {
    for (const name of ['reviews.default.svc.cluster.local', 'reviews.default.svc', 'reviews.default', 'reviews'])
      assert.deepEqual([...table.find(name)!.ipv4[0]!], [240, 240, 1, 2], name);
    assert.equal(table.find('redis'), undefined, 'of another namespace');
    assert.ok(table.find('redis.data'));
    assert.equal(table.find('reviews')!.ipv6[0]!.toString('hex'), '200100020000000000000000f0f00102');
  });

  it('finds what a resolver makes of a name by its search list, and says whose address it is', () => {
    const found = table.find('api.example.com.default.svc.cluster.local')!;
    assert.deepEqual([found.isAlias, found.hostname], [true, 'api.example.com']);
    assert.equal(table.find('a.wild.example.svc.cluster.local')!.hostname, 'a.wild.example');
  });

  it('wildcards stand for everything below them, and not for their own name', () => {
    assert.ok(table.find('a.b.wild.example'));
    assert.equal(table.find('wild.example'), undefined);
    assert.equal(table.find('example.com'), undefined);
  });
});

it('reads resolv.conf', () => {
  assert.deepEqual(parseResolverConfig('# c\nnameserver 10.0.0.1 # x\nnameserver nonsense\nnameserver fe80::1\nsearch A.b. c\noptions ndots:5\n'), {
    servers: ['10.0.0.1', 'fe80::1'],
    searchDomains: ['a.b', 'c'],
  });
});

it('follows resolv.conf', (context) => {
  const file = join(mkdtempSync(join(tmpdir(), 'mizzen-resolv-')), 'resolv.conf');
  context.mock.timers.enable({ apis: ['Date'], now: 1_000_000 });
  writeFileSync(file, 'nameserver 10.0.0.1\n');
  utimesSync(file, 1, 1);
  const servers = followedServers(file);
  writeFileSync(file, 'nameserver 10.0.0.2\n');
  assert.deepEqual(servers(), ['10.0.0.1'], 'not at every question');
  context.mock.timers.setTime(1_006_000);
  assert.deepEqual(servers(), ['10.0.0.2']);
  rmSync(file);
  context.mock.timers.setTime(1_012_000);
  assert.deepEqual(servers(), [], 'nobody is left to be asked');
});

describe('the DNS proxy', () => {
  let upstream: dgram.Socket;
  let upstreamTcp: net.Server;
  let asked: string[];
  let reply: (query: Buffer, isTcp: boolean) => Buffer | undefined;
  let server: DnsServer;
  let counters: ProxyCounters;
  let port: number;
  let later = 0;

  const ask = async (query: Buffer): Promise<Buffer> => {
    const socket = dgram.createSocket('udp4');
    socket.send(query, port, '127.0.0.1');
    try {
      const [answer] = (await once(socket, 'message', { signal: AbortSignal.timeout(5_000) })) as [Buffer];
      return answer;
    } finally {
      socket.close();
    }
  };

  before(async () => {
    asked = [];
    reply = (query) => upstreamAnswer(query, {});
    upstream = dgram.createSocket('udp4');
    upstream.on('message', (query, from) => {
      asked.push((readQuery(query) as Query).name);
      const answer = reply(query, false);
      if (answer) upstream.send(answer, from.port, from.address);
    });
    upstreamTcp = net.createServer((socket) =>
      socket.once('data', (framed) => {
        const answer = reply(framed.subarray(2), true);
        if (answer) socket.write(Buffer.concat([Buffer.from([answer.length >> 8, answer.length & 255]), answer]));
      }),
    );
    // One number for both: a port that is free for TCP, chosen first, since connections of others hold most of those that are not.
    upstreamTcp.listen(0, '127.0.0.1');
    await once(upstreamTcp, 'listening');
    const upstreamPort = (upstreamTcp.address() as net.AddressInfo).port;
    upstream.bind(upstreamPort, '127.0.0.1');
    await once(upstream, 'listening');
    const probe = net.createServer().listen(0, '127.0.0.1');
    await once(probe, 'listening');
    port = (probe.address() as net.AddressInfo).port;
    probe.close();
    await once(probe, 'close');
    counters = new ProxyCounters();
    server = new DnsServer({
      port,
      addresses: ['127.0.0.1'],
      upstreamServers: () => [`127.0.0.1:${upstreamPort}`],
      counters,
      logger: silentLogger,
      upstreamTimeoutMs: 200,
      now: () => Date.now() + later,
    });
    const ips = Array.from({ length: 60 }, (_, i) => `10.0.0.${i + 1}`);
    server.use(
      new NameTable(
        create(NameTableSchema, {
          table: {
            'reviews.default.svc.cluster.local': { ips: ['240.240.1.2'], registry: 'Kubernetes', shortname: 'reviews', namespace: 'default' },
            'many.example': { ips, registry: 'External', shortname: '', namespace: '' },
          },
        }),
        'default',
        ['default.svc.cluster.local'],
      ),
    );
    await server.listen();
  });
  after(async () => {
    await server.close();
    upstream.close();
    upstreamTcp.close();
  });

  it('answers names of the mesh itself', async () => {
    const answer = await ask(question('reviews'));
    assert.equal(answer.readUInt16BE(0), 7);
    assert.deepEqual([answer[3]! & 15, answer.readUInt16BE(6), [...answer.subarray(-4)]], [0, 1, [240, 240, 1, 2]]);
    const none = await ask(question('reviews', typeAAAA));
    assert.deepEqual([none[3]! & 15, none.readUInt16BE(6)], [0, 0], 'the name is there, an address of this kind is not');
    assert.equal((await ask(question('reviews', 16))).readUInt16BE(6), 0, 'other records of it are nobody’s');
    assert.equal(asked.length, 0);
  });

  it('asks the machine’s servers for the rest, and keeps the answer for as long as it holds', async () => {
    const first = await ask(question('www.example.org', typeA, 11));
    const second = await ask(question('www.Example.org', typeA, 12));
    assert.deepEqual([first.readUInt16BE(0), second.readUInt16BE(0)], [11, 12]);
    assert.deepEqual([...second.subarray(-4)], [192, 0, 2, 1]);
    assert.equal(asked.filter((name) => name === 'www.example.org').length, 1);
    await Promise.all(Array.from({ length: 20 }, (_, i) => ask(question('at-once.example.org', typeA, 100 + i))));
    assert.equal(asked.filter((name) => name === 'at-once.example.org').length, 1, 'those who ask together ask once');
    assert.ok(counters.values.dns_cache_hits_total >= 1);
  });

  it('keeps no answer without a time to live, and no failure', async () => {
    reply = (query) => upstreamAnswer(query, { ttl: 0 });
    await ask(question('zero.example'));
    await ask(question('zero.example'));
    assert.equal(asked.filter((name) => name === 'zero.example').length, 2);
    reply = (query) => upstreamAnswer(query, { code: responseCodes.serverFailure });
    assert.equal((await ask(question('broken.example')))[3]! & 15, responseCodes.serverFailure);
    reply = (query) => upstreamAnswer(query, {});
    assert.equal((await ask(question('broken.example')))[3]! & 15, responseCodes.ok);
  });

  it('asks by TCP what does not fit, and cuts for a client what it cannot take', async () => {
    reply = (query, isTcp) => (isTcp ? upstreamAnswer(query, { count: 100 }) : upstreamAnswer(query, { truncated: true }));
    const small = await ask(question('big.example'));
    assert.equal(small[2]! & 2, 2, 'truncated for those who take 512 bytes');
    const socket = net.connect(port, '127.0.0.1');
    const query = question('big.example');
    socket.write(Buffer.concat([Buffer.from([0, query.length]), query]));
    const [whole] = (await once(socket, 'data')) as [Buffer];
    socket.destroy();
    assert.equal(whole.readUInt16BE(2 + 6), 100);
    const cut = await ask(question('many.example'));
    assert.ok(cut.length <= 512 && (cut[2]! & 2) === 2, 'our own answers too');
    assert.equal((await ask(question('many.example', typeA, 1, 1232))).readUInt16BE(6), 60);
    reply = (query) => upstreamAnswer(query, {});
  });

  it('believes no answer of a wrong id or to another question', async () => {
    reply = (query) => {
      const wrong = Buffer.from(upstreamAnswer(query, { address: [6, 6, 6, 6] }));
      wrong.writeUInt16BE((wrong.readUInt16BE(0) + 1) & 0xffff, 0);
      return wrong;
    };
    assert.equal((await ask(question('forged.example')))[3]! & 15, responseCodes.serverFailure);
    reply = (query) => upstreamAnswer(question('other.example', typeA, query.readUInt16BE(0)), { address: [6, 6, 6, 6] });
    assert.equal((await ask(question('forged2.example')))[3]! & 15, responseCodes.serverFailure);
    reply = (query) => upstreamAnswer(query, {});
  });

  it('a server that says nothing costs the timeout, and what it said before stands in for it', async () => {
    reply = (query) => upstreamAnswer(query, { ttl: 1, address: [192, 0, 2, 9] });
    await ask(question('stale.example'));
    reply = () => undefined;
    later += 1_500; // it held for a second
    const stale = await ask(question('stale.example'));
    assert.deepEqual([...stale.subarray(-4)], [192, 0, 2, 9]);
    const never = await ask(question('never.example'));
    assert.equal(never[3]! & 15, responseCodes.serverFailure);
    reply = (query) => upstreamAnswer(query, {});
  });

  it('bounds its cache by bytes, and lets no client keep an answer for longer than it does itself', async () => {
    const count = 3_500; // 56 kB by TCP
    const forwarder = new DnsForwarder({ servers: () => [`127.0.0.1:${(upstreamTcp.address() as net.AddressInfo).port}`], counters: new ProxyCounters() });
    for (let i = 0; i < 200; i++) {
      const message = question(`large-${i}.example`);
      reply = (query, byTcp) => (byTcp ? upstreamAnswer(query, { ttl: 600, count }) : upstreamAnswer(query, { truncated: true }));
      assert.ok((await forwarder.ask(message, readQuery(message) as Query))!.length > 50_000);
      assert.ok(forwarder.cachedBytes <= 8 * 1024 * 1024);
    }
    assert.ok(forwarder.cachedBytes > 7 * 1024 * 1024);
    for (const [ttl, expected] of [
      [86_400, 3_600],
      [0x7fff_ffff, 3_600],
      [0x8000_0000, 0],
      [0xffff_ffff, 0],
    ] as const) {
      reply = (query) => upstreamAnswer(query, { ttl });
      const message = question(`ttl-${ttl}.example`);
      const answer = await forwarder.ask(message, readQuery(message) as Query);
      assert.equal(readAnswer(answer!, message.subarray(12))!.ttlSeconds, expected);
    }
    reply = (query) => upstreamAnswer(query, {});
    forwarder.close();
  });

  it('says which port is taken', async () => {
    const second = new DnsServer({ port, addresses: ['127.0.0.1'], upstreamServers: () => [], counters, logger: silentLogger });
    await assert.rejects(second.listen(), /the DNS proxy cannot listen: .*EADDRINUSE.*Choose another port/);
    await second.close();
  });

  it('survives junk, counts it, and goes on', async () => {
    const before = counters.values.dns_dropped_total;
    const socket = dgram.createSocket('udp4');
    const junk = [
      Buffer.alloc(0),
      Buffer.from([1]),
      Buffer.alloc(12),
      Buffer.alloc(4096, 0xff),
      question(Array(5).fill('a'.repeat(60)).join('.')),
      Buffer.concat([question('a').subarray(0, 12), Buffer.from([0xc0, 0x0c, 0, 1, 0, 1])]),
    ];
    for (const message of junk) await new Promise((resolve) => socket.send(message, port, '127.0.0.1', resolve));
    socket.close();
    assert.equal((await ask(question('reviews'))).readUInt16BE(6), 1);
    assert.equal(counters.values.dns_dropped_total - before, junk.length);
    const tcp = net.connect(port, '127.0.0.1');
    tcp.write(Buffer.from([0xff, 0xff, 1, 2, 3]));
    await once(tcp, 'close', { signal: AbortSignal.timeout(2_000) });
    assert.equal((await ask(question('reviews'))).readUInt16BE(6), 1);
  });
});
