import { soak } from '../e2e/support/soak.ts';
import { commandOptions } from '../scripts/options.ts';

/** `npm run soak [-- --minutes N]`: thirty minutes of all kinds of traffic on one proxy, and what is left of it. */
const { minutes } = commandOptions({ numbers: { minutes: 30 } });
console.log(`soaking for ${minutes} minutes`);
const { requests, growthMib, before, after, memory } = await soak(minutes * 60, (text) => console.log(text));
console.log(
  `${requests} requests; memory ${memory[0]?.toFixed(0)} to ${memory.at(-1)?.toFixed(0)} MiB, second to last quarter ${growthMib >= 0 ? '+' : ''}${growthMib.toFixed(1)} MiB`,
);
for (const name of Object.keys(after)) console.log(`${name}: ${before[name]} before, ${after[name]} after`);
