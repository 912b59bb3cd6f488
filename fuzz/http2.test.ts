import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { fuzzHttp2 } from './http2-differential.ts';

/** Another seed each day, the same for all runs of a day: a failure can be repeated, and time widens what was tried. */
const seed = Number(process.env['MIZZEN_FUZZ_SEED'] ?? Math.floor(Date.now() / 86_400_000) * 1_000_000);

describe('differential fuzz of the HTTP/2 codec', () => {
  it('reads what it accepts as nghttp2 does, however the bytes are cut', async () => {
    const { cases, accepted, findings } = await fuzzHttp2({ seed, cases: 20_000, untilMs: Date.now() + 10_000 });
    assert.deepEqual(findings, []);
    assert.ok(accepted > 1_000, `only ${accepted} requests of ${cases} connections were accepted`);
  });
});
