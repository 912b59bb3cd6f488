import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { TestMesh } from './support/mesh.ts';
import { skipWithout } from './support/requirements.ts';

const root = join(import.meta.dirname, '..');

const route = (subset: string) => `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: reviews }
spec:
  hosts: [reviews]
  http:
  - route: [{ destination: { host: reviews, subset: ${subset} } }]
`;

describe('kubectl against the stand-alone API', { skip: skipWithout('kubectl') }, () => {
  let mesh: TestMesh;
  let environment: NodeJS.ProcessEnv;
  /** Debian 12's kubectl is 1.20: older than OpenAPI v3, by which newer ones explain kinds and learn that a server can try things dry. */
  let readsOpenApiV3 = false;
  const run = (args: readonly string[], input = '') => {
    const result = spawnSync('kubectl', args, { encoding: 'utf8', input, env: environment });
    return { code: result.status, out: result.stdout, err: result.stderr };
  };
  const kubectl = async (args: readonly string[], input = '') => {
    // Not spawnSync: the API server lives in this process.
    const child = spawn('kubectl', args, { env: environment, stdio: ['pipe', 'pipe', 'pipe'] });
    let out = '';
    let err = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk));
    child.stderr.on('data', (chunk: Buffer) => (err += chunk));
    child.stdin.end(input);
    const [code] = (await once(child, 'close')) as [number];
    return { code, out, err };
  };
  before(async () => {
    mesh = await TestMesh.start();
    environment = { ...process.env, MIZZEN_HOME: mesh.home, HOME: mesh.home };
    const config = spawnSync(join(root, 'mizzen'), ['kubeconfig'], { encoding: 'utf8', env: environment });
    assert.equal(config.status, 0, config.stderr);
    writeFileSync(join(mesh.home, 'kubeconfig'), config.stdout);
    environment = { ...environment, KUBECONFIG: join(mesh.home, 'kubeconfig') };
    assert.equal(run(['config', 'current-context']).out.trim(), 'mizzen');
    const { clientVersion } = JSON.parse(run(['version', '--client', '-o', 'json']).out) as { clientVersion: { minor: string } };
    readsOpenApiV3 = Number.parseInt(clientVersion.minor, 10) >= 27;
  });
  after(() => mesh.close());

  it('applies, and says what is created, configured and unchanged', async () => {
    const first = await kubectl(['apply', '-f', '-'], route('v1'));
    assert.match(first.out, /virtualservice\.networking\.istio\.io\/reviews created/, first.err);
    assert.match(first.err, /Warning: VirtualService default\/reviews sends traffic to host "reviews", but no Service/);
    assert.match((await kubectl(['apply', '-f', '-'], route('v1'))).out, /unchanged/);
    assert.match((await kubectl(['apply', '-f', '-'], route('v2'))).out, /configured/);
  });

  it('gets, as a table, as YAML, by label and by field, and describes', async () => {
    assert.match((await kubectl(['get', 'virtualservices'])).out, /^NAME\s+GATEWAYS\s+HOSTS\s+AGE\nreviews\s+\["reviews"\]\s+\d+s/);
    assert.match((await kubectl(['get', 'vs', 'reviews', '-o', 'yaml'])).out, /subset: v2/);
    assert.match((await kubectl(['get', 'vs', '-l', 'a=b'])).err, /No resources found/);
    assert.match((await kubectl(['get', 'vs', '--field-selector', 'metadata.name=reviews'])).out, /reviews/);
    assert.match((await kubectl(['describe', 'vs', 'reviews'])).out, /Subset:\s+v2/);
    assert.match((await kubectl(['get', 'namespaces', '-o', 'name'])).out, /namespace\/default/);
    if (readsOpenApiV3) assert.match((await kubectl(['explain', 'virtualservice.spec.http.retries.attempts'])).out, /Number of retries/);
    assert.match((await kubectl(['api-resources', '--api-group', 'mizzen.dev'])).out, /workloads\s+wl\s+mizzen\.dev\/v1alpha1/);
  });

  it('diffs, edits and patches', async () => {
    if (readsOpenApiV3) {
      const diff = await kubectl(['diff', '-f', '-'], route('v3'));
      assert.equal(diff.code, 1);
      assert.match(diff.out, /-\s+subset: v2\n\+\s+subset: v3/);
    }
    environment = { ...environment, EDITOR: "sed -i 's/subset: v2/subset: v4/'" };
    const edited = await kubectl(['edit', 'vs', 'reviews']);
    assert.match(edited.out, /edited/, edited.err);
    assert.match((await kubectl(['get', 'vs', 'reviews', '-o', 'jsonpath={.spec.http[0].route[0].destination.subset}'])).out, /^v4$/);
    await kubectl(['patch', 'vs', 'reviews', '--type=json', '-p', '[{"op":"replace","path":"/spec/http/0/route/0/destination/subset","value":"v5"}]']);
    assert.match((await kubectl(['get', 'vs', 'reviews', '-o', 'jsonpath={.spec.http[0].route[0].destination.subset}'])).out, /^v5$/);
    await kubectl(['patch', 'vs', 'reviews', '--type=merge', '-p', '{"metadata":{"labels":{"team":"a"}}}']);
    assert.match((await kubectl(['get', 'vs', '-l', 'team=a', '-o', 'name'])).out, /reviews/);
    assert.match((await kubectl(['label', 'vs', 'reviews', 'team=b', '--overwrite'])).out, /labeled/);
  });

  it('merges the core kinds entry by entry, as kubectl expects of them', async () => {
    const service = (ports: string) => `apiVersion: v1\nkind: Service\nmetadata: { name: s }\nspec:\n  selector: { app: s }\n  ports:\n${ports}`;
    await kubectl(['apply', '-f', '-'], service('  - { name: a, port: 80 }\n  - { name: b, port: 81 }\n'));
    const applied = await kubectl(['apply', '-f', '-'], service('  - { name: b, port: 81 }\n  - { name: c, port: 82 }\n'));
    assert.match(applied.out, /configured/, applied.err);
    assert.equal((await kubectl(['get', 'svc', 's', '-o', 'jsonpath={.spec.ports[*].name}'])).out, 'b c');
  });

  it('applies server-side with conflicts between managers', async () => {
    const withTimeout = (timeout: string) => `${route('v1').replace('reviews }\nspec', 'owned }\nspec')}    timeout: ${timeout}\n`;
    assert.equal((await kubectl(['apply', '--server-side', '--field-manager=one', '-f', '-'], withTimeout('1s'))).code, 0);
    const conflict = await kubectl(['apply', '--server-side', '--field-manager=two', '-f', '-'], withTimeout('2s'));
    assert.notEqual(conflict.code, 0);
    assert.match(conflict.err, /conflict with "one"/);
    assert.equal((await kubectl(['apply', '--server-side', '--field-manager=two', '--force-conflicts', '-f', '-'], withTimeout('2s'))).code, 0);
    assert.match((await kubectl(['get', 'vs', 'owned', '-o', 'yaml', ...(readsOpenApiV3 ? ['--show-managed-fields'] : [])])).out, /manager: two/);
  });

  it('refuses what is wrong with the field and a suggestion, a stale write with a conflict, a wrong token at the door', async () => {
    const wrong = await kubectl(['apply', '-f', '-'], route('v1').replace('subset', 'subst'));
    assert.match(wrong.err, /spec\.http\[0\]\.route\[0\]\.destination\.subst: unknown field "subst": did you mean "subset"\?/);
    assert.match((await kubectl(['apply', '-f', '-'], route('v1').replace('VirtualService', 'VirtualServise'))).err, /no matches for kind "VirtualServise"/);
    const stale = (await kubectl(['get', 'vs', 'reviews', '-o', 'yaml'])).out;
    await kubectl(['annotate', 'vs', 'reviews', 'changed=yes']);
    assert.match((await kubectl(['replace', '-f', '-'], stale)).err, /the object has been modified/);
    assert.match((await kubectl(['--token', 'wrong', 'get', 'vs'])).err, /Unauthorized|provide credentials/i);
    assert.match((await kubectl(['apply', '-n', 'nowhere', '-f', '-'], route('v1'))).err, /namespaces "nowhere" not found/);
  });

  it('watches: get -w shows each change as it comes', async () => {
    const watching = spawn('kubectl', ['get', 'vs', '-w', '--no-headers'], { env: environment });
    let text = '';
    const line = (pattern: RegExp) =>
      new Promise<void>((resolve) => {
        const look = () => {
          if (!pattern.test(text)) return;
          watching.stdout.off('data', look);
          resolve();
        };
        watching.stdout.on('data', look);
        look();
      });
    watching.stdout.on('data', (chunk: Buffer) => (text += chunk));
    await line(/reviews/);
    const added = line(/watched/);
    await kubectl(['apply', '-f', '-'], route('v1').replace('name: reviews', 'name: watched'));
    await added;
    watching.kill('SIGTERM');
    await once(watching, 'close');
  });

  it('deletes, by name, by file and with a namespace', async () => {
    assert.match((await kubectl(['delete', 'vs', 'watched', 'owned'])).out, /"watched" deleted/);
    assert.match((await kubectl(['delete', '-f', '-'], route('v1'))).out, /"reviews" deleted/);
    assert.match((await kubectl(['get', 'vs', 'reviews'])).err, /not found/);
    await kubectl(['apply', '-f', '-'], 'apiVersion: v1\nkind: Namespace\nmetadata: { name: team }\n');
    await kubectl(['apply', '-n', 'team', '-f', '-'], route('v1'));
    await kubectl(['delete', 'namespace', 'team']);
    assert.equal((await mesh.plane.registry.store.list('networking.istio.io', 'VirtualService', 'team')).items.length, 0);
  });
});
