import assert from 'node:assert/strict';
import { it } from 'node:test';
import { timeProblem } from './certificate-time.ts';

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
