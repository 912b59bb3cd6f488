import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { RunningExample } from './support/example.ts';
import { call, until } from './support/http.ts';

/** The recipes as a user runs them: the mesh as processes, each file applied by the command line, the effect asked for at the gateway. */
describe('the recipes for traffic', () => {
  let example: RunningExample;
  let folder: string;
  let lines: readonly string[];

  const mizzen = (...args: readonly string[]) => example.mizzen(...args);
  const ask = async (path = '/', headers: Record<string, string> = {}, port = 8082) => {
    const answer = await call({ port, path, headers: { host: 'shop.test', ...headers } });
    return { status: answer.status, ...(answer.body.startsWith('{') ? (JSON.parse(answer.body) as Record<string, unknown>) : {}) } as {
      status: number;
      version?: string;
      requests?: number;
      mirrored?: number;
      said?: string;
    };
  };
  const versions = async (count: number, port: number, headers?: Record<string, string>) => {
    const found = { v1: 0, v2: 0 };
    for (let i = 0; i < count; i++) found[(await ask('/', headers, port)).version as 'v1' | 'v2']++;
    return found;
  };
  /** Applies a file and waits until the gateway does as it says. */
  const apply = async (file: string, isInEffect: () => Promise<boolean>) => {
    await mizzen('apply', '-f', join(folder, file));
    await until(`${file} is in effect`, isInEffect, (yes) => yes);
  };

  before(async () => {
    example = await RunningExample.start('traffic', 'mesh');
    ({ folder, lines } = example);
  });
  after(() => example.close());
  beforeEach(async () => {
    for (const file of ['edge.yaml', 'services.yaml']) await mizzen('apply', '-f', join(folder, 'mesh', file));
    for (const port of [8082, 8083])
      await until(
        'all is as it was',
        async () => (await Promise.all(Array.from({ length: 5 }, () => ask('/', {}, port)))).every(({ version }) => version === 'v1'),
        (yes) => yes,
      );
  });

  it('starts without a word of trouble', () => {
    assert.deepEqual(
      lines.filter((line) => /error|warn|does not run/i.test(line)),
      [],
    );
  });

  for (const [api, recipes, port] of [
    ['Istio', 'recipes', 8082],
    ['the Gateway API', 'recipes-gateway-api', 8083],
  ] as const) {
    it(`canary, blue-green and header routing, by ${api}`, async () => {
      await apply(`${recipes}/canary.yaml`, async () => (await versions(20, port)).v2 > 0);
      const canary = await versions(200, port);
      assert.ok(canary.v2 >= 4 && canary.v2 <= 50, `${canary.v2} of 200 to v2`);
      await apply(`${recipes}/blue-green.yaml`, async () => (await versions(10, port)).v2 === 10);
      await apply(`${recipes}/header-routing.yaml`, async () => (await ask('/', {}, port)).version === 'v1');
      assert.deepEqual(
        [(await ask('/', { 'end-user': 'tester' }, port)).version, (await ask('/?beta=yes', {}, port)).version, (await ask('/?beta=no', {}, port)).version],
        ['v2', 'v2', 'v1'],
      );
    });

    it(`mirroring, by ${api}`, async () => {
      const before_ = (await ask('/v2/admin/counts')).mirrored!;
      await apply(`${recipes}/mirroring.yaml`, async () => {
        await ask('/', {}, port);
        return (await ask('/v2/admin/counts')).mirrored! > before_;
      });
      const { mirrored } = await ask('/v2/admin/counts');
      for (let i = 0; i < 10; i++) assert.equal((await ask('/', {}, port)).version, 'v1');
      await until(
        'v2 has had its copies',
        async () => (await ask('/v2/admin/counts')).mirrored! - mirrored!,
        (count) => count >= 10,
      );
    });
  }

  it('fault drills', async () => {
    await apply('recipes/fault-drill.yaml', async () => (await ask('/', { 'x-drill': 'down' })).status === 503);
    const startedAt = performance.now();
    assert.equal((await ask('/', { 'x-drill': 'slow' })).status, 200);
    assert.ok(performance.now() - startedAt >= 1_000);
    assert.equal((await ask('/')).status, 200);
  });

  it('circuit breaking', async () => {
    await apply('recipes/circuit-breaking.yaml', async () => {
      const statuses = (await Promise.all(Array.from({ length: 10 }, () => ask('/slow')))).map(({ status }) => status);
      return statuses.filter((status) => status === 503).length >= 6 && statuses.includes(200);
    });
    assert.equal((await ask('/')).status, 200);
  });

  it('locality failover', async () => {
    await apply('recipes/locality-failover.yaml', async () => (await versions(10, 8082)).v1 === 10);
    await ask('/v1/admin/break');
    try {
      await until(
        'us takes over',
        () => ask('/'),
        ({ status, version }) => status === 200 && version === 'v2',
      );
      assert.equal((await versions(10, 8082)).v2, 10);
    } finally {
      await mizzen('apply', '-f', join(folder, 'mesh/services.yaml'));
      await until(
        'v1 is well again',
        () => ask('/v1/admin/mend'),
        ({ status }) => status === 200,
      );
    }
  });

  it('egress control', async () => {
    const visit = (host: string) => ask(`/visit?host=${host}`);
    assert.equal((await visit('outside.example')).status, 502);
    await apply('recipes/egress-control.yaml', async () => (await visit('outside.example')).status === 200);
    assert.match((await visit('outside.example')).said!, /"name":"outside"/);
    assert.deepEqual([(await visit('elsewhere.example')).status, (await visit('shop:8080')).status, (await visit('visitor:8080')).status], [502, 200, 502]);
    await mizzen('delete', '-f', join(folder, 'recipes/egress-control.yaml'));
  });

  it('a canary within the mesh, by the Gateway API', async () => {
    await mizzen('apply', '-f', join(folder, 'recipes-gateway-api/mesh-canary.yaml'));
    const seen = new Set<string>();
    await until(
      'both versions answer the visitor',
      async () => seen.add(/v\d/.exec((await ask('/visit?host=shop:8080')).said ?? '')?.[0] ?? '').size,
      () => seen.has('v1') && seen.has('v2'),
    );
    assert.match(await mizzen('get', 'httproutes', 'shop-in-the-mesh', '-o', 'yaml'), /reason: Accepted/);
  });
});
