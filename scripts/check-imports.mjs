// `npm run check-imports`: the direction of imports. ARCHITECTURE.md draws the same picture. Runs on any Node >= 20.
import { join } from 'node:path';
import { checkImports } from './import-rules.mjs';

/** What each package may import, besides itself. */
const packages = {
  cli: ['control', 'message', 'proxy', 'api', 'envoy-api', 'common'],
  message: ['proxy', 'envoy-api', 'common'],
  control: ['api', 'gateway', 'envoy-api', 'common'],
  proxy: ['gateway', 'filter', 'envoy-api', 'common'],
  gateway: ['envoy-api', 'common'],
  filter: [],
  api: ['common'],
  'envoy-api': ['common'],
  common: [],
};

/** Inside a package: folders, from top to bottom. A folder imports itself and what stands after it. Files of the package's root are above all. */
const layers = {
  message: ['api', 'brokers', 'broker', 'policy', 'log'],
  control: ['pilot', 'certificates', 'galley', 'rate-limit', 'citadel'],
  api: ['semantics', 'types'],
  cli: ['commands', 'runner', 'lab', 'capture'],
};

const { problems, files } = checkImports(join(import.meta.dirname, '..'), { packages, layers });
for (const problem of problems) console.error(problem);
console.log(problems.length === 0 ? `imports: ${files} files, all point downwards` : `imports: ${problems.length} problems`);
process.exit(problems.length === 0 ? 0 : 1);
