import 'reflect-metadata';
import assert from 'node:assert/strict';
import { webcrypto } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import { CheckRequestSchema, type CheckResponse, CheckResponseSchema } from '@mizzen/envoy-api/gen/envoy/service/auth/v3/external_auth_pb.js';
import * as x509 from '@peculiar/x509';
import { cluster, http as httpManager, type Json, listener, serverTls, TestEngine, typed } from './support/engine.ts';
import { call } from './support/http.ts';
import { TokenIssuer } from './support/tokens.ts';

/** Texts that hold each code point of the basic plane, and some beyond, whose low byte is CR, LF or NUL, and an attack that one-byte encodings would turn into a second request. */
const lowBytes = [0x0d, 0x0a, 0x00].flatMap((low) =>
  Array.from({ length: 0x103 }, (_, high) => ((high < 0x100 ? high : 0x100 + 16 * (high - 0x100)) << 8) | low),
);
const points = lowBytes.filter((point) => point > 0xff && (point < 0xd800 || point > 0xdfff));
const chunk = 96;
const texts = [
  'x\u010d\u010aset-cookie: a=b\u010d\u010a\u010d\u010aGET /admin HTTP/1.1\u010d\u010ahost: x\u010d\u010a\u010d\u010a',
  'München 日本 😀',
  ...Array.from({ length: Math.ceil(points.length / chunk) }, (_, i) => String.fromCodePoint(...points.slice(i * chunk, (i + 1) * chunk))),
];
const utf8 = (text: string) => Buffer.from(text, 'utf8').toString('latin1');
const nameOf = (i: number) => `x-text-${i}`;
const router = typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router');

describe('text that becomes header bytes, by its source', () => {
  const engine = new TestEngine();
  /** The heads of the requests that the server has received, by request. */
  const received: string[] = [];
  let app: number;
  before(async () => {
    app = await engine.server((socket) => {
      let text = '';
      socket.on('data', (data: Buffer) => {
        text += data.toString('latin1');
        for (let end = text.indexOf('\r\n\r\n'); end >= 0; end = text.indexOf('\r\n\r\n')) {
          received.push(text.slice(0, end + 2));
          text = text.slice(end + 4);
          socket.write('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n');
        }
      });
    });
  });
  after(() => engine.close());
  beforeEach(() => received.splice(0));

  const start = async (manager: Json, route: Json = {}, clusters: readonly Json[] = [], chain: Json = {}) => {
    const port = await engine.ports.next();
    await engine.start({ listeners: [listener('in', port, httpManager('app', manager, route), {}, chain)], clusters: [cluster('app', [app]), ...clusters] });
    return port;
  };
  const startRoute = async (more: Json, manager: Json = {}) => {
    const route = { match: { prefix: '/' }, route: { cluster: 'app' }, ...more };
    return start({ route_config: { name: 'test', virtual_hosts: [{ name: 'all', domains: ['*'], routes: [route] }] }, ...manager });
  };
  /** Sends one request, verifies that the server received one, without a header that was not meant, and returns its fields. */
  const fieldsOf = async (request: Parameters<typeof call>[0]): Promise<ReadonlyMap<string, string>> => {
    assert.equal((await call({ headers: { host: 'a' }, ...request })).status, 200);
    assert.equal(received.length, 1, 'one request has become one request');
    const [line, ...fields] = received[0]!.split('\r\n').slice(0, -1);
    assert.match(line!, /^GET \S+ HTTP\/1\.1$/);
    const found = new Map<string, string>();
    for (const field of fields) {
      const match = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t\x20-\x7e\x80-\xff]*)$/.exec(field);
      assert.ok(match !== null, JSON.stringify(field));
      const name = match[1]!.toLowerCase();
      assert.ok(!found.has(name), `${name} came twice`);
      assert.ok(
        /^(?:host|connection|content-length|accept-encoding|te|trace.*|baggage|authorization|x-(?:text-\d+|forwarded-.*|request-id|envoy-.*|payload|token))$/.test(
          name,
        ),
        name,
      );
      found.set(name, match[2]!);
    }
    return found;
  };
  const assertUtf8 = (fields: ReadonlyMap<string, string>) => texts.forEach((text, i) => assert.equal(fields.get(nameOf(i)), utf8(text)));

  it('the configuration (request_headers_to_add)', async () => {
    const added = texts.map((value, i) => ({ header: { key: nameOf(i), value } }));
    assertUtf8(await fieldsOf({ port: await startRoute({ request_headers_to_add: added }) }));
  });

  it('the subject and the names of a client certificate, in x-forwarded-client-cert', async () => {
    const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
    const root = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
    const dates = { notBefore: new Date(Date.now() - 60_000), notAfter: new Date(Date.now() + 3_600_000) };
    const pemOf = async (keys: webcrypto.CryptoKeyPair) => x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey), 'PRIVATE KEY');
    const authority = await x509.X509CertificateGenerator.createSelfSigned(
      { ...dates, name: 'CN=root', keys: root, signingAlgorithm: algorithm, extensions: [new x509.BasicConstraintsExtension(true, undefined, true)] },
      webcrypto as never,
    );
    const issue = async (name: x509.JsonName, dns: string) => {
      const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
      const extensions = [
        new x509.SubjectAlternativeNameExtension([
          { type: 'dns', value: dns },
          { type: 'url', value: 'spiffe://cluster.local/ns/a/sa/b' },
        ]),
      ];
      const certificate = await x509.X509CertificateGenerator.create(
        {
          ...dates,
          subject: new x509.Name(name).toString(),
          issuer: authority.subject,
          publicKey: keys.publicKey,
          signingKey: root.privateKey,
          signingAlgorithm: algorithm,
          extensions,
        },
        webcrypto as never,
      );
      return { cert: certificate.toString('pem'), key: await pemOf(keys) };
    };
    const write = (name: string, text: string) => {
      writeFileSync(join(engine.folder, name), text);
      return join(engine.folder, name);
    };
    const ca = write('root.pem', authority.toString('pem'));
    const server = await issue([{ CN: ['server'] }], 'server.test');
    const port = await start(
      { forward_client_cert_details: 'SANITIZE_SET', set_current_client_cert_details: { subject: true, uri: true, dns: true, cert: true } },
      {},
      [],
      serverTls(
        write('server.pem', server.cert),
        write('server.key', server.key),
        { require_client_certificate: true },
        { validation_context: { trusted_ca: { filename: ca } } },
      ),
    );
    for (const [i, text] of texts.entries()) {
      received.splice(0);
      const client = await issue([{ CN: ['client'] }, { O: [text] }], `a${i}.example`);
      const fields = await fieldsOf({ port, tls: { ...client, ca: authority.toString('pem'), servername: 'server.test', agent: false } });
      const element = fields.get('x-forwarded-client-cert')!;
      assert.match(element, /^[\x20-\x7e]*$/);
      const subject = /(?:^|;)Subject="((?:[^"\\]|\\.)*)"/.exec(element)?.[1];
      assert.ok(subject !== undefined, element);
      const bytes = subject.replace(/\\([0-9A-F]{2})/g, (_escape, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
      assert.ok(bytes.includes(utf8(text).replace(/[",+;<>\\]/g, '\\$&')) || bytes.includes(utf8(text)), bytes);
    }
  });

  it('an authorization service by gRPC, which cannot add headers with line ends either', async () => {
    const service = new Server();
    service.addService(
      {
        check: {
          ...{ path: '/envoy.service.auth.v3.Authorization/Check', requestStream: false, responseStream: false },
          requestDeserialize: (bytes: Buffer) => fromBinary(CheckRequestSchema, bytes),
          requestSerialize: () => Buffer.alloc(0),
          responseSerialize: (message: CheckResponse) => Buffer.from(toBinary(CheckResponseSchema, message)),
          responseDeserialize: (bytes: Buffer) => fromBinary(CheckResponseSchema, bytes),
        },
      },
      {
        check: (_call: unknown, answer: (error: null, response: CheckResponse) => void) =>
          answer(
            null,
            create(CheckResponseSchema, {
              httpResponse: {
                case: 'okResponse',
                value: {
                  headers: [
                    ...texts.map((value, i) => ({ header: { key: nameOf(i), value } })),
                    { header: { key: 'x-evil\r\nx-more', value: 'a\r\nx-evil: b' } },
                  ],
                },
              },
            }),
          ),
      },
    );
    const port = await new Promise<number>((resolve, reject) =>
      service.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))),
    );
    engine.onClose(() => service.forceShutdown());
    const filter = typed('envoy.filters.http.ext_authz', 'extensions.filters.http.ext_authz.v3.ExtAuthz', {
      transport_api_version: 'V3',
      grpc_service: { envoy_grpc: { cluster_name: 'grpc' }, timeout: '5s' },
    });
    assertUtf8(await fieldsOf({ port: await start({ http_filters: [filter, router] }, {}, [cluster('grpc', [port], { http2_protocol_options: {} })]) }));
  });

  it('an authorization service by HTTP', async () => {
    const port = await engine.server((socket) =>
      socket.on('data', () =>
        socket.write(Buffer.from(`HTTP/1.1 200 OK\r\ncontent-length: 0\r\n${texts.map((text, i) => `${nameOf(i)}: ${text}\r\n`).join('')}\r\n`)),
      ),
    );
    const filter = typed('envoy.filters.http.ext_authz', 'extensions.filters.http.ext_authz.v3.ExtAuthz', {
      transport_api_version: 'V3',
      http_service: {
        server_uri: { uri: 'http://authz', cluster: 'authz', timeout: '5s' },
        authorization_response: { allowed_upstream_headers: { patterns: [{ prefix: 'x-text-' }] } },
      },
    });
    assertUtf8(await fieldsOf({ port: await start({ http_filters: [filter, router] }, {}, [cluster('authz', [port])]) }));
  });

  it('claims of a token', async () => {
    const issuer = await TokenIssuer.create('https://one.example', ['ES256']);
    const filter = typed('envoy.filters.http.jwt_authn', 'extensions.filters.http.jwt_authn.v3.JwtAuthentication', {
      providers: {
        one: {
          ...{ issuer: issuer.issuer, local_jwks: { inline_string: issuer.jwks }, forward_payload_header: 'x-payload' },
          claim_to_headers: texts.map((_, i) => ({ header_name: nameOf(i), claim_name: `t${i}` })),
        },
      },
      rules: [{ match: { prefix: '/' }, requires: { provider_name: 'one' } }],
    });
    const token = await issuer.sign(Object.fromEntries(texts.map((text, i) => [`t${i}`, text])), { alg: 'ES256' });
    const port = await start({ http_filters: [filter, router] });
    assertUtf8(await fieldsOf({ port, headers: { host: 'a', authorization: `Bearer ${token}` } }));
  });

  it('filters of users', async () => {
    const file = join(engine.folder, 'texts.ts');
    writeFileSync(
      file,
      `export default { name: 'texts', onRequest(request, config) { config.texts.forEach((text, i) => request.headers.set('x-text-' + i, text)); } };\n`,
    );
    const type = { '@type': 'type.googleapis.com/mizzen.http.v1.ScriptPerRoute' };
    const port = await startRoute(
      {
        typed_per_filter_config: {
          'mizzen.filters.http.script': { ...type, scripts: [{ file, config: { texts }, timeout_ms: 10_000 }] },
        },
      },
      { http_filters: [{ name: 'mizzen.filters.http.script', typed_config: type }, router] },
    );
    assertUtf8(await fieldsOf({ port }));
  });

  it('trace state, baggage and other headers of a client, which are bytes already and stay what they are', async () => {
    const port = await start({});
    const client = net.connect(port, '127.0.0.1');
    const state = `a=${utf8(texts[1]!)}`;
    client.write(
      Buffer.from(`GET / HTTP/1.1\r\nhost: a\r\ntracestate: ${state}\r\nbaggage: ${state}\r\nx-text-0: \xff\xfe\x80\r\nconnection: close\r\n\r\n`, 'latin1'),
    );
    await new Promise((resolve) => client.once('close', resolve).resume());
    assert.equal(received.length, 1);
    for (const line of [`tracestate: ${state}`, `baggage: ${state}`, 'x-text-0: \xff\xfe\x80']) assert.ok(received[0]!.includes(`\r\n${line}\r\n`), line);
  });
});
