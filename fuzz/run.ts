import { fuzzHttp1 } from './http1-differential.ts';

/** `npm run fuzz [-- --seconds N] [-- --seed N]`: the long form of fuzz/*.test.ts. */
const option = (name: string, otherwise: number) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : Number(process.argv[at + 1]);
};
const seed = option('seed', Date.now() % 1_000_000_000);
const seconds = option('seconds', 600);
console.log(`HTTP/1.1 codec against llhttp for ${seconds} s, seed ${seed}`);
const { cases, accepted, findings } = await fuzzHttp1({ seed, cases: Number.MAX_SAFE_INTEGER, untilMs: Date.now() + seconds * 1_000 });
for (const finding of findings) console.error(finding);
console.log(`${cases} cases, ${accepted} accepted by both, ${findings.length} findings`);
process.exit(findings.length === 0 ? 0 : 1);
