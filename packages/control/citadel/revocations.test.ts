import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { silentLogger } from '@mizzen/common';
import { AuditLog } from '../galley/api/audit-log.ts';
import { MemoryCounters } from '../rate-limit/limit-counters.ts';
import { IssuanceQuota } from './issuance-quota.ts';
import { IssuedCertificates } from './issued-certificates.ts';
import { Revocations } from './revocations.ts';

describe('what a flood of requests cannot displace', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-flood-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  const stolen = 'spiffe://cluster.local/ns/shop/sa/stolen';
  const inAnHour = (now = Date.now()) => new Date(now + 3_600_000).toISOString();

  it('is a certificate that may have to be revoked, when the log of what was issued is full of others', () => {
    const logPath = join(folder, 'issued.log');
    const revocations = () => new Revocations({ path: join(folder, 'revoked.json'), logPath });
    const first = revocations();
    first.issued({ serial: 'aa01', identity: stolen, generation: 'first', notAfter: inAnHour() });
    for (const path of [logPath, `${logPath}.1`]) writeFileSync(path, '{"outcome":"refused"}\n'.repeat(1_000));
    assert.deepEqual(
      revocations()
        .revoke({ identity: stolen })
        .map(({ serial }) => serial),
      ['aa01'],
    );
    // Certificates of a release that kept the log alone are still found, each of them once.
    const old = { outcome: 'issued', serial: 'aa02', identity: stolen, generation: 'first', notAfter: inAnHour() };
    appendFileSync(logPath, `${JSON.stringify(old)}\n${JSON.stringify(old)}\n{"outcome":"issu`);
    assert.deepEqual(
      revocations()
        .revoke({ identity: stolen })
        .map(({ serial }) => serial),
      ['aa02'],
    );
    assert.equal(statSync(join(folder, 'valid-certificates.log')).mode & 0o777, 0o600);
  });

  it('is forgotten when it has expired, so that the list does not grow without end', () => {
    let now = Date.parse('2026-01-01T00:00:00Z');
    const path = join(folder, 'list.log');
    const issued = new IssuedCertificates(path, () => now);
    const identity = `${stolen}-${'x'.repeat(1_000)}`;
    issued.add({ serial: 'keep', identity, generation: 'first', notAfter: new Date(now + 10 * 86_400_000).toISOString() });
    for (let day = 0; day < 3; day++, now += 86_400_000)
      for (let i = 0; i < 400; i++) issued.add({ serial: `${day}-${i}`, identity, generation: 'first', notAfter: inAnHour(now) });
    assert.ok(statSync(path).size < 1_300_000, `${statSync(path).size} bytes`);
    assert.ok(issued.read().some(({ serial }) => serial === 'keep'));
  });

  it('is issued to one identity within its quota, and does not take the quota of others', () => {
    let now = 0;
    const quota = new IssuanceQuota(() => now);
    for (let i = 0; i < 5_000; i++) assert.equal(quota.take('a'), undefined);
    assert.match(quota.take('a') ?? '', /5000 certificates within an hour/);
    assert.equal(quota.take('b'), undefined);
    now = 3_600_001;
    assert.equal(quota.take('a'), undefined);
  });

  it('is an entry of the audit log about a change', () => {
    let now = 0;
    const path = join(folder, 'audit.log');
    const log = new AuditLog(path, silentLogger, () => now);
    const entry = (name: string, status: number) => ({
      ...{ time: 't', caller: { name, role: 'viewer', by: 'token' } as const, from: '127.0.0.1:1', verb: 'delete', resource: '/secrets', namespace: 'x' },
      ...{ name: 'n'.repeat(10_000), status, isDryRun: false, reason: 'no' },
    });
    for (let i = 0; i < 1_000; i++) log.write(entry('vera', 403));
    log.write(entry('anna', 200));
    log.write(entry('otto', 403));
    now = 60_000;
    log.write(entry('vera', 403));
    const lines = readFileSync(path, 'utf8').trim().split('\n');
    assert.equal(lines.length, 60 + 1 + 1 + 2);
    assert.ok(lines.every((line) => line.length < 2_000));
    assert.match(lines.at(-2)!, /940 more attempts of vera were refused/);
    const changes = Array.from({ length: 200 }, (_, i) => ({ path: `data.k${i}`, after: 'x'.repeat(2_000) }));
    log.write({ ...entry('anna', 200), changes });
    const last = readFileSync(path, 'utf8').trim().split('\n').at(-1)!;
    assert.ok(last.length < 40_000 && /more fields/.test(last), `${last.length}`);
  });

  it('is the count of another caller of the rate limit service', async () => {
    const counters = new MemoryCounters(() => 0);
    const windows = (from: number, count: number) => Array.from({ length: count }, (_, i) => ({ key: `k${from + i}`, hits: 1, seconds: 60 }));
    for (let i = 0; i < 21; i++) await counters.add(windows(i * 10_000, 10_000), 'flood');
    assert.deepEqual(await counters.add(windows(205_000, 1), 'flood'), [1]);
    assert.deepEqual(await counters.add(windows(205_000, 1), 'flood'), [1], 'a window beyond those of the caller is not counted');
    await counters.add([{ key: 'theirs', hits: 1, seconds: 60 }], 'other');
    assert.deepEqual(await counters.add([{ key: 'theirs', hits: 1, seconds: 60 }], 'other'), [2]);
    await counters.close();
  });
});
