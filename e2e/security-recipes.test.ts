import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { RunningExample } from './support/example.ts';
import { call, until } from './support/http.ts';

/** The recipes for security as a user runs them. */
describe('the recipes for security', () => {
  let example: RunningExample;
  let folder: string;
  let lines: readonly string[];

  const mizzen = (...args: readonly string[]) => example.mizzen(...args);
  const ask = async (path: string, headers: Record<string, string> = {}) => {
    const { status, body } = await call({ port: 8084, path, headers: { host: 'edge.test', ...headers } });
    return { status, body, said: body.startsWith('{') ? (JSON.parse(body) as Record<string, unknown>) : {} };
  };
  const asWeb = async (path: string) => (await ask(`/web/call?host=orders:8080&path=${encodeURIComponent(path)}`)).said['status'];
  const apply = (recipe: string) => mizzen('apply', '-f', join(folder, 'recipes', recipe));
  const settles = (what: string, status: () => Promise<unknown>, wanted: number) => until(what, status, (one) => one === wanted);

  before(async () => {
    example = await RunningExample.start('security', 'mesh');
    ({ folder, lines } = example);
  });
  after(() => example.close());

  it('start without a word of trouble, with everybody let in', async () => {
    assert.deepEqual(
      lines.filter((line) => /error|warn|does not run/i.test(line)),
      [],
    );
    const { status, said } = await ask('/orders/list');
    assert.deepEqual([status, said['service'], said['caller']], [200, 'orders', 'spiffe://cluster.local/ns/default/sa/edge']);
  });

  it('let in by identity, and say why', async () => {
    await apply('strict.yaml');
    await apply('by-identity.yaml');
    await settles('the gateway may not', async () => (await ask('/orders/list')).status, 403);
    assert.equal(await asWeb('/list'), 200);
    assert.equal(await asWeb('/admin/users'), 403);
    assert.match(
      await mizzen('authz', 'check', 'orders', '--from', 'default/web', '--path', '/list'),
      /GET \/list from spiffe:\/\/cluster\.local\/ns\/default\/sa\/web is allowed by default\/orders, rule 0/,
    );
    assert.match(await mizzen('authz', 'check', 'orders', '--from', 'default/web', '--path', '/admin/x'), /is denied by default\/no-admin, rule 0/);
    for (const name of ['orders', 'no-admin']) await mizzen('delete', 'authorizationpolicy', name);
    await settles('everybody may again', async () => (await ask('/orders/list')).status, 200);
  });

  it('leave the decision to somebody else, whose rules may change', async () => {
    await apply('by-decider.yaml');
    await settles('nobody may without a department', async () => (await ask('/orders/salaries')).status, 403);
    assert.equal((await ask('/orders/salaries')).body, 'the department (none) may not GET /salaries\n');
    const allowed = await ask('/orders/salaries', { 'x-department': 'accounting', 'x-user': 'the boss' });
    assert.deepEqual([allowed.status, allowed.said['user']], [200, 'somebody of accounting']);
    assert.equal((await ask('/orders/list')).status, 200, 'about other paths nobody is asked');
    writeFileSync(join(folder, 'mesh/app/rules.json'), '[]');
    assert.equal((await ask('/orders/salaries', { 'x-department': 'accounting' })).status, 403);
  });
});
