// The import-direction check: packages import only packages below them, parts of a package only the parts below them, nothing in a
// circle. ARCHITECTURE.md draws the same picture. Runs on any Node >= 20.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';

const root = join(import.meta.dirname, '..');

/** What each package may import, besides itself. */
const packages = {
  cli: ['control', 'message', 'proxy', 'api', 'envoy-api', 'common'],
  message: ['proxy', 'envoy-api', 'common'],
  control: ['api', 'gateway', 'envoy-api', 'common'],
  proxy: ['gateway', 'filter', 'envoy-api', 'common'],
  gateway: ['envoy-api', 'common'],
  filter: [],
  api: ['common'],
  'envoy-api': [],
  common: [],
};

/** Inside a package: folders, from top to bottom. A folder imports itself and what stands after it. Files of the package's root are above all. */
const layers = {
  message: ['api', 'brokers', 'broker', 'policy', 'log'],
  control: ['pilot', 'certificates', 'galley', 'rate-limit', 'citadel'],
  api: ['semantics', 'types'],
  cli: ['commands', 'runner', 'lab', 'capture'],
};

function filesBelow(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    if (entry.name === 'node_modules' || entry.name === 'gen') return [];
    const path = join(folder, entry.name);
    return entry.isDirectory() ? filesBelow(path) : entry.name.endsWith('.ts') && !entry.name.endsWith('.d.ts') ? [path] : [];
  });
}

const problems = [];
const graph = new Map();
for (const [name, allowed] of Object.entries(packages)) {
  const folder = join(root, 'packages', name);
  for (const file of filesBelow(folder)) {
    const text = readFileSync(file, 'utf8');
    const isTest = file.endsWith('.test.ts');
    const edges = [];
    for (const [statement, typeOnly, specifier] of text.matchAll(/^(?:import|export)\s+(type\s+)?(?:[^'"\n]*?\sfrom\s+)?'([^']+)';?/gm)) {
      const place = `${relative(root, file)}: ${statement.slice(0, 100)}`;
      const workspace = /^@mizzen\/([\w-]+)/.exec(specifier)?.[1];
      if (workspace !== undefined && workspace !== name && !allowed.includes(workspace) && !isTest)
        problems.push(`${place}\n    ${name} may import ${allowed.join(', ') || 'nothing'}, not ${workspace}`);
      if (!specifier.startsWith('.')) continue;
      const target = resolve(dirname(file), specifier);
      if (relative(folder, target).startsWith('..')) problems.push(`${place}\n    a relative import must stay in its package`);
      const order = layers[name];
      if (order && !isTest) {
        const layerOf = (path) => order.indexOf(relative(folder, path).split('/')[0]);
        const [from, to] = [layerOf(file), layerOf(target)];
        if (from >= 0 && to >= 0 && to < from) problems.push(`${place}\n    ${order[from]} may not import ${order[to]}, which stands above it`);
      }
      if (!typeOnly) edges.push(target);
    }
    graph.set(file, edges);
  }
}

// Circles among files; type-only imports vanish at run time and may close one.
const state = new Map();
function visit(file, path) {
  if (state.get(file) === 'done' || !graph.has(file)) return;
  if (state.get(file) === 'open') {
    problems.push(`a circle of imports:\n    ${[...path.slice(path.indexOf(file)), file].map((part) => relative(root, part)).join('\n    -> ')}`);
    return;
  }
  state.set(file, 'open');
  for (const target of graph.get(file)) visit(target, [...path, file]);
  state.set(file, 'done');
}
for (const file of graph.keys()) visit(file, []);

for (const problem of problems) console.error(problem);
console.log(problems.length === 0 ? `imports: ${graph.size} files, all point downwards` : `imports: ${problems.length} problems`);
process.exit(problems.length === 0 ? 0 : 1);
