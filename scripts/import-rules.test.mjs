import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, it } from 'node:test';
import { checkImports } from './import-rules.mjs';

/** What is found in two packages, `top` with the folders `high` above `low`, and `base` below it, with one file more. */
function problemsOf(path, text, rules = { packages: { top: ['base'], base: [] }, layers: { top: ['high', 'low'] } }) {
  const root = mkdtempSync(join(tmpdir(), 'mizzen-imports-'));
  const write = (file, content) => {
    mkdirSync(dirname(join(root, file)), { recursive: true });
    writeFileSync(join(root, file), content);
  };
  write('packages/top/package.json', '{ "exports": { ".": "./index.ts" } }');
  write('packages/base/package.json', '{ "exports": { ".": "./index.ts", "./deep/*": "./deep/*.ts" } }');
  for (const file of ['top/index', 'top/high/a', 'top/low/b', 'base/index', 'base/secret', 'base/deep/c'])
    write(`packages/${file}.ts`, 'export const x = 1;\n');
  write(`packages/${path}`, text);
  try {
    return checkImports(root, rules).problems;
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

const forms = (specifier) => ({
  'an import': `import { x } from '${specifier}';`,
  'an import over several lines': `import {\n  x,\n} from '${specifier}';`,
  'an import of types': `import type { X } from '${specifier}';`,
  'an import without names': `import '${specifier}';`,
  'a re-export': `export * from '${specifier}';`,
  'a re-export of types over several lines': `export type {\n  X,\n} from '${specifier}';`,
  'a dynamic import': `export const x = async () => (await import('${specifier}')).x;`,
  'a type of an import': `export type T = import('${specifier}').X;`,
  'an import behind another statement': `const y = 1; import { x } from '${specifier}'; export { x, y };`,
});

describe('the import rules', () => {
  it('allow what points downwards', () => {
    for (const specifier of ['@mizzen/base', '@mizzen/base/deep/c', '../low/b.ts', 'node:fs'])
      for (const [form, text] of Object.entries(forms(specifier))) assert.deepEqual(problemsOf('top/high/probe.ts', text), [], `${form} of ${specifier}`);
  });

  for (const [violation, path, specifier, pattern] of [
    ['a package above', 'base/probe.ts', '@mizzen/top', /base may import nothing, not top/],
    ['what a package does not export', 'top/probe.ts', '@mizzen/base/secret', /base does not export it/],
    ['a relative path into another package', 'top/probe.ts', '../base/index.ts', /a relative import must stay in its package: import @mizzen\/base/],
    ['a folder above', 'top/low/probe.ts', '../high/a.ts', /low may not import high, which stands above it/],
  ])
    it(`refuse ${violation}, in every form of an import`, () => {
      for (const [form, text] of Object.entries(forms(specifier))) {
        const problems = problemsOf(path, text);
        assert.equal(problems.length, 1, `${form}: ${problems}`);
        assert.match(problems[0], pattern, form);
        assert.match(problems[0], /^packages\/\w+\/(low\/)?probe\.ts:\d+: /, form);
      }
    });

  it('refuse a cycle of files that load each other, and not one of types', () => {
    const cycle = (text) => problemsOf('top/low/b.ts', text, { packages: { top: [], base: [] }, layers: {} });
    assert.deepEqual(cycle("import './b.ts';"), ['a cycle of imports:\n    packages/top/low/b.ts\n    -> packages/top/low/b.ts']);
    assert.deepEqual(cycle("import type { X } from './b.ts';"), []);
  });

  it('see through comments, strings and templates', () => {
    assert.deepEqual(
      problemsOf('base/probe.ts', "// import '@mizzen/top';\nexport const a = `import '@mizzen/top'`; export const b = \"import '@mizzen/top'\";"),
      [],
    );
  });
});
