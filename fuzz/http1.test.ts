import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { fuzzHttp1 } from './http1-differential.ts';

/** Another seed each day, the same for all runs of a day: a failure can be repeated, and time widens what was tried. */
const seed = Number(process.env['MIZZEN_FUZZ_SEED'] ?? Math.floor(Date.now() / 86_400_000) * 1_000_000);

describe('differential fuzz of the HTTP/1.1 codec', () => {
  it('reads what it accepts as llhttp does, however the bytes are cut', async () => {
    const { cases, accepted, findings } = await fuzzHttp1({ seed, cases: 200_000, untilMs: Date.now() + 10_000 });
    assert.deepEqual(findings, []);
    assert.ok(accepted > 500, `only ${accepted} of ${cases} were accepted`);
  });
});
