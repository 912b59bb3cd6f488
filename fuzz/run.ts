import { commandOptions } from '../scripts/options.ts';
import { fuzzHttp1 } from './http1-differential.ts';
import { fuzzHttp2 } from './http2-differential.ts';

/** `npm run fuzz [-- --seconds N] [-- --seed N]`: the long form of fuzz/*.test.ts; half of the time for each codec. */
const options = commandOptions({ numbers: { seed: Date.now() % 1_000_000_000, seconds: 600 } });
const { seed } = options;
const seconds = options.seconds / 2;
let isClean = true;
for (const [name, fuzz] of [
  ['HTTP/1.1 codec against llhttp', fuzzHttp1],
  ['HTTP/2 codec against nghttp2', fuzzHttp2],
] as const) {
  console.log(`${name} for ${seconds} s, seed ${seed}`);
  const { cases, accepted, findings } = await fuzz({ seed, cases: Number.MAX_SAFE_INTEGER, untilMs: Date.now() + seconds * 1_000 });
  for (const finding of findings) console.error(finding);
  console.log(`${cases} cases, ${accepted} accepted by both, ${findings.length} findings`);
  isClean &&= findings.length === 0;
}
process.exit(isClean ? 0 : 1);
