import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { WebSocket } from 'ws';
import { Bookinfo, fixture, fixturesMissing } from './support/bookinfo.ts';
import { call, until } from './support/http.ts';

const root = join(import.meta.dirname, '..');
const loadSeconds = Number(process.env['MIZZEN_LOAD_SECONDS'] ?? 20);

describe('the bookinfo example', () => {
  let mesh: Bookinfo;
  const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
  const reviews = async (headers: Record<string, string> = {}) => {
    const answer = await call({ port: mesh.outboundPort('productpage-v1-0'), path: '/reviews/0', headers: { host: 'reviews:9080', ...headers }, agent });
    return {
      status: answer.status,
      body: answer.status === 200 ? (JSON.parse(answer.body) as { version: string; reviews: { rating?: { stars?: number; error?: string } }[] }) : undefined,
    };
  };
  const ratings = (headers: Record<string, string> = {}) =>
    call({ port: mesh.outboundPort('reviews-v2-0'), path: '/ratings/0', headers: { host: 'ratings:9080', ...headers } });
  const details = () => call({ port: mesh.outboundPort('productpage-v1-0'), path: '/details/0', headers: { host: 'details:9080' } });
  const cli = (...args: string[]) => spawnSync(join(root, 'mizzen'), args, { encoding: 'utf8', env: { ...process.env, MIZZEN_HOME: mesh.home } });

  /** How often each version answered. */
  const sample = async (count: number) => {
    const counts: Record<string, number> = {};
    const worker = async (share: number) => {
      for (let i = 0; i < share; i++) {
        const { body } = await reviews();
        counts[body!.version] = (counts[body!.version] ?? 0) + 1;
      }
    };
    await Promise.all(Array.from({ length: 8 }, () => worker(count / 8)));
    return counts;
  };
  const isNear = (found: number | undefined, count: number, share: number) => {
    const deviation = Math.sqrt(count * share * (1 - share));
    assert.ok(Math.abs((found ?? 0) - count * share) <= 3 * deviation, `${found} of ${count} is not near ${share}`);
  };

  before(async () => {
    mesh = await Bookinfo.start();
  });
  after(async () => {
    agent.destroy();
    await mesh?.close();
  });

  it('gives its reviews as an API to who has a key', async () => {
    const issued = cli('credential', 'issue', 'reader');
    assert.equal(issued.status, 0, issued.stderr);
    assert.match(issued.stderr, /key of reader, shown this once/);
    const ask = (path: string, key?: string) => call({ port: 8080, path, headers: key === undefined ? {} : { 'x-api-key': key } });
    const key = issued.stdout.trim();
    await until(
      'the key counts',
      () => ask('/v1/reviews/0', key),
      ({ status }) => status === 200,
    );
    assert.equal((await ask('/v1/reviews/0')).status, 401);
    assert.match((await ask('/v1/reviews/x', key)).body, /"parameter":"book"/);
    let refused = 0;
    for (let i = 0; i < 12; i++) if ((await ask('/v1/reviews/0', key)).status === 429) refused++;
    assert.ok(refused >= 2);
    assert.match(cli('credential', 'issue', 'nobody').stderr, /there is no Consumer "nobody"/);
    assert.doesNotMatch(cli('get', 'credentials', '-o', 'yaml').stdout, new RegExp(key));
  });

  it('shows its page through the gateway, with parts from all services, and by user', async () => {
    const page = await call({ port: 8080, path: '/productpage' });
    assert.equal(page.status, 200);
    assert.match(page.body, /William Shakespeare/);
    assert.match(page.body, /Reviews served by: reviews-v[13]/);
    assert.ok(page.headers['x-request-id']);
    const login = await call({
      port: 8080,
      path: '/login',
      method: 'POST',
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      body: 'username=jason',
    });
    const cookie = String(login.headers['set-cookie']).split(';')[0]!;
    for (let i = 0; i < 5; i++) assert.match((await call({ port: 8080, path: '/productpage', headers: { cookie } })).body, /reviews-v2/);
    assert.equal((await call({ port: 8080, path: '/nothing' })).status, 404);
    assert.equal((await call({ port: 8080 })).headers['location'], 'http://127.0.0.1:8080/productpage');
  });

  it('shows how many copies are left, by gRPC, and keeps the number up to date, by a WebSocket through the gateway', async () => {
    const page = await call({ port: 8080, path: '/productpage' });
    assert.match(page.body, /<b id="left">\d+<\/b> copies left/);
    const feed = new WebSocket('ws://127.0.0.1:8080/api/v1/products/0/feed');
    const seen: number[] = [];
    feed.on('message', (message) => seen.push(JSON.parse(String(message)).left));
    await until(
      'the number changes',
      async () => new Set(seen).size,
      (count) => count >= 2,
    );
    feed.close();
    await once(feed, 'close');
  });

  it("takes each of Istio's routing samples unchanged", { skip: fixturesMissing }, async () => {
    for (const name of [
      'bookinfo-gateway',
      'destination-rule-reviews',
      'destination-rule-all',
      'destination-rule-all-mtls',
      'virtual-service-all-v1',
      'egress-rule-google-apis',
    ]) {
      await mesh.apply(fixture(`${name}.yaml`));
    }
    assert.equal((await call({ port: 8080, path: '/productpage' })).status, 200);
    await mesh.remove(fixture('egress-rule-google-apis.yaml'));
  });

  it('sends all requests to v1, or to the subset of a header, as the samples say', { skip: fixturesMissing }, async () => {
    await mesh.apply(fixture('virtual-service-all-v1.yaml'));
    assert.deepEqual(await sample(40), { v1: 40 });
    await mesh.apply(fixture('virtual-service-reviews-v3.yaml'));
    assert.deepEqual(await sample(40), { v3: 40 });
    for (const [name, jason, others] of [
      ['virtual-service-reviews-test-v2', 'v2', 'v1'],
      ['virtual-service-reviews-jason-v2-v3', 'v2', 'v3'],
    ] as const) {
      await mesh.apply(fixture(`${name}.yaml`));
      assert.equal((await reviews({ 'end-user': 'jason' })).body?.version, jason, name);
      assert.equal((await reviews({ 'end-user': 'jasonx' })).body?.version, others, name);
      assert.equal((await reviews()).body?.version, others, name);
    }
  });

  it('splits 2,000 requests by weight within three standard deviations', { skip: fixturesMissing }, async () => {
    for (const [name, first, firstShare, second] of [
      ['90-10', 'v1', 0.9, 'v2'],
      ['50-v3', 'v1', 0.5, 'v3'],
      ['80-20', 'v1', 0.8, 'v2'],
      ['v2-v3', 'v2', 0.5, 'v3'],
    ] as const) {
      await mesh.apply(fixture(`virtual-service-reviews-${name}.yaml`));
      const counts = await sample(2_000);
      assert.deepEqual(Object.keys(counts).sort(), [first, second].sort(), name);
      isNear(counts[first], 2_000, firstShare);
    }
  });

  it('delays jason by 7 s, and aborts for him, as the samples say', { skip: fixturesMissing }, async () => {
    await mesh.apply(fixture('virtual-service-ratings-test-delay.yaml'));
    const startedAt = performance.now();
    assert.equal((await ratings()).status, 200);
    assert.ok(performance.now() - startedAt < 5_000);
    const delayedAt = performance.now();
    assert.equal((await ratings({ 'end-user': 'jason' })).status, 200);
    const took = performance.now() - delayedAt;
    assert.ok(took >= 6_995 && took < 12_000, `${took} ms`);
    await mesh.apply(fixture('virtual-service-ratings-test-abort.yaml'));
    const aborted = await ratings({ 'end-user': 'jason' });
    assert.deepEqual([aborted.status, aborted.body], [500, 'fault filter abort']);
    assert.equal((await ratings()).status, 200);
    await mesh.apply(fixture('fault-injection-details-v1.yaml'));
    assert.equal((await details()).status, 555);
    await mesh.remove(fixture('fault-injection-details-v1.yaml'));
    await mesh.apply(fixture('virtual-service-all-v1.yaml') + fixture('destination-rule-all.yaml'));
    assert.equal((await details()).status, 200);
  });

  it('answers 503 for subsets that no workload is of', { skip: fixturesMissing }, async () => {
    await mesh.apply(fixture('destination-rule-all.yaml'));
    for (const [name, ask] of [
      ['virtual-service-details-v2', details],
      ['virtual-service-ratings-db', ratings],
      ['virtual-service-ratings-mysql', ratings],
      ['virtual-service-ratings-mysql-vm', ratings],
    ] as const) {
      await mesh.apply(fixture(`${name}.yaml`));
      const answer = await ask();
      assert.deepEqual([answer.status, answer.body], [503, 'no healthy upstream'], name);
    }
    await mesh.apply(fixture('virtual-service-all-v1.yaml'));
  });

  it('answers the command line: get, status, proxy-config, logs, and teaches when asked wrongly', () => {
    assert.match(cli('get', 'virtualservices').stdout, /^NAME\s+GATEWAYS\s+HOSTS\s+AGE\n[\s\S]*reviews/);
    const status = JSON.parse(cli('status', '-o', 'json').stdout) as { proxies: { state: string }[] };
    assert.deepEqual(
      status.proxies.map((proxy) => proxy.state),
      Array.from({ length: 8 }, () => 'synced'),
    );
    const routes = cli('proxy-config', 'routes', 'productpage-v1');
    assert.match(routes.stdout + routes.stderr, /reviews\.default\.svc\.cluster\.local:9080/);
    assert.match(cli('proxy-config', 'clusters', 'productpage-v1').stdout, /outbound\|9080\|\|details/);
    assert.match(cli('proxy-config', 'endpoints', 'productpage-v1').stdout, /reviews-v3/);
    assert.match(cli('proxy-config', 'listeners', 'ingressgateway').stdout, /127\.0\.0\.1:8080/);
    assert.match(cli('proxy-config', 'secrets', 'productpage-v1').stdout, /spiffe:\/\/cluster\.local\/ns\/default\/sa\/bookinfo-productpage/);
    assert.match(cli('logs', 'ratings-v1').stdout, /ratings listens/);
    assert.ok(cli('logs', 'productpage-v1', '--proxy', '--tail', '100000').stdout.includes('sa/ingressgateway'));
    const joined = cli(
      'run',
      '--name',
      'visitor',
      '--',
      'sh',
      '-c',
      'test "$(curl -s --noproxy "" -x $http_proxy http://details:9080/details/0 | head -c 1)" = "{" && exit 7',
    );
    assert.equal(joined.status, 7, joined.stderr);
    const wrong = cli('get', 'virtualservice');
    assert.equal(wrong.status, 0);
    assert.match(cli('get', 'virtualservces').stderr, /did you mean/);
    assert.match(cli('authz', 'check', 'reviews-v1').stdout, /no AuthorizationPolicy is in effect at reviews-v1-0/);
    assert.match(cli('proxy-config', 'routes', 'nobody').stderr, /no proxy "nobody" is connected\. Connected: details-v1-0/);
    assert.match(cli('aply').stderr, /Did you mean apply/);
  });

  it('gives one clear message for a broken file, and goes on', () => {
    const apply = (yaml: string) =>
      spawnSync(join(root, 'mizzen'), ['apply', '-f', '-'], { encoding: 'utf8', input: yaml, env: { ...process.env, MIZZEN_HOME: mesh.home } });
    const head = 'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: { name: x }\nspec:\n  hosts: [reviews]\n';
    assert.match(apply(`${head}  htp: []\n`).stderr, /standard input:6:3: spec\.htp: unknown field "htp": did you mean "http"\?[\s\S]*Nothing was changed/);
    assert.match(apply(`${head}  http: [\n`).stderr, /standard input:\d+:\d+: /);
    assert.match(
      apply(head.replace('VirtualService', 'VirtualServise')).stderr,
      /standard input:2:7: kind: unknown kind "VirtualServise": did you mean VirtualService\?/,
    );
    assert.match(
      apply(`${head}  http:\n  - route: [{ destination: { host: reviws } }]\n`).stderr,
      /warning: standard input:7: VirtualService default\/x sends traffic to host "reviws".*did you mean "reviews"\?/,
    );
    assert.match(
      apply(
        'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: x }\nspec: { targetRefs: [{ kind: Service, name: reviews, group: "" }] }\n',
      ).stderr,
      /targets of kind Service are for waypoints, of which there are none, so the policy is refused/,
    );
    cli('delete', 'vs', 'x');
  });

  it('puts a route into effect on all sidecars within 300 ms of apply returning', { skip: fixturesMissing }, async () => {
    const ports = ['productpage-v1-0', 'details-v1-0', 'ratings-v1-0', 'reviews-v1-0', 'reviews-v2-0', 'reviews-v3-0'].map((name) => mesh.outboundPort(name));
    const versionAt = async (port: number) => JSON.parse((await call({ port, path: '/reviews/0', headers: { host: 'reviews:9080' } })).body).version as string;
    const times: number[] = [];
    for (const [file, version] of [
      ['virtual-service-reviews-v3', 'v3'],
      ['virtual-service-all-v1', 'v1'],
      ['virtual-service-reviews-v3', 'v3'],
    ] as const) {
      const { decodeYaml } = await import('@mizzen/api');
      const { resource } = decodeYaml(fixture(`${file}.yaml`), 'f').resources.find((candidate) => candidate.resource.metadata.name === 'reviews')!;
      await mesh.runner.api.call('PATCH', '/apis/networking.istio.io/v1/namespaces/default/virtualservices/reviews?fieldManager=test&force=true', {
        body: resource,
        contentType: 'application/apply-patch+yaml',
      });
      const returnedAt = performance.now();
      await Promise.all(
        ports.map((port) =>
          until(
            `${version} at ${port}`,
            () => versionAt(port),
            (found) => found === version,
          ),
        ),
      );
      times.push(performance.now() - returnedAt);
    }
    assert.ok(Math.max(...times) < 300, times.map((time) => time.toFixed(0)).join(', '));
  });

  it(`survives kill -9 of the control plane: ${loadSeconds} s of load with no failed request, then all proxies synced within 5 s`, async () => {
    await mesh.synced();
    const pid = mesh.runner.controlPid!;
    // The runner starts it again at once; it is held down so that the load runs without it.
    let isDown = true;
    const hold = setInterval(() => {
      const current = mesh.runner.controlPid;
      if (isDown && current !== undefined && current !== pid) {
        try {
          process.kill(current, 'SIGKILL');
        } catch {
          // It has ended between the look and the kill.
        }
      }
    }, 5);
    process.kill(pid, 'SIGKILL');
    const deadline = Date.now() + loadSeconds * 1000;
    let requests = 0;
    const failures: string[] = [];
    const load = async (ask: () => Promise<{ status: number }>) => {
      while (Date.now() < deadline) {
        const answer = await ask().catch((error: Error) => ({ status: 0, error: error.message }));
        requests++;
        if (answer.status !== 200) failures.push(JSON.stringify(answer).slice(0, 200));
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    };
    // Through the gateway and productpage, and from every sidecar to every service.
    const names = ['productpage-v1-0', 'details-v1-0', 'ratings-v1-0', 'reviews-v1-0', 'reviews-v2-0', 'reviews-v3-0'];
    const targets = [
      ['details', '/details/0'],
      ['reviews', '/reviews/0'],
      ['ratings', '/ratings/0'],
    ] as const;
    await Promise.all([
      load(() => call({ port: 8080, path: '/productpage' })),
      ...names.flatMap((name) => targets.map(([host, path]) => load(() => call({ port: mesh.outboundPort(name), path, headers: { host: `${host}:9080` } })))),
    ]);
    assert.deepEqual(failures.slice(0, 3), []);
    assert.ok(requests > loadSeconds * 5, `${requests} requests`);
    isDown = false;
    clearInterval(hold);
    // The runner may be pausing after so many crashes; the time counts from when the control plane is back.
    await until(
      'the control plane',
      () => mesh.proxies(),
      () => true,
      60_000,
    );
    const backAt = performance.now();
    await mesh.synced();
    assert.ok(performance.now() - backAt < 15_000);
  });
});
