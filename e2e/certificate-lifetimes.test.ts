import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import { after, before, describe, it } from 'node:test';
import { Logger, silentLogger } from '@mizzen/common';
import { startControlPlane } from '@mizzen/control';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const certificateSeconds = 10;
/** With MIZZEN_DRILL_LONG certificates live for their shortest time by an honest clock, and the control plane is away for three lives. */
const isLong = process.env['MIZZEN_DRILL_LONG'] !== undefined;
/** The clock of this process is behind while certificates are issued: OpenSSL, whose clock is the machine's, then sees most of their life as past. */
const behindMs = isLong ? 0 : 6_000;
/** What is left of a certificate's life when the control plane goes away, at least. */
const leftMs = 1_500;

describe('a control plane that is away for longer than certificates live', () => {
  const realNow = Date.now;
  let shiftMs = -behindMs;
  let mesh: TestMesh;
  let caller: RunningProxy;
  let fresh: RunningProxy;
  let log = '';
  let sent = 0;
  const failures: string[] = [];
  let isOver = false;
  let load: Promise<void>;

  const request = (from: RunningProxy, host: string) => call({ port: from.outboundPort, headers: { host: `${host}:9080` }, agent: new http.Agent() });
  /** When the certificate of a proxy ends. */
  const endOf = async (proxy: RunningProxy): Promise<number> => {
    const { body } = await call({ port: proxy.adminPort, path: '/certs' });
    const { certificates } = JSON.parse(body) as { certificates: { cert_chain: { expiration_time: string }[] }[] };
    return Date.parse(certificates[0]?.cert_chain[0]?.expiration_time ?? '');
  };

  before(async () => {
    Date.now = () => realNow() + shiftMs;
    mesh = await TestMesh.start({ logger: new Logger('test', 'warn', (line) => (log += line)) });
    await mesh.apply(`${service('web')}${service('lasting')}`);
    const fields = { certificateSeconds };
    await mesh.workload('web', { fields });
    await mesh.workload('lasting', { fields: { certificateSeconds: 3_600 } });
    caller = await mesh.proxy('caller', fields);
    fresh = await mesh.proxy('fresh', fields);
    await Promise.all([caller.proxy.ready, fresh.proxy.ready]);
    await until(
      'a request reaches the server',
      () => request(caller, 'web'),
      ({ status }) => status === 200,
    );
    load = (async () => {
      const agent = new http.Agent({ keepAlive: true });
      while (!isOver) {
        sent++;
        const status = await call({ port: caller.outboundPort, headers: { host: 'web:9080' }, agent }).then(({ status }) => status, String);
        if (status !== 200) failures.push(String(status));
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      agent.destroy();
    })();
    await until(
      'certificates with time left',
      async () => Math.min(...(await Promise.all([caller, fresh].map(endOf)))) - realNow(),
      (left) => left > leftMs,
    );
  });
  after(async () => {
    isOver = true;
    await load;
    await mesh.close();
    Date.now = realNow;
  });

  it('costs no request on an open connection; new ones fail with details, a log and /ready that name the expired certificate, until it is back', async (test) => {
    const { xdsPort } = mesh.plane;
    await mesh.plane.close();
    shiftMs = 0;
    const whose = 'spiffe://cluster.local/ns/default/sa';
    const ends = Math.max(...(await Promise.all([caller, fresh].map(endOf))));
    await until(
      'the certificates have expired',
      async () => realNow() - ends,
      (past) => past > (isLong ? 3_000 * certificateSeconds : 1_000),
      120_000,
    );
    // Both sides have expired: the server's certificate is verified first.
    const expired = await until(
      'a new connection fails',
      () => request(fresh, 'web'),
      ({ status }) => status === 503,
    );
    assert.match(
      expired.body,
      new RegExp(`reset reason: connection failure, the certificate of ${whose}/web has expired on .*: the clock of this machine says .* later$`),
    );
    // Only this side has expired: the server closes the connection.
    const refused = await request(fresh, 'lasting');
    assert.equal(refused.status, 503);
    assert.match(refused.body, new RegExp(`the certificate of ${whose}/fresh has expired on `));
    const lines = await until(
      'the access log has both',
      async () => readFileSync(fresh.config.accessLogFile!, 'utf8'),
      (text) => text.includes('sa/fresh_has_expired_on_'),
    );
    assert.match(lines, new RegExp(` 503 (?:URX,)?UF .*upstream_connect_failure\\{the_certificate_of_${whose}/web_has_expired_on_[^ ]*\\}`));
    assert.match(lines, new RegExp(` 503 (?:URX,)?U[CF] .*\\{the_certificate_of_${whose}/fresh_has_expired_on_[^ ]*\\}`));
    assert.match(log, /a TLS handshake failed .*the peer's certificate has expired, by the clock of this machine/);
    assert.match(log, new RegExp(`the certificate of this workload \\(${whose}/fresh\\) has expired on `));
    const ready = await call({ port: fresh.adminPort, path: '/ready' });
    assert.match(ready.body, new RegExp(`the certificate of this workload \\(${whose}/fresh\\) has expired on .*Until it does, peers refuse mutual TLS`));
    mesh.plane = await startControlPlane({ ...{ home: mesh.home, apiPort: 0, xdsPort, xdsPlainPort: 0, logger: silentLogger } });
    for (const host of ['web', 'lasting'])
      await until(
        `a new connection to ${host} succeeds again`,
        () => request(fresh, host),
        ({ status }) => status === 200,
      );
    assert.equal((await call({ port: fresh.adminPort, path: '/ready' })).body, 'LIVE\n');
    test.diagnostic(`${sent} requests on open connections, ${failures.length} failed`);
    assert.deepEqual(failures, []);
  });
});
