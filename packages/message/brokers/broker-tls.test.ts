import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { silentLogger } from '@mizzen/common';
import type { BrokerDriver } from './driver.ts';
import { makeDriver } from './make-driver.ts';

/** Of each broker: its component, and what a client sends over TLS before any response. */
const kinds = [
  { name: 'Redis', type: 'pubsub.redis', metadata: (port: number) => ({ redisHost: `rediss://localhost:${port}` }) },
  { name: 'Redis, in capital letters', type: 'pubsub.redis', metadata: (port: number) => ({ redisHost: `REDISS://localhost:${port}` }) },
  { name: 'NATS', type: 'pubsub.jetstream', metadata: (port: number) => ({ natsURL: `tls://localhost:${port}`, token: 'token-of-the-test' }) },
  { name: 'RabbitMQ', type: 'pubsub.rabbitmq', metadata: (port: number) => ({ connectionString: `amqps://localhost:${port}` }) },
] as const;
const authorities = [
  { name: 'a good authority', curve: 'P-256', names: 'DNS:localhost', problem: undefined },
  // OpenSSL accepts it, and Node.js crashes when it describes it.
  { name: 'an authority with a key on secp256k1', curve: 'secp256k1', names: 'DNS:localhost', problem: /its authority has a key on the curve secp256k1/ },
  { name: 'a good authority, for another host', curve: 'P-256', names: 'DNS:other', problem: /other/ },
] as const;

describe('the client of a broker with TLS', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-broker-tls-'));
  const defaults = tls.getCACertificates('default');
  const openssl = (...args: readonly string[]) => execFileSync('openssl', args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
  const text = (name: string) => readFileSync(join(folder, name), 'utf8');
  const close: (() => unknown)[] = [];

  /** The certificate of a server, by an authority between it and a root that this process trusts. */
  const issue = (curve: string, names: string): { readonly cert: string; readonly key: string } => {
    const sign = (name: string, by: string, extensions: string, of: string) => {
      writeFileSync(join(folder, 'ext'), `${extensions}\n`);
      openssl('req', '-new', '-nodes', '-subj', `/CN=${name}`, '-newkey', 'ec', '-pkeyopt', `ec_paramgen_curve:${of}`, '-keyout', `${name}.key`, '-out', 'csr');
      openssl(
        'x509',
        '-req',
        '-in',
        'csr',
        '-CA',
        `${by}.pem`,
        '-CAkey',
        `${by}.key`,
        '-CAcreateserial',
        '-days',
        '1',
        '-extfile',
        'ext',
        '-out',
        `${name}.pem`,
      );
    };
    sign('between', 'root', 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash', curve);
    sign('server', 'between', `subjectAltName=${names}`, 'P-256');
    return { cert: text('server.pem') + text('between.pem'), key: text('server.key') };
  };

  /** A server that reads what its client sends over TLS. NATS begins without it. */
  const serve = async (isNats: boolean, pair: { readonly cert: string; readonly key: string }) => {
    const received = Promise.withResolvers<string>();
    const context = tls.createSecureContext(pair);
    const sockets: net.Socket[] = [];
    const server = net.createServer((socket) => {
      sockets.push(socket.on('error', () => {}));
      if (isNats) socket.write('INFO {"server_id":"s","version":"2.10.0","proto":1,"max_payload":1048576,"tls_required":true,"headers":true}\r\n');
      const secure = new tls.TLSSocket(socket, { isServer: true, secureContext: context });
      secure.on('error', () => {});
      secure.on('data', (data: Buffer) => received.resolve(data.toString('latin1')));
    });
    server.listen(0, 'localhost');
    await once(server, 'listening');
    close.push(() => {
      server.close();
      for (const socket of sockets) socket.destroy();
    });
    return { port: (server.address() as AddressInfo).port, received: received.promise };
  };
  const open = async (type: string, metadata: Readonly<Record<string, string>>): Promise<BrokerDriver> => {
    const driver = await makeDriver(type, metadata, { logger: silentLogger, meshTls: undefined, space: 'n/c', appId: 'a' });
    close.push(() => driver.close());
    return driver;
  };
  const problemOf = async (driver: BrokerDriver, wanted: RegExp) => {
    for (let turn = 0; turn < 500 && !wanted.test(driver.problem() ?? ''); turn++) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.match(driver.problem() ?? 'none', wanted);
  };

  before(() => {
    openssl(
      'req',
      '-x509',
      '-nodes',
      '-days',
      '2',
      '-subj',
      '/CN=root',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-keyout',
      'root.key',
      '-out',
      'root.pem',
    );
    tls.setDefaultCACertificates([...defaults, text('root.pem')]);
  });
  afterEach(async () => {
    for (const one of close.splice(0)) await one();
  });
  after(() => {
    tls.setDefaultCACertificates(defaults);
    rmSync(folder, { recursive: true, force: true });
  });

  for (const { name: authority, curve, names, problem } of authorities)
    it(`${problem === undefined ? 'accepts' : 'refuses'} a server whose certificate is by ${authority}`, async () => {
      const pair = issue(curve, names);
      for (const { name, type, metadata } of kinds) {
        const { port, received } = await serve(type === 'pubsub.jetstream', pair);
        const driver = await open(type, metadata(port));
        let sent: string | undefined;
        const receiving = received.then((data) => {
          sent = data;
        });
        if (problem === undefined) await receiving;
        else {
          await problemOf(driver, problem);
          assert.equal(sent, undefined, name);
        }
      }
    });

  it('sends nothing to a NATS server that offers no TLS where its URL asks for it', async () => {
    const received: string[] = [];
    const server = net.createServer((socket) => {
      socket.on('error', () => {}).on('data', (data) => received.push(data.toString('latin1')));
      socket.write('INFO {"server_id":"s","version":"2.10.0","proto":1,"max_payload":1048576,"headers":true}\r\n');
    });
    server.listen(0, 'localhost');
    await once(server, 'listening');
    close.push(() => server.close());
    const driver = await open('pubsub.jetstream', { natsURL: `tls://localhost:${(server.address() as AddressInfo).port}`, token: 'token-of-the-test' });
    await problemOf(driver, /does not support 'tls'/);
    assert.deepEqual(received, []);
  });
});
