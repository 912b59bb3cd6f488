import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PortAllocator } from '../packages/cli/runner/port-allocator.ts';
import { mizzenCommand, proxyCommand } from '../packages/cli/runner/program.ts';
import { TokenIssuer } from '../packages/control/citadel/token-issuer.ts';
import { commandOptions } from '../scripts/options.ts';

/**
 * `npm run bench:rotation [-- --workloads N] [-- --life SECONDS]`: a control plane and the certificates of many workloads, all of which begin at the same time. Between two of the
 * mesh's workloads, whose certificates are renewed, too, requests go at a steady pace: their latency while nobody renews, and while all do.
 */
const { workloads, life } = commandOptions({ numbers: { workloads: 1_000, life: 60 } });
const perSecond = 200;
const home = mkdtempSync(join(tmpdir(), 'mizzen-rotation-'));
const children: ChildProcess[] = [];
const start = ([program, ...args]: readonly string[]) => {
  const child = spawn(program!, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  children.push(child);
  return child;
};
const until = async (what: string, ask: () => boolean | Promise<boolean>) => {
  for (const deadline = Date.now() + 60_000; !(await ask()); await sleep(50)) if (Date.now() > deadline) throw new Error(`no ${what}`);
};

try {
  start([...mizzenCommand, 'control', '--home', home, '--api-port', '0', '--xds-port', '0', '--log-level', 'error']);
  await until('control plane', () => existsSync(join(home, 'control.json')));
  const { xds: control } = JSON.parse(readFileSync(join(home, 'control.json'), 'utf8')) as { readonly xds: string };
  const service = { apiVersion: 'v1', kind: 'Service', metadata: { name: 'web' }, spec: { selector: { app: 'web' }, ports: [{ name: 'http', port: 9080 }] } };
  const workload = (name: string) => ({
    ...{ apiVersion: 'mizzen.dev/v1alpha1', kind: 'Workload', metadata: { name, labels: { app: name } } },
    spec: { serviceAccount: name, command: ['true'] },
  });
  for (const [path, object] of [
    ['/api/v1/namespaces/default/services', service],
    ['/apis/mizzen.dev/v1alpha1/namespaces/default/workloads', workload('web')],
    ['/apis/mizzen.dev/v1alpha1/namespaces/default/workloads', workload('client')],
  ] as const) {
    const request = http.request({ socketPath: join(home, 'api.sock'), path, method: 'POST' });
    request.setHeader('content-type', 'application/json');
    request.end(JSON.stringify(object));
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    response.resume();
    if (response.statusCode !== 201) throw new Error(`${object.kind} was not created: ${response.statusCode}`);
  }
  const application = http.createServer((_request, response) => response.end('hello')).listen(0, '127.0.0.1');
  await once(application, 'listening');
  const tokens = new TokenIssuer(join(home, 'ca'));
  const ports = new PortAllocator();
  const proxy = async (name: string, fields: object) => {
    const tokenFile = join(home, `${name}.token`);
    writeFileSync(tokenFile, (await tokens.issue('default', name, [], 3600)).token, { mode: 0o600 });
    const config = {
      ...{ type: 'sidecar', name, namespace: 'default', workload: name, serviceAccount: name, labels: { app: name }, trustDomain: 'cluster.local' },
      ...{ address: '127.0.0.1', control, rootCertificateFile: join(home, 'root-cert.pem'), tokenFile, certificateSeconds: life, accessLogFile: '/dev/null' },
      ...fields,
    };
    const file = join(home, `${name}.json`);
    writeFileSync(file, JSON.stringify(config));
    start([...proxyCommand, '--config', file, '--log-level', 'error']);
  };
  const outbound = await ports.next();
  const app = `127.0.0.1:${(application.address() as AddressInfo).port}`;
  const inbound = [{ name: 'http', port: 9080, listen: `127.0.0.1:${await ports.next()}`, app }];
  await Promise.all([proxy('web', { inbound, registers: true }), proxy('client', { outbound: `127.0.0.1:${outbound}` })]);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
  /** Milliseconds; undefined: it has failed. */
  const ask = () =>
    new Promise<number | undefined>((resolve) => {
      const startedAt = performance.now();
      const request = http.get({ host: '127.0.0.1', port: outbound, path: '/', headers: { host: 'web:9080' }, agent }, (response) => {
        response.resume();
        response.on('end', () => resolve(response.statusCode === 200 ? performance.now() - startedAt : undefined));
      });
      request.on('error', () => resolve(undefined));
    });
  await until('answer', async () => (await ask()) !== undefined);

  const renewals: number[] = [];
  const agents = fork(new URL('rotation-agents.ts', import.meta.url), [home, control, String(workloads), String(life)], { execArgv: [] });
  children.push(agents);
  const begun = performance.now();
  await new Promise<void>((resolve) => agents.on('message', (message) => (message === 'started' ? resolve() : renewals.push(performance.now()))));
  const startedIn = (performance.now() - begun) / 1000;
  const firstAt = performance.now();
  const samples: { readonly at: number; readonly ms: number | undefined }[] = [];
  // Renewals come between 45 % and 55 % of a life, counted from when each was issued.
  const endsAt = firstAt + life * 550 + 2_000;
  while (performance.now() < endsAt) {
    const at = performance.now();
    void ask().then((ms) => samples.push({ at, ms }));
    await sleep(1000 / perSecond);
  }
  await sleep(500);
  const [from, to] = [renewals[0]!, renewals.at(-1)!];
  const busiest = Math.max(...renewals.map((at) => renewals.filter((other) => other >= at && other < at + 1_000).length));
  const percentiles = (isMeant: (at: number) => boolean) => {
    const found = samples.filter(({ at }) => isMeant(at));
    const ms = found.flatMap(({ ms: one }) => one ?? []).sort((a, b) => a - b);
    const of = (share: number) => ms[Math.min(ms.length - 1, Math.floor(ms.length * share))]!.toFixed(2);
    return `p50 ${of(0.5)} ms, p90 ${of(0.9)} ms, p99 ${of(0.99)} ms (${found.length} requests, ${found.length - ms.length} failed)`;
  };
  console.log(
    `${workloads} workloads had their first certificate in ${startedIn.toFixed(1)} s, and ${renewals.length} renewals in ${((to - from) / 1000).toFixed(1)} s, at most ${busiest} in one`,
  );
  console.log(`while nobody renews: ${percentiles((at) => at > firstAt + 2_000 && at < from - 500)}`);
  console.log(`while all renew:     ${percentiles((at) => at >= from && at <= to)}`);
} finally {
  for (const child of children) child.kill('SIGKILL');
  rmSync(home, { recursive: true, force: true });
}
process.exit();
