import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const root = join(import.meta.dirname, '..');

describe('an API with filters of its users, and with gRPC behind it', () => {
  let folder: string;
  let mesh: TestMesh;
  let gw: RunningProxy;
  let port: number;
  const ask = (path: string, options: { method?: string; headers?: Record<string, string>; body?: string } = {}) =>
    call({ port, path, ...options, headers: { host: 'api.test', ...options.headers } });
  const metrics = async () => (await call({ port: gw.adminPort, path: '/stats/prometheus' })).body;

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'mizzen-filters-'));
    mesh = await TestMesh.start({ directory: folder });
    port = await mesh.ports.next();
    await mesh.workload('echo');
    gw = await mesh.proxy('gw', { type: 'gateway', labels: { app: 'gateway' } });
    await mesh.apply(`${service('echo')}
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: ingress }
spec: { selector: { app: gateway }, servers: [{ port: { number: ${port}, name: http, protocol: HTTP }, hosts: ["*"] }] }
`);
    await gw.proxy.ready;
  });
  after(async () => {
    await mesh.close();
    rmSync(folder, { recursive: true, force: true });
  });

  const api = (name: string, path: string, policies: string, upstream = 'service: echo') => `
apiVersion: mizzen.dev/v1alpha1
kind: Api
metadata: { name: ${name} }
spec:
  hosts: [api.test]
  paths: [${path}]
  placement: edge
  gateways: [ingress]
  upstream: { ${upstream} }
  policies:
${policies}
---
`;

  describe('written in TypeScript', () => {
    const filter = (greeting: string) => `
import { defineFilter, respond } from '@mizzen/filter';
interface Config { readonly tenant: string }
export default defineFilter<Config>({
  name: 'tenant',
  config(raw) {
    const { tenant } = raw as Partial<Config>;
    if (typeof tenant !== 'string') throw new Error('tenant is missing');
    return { tenant };
  },
  async onRequest(request, config) {
    const does = request.headers.get('x-do');
    if (does === 'throw') throw new Error('as asked');
    if (does === 'hang') await new Promise(() => {});
    if (does === 'loop') for (;;);
    if (does === 'loop-later') { await new Promise((resolve) => setTimeout(resolve, 1)); for (;;); }
    if (does === 'refuse') return respond(418, { title: 'teapot' }, { 'x-why': 'asked' });
    if (does === 'path') (request as any).path = 5;
    if (does === 'long-path') request.path = '/' + 'a'.repeat(20_000);
    if (does === 'fields') request.headers.set('x-many', 'a'.repeat(100_000));
    if (does === 'field') (request.headers as any).set('x-one', { toString: null });
    if (does === 'status-99') return { status: 99, body: '', headers: {} };
    if (does === 'status-101') return { status: 101, body: '', headers: {} };
    if (does === 'status-1e9') return { status: 1e9, body: '', headers: {} };
    if (does === 'split') return { status: 200, body: '', headers: { 'x-a': 'b\\r\\nx-c: d' } };
    if (does === 'name') return { status: 200, body: '', headers: { 'x a': 'b' } };
    if (does === 'body') return respond(200, 'a'.repeat(2_000_000));
    if (does === 'symbol') return { status: 200, body: Symbol('body'), headers: {} } as never;
    if (does === 'bigint') return respond(200, { id: 5n });
    if (does === 'getter') return { get status() { throw new Error('as asked'); } } as never;
    if (does === 'nothing-thrown') throw null;
    if (does === 'rejected') return Promise.reject(Object.create(null));
    if (does === 'exit') process.exit(0);
    if (does === 'kill-later') { await new Promise((resolve) => setTimeout(resolve, 20)); process.kill(process.pid, 'SIGKILL'); }
    if (does === 'abort') process.abort();
    if (does === 'recurse') { const recurse = (): number => 1 + recurse(); recurse(); }
    if (does === 'array') (globalThis as any).all = new Array(5e8).fill(1);
    if (does === 'message') (await import('node:fs')).writeSync(3, 'null\\n');
    if (does === 'flood') { const { writeSync } = await import('node:fs'); for (;;) writeSync(3, 'a'.repeat(1e6)); }
    if (does === 'stray') { Promise.reject(new Error('stray')); setTimeout(() => { throw new Error('stray'); }); }
    if (does === 'forget') { const all = []; for (;;) all.push(new Array(1e6).fill(1)); }
    request.headers.set('x-tenant', config.tenant);
    request.headers.delete('x-secret');
    if (request.path.startsWith('/ts/old')) request.path = request.path.replace('/old', '/new');
    return undefined;
  },
  onResponse(response, request, config) {
    response.headers.set('x-greeting', \`${greeting} \${config.tenant} \${request.method}\`);
    if (request.headers.get('x-do') === 'throw-later') throw new Error('as asked');
    if (request.headers.get('x-do') === 'status-text') (response as any).status = '200 OK';
    if (request.headers.get('x-do') === 'status-late') response.status = 1e9;
    if (request.headers.get('x-do') === 'accept') response.status = 202;
  },
});
`;
    const file = () => join(folder, 'filters/tenant.ts');
    before(async () => {
      mkdirSync(join(folder, 'filters'));
      writeFileSync(file(), filter('hello'));
      await mesh.apply(api('ts', '/ts', '    filters: [{ file: filters/tenant.ts, config: { tenant: acme }, timeout: 1s }]'));
    });

    it('changes requests and answers, with the configuration that the resource gives it', async () => {
      const answer = await ask('/ts/old/a?b=1', { method: 'POST', body: 'x'.repeat(100_000), headers: { 'x-secret': '1', 'x-do': 'accept' } });
      assert.equal(answer.status, 202);
      assert.equal(answer.headers['x-greeting'], 'hello acme POST');
      const echo = JSON.parse(answer.body) as { url: string; headers: Record<string, string>; body: string };
      assert.equal(echo.url, '/ts/new/a?b=1');
      assert.equal(echo.headers['x-tenant'], 'acme');
      assert.equal(echo.headers['x-secret'], undefined);
      assert.equal(echo.body.length, 100_000);
    });

    it('answers requests itself', async () => {
      const answer = await ask('/ts/a', { headers: { 'x-do': 'refuse' } });
      assert.equal(answer.status, 418);
      assert.equal(answer.headers['x-why'], 'asked');
      assert.deepEqual(JSON.parse(answer.body), { title: 'teapot' });
    });

    const values = ['path', 'long-path', 'fields', 'field', 'status-99', 'status-101', 'status-1e9', 'split', 'name', 'body', 'symbol', 'bigint', 'getter'];
    const late = ['throw-later', 'status-text', 'status-late'];
    const ends = ['nothing-thrown', 'rejected', 'exit', 'kill-later', 'abort', 'recurse', 'array', 'message', 'flood'];
    for (const does of [...values, ...late, ...ends, 'throw', 'hang', 'loop', 'loop-later', 'forget'])
      it(`fails its own request only when it does: ${does}`, async () => {
        const [bad, ...others] = await Promise.all([ask('/ts/a', { headers: { 'x-do': does } }), ...Array.from({ length: 5 }, () => ask('/ts/b'))]);
        assert.equal(bad!.status, 500);
        assert.match(bad!.body, /the filter tenant\.ts has failed/);
        assert.doesNotMatch(bad!.body, /as asked/);
        for (const other of others) assert.equal(other.status, 200, other.body);
        assert.equal((await ask('/ts/c')).status, 200);
      });

    it('serves on after an exception and a rejection that belong to no call', async () => {
      assert.equal((await ask('/ts/a', { headers: { 'x-do': 'stray' } })).status, 200);
      assert.equal((await ask('/ts/c')).status, 200);
    });

    it('reads a header with separators of lines like any other, and serves on', async () => {
      for (const text of ['a\u2028b', 'a\u2029b', 'a\u0085b', 'a\ud800b']) {
        const answer = await ask('/ts/a', { headers: { 'x-text': Buffer.from(text).toString('latin1') } });
        assert.equal(answer.status, 200, answer.body);
      }
      assert.equal((await ask('/ts/c')).status, 200);
    });

    it('is counted when it fails, and when its process has ended', async () => {
      const text = (await metrics())
        .split('\n')
        .filter((line) => line.startsWith('mizzen_script'))
        .join('\n');
      assert.match(text, /mizzen_script_failures_total\{file="tenant.ts"\} \d+/);
      assert.match(text, /mizzen_script_restarts_total\{file="tenant.ts"\} \d+/);
      assert.match(text, /mizzen_script_timeouts_total\{file="tenant.ts"\} \d+/);
    });

    it('is loaded again when its file changes, and stays as it was when the new one cannot be', async () => {
      writeFileSync(file(), filter('good evening'));
      await until(
        'the new filter',
        () => ask('/ts/a'),
        ({ headers }) => headers['x-greeting'] === 'good evening acme GET',
      );
      writeFileSync(file(), 'export default {');
      await until('the failure is counted', metrics, (text) => /mizzen_script_load_failures_total\{file="tenant.ts"\} 1/.test(text));
      assert.equal((await ask('/ts/a')).headers['x-greeting'], 'good evening acme GET');
    });

    it('answers 500 while its configuration is refused', async () => {
      await mesh.apply(api('ts', '/ts', '    filters: [{ file: filters/tenant.ts, config: {} }]'));
      assert.equal((await ask('/ts/a')).status, 500);
    });

    it('is only loaded from the folder that the control plane follows', async () => {
      await mesh.apply(api('outside', '/outside', '    filters: [{ file: ../../etc/passwd }]'));
      const [finding] = mesh.plane.pilot.findings.filter(({ object }) => object === 'Api default/outside');
      assert.match(finding!.message, /outside of the folder/);
      assert.equal((await ask('/outside')).status, 404);
    });

    it('is not loaded from elsewhere in that folder, nor through a link', async () => {
      writeFileSync(join(folder, 'module.ts'), filter('module'));
      symlinkSync(join(folder, 'module.ts'), join(folder, 'filters/link.ts'));
      for (const named of ['module.ts', 'filters/../module.ts', 'filters/link.ts']) {
        await mesh.apply(api('elsewhere', '/elsewhere', `    filters: [{ file: ${named} }]`));
        const [finding] = mesh.plane.pilot.findings.filter(({ object }) => object === 'Api default/elsewhere');
        assert.match(finding!.message, /must be below a folder named filters/);
        assert.equal((await ask('/elsewhere')).status, 404);
      }
    });
  });

  it('is at work for a workload too, on what comes to it', async () => {
    writeFileSync(
      join(folder, 'stamp.ts'),
      `export default { name: 'stamp', onRequest(request: any) { request.headers.set('x-stamp', request.principal); } };`,
    );
    const caller = await mesh.proxy('caller');
    await mesh.workload('stamped', { fields: { filters: [{ file: join(folder, 'stamp.ts') }] } });
    await mesh.apply(service('stamped'));
    await caller.proxy.ready;
    const answer = await call({ port: caller.outboundPort, headers: { host: 'stamped:9080' } });
    assert.equal((JSON.parse(answer.body) as { headers: Record<string, string> }).headers['x-stamp'], 'spiffe://cluster.local/ns/default/sa/caller');
  });

  describe('called by JSON, answered by gRPC', () => {
    const proto = `syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "google/protobuf/timestamp.proto";
service Books {
  rpc GetBook(GetBookRequest) returns (Book) { option (google.api.http) = { get: "/grpc/v1/{name=shelves/*/books/*}" additional_bindings { get: "/grpc/books/{name}" } }; }
  rpc CreateBook(CreateBookRequest) returns (Book) { option (google.api.http) = { post: "/grpc/v1/{shelf}/books" body: "book" }; }
  rpc Archive(ArchiveRequest) returns (ArchiveResponse) { option (google.api.http) = { post: "/grpc/v1/{name=shelves/*}:archive" body: "*" response_body: "count" }; }
  rpc NotByHttp(GetBookRequest) returns (Book);
}
message GetBookRequest { string name = 1; repeated string fields = 2; bool verbose = 3; View view = 4; enum View { BASIC = 0; FULL = 1; } }
message Book { string name = 1; string title = 2; int64 pages = 3; google.protobuf.Timestamp published_at = 4; repeated string tags = 5; }
message CreateBookRequest { string shelf = 1; Book book = 2; string request_id = 3; }
message ArchiveRequest { string name = 1; bool dry_run = 2; }
message ArchiveResponse { int32 count = 1; }
`;
    before(async () => {
      const protos = join(folder, 'protos');
      mkdirSync(join(protos, 'google/api'), { recursive: true });
      for (const name of ['annotations.proto', 'http.proto'])
        cpSync(join(root, 'node_modules/@grpc/grpc-js-xds/deps/googleapis/google/api', name), join(protos, 'google/api', name));
      writeFileSync(join(protos, 'books.proto'), proto);
      writeFileSync(join(protos, 'buf.yaml'), 'version: v2\n');
      execFileSync(join(root, 'node_modules/.bin/buf'), ['build', '--as-file-descriptor-set', '-o', join(folder, 'books.binpb')], { cwd: protos });
      const books = (grpc.loadPackageDefinition(loadSync('books.proto', { includeDirs: [protos], keepCase: true, longs: String, enums: String })) as never)[
        'shop'
      ]['v1']['Books'] as grpc.ServiceClientConstructor;
      const server = new grpc.Server();
      server.addService(books.service, {
        GetBook(one: grpc.ServerUnaryCall<Record<string, unknown>, unknown>, callback: grpc.sendUnaryData<unknown>) {
          const { name, fields, verbose, view } = one.request;
          if (name === 'shelves/1/books/none') return callback({ code: grpc.status.NOT_FOUND, details: 'no such book: "none"' });
          callback(null, { name, title: `${verbose} ${view} ${String(fields)}`, pages: '9007199254740993', tags: [] });
        },
        CreateBook(one: grpc.ServerUnaryCall<Record<string, unknown>, unknown>, callback: grpc.sendUnaryData<unknown>) {
          const { shelf, book, request_id } = one.request as { shelf: string; book: { title: string }; request_id: string };
          callback(null, { name: `${shelf}/${book.title}`, title: request_id });
        },
        Archive(one: grpc.ServerUnaryCall<{ name: string; dry_run: boolean }, unknown>, callback: grpc.sendUnaryData<unknown>) {
          callback(null, { count: one.request.dry_run ? 0 : one.request.name.length });
        },
        NotByHttp: (_one: unknown, callback: grpc.sendUnaryData<unknown>) => callback(null, {}),
      });
      const appPort = await new Promise<number>((resolve, reject) =>
        server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))),
      );
      mesh.onClose(async () => server.forceShutdown());
      await mesh.sidecar('books', appPort, { name: 'grpc', port: 9080 });
      const ejectsAtOnce = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: books }
spec:
  host: books
  trafficPolicy: { outlierDetection: { consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 30s, maxEjectionPercent: 100 } }
---
`;
      await mesh.apply(
        service('books', 'grpc') + ejectsAtOnce + api('books', '/grpc', '    transcoding: { file: books.binpb, services: [shop.v1.Books] }', 'service: books'),
      );
    });

    it('makes a message of path, query and body, and JSON of the answer', async () => {
      const got = await ask('/grpc/v1/shelves/1/books/a%20b?fields=x&fields=y&verbose=true&view=FULL');
      assert.equal(got.status, 200);
      assert.equal(got.headers['content-type'], 'application/json');
      assert.deepEqual(JSON.parse(got.body), { name: 'shelves/1/books/a b', title: 'true FULL x,y', pages: '9007199254740993', tags: [] });
      assert.deepEqual((JSON.parse((await ask('/grpc/books/one')).body) as { name: string }).name, 'one');
      const created = await ask('/grpc/v1/s1/books?request_id=r7', { method: 'POST', body: '{"title":"t","publishedAt":"2026-01-01T00:00:00Z"}' });
      assert.equal((JSON.parse(created.body) as { name: string; title: string }).name, 's1/t');
      assert.equal((JSON.parse(created.body) as { name: string; title: string }).title, 'r7');
      assert.equal((await ask('/grpc/v1/shelves/1:archive', { method: 'POST', body: '{}' })).body, '9');
      assert.equal((await ask('/grpc/v1/shelves/1:archive', { method: 'POST', body: '{"dryRun":true}' })).body, '0');
    });

    it('refuses unknown paths and methods itself, so that no server is ejected for resetting them', async () => {
      for (const path of ['/grpc/nothing', '/grpc/', '/grpc/v1/s1/books/%zz', '/grpc/shop.v1.Books/GetBook', '/grpc/v1/shelves/1:unknown'])
        for (const method of ['GET', 'POST', 'PUT']) {
          const { status, headers } = await ask(path, { method });
          assert.equal(status, 404, `${method} ${path}`);
          assert.equal(headers['content-type'], 'application/problem+json');
        }
      for (const [method, path, allow] of [
        ['DELETE', '/grpc/v1/shelves/1/books/2', 'GET'],
        ['HEAD', '/grpc/v1/s1/books', 'POST'],
        ['GET', '/grpc/v1/shelves/1:archive', 'POST'],
      ] as const) {
        const { status, headers } = await ask(path, { method });
        assert.deepEqual([status, headers['allow']], [405, allow], path);
      }
      assert.equal((await ask('/grpc/books/one')).status, 200, 'the only server is still in use');
    });

    it('says what went wrong in the service by status and message', async () => {
      const answer = await ask('/grpc/v1/shelves/1/books/none');
      assert.equal(answer.status, 404);
      assert.deepEqual(JSON.parse(answer.body), { code: 5, message: 'no such book: "none"' });
    });

    it('refuses what no message can be made of', async () => {
      for (const [path, options] of [
        ['/grpc/v1/shelves/1/books/1?nofield=1', {}],
        ['/grpc/v1/shelves/1/books/1?verbose=maybe', {}],
        ['/grpc/v1/shelves/1/books/1?verbose=true&verbose=false', {}],
        ['/grpc/v1/shelves/1/books/1?name=other', {}],
        ['/grpc/v1/s1/books', { method: 'POST', body: '{' }],
        ['/grpc/v1/s1/books', { method: 'POST', body: '{"title":1}' }],
        ['/grpc/v1/s1/books', { method: 'POST', body: '{"pages":"9223372036854775808"}' }],
        ['/grpc/v1/shelves/1:archive', { method: 'POST', body: '[]' }],
      ] as const) {
        const answer = await ask(path, options);
        assert.equal(answer.status, 400, path);
        assert.equal(answer.headers['content-type'], 'application/problem+json');
      }
    });

    it('refuses a descriptor that does not fit, with the reason', async () => {
      for (const [policy, reason] of [
        ['{ file: books.binpb, services: [shop.v1.Cars] }', /no service shop\.v1\.Cars.*It has: shop\.v1\.Books/],
        ['{ file: protos/books.proto, services: [shop.v1.Books] }', /descriptor set cannot be used/],
      ] as const) {
        await mesh.apply(api('bad', '/bad', `    transcoding: ${policy}`, 'service: books'));
        assert.match(mesh.plane.pilot.findings.find(({ object }) => object === 'Api default/bad')!.message, reason);
      }
    });
  });
});
