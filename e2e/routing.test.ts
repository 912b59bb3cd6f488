import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { call } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const subsets = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: reviews }
spec:
  host: reviews
  subsets:
  - { name: v1, labels: { version: v1 } }
  - { name: v2, labels: { version: v2 } }
---
`;

function virtualService(http: string): string {
  return `${subsets}apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: reviews }\nspec:\n  hosts: [reviews]\n  http:\n${http}`;
}

describe('routing', () => {
  let mesh: TestMesh;
  let client: RunningProxy;
  const ask = async (path = '/', headers: Record<string, string> = {}, method = 'GET', body?: string) => {
    const answer = await call({
      port: client.outboundPort,
      path,
      method,
      headers: { host: 'reviews:9080', ...headers },
      ...(body === undefined ? {} : { body }),
    });
    return {
      ...answer,
      echo: answer.body.startsWith('{')
        ? (JSON.parse(answer.body) as { name: string; url: string; method: string; headers: Record<string, string>; body: string })
        : undefined,
    };
  };
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('reviews'));
    await mesh.workload('reviews-v1', { labels: { app: 'reviews', version: 'v1' } });
    await mesh.workload('reviews-v2', { labels: { app: 'reviews', version: 'v2' } });
    client = await mesh.proxy('client');
    await client.proxy.ready;
  });
  after(() => mesh.close());

  it('finds a service by every form of its name, in absolute form too', async () => {
    for (const host of [
      'reviews:9080',
      'reviews',
      'reviews.default:9080',
      'reviews.default.svc',
      'REVIEWS.default.svc.cluster.local:9080',
      'reviews.default.svc.cluster.local.:9080',
    ]) {
      assert.equal((await call({ port: client.outboundPort, headers: { host } })).status, 200, host);
    }
    const absolute = await call({ port: client.outboundPort, path: 'http://reviews:9080/x', headers: { host: 'reviews:9080' } });
    assert.equal(JSON.parse(absolute.body).url, '/x');
  });

  it('answers 502 with a sentence when the host is no service of the mesh', async () => {
    const answer = await call({ port: client.outboundPort, headers: { host: 'nowhere.example' } });
    assert.equal(answer.status, 502);
    assert.match(answer.body, /not a service of the mesh/);
  });

  it('matches uri, header, method and query, and takes the first route that fits', async () => {
    await mesh.apply(
      virtualService(`
  - match:
    - uri: { prefix: /api/ }
      headers: { end-user: { regex: "ja.*" } }
      method: { exact: POST }
      queryParams: { debug: { exact: "1" } }
    route: [{ destination: { host: reviews, subset: v2 } }]
  - match: [{ uri: { exact: /exact } }, { uri: { regex: "/r[0-9]+" } }]
    route: [{ destination: { host: reviews, subset: v2 } }]
  - route: [{ destination: { host: reviews, subset: v1 } }]
`),
    );
    assert.equal((await ask('/api/x?debug=1', { 'end-user': 'jason' }, 'POST', 'b')).echo?.name, 'reviews-v2');
    assert.equal((await ask('/api/x?debug=2', { 'end-user': 'jason' }, 'POST', 'b')).echo?.name, 'reviews-v1');
    assert.equal((await ask('/api/x?debug=1', { 'end-user': 'bob' }, 'POST', 'b')).echo?.name, 'reviews-v1');
    assert.equal((await ask('/api/x?debug=1', { 'end-user': 'jason' })).echo?.name, 'reviews-v1');
    assert.equal((await ask('/exact')).echo?.name, 'reviews-v2');
    assert.equal((await ask('/exact/not')).echo?.name, 'reviews-v1');
    assert.equal((await ask('/r42')).echo?.name, 'reviews-v2');
    assert.equal((await ask('/r42x')).echo?.name, 'reviews-v1');
  });

  it('cannot be told a path in a way that passes its match by', async () => {
    await mesh.apply(
      virtualService(
        '\n  - match: [{ uri: { prefix: /admin } }]\n    directResponse: { status: 403 }\n  - route: [{ destination: { host: reviews, subset: v1 } }]\n',
      ),
    );
    for (const path of ['/admin', '/%61dmin', '/./admin', '/x/../admin', '/x/%2e%2e/admin', '/\\..\\admin', '/admin;a=b', '/admin?'])
      assert.equal((await ask(path)).status, 403, path);
    assert.equal((await ask('/%00admin')).status, 400);
    assert.equal((await ask('/../../admin')).status, 400);
  });

  it('leaves a part of the paths to a delegate, whose conditions lie within those of the root', async () => {
    const delegate = (name: string, http: string) =>
      `---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: ${name} }\nspec:\n  http:\n${http}`;
    await mesh.apply(
      `${virtualService(`
  - match: [{ uri: { prefix: /team } }]
    headers: { request: { set: { x-from: root, x-team: root } } }
    delegate: { name: team }
  - route: [{ destination: { host: reviews, subset: v1 } }]
`)}${delegate(
        'team',
        `
  - match: [{ uri: { prefix: /team/a } }, { uri: { prefix: /elsewhere } }]
    headers: { request: { set: { x-team: leaf } } }
    route: [{ destination: { host: reviews, subset: v2 } }]
  - match: [{ headers: { x-v2: { exact: "yes" } } }]
    route: [{ destination: { host: reviews, subset: v2 } }]
`,
      )}`,
    );
    const first = await ask('/team/a/x');
    assert.deepEqual([first.echo?.name, first.echo?.headers['x-from'], first.echo?.headers['x-team']], ['reviews-v2', 'root', 'leaf']);
    assert.equal((await ask('/team/b', { 'x-v2': 'yes' })).echo?.name, 'reviews-v2');
    assert.equal((await ask('/other', { 'x-v2': 'yes' })).echo?.name, 'reviews-v1', 'outside of what was left to the delegate');
    assert.equal((await ask('/elsewhere')).echo?.name, 'reviews-v1');
    await mesh.apply(virtualService('\n  - match: [{ uri: { prefix: /team } }]\n    delegate: { name: nobody }\n'));
    assert.match(
      mesh.plane.pilot.findings.find(({ code }) => code === 'IST0101')!.message,
      /leaves a route to the VirtualService default\/nobody, which does not exist/,
    );
    assert.equal((await ask('/team/a/x')).echo?.name, 'reviews-v2', 'the version before it stays');
  });

  it('rewrites, redirects, answers directly, and changes headers', async () => {
    await mesh.apply(
      virtualService(`
  - match: [{ uri: { prefix: /old/ } }]
    rewrite: { uri: /new/, authority: other.example }
    headers:
      request: { set: { x-added: "yes" }, remove: [x-secret] }
      response: { set: { x-answered: "by-mizzen" } }
    route: [{ destination: { host: reviews, subset: v1 } }]
  - match: [{ uri: { exact: /moved } }]
    redirect: { uri: /here, authority: example.com, redirectCode: 308 }
  - match: [{ uri: { exact: /teapot } }]
    directResponse: { status: 418, body: { string: "short and stout" } }
  - route: [{ destination: { host: reviews, subset: v1 } }]
`),
    );
    const rewritten = await ask('/old/page?q=1', { 'x-secret': 's' });
    assert.equal(rewritten.echo?.url, '/new/page?q=1');
    assert.equal(rewritten.echo?.headers['host'], 'other.example');
    assert.equal(rewritten.echo?.headers['x-added'], 'yes');
    assert.equal(rewritten.echo?.headers['x-secret'], undefined);
    assert.equal(rewritten.headers['x-answered'], 'by-mizzen');
    const moved = await ask('/moved');
    assert.equal(moved.status, 308);
    assert.equal(moved.headers['location'], 'http://example.com/here');
    const teapot = await ask('/teapot');
    assert.deepEqual([teapot.status, teapot.body], [418, 'short and stout']);
  });

  it('mirrors a copy to another subset and returns only the real answer', async () => {
    const mirrored: string[] = [];
    let seen: () => void = () => {};
    await mesh.apply(service('shadow'));
    await mesh.workload('shadow', {
      answer: (request, response) => {
        let body = '';
        request.on('data', (chunk: Buffer) => (body += chunk));
        request.on('end', () => {
          mirrored.push(`${request.headers['host']} ${request.url} ${body}`);
          response.writeHead(500).end();
          seen();
        });
      },
    });
    await mesh.apply(virtualService('\n  - route: [{ destination: { host: reviews, subset: v1 } }]\n    mirror: { host: shadow }\n'));
    const arrived = new Promise<void>((resolve) => (seen = resolve));
    const answer = await ask('/m', {}, 'POST', 'hello');
    await arrived;
    assert.equal(answer.status, 200);
    assert.deepEqual(mirrored, ['reviews-shadow:9080 /m hello']);
  });

  it('aborts and delays the share of requests that a fault asks for', async () => {
    await mesh.apply(
      virtualService(`
  - match: [{ headers: { x-fault: { exact: abort } } }]
    fault: { abort: { httpStatus: 555, percentage: { value: 100 } } }
    route: [{ destination: { host: reviews, subset: v1 } }]
  - match: [{ headers: { x-fault: { exact: delay } } }]
    fault: { delay: { fixedDelay: 300ms, percentage: { value: 100 } } }
    route: [{ destination: { host: reviews, subset: v1 } }]
  - match: [{ headers: { x-fault: { exact: half } } }]
    fault: { abort: { httpStatus: 500, percentage: { value: 50 } } }
    route: [{ destination: { host: reviews, subset: v1 } }]
  - route: [{ destination: { host: reviews, subset: v1 } }]
`),
    );
    assert.equal((await ask('/', { 'x-fault': 'abort' })).status, 555);
    const startedAt = performance.now();
    const delayed = await ask('/', { 'x-fault': 'delay' }, 'POST', 'kept while it waits');
    assert.equal(delayed.echo?.body, 'kept while it waits');
    assert.ok(performance.now() - startedAt >= 295);
    let aborted = 0;
    for (let i = 0; i < 400; i++) if ((await ask('/', { 'x-fault': 'half' })).status === 500) aborted++;
    assert.ok(Math.abs(aborted - 200) <= 50, `${aborted} of 400`); // Five standard deviations.
  });

  it('times out with 504, and retries what failed until it succeeds', async () => {
    let failures = 2;
    await mesh.apply(service('flaky'));
    await mesh.workload('flaky', {
      answer: (request, response) => {
        if (request.url === '/slow') return; // never answers
        if (failures-- > 0) return void response.writeHead(503).end();
        request.on('data', () => {});
        request.on('end', () => response.end('at last'));
      },
    });
    await mesh.apply(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: flaky }
spec:
  hosts: [flaky]
  http:
  - match: [{ uri: { exact: /slow } }]
    timeout: 150ms
    route: [{ destination: { host: flaky } }]
  - retries: { attempts: 3, retryOn: 5xx }
    route: [{ destination: { host: flaky } }]
`);
    assert.equal((await call({ port: client.outboundPort, path: '/slow', headers: { host: 'flaky:9080' } })).status, 504);
    const answer = await call({ port: client.outboundPort, method: 'POST', path: '/', headers: { host: 'flaky:9080' }, body: 'again' });
    assert.deepEqual([answer.status, answer.body], [200, 'at last']);
  });

  it('keeps the version that worked when a change points to nothing, and says why', async () => {
    await mesh.apply(virtualService('\n  - route: [{ destination: { host: reviews, subset: v2 } }]\n'));
    await mesh.apply(virtualService('\n  - route: [{ destination: { host: reviews, subset: v9 } }]\n'), 'broken.yaml');
    assert.equal((await ask()).echo?.name, 'reviews-v2');
    const [finding] = mesh.plane.pilot.findings.filter((candidate) => candidate.level === 'error');
    assert.match(
      finding?.message ?? '',
      /subset "v9" of host "reviews", but no DestinationRule defines it\. Defined: v1, v2\. The version before it stays in effect/,
    );
    assert.match(finding?.place ?? '', /^broken\.yaml:\d+$/);
  });
});
