import assert from 'node:assert/strict';
import dgram from 'node:dgram';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import http from 'node:http';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { cluster, http as httpFilter, listener, socketAddress, TestEngine } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { notPrivileged } from './support/lab.ts';

const name = 'app.drill.test';
const ttlSeconds = 1;
/** With MIZZEN_DRILL_LONG the server is away for many times the TTL. */
const outageMs = process.env['MIZZEN_DRILL_LONG'] === undefined ? 500 : 30_000;

/** A DNS server that knows one name, on an address of its own. */
class NameServer {
  /** The A record; undefined: the server receives queries and does not answer. */
  address: string | undefined;
  queries: number;
  readonly host: string;
  #socket: dgram.Socket | undefined;

  constructor(address: string) {
    this.address = address;
    this.queries = 0;
    this.host = `127.53.${1 + Math.floor(250 * Math.random())}.${1 + Math.floor(250 * Math.random())}`;
    this.#socket = undefined;
  }

  async open(): Promise<void> {
    const socket = dgram.createSocket('udp4');
    this.#socket = socket;
    socket.on('error', () => {});
    socket.on('message', (query, { port, address }) => {
      this.queries++;
      if (this.address !== undefined) socket.send(this.#answer(query), port, address);
    });
    socket.bind(53, this.host);
    await once(socket, 'listening');
  }

  async close(): Promise<void> {
    const socket = this.#socket;
    this.#socket = undefined;
    if (socket !== undefined) await new Promise<void>((resolve) => socket.close(() => resolve()));
  }

  #answer(query: Buffer): Buffer {
    let end = 12;
    while (query[end] !== 0) end += query[end]! + 1;
    const type = query.readUInt16BE(end + 1);
    const head = Buffer.from(query.subarray(0, end + 5));
    head.writeUInt16BE(0x8580, 2);
    head.writeUInt16BE(type === 1 ? 1 : 0, 6);
    head.writeUInt32BE(0, 8);
    if (type !== 1) return head;
    const record = Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttlSeconds, 0, 4, ...this.address!.split('.').map(Number)]);
    return Buffer.concat([head, record]);
  }
}

describe('a cluster whose endpoint is a DNS name', { skip: notPrivileged }, () => {
  const engine = new TestEngine();
  const names = new NameServer('127.0.0.1');
  let port: number;
  let sent = 0;
  const failures: string[] = [];
  let newest: string | undefined;
  let isOver = false;
  let load: Promise<void>;

  before(async () => {
    await names.open();
    const appPort = await engine.ports.next();
    for (const address of ['127.0.0.1', '127.0.0.2']) {
      const server = http.createServer((_request, response) => response.end(address)).listen(appPort, address);
      await once(server, 'listening');
      engine.onClose(() => {
        server.closeAllConnections();
        server.close();
      });
    }
    const resolver = join(engine.folder, 'resolv.conf');
    writeFileSync(resolver, `nameserver ${names.host}\noptions timeout:1 attempts:1\n`);
    const adminPort = await engine.ports.next();
    port = await engine.ports.next();
    const app = cluster('app', [], {
      ...{ type: 'STRICT_DNS', respect_dns_ttl: true, dns_refresh_rate: '1s' },
      load_assignment: { cluster_name: 'app', endpoints: [{ lb_endpoints: [{ endpoint: { address: socketAddress(appPort, name) } }] }] },
    });
    // In a mount namespace of its own, so that its resolver is the one of this test.
    const launcher = ['unshare', '-m', 'sh', '-c', `mount --bind ${resolver} /etc/resolv.conf && exec "$0" "$@"`];
    await engine.spawn({ adminPort, listeners: [listener('in', port, httpFilter('app'))], clusters: [app] }, [], {}, launcher);
    load = (async () => {
      while (!isOver) {
        sent++;
        const { status, body } = await call({ port, headers: { host: 'app' } }).catch((error: unknown) => ({ status: 0, body: String(error) }));
        if (status !== 200) failures.push(`${status} ${body}`);
        newest = body;
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    })();
    await serves('127.0.0.1');
  });
  after(async () => {
    isOver = true;
    await load;
    await engine.close();
    await names.close();
  });
  const serves = (address: string) =>
    until(
      `responses of ${address}`,
      async () => newest,
      (found) => found === address,
      10_000,
    );
  const queriesAfter = async (count: number) => {
    const from = names.queries;
    await until(
      `${count} more queries`,
      async () => names.queries - from,
      (found) => found >= count,
      20_000,
    );
  };

  it('uses a changed address when the TTL of the old one has ended, and keeps the last address while the DNS server is silent or away', async (test) => {
    await queriesAfter(1);
    names.address = '127.0.0.2';
    const changedAt = performance.now();
    await serves('127.0.0.2');
    const tookMs = performance.now() - changedAt;
    names.address = undefined;
    await queriesAfter(1);
    assert.equal(newest, '127.0.0.2');
    await names.close();
    await new Promise((resolve) => setTimeout(resolve, outageMs));
    assert.equal(newest, '127.0.0.2');
    names.address = '127.0.0.1';
    await names.open();
    await serves('127.0.0.1');
    test.diagnostic(`a changed address in use after ${Math.round(tookMs)} ms (TTL ${ttlSeconds} s); ${sent} requests, ${failures.length} failed`);
    assert.deepEqual(failures, []);
  });
});
