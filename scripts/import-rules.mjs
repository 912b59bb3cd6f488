// The import rules of the repository, as a function over a folder, so that a test can feed it violations: packages import only packages below
// them and only what these export; folders of a package import only the folders below them; no relative import leaves its package; no cycles.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { importsOf } from './imports-of.mjs';

function filesBelow(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    if (entry.name === 'node_modules' || entry.name === 'gen') return [];
    const path = join(folder, entry.name);
    return entry.isDirectory() ? filesBelow(path) : entry.name.endsWith('.ts') && !entry.name.endsWith('.d.ts') ? [path] : [];
  });
}

/** Whether `subpath` ('.' or './x') is in the `exports` of a package. */
function isExported(exports, subpath) {
  if (Object.hasOwn(exports, subpath)) return true;
  return Object.keys(exports).some((key) => {
    const [head, tail] = key.split('*');
    return tail !== undefined && subpath.startsWith(head) && subpath.endsWith(tail);
  });
}

/**
 * @param {string} root the folder that holds `packages/`
 * @param {{ packages: Record<string, string[]>, layers: Record<string, string[]> }} rules what each package may import besides itself, and
 *   the folders of a package from top to bottom
 * @returns {{ problems: string[], files: number }}
 */
export function checkImports(root, { packages, layers }) {
  const problems = [];
  const graph = new Map();
  const exportsOf = Object.fromEntries(
    Object.keys(packages).map((name) => {
      const manifest = join(root, 'packages', name, 'package.json');
      return [name, existsSync(manifest) ? (JSON.parse(readFileSync(manifest, 'utf8')).exports ?? {}) : {}];
    }),
  );
  for (const [name, allowed] of Object.entries(packages)) {
    const folder = join(root, 'packages', name);
    for (const file of filesBelow(folder)) {
      const isTest = file.endsWith('.test.ts');
      const edges = [];
      for (const { specifier, isType, isDynamic, line } of importsOf(file, readFileSync(file, 'utf8'))) {
        const place = `${relative(root, file)}:${line}: '${specifier}'`;
        const [, workspace, subpath] = /^@mizzen\/([\w-]+)(\/.*)?$/.exec(specifier) ?? [];
        if (workspace !== undefined) {
          if (workspace !== name && !allowed.includes(workspace) && !isTest)
            problems.push(`${place}\n    ${name} may import ${allowed.join(', ') || 'nothing'}, not ${workspace}`);
          if (!Object.hasOwn(exportsOf, workspace) || !isExported(exportsOf[workspace], `.${subpath ?? ''}`))
            problems.push(`${place}\n    ${workspace} does not export it: its package.json names what others may import`);
        }
        if (!specifier.startsWith('.')) continue;
        const target = resolve(dirname(file), specifier);
        if (relative(folder, target).startsWith('..')) {
          const other = relative(join(root, 'packages'), target).split('/')[0];
          if (other !== '..') problems.push(`${place}\n    a relative import must stay in its package: import @mizzen/${other}`);
          continue;
        }
        const order = layers[name];
        if (order !== undefined && !isTest) {
          const layerOf = (path) => order.indexOf(relative(folder, path).split('/')[0]);
          const [from, to] = [layerOf(file), layerOf(target)];
          if (from >= 0 && to >= 0 && to < from) problems.push(`${place}\n    ${order[from]} may not import ${order[to]}, which stands above it`);
        }
        if (!isType && !isDynamic) edges.push(target);
      }
      graph.set(file, edges);
    }
  }
  problems.push(...cycles(graph).map((cycle) => `a cycle of imports:\n    ${cycle.map((file) => relative(root, file)).join('\n    -> ')}`));
  return { problems, files: graph.size };
}

/** Cycles among files that would be loaded in a circle: imports of types vanish at run time, and dynamic ones come later. */
function cycles(graph) {
  const found = [];
  const state = new Map();
  const visit = (file, path) => {
    if (state.get(file) === 'done' || !graph.has(file)) return;
    if (state.get(file) === 'open') return void found.push([...path.slice(path.indexOf(file)), file]);
    state.set(file, 'open');
    for (const target of graph.get(file)) visit(target, [...path, file]);
    state.set(file, 'done');
  };
  for (const file of graph.keys()) visit(file, []);
  return found;
}
