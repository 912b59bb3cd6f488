import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { after, before, describe, it } from 'node:test';
import { findKind, type Kind, kinds } from '@mizzen/api';
import { homeFiles } from '@mizzen/control';
import { service, TestMesh } from './support/mesh.ts';

interface Asked {
  readonly token?: string;
  readonly pair?: { readonly cert: string; readonly key: string };
  readonly socketPath?: string;
  readonly method?: string;
  readonly path: string;
  readonly body?: unknown;
  /** Of the body; JSON by default. */
  readonly type?: string;
  readonly more?: Readonly<Record<string, string>>;
}

interface AuditLine {
  readonly verb: string;
  readonly name?: string;
  readonly namespace?: string;
  readonly resource: string;
  readonly status: number;
  readonly reason?: string;
  readonly caller?: { readonly name: string; readonly role: string; readonly by: string };
  readonly changes?: readonly { readonly path: string; readonly before?: unknown; readonly after?: unknown }[];
}

describe('access to the API', () => {
  let mesh: TestMesh;
  const agent = new https.Agent({ keepAlive: true });
  const files = () => homeFiles(mesh.home);
  const ask = ({ token, pair, socketPath, method = 'GET', path, body, type = 'application/json', more }: Asked) =>
    new Promise<{ status: number; body: Record<string, unknown> }>((resolve, reject) => {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const headers = {
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
        ...(text === undefined ? {} : { 'content-type': type }),
        ...more,
      };
      const request =
        socketPath === undefined
          ? https.request({
              method,
              path,
              headers,
              ...pair,
              host: '127.0.0.1',
              port: mesh.plane.apiPort,
              ca: readFileSync(files().rootCertificate),
              agent: pair === undefined ? agent : false,
            })
          : http.request({ method, path, headers, socketPath });
      request.on('error', reject);
      request.on('response', (response) => {
        let answer = '';
        response.on('data', (chunk: Buffer) => (answer += chunk));
        response.on('end', () =>
          resolve({ status: response.statusCode!, body: answer.startsWith('{') ? (JSON.parse(answer) as Record<string, unknown>) : {} }),
        );
      });
      request.end(text);
    });
  const admin = () => readFileSync(files().adminToken, 'utf8').trim();
  const tokenFor = async (user: string, role: string, namespaces?: readonly string[]) =>
    (await ask({ token: admin(), method: 'POST', path: '/mizzen/v1/access', body: { user, role, namespaces } })).body['token'] as string;
  const routes = (namespace: string) => `/apis/networking.istio.io/v1/namespaces/${namespace}/virtualservices`;
  const route = (name: string, status: number) => ({
    apiVersion: 'networking.istio.io/v1',
    kind: 'VirtualService',
    metadata: { name },
    spec: { hosts: ['web'], http: [{ directResponse: { status } }] },
  });
  const namespace = (name: string) => ({ apiVersion: 'v1', kind: 'Namespace', metadata: { name } });
  const audit = () =>
    readFileSync(files().auditLog, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as AuditLine);

  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('web'));
    await mesh.apply('apiVersion: v1\nkind: Namespace\nmetadata: { name: other }\n');
  });
  after(async () => {
    agent.destroy();
    await mesh.close();
  });

  it('is for those who prove who they are, by what was made for it', async () => {
    assert.equal((await ask({ path: routes('default') })).status, 401);
    assert.equal((await ask({ path: routes('default'), token: 'guessed' })).status, 401);
    const workload = await mesh.plane.tokens.issue('default', 'web', [], 3600);
    assert.equal((await ask({ path: routes('default'), token: workload.token })).status, 401, 'the token of a workload is for the authority');
    await assert.rejects(mesh.plane.tokens.verify(await tokenFor('anna', 'admin')), /not acceptable/, 'a token of the API is for the API');
    assert.equal((await ask({ path: routes('default'), token: admin() })).status, 200);
    assert.equal((await ask({ path: '/healthz' })).status, 200);
    const expired = await mesh.plane.tokens.issueAccess('anna', 'admin', undefined, -120);
    assert.match(String((await ask({ path: routes('default'), token: expired.token })).body['message']), /the token has expired/);
  });

  it('lets no caller issue more authority than it has, by any object and any verb', async () => {
    const subject = (account: string) => `spiffe://cluster.local/ns/default/sa/${account}`;
    const access = [
      { subject: subject('boss'), role: 'admin' },
      { subject: subject('viewer'), role: 'viewer', namespaces: ['default'] },
      { subject: subject('everywhere'), role: 'viewer' },
    ];
    const configMap = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'mizzen-access' }, data: { bindings: JSON.stringify(access) } };
    const configMaps = '/api/v1/namespaces/istio-system/configmaps';
    assert.equal((await ask({ token: admin(), method: 'POST', path: configMaps, body: configMap })).status, 201);
    for (const name of ['boss', 'viewer', 'everywhere', 'plain'])
      await ask({
        token: admin(),
        method: 'POST',
        path: '/api/v1/namespaces/default/serviceaccounts',
        body: { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name } },
      });
    const callers = {
      operator: await tokenFor('otto', 'operator'),
      local: await tokenFor('lotte', 'operator', ['default']),
      localAdmin: await tokenFor('lars', 'admin', ['default', 'istio-system']),
      meshOperator: await tokenFor('mona', 'operator', ['default', 'istio-system']),
    };
    const ours = '/apis/mizzen.dev/v1alpha1/namespaces/default/workloads';
    const groups = '/apis/networking.istio.io/v1/namespaces/default/workloadgroups';
    const entries = '/apis/networking.istio.io/v1/namespaces/default/workloadentries';
    const workload = (name: string, serviceAccount: string) => ({
      ...{ apiVersion: 'mizzen.dev/v1alpha1', kind: 'Workload', metadata: { name } },
      spec: { serviceAccount, command: ['x'] },
    });
    for (const [who, token] of Object.entries(callers)) {
      const status = async (method: string, path: string, body?: unknown) => (await ask({ token, method, path, body })).status;
      const issue = (account: string, spec: object = {}) => status('POST', `/api/v1/namespaces/default/serviceaccounts/${account}/token`, { spec });
      assert.equal(await issue('boss'), 403, who);
      assert.equal(await issue('plain'), 201, who);
      assert.equal(await issue('viewer'), 201, who);
      assert.equal(await issue('everywhere'), who === 'operator' ? 201 : 403, who);
      assert.equal(await issue('plain', { audiences: ['mizzen-api'] }), 400, who);
      assert.equal(await status('POST', ours, workload(`${who.toLowerCase()}-a`, 'boss')), 403, who);
      const name = `${who.toLowerCase()}-b`;
      assert.equal(await status('POST', ours, workload(name, 'plain')), 201, who);
      assert.equal(await status('PUT', `${ours}/${name}`, workload(name, 'boss')), 403, who);
      const group = { apiVersion: 'networking.istio.io/v1', kind: 'WorkloadGroup', metadata: { name }, spec: { template: { serviceAccount: 'boss' } } };
      assert.equal(await status('POST', groups, group), 403, who);
      const entry = {
        ...{ apiVersion: 'networking.istio.io/v1', kind: 'WorkloadEntry', metadata: { name } },
        spec: { address: '10.0.0.1', serviceAccount: 'boss' },
      };
      assert.equal(await status('POST', entries, entry), 403, who);
      assert.equal(await status('PUT', `${configMaps}/mizzen-access`, configMap), 403, who);
      assert.equal(await status('DELETE', `${configMaps}/mizzen-access`), 403, who);
      assert.equal(await status('DELETE', configMaps), 403, who);
      assert.equal(await status('POST', configMaps, { ...configMap, metadata: { name: 'istio' } }), 403, who);
      assert.equal(await status('POST', '/mizzen/v1/access', { user: 'x', role: 'admin' }), 403, who);
    }
    assert.equal((await ask({ token: admin(), method: 'POST', path: '/api/v1/namespaces/default/serviceaccounts/boss/token', body: {} })).status, 201);
  });

  it('lets no caller exceed its rights, by any kind, verb and form of a patch', async () => {
    const path = (kind: Kind, where: string, name = '') => {
      const group = kind.group === '' ? `/api/${kind.versions[0]}` : `/apis/${kind.group}/${kind.versions[0]}`;
      return `${group}${where === '' ? '' : `/namespaces/${where}`}/${kind.plural}${name === '' ? '' : `/${name}`}`;
    };
    const object = (kind: Kind, name: string, more: object = {}) => ({
      ...{ apiVersion: kind.group === '' ? kind.versions[0]! : `${kind.group}/${kind.versions[0]}`, kind: kind.kind, metadata: { name }, ...more },
    });
    // What belongs to the service account `boss`, an admin, and what decides whom the mesh trusts.
    const bound: readonly [string, string, string, object][] = [
      ['mizzen.dev', 'Workload', 'held', { spec: { serviceAccount: 'boss', command: ['x'] } }],
      ['networking.istio.io', 'WorkloadGroup', 'held', { spec: { template: { serviceAccount: 'boss' } } }],
      ['networking.istio.io', 'WorkloadEntry', 'held', { spec: { address: '10.0.0.1', serviceAccount: 'boss' } }],
    ];
    const protectedObjects: { kind: Kind; where: string; name: string; content: object }[] = [];
    for (const [group, kindName, name, content] of bound) {
      const kind = findKind(group, kindName)!;
      assert.equal((await ask({ token: admin(), method: 'POST', path: path(kind, 'default'), body: object(kind, name, content) })).status, 201);
      protectedObjects.push({ kind, where: 'default', name, content });
    }
    const configMap = findKind('', 'ConfigMap')!;
    protectedObjects.push({ kind: configMap, where: 'istio-system', name: 'mizzen-access', content: { data: { bindings: '[]' } } });
    const policies = findKind('security.istio.io', 'AuthorizationPolicy')!;
    const denyAll = object(policies, 'deny-all', { spec: {} });
    assert.equal((await ask({ token: admin(), method: 'POST', path: path(policies, 'istio-system'), body: denyAll })).status, 201);
    const state = async () => {
      const found: unknown[] = [];
      for (const { kind, where, name } of protectedObjects) found.push((await ask({ token: admin(), path: path(kind, where, name) })).body);
      return [...found, (await ask({ token: admin(), path: path(policies, 'istio-system', 'deny-all') })).body];
    };
    const before = await state();
    const patches = (kind: Kind, name: string, change: object): readonly [string, unknown, string][] => [
      ['application/merge-patch+json', change, ''],
      ['application/strategic-merge-patch+json', change, ''],
      ['application/json-patch+json', [{ op: 'add', path: '/metadata/labels', value: { app: 'taken' } }], ''],
      ['application/json-patch+json; charset=utf-8', [{ op: 'replace', path: '/metadata', value: { name, labels: { app: 'taken' } } }], ''],
      ['application/apply-patch+yaml', object(kind, name, change), '?fieldManager=x'],
      ['application/apply-patch+yaml', object(kind, name, change), '?fieldManager=x&force=true'],
      [
        'application/apply-patch+yaml',
        object(kind, name, { metadata: { name, annotations: { 'mizzen.dev/addresses': '0.0.0.0/0' } } }),
        '?fieldManager=mizzen&force=true',
      ],
    ];
    const callers: Readonly<Record<string, string>> = {
      viewer: await tokenFor('vera', 'viewer'),
      operator: await tokenFor('otto', 'operator'),
      local: await tokenFor('lotte', 'operator', ['default']),
      localAdmin: await tokenFor('lars', 'admin', ['default']),
    };
    const refused = async (who: string, method: string, where: string, asked: Partial<Asked> = {}) => {
      const { status } = await ask({ token: callers[who]!, method, path: where, ...asked });
      assert.ok(status >= 400 && status < 500, `${who}: ${method} ${where} ${asked.type ?? ''} ${JSON.stringify(asked.body)}: ${status}`);
    };
    for (const who of Object.keys(callers)) {
      for (const { kind, where, name, content } of protectedObjects) {
        const labelled = { ...content, metadata: { name, labels: { app: 'taken' } } };
        await refused(who, 'PUT', path(kind, where, name), { body: object(kind, name, labelled) });
        await refused(who, 'PUT', `${path(kind, where, name)}?dryRun=All`, { body: object(kind, name, labelled) });
        for (const [type, body, query] of patches(kind, name, { metadata: { name, labels: { app: 'taken' } } }))
          await refused(who, 'PATCH', path(kind, where, name) + query, { type, body });
        await refused(who, 'POST', path(kind, where), { body: object(kind, `${name}-${who.toLowerCase()}`, content) });
      }
      // A new object by a patch, and one that becomes bound by a patch.
      for (const [group, kindName, , content] of bound) {
        const kind = findKind(group, kindName)!;
        const name = `new-${who.toLowerCase()}`;
        await refused(who, 'PATCH', `${path(kind, 'default', name)}?fieldManager=x`, {
          type: 'application/apply-patch+yaml',
          body: object(kind, name, content),
        });
        await refused(who, 'PUT', path(kind, 'default', name), { body: object(kind, name, content) });
      }
      if (who !== 'localAdmin') await refused(who, 'DELETE', path(policies, 'istio-system', 'deny-all'));
      for (const kind of kinds) {
        const where = kind.isNamespaced ? 'istio-system' : '';
        const body = object(kind, 'taken');
        await refused(who, 'POST', path(kind, where), { body });
        await refused(who, 'PUT', path(kind, where, 'taken'), { body });
        await refused(who, 'PATCH', `${path(kind, where, 'taken')}?fieldManager=x`, { type: 'application/apply-patch+yaml', body });
        await refused(who, 'DELETE', path(kind, where));
        // Of all namespaces at once, which takes those of the mesh with them.
        if (kind.isNamespaced) await refused(who, 'DELETE', path(kind, ''));
        if (who === 'viewer' && kind.isNamespaced) {
          await refused(who, 'POST', path(kind, 'default'), { body });
          await refused(who, 'DELETE', path(kind, 'default'));
        }
      }
      await refused(who, 'POST', '/api/v1/namespaces/default/serviceaccounts/boss/token', { body: {} });
      await refused(who, 'GET', '/api/v1/namespaces', { more: { 'impersonate-user': 'admin' } });
      await refused(who, 'GET', '/api/v1/namespaces', { more: { 'impersonate-group': 'system:masters' } });
    }
    assert.deepEqual(await state(), before);
    const asAdmin = await ask({ token: admin(), path: '/api/v1/namespaces', more: { 'impersonate-user': 'vera' } });
    assert.equal(asAdmin.status, 403, 'an admin who asks for fewer rights is not given all of them');
  });

  it('lets viewers see, operators change, and admins do all', async () => {
    const viewer = await tokenFor('vera', 'viewer');
    const operator = await tokenFor('otto', 'operator');
    const status = async (token: string, method: string, path: string, body?: unknown) => (await ask({ token, method, path, body })).status;
    assert.equal(await status(viewer, 'GET', routes('default')), 200);
    assert.equal(await status(viewer, 'POST', routes('default'), route('a', 418)), 403);
    assert.equal(await status(viewer, 'GET', '/api/v1/namespaces/default/secrets'), 403);
    assert.equal(await status(viewer, 'POST', '/mizzen/v1/ca/rotate', { step: 'prepare' }), 403);
    assert.equal(await status(operator, 'POST', routes('default'), route('a', 418)), 201);
    assert.equal(await status(operator, 'POST', '/api/v1/namespaces', namespace('new')), 403);
    assert.equal(await status(operator, 'POST', routes('istio-system'), route('a', 418)), 403, 'what is there holds for the whole mesh');
    assert.equal(await status(operator, 'POST', '/mizzen/v1/access', { user: 'otto', role: 'admin' }), 403);
    assert.equal(await status(admin(), 'POST', '/api/v1/namespaces', namespace('new')), 201);
    const refusal = (await ask({ token: viewer, method: 'DELETE', path: `${routes('default')}/a` })).body['message'];
    assert.equal(refusal, 'vera (viewer) cannot delete virtualservices in the namespace default: viewers change nothing');
  });

  it('can be for some namespaces only, whichever way they are named', async () => {
    const token = await tokenFor('nina', 'operator', ['other']);
    const status = async (method: string, path: string, body?: unknown) => (await ask({ token, method, path, body })).status;
    assert.equal(await status('POST', routes('other'), route('b', 418)), 201);
    assert.equal(await status('GET', routes('other')), 200);
    assert.equal(await status('GET', routes('default')), 403);
    assert.equal(await status('GET', '/apis/networking.istio.io/v1/virtualservices'), 403);
    const elsewhere = { ...route('c', 418), metadata: { name: 'c', namespace: 'default' } };
    assert.equal(await status('POST', '/apis/networking.istio.io/v1/virtualservices', elsewhere), 403);
    assert.notEqual(await status('POST', routes('other'), elsewhere), 201);
    assert.equal(await status('GET', '/mizzen/v1/proxies/default/web/cluster'), 404);
    // Revoked identities of other namespaces are theirs to see.
    const record = { serial: 'abcd', identity: 'spiffe://cluster.local/ns/default/sa/stolen', generation: 'first', notAfter: '2999-01-01T00:00:00Z' };
    writeFileSync(join(files().certificates, 'valid-certificates.log'), `${JSON.stringify(record)}\n`);
    assert.equal((await ask({ token: admin(), method: 'POST', path: '/mizzen/v1/ca/revoke', body: { serial: 'abcd' } })).status, 200);
    const seen = async (by: string) => JSON.stringify((await ask({ token: by, path: '/mizzen/v1/ca' })).body['revoked']);
    assert.match(await seen(admin()), /sa\/stolen/);
    assert.equal(await seen(token), '[]');
    assert.equal(await status('POST', '/api/v1/namespaces/default/serviceaccounts/default/token', {}), 403);
  });

  it('takes client certificates of the mesh that a role is bound to, and the user of the machine by a socket', async () => {
    const identity = { trustDomain: 'cluster.local', namespace: 'ops', serviceAccount: 'deployer' };
    const pair = await mesh.plane.authority.issueServer({ dns: [], ip: [], identity }, 600);
    assert.match(
      String((await ask({ pair, path: routes('default') })).body['message']),
      /no role is bound to spiffe:\/\/cluster\.local\/ns\/ops\/sa\/deployer/,
    );
    await mesh.apply(
      'apiVersion: v1\nkind: ConfigMap\nmetadata: { name: mizzen-access, namespace: istio-system }\ndata:\n  bindings: |\n    - { subject: "spiffe://cluster.local/ns/ops/sa/deployer", role: viewer, namespaces: [default] }\n',
    );
    assert.equal((await ask({ pair, path: routes('default') })).status, 200);
    assert.equal((await ask({ pair, path: routes('other') })).status, 403);
    // A watch ends with the role that it was opened with.
    const watch = https.get({
      ...pair,
      host: '127.0.0.1',
      port: mesh.plane.apiPort,
      ca: readFileSync(files().rootCertificate),
      path: `${routes('default')}?watch=true`,
    });
    const [watched] = (await once(watch, 'response')) as [http.IncomingMessage];
    const watchedText = text(watched);
    const narrowed = [{ subject: 'spiffe://cluster.local/ns/ops/sa/deployer', role: 'viewer', namespaces: ['other'] }];
    const bind = (bindings: unknown) =>
      ask({
        ...{ token: admin(), method: 'PATCH', path: '/api/v1/namespaces/istio-system/configmaps/mizzen-access', type: 'application/merge-patch+json' },
        body: { data: { bindings: JSON.stringify(bindings) } },
      });
    assert.equal((await bind(narrowed)).status, 200);
    assert.match(await watchedText, /"type":"ERROR".*only these are theirs: other/);
    assert.equal((await ask({ pair, path: routes('default') })).status, 403);
    // A binding that could be read as one for all namespaces is refused.
    for (const wrong of [{ namespaces: 'other' }, { namespaces: null }, { namespace: 'other' }]) {
      const { subject, role } = narrowed[0]!;
      const { status, body } = await bind([{ subject, role, ...wrong }]);
      assert.equal(status, 422, JSON.stringify(wrong));
      assert.match(String(body['message']), /data\.bindings: entry 0/);
    }
    for (const namespaces of ['other', null, [1], ['*']])
      assert.equal((await ask({ token: admin(), method: 'POST', path: '/mizzen/v1/access', body: { user: 'x', role: 'viewer', namespaces } })).status, 409);
    assert.equal(
      (await ask({ token: admin(), method: 'POST', path: '/mizzen/v1/access', body: { user: 'x', role: 'viewer', namespace: 'other' } })).status,
      409,
    );
    assert.equal(statSync(files().apiSocket).mode & 0o777, 0o600);
    assert.equal((await ask({ socketPath: files().apiSocket, path: routes('default') })).status, 200);
  });

  it('leaves a line for each change: who, what, and the difference; of secrets only that they differ', async () => {
    const token = await tokenFor('otto', 'operator');
    await ask({ token, method: 'PUT', path: `${routes('default')}/a`, body: route('a', 204) });
    const secret = (value: string) => ({ apiVersion: 'v1', kind: 'Secret', metadata: { name: 's' }, data: { key: Buffer.from(value).toString('base64') } });
    await ask({ token, method: 'POST', path: '/api/v1/namespaces/default/secrets', body: secret('first') });
    await ask({ token, method: 'PUT', path: '/api/v1/namespaces/default/secrets/s', body: secret('second') });
    await ask({ token, method: 'DELETE', path: `${routes('default')}/a` });
    const lines = audit();
    const { caller, resource, namespace: where, status, changes } = lines.find(({ verb, name }) => verb === 'update' && name === 'a')!;
    assert.deepEqual(
      [caller, resource, where, status],
      [{ name: 'otto', role: 'operator', by: 'token' }, 'networking.istio.io/virtualservices', 'default', 200],
    );
    assert.deepEqual(changes, [{ path: 'spec.http', before: [{ directResponse: { status: 418 } }], after: [{ directResponse: { status: 204 } }] }]);
    assert.deepEqual(lines.find(({ verb, name }) => verb === 'update' && name === 's')!.changes, [{ path: 'data.key', before: '(secret)', after: '(secret)' }]);
    assert.ok(lines.some((line) => line.verb === 'delete' && line.name === 'a' && line.status === 200));
    assert.ok(
      lines.some((line) => line.verb === 'create' && line.status === 403 && line.reason!.includes('viewers change nothing')),
      'what was refused too',
    );
    const text = readFileSync(files().auditLog, 'utf8');
    for (const value of ['first', 'second']) assert.ok(!text.includes(Buffer.from(value).toString('base64')));
    assert.equal(statSync(files().auditLog).mode & 0o777, 0o600);
  });
});
