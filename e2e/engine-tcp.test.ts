import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import dgram from 'node:dgram';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { readProxyHeader, writeProxyHeader } from '../packages/proxy/net/proxy-protocol.ts';
import { TestAuthority } from './support/certificates.ts';
import { cluster, http, type Json, listener, metric, RawClient, serverTls, socketAddress, TestEngine, tcp, typed } from './support/engine.ts';
import { call, until } from './support/http.ts';

const inspector = (name: string, config: Json = {}) => {
  const type = { tls_inspector: 'TlsInspector', http_inspector: 'HttpInspector', proxy_protocol: 'ProxyProtocol' }[name]!;
  return typed(`envoy.filters.listener.${name}`, `extensions.filters.listener.${name}.v3.${type}`, config);
};

describe('the TCP engine', () => {
  const engine = new TestEngine();
  let authority: TestAuthority;
  let echo: number;
  before(async () => {
    authority = new TestAuthority(engine.folder);
    echo = await engine.server(
      (socket) => {
        socket.on('data', (chunk: Buffer) => socket.write(chunk));
        socket.on('end', () => socket.end('!'));
      },
      { allowHalfOpen: true },
    );
  });
  after(() => engine.close());

  const accessLog = (path: string, format: string) => [
    typed('envoy.access_loggers.file', 'extensions.access_loggers.file.v3.FileAccessLog', {
      path,
      log_format: { text_format_source: { inline_string: format } },
    }),
  ];

  it('carries bytes in both directions, keeps half-closed connections open, counts and logs them', async () => {
    const port = await engine.ports.next();
    const log = join(engine.folder, 'tcp.log');
    const proxy = await engine.start({
      listeners: [
        listener(
          'in',
          port,
          tcp('echo', {
            access_log: accessLog(log, '%BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS% %UPSTREAM_CLUSTER% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\n'),
          }),
        ),
      ],
      clusters: [cluster('echo', [echo])],
    });
    const client = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    const sent = randomBytes(3_000_000);
    const hash = createHash('sha256');
    let received = 0;
    client.on('data', (chunk: Buffer) => {
      received += chunk.length;
      hash.update(chunk);
    });
    client.end(sent);
    await once(client, 'end');
    assert.equal(received, sent.length + 1);
    assert.equal(hash.digest('hex'), createHash('sha256').update(sent).update('!').digest('hex'));
    const text = await until(
      'the session is over',
      () => engine.metrics(proxy.adminPort!),
      (found) => metric(found, 'mizzen_tcp_sessions_active') === 0,
    );
    assert.equal(metric(text, 'istio_tcp_received_bytes_total'), 3_000_000);
    assert.equal(metric(text, 'istio_tcp_sent_bytes_total'), 3_000_001);
    assert.deepEqual([metric(text, 'istio_tcp_connections_opened_total'), metric(text, 'istio_tcp_connections_closed_total')], [1, 1]);
    await proxy.close();
    assert.equal(readFileSync(log, 'utf8'), '3000000 3000001 - echo 127.0.0.1\n');
  });

  it('spreads sessions over weighted clusters, tries other endpoints, and ends idle and old sessions', async () => {
    const [weighted, retrying, idle, old] = [await engine.ports.next(), await engine.ports.next(), await engine.ports.next(), await engine.ports.next()];
    const named = (name: string) => engine.server((socket) => socket.end(name));
    const dead = await engine.ports.next();
    const proxy = await engine.start({
      listeners: [
        listener(
          'weighted',
          weighted,
          tcp({
            weighted_clusters: {
              clusters: [
                { name: 'a', weight: 1 },
                { name: 'b', weight: 3 },
              ],
            },
          }),
        ),
        listener('retrying', retrying, tcp('half', { max_connect_attempts: 3 })),
        listener('idle', idle, tcp('echo', { idle_timeout: '0.3s' })),
        listener('old', old, tcp('echo', { max_downstream_connection_duration: '0.5s' })),
      ],
      clusters: [cluster('a', [await named('a')]), cluster('b', [await named('b')]), cluster('half', [dead, await named('up')]), cluster('echo', [echo])],
    });
    const answers = await Promise.all(Array.from({ length: 200 }, () => new RawClient(weighted).closed()));
    const share = answers.filter((answer) => answer === 'b').length;
    assert.equal(answers.filter((answer) => answer === 'a').length + share, 200);
    assert.ok(share > 120 && share < 180, `${share} of 200 went to b`);
    for (let i = 0; i < 6; i++) assert.equal(await new RawClient(retrying).closed(), 'up');
    const quiet = new RawClient(idle).write('x');
    await quiet.until(/x/);
    await quiet.closed();
    const long = new RawClient(old);
    const talk = setInterval(() => long.write('y'), 50);
    await long.closed();
    clearInterval(talk);
    const text = await engine.metrics(proxy.adminPort!);
    assert.equal(metric(text, 'mizzen_timeouts_total'), 2);
    assert.ok(metric(text, 'envoy_cluster_upstream_cx_connect_fail', 'half') >= 3);
  });

  it('opens no more sessions to a cluster than max_connections', async () => {
    const port = await engine.ports.next();
    await engine.start({
      listeners: [listener('in', port, tcp('echo'))],
      clusters: [cluster('echo', [echo], { circuit_breakers: { thresholds: [{ max_connections: 1 }] } })],
    });
    const first = new RawClient(port).write('1');
    await first.until(/1/);
    assert.equal(await new RawClient(port).write('2').closed(), '');
    first.destroy();
  });

  it('reads PROXY headers of both versions, tells the server who the client was, and refuses what is none', async () => {
    const [strict, optional, out, onlyV2] = [await engine.ports.next(), await engine.ports.next(), await engine.ports.next(), await engine.ports.next()];
    const seen: string[] = [];
    const behind = await engine.server((socket) => {
      socket.once('data', (chunk: Buffer) => {
        const header = readProxyHeader(chunk);
        seen.push(JSON.stringify(header));
        socket.end(typeof header === 'string' ? header : `${JSON.stringify(header.addresses)} ${chunk.subarray(header.length)}`);
      });
    });
    const web = await engine.server((socket) => socket.on('data', (chunk: Buffer) => socket.end(`HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n${chunk}`)));
    const proxied = (version: string) => ({
      transport_socket: typed(
        'envoy.transport_sockets.upstream_proxy_protocol',
        'extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport',
        {
          config: { version },
          transport_socket: typed('envoy.transport_sockets.raw_buffer', 'extensions.transport_sockets.raw_buffer.v3.RawBuffer'),
        },
      ),
    });
    const proxy = await engine.start({
      listeners: [
        listener('strict', strict, http('web', { use_remote_address: true }), { listener_filters: [inspector('proxy_protocol')] }),
        listener('optional', optional, tcp('v2'), { listener_filters: [inspector('proxy_protocol', { allow_requests_without_proxy_protocol: true })] }),
        listener('out', out, tcp('v1'), {}),
        listener('onlyV2', onlyV2, tcp('v1'), { listener_filters: [inspector('proxy_protocol', { disallowed_versions: ['V1'] })] }),
      ],
      clusters: [cluster('web', [web]), cluster('v1', [behind], proxied('V1')), cluster('v2', [behind], proxied('V2'))],
    });
    const from = { sourceAddress: '203.0.113.7', sourcePort: 4711, destinationAddress: '198.51.100.1', destinationPort: 443 };
    for (const version of [1, 2] as const) {
      const client = new RawClient(strict).write(
        Buffer.concat([writeProxyHeader(version, from), Buffer.from('GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n')]),
      );
      assert.match(await client.closed(), /x-forwarded-for: 203\.0\.113\.7/i, `version ${version}`);
    }
    const split = new RawClient(strict);
    for (const byte of writeProxyHeader(2, from)) {
      split.write(Buffer.from([byte]));
      await new Promise(setImmediate);
    }
    split.write('GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
    assert.match(await split.closed(), /x-forwarded-for: 203\.0\.113\.7/i);
    assert.equal(await new RawClient(strict).write('GET / HTTP/1.1\r\nhost: a\r\n\r\n').closed(), '');
    assert.equal(await new RawClient(strict).write('PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n').closed(), '');
    assert.equal(await new RawClient(onlyV2).write(writeProxyHeader(1, from)).closed(), '');
    assert.match(
      await new RawClient(optional).write(Buffer.concat([writeProxyHeader(1, from), Buffer.from('hi')])).closed(),
      /"sourceAddress":"203\.0\.113\.7".*"sourcePort":4711.* hi$/,
    );
    assert.match(await new RawClient(optional).write('plain').closed(), /"sourceAddress":"127\.0\.0\.1".* plain$/);
    assert.match(await new RawClient(out).write('v1').closed(), /"sourceAddress":"127\.0\.0\.1".* v1$/);
    assert.equal(metric(await engine.metrics(proxy.adminPort!), 'mizzen_proxy_protocol_refused_total'), 3);
  });

  it('routes TLS by its server name without ending it, and says no to names it does not know', async () => {
    const port = await engine.ports.next();
    const backend = async (name: string) => {
      const { cert, key } = authority.issue(name, [`DNS:${name}.test`]);
      const server = tls.createServer({ cert: authority.pem(cert), key: authority.pem(key) }, (socket) => socket.end(name)).listen(0, '127.0.0.1');
      await once(server, 'listening');
      engine.onClose(() => server.close());
      return (server.address() as net.AddressInfo).port;
    };
    await engine.start({
      listeners: [
        {
          name: 'sni',
          address: socketAddress(port),
          listener_filters: [inspector('tls_inspector')],
          filter_chains: [
            { filter_chain_match: { server_names: ['one.test'] }, filters: [tcp('one')] },
            { filter_chain_match: { server_names: ['*.test'] }, filters: [tcp('two')] },
          ],
        },
      ],
      clusters: [cluster('one', [await backend('one')]), cluster('two', [await backend('two')])],
    });
    const ask = (servername: string) =>
      new Promise<string>((resolve) => {
        let text = '';
        const socket = tls.connect({ port, host: '127.0.0.1', servername, ca: authority.pem(authority.certificate) });
        socket.on('data', (chunk: Buffer) => (text += chunk));
        socket.on('error', (error) => resolve(error.message));
        socket.on('close', () => resolve(text));
      });
    assert.equal(await ask('one.test'), 'one');
    assert.equal(await ask('two.test'), 'two');
    assert.match(await ask('other.example'), /disconnected|reset/);
  });

  it('finds out what is spoken on a port without a declared protocol, and harms no protocol in which the server speaks first', async () => {
    const port = await engine.ports.next();
    const { cert, key } = authority.issue('sniff', ['DNS:sniff.test']);
    const mail = await engine.server((socket) => {
      socket.write('220 mail\r\n');
      socket.on('data', (chunk: Buffer) => socket.write(`250 ${chunk}`));
    });
    const web = await engine.server((socket) =>
      socket.on('data', (chunk: Buffer) => socket.write(`HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-first: ${chunk.toString().split('\r\n')[0]}\r\n\r\nweb`)),
    );
    await engine.start({
      listeners: [
        {
          name: 'sniffing',
          address: socketAddress(port),
          listener_filters: [inspector('tls_inspector'), inspector('http_inspector')],
          listener_filters_timeout: '0.2s',
          continue_on_listener_filters_timeout: true,
          filter_chains: [
            { filter_chain_match: { transport_protocol: 'tls' }, filters: [http('web')], ...serverTls(cert, key) },
            { filter_chain_match: { transport_protocol: 'raw_buffer', application_protocols: ['http/1.1', 'http/1.0'] }, filters: [http('web')] },
            { filter_chain_match: {}, filters: [tcp('mail')] },
          ],
        },
      ],
      clusters: [cluster('web', [web]), cluster('mail', [mail])],
    });
    const plain = new RawClient(port).write('GE').write('T /p HTTP/1.1\r\nhost: a\r\n\r\n');
    await plain.until(/x-first: GET \/p[\s\S]*server: mizzen[\s\S]*web$/);
    const secure = tls.connect({ port, host: '127.0.0.1', servername: 'sniff.test', ca: authority.pem(authority.certificate) });
    secure.write('GET /t HTTP/1.1\r\nhost: a\r\n\r\n');
    const [answer] = (await once(secure, 'data')) as [Buffer];
    assert.match(answer.toString(), /x-first: GET \/t/);
    const first = new RawClient(port);
    await first.until(/^220 mail/);
    first.write('HELO');
    await first.until(/250 HELO/);
    const binary = new RawClient(port).write('\x00\x01\x02');
    await binary.until(/^220 mail\r\n250 /);
    const preface = new RawClient(port).write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
    await preface.until(/^220 mail\r\n250 PRI/);
    for (const each of [plain, first, binary, preface]) each.destroy();
    secure.destroy();
  });

  it('chooses filter chains by port, addresses and ports of the client, the most specific first', async () => {
    const port = await engine.ports.next();
    const named = async (name: string) => cluster(name, [await engine.server((socket) => socket.end(name))]);
    await engine.start({
      listeners: [
        {
          name: 'chains',
          address: socketAddress(port, '0.0.0.0'),
          filter_chains: [
            { filter_chain_match: { source_prefix_ranges: [{ address_prefix: '127.0.0.0', prefix_len: 8 }] }, filters: [tcp('loopback')] },
            { filter_chain_match: { source_prefix_ranges: [{ address_prefix: '127.0.0.2', prefix_len: 32 }] }, filters: [tcp('second')] },
            { filter_chain_match: { prefix_ranges: [{ address_prefix: '127.0.0.3', prefix_len: 32 }] }, filters: [tcp('third')] },
          ],
          default_filter_chain: { filters: [tcp('rest')] },
        },
      ],
      clusters: [await named('loopback'), await named('second'), await named('third'), await named('rest')],
    });
    assert.equal(await new RawClient(port).closed(), 'loopback');
    assert.equal(await new RawClient(port, { localAddress: '127.0.0.2' }).closed(), 'second');
    assert.equal(await new RawClient(port, { host: '127.0.0.3', localAddress: '127.0.0.2' }).closed(), 'third');
  });

  it('carries datagrams and their answers, per client, and gives their sockets up when idle', async () => {
    const port = await engine.ports.next();
    const server = dgram.createSocket('udp4');
    const sources = new Set<number>();
    server.on('message', (data, from) => {
      sources.add(from.port);
      server.send(`re: ${data}`, from.port, from.address);
    });
    server.bind(0, '127.0.0.1');
    await once(server, 'listening');
    engine.onClose(() => server.close());
    const proxy = await engine.start({
      listeners: [
        {
          name: 'dns',
          address: socketAddress(port, '127.0.0.1', 'UDP'),
          listener_filters: [
            typed('envoy.filters.udp_listener.udp_proxy', 'extensions.filters.udp.udp_proxy.v3.UdpProxyConfig', {
              stat_prefix: 'dns',
              cluster: 'dns',
              idle_timeout: '0.5s',
            }),
          ],
        },
      ],
      clusters: [cluster('dns', [server.address().port])],
    });
    const ask = async (text: string) => {
      const client = dgram.createSocket('udp4');
      engine.onClose(() => client.close());
      client.send(text, port, '127.0.0.1');
      const [answer] = (await once(client, 'message', { signal: AbortSignal.timeout(20_000) })) as [Buffer];
      client.send(`${text}2`, port, '127.0.0.1');
      const [second] = (await once(client, 'message', { signal: AbortSignal.timeout(20_000) })) as [Buffer];
      return `${answer} ${second}`;
    };
    assert.deepEqual(await Promise.all(['a', 'b', 'c'].map(ask)), ['re: a re: a2', 're: b re: b2', 're: c re: c2']);
    assert.equal(sources.size, 3);
    await until(
      'the sessions end',
      () => engine.metrics(proxy.adminPort!),
      (text) => metric(text, 'mizzen_udp_sessions_active') === 0 && metric(text, 'mizzen_udp_sessions_total') === 3,
    );
    const { listeners } = JSON.parse((await call({ port: proxy.adminPort!, path: '/listeners' })).body) as {
      listeners: { protocol: string; listening: boolean }[];
    };
    assert.deepEqual(
      listeners.map(({ protocol, listening }) => [protocol, listening]),
      [['udp', true]],
    );
  });
});
