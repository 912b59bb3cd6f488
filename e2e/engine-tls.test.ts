import assert from 'node:assert/strict';
import { once } from 'node:events';
import { copyFileSync, renameSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { TestAuthority } from './support/certificates.ts';
import { clientTls, cluster, http as httpFilter, type Json, listener, metric, serverTls, TestEngine, typed } from './support/engine.ts';
import { call, until } from './support/http.ts';

describe('TLS of the engine', () => {
  const engine = new TestEngine();
  let authority: TestAuthority;
  let other: TestAuthority;
  let app: number;
  let server: { cert: string; key: string };
  let client: { cert: string; key: string };
  let stranger: { cert: string; key: string };

  before(async () => {
    authority = new TestAuthority(engine.folder);
    other = new TestAuthority(engine.folder, 'other');
    server = authority.issue('server', ['DNS:server.test', 'URI:spiffe://cluster.local/ns/default/sa/server']);
    client = authority.issue('client', ['URI:spiffe://cluster.local/ns/default/sa/client']);
    stranger = other.issue('stranger', ['URI:spiffe://cluster.local/ns/default/sa/client']);
    const application = http.createServer((request, response) => response.end(JSON.stringify(request.headers))).listen(0, '127.0.0.1');
    await once(application, 'listening');
    app = (application.address() as { port: number }).port;
    engine.onClose(() => {
      application.closeAllConnections();
      application.close();
    });
  });
  after(() => engine.close());

  const withTls = async (more: Json = {}, common: Json = {}, files = server) => {
    const port = await engine.ports.next();
    const proxy = await engine.start({
      listeners: [listener('in', port, httpFilter('app'), {}, serverTls(files.cert, files.key, more, common))],
      clusters: [cluster('app', [app])],
    });
    return { port, proxy };
  };
  const trust = () => ({ ca: authority.pem(authority.certificate), servername: 'server.test' });
  const ask = (port: number, more: https.RequestOptions = {}) => call({ port, headers: { host: 'a' }, tls: { ...trust(), ...more } });
  const validation = (more: Json = {}) => ({ validation_context: { trusted_ca: { filename: authority.certificate }, ...more } });
  const identity = (files: { cert: string; key: string }) => ({ cert: authority.pem(files.cert), key: authority.pem(files.key) });
  const connect = (port: number, options: tls.ConnectionOptions) =>
    new Promise<tls.TLSSocket>((resolve, reject) => {
      const socket = tls.connect({ port, host: '127.0.0.1', ...trust(), ...options }, () => resolve(socket));
      socket.once('error', reject);
    });

  it('speaks no less than TLS 1.2, and what the configuration allows', async () => {
    const { port } = await withTls({}, { tls_params: { tls_minimum_protocol_version: 'TLSv1_3' } });
    assert.equal((await ask(port)).status, 200);
    await assert.rejects(ask(port, { maxVersion: 'TLSv1.2' }));
    const old = await withTls({}, { tls_params: { tls_maximum_protocol_version: 'TLSv1_2', cipher_suites: ['ECDHE-ECDSA-AES256-GCM-SHA384'] } });
    const socket = await connect(old.port, {});
    assert.deepEqual([socket.getProtocol(), socket.getCipher().name], ['TLSv1.2', 'ECDHE-ECDSA-AES256-GCM-SHA384']);
    socket.destroy();
    await assert.rejects(connect(old.port, { ciphers: 'ECDHE-ECDSA-AES128-GCM-SHA256' }));
    await assert.rejects(connect(old.port, { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' }));
  });

  it('offers forward secret suites alone unless told otherwise, and never renegotiates', async () => {
    const { port } = await withTls();
    for (const ciphers of ['AES128-GCM-SHA256', 'AES256-SHA', 'ECDHE-ECDSA-AES128-SHA', 'ECDHE-ECDSA-AES128-SHA256', 'ECDHE-ECDSA-AES256-SHA384'])
      await assert.rejects(connect(port, { maxVersion: 'TLSv1.2', ciphers: `${ciphers}:@SECLEVEL=0` }), ciphers);
    const socket = await connect(port, { maxVersion: 'TLSv1.2' });
    const refused = await new Promise((resolve) => {
      socket.on('error', resolve);
      if (socket.renegotiate({}, (error) => resolve(error)) === false) resolve(new Error('refused at once'));
    });
    assert.ok(refused instanceof Error);
    socket.destroy();
  });

  it('closes a connection whose ClientHello comes in records of a byte', async () => {
    const port = await engine.ports.next();
    const proxy = await engine.start({
      listeners: [
        listener(
          'in',
          port,
          httpFilter('app'),
          { listener_filters: [typed('envoy.filters.listener.tls_inspector', 'extensions.filters.listener.tls_inspector.v3.TlsInspector')] },
          serverTls(server.cert, server.key),
        ),
      ],
      clusters: [cluster('app', [app])],
    });
    const socket = net.connect(port, '127.0.0.1');
    socket.on('error', () => {});
    socket.write(Buffer.concat(Array.from({ length: 40 }, () => Buffer.from([0x16, 3, 1, 0, 1, 1]))));
    await once(socket.resume(), 'close');
    assert.match(await engine.metrics(proxy.adminPort!), /client_hello_refused/);
    assert.equal((await ask(port)).status, 200);
  });

  it('agrees on an application protocol, and ends a handshake in which none fits', async () => {
    const { port } = await withTls({}, { alpn_protocols: ['istio', 'http/1.1'] });
    const socket = await connect(port, { ALPNProtocols: ['h2', 'http/1.1'] });
    assert.equal(socket.alpnProtocol, 'http/1.1');
    socket.destroy();
    await assert.rejects(connect(port, { ALPNProtocols: ['h2'] }), /no application protocol/i);
    const silent = await connect(port, {});
    assert.equal(silent.alpnProtocol, false);
    silent.destroy();
  });

  it('takes clients by their certificate: none, untrusted, of another name, pinned', async () => {
    const { port } = await withTls(
      { require_client_certificate: true },
      validation({ match_typed_subject_alt_names: [{ san_type: 'URI', matcher: { prefix: 'spiffe://cluster.local/ns/default/' } }] }),
    );
    assert.equal((await ask(port, identity(client))).status, 200);
    await assert.rejects(ask(port));
    await assert.rejects(ask(port, identity(stranger)));
    const elsewhere = authority.issue('elsewhere', ['URI:spiffe://cluster.local/ns/elsewhere/sa/client']);
    await assert.rejects(ask(port, identity(elsewhere)));
    const hash = await import('node:crypto').then(({ X509Certificate }) => new X509Certificate(authority.pem(client.cert)).fingerprint256);
    const pinned = await withTls({ require_client_certificate: true }, validation({ verify_certificate_hash: [hash] }));
    assert.equal((await ask(pinned.port, identity(client))).status, 200);
    await assert.rejects(ask(pinned.port, identity(elsewhere)));
    const optional = await withTls({}, validation());
    assert.equal((await ask(optional.port)).status, 200);
    assert.equal((await ask(optional.port, identity(client))).status, 200);
    await assert.rejects(ask(optional.port, identity(stranger)));
  });

  it('resumes sessions, also with client certificates, but not across listeners that ask for less', async () => {
    const strict = { require_client_certificate: true };
    const [one, loose] = [await withTls(strict, validation()), await withTls({}, validation())];
    const session = async (port: number, options: tls.ConnectionOptions) => {
      const socket = tls.connect({ port, host: '127.0.0.1', ...trust(), ...options });
      const offered = once(socket, 'session', { signal: AbortSignal.timeout(20_000) }) as Promise<[Buffer]>;
      socket.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n');
      const [bytes] = await offered;
      const reused = socket.isSessionReused();
      socket.destroy();
      return { bytes, reused };
    };
    for (const maxVersion of ['TLSv1.3', 'TLSv1.2'] as const) {
      const first = await session(one.port, { ...identity(client), maxVersion });
      assert.equal(first.reused, false);
      const again = await connect(one.port, { ...identity(client), maxVersion, session: first.bytes });
      assert.equal(again.isSessionReused(), true, maxVersion);
      again.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n');
      assert.match(String((await once(again, 'data'))[0]), /200 OK/);
      again.destroy();
    }
    // A session of a client that has shown nothing must not open the strict listener.
    const anonymous = await session(loose.port, {});
    const tried = await connect(one.port, { session: anonymous.bytes }).then(
      async (socket) => {
        const closed = new Promise((resolve) => socket.on('close', resolve));
        socket.on('error', () => {});
        socket.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n');
        let text = '';
        socket.on('data', (chunk) => (text += chunk));
        await closed;
        return text;
      },
      () => '',
    );
    assert.equal(tried, '');
    const text = await engine.metrics(one.proxy.adminPort!);
    assert.equal(metric(text, 'mizzen_tls_sessions_resumed_total'), 2);
  });

  it('resumes its own sessions with servers that it has verified, and verifies names', async () => {
    const port = await engine.ports.next();
    let resumed = 0;
    let handshakes = 0;
    const backend = https
      .createServer({ ...identity(server), requestCert: true, ca: authority.pem(authority.certificate), rejectUnauthorized: true }, (request, response) => {
        response.end((request.socket as tls.TLSSocket).getPeerCertificate().subjectaltname);
      })
      .listen(0, '127.0.0.1');
    backend.on('secureConnection', (socket) => {
      handshakes++;
      if (socket.isSessionReused()) resumed++;
    });
    await once(backend, 'listening');
    engine.onClose(() => {
      backend.closeAllConnections();
      backend.close();
    });
    const to = (name: string, expected: string): Json =>
      cluster(name, [(backend.address() as { port: number }).port], {
        ...clientTls(
          {
            tls_certificates: [{ certificate_chain: { filename: client.cert }, private_key: { filename: client.key } }],
            ...validation({ match_typed_subject_alt_names: [{ san_type: 'URI', matcher: { exact: expected } }] }),
          },
          { sni: 'server.test' },
        ),
        common_http_protocol_options: { max_requests_per_connection: 1 },
      });
    await engine.start({
      listeners: [listener('out', port, httpFilter('right', {}, {}, [{ match: { prefix: '/wrong' }, route: { cluster: 'wrong' } }]))],
      clusters: [to('right', 'spiffe://cluster.local/ns/default/sa/server'), to('wrong', 'spiffe://cluster.local/ns/default/sa/server2')],
    });
    for (let i = 0; i < 4; i++) assert.equal((await call({ port, headers: { host: 'a' } })).body, 'URI:spiffe://cluster.local/ns/default/sa/client');
    assert.equal(handshakes, 4);
    assert.ok(resumed >= 2, `${resumed} of 4 were resumed`);
    const refused = await call({ port, path: '/wrong', headers: { host: 'a' } });
    assert.equal(refused.status, 503);
    assert.match(
      refused.body,
      /the server is spiffe:\/\/cluster\.local\/ns\/default\/sa\/server, .*but spiffe:\/\/cluster\.local\/ns\/default\/sa\/server2 was expected/,
    );
  });

  it('staples an OCSP response that it was given', async () => {
    const staple = authority.ocspResponse(server.cert);
    const port = await engine.ports.next();
    await engine.start({
      listeners: [
        listener(
          'in',
          port,
          httpFilter('app'),
          {},
          {
            transport_socket: {
              name: 'envoy.transport_sockets.tls',
              typed_config: {
                '@type': 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext',
                common_tls_context: {
                  tls_certificates: [
                    { certificate_chain: { filename: server.cert }, private_key: { filename: server.key }, ocsp_staple: { filename: staple } },
                  ],
                },
              },
            },
          },
        ),
      ],
      clusters: [cluster('app', [app])],
    });
    const socket = tls.connect({ port, host: '127.0.0.1', ...trust(), requestOCSP: true });
    const [response] = (await once(socket, 'OCSPResponse')) as [Buffer];
    assert.ok(response.length > 100);
    socket.destroy();
  });

  it('serves an ECDSA and an RSA certificate, each to those who can take it', async () => {
    const rsa = authority.issue('rsa', ['DNS:server.test'], { rsa: true });
    const certificate = (files: { cert: string; key: string }) => ({ certificate_chain: { filename: files.cert }, private_key: { filename: files.key } });
    const { port } = await withTls({}, { tls_certificates: [certificate(server), certificate(rsa)] });
    for (const [ciphers, bits] of [
      ['ECDHE-ECDSA-AES128-GCM-SHA256', 256],
      ['ECDHE-RSA-AES128-GCM-SHA256', 2048],
    ] as const) {
      const socket = await connect(port, { ciphers, maxVersion: 'TLSv1.2' });
      assert.equal((socket.getPeerCertificate() as unknown as { bits: number }).bits, bits);
      socket.destroy();
    }
  });

  it('takes a certificate that was replaced in its file, and leaves live connections alone', async () => {
    const files = { cert: join(engine.folder, 'live.pem'), key: join(engine.folder, 'live.key') };
    copyFileSync(server.cert, files.cert);
    copyFileSync(server.key, files.key);
    const { port } = await withTls({}, {}, files);
    const agent = new https.Agent({ keepAlive: true, maxSockets: 1 });
    assert.equal((await ask(port, { agent })).status, 200);
    const serial = async () => {
      const socket = await connect(port, {});
      const { serialNumber } = socket.getPeerCertificate();
      socket.destroy();
      return serialNumber;
    };
    const before = await serial();
    const next = authority.issue('next', ['DNS:server.test']);
    copyFileSync(next.cert, `${files.cert}.new`);
    copyFileSync(next.key, `${files.key}.new`);
    renameSync(`${files.cert}.new`, files.cert);
    renameSync(`${files.key}.new`, files.key);
    const after = await until('the new certificate is served', serial, (found) => found !== before);
    // What cannot be used is not: the last good one stays.
    writeFileSync(files.cert, 'nonsense');
    await new Promise((resolve) => setTimeout(resolve, 300));
    assert.equal(await serial(), after);
    assert.equal((await ask(port, { agent })).status, 200);
    agent.destroy();
  });

  it('takes secrets from a file of SDS and follows it', async () => {
    const file = join(engine.folder, 'sds.yaml');
    const write = (files: { cert: string; key: string }) =>
      writeFileSync(
        file,
        `resources:\n- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: server\n  tls_certificate:\n    certificate_chain: { filename: ${files.cert} }\n    private_key: { filename: ${files.key} }\n`,
      );
    write(server);
    const port = await engine.ports.next();
    await engine.start({
      listeners: [
        listener(
          'in',
          port,
          httpFilter('app'),
          {},
          serverTls(
            '',
            '',
            {},
            { tls_certificates: [], tls_certificate_sds_secret_configs: [{ name: 'server', sds_config: { path_config_source: { path: file } } }] },
          ),
        ),
      ],
      clusters: [cluster('app', [app])],
    });
    const name = async () => {
      const socket = await connect(port, { checkServerIdentity: () => undefined });
      const { subject } = socket.getPeerCertificate();
      socket.destroy();
      return subject.CN;
    };
    assert.equal(await name(), 'server');
    write(authority.issue('renewed', ['DNS:server.test']));
    await until('the renewed secret is served', name, (found) => found === 'renewed');
  });

  it('ends a handshake that does not go on', async () => {
    const port = await engine.ports.next();
    const proxy = await engine.start({
      listeners: [listener('in', port, httpFilter('app'), {}, { ...serverTls(server.cert, server.key), transport_socket_connect_timeout: '0.3s' })],
      clusters: [cluster('app', [app])],
    });
    const { RawClient } = await import('./support/engine.ts');
    const slow = new RawClient(port).write('\x16\x03\x01');
    await slow.closed(5_000);
    assert.equal(metric(await engine.metrics(proxy.adminPort!), 'mizzen_tls_handshake_failures_total'), 1);
  });

  it('says what is wrong with a certificate before it listens', async () => {
    const start = (more: Json) => withTls({}, more);
    await assert.rejects(
      start({ tls_certificates: [{ certificate_chain: { filename: server.cert }, private_key: { filename: client.key } }] }),
      /the key does not belong to the certificate/,
    );
    await assert.rejects(
      start({ tls_certificates: [{ certificate_chain: { filename: '/nowhere.pem' }, private_key: { filename: client.key } }] }),
      /\/nowhere\.pem/,
    );
    await assert.rejects(
      start({ tls_certificates: [{ certificate_chain: { inline_string: 'x' }, private_key: { inline_string: 'y' } }] }),
      /listener in, filter chain 0/,
    );
  });
});
