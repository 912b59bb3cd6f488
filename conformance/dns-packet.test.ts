import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { NameTableSchema } from '@mizzen/envoy-api/gen/istio/networking/nds/v1/nds_pb.js';
import dnsPacket, { type Answer, type Packet, type RecordType } from 'dns-packet';
import fc from 'fast-check';
import { type Query, readAnswer, readQuery, writeAddresses, writeEmptyAnswer } from '../packages/proxy/dns/dns-message.ts';
import { NameTable } from '../packages/proxy/dns/name-table.ts';

/** Another implementation of DNS messages: what it writes we read as it means it, and the other way round. */
const hosts = fc.domain().filter((name) => name.length < 200);
const types = fc.constantFrom<RecordType>('A', 'AAAA', 'TXT', 'MX', 'SRV', 'NS', 'CNAME', 'PTR');
const numbers: Readonly<Record<string, number>> = { A: 1, AAAA: 28, TXT: 16, MX: 15, SRV: 33, NS: 2, CNAME: 5, PTR: 12 };
const ttl = fc.integer({ min: 0, max: 1_000_000 });
const ipv6 = fc.ipV6().filter((address) => !address.includes('.'));

const record = (name: string): fc.Arbitrary<Answer> =>
  fc.oneof(
    fc.record({ ttl, data: fc.ipV4() }).map((fields) => ({ type: 'A' as const, name, ...fields })),
    fc.record({ ttl, data: ipv6 }).map((fields) => ({ type: 'AAAA' as const, name, ...fields })),
    fc.record({ ttl, data: hosts }).map((fields) => ({ type: 'CNAME' as const, name, ...fields })),
    fc.record({ ttl, data: fc.string({ maxLength: 100 }) }).map((fields) => ({ type: 'TXT' as const, name, ...fields })),
    fc.record({ ttl, preference: fc.nat(100), exchange: hosts }).map(({ ttl: own, ...data }) => ({ type: 'MX' as const, name, ttl: own, data })),
  );

describe('DNS beside another implementation', () => {
  it('reads the queries that it writes', () => {
    fc.assert(
      fc.property(hosts, types, fc.nat(65_535), fc.option(fc.integer({ min: 0, max: 65_535 })), (name, type, id, udpPayloadSize) => {
        const packet: Packet = {
          type: 'query',
          id,
          flags: dnsPacket.RECURSION_DESIRED,
          questions: [{ type, name }],
          ...(udpPayloadSize === null ? {} : { additionals: [{ type: 'OPT', name: '.', udpPayloadSize, flags: 0, options: [] } as unknown as Answer] }),
        };
        const query = readQuery(dnsPacket.encode(packet)) as Query;
        assert.deepEqual([query.id, query.name, query.type, query.hasEdns], [id, name.toLowerCase(), numbers[type], udpPayloadSize !== null]);
        assert.ok(query.udpLimitBytes >= 512 && query.udpLimitBytes <= 1232);
      }),
      { numRuns: 1_000 },
    );
  });

  it('writes answers that it reads', () => {
    fc.assert(
      fc.property(hosts, fc.array(fc.oneof(fc.ipV4(), ipv6), { minLength: 1, maxLength: 30 }), fc.boolean(), (name, ips, isSix) => {
        const table = new NameTable(create(NameTableSchema, { table: { [name]: { ips, registry: 'External' } } }), 'default', []);
        const known = table.find(name.toLowerCase())!;
        const message = dnsPacket.encode({ type: 'query', id: 9, questions: [{ type: isSix ? 'AAAA' : 'A', name }] });
        const query = readQuery(message) as Query;
        const addresses = isSix ? known.ipv6 : known.ipv4;
        const answer = dnsPacket.decode(
          addresses.length === 0 ? writeEmptyAnswer(message, query, 0) : writeAddresses(message, query, addresses, undefined, 30, 1232),
        );
        assert.equal(answer.id, 9);
        const wanted = ips.filter((ip) => ip.includes(':') === isSix);
        assert.equal(answer.answers!.length, wanted.length);
        for (const [i, entry] of answer.answers!.entries()) {
          assert.deepEqual([entry.type, entry.name, (entry as { ttl: number }).ttl], [isSix ? 'AAAA' : 'A', name, 30]);
          if (!isSix) assert.equal((entry as { data: string }).data, wanted[i]);
          else assert.equal(new URL(`http://[${(entry as { data: string }).data}]`).hostname, new URL(`http://[${wanted[i]}]`).hostname);
        }
      }),
      { numRuns: 1_000 },
    );
  });

  it('tells of an alias as it does', () => {
    const message = dnsPacket.encode({ type: 'query', id: 1, questions: [{ type: 'A', name: 'api.example.com.default.svc.cluster.local' }] });
    const answer = dnsPacket.decode(writeAddresses(message, readQuery(message) as Query, [Buffer.from([240, 240, 1, 1])], 'api.example.com', 30, 512));
    assert.deepEqual(
      answer.answers!.map((entry) => [entry.type, entry.name, (entry as { data: unknown }).data]),
      [
        ['CNAME', 'api.example.com.default.svc.cluster.local', 'api.example.com'],
        ['A', 'api.example.com', '240.240.1.1'],
      ],
    );
  });

  it('finds the times to live in the answers that it writes, and counts them down in place', () => {
    const answers = hosts.chain((name) => fc.tuple(fc.constant(name), fc.array(record(name), { minLength: 1, maxLength: 10 })));
    fc.assert(
      fc.property(answers, ([name, records]) => {
        const question = dnsPacket.encode({ type: 'query', id: 1, questions: [{ type: 'A', name }] }).subarray(12);
        const bytes = Buffer.from(dnsPacket.encode({ type: 'response', id: 1, questions: [{ type: 'A', name }], answers: records }));
        const summary = readAnswer(bytes, question)!;
        assert.equal(summary.ttlSeconds, Math.min(...records.map((entry) => (entry as { ttl: number }).ttl)));
        assert.equal(summary.ttlOffsets.length, records.length);
        for (const at of summary.ttlOffsets) bytes.writeUInt32BE(7, at);
        assert.ok(dnsPacket.decode(bytes).answers!.every((entry) => (entry as { ttl: number }).ttl === 7));
        // Cut anywhere it is either whole or none.
        for (let end = 0; end < bytes.length; end += 7) assert.equal(readAnswer(bytes.subarray(0, end), question), undefined);
      }),
      { numRuns: 500 },
    );
  });
});
