// Writes docs/compatibility.md from what the code knows of the kinds. Runs with the project's own Node.js: npm run docs:compatibility.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describeCompatibility } from '../packages/control/pilot/analysis/describe-compatibility.ts';

const file = join(import.meta.dirname, '../docs/compatibility.md');
writeFileSync(file, describeCompatibility());
console.log(`wrote ${file}`);
