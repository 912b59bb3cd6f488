import assert from 'node:assert/strict';
import { it } from 'node:test';
import { backdateMs, issuedAtMs, timeProblem, validFromMs } from './certificate-time.ts';

it('a certificate out of its time is reported with its holder, the moment and the clock', () => {
  const certificate = { validFrom: 'Nov 30 11:00:00 2026 GMT', validTo: 'Nov 30 13:00:00 2026 GMT' };
  const problemAt = (now: string) =>
    timeProblem(certificate, { whose: 'the certificate of web', clock: 'the clock of the control plane', nowMs: Date.parse(now) });
  assert.equal(problemAt('2026-11-30T12:00:00Z'), undefined);
  assert.equal(problemAt('2026-11-30T10:59:30Z'), undefined, 'clocks may differ by a minute');
  assert.match(
    problemAt('2026-11-30T14:00:00Z') ?? '',
    /^the certificate of web has expired on 2026-11-30T13:00:00Z: the clock of the control plane says 2026-11-30T14:00:00Z, 1h.* later$/,
  );
  assert.match(
    problemAt('2026-11-30T10:00:00Z') ?? '',
    /^the certificate of web is not valid before 2026-11-30T11:00:00Z: .* says 2026-11-30T10:00:00Z, 1h.* earlier\. Set the clock/,
  );
});

it('tells when a certificate of the mesh was issued, however short it lives', () => {
  const issuedAt = Date.parse('2026-11-30T12:00:00Z');
  for (const lifeMs of [10_000, 60_000, 600_000, backdateMs, 86_400_000]) {
    const validity = { validFrom: new Date(validFromMs(issuedAt, lifeMs)).toUTCString(), validTo: new Date(issuedAt + lifeMs).toUTCString() };
    assert.equal(issuedAtMs(validity), issuedAt, String(lifeMs));
  }
});
