import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { clearFaults, injectFault, internalErrors, logErrorsTo, silentLogger } from '@mizzen/common';
import { bundlePath } from '@mizzen/control';
import { ApiClient } from '../packages/cli/api-client.ts';
import { runProgram } from '../packages/cli/capture/run-program.ts';
import { controlAccess } from '../packages/cli/home.ts';
import { runApplication } from '../packages/cli/runner/application-process.ts';
import { watchCapture } from '../packages/cli/runner/left-capture.ts';
import { MeshRunner } from '../packages/cli/runner/mesh-runner.ts';
import { SupervisedProcess } from '../packages/cli/runner/supervised-process.ts';
import { JwksResolver } from '../packages/control/citadel/jwks-resolver.ts';
import { TrustBundles } from '../packages/control/citadel/trust-bundles.ts';
import { DirectorySource } from '../packages/control/galley/directory-source.ts';
import { ScriptHost } from '../packages/proxy/filters/script/script-host.ts';
import type { ScriptCall, ScriptResult } from '../packages/proxy/filters/script/script-messages.ts';
import { ProxyCounters } from '../packages/proxy/telemetry/proxy-counters.ts';
import { WatchedFiles } from '../packages/proxy/tls/watched-files.ts';
import { metric } from './support/engine.ts';
import { call, until } from './support/http.ts';
import { workloadApi } from './support/identities.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const count = (place: string) => internalErrors().get(place) ?? 0;
const configMapKind = findKind('', 'ConfigMap')!;

/** Repeats `work`, which may fail, until `place` has thrown at its `at`-th entry from now. Then the same work succeeds, without another error. */
async function throwAt(place: string, at: number, work: () => Promise<unknown>): Promise<void> {
  const expected = count(place) + 1;
  injectFault(place, at);
  await until(
    `a fault at entry ${at} of ${place}`,
    async () => {
      await work().catch(() => {});
      return count(place);
    },
    (found) => found === expected,
  );
  await work();
  assert.equal(count(place), expected, `${place} is counted once`);
}

const unattributed: unknown[] = [];
const notice = (error: unknown) => void unattributed.push(error);
before(() => {
  logErrorsTo(silentLogger);
  process.on('uncaughtException', notice);
  process.on('unhandledRejection', notice);
});
after(() => {
  clearFaults();
  process.off('uncaughtException', notice);
  process.off('unhandledRejection', notice);
  assert.deepEqual(unattributed, []);
});

describe('an exception in the rare turns of a control plane', () => {
  it('is counted as ca.revocations or control.certificates, in metrics and for `mizzen status`, and the next turn works', async (test) => {
    test.mock.timers.enable({ apis: ['setInterval'] });
    const mesh = await TestMesh.start();
    try {
      const access = controlAccess(mesh.home);
      const client = new ApiClient(access);
      const renewed = test.mock.method(mesh.plane.authority, 'issueServer');
      const dayMs = 86_400_000;
      for (const [place, periodMs] of [
        ['ca.revocations', dayMs],
        ['control.certificates', 6 * dayMs],
      ] as const) {
        const expected = count(place) + 1;
        injectFault(place, 1);
        test.mock.timers.tick(periodMs);
        assert.equal(count(place), expected);
        const { body } = await client.call('GET', '/mizzen/v1/findings');
        assert.equal((body as { internalErrors: Record<string, number> }).internalErrors[place], expected);
        const authorization = `Bearer ${access.token}`;
        const metrics = await call({ port: mesh.plane.apiPort, path: '/metrics', headers: { authorization }, tls: { rejectUnauthorized: false } });
        assert.equal(metric(metrics.body, 'mizzen_internal_errors_total', `place="${place}"`), expected);
      }
      test.mock.timers.tick(7 * dayMs);
      assert.ok(renewed.mock.callCount() > 0, 'the servers have a new certificate');
      client.close();
    } finally {
      await mesh.close();
    }
  });

  it('is counted as capture.group, and the next look finds the program that has left the group', (test) => {
    test.mock.timers.enable({ apis: ['setInterval'] });
    const reports: string[] = [];
    const expected = count('capture.group') + 1;
    const end = watchCapture(process.pid, { kind: 'group', gid: 2 ** 30 }, (text) => reports.push(text));
    injectFault('capture.group', 1);
    test.mock.timers.tick(1_000);
    assert.deepEqual([count('capture.group'), reports.length], [expected, 0]);
    test.mock.timers.tick(1_000);
    assert.ok(reports.length > 0);
    assert.equal(count('capture.group'), expected);
    end();
  });
});

describe('an exception at the boundaries of a control plane, its agents and its supervisors', { concurrency: true }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-faults-'));
  let mesh: TestMesh;
  let agent: RunningProxy;
  let isOver = false;
  let served = 0;
  const failures: unknown[] = [];
  let load: Promise<void>;

  before(async () => {
    mesh = await TestMesh.start({ certificateRetryMs: 20, bundleRefreshSeconds: 0.05, forwarders: ['istio-system/mizzen-agent=shop/*'] });
    await mesh.apply(service('server'));
    await mesh.workload('server');
    const { outboundPort } = await mesh.workload('client');
    agent = await mesh.proxy('agent', {
      ...{ namespace: 'istio-system', serviceAccount: 'mizzen-agent', workloadApiSocket: join(folder, 'api.sock'), certificateSeconds: 3 },
      workloadEntries: [{ namespace: 'shop', serviceAccount: 'cart', selectors: { uid: process.getuid!() } }],
    });
    await agent.proxy.ready;
    load = (async () => {
      while (!isOver) {
        const status = await call({ port: outboundPort, headers: { host: 'server:9080' } }).then(({ status: found }) => found, String);
        if (status === 200) served++;
        else failures.push(status);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    })();
  });
  after(async () => {
    isOver = true;
    await load;
    await mesh.close();
    rmSync(folder, { recursive: true, force: true });
    assert.deepEqual(failures, [], 'the traffic under way is served');
    assert.ok(served > 10);
  });

  it('is counted as vetted.agent, and the next call has a connection', async () => {
    for (const at of [1, 2])
      await throwAt('vetted.agent', at, async () => {
        const client = new ApiClient(controlAccess(mesh.home));
        await client.call('GET', '/version').finally(() => client.close());
      });
  });

  it('is counted as api.client, calls end, and a watch tells what it has missed', async () => {
    const client = new ApiClient(controlAccess(mesh.home));
    const seen = new Set<string>();
    for (const at of [1, 2, 3]) await throwAt('api.client', at, () => client.call('GET', '/version'));
    injectFault('api.client', 1);
    const watched = (_type: string, object: never) => seen.add((object as { metadata: { name: string } }).metadata.name);
    const stop = client.watch(configMapKind, 'default', watched, () => {});
    const expected = count('api.client') + 1;
    for (const name of ['first', 'second']) {
      const body = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name } };
      await mesh.plane.registry.create(configMapKind, 'default', body, { manager: 'test', origin: { source: 'api', name: 'test' } });
      await until(
        `${name} is seen`,
        async () => seen.has(name),
        (found) => found,
      );
      if (name === 'first') injectFault('api.client', 1);
    }
    assert.equal(count('api.client'), expected, 'the turn that starts the watch, and one change');
    stop();
    client.close();
  });

  it('is counted as command, and the program fails or has its whole output', async () => {
    for (const at of [1, 2])
      await throwAt('command', at, async () => {
        const { code, output } = await runProgram(['echo', 'done']);
        assert.deepEqual([code, output], code === 0 ? [0, 'done\n'] : [1, '']);
        if (code !== 0) throw new Error('it has failed');
      });
  });

  it('is counted as application.process, and signals reach the application', async () => {
    for (const at of [1, 2]) {
      const known = process.listeners('SIGTERM');
      const running = runApplication(['sleep', '60'], { env: {}, beforeStop: async () => {} });
      const stop = process.listeners('SIGTERM').find((listener) => !known.includes(listener))!;
      const expected = count('application.process') + 1;
      injectFault('application.process', at);
      stop('SIGTERM');
      assert.equal(await running, 143);
      assert.equal(count('application.process'), expected);
    }
  });

  it('is counted as supervisor, and the process is started again, known by its pid, and ended', async () => {
    for (const at of [1, 2, 3, 4]) {
      const pids: number[] = [];
      const supervised = new SupervisedProcess({
        // Its message is a line of JSON on the channel.
        ...{ name: 'sleep', command: ['sh', '-c', `echo '"up"' >&3; exec sleep 60`], env: { PATH: process.env['PATH']! }, workingDirectory: folder },
        ...{ logFile: join(folder, 'sleep.log'), onLine: () => {}, onNotice: () => {}, hasChannel: true },
      });
      const messages: unknown[] = [];
      supervised.on('started', (pid: number) => pids.push(pid)).on('message', (message) => messages.push(message));
      const isUp = (times: number) =>
        until(
          `it is up for time ${times}`,
          async () => Math.min(pids.length, messages.length),
          (found) => found === times,
        );
      const expected = count('supervisor') + 1;
      // Entries: `spawn`, `message`, the end of the process, the turn that starts the next.
      injectFault('supervisor', at);
      supervised.start();
      await isUp(1);
      if (at > 2) {
        process.kill(pids[0]!, 'SIGKILL');
        await isUp(2);
      }
      injectFault('supervisor', 1);
      await supervised.stop(5_000);
      assert.throws(() => process.kill(pids.at(-1)!, 0), 'it has ended');
      assert.equal(count('supervisor'), expected + 1, `entry ${at}, and the end`);
    }
  });

  it('is counted as runner, and a mesh on this machine starts, and follows its folder', async () => {
    const [directory, home] = [join(folder, 'mesh'), join(folder, 'home')];
    mkdirSync(directory);
    const workload = (name: string) =>
      writeFileSync(
        join(directory, `${name}.yaml`),
        `apiVersion: mizzen.dev/v1alpha1\nkind: Workload\nmetadata: { name: ${name} }\nspec: { command: [sleep, "60"], sidecar: false }\n`,
      );
    workload('one');
    const runner = new MeshRunner({
      ...{ directory, home, apiPort: 0, xdsPort: 0, logger: silentLogger, onLine: () => {}, onNotice: () => {}, onProgress: () => {} },
    });
    try {
      const expected = count('runner') + 1;
      injectFault('runner', 1);
      await runner.start();
      assert.equal(count('runner'), expected, 'a port that could not be verified is not used');
      injectFault('runner', 1);
      workload('two');
      await until(
        'both run',
        async () => runner.addresses().flatMap(({ name, pid }) => (pid === undefined ? [] : [name])),
        (found) => found.length === 2,
      );
      assert.equal(count('runner'), expected + 1);
      assert.deepEqual(runner.problems(), []);
    } finally {
      await runner.stop();
    }
  });

  it('is counted as registration, and a workload is registered and removed', async () => {
    const entry = (name: string) =>
      mesh.plane.registry.store.get({ group: 'networking.istio.io', kind: 'WorkloadEntry', namespace: 'default', name }).then((found) => found !== undefined);
    const expected = count('registration') + 1;
    injectFault('registration', 1);
    const { proxy } = await mesh.proxy('late', { registers: true });
    await until(
      'it is registered',
      () => entry('late'),
      (found) => found,
    );
    assert.equal(count('registration'), expected);
    injectFault('registration', 2);
    await proxy.close();
    await until(
      'it is removed',
      () => entry('late'),
      (found) => !found,
    );
  });

  it('is counted as certificate.reconcile, and the Certificate is reconciled', async () => {
    for (const at of [1, 2, 3]) {
      const expected = count('certificate.reconcile') + 1;
      injectFault('certificate.reconcile', at);
      const name = `certificate-${at}`;
      await mesh.apply(
        `apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: { name: ${name} }\nspec: { secretName: ${name}, dnsNames: [${name}.example], issuerRef: { name: absent } }\n`,
      );
      await until(
        `a fault at entry ${at}`,
        async () => count('certificate.reconcile'),
        (found) => found === expected,
      );
      const kind = findKind('cert-manager.io', 'Certificate')!;
      await until(
        'the status of the Certificate',
        async () => JSON.stringify((await mesh.plane.registry.get(kind, 'default', name)).resource.status),
        (found) => /no connected gateway serves it/.test(found ?? ''),
      );
    }
  });

  it('is counted as jwks.fetch, and keys are fetched again', async () => {
    let fetches = 0;
    const server = http.createServer((_request, response) => {
      fetches++;
      response.end(JSON.stringify({ keys: [{ kty: 'oct' }] }));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const source = { issuer: 'issuer', jwksUri: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, timeoutMs: 1_000 };
    const resolver = new JwksResolver(silentLogger, () => {}, undefined, 20);
    injectFault('jwks.fetch', 1);
    const expected = count('jwks.fetch') + 1;
    resolver.want([source]);
    await until(
      'keys',
      async () => resolver.keysOf(source),
      (found) => found !== undefined,
    );
    assert.equal(count('jwks.fetch'), expected);
    await throwAt('jwks.fetch', 1, async () => {
      const fetched = fetches;
      await until(
        'another fetch',
        async () => fetches,
        (found) => found > fetched,
      );
    });
    resolver.close();
    server.close();
  });

  it('is counted as federation.refresh, and the bundle is fetched again', async () => {
    const trustDomain = 'there.example';
    const bundles = new TrustBundles({
      ...{ ownRoots: () => '', trustDomain: 'here.example', directory: join(folder, 'bundles'), logger: silentLogger, onChange: () => {} },
      ...{ leastRefreshMs: 20, fetchPolicy: undefined },
    });
    const spiffeBundleUrl = `https://localhost:${mesh.plane.apiPort}${bundlePath}`;
    injectFault('federation.refresh', 1);
    const expected = count('federation.refresh') + 1;
    bundles.configure([
      { pem: mesh.plane.authority.trustBundle, spiffeBundleUrl: undefined, trustDomains: [trustDomain] },
      { pem: undefined, spiffeBundleUrl, trustDomains: [trustDomain] },
    ]);
    const fetched = () => bundles.status()[0]?.fetchedAt;
    await until(
      'a bundle',
      async () => fetched(),
      (found) => found !== undefined,
    );
    assert.equal(count('federation.refresh'), expected);
    await throwAt('federation.refresh', 1, async () => {
      const last = fetched();
      await until(
        'another fetch',
        async () => fetched(),
        (found) => found !== last,
      );
    });
    bundles.close();
  });

  it('is counted as directory.sync, and the folder is followed', async () => {
    const directory = join(folder, 'followed');
    const file = join(directory, 'below', 'a.yaml');
    mkdirSync(join(directory, 'below'), { recursive: true });
    const source = new DirectorySource({ directory, registry: mesh.plane.registry, logger: silentLogger, settleMs: 5, retryMs: 10 });
    await source.start();
    let version = 0;
    const changeIsApplied = async () => {
      const text = String(++version);
      writeFileSync(file, `apiVersion: v1\nkind: ConfigMap\nmetadata: { name: followed }\ndata: { version: "${text}" }\n`);
      await until(
        'the change is applied',
        async () => (await mesh.plane.registry.get(configMapKind, 'default', 'followed').catch(() => undefined))?.resource.data,
        (data) => (data as { version?: string } | undefined)?.version === text,
      );
    };
    for (const at of [1, 2, 3]) await throwAt('directory.sync', at, changeIsApplied);
    rmSync(join(directory, 'below'), { recursive: true });
    mkdirSync(join(directory, 'below'));
    await changeIsApplied();
    await new Promise((resolve) => setTimeout(resolve, 50));
    await changeIsApplied();
    await source.close();
  });

  it('is counted as identity.renew, and the certificate is renewed', async () => {
    const issued = async () => metric((await call({ port: agent.adminPort, path: '/stats/prometheus' })).body, 'mizzen_certificates_issued_total');
    await throwAt('identity.renew', 1, async () => {
      const before = await issued();
      await until('a newer certificate', issued, (found) => found > before);
    });
  });

  it('is counted as spiffe.connection or spiffe.process, and the next connection has its identity', async () => {
    const fetchOne = async () => {
      for await (const { svids } of workloadApi(join(folder, 'api.sock')).fetchX509SVID({}, { headers: { 'workload.spiffe.io': 'true' } }))
        return assert.deepEqual(
          svids.map(({ spiffeId }) => spiffeId),
          ['spiffe://cluster.local/ns/shop/sa/cart'],
        );
    };
    for (const place of ['spiffe.process', 'spiffe.connection']) for (const at of [1, 2]) await throwAt(place, at, fetchOne);
    // A stream that stays open: the turn that renews its certificate is the only work.
    const received: string[] = [];
    const abort = new AbortController();
    const streaming = (async () => {
      for await (const { svids } of workloadApi(join(folder, 'api.sock')).fetchX509SVID(
        {},
        { headers: { 'workload.spiffe.io': 'true' }, signal: abort.signal },
      ))
        received.push(Buffer.from(svids[0]!.x509Svid).toString('hex'));
    })().catch(() => {});
    const receives = (times: number) =>
      until(
        `${times} certificates`,
        async () => new Set(received).size,
        (found) => found >= times,
      );
    await receives(1);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const expected = count('spiffe.connection') + 1;
    injectFault('spiffe.connection', 1);
    await receives(2);
    assert.equal(count('spiffe.connection'), expected);
    abort.abort();
    await streaming;
  });

  it('is counted as script-process, and the filter and its next version run', async () => {
    const file = join(folder, 'filter.mjs');
    const write = (version: number) =>
      writeFileSync(
        file,
        `import { defineFilter } from '@mizzen/filter';\nexport default defineFilter({ name: 'version', onRequest: (request) => { request.headers.set('x-version', '${version}'); } });\n`,
      );
    write(0);
    const host = new ScriptHost(file, new ProxyCounters(), silentLogger);
    const sent: Omit<ScriptCall, 'id'> = {
      ...{ phase: 'request', config: '', response: undefined },
      request: { method: 'GET', path: '/', authority: 'a', headers: [], remoteAddress: '', consumer: undefined, principal: '' },
    };
    const version = async () => {
      const result = await new Promise<ScriptResult>((resolve) => host.call(sent, 5_000, resolve));
      if (result.kind !== 'continue') throw new Error(JSON.stringify(result));
      return Number(result.headers?.find(([name]) => name === 'x-version')?.[1]);
    };
    assert.equal(await version(), 0);
    for (const at of [1, 2]) await throwAt('script-process', at, version);
    // A change of the file, and the turn that loads it.
    for (const at of [1, 2]) {
      const expected = count('script-process') + 1;
      injectFault('script-process', at);
      write(at);
      await until('the next version', version, (found) => found === at);
      await until(
        'the fault',
        async () => {
          await version();
          return count('script-process');
        },
        (found) => found === expected,
      );
      assert.equal(await version(), at);
    }
    host.close();
  });

  it('is counted as tls.files, and the change of a file is reported', async () => {
    const [directory, file] = [join(folder, 'tls'), join(folder, 'tls', 'cert.pem')];
    mkdirSync(directory);
    writeFileSync(file, '');
    const files = new WatchedFiles();
    let read = '';
    files.watch([file], undefined, () => {
      read = readFileSync(file, 'utf8');
    });
    let version = 0;
    for (const at of [1, 2])
      await throwAt('tls.files', at, async () => {
        const text = String(++version);
        writeFileSync(file, text);
        await until(
          'the change is reported',
          async () => read,
          (found) => found === text,
        );
      });
    files.close();
  });
});
